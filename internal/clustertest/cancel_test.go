package clustertest

import (
	"os"
	"testing"
	"time"

	"vmimport/internal/testenv/link"
	"vmimport/tasks"
)

// A cancel takes effect soon, however large the image: within 2 s nothing of it
// is left. No test of the package runs beside this one, since it is about time.
func TestCancelIsQuick(t *testing.T) {
	c := startCluster(t, settings{apis: 1, workers: 2, bytesPerSecond: 200 << 20})
	tn := c.tenants[0]
	o := c.store.putSparse(tn.bucket(), "large.raw", 4<<30)
	id := tn.register("canceled", o)
	tn.await(id, time.Minute, func(imp *tasks.Task) bool { return imp.Stage == tasks.StageCopying && imp.Progress >= 20 })
	if err := tn.api().Cancel(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	accepted := time.Now()
	last := tn.await(id, 30*time.Second, func(imp *tasks.Task) bool { return imp.State.Final() })
	took := time.Since(accepted)
	received := c.link.Received.Load()
	t.Logf("canceled %s after the cancel was accepted, at %d percent", took.Round(time.Millisecond), last.Progress)
	if last.State != tasks.Canceled || took > 2*time.Second {
		t.Errorf("import is %s, %s after the cancel was accepted", last.State, took)
	}
	entries, err := os.ReadDir(c.images)
	if err != nil || len(entries) != 1 {
		t.Errorf("the image directory has %v, %v; want only the staging directory", entries, err)
	}
	c.checkNothingLeft()
	// Whatever was under way to a worker that does not read any more.
	if more := c.link.Received.Load() - received; more > 16*link.Piece {
		t.Errorf("%d bytes were read after the import was canceled", more)
	}
	c.checkLogs()
}
