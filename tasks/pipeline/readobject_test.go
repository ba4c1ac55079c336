package pipeline

import (
	"bytes"
	"context"
	"errors"
	"testing"

	"vmimport/internal/fault"
	"vmimport/storage"
	"vmimport/storage/storagetest"
	"vmimport/tasks"
)

func TestReadObject(t *testing.T) {
	t.Parallel()
	content := []byte(`{"name": "web01"}`)
	size := int64(len(content))
	o := tasks.Object{API: "swift", Project: "alpha", Container: "images", Name: "web01.json"}
	down := errors.New("connection reset")
	type wrap = func(storage.Object) storage.Object
	breaks := func(how storagetest.Fault, err error) wrap {
		return func(obj storage.Object) storage.Object { return storagetest.Break(obj, how, size/2, -1, err) }
	}
	for name, c := range map[string]struct {
		region string
		name   string
		limit  int64
		wrap   wrap
		kind   fault.Kind
		code   string
	}{
		"just fits":      {limit: size},
		"small":          {limit: 64 << 10},
		"one byte more":  {limit: size - 1, kind: fault.Invalid, code: "object_too_large"},
		"missing":        {name: "web02.json", limit: size, kind: fault.NotFound, code: "object_not_found"},
		"no such region": {region: "elsewhere", limit: size, kind: fault.Internal, code: "internal_error"},
		"not opened":     {limit: size, wrap: breaks(storagetest.FailOpen, storage.ErrChanged), kind: fault.Conflict, code: "object_changed"},
		"not readable":   {limit: size, wrap: breaks(storagetest.FailBody, storage.ErrUnavailable.Because(down)), kind: fault.Unavailable, code: "object_store_unavailable"},
		"cut short":      {limit: size, wrap: breaks(storagetest.CutBody, nil), kind: fault.Unavailable, code: "object_store_unavailable"},
		"fails oddly":    {limit: size, wrap: breaks(storagetest.FailBody, down), kind: fault.Internal, code: "internal_error"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			memory := storagetest.NewMemory()
			memory.Put(storage.Location(o), content)
			objects := &tampered{Store: memory}
			if c.wrap != nil {
				objects.with(c.wrap)
			}
			asked := o
			if c.name != "" {
				asked.Name = c.name
			}
			if c.region == "" {
				c.region = region
			}
			p := NewPreflight(map[string]Region{region: {Objects: objects}})
			got, err := p.ReadObject(t.Context(), c.region, asked, c.limit)
			if fault.KindOf(err) != c.kind || fault.CodeOf(err) != c.code {
				t.Errorf("%s %s, want %s %s: %v", fault.KindOf(err), fault.CodeOf(err), c.kind, c.code, err)
			}
			if err == nil != bytes.Equal(got, content) {
				t.Errorf("read %q", got)
			}
		})
	}
}

func TestReadObjectOfNoBytes(t *testing.T) {
	t.Parallel()
	o := tasks.Object{API: "s3", Project: "alpha", Container: "images", Name: "empty.json"}
	memory := storagetest.NewMemory()
	memory.Put(storage.Location(o), nil)
	p := NewPreflight(map[string]Region{region: {Objects: memory}})
	if got, err := p.ReadObject(t.Context(), region, o, 1); err != nil || len(got) != 0 {
		t.Errorf("%q, %v", got, err)
	}
}

func TestReadObjectObeysItsContext(t *testing.T) {
	t.Parallel()
	o := tasks.Object{API: "s3", Project: "alpha", Container: "images", Name: "web01.json"}
	memory := storagetest.NewMemory()
	memory.Put(storage.Location(o), []byte("{}"))
	ctx, cancel := context.WithCancel(t.Context())
	objects := &tampered{Store: memory}
	objects.with(func(obj storage.Object) storage.Object {
		cancel()
		return storagetest.Break(obj, storagetest.StallBody, 1, -1, nil)
	})
	p := NewPreflight(map[string]Region{region: {Objects: objects}})
	if _, err := p.ReadObject(ctx, region, o, 1<<10); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}
