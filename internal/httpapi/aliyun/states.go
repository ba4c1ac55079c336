package aliyun

import (
	"slices"
	"strconv"
	"strings"
	"time"

	"vmimport/tasks"
)

// states says how the phase of an import is told of its task and of its image. Both are
// told from one reading of one record, so that they cannot disagree.
var states = map[tasks.Phase]struct{ task, image string }{
	tasks.PhaseWaiting:   {"Waiting", "Waiting"},
	tasks.PhaseWorking:   {"Processing", "Creating"},
	tasks.PhaseSucceeded: {"Finished", "Available"},
	tasks.PhaseFailed:    {"Failed", "CreateFailed"},
	tasks.PhaseCanceled:  {"Deleted", "CreateFailed"},
}

// phases lists all phases.
var phases = []tasks.Phase{tasks.PhaseWaiting, tasks.PhaseWorking, tasks.PhaseSucceeded, tasks.PhaseFailed, tasks.PhaseCanceled}

// phasesOfImages returns the phases of images in a state.
func phasesOfImages(state string) []tasks.Phase {
	return slices.DeleteFunc(slices.Clone(phases), func(p tasks.Phase) bool { return states[p].image != state })
}

// supportsCancel tells whether CancelTask would be accepted, as text.
func supportsCancel(imp *tasks.Task) string {
	return strconv.FormatBool((imp.State == tasks.Queued || imp.State == tasks.Processing) && !imp.Publishing)
}

func percent(n int) string { return strconv.Itoa(n) + "%" }

// doneBytes is how far into all its objects an import is. It does not fall with a new
// attempt, as what is written of the attempts does.
func doneBytes(imp *tasks.Task) int64 {
	if imp.State == tasks.Succeeded {
		return imp.TotalBytes()
	}
	return max(imp.DoneBytes, imp.TotalBytes()*int64(imp.Progress)/100)
}

// diskProgress is how far disk i is, in percent, and in how many seconds it will be ready,
// at the present speed; 0 if that cannot be told.
func diskProgress(imp *tasks.Task, i int) (done int, remaining int64) {
	if imp.State == tasks.Succeeded {
		return 100, 0
	}
	var before int64
	for _, d := range imp.Disks[:i] {
		before += d.Bytes
	}
	bytes := imp.Disks[i].Bytes
	at := min(max(doneBytes(imp)-before, 0), bytes)
	if bytes > 0 {
		done = int(float64(at) / float64(bytes) * 99) // 100 means that the image is there
	}
	if imp.State == tasks.Processing && imp.BytesPerSecond > 0 {
		remaining = max(before+bytes-doneBytes(imp), 0) / imp.BytesPerSecond
	}
	return done, remaining
}

// shortTime and longTime are the two forms of times in answers, always UTC.
const (
	shortTime = "2006-01-02T15:04Z"
	longTime  = "2006-01-02T15:04:05Z"
)

// formatTime gives a time in one of the forms, and nothing for one that has not come yet.
func formatTime(t time.Time, layout string) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(layout)
}

// parseTime reads a time in either form. It stands for all of its second or minute, so
// that a time which was read in an answer includes what it was read of.
func parseTime(text string) (from, until time.Time, ok bool) {
	for layout, unit := range map[string]time.Duration{shortTime: time.Minute, longTime: time.Second} {
		// time.Parse takes fractions of seconds, too.
		if t, err := time.Parse(layout, text); err == nil && !strings.ContainsAny(text, ".,") {
			return t, t.Add(unit), true
		}
	}
	return time.Time{}, time.Time{}, false
}

// span is a time range; a zero bound is none.
type span struct{ from, until time.Time }

func (s span) holds(t time.Time) bool {
	return !t.Before(s.from) && (s.until.IsZero() || t.Before(s.until))
}

// span reads a range from two parameters, both ends included.
func (p params) span(from, until string) (s span, ok bool) {
	if text := p[from]; text != "" {
		if s.from, _, ok = parseTime(text); !ok {
			return span{}, false
		}
	}
	if text := p[until]; text != "" {
		if _, s.until, ok = parseTime(text); !ok {
			return span{}, false
		}
	}
	return s, true
}
