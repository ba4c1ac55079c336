package tasks_test

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"time"

	"vmimport/tasks"
)

// preflight answers one call, and keeps what it was asked.
type preflight struct {
	tasks.Preflight
	region  string
	object  tasks.Object
	limit   int64
	content []byte
	err     error
}

func (p *preflight) ReadObject(_ context.Context, region string, o tasks.Object, limit int64) ([]byte, error) {
	p.region, p.object, p.limit = region, o, limit
	return p.content, p.err
}

func TestReadObject(t *testing.T) {
	t.Parallel()
	o := tasks.Object{API: "swift", Project: "p", Container: "c", Name: "web01.json"}
	for _, want := range []error{nil, tasks.ErrObjectTooLarge} {
		p := &preflight{content: []byte("{}"), err: want}
		got, err := tasks.NewService(nil, p, tasks.Policy{}, time.Now).ReadObject(t.Context(), "r", o, 64)
		if !bytes.Equal(got, p.content) || !errors.Is(err, want) || p.region != "r" || p.object != o || p.limit != 64 {
			t.Errorf("%q, %v; asked for %+v", got, err, p)
		}
	}
}
