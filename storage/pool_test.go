package storage_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"

	"vmimport/storage"
)

func mustGet(t *testing.T, p *storage.Pool) []byte {
	t.Helper()
	buf, err := p.Get(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return buf
}

func TestPoolHasWholeBuffersAndAtLeastOne(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ total, chunk, want int64 }{{0, 8, 1}, {7, 8, 1}, {8, 8, 1}, {31, 8, 3}} {
		p := storage.NewPool(tt.total, tt.chunk)
		for range tt.want {
			if buf := mustGet(t, p); int64(len(buf)) != tt.chunk {
				t.Errorf("a buffer has %d bytes", len(buf))
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := p.Get(ctx); err == nil {
			t.Errorf("a pool of %d bytes has more than %d buffers of %d", tt.total, tt.want, tt.chunk)
		}
	}
}

func TestPoolReusesBeforeItAllocates(t *testing.T) {
	t.Parallel()
	p := storage.NewPool(100, 10)
	first := mustGet(t, p)
	p.Put(first[:3])
	if again := mustGet(t, p); &again[0] != &first[0] || len(again) != 10 {
		t.Error("a free buffer was not used again")
	}
}

func TestPoolServesInOrder(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := storage.NewPool(1, 1)
		buf := mustGet(t, p)
		var served []int
		for i := range 20 {
			go func() {
				buf := mustGet(t, p)
				served = append(served, i)
				p.Put(buf)
			}()
			synctest.Wait() // until it is in line
		}
		p.Put(buf)
		synctest.Wait()
		if len(served) != 20 || !slices.IsSorted(served) {
			t.Errorf("served %v", served)
		}
	})
}

func TestPoolForgetsWhoGaveUp(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := storage.NewPool(1, 1)
		buf := mustGet(t, p)
		stop := errors.New("stop")
		ctx, cancel := context.WithCancelCause(t.Context())
		go func() {
			if _, err := p.Get(ctx); !errors.Is(err, stop) {
				t.Errorf("got %v", err)
			}
		}()
		synctest.Wait()
		cancel(stop)
		synctest.Wait()
		p.Put(buf)
		p.Put(mustGet(t, p))
		if n := p.InUse(); n != 0 {
			t.Errorf("%d buffers are lost", n)
		}
	})
}

func TestPoolTakesNothingForeign(t *testing.T) {
	t.Parallel()
	defer func() {
		if recover() == nil {
			t.Error("a second Put went unnoticed")
		}
	}()
	p := storage.NewPool(8, 8)
	buf := mustGet(t, p)
	p.Put(buf)
	p.Put(buf)
}
