package redisstore

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	"vmimport/tasks"
)

// The fields of a record. Those that scripts compare or count are plain; those
// that only Go reads are JSON.
//
//	spec          JSON of tasks.Spec; never changes
//	region, project, dialect, kind, image, name
//	              copies out of spec, for scripts; dialect is what api makes of it,
//	              image and name are the fields of the images and names hashes, name is
//	              empty if the name is not reserved; an import's id in image goes
//	              before that in spec
//	list, phase, seq, usage, disks
//	              for an import with ListsImage: its list, its tasks.Phase, its
//	              score in lists, what its fields of the usage hash begin with, and
//	              what it counts as there
//	deleted_by    nonce of the accepted deletion of the image
//	deleted_ms
//	removed       1 when nothing of a deleted image is left
//	state         tasks.State
//	epoch         number of the last claim, 0 before the first
//	claim         nonce of the last claim; tells a repeated command from a rival, and from a
//	              claim under the same epoch that a failover has lost
//	claim_until   when the claim runs out, Unix ms; 0 if nobody holds it
//	worker        name of the last claim's worker
//	tickets       how often the import was dispatched
//	progress      percent, never falls
//	stage, counters (JSON)
//	publishing    1 from BeginPublish on
//	setbacks, crashes
//	furthest      bytes of the whole import that the furthest checkpoint stood for
//	not_before_ms, updated_ms, started_ms, claimed_ms, finished_ms
//	canceled_by   nonce of the accepted cancel
//	checkpoint    bytes for the next attempt
//	kept_until_ms of a failed import, until when its checkpoint is kept, with what it stands
//	              for; 0 from when a worker began to remove that
//	retried       how often it was made queued again after it had failed
//	retried_by    nonce of the last time
//	trace         copy out of spec, for tickets; missing if there is none
//	verdict, failure, result (JSON)

// readFields are what an Import is decoded from, in the order of decode.
var readFields = []string{
	"spec", "state", "epoch", "worker", "progress", "stage", "counters", "publishing", "setbacks", "crashes",
	"not_before_ms", "updated_ms", "started_ms", "claimed_ms", "finished_ms", "verdict", "failure", "result", "furthest", "image",
	"deleted_ms", "removed", "kept_until_ms", "retried",
}

// decode makes an Import of the values of readFields. It returns nil for a
// record that does not exist.
func decode(values []any) (*tasks.Task, error) {
	if len(values) != len(readFields) {
		return nil, fmt.Errorf("decode record: %d fields", len(values))
	}
	if values[0] == nil {
		return nil, nil
	}
	r := reader{values: make(map[string]string, len(values))}
	for i, v := range values {
		if s, ok := v.(string); ok {
			r.values[readFields[i]] = s
		}
	}
	task := &tasks.Task{
		State:      tasks.State(r.values["state"]),
		Epoch:      tasks.Epoch(r.int("epoch")),
		Worker:     r.values["worker"],
		Progress:   int(r.int("progress")),
		Stage:      tasks.Stage(r.values["stage"]),
		Publishing: r.values["publishing"] == "1",
		Setbacks:   int(r.int("setbacks")),
		Crashes:    int(r.int("crashes")),
		Furthest:   r.int("furthest"),
		NotBefore:  r.time("not_before_ms"),
		UpdatedAt:  r.time("updated_ms"),
		StartedAt:  r.time("started_ms"),
		ClaimedAt:  r.time("claimed_ms"),
		FinishedAt: r.time("finished_ms"),
		DeletedAt:  r.time("deleted_ms"),
		Removed:    r.values["removed"] == "1",
		KeptUntil:  r.time("kept_until_ms"),
		Retried:    int(r.int("retried")),
	}
	r.json("spec", &task.Spec)
	if _, id, ok := strings.Cut(r.values["image"], "/"); ok && task.Export == nil {
		task.ImageID = id
	}
	r.json("counters", &task.Counters)
	r.json("verdict", &task.Verdict)
	r.json("failure", &task.Failure)
	r.json("result", &task.Result)
	if r.err != nil {
		return nil, fmt.Errorf("decode record %s: %w", task.ID, r.err)
	}
	return task, nil
}

// reader reads typed fields and keeps the first error.
type reader struct {
	values map[string]string
	err    error
}

func (r *reader) int(field string) int64 {
	s := r.values[field]
	if s == "" {
		return 0
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil && r.err == nil {
		r.err = fmt.Errorf("field %s: %w", field, err)
	}
	return n
}

func (r *reader) time(field string) time.Time {
	if n := r.int(field); n != 0 {
		return time.UnixMilli(n).UTC()
	}
	return time.Time{}
}

func (r *reader) json(field string, into any) {
	s := r.values[field]
	if s == "" {
		return
	}
	if err := json.Unmarshal([]byte(s), into); err != nil && r.err == nil {
		r.err = fmt.Errorf("field %s: %w", field, err)
	}
}

// toJSON encodes one of the domain's own types, all of which JSON can hold.
func toJSON(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("redisstore: encode %T: %v", v, err))
	}
	return string(b)
}
