package fjcloud

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"net/url"
	"strconv"
	"strings"
	"time"

	"vmimport/tasks"
)

type errorBody struct {
	ErrorCode    string `json:"error_code"`
	Message      string `json:"message"`
	ErrorMessage string `json:"error_message"`
}

type registeredBody struct {
	ImportID tasks.ID `json:"import_id"`
}

type listBody struct {
	Imports []listEntry `json:"imports"`
}

type listEntry struct {
	ImportID     tasks.ID    `json:"import_id"`
	ImportStatus tasks.State `json:"import_status"` // tasks speaks this dialect's words
	Status       string      `json:"status"`        // a path, despite its name
	VMImport     listedBody  `json:"vmimport"`
}

// listedBody is what an entry of a list says beyond the original API: how the task stands, but
// neither its attempts nor its place in the queue, which would cost a look at each.
type listedBody struct {
	Name         string `json:"name"`
	Progress     int    `json:"progress"`
	ErrorMessage string `json:"error_message,omitempty"`
	runBody
}

func newListedBody(t *tasks.Task) listedBody {
	return listedBody{Name: t.Name, Progress: t.Progress, ErrorMessage: errorMessage(t), runBody: newRunBody(t, nil)}
}

// importsPath is where all calls about one import begin.
const importsPath = "/v1/imageimport"

func statusPath(id tasks.ID) string { return importsPath + "/" + string(id) + "/status" }

// registered is what a record keeps for this dialect: the members that are
// shown as they were sent, and are not elsewhere in the record.
type registered struct {
	Location   string   `json:"location,omitempty"`
	S3Location string   `json:"s3_location,omitempty"`
	Checksum   string   `json:"checksum,omitempty"`
	Details    *details `json:"details,omitempty"`
	// BillingInfo is of exported images of servers only.
	BillingInfo *billingInfo `json:"billing_info,omitempty"`
}

// billingInfo is what an exported image is billed by.
type billingInfo struct {
	OSType      string `json:"os_type"`
	BaseImageID string `json:"base_image_id"`
}

type statusBody struct {
	ImportStatus    tasks.State `json:"import_status"`
	Progress        int         `json:"progress"`
	Name            string      `json:"name"`
	DiskFormat      string      `json:"disk_format"`
	ContainerFormat string      `json:"container_format"`
	registered
	ID           string `json:"id"`
	MinRAM       int64  `json:"min_ram"`
	MinDisk      int64  `json:"min_disk"`
	OSType       string `json:"os_type,omitempty"`    // not of exported images and data disks
	Conversion   bool   `json:"conversion,omitempty"` // true, for the same
	ErrorMessage string `json:"error_message,omitempty"`

	// VMImport holds everything that is not of the original API, so that no
	// later member of it can collide with ours.
	VMImport vmimportBody `json:"vmimport"`
}

type vmimportBody struct {
	runBody
	Digests      map[string]string `json:"digests,omitempty"`
	SourceFormat string            `json:"source_format,omitempty"`
	VirtualSize  int64             `json:"virtual_size,omitempty"` // bytes, of the system disk
	Disks        int               `json:"disks,omitempty"`        // if more than one
}

// runBody is how any task stands.
type runBody struct {
	Stage          tasks.Stage `json:"stage"`
	DoneBytes      int64       `json:"done_bytes"`
	TotalBytes     int64       `json:"total_bytes"`
	BytesPerSecond int64       `json:"bytes_per_second"`
	Attempt        tasks.Epoch `json:"attempt"`
	Retries        int64       `json:"retries"`
	Stalls         int64       `json:"stalls"`
	RequestedAt    time.Time   `json:"requested_at"`
	FinishedAt     time.Time   `json:"finished_at,omitzero"`
	FailureCode    string      `json:"failure_code,omitempty"`
	Evidence       string      `json:"evidence,omitempty"`
	Remedy         string      `json:"remedy,omitempty"`

	QueuePosition  int           `json:"queue_position,omitempty"` // from 1, while queued
	EstimatedStart time.Time     `json:"estimated_start,omitzero"`
	Attempts       []attemptBody `json:"attempts,omitempty"` // that have ended, oldest first
	KeptUntil      time.Time     `json:"kept_until,omitzero"`
	Retried        int           `json:"retried,omitempty"`
}

// attemptBody is an attempt that has ended. Which worker it was is nobody's business.
type attemptBody struct {
	Attempt     tasks.Epoch `json:"attempt"`
	StartedAt   time.Time   `json:"started_at"`
	EndedAt     time.Time   `json:"ended_at"`
	Outcome     string      `json:"outcome"`
	FromBytes   int64       `json:"from_bytes"`
	DoneBytes   int64       `json:"done_bytes"`
	FailureCode string      `json:"failure_code,omitempty"`
	Message     string      `json:"message,omitempty"`
	Evidence    string      `json:"evidence,omitempty"`
	Remedy      string      `json:"remedy,omitempty"`
}

func newAttemptBody(a tasks.Attempt) attemptBody {
	b := attemptBody{
		Attempt: a.Epoch, StartedAt: a.StartedAt.UTC(), EndedAt: a.EndedAt.UTC(),
		Outcome: a.Outcome, FromBytes: a.FromBytes, DoneBytes: a.DoneBytes,
	}
	if f := a.Cause; f != nil {
		b.FailureCode, b.Message, b.Evidence, b.Remedy = f.Code, f.Message, f.Evidence, f.Remedy
	}
	return b
}

// newRunBody says how a task stands; pos is where it waits, if it does.
func newRunBody(t *tasks.Task, pos *tasks.Position) runBody {
	b := runBody{
		Stage:          t.Stage,
		DoneBytes:      t.DoneBytes,
		TotalBytes:     t.TotalBytes(),
		BytesPerSecond: t.BytesPerSecond,
		Attempt:        t.Epoch,
		Retries:        t.Retries,
		Stalls:         t.Stalls,
		RequestedAt:    t.RequestedAt.UTC(),
		FinishedAt:     t.FinishedAt.UTC(),
		KeptUntil:      t.KeptUntil.UTC(),
		Retried:        t.Retried,
	}
	if pos != nil {
		b.QueuePosition, b.EstimatedStart = pos.Number, pos.Start.UTC()
	}
	for _, a := range t.Attempts {
		b.Attempts = append(b.Attempts, newAttemptBody(a))
	}
	if f := failureOf(t); f != nil {
		b.FailureCode, b.Evidence, b.Remedy = f.Code, f.Evidence, f.Remedy
	}
	return b
}

// failureOf returns why a task has failed; nil if it has not.
func failureOf(t *tasks.Task) *tasks.Failure {
	if t.State != tasks.Failed {
		return nil
	}
	return t.Failure
}

// errorMessage is the failure in words, or "".
func errorMessage(t *tasks.Task) string {
	if f := failureOf(t); f != nil {
		return f.Fault().Sentences()
	}
	return ""
}

func newStatusBody(imp *tasks.Task, pos *tasks.Position) (*statusBody, error) {
	b := &statusBody{
		ImportStatus:    imp.State,
		Progress:        imp.Progress,
		Name:            imp.Name,
		DiskFormat:      imp.TargetFormat,
		ContainerFormat: "bare",
		ID:              imp.ImageID,
		MinRAM:          imp.MinRAMMiB,
		MinDisk:         imp.MinDiskGiB,
		ErrorMessage:    errorMessage(imp),
		VMImport:        vmimportBody{runBody: newRunBody(imp, pos)},
	}
	if len(imp.Details) > 0 {
		if err := json.Unmarshal(imp.Details, &b.registered); err != nil {
			return nil, fmt.Errorf("read details of import: %w", err)
		}
	}
	if b.BillingInfo == nil {
		b.OSType, b.Conversion = imp.OSType, imp.OSType != "" // a data disk has none
	}
	if r := imp.Result; r != nil && imp.State == tasks.Succeeded && len(r.Disks) > 0 {
		b.VMImport.show(&r.Disks[0])
	}
	return b, nil
}

// show shows what the object of an import turned out to be. This dialect's
// imports have one.
func (b *vmimportBody) show(r *tasks.DiskResult) {
	b.Digests, b.SourceFormat = maps.Clone(r.Digests), r.Format
	if len(r.VirtualSizes) > 0 {
		b.VirtualSize = r.VirtualSizes[0]
	}
	if n := len(r.VirtualSizes); n > 1 {
		b.Disks = n
	}
}

// listing is what the calls for lists differ in.
type listing struct {
	max                int // length of a list, whatever limit asks for
	badStart, badLimit *problem
}

var (
	importList = listing{100, errStart, errLimit}
	exportList = listing{200, errExportStart, errExportLimit}
)

// window reads which part of the list is asked for. Other parameters are
// ignored.
func (l listing) window(query string) (start, limit int, err error) {
	limit = l.max
	if v, given := queryValue(query, "start"); given {
		if start, err = strconv.Atoi(v); err != nil {
			return 0, 0, l.badStart
		}
	}
	if v, given := queryValue(query, "limit"); given {
		if limit, err = strconv.Atoi(v); err != nil || limit == 0 {
			return 0, 0, l.badLimit
		}
	}
	return start, min(limit, l.max), nil
}

// queryValue returns the first value of a query parameter, if it is a row of
// digits, or "". Numbers beyond any list are brought down to one that is.
//
// url.ParseQuery would do but for one thing: a value with a broken escape is
// an invalid value here, not an absent one.
func queryValue(query, name string) (digits string, given bool) {
	for pair := range strings.SplitSeq(query, "&") {
		key, value, _ := strings.Cut(pair, "=")
		if key != name {
			continue
		}
		value, err := url.QueryUnescape(value)
		if err != nil || !isDigits(value) {
			return "", true
		}
		if n, err := strconv.ParseUint(value, 10, 31); err != nil || n > math.MaxInt32 {
			value = strconv.Itoa(math.MaxInt32)
		}
		return value, true
	}
	return "", false
}

func isDigits(s string) bool {
	return s != "" && strings.Trim(s, "0123456789") == ""
}
