package clustertest

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"vmimport/tasks"
)

// An object store that is away for good makes an import fail after about an hour. What it
// has read by then is kept, and a retry goes on from there. Nobody waits for an hour here:
// the record is told that all but the last setback have happened.
func TestRetryAfterAnOutage(t *testing.T) {
	t.Parallel()
	const (
		size         = 96 << 20
		mostSetbacks = 12 // as in production
	)
	c := startCluster(t, settings{apis: 1, workers: 2, bytesPerSecond: 16 << 20, chunk: "1MiB", parallel: 4, checkpointEvery: "4MiB"})
	tn := c.tenants[0]
	o := c.store.putSparse(tn.bucket(), "large.raw", size)
	c.store.sum(tn.bucket(), o)
	id := tn.register("tried again", o)
	service := tasks.NewService(c.records, nil, tasks.Policy{}, time.Now)

	tn.await(id, time.Minute, func(imp *tasks.Task) bool { return imp.Furthest >= size/3 })
	if err := service.Retry(t.Context(), tn.scope(), id); !errors.Is(err, tasks.ErrNotFailed) {
		t.Errorf("a retry of an import that runs: %v", err)
	}
	c.link.Cut()
	tn.await(id, time.Minute, func(imp *tasks.Task) bool { return imp.State == tasks.Queued && imp.Setbacks == 1 })
	record := fmt.Sprintf("vmimport:{%s}:import:%s", tn.name, id)
	if err := c.rdb.HSet(t.Context(), record, "setbacks", mostSetbacks-1).Err(); err != nil {
		t.Fatal(err)
	}
	failed := tn.await(id, time.Minute, func(imp *tasks.Task) bool { return imp.State.Final() })
	if failed.State != tasks.Failed || failed.Failure == nil || !failed.KeptUntil.After(time.Now().Add(time.Hour)) {
		t.Fatalf("import is %s with %+v, kept until %s\n%s", failed.State, failed.Failure, failed.KeptUntil, c.explain(id))
	}
	t.Logf("failed at %d of %d MiB with %q", failed.Furthest>>20, size>>20, failed.Failure.Code)

	c.link.Mend()
	if err := service.Retry(t.Context(), tn.scope(), id); err != nil {
		t.Fatal(err)
	}
	if err := service.Retry(t.Context(), tn.scope(), id); !errors.Is(err, tasks.ErrNotFailed) {
		t.Errorf("a second retry: %v", err)
	}
	end := tn.await(id, time.Minute, func(imp *tasks.Task) bool { return imp.State.Final() })
	if end.State != tasks.Succeeded || end.Retried != 1 || !end.KeptUntil.IsZero() {
		t.Fatalf("import is %s with %+v, retried %d times\n%s", end.State, end.Failure, end.Retried, c.explain(id))
	}
	last := end.Attempts[len(end.Attempts)-1]
	t.Logf("%d attempts; the last went on from %d MiB", len(end.Attempts), last.FromBytes>>20)
	if last.FromBytes == 0 || last.FromBytes > failed.Furthest {
		t.Errorf("the last attempt began at %d bytes; the checkpoint was at %d", last.FromBytes, failed.Furthest)
	}
	if _, err := checkImage(c.images+"/"+end.ImageID, o); err != nil {
		t.Error(err)
	}
	c.checkNothingLeft()
	c.checkLogs()
}
