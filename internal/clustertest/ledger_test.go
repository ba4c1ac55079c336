package clustertest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"vmimport/internal/client"
	"vmimport/tasks"
)

// ledger has a line for each import that was, or may have been, accepted.
type ledger struct {
	*cluster

	mu       sync.Mutex
	accepted map[tasks.ID]*job // answered with an id
	unclear  map[string]*job   // by name: failed in a way that leaves it open
	refused  int               // certainly not accepted
}

// run brings a job to its end: it asks until an import is accepted, and then
// watches that.
func (l *ledger) run(ctx context.Context, j *job) {
	for try := 1; ; try++ {
		name := fmt.Sprintf("job %d, try %d", j.n, try)
		req := j.tenant.request(name, j.object)
		req.Checksum = j.sha1
		id, err := j.tenant.api().Register(ctx, req)
		if err == nil {
			l.mu.Lock()
			l.accepted[id] = j
			l.mu.Unlock()
			l.follow(ctx, j, id)
			return
		}
		answer, answered := errors.AsType[*client.Error](err)
		l.mu.Lock()
		switch {
		// An answer of "unavailable" may come from an API that lost Redis
		// after the record was made.
		case errors.Is(err, client.ErrUncertain), answered && answer.Status >= 500:
			l.unclear[name] = j
		case answered:
			l.t.Errorf("%s: %v", name, err)
		default:
			l.refused++
		}
		l.mu.Unlock()
		if answered && answer.Status < 500 || !pause(ctx, time.Second) {
			return
		}
	}
}

// follow watches an import to its end, cancels it on the way if that is the
// job, and reports what must never be seen.
func (l *ledger) follow(ctx context.Context, j *job, id tasks.ID) {
	progress := 0
	for {
		imp, err := j.tenant.api().Status(ctx, id)
		answer, answered := errors.AsType[*client.Error](err)
		switch {
		case ctx.Err() != nil:
			l.t.Errorf("job %d: import %s has not ended\n%s", j.n, id, l.explain(id))
			return
		case answered && answer.Status < 500:
			l.t.Errorf("job %d: import %s: %v", j.n, id, err)
			return
		case err != nil: // an API or Redis is away
		default:
			if imp.Progress < progress {
				l.t.Errorf("job %d: progress of import %s fell from %d to %d", j.n, id, progress, imp.Progress)
			}
			progress = imp.Progress
			if imp.State.Final() {
				j.endedAfter = time.Since(j.acceptedAt)
				return
			}
			if j.want == tasks.Canceled && !j.canceled && imp.Extra.Stage == tasks.StageCopying && progress > 0 {
				l.cancel(ctx, j, id)
			}
		}
		pause(ctx, 250*time.Millisecond)
	}
}

// cancel asks for a cancel. If that gets lost, follow has it tried again.
func (l *ledger) cancel(ctx context.Context, j *job, id tasks.ID) {
	err := j.tenant.api().Cancel(ctx, id)
	switch answer, answered := errors.AsType[*client.Error](err); {
	case err == nil, client.HasCode(err, client.CodeCancelRequested): // by a request whose answer was lost
		j.canceled, j.acceptedAt = true, time.Now()
	case client.HasCode(err, client.CodeFinished):
		j.want = tasks.Succeeded
	case answered && answer.Status < 500:
		l.t.Errorf("job %d: %v", j.n, err)
	}
}

// end is an import as the API shows it in the end, and whose it is.
type end struct {
	*client.Import
	job    *job
	tenant *tenant
}

// settle waits until all imports that the API lists have ended, also those of
// which nobody was told, and returns them.
func (l *ledger) settle(ctx context.Context) map[tasks.ID]end {
	t := l.t
	t.Helper()
	ends := map[tasks.ID]end{}
	ghosts := 0
	for _, tn := range l.tenants {
		for entry, err := range tn.api().List(ctx) {
			if err != nil {
				t.Fatal(err)
			}
			imp, err := tn.api().WaitFor(ctx, entry.ImportID, 0, client.Observer{})
			if err != nil {
				t.Fatalf("import %s: %v\n%s", entry.ImportID, err, l.explain(entry.ImportID))
			}
			j := l.accepted[entry.ImportID]
			if j == nil {
				if j = l.unclear[imp.Name]; j == nil {
					t.Errorf("import %s (%s) is none that anybody asked for", imp.ImportID, imp.Name)
					continue
				}
				delete(l.unclear, imp.Name) // one request makes one import
				unwatched := *j
				unwatched.canceled = false
				j = &unwatched
				ghosts++
			}
			ends[imp.ImportID] = end{imp, j, tn}
		}
	}
	for id, j := range l.accepted {
		if e, ok := ends[id]; !ok || e.tenant != j.tenant {
			t.Errorf("import %s of job %d was accepted, and is not there any more", id, j.n)
		}
	}
	t.Logf("accepted %d; certainly refused %d; unclear %d, of which %d were accepted", len(l.accepted), l.refused, len(l.unclear)+ghosts, ghosts)
	return ends
}

// checkEnds compares how imports ended with how they should have.
func (l *ledger) checkEnds(ends map[tasks.ID]end) {
	t := l.t
	t.Helper()
	states := map[tasks.State]int{}
	var slowest time.Duration
	for id, e := range ends {
		want := e.job.want
		if want == tasks.Canceled && !e.job.canceled {
			want = tasks.Succeeded // nobody knew its id
		}
		states[e.State]++
		if e.State != want {
			t.Errorf("job %d: import %s is %s (%s), want %s\n%s", e.job.n, id, e.State, e.ErrorMessage, want, l.explain(id))
		}
		if want == tasks.Failed && e.Extra.FailureCode != "checksum_mismatch" {
			t.Errorf("job %d: import %s failed for another reason: %s", e.job.n, id, e.ErrorMessage)
		}
		if (e.Progress == 100) != (e.State == tasks.Succeeded) {
			t.Errorf("job %d: import %s is %s at %d percent", e.job.n, id, e.State, e.Progress)
		}
		if e.job.canceled {
			slowest = max(slowest, e.job.endedAfter)
		}
	}
	t.Logf("ends: %v; the slowest cancel took %s, its worker perhaps killed", states, slowest.Round(time.Millisecond))
	for _, state := range []tasks.State{tasks.Succeeded, tasks.Failed, tasks.Canceled} {
		if states[state] == 0 {
			t.Errorf("no import is %s, so little was tested", state)
		}
	}
}

// checkImages compares the image directory with the successful imports: the
// same images, and in each the bytes of its object.
func (l *ledger) checkImages(ends map[tasks.ID]end) {
	t := l.t
	t.Helper()
	want := map[string]end{}
	for _, e := range ends {
		if e.State == tasks.Succeeded {
			want[e.ID] = e
		}
	}
	entries, err := os.ReadDir(l.images)
	if err != nil {
		t.Fatal(err)
	}
	imports := map[string]bool{}
	for _, entry := range entries {
		e, ok := want[entry.Name()]
		switch {
		case entry.Name() == ".staging":
			continue
		case !ok:
			t.Errorf("image %s belongs to no import that succeeded", entry.Name())
			continue
		}
		delete(want, entry.Name())
		importID, err := checkImage(filepath.Join(l.images, entry.Name()), e.job.object)
		if err != nil {
			t.Errorf("job %d: %v", e.job.n, err)
		}
		if importID != string(e.ImportID) || imports[importID] {
			t.Errorf("image %s is of import %s, want %s", entry.Name(), importID, e.ImportID)
		}
		imports[importID] = true
	}
	for id, e := range want {
		t.Errorf("job %d: import %s succeeded, but its image %s is missing", e.job.n, e.ImportID, id)
	}
}

// checkImage compares an image with its source and returns whose it is.
func checkImage(dir string, o *object) (importID string, err error) {
	b, err := os.ReadFile(filepath.Join(dir, "image.json"))
	if err != nil {
		return "", err
	}
	var record struct {
		ImportID string `json:"vmimport_import_id"`
	}
	if err := json.Unmarshal(b, &record); err != nil {
		return "", fmt.Errorf("read %s: %w", dir, err)
	}
	files, err := os.ReadDir(dir)
	if err != nil {
		return record.ImportID, err
	}
	if len(files) != 2 {
		return record.ImportID, fmt.Errorf("%s has %v", dir, files)
	}
	switch sum, err := sha1Of(filepath.Join(dir, "disk-1.raw"), o.size); {
	case err != nil:
		return record.ImportID, err
	case sum != o.sha1:
		return record.ImportID, fmt.Errorf("%s has SHA-1 %s, its source %s", dir, sum, o.sha1)
	}
	return record.ImportID, nil
}

// logAttempts says what the imports went through.
func (l *ledger) logAttempts(ends map[tasks.ID]end) {
	t := l.t
	t.Helper()
	outcomes := map[string]int{}
	resumed, most := 0, 0
	for id, e := range ends {
		imp, err := l.records.Get(t.Context(), e.tenant.scope(), id)
		if err != nil {
			t.Fatal(err)
		}
		most = max(most, len(imp.Attempts))
		for _, a := range imp.Attempts {
			outcomes[a.Outcome]++
			if a.FromBytes > 0 {
				resumed++
			}
		}
	}
	t.Logf("attempts by outcome: %v; ended after going on from a checkpoint: %d; most for one import: %d", outcomes, resumed, most)
	if outcomes[tasks.OutcomeLost] == 0 {
		t.Error("no worker was killed in the middle of an import, so little was tested")
	}
}
