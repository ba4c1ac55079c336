package devstack

import (
	"bytes"
	"compress/gzip"
	"testing"
	"time"

	"vmimport/internal/client"
	"vmimport/tasks"
)

func TestProbeBomb(t *testing.T) {
	w := serve(t, t.TempDir())
	member := gzipped(t, make([]byte, 64<<20), gzip.BestCompression)
	w.put("web01.raw.gz", bytes.Repeat(member, 512))
	t.Log(len(member))
	id := w.accepted(w.request("web01.raw.gz", ""))
	w.until(id, func(imp *client.Import) bool { return imp.State == tasks.Processing && imp.Extra.Stage == tasks.StageCopying })
	if err := w.api.Cancel(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	accepted := time.Now()
	imp := w.until(id, func(imp *client.Import) bool { return imp.State.Final() })
	t.Log(imp.State, time.Since(accepted), imp.ErrorMessage)
}
