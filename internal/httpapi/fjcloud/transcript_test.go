package fjcloud_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/getkin/kin-openapi/openapi3filter"

	"vmimport/imageapi"
	"vmimport/internal/diskimage"
	"vmimport/internal/fault"
	"vmimport/internal/httpapi/httpapitest"
	"vmimport/storage"
	"vmimport/tasks"
)

// failures that a transcript can call for by name.
var failures = map[string]error{
	"object-missing":   storage.ErrNoObject,
	"object-changed":   storage.ErrChanged,
	"object-store":     storage.ErrUnavailable,
	"object-too-large": tasks.ErrObjectTooLarge.Saw("%d bytes, at most %d are allowed", 70000, 65536),
	"object-denied":    fault.New(fault.Denied, "access_denied", "The object store refuses access."),
	"format-mismatch":  fault.New(fault.Invalid, "format_mismatch", "The object was declared as a VMDK image, but is a raw disk image.").Saw("detected format: raw").Try("Rename it."),
	"object-empty":     fault.New(fault.Invalid, "object_empty", "The object is empty."),
	"backing-file":     diskimage.ErrBackingFile,
	"encrypted":        diskimage.ErrEncrypted,
	"truncated":        diskimage.ErrTruncated.Saw("%d of %d bytes", 4096, 65536),
	"disk-too-large":   diskimage.ErrTooLarge.Saw("%d bytes, at most %d are allowed", 1<<41, 1<<40),
	"image-inactive":   imageapi.ErrNotReady,
	"image-disks":      imageapi.ErrSeveralDisks,
	"image-format":     fault.New(fault.Invalid, "image_format_unsupported", "Images of this format cannot be exported.").Saw("vhd"),
	"image-name":       fault.New(fault.Invalid, "image_name_unusable", "The image has a name that no object can have.").Try("Rename the image."),
	"image-service":    fault.New(fault.Unavailable, "image_service_unavailable", "The image service does not answer."),
	"no-exports":       fault.New(fault.Invalid, "exports_not_offered", "The region offers no exports."),
	"id-in-use":        tasks.ErrImageIDInUse,
	"cleaning":         tasks.ErrCleaning,
	"quota":            tasks.ErrTooManyImports,
	"disk-quota":       fault.New(fault.Exhausted, "disk_quota", "The disk quota is used up."),
	"store-down":       fault.Wrap(errors.New("dial tcp 10.0.0.5:6379: refused"), fault.Unavailable, "store_unavailable", "The record store is not available."),
	"timeout":          fmt.Errorf("read record: %w", context.DeadlineExceeded),
	"bug":              errors.New("index out of range in /srv/vmimport/tasks"),
	"fenced":           tasks.ErrFenced,
}

// The validator has no decoder for streams of events, which are text to it.
func init() {
	openapi3filter.RegisterBodyDecoder("text/event-stream", openapi3filter.PlainBodyDecoder)
}

func TestTranscripts(t *testing.T) {
	t.Parallel()
	httpapitest.Run(t, "testdata/*.txt", func(t *testing.T) (http.Handler, httpapitest.Actions) {
		w := newWorld(t)
		return w, httpapitest.Actions{
			// fail NAME: the service's next call fails.
			"fail": func(t *testing.T, args []string) {
				w.service.fails = failures[args[0]]
				if w.service.fails == nil {
					t.Fatalf("no failure %q", args[0])
				}
			},
			// state STATE [PERCENT]: a worker brought the newest import there.
			"state": func(t *testing.T, args []string) {
				w.service.change(func(imp *tasks.Task) { advance(t, imp, args) })
			},
			// archive: the newest import, which succeeded, was one of two disks.
			"archive": func(_ *testing.T, _ []string) {
				w.service.change(func(imp *tasks.Task) {
					disk := &imp.Result.Disks[0]
					disk.Format, disk.VirtualSizes = "ova", []int64{40 << 30, 100 << 30}
				})
			},
			// object CONTAINER/NAME TEXT: there is an object that holds the text.
			"object": func(_ *testing.T, args []string) { w.service.put(args[0], strings.Join(args[1:], " ")) },
			// attempts: the newest import has behind it what can happen to one; and kept: what it
			// had written is kept.
			"attempts": func(_ *testing.T, _ []string) { w.service.change(giveAttempts) },
			"kept": func(_ *testing.T, _ []string) {
				w.service.change(func(t *tasks.Task) { t.KeptUntil = t.FinishedAt.Add(24 * time.Hour) })
			},
			// forget: the journal has only its last change.
			"forget": func(_ *testing.T, _ []string) { w.service.journal.forget("contract01") },
			// dialect NAME: the newest import came in through another dialect.
			"dialect": func(_ *testing.T, args []string) {
				w.service.change(func(imp *tasks.Task) { imp.Dialect = args[0] })
			},
		}
	})
}

// giveAttempts gives an import attempts that have ended.
func giveAttempts(imp *tasks.Task) {
	at := func(minute int) time.Time { return imp.RequestedAt.Add(time.Duration(minute) * time.Minute) }
	imp.Attempts = []tasks.Attempt{
		{Epoch: 1, Worker: "worker-10.0.0.7", StartedAt: at(1), EndedAt: at(2), Outcome: tasks.OutcomeLost, DoneBytes: 1 << 30},
		{Epoch: 2, Worker: "worker-10.0.0.8", StartedAt: at(3), EndedAt: at(4), Outcome: tasks.OutcomeRetry, FromBytes: 1 << 29, DoneBytes: 2 << 30, Cause: &tasks.Failure{
			Code: "object_store_unavailable", Message: "The object store does not answer.", Evidence: "HTTP 503", Remedy: "Nothing needs to be done.",
		}},
	}
}

func advance(t *testing.T, imp *tasks.Task, args []string) {
	imp.State = tasks.State(args[0])
	if len(args) > 1 {
		percent, err := strconv.Atoi(args[1])
		if err != nil {
			t.Fatal(err)
		}
		imp.Progress = percent
	}
	switch imp.State {
	case tasks.Processing:
		imp.Epoch++
		imp.Stage = tasks.StageCopying
		imp.Counters = tasks.Counters{Disk: 1, DoneBytes: imp.TotalBytes() * int64(imp.Progress) / 100, BytesPerSecond: 300 << 20, Retries: 2, Stalls: 1}
	case tasks.Queued:
		imp.Stage = tasks.StageWaiting
	default:
		imp.Stage = tasks.StageDone
	}
	if imp.State.Final() {
		imp.FinishedAt = imp.RequestedAt.Add(time.Minute)
	}
	if imp.Export != nil {
		finishExport(imp)
		return
	}
	switch imp.State {
	case tasks.Failed:
		imp.Failure = &tasks.Failure{
			Code: "checksum_mismatch", Message: "Checksum of the image file does not match.",
			Evidence: "declared 2fd4e1c6…, found da39a3ee…", Remedy: "Compare the object with your file and upload it again.",
		}
	case tasks.Succeeded:
		imp.Progress = 100
		imp.Result = &tasks.Result{Disks: []tasks.DiskResult{{
			Format: imp.Disks[0].Format, VirtualSizes: []int64{40 << 30}, Digests: map[string]string{"sha1": "2fd4e1c67a2d28fced849ee1bb76e7391b93eb12"},
		}}}
	}
}

// finishExport gives an export in a final state what belongs to it.
func finishExport(t *tasks.Task) {
	switch t.State {
	case tasks.Failed:
		f := imageapi.ErrGone
		t.Failure = &tasks.Failure{Code: f.Code, Message: f.Message, Evidence: "image " + t.ImageID, Remedy: f.Remedy}
	case tasks.Succeeded:
		t.Progress = 100
		names := map[tasks.Form][]string{
			tasks.FormCloud: {"web01.img.gz", "web01.json"},
			tasks.FormVMDK:  {"web01.vmdk", "web01.ovf", "web01.mf"},
			tasks.FormQCOW2: {"web01.qcow2"},
		}[t.Export.Form]
		t.Result = &tasks.Result{}
		for i, name := range names {
			t.Result.Objects = append(t.Result.Objects, tasks.ObjectResult{Name: name, Bytes: int64(1 << 30 >> (10 * i))})
		}
		t.Result.Objects[0].Digests = map[string]string{
			"md5": "d41d8cd98f00b204e9800998ecf8427e", "sha1": "2fd4e1c67a2d28fced849ee1bb76e7391b93eb12", "sha256": strings.Repeat("0f", 32),
		}
	}
}
