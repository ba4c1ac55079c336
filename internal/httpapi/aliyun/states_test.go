package aliyun

import (
	"fmt"
	"testing"

	"vmimport/internal/fault"
	"vmimport/storage"
	"vmimport/tasks"
)

func TestStates(t *testing.T) {
	t.Parallel()
	if len(states) != len(phases) {
		t.Errorf("%d states of %d phases", len(states), len(phases))
	}
	for _, test := range []struct {
		state            tasks.State
		epoch            tasks.Epoch
		publishing       bool
		task, image, can string
	}{
		{tasks.Queued, 0, false, "Waiting", "Waiting", "true"},
		{tasks.Queued, 1, false, "Processing", "Creating", "true"}, // between two attempts
		{tasks.Processing, 1, false, "Processing", "Creating", "true"},
		{tasks.Processing, 1, true, "Processing", "Creating", "false"},
		{tasks.Cancelling, 1, false, "Processing", "Creating", "false"},
		{tasks.Succeeded, 1, true, "Finished", "Available", "false"},
		{tasks.Failed, 1, false, "Failed", "CreateFailed", "false"},
		{tasks.Canceled, 0, false, "Deleted", "CreateFailed", "false"},
	} {
		imp := &tasks.Task{State: test.state, Epoch: test.epoch, Publishing: test.publishing}
		s := states[imp.Phase()]
		if s.task != test.task || s.image != test.image || supportsCancel(imp) != test.can {
			t.Errorf("%+v: %+v, can be canceled: %s", test, s, supportsCancel(imp))
		}
	}
}

func TestDiskProgress(t *testing.T) {
	t.Parallel()
	const gib = 1 << 30
	for _, test := range []struct {
		name string
		imp  tasks.Task
		want string // of the three disks: percent/seconds
	}{
		{"not begun", tasks.Task{State: tasks.Queued}, "0/0 0/0 0/0"},
		{"second", tasks.Task{State: tasks.Processing, Progress: 30, Counters: tasks.Counters{DoneBytes: 3 * gib, BytesPerSecond: gib}}, "99/0 49/1 0/7"},
		{"no speed yet", tasks.Task{State: tasks.Processing, Progress: 30, Counters: tasks.Counters{DoneBytes: 3 * gib}}, "99/0 49/0 0/0"},
		{"begun anew", tasks.Task{State: tasks.Processing, Progress: 30, Counters: tasks.Counters{DoneBytes: 1, BytesPerSecond: gib}}, "99/0 49/1 0/7"},
		{"waits for that", tasks.Task{State: tasks.Queued, Progress: 30, Counters: tasks.Counters{BytesPerSecond: gib}}, "99/0 49/0 0/0"},
		{"all read", tasks.Task{State: tasks.Processing, Progress: 99, Counters: tasks.Counters{DoneBytes: 10 * gib, BytesPerSecond: gib}}, "99/0 99/0 99/0"},
		{"more than all", tasks.Task{State: tasks.Processing, Progress: 99, Counters: tasks.Counters{DoneBytes: 99 * gib, BytesPerSecond: gib}}, "99/0 99/0 99/0"},
		{"there", tasks.Task{State: tasks.Succeeded, Progress: 100, Counters: tasks.Counters{BytesPerSecond: gib}}, "100/0 100/0 100/0"},
		{"failed", tasks.Task{State: tasks.Failed, Progress: 20, Counters: tasks.Counters{DoneBytes: 2 * gib, BytesPerSecond: gib}}, "99/0 0/0 0/0"},
	} {
		test.imp.Disks = []tasks.Disk{{Bytes: 2 * gib}, {Bytes: 2 * gib}, {Bytes: 6 * gib}}
		var got string
		for i := range test.imp.Disks {
			done, remaining := diskProgress(&test.imp, i)
			got += fmt.Sprintf("%d/%d ", done, remaining)
		}
		if got != test.want+" " {
			t.Errorf("%s: %s, want %s", test.name, got, test.want)
		}
	}
	if done, _ := diskProgress(&tasks.Task{State: tasks.Processing, Spec: tasks.Spec{Disks: []tasks.Disk{{}}}}, 0); done != 0 {
		t.Errorf("a disk of unknown length is at %d%%", done)
	}
}

// TestFailures: a code of the service leads to the vendor's, whether its kind is known, as
// before an import is accepted, or not, as after it.
func TestFailures(t *testing.T) {
	t.Parallel()
	for code, want := range map[string]*problem{
		"disk_too_large":            errImageSize,
		"object_not_found":          errObjectUnknown,
		"object_changed":            errObjectUnknown,
		"object_empty":              errObjectSize,
		"object_name_invalid":       errObjectName,
		"object_not_readable":       errNotAuthorized,
		"s3_key_refused":            errNotAuthorized,
		"format_mismatch":           errImageFormat,
		"image_truncated":           errImageFormat,
		"image_backing_file":        errImageFormat,
		"disk_empty":                errImageFormat,
		"not_a_disk_image":          errImageFormat,
		"image_name_refused":        errName,
		"image_has_one_disk":        errParameter,
		"image_service_unavailable": errImportFailed,
		"image_store_full":          errImportFailed,
		"image_refused":             errImportFailed,
		"object_store_unavailable":  errImportFailed,
		"checksum_mismatch":         errImportFailed,
		"worker_crashed":            errImportFailed,
		"disk_incomplete":           errImportFailed,
		"":                          errImportFailed,
		"image_[":                   errImageFormat,
	} {
		failure := tasks.Failure{Code: code, Message: "M.", Evidence: "e", Remedy: "R."}
		if got := problemOfFailure(failure.Fault()); got.code != want.code || got.status != want.status {
			t.Errorf("%s: %v, want %v", code, got, want)
		}
	}
	for err, want := range map[error]*problem{
		storage.ErrNoObject:                          errObjectUnknown,
		storage.ErrChanged:                           errObjectUnknown,
		tasks.ErrTooManyImages:                       errImageQuota,
		tasks.ErrTooManyDisks:                        errSnapshotQuota,
		tasks.ErrNameInUse:                           errNameDuplicated,
		tasks.ErrTokenMismatch:                       errTokenMismatch,
		tasks.ErrImageIDInUse:                        errInternal, // nobody chose it
		fault.New(fault.Denied, "any", "No."):        errNotAuthorized,
		fault.New(fault.Unavailable, "any", "No."):   errUnavailable,
		fault.New(fault.Internal, "any", "No."):      errInternal,
		fault.New(fault.Invalid, "unheard_of", "No"): errParameter, // whatever it is, it is the client's
	} {
		if got := problemOf(fmt.Errorf("wrapped: %w", err)); got.code != want.code || got.status != want.status {
			t.Errorf("%v: %v, want %v", err, got, want)
		}
	}
}
