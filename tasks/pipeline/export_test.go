package pipeline

import (
	"context"
	"crypto/md5"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"vmimport/imageapi"
	"vmimport/internal/diskimage/qcow2"
	"vmimport/internal/diskimage/vmdk"
	"vmimport/internal/fault"
	"vmimport/storage"
	"vmimport/tasks"
)

const exportSize = 5*markEvery + chunk + 512

func TestExportForms(t *testing.T) {
	for _, tt := range []struct {
		name, format string
		form         tasks.Form
		objects      []string
	}{
		{"raw, packed", "raw", tasks.FormCloud, []string{"web01.img.gz", "web01.json"}},
		{"qcow2, packed", "qcow2", tasks.FormCloud, []string{"web01.json", "web01.qcow2.gz"}},
		{"raw as VMDK", "raw", tasks.FormVMDK, []string{"web01.mf", "web01.ovf", "web01.vmdk"}},
		{"qcow2 as VMDK", "qcow2", tasks.FormVMDK, []string{"web01.mf", "web01.ovf", "web01.vmdk"}},
		{"raw as QCOW2", "raw", tasks.FormQCOW2, []string{"web01.qcow2"}},
		{"qcow2 as it is", "qcow2", tasks.FormQCOW2, []string{"web01.qcow2"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newExportRig(t)
			content := disk(1, exportSize)
			spec := r.ask(r.image(tt.format, content), tt.form)
			if outcome := r.handle(spec); outcome != string(tasks.Succeeded) {
				t.Fatalf("outcome %s: %+v", outcome, r.get(spec).Failure)
			}
			r.wantExport(spec, content)
			r.wantFiles(tt.objects...)
			switch tt.form {
			case tasks.FormCloud:
				r.wantMetadata("web01.json")
			case tasks.FormVMDK:
				r.wantVirtualSize("web01.vmdk", vmdk.Open, exportSize)
				descriptor := string(r.read("web01.ovf"))
				for _, want := range []string{`"web01.vmdk"`, `"` + strconv.Itoa(exportSize) + `"`, `"` + strconv.Itoa(len(r.read("web01.vmdk"))) + `"`, "efi"} {
					if !strings.Contains(descriptor, want) {
						t.Errorf("descriptor lacks %s:\n%s", want, descriptor)
					}
				}
				if sum := r.get(spec).Result.Objects[0].Digests["sha256"]; !strings.Contains(string(r.read("web01.mf")), "SHA256(web01.vmdk)= "+sum+"\n") {
					t.Errorf("manifest is %q", r.read("web01.mf"))
				}
			case tasks.FormQCOW2:
				r.wantVirtualSize("web01.qcow2", qcow2.Open, exportSize)
			}
		})
	}
}

func (r *exportRig) wantMetadata(name string) {
	r.t.Helper()
	var m map[string]any
	if err := json.Unmarshal(r.read(name), &m); err != nil {
		r.t.Fatal(err)
	}
	for member, want := range map[string]any{"name": "web01", "os_type": "rocky", "min_ram": 2048.0, "hw_firmware_type": "uefi"} {
		if m[member] != want {
			r.t.Errorf("metadata has %s %v", member, m[member])
		}
	}
}

// The size of a raw image need not be that of whole sectors.
func TestExportOddSize(t *testing.T) {
	r := newExportRig(t)
	content := disk(3, exportSize-512+7)
	imageID := r.image("raw", disk(3, 512))
	path := filepath.Join(r.dir, imageID, "disk-1.raw")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	padded := append(slices.Clone(content), make([]byte, 505)...)
	for _, form := range []tasks.Form{tasks.FormVMDK, tasks.FormQCOW2} {
		spec := r.ask(imageID, form)
		r.handle(spec)
		r.wantExport(spec, padded)
		if err := errors.Join(os.RemoveAll(r.objects), os.Mkdir(r.objects, 0o700)); err != nil {
			t.Fatal(err)
		}
	}
}

// A worker is killed when some parts are stored. The next one goes on behind these.
func TestExportGoesOn(t *testing.T) {
	for _, form := range []tasks.Form{tasks.FormCloud, tasks.FormVMDK, tasks.FormQCOW2} {
		for _, cause := range []error{tasks.ErrClaimLost, tasks.ErrDraining} {
			t.Run(string(form)+", "+cause.Error(), func(t *testing.T) {
				r := newExportRig(t)
				content := disk(1, exportSize)
				spec := r.ask(r.image("raw", content), form)
				// Parts 1 and 2 are taken, the third is not, those behind it may be.
				r.target.putPart = func(ctx context.Context, p storage.Part) error {
					if p.Number != 3 {
						return nil
					}
					<-ctx.Done()
					return context.Cause(ctx)
				}
				ctx, kill := context.WithCancelCause(t.Context())
				ended := make(chan string, 1)
				go func() {
					outcome, err := r.runner().Handle(ctx, spec.Ref())
					if err != nil {
						t.Error(err)
					}
					ended <- outcome
				}()
				r.wait("two parts", func() bool {
					cp, ok := r.checkpointOf(spec)
					return ok && len(cp.Parts) >= 2
				})
				kill(cause)
				outcome := <-ended
				if errors.Is(cause, tasks.ErrDraining) {
					if outcome != tasks.OutcomeDrained {
						t.Errorf("outcome %s", outcome)
					}
				} else {
					r.expire(spec)
				}
				r.target.putPart, r.target.stored = nil, nil
				counted := &counter{}
				r.opt.Observe = counted
				r.handle(spec)
				r.wantExport(spec, content)
				if slices.Contains(r.target.stored, 1) || slices.Contains(r.target.stored, 2) {
					t.Errorf("stored again: %v", r.target.stored)
				}
				if counted.received.Load() > exportSize-2*markEvery+chunk {
					t.Errorf("%d bytes of %d were read again", counted.received.Load(), exportSize)
				}
				if last := r.get(spec).Attempts[1]; last.FromBytes != 2*markEvery {
					t.Errorf("went on from %d", last.FromBytes)
				}
			})
		}
	}
}

// A worker dies between the last step outside and the end of the record, or the store's
// answer to that step is lost.
func TestExportIsRecognised(t *testing.T) {
	for name, interfere := range map[string]func(r *exportRig, spec *tasks.Spec) func(){
		"the answer to the last step is lost": func(r *exportRig, spec *tasks.Spec) func() {
			r.target.joined = func() error { return storage.ErrUnavailable }
			return func() { r.target.joined = nil }
		},
		"the worker dies before its last step": func(r *exportRig, spec *tasks.Spec) func() {
			r.target.join = func() error { r.expire(spec); return storage.ErrUnavailable }
			return func() { r.target.join = nil }
		},
		"the worker dies behind its last step": func(r *exportRig, spec *tasks.Spec) func() {
			r.claims = &meddling{Claims: r.store, succeed: func() error { r.expire(spec); return tasks.ErrFenced }}
			return func() { r.claims = r.store }
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newExportRig(t)
			content := disk(1, exportSize)
			spec := r.ask(r.image("raw", content), tasks.FormVMDK)
			mend := interfere(r, spec)
			r.handle(spec)
			mend()
			stored := len(r.target.stored)
			r.handle(spec)
			r.wantExport(spec, content)
			if len(r.target.stored) != stored {
				t.Errorf("%d parts were stored again", len(r.target.stored)-stored)
			}
		})
	}
}

func TestExportCanceled(t *testing.T) {
	for name, interfere := range map[string]func(r *exportRig, spec *tasks.Spec){
		"while a part is stored": func(r *exportRig, spec *tasks.Spec) {
			r.target.putPart = func(ctx context.Context, p storage.Part) error {
				if p.Number < 3 {
					return nil
				}
				if p.Number == 3 {
					r.cancel(spec)
				}
				<-ctx.Done()
				return context.Cause(ctx)
			}
		},
		"just before it is published": func(r *exportRig, spec *tasks.Spec) {
			r.claims = &meddling{Claims: r.store, beginPublish: func() { r.cancel(spec) }}
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newExportRig(t)
			spec := r.ask(r.image("raw", disk(1, exportSize)), tasks.FormCloud)
			interfere(r, spec)
			if outcome := r.handle(spec); outcome != string(tasks.Canceled) {
				t.Errorf("outcome %s", outcome)
			}
			r.wantNoFiles(spec, tasks.Canceled, "")
		})
	}
}

// The store is away when there is something to remove.
func TestExportLeftovers(t *testing.T) {
	r := newExportRig(t)
	spec := r.ask(r.image("raw", disk(1, exportSize)), tasks.FormCloud)
	r.claims = &meddling{Claims: r.store, beginPublish: func() { r.cancel(spec) }}
	r.target.discard = func() error { return storage.ErrUnavailable }
	if outcome := r.handle(spec); outcome != tasks.OutcomeLeftovers {
		t.Errorf("outcome %s", outcome)
	}
	r.claims, r.target.discard = r.store, nil
	if outcome := r.handle(spec); outcome != string(tasks.Canceled) {
		t.Errorf("outcome %s", outcome)
	}
	r.wantNoFiles(spec, tasks.Canceled, "")
}

// A customer's object appears under one of the names. It stays, and all that is the export's goes.
func TestExportOverwritesNothing(t *testing.T) {
	for _, name := range []string{"web01.vmdk", "web01.ovf", "web01.mf"} {
		for _, when := range []string{"before it begins", "at the end"} {
			t.Run(name+" "+when, func(t *testing.T) {
				r := newExportRig(t)
				spec := r.ask(r.image("raw", disk(1, exportSize)), tasks.FormVMDK)
				appear := func() {
					if err := os.WriteFile(filepath.Join(r.objects, name), []byte("mine"), 0o600); err != nil {
						t.Error(err)
					}
				}
				if when == "at the end" {
					r.claims = &meddling{Claims: r.store, beginPublish: appear}
				} else {
					appear()
				}
				r.handle(spec)
				if task := r.get(spec); task.State != tasks.Failed || task.Failure.Code != "object_exists" {
					t.Errorf("export is %s, %+v", task.State, task.Failure)
				}
				r.wantFiles(name)
				if got := string(r.read(name)); got != "mine" {
					t.Errorf("the customer's object is %q", got)
				}
			})
		}
	}
}

// What passes is tried again, within the attempt and by another one.
func TestExportTriesAgain(t *testing.T) {
	for name, interfere := range map[string]func(r *exportRig){
		"a part is refused twice": func(r *exportRig) {
			times := 2
			r.target.putPart = func(_ context.Context, p storage.Part) error {
				if p.Number == 2 && times > 0 {
					times--
					return storage.ErrUnavailable
				}
				return nil
			}
		},
		"the store is away for one attempt": func(r *exportRig) {
			times := partTries
			r.target.putPart = func(_ context.Context, p storage.Part) error {
				if p.Number == 2 && times > 0 {
					times--
					return storage.ErrUnavailable
				}
				return nil
			}
		},
		"a part has vanished": func(r *exportRig) {
			times := 1
			r.target.join = func() error {
				if times--; times >= 0 {
					return storage.ErrPart
				}
				return nil
			}
		},
		"other bytes came than the service has a hash of": func(r *exportRig) {
			times := 0
			r.source.wrap = func(f imageapi.File) imageapi.File {
				facts := f.Facts()
				facts.HashName, facts.Hash = "md5", md5Hex(disk(1, exportSize))
				if times++; times == 1 {
					return exchanged{File: f, facts: facts, read: func(ctx context.Context, off, n int64) (io.ReadCloser, error) {
						body, err := f.ReadRange(ctx, off, n)
						return damaged{body}, err
					}}
				}
				return exchanged{File: f, facts: facts}
			}
		},
		"a checkpoint of another version": func(r *exportRig) {
			rdb := r.redis.Client()
			key := rdb.Keys(r.t.Context(), "vmimport:{d1}:import:*")
			for _, k := range key.Val() {
				rdb.HSet(r.t.Context(), k, "checkpoint", `{"encoder":0,"mark":{"offset":65536},"parts":[]}`)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newExportRig(t)
			content := disk(1, exportSize)
			spec := r.ask(r.image("raw", content), tasks.FormCloud)
			interfere(r)
			for range 3 {
				if r.handle(spec) == string(tasks.Succeeded) {
					break
				}
			}
			r.wantExport(spec, content)
		})
	}
}

// What does not pass fails the export, with the reason, and leaves nothing.
func TestExportFails(t *testing.T) {
	for name, tt := range map[string]struct {
		interfere func(r *exportRig, imageID string)
		code      string
	}{
		"the image is deleted before": {func(r *exportRig, id string) { r.removeImage(id) }, "image_deleted"},
		"the image is deleted meanwhile": {func(r *exportRig, id string) {
			r.target.putPart = func(_ context.Context, p storage.Part) error {
				if p.Number == 1 {
					r.removeImage(id)
				}
				return nil
			}
			r.source.wrap = func(f imageapi.File) imageapi.File {
				return exchanged{File: f, facts: f.Facts(), read: func(ctx context.Context, off, n int64) (io.ReadCloser, error) {
					if off >= 4*markEvery {
						r.removeImage(id)
					}
					return f.ReadRange(ctx, off, n)
				}}
			}
		}, "image_deleted"},
		"the quota is used up": {func(r *exportRig, _ string) {
			r.target.putPart = func(context.Context, storage.Part) error {
				return fault.New(fault.Invalid, "object_store_quota", "The quota is used up.")
			}
		}, "object_store_quota"},
		"the container was removed": {func(r *exportRig, _ string) {
			if err := os.RemoveAll(r.objects); err != nil {
				r.t.Error(err)
			}
		}, "container_not_found"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newExportRig(t)
			imageID := r.image("raw", disk(1, exportSize))
			spec := r.ask(imageID, tasks.FormCloud)
			tt.interfere(r, imageID)
			r.handle(spec)
			r.wantNoFiles(spec, tasks.Failed, tt.code)
		})
	}
}

func (r *exportRig) removeImage(imageID string) {
	if err := os.RemoveAll(filepath.Join(r.dir, imageID)); err != nil {
		r.t.Error(err)
	}
}

func TestExportRefused(t *testing.T) {
	r := newExportRig(t)
	imageID := r.image("raw", disk(1, diskSize))
	if err := os.WriteFile(filepath.Join(r.objects, "web01.ovf"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		edit func(*tasks.Spec)
		wrap func(imageapi.File) imageapi.File
		code string
	}{
		"an object is there":   {edit: func(*tasks.Spec) {}, code: "object_exists"},
		"no container":         {edit: func(s *tasks.Spec) { s.Export.Container = "other" }, code: "container_not_found"},
		"no image":             {edit: func(s *tasks.Spec) { s.ImageID = string(s.ID) }, code: "image_not_found"},
		"an image of others":   {edit: func(s *tasks.Spec) { s.Owner.Project = "beta" }, code: "image_not_found"},
		"a name with a slash":  {wrap: withFacts(func(f *imageapi.Facts) { f.Name = "a/b" }), code: "image_name_unusable"},
		"no name":              {wrap: withFacts(func(f *imageapi.Facts) { f.Name = "" }), code: "image_name_unusable"},
		"a name with controls": {wrap: withFacts(func(f *imageapi.Facts) { f.Name = "a\nb" }), code: "image_name_unusable"},
		"an ISO":               {wrap: withFacts(func(f *imageapi.Facts) { f.Format = "iso" }), code: "image_format_unsupported"},
		"an AMI":               {wrap: withFacts(func(f *imageapi.Facts) { f.ContainerFormat = "ami" }), code: "image_format_unsupported"},
		"no QCOW2":             {wrap: withFacts(func(f *imageapi.Facts) { f.Format = "qcow2" }), code: "image_corrupt"},
	} {
		spec := newExport(imageID, tasks.FormVMDK)
		if tt.edit != nil {
			tt.edit(spec)
		}
		r.source.wrap = tt.wrap
		err := r.register(spec)
		if got := fault.Of(err).Code; err == nil || !strings.HasPrefix(got, tt.code) {
			t.Errorf("%s: %v, want %s", name, err, tt.code)
		}
	}
	r.source.wrap = nil
	service := tasks.NewService(r.store, NewPreflight(map[string]Region{region: {Images: r.images}}), tasks.Policy{}, nil)
	if _, _, err := service.Register(t.Context(), newExport(imageID, tasks.FormVMDK)); fault.Of(err).Code != "exports_not_offered" {
		t.Errorf("a region without a target: %v", err)
	}
	if got := r.files(); len(got) != 1 {
		t.Errorf("left are %q", got)
	}
}

// A worker without the target leaves the export to one that has it.
func TestExportNotServed(t *testing.T) {
	r := newExportRig(t)
	content := disk(1, diskSize)
	spec := r.ask(r.image("raw", content), tasks.FormCloud)
	lacking := New(r.claims, map[string]Region{region: {Objects: r.rig.objects, Images: r.images}}, r.opt)
	outcome, err := lacking.Handle(t.Context(), spec.Ref())
	if err != nil || outcome != tasks.OutcomeDrained {
		t.Errorf("outcome %s, %v", outcome, err)
	}
	r.handle(spec)
	r.wantExport(spec, content)
}

func md5Hex(b []byte) string {
	sum := md5.Sum(b)
	return hex.EncodeToString(sum[:])
}

// damaged changes a bit of each byte.
type damaged struct{ io.ReadCloser }

func (d damaged) Read(p []byte) (int, error) {
	n, err := d.ReadCloser.Read(p)
	for i := range p[:n] {
		p[i] ^= 1
	}
	return n, err
}
