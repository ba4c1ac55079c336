package storage_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"vmimport/storage"
	"vmimport/storage/storagetest"
)

func throttleAt(bytesPerSecond int64) *storage.Throttle {
	t := new(storage.Throttle)
	t.Limit(bytesPerSecond)
	return t
}

// wantPace reads obj for some seconds and wants each three of them to bring what the pace
// allows, as nearly as promised.
func wantPace(t *testing.T, obj storage.Object, opt storage.Options, rate int64) {
	t.Helper()
	const seconds, span = 12, 3
	opt.Stats = new(storage.Stats)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	ended := make(chan error, 1)
	go func() {
		_, err := storage.Fetch(ctx, obj, opt)
		ended <- err
	}()
	var at []int64
	for range seconds {
		at = append(at, opt.Stats.Received.Load())
		time.Sleep(time.Second) // of the bubble
		synctest.Wait()
	}
	for i := range seconds - span {
		if got, want := at[i+span]-at[i], span*rate; got < want*9/10 || got > want*11/10 {
			t.Errorf("seconds %d to %d: %d bytes, want %d", i, i+span, got, want)
		}
	}
	if n := opt.Stats.Stalls.Load() + opt.Stats.Retries.Load(); n != 0 {
		t.Errorf("%d requests were made again", n)
	}
	stop()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("ended with %v", err)
	}
	if n := opt.Pool.InUse(); n != 0 {
		t.Errorf("%d buffers were not given back", n)
	}
}

func TestThrottleKeepsThePace(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		chunk, rate int64
		latency     time.Duration
		source      int64 // bytes per second of a body; 0: no bound
	}{
		{chunk: 64 << 10, rate: 1e6},
		{chunk: 4 * mib, rate: 1e6},
		{chunk: 64 * mib, rate: 1e6},
		{chunk: 64 * mib, rate: 1e6, latency: 300 * time.Millisecond},
		{chunk: 4 * mib, rate: 20e6, latency: 50 * time.Millisecond, source: 5e6},
		{chunk: 4 * mib, rate: 3e5},
	} {
		t.Run(fmt.Sprintf("chunk=%d,rate=%d,latency=%s", tt.chunk, tt.rate, tt.latency), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				wantPace(t, storagetest.Paced(1<<30, tt.latency, tt.source), storage.Options{
					Pool: storage.NewPool(16*tt.chunk, tt.chunk), Throttle: throttleAt(tt.rate),
				}, tt.rate)
			})
		})
	}
}

// What is read by way of another object is paid for as it is read, and what is not costs nothing.
func TestThrottleOfAMeteredObject(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		wrap func(storage.Object, *storage.Throttle) storage.Object
		took time.Duration
	}{
		"all of it is read": {storage.Metered, 10 * time.Second},
		"nothing of it is":  {func(o storage.Object, _ *storage.Throttle) storage.Object { return o }, 0},
		"each byte, and more": {func(o storage.Object, th *storage.Throttle) storage.Object {
			return storage.Metered(storage.Metered(o, th), th)
		}, 20 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				throttle := throttleAt(1e6)
				opt := storage.Options{Pool: storage.NewPool(8*mib, mib/4), Throttle: throttle, Metered: true}
				began := time.Now()
				if _, err := storage.Fetch(t.Context(), tt.wrap(storagetest.Paced(10e6, 0, 0), throttle), opt); err != nil {
					t.Fatal(err)
				}
				if took := time.Since(began); took < tt.took*9/10 || took > tt.took*11/10 {
					t.Errorf("took %s, want %s", took, tt.took)
				}
			})
		})
	}
}

// A Sequential passes over most of the object, which is read, too.
func TestThrottleOfASequential(t *testing.T) {
	bubble(t, func(t *testing.T) {
		content := randomBytes(10 * mib)
		throttle := throttleAt(mib)
		seq := storage.Sequential(storagetest.Object(content), 100*time.Millisecond)
		seq.Throttle = throttle
		defer seq.Close()
		opt := oneByOne()
		opt.Resume = markAt(t, content, 7*mib)
		opt.Pool, opt.Throttle = storage.NewPool(8*mib, mib), throttle
		began := time.Now()
		if err := fetched(t, content, seq, opt); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took < 9*time.Second || took > 11*time.Second {
			t.Errorf("took %s", took)
		}
	})
}

// What is read of tables makes the chunks behind it wait, and nobody else.
func TestThrottleCountsTables(t *testing.T) {
	bubble(t, func(t *testing.T) {
		opt := storage.Options{Pool: storage.NewPool(8*mib, mib), Throttle: throttleAt(mib)}
		obj := storagetest.Object(randomBytes(5 * mib))
		began := time.Now()
		if _, err := storage.NewReaderAt(t.Context(), obj, opt).ReadAt(make([]byte, 5*mib), 0); err != nil || time.Since(began) > 0 {
			t.Errorf("%v after %s", err, time.Since(began))
		}
		if _, err := storage.Fetch(t.Context(), obj, opt); err != nil {
			t.Error(err)
		}
		if took := time.Since(began); took < 9*time.Second || took > 11*time.Second {
			t.Errorf("took %s", took)
		}
	})
}

// Who waits for the pace holds nothing, and goes at once when told.
func TestThrottleWaiting(t *testing.T) {
	for name, end := range map[string]func(throttle *storage.Throttle, stop func()){
		"cancel":     func(_ *storage.Throttle, stop func()) { stop() },
		"new limit":  func(throttle *storage.Throttle, _ func()) { throttle.Limit(1 << 40) },
		"no limit":   func(throttle *storage.Throttle, _ func()) { throttle.Limit(0) },
		"given back": func(throttle *storage.Throttle, _ func()) { throttle.Take(-1 << 40) },
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				throttle := throttleAt(1)
				pool := storage.NewPool(8*mib, mib)
				ctx, stop := context.WithCancel(t.Context())
				defer stop()
				ended := make(chan error, 1)
				go func() {
					_, err := storage.Fetch(ctx, storagetest.Object(randomBytes(64<<10+1)), storage.Options{Pool: pool, Throttle: throttle})
					ended <- err
				}()
				time.Sleep(time.Hour) // of the bubble: far less than it has to wait
				synctest.Wait()
				if n := pool.InUse(); n != 0 {
					t.Errorf("holds %d buffers", n)
				}
				began := time.Now()
				end(throttle, stop)
				if err := <-ended; (err != nil) != (name == "cancel") {
					t.Errorf("ended with %v", err)
				}
				if took := time.Since(began); took > time.Millisecond {
					t.Errorf("took %s", took)
				}
			})
		})
	}
}

// A slower pace is for what is taken from then on, and a faster one for what was taken, too.
func TestThrottleLimitChanges(t *testing.T) {
	for _, tt := range []struct{ before, after int64 }{{1, 4}, {4, 1}, {4, 4}} {
		t.Run(fmt.Sprintf("from %d to %d", tt.before, tt.after), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				throttle := throttleAt(tt.before * mib)
				throttle.Take(4 * mib)
				throttle.Limit(tt.after * mib)
				began := time.Now()
				if _, err := throttle.Wait(t.Context(), mib); err != nil {
					t.Fatal(err)
				}
				if took := time.Since(began); took < 750*time.Millisecond || took > time.Second {
					t.Errorf("waited for %s", took)
				}
			})
		})
	}
}

// Marks are where they are without a pace, if these are multiples of a chunk.
func TestThrottledMarks(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const chunk = 256 << 10
		content := randomBytes(9*chunk + 7)
		marks := func(rate int64) (at []int64) {
			opt := storage.Options{Pool: storage.NewPool(8*chunk, chunk), Throttle: throttleAt(rate), MarkEvery: 2 * chunk}
			opt.OnMark = func(m storage.Mark) { at = append(at, m.Offset) }
			if err := fetched(t, content, storagetest.Object(content), opt); err != nil {
				t.Error(err)
			}
			return at
		}
		if plain, paced := marks(0), marks(1e6); len(plain) != 4 || !slices.Equal(plain, paced) {
			t.Errorf("marks at %d, throttled at %d", plain, paced)
		}
	})
}

// The data path of a worker without limits costs what it did.
func TestThrottleAllocatesNothing(t *testing.T) {
	unlimited, limited := new(storage.Throttle), throttleAt(1<<50)
	for _, throttle := range []*storage.Throttle{nil, unlimited, limited} {
		if n := testing.AllocsPerRun(100, func() {
			_, _ = throttle.Wait(t.Context(), mib)
			throttle.Take(mib)
		}); n > 0 {
			t.Errorf("%v allocations", n)
		}
	}
}

// Errors of what is metered come through.
func TestMeteredFails(t *testing.T) {
	t.Parallel()
	obj := storage.Metered(storagetest.Break(storagetest.Object(randomBytes(chunk)), storagetest.FailOpen, 0, -1, io.ErrNoProgress), nil)
	if _, err := obj.ReadRange(t.Context(), 0, chunk); !errors.Is(err, io.ErrNoProgress) {
		t.Errorf("got %v", err)
	}
}
