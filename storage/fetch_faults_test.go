package storage_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"time"

	"vmimport/internal/fault"
	"vmimport/storage"
	"vmimport/storage/storagetest"
)

// TestFaultsThatPass covers each fault, once or twice, at each place in a chunk.
func TestFaultsThatPass(t *testing.T) {
	t.Parallel()
	content := randomBytes(3*chunk + 7)
	for name, how := range map[string]storagetest.Fault{
		"fail open": storagetest.FailOpen, "stall open": storagetest.StallOpen,
		"fail body": storagetest.FailBody, "stall body": storagetest.StallBody,
		"cut body": storagetest.CutBody, "long body": storagetest.LongBody,
	} {
		for _, at := range []int64{0, 1, chunk - 1, chunk, chunk + 100, 3*chunk + 6} {
			t.Run(fmt.Sprintf("%s,at=%d", name, at), func(t *testing.T) {
				bubble(t, func(t *testing.T) {
					obj := storagetest.Break(storagetest.Object(content), how, at, 2, io.ErrUnexpectedEOF)
					opt := storage.Options{Pool: storage.NewPool(4*chunk, chunk), Digests: allDigests}
					if err := fetched(t, content, obj, opt); err != nil {
						t.Error(err)
					}
				})
			})
		}
	}
}

func TestRetryGoesOnInsideTheChunk(t *testing.T) {
	bubble(t, func(t *testing.T) {
		content := randomBytes(2 * chunk)
		cut := storagetest.Break(storagetest.Object(content), storagetest.CutBody, chunk+100, 1, nil)
		obj := &watched{Object: cut}
		stats := new(storage.Stats)
		opt := storage.Options{Pool: storage.NewPool(chunk, chunk), Stats: stats}
		if _, err := storage.Fetch(t.Context(), obj, opt); err != nil {
			t.Fatal(err)
		}
		if want := []int64{0, chunk, chunk + 100}; !slices.Equal(obj.offs, want) {
			t.Errorf("requests began at %v, want %v", obj.offs, want)
		}
		if got := stats.Received.Load(); got != 2*chunk {
			t.Errorf("received %d bytes", got)
		}
		if retries, stalls := stats.Retries.Load(), stats.Stalls.Load(); retries != 1 || stalls != 0 {
			t.Errorf("counted %d retries and %d stalls", retries, stalls)
		}
	})
}

func TestBytesForgiveFailures(t *testing.T) {
	bubble(t, func(t *testing.T) {
		content := randomBytes(100)
		dripping := reading(storagetest.Object(content), func(r io.Reader) io.Reader {
			return io.MultiReader(io.LimitReader(r, 1), iotest.ErrReader(io.ErrUnexpectedEOF))
		})
		opt := storage.Options{Pool: storage.NewPool(chunk, chunk), Attempts: 1}
		if err := fetched(t, content, dripping, opt); err != nil {
			t.Error(err)
		}
	})
}

func TestPermanentErrorsAreNotRetried(t *testing.T) {
	t.Parallel()
	for _, cause := range []error{
		storage.ErrChanged,
		storage.ErrNoObject,
		fault.New(fault.Denied, "no_access", "Denied."),
		fault.New(fault.Invalid, "bad_range", "Invalid."),
	} {
		for name, how := range map[string]storagetest.Fault{"open": storagetest.FailOpen, "body": storagetest.FailBody} {
			t.Run(fault.CodeOf(cause)+","+name, func(t *testing.T) {
				bubble(t, func(t *testing.T) {
					content := randomBytes(2 * chunk)
					failing := storagetest.Break(storagetest.Object(content), how, 100, -1, cause)
					obj := &watched{Object: failing}
					err := fetched(t, content, obj, storage.Options{Pool: storage.NewPool(chunk, chunk)})
					if !errors.Is(err, cause) || fault.Of(err).Kind != fault.KindOf(cause) || len(obj.offs) != 1 {
						t.Errorf("got %v after %d requests", err, len(obj.offs))
					}
				})
			})
		}
	}
}

func TestFetchGivesUp(t *testing.T) {
	t.Parallel()
	cause := errors.New("connection refused by 10.0.0.7")
	for name, how := range map[string]storagetest.Fault{
		"fail": storagetest.FailOpen, "long": storagetest.LongBody, "stall": storagetest.StallBody, "stall open": storagetest.StallOpen,
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				content := randomBytes(chunk)
				obj := &watched{Object: storagetest.Break(storagetest.Object(content), how, 0, -1, cause)}
				opt := storage.Options{
					Pool: storage.NewPool(chunk, chunk), Attempts: 4, StallAfter: time.Minute,
					Backoff: storage.Backoff{Base: time.Second, Max: 4 * time.Second},
				}
				began := time.Now()
				err := fetched(t, content, obj, opt)
				f := fault.Of(err)
				if f.Kind != fault.Unavailable || f.Code != "source_unreadable" || f.Remedy == "" {
					t.Errorf("got %#v", f)
				}
				if how == storagetest.FailOpen && !errors.Is(err, cause) {
					t.Errorf("%v does not wrap the cause", err)
				}
				if len(obj.offs) != 4 {
					t.Errorf("made %d requests, want 4", len(obj.offs))
				}
				// Pauses of 2, 4 and 4 s, or half of that.
				waited := time.Since(began)
				if how == storagetest.StallBody || how == storagetest.StallOpen {
					waited -= 4 * time.Minute
				}
				if waited < 5*time.Second || waited > 10*time.Second {
					t.Errorf("gave up after %v", waited)
				}
			})
		})
	}
}

func TestStalledRequestIsReplaced(t *testing.T) {
	t.Parallel()
	for name, how := range map[string]storagetest.Fault{"open": storagetest.StallOpen, "body": storagetest.StallBody} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				content := randomBytes(20 * chunk)
				stats := new(storage.Stats)
				obj := storagetest.Break(storagetest.Object(content), how, 2*chunk+5, 1, nil)
				opt := storage.Options{Pool: storage.NewPool(20*chunk, chunk), StallAfter: time.Minute, Stats: stats}
				began := time.Now()
				if _, err := storage.Fetch(t.Context(), obj, opt); err != nil {
					t.Fatal(err)
				}
				if took := time.Since(began); took < time.Minute || took > time.Minute+time.Second {
					t.Errorf("took %v", took)
				}
				if retries, stalls := stats.Retries.Load(), stats.Stalls.Load(); retries != 0 || stalls != 1 {
					t.Errorf("counted %d retries and %d stalls", retries, stalls)
				}
			})
		})
	}
}

func TestSlowIsNotStalled(t *testing.T) {
	bubble(t, func(t *testing.T) {
		content := randomBytes(50)
		slow := reading(storagetest.Object(content), func(r io.Reader) io.Reader {
			return iotest.OneByteReader(pausing{r, 9 * time.Second})
		})
		stats := new(storage.Stats)
		opt := storage.Options{Pool: storage.NewPool(chunk, chunk), Stats: stats}
		if _, err := storage.Fetch(t.Context(), slow, opt); err != nil || stats.Stalls.Load() != 0 {
			t.Errorf("%d stalls, error %v", stats.Stalls.Load(), err)
		}
	})
}

type pausing struct {
	io.Reader
	pause time.Duration
}

func (p pausing) Read(b []byte) (int, error) {
	time.Sleep(p.pause)
	return p.Reader.Read(b)
}

// Such a body leaves no goroutine blocked, so fake time would stand still.
func TestEmptyReadsAreAStall(t *testing.T) {
	t.Parallel()
	obj := reading(storagetest.Object(randomBytes(chunk)), func(io.Reader) io.Reader { return emptyReader{} })
	opt := storage.Options{Pool: storage.NewPool(chunk, chunk), StallAfter: time.Millisecond, Attempts: 1}
	if _, err := storage.Fetch(t.Context(), obj, opt); !errors.Is(err, storage.ErrUnreadable) {
		t.Errorf("got %v", err)
	}
}

type emptyReader struct{}

func (emptyReader) Read([]byte) (int, error) { return 0, nil }

func TestConsumerErrorEndsFetch(t *testing.T) {
	t.Parallel()
	full := errors.New("disk full")
	for _, at := range []int64{0, 7, 49} {
		t.Run(fmt.Sprint(at), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				stats := new(storage.Stats)
				opt := storage.Options{
					Pool: storage.NewPool(20*chunk, chunk), Stats: stats, MarkEvery: 1,
					OnMark: func(m storage.Mark) {
						if m.Offset > at*chunk {
							t.Errorf("mark at %d, beyond the error", m.Offset)
						}
					},
				}
				obj := &watched{Object: storagetest.Paced(50*chunk, time.Millisecond, 0)}
				var after int
				_, err := storage.Fetch(t.Context(), obj, opt, func(off int64, _ []byte) error {
					if off >= at*chunk {
						after++
						return full
					}
					return nil
				})
				if err != full || after != 1 {
					t.Errorf("got %v, and %d calls after it", err, after-1)
				}
				if stats.Done.Load() > at*chunk {
					t.Errorf("%d bytes count as done, of %d", stats.Done.Load(), at*chunk)
				}
				if opt.Pool.InUse() != 0 || obj.open.Load() != 0 {
					t.Error("something was left behind")
				}
			})
		})
	}
}

func TestCancelAtAnyMoment(t *testing.T) {
	t.Parallel()
	stop := errors.New("the user asked to stop")
	sources := map[string]func() storage.Object{
		"paced": func() storage.Object { return storagetest.Paced(64*chunk, 30*time.Millisecond, 100*chunk) },
		"stuck open": func() storage.Object {
			return storagetest.Break(storagetest.Paced(64*chunk, 0, 0), storagetest.StallOpen, 9*chunk, -1, nil)
		},
		"stuck body": func() storage.Object {
			return storagetest.Break(storagetest.Paced(64*chunk, 0, 0), storagetest.StallBody, 9*chunk+5, -1, nil)
		},
		"failing": func() storage.Object {
			return storagetest.Break(storagetest.Paced(64*chunk, 0, 0), storagetest.FailOpen, 9*chunk, -1, io.EOF)
		},
	}
	for name, source := range sources {
		for seed := range uint64(12) {
			t.Run(fmt.Sprintf("%s,seed=%d", name, seed), func(t *testing.T) {
				bubble(t, func(t *testing.T) {
					moment := time.Duration(rand.New(rand.NewPCG(seed, 0)).Int64N(int64(120 * time.Millisecond)))
					ctx, cancel := context.WithCancelCause(t.Context())
					time.AfterFunc(moment, func() { cancel(stop) })
					obj := &watched{Object: source()}
					opt := storage.Options{Pool: storage.NewPool(5*chunk, chunk), StallAfter: time.Second, Backoff: storage.Backoff{Base: time.Second}}
					began := time.Now()
					_, err := storage.Fetch(ctx, obj, opt, func(int64, []byte) error { time.Sleep(time.Millisecond); return nil })
					// A consumer's call may be under way, for a millisecond.
					if took := time.Since(began) - moment; !errors.Is(err, stop) || took > time.Millisecond {
						t.Errorf("got %v, %v after the cancel", err, took)
					}
					if opt.Pool.InUse() != 0 || obj.open.Load() != 0 {
						t.Error("something was left behind")
					}
				})
			})
		}
	}
}

func TestCanceledBeforeTheStart(t *testing.T) {
	bubble(t, func(t *testing.T) {
		stop := errors.New("stop")
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(stop)
		for _, size := range []int{0, 10 * chunk} {
			_, err := storage.Fetch(ctx, storagetest.Object(randomBytes(size)), storage.Options{Pool: storage.NewPool(chunk, chunk)})
			if !errors.Is(err, stop) {
				t.Errorf("size %d: got %v", size, err)
			}
		}
	})
}

// TestRandomFaults is the promise of Fetch as a whole: whatever the source
// does, either every byte and digest is right, or there is a clear error.
func TestRandomFaults(t *testing.T) {
	t.Parallel()
	rare := []error{io.EOF, io.ErrUnexpectedEOF, context.Canceled, storage.ErrChanged}
	var succeeded atomic.Int64
	t.Run("seeds", func(t *testing.T) {
		for seed := range uint64(150) {
			t.Run(fmt.Sprint(seed), func(t *testing.T) {
				bubble(t, func(t *testing.T) {
					rnd := rand.New(rand.NewPCG(seed, 1))
					content := randomBytes(rnd.IntN(30 * chunk))
					size := 1 + rnd.Int64N(3*chunk)
					obj := storagetest.Object(content)
					at := func() int64 { return rnd.Int64N(int64(len(content) + 1)) }
					if rnd.IntN(4) == 0 {
						obj = storagetest.Break(obj, storagetest.LongBody, at(), 1+rnd.IntN(4), nil)
					}
					for range rnd.IntN(12) {
						how := storagetest.Fault(rnd.IntN(int(storagetest.LongBody)))
						cause := errors.New("any other error")
						if i := rnd.IntN(30); i < len(rare) {
							cause = rare[i]
						}
						obj = storagetest.Break(obj, how, at(), 1+rnd.IntN(4), cause)
					}
					opt := storage.Options{
						Pool:     storage.NewPool(size*rnd.Int64N(8), size),
						Parallel: 1 + rnd.IntN(16),
						Digests:  allDigests[:rnd.IntN(4)],
					}
					switch err := fetched(t, content, obj, opt); {
					case err == nil:
						succeeded.Add(1)
					case errors.Is(err, storage.ErrChanged), errors.Is(err, storage.ErrUnreadable):
					default:
						t.Errorf("unclear error: %v", err)
					}
				})
			})
		}
	})
	if n := succeeded.Load(); n < 75 {
		t.Errorf("only %d of 150 succeeded: the faults are too many to prove anything", n)
	}
}
