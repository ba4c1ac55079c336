package storage_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"
	"testing/iotest"
	"time"

	"vmimport/internal/fault"
	"vmimport/storage"
	"vmimport/storage/storagetest"
)

// day is a StallAfter that leaves stalls to Sequential.
const day = 24 * time.Hour

// oneByOne are the options for a Sequential.
func oneByOne() storage.Options {
	return storage.Options{Pool: storage.NewPool(8*chunk, chunk), Parallel: 1, StallAfter: day}
}

// A Sequential is an Object like any other.
func TestSequentialConformance(t *testing.T) {
	t.Parallel()
	storagetest.Run(t, func(_ *testing.T, content []byte) storagetest.Subject {
		store := storagetest.NewMemory()
		loc := storage.Location{API: "swift", Project: "p", Container: "c", Name: "object"}
		store.Put(loc, content)
		return storagetest.Subject{
			Store:    sequentially{store},
			Location: loc,
			Replace:  func(content []byte) { store.Put(loc, content) },
			Remove:   func() { store.Remove(loc) },
		}
	})
}

type sequentially struct{ storage.Store }

func (s sequentially) Open(ctx context.Context, loc storage.Location) (storage.Object, error) {
	obj, err := s.Store.Open(ctx, loc)
	if err != nil {
		return nil, err
	}
	return storage.Sequential(obj, time.Minute), nil
}

func TestSequentialOpensOneBody(t *testing.T) {
	t.Parallel()
	for _, size := range []int{0, 1, chunk - 1, chunk, chunk + 1, 40*chunk + 1} {
		for name, wrap := range map[string]func(io.Reader) io.Reader{
			"whole": func(r io.Reader) io.Reader { return r }, "byte": iotest.OneByteReader, "data+error": iotest.DataErrReader,
		} {
			t.Run(fmt.Sprintf("size=%d,%s", size, name), func(t *testing.T) {
				bubble(t, func(t *testing.T) {
					content := randomBytes(size)
					obj := &watched{Object: reading(storagetest.Object(content), wrap)}
					seq := storage.Sequential(obj, time.Second)
					opt := oneByOne()
					opt.Digests = allDigests
					if err := fetched(t, content, seq, opt); err != nil {
						t.Error(err)
					}
					if got := len(obj.offs); got != min(1, size) {
						t.Errorf("%d bodies", got)
					}
					if err := seq.Close(); err != nil || obj.open.Load() != 0 {
						t.Errorf("Close: %v, %d bodies are open", err, obj.open.Load())
					}
				})
			})
		}
	}
}

// Each fault, twice, at each place, and from the start or from a mark.
func TestSequentialFaultsThatPass(t *testing.T) {
	t.Parallel()
	content := randomBytes(5*chunk + 7)
	for name, how := range map[string]storagetest.Fault{
		"fail open": storagetest.FailOpen, "stall open": storagetest.StallOpen,
		"fail body": storagetest.FailBody, "stall body": storagetest.StallBody,
		"cut body": storagetest.CutBody, "long body": storagetest.LongBody,
	} {
		for _, at := range []int64{0, 1, chunk - 1, chunk, 2*chunk + 100, 5*chunk + 6} {
			for _, from := range []int64{0, 2 * chunk} {
				t.Run(fmt.Sprintf("%s,at=%d,from=%d", name, at, from), func(t *testing.T) {
					bubble(t, func(t *testing.T) {
						opt := oneByOne()
						opt.Digests = allDigests
						if from > 0 {
							opt.Resume = markAt(t, content, from)
						}
						obj := &watched{Object: storagetest.Break(storagetest.Object(content), how, at, 2, io.ErrUnexpectedEOF)}
						seq := storage.Sequential(obj, time.Minute)
						if err := fetched(t, content, seq, opt); err != nil {
							t.Error(err)
						}
						if got := len(obj.offs); got > 3 {
							t.Errorf("%d bodies", got)
						}
						_ = seq.Close()
						if obj.open.Load() != 0 || obj.peak > 1 {
							t.Errorf("%d bodies are open, up to %d were", obj.open.Load(), obj.peak)
						}
					})
				})
			}
		}
	}
}

// markAt returns what a Fetch with all digests says at an offset.
func markAt(t *testing.T, content []byte, at int64) (mark *storage.Mark) {
	t.Helper()
	opt := oneByOne()
	opt.Digests, opt.MarkEvery = allDigests, at
	opt.OnMark = func(m storage.Mark) {
		if m.Offset == at {
			mark = &m
		}
	}
	if _, err := storage.Fetch(t.Context(), storagetest.Object(content), opt); err != nil || mark == nil {
		t.Fatalf("no mark at %d: %v", at, err)
	}
	return mark
}

func TestSequentialFaultsThatStay(t *testing.T) {
	t.Parallel()
	for _, cause := range []error{storage.ErrChanged, fault.New(fault.Invalid, "gone", "Gone.")} {
		for name, how := range map[string]storagetest.Fault{"open": storagetest.FailOpen, "body": storagetest.FailBody} {
			for _, from := range []int64{0, 2 * chunk} { // in a range, or on the way to one
				t.Run(fmt.Sprintf("%s,%s,from=%d", fault.CodeOf(cause), name, from), func(t *testing.T) {
					bubble(t, func(t *testing.T) {
						content := randomBytes(5 * chunk)
						opt := oneByOne()
						if from > 0 {
							opt.Resume = markAt(t, content, from)
						}
						obj := &watched{Object: storagetest.Break(storagetest.Object(content), how, chunk+5, -1, cause)}
						seq := storage.Sequential(obj, time.Minute)
						defer seq.Close()
						// The next range may begin before the Fetch has ended.
						if err := fetched(t, content, seq, opt); !errors.Is(err, cause) || len(obj.offs) > 2 {
							t.Errorf("got %v after %d bodies", err, len(obj.offs))
						}
						if obj.open.Load() != 0 {
							t.Error("a body is open")
						}
					})
				})
			}
		}
	}
}

// An object that is replaced is seen although its body was open before.
func TestSequentialChanged(t *testing.T) {
	bubble(t, func(t *testing.T) {
		store := storagetest.NewMemory()
		store.Put(storage.Location{}, randomBytes(20*chunk))
		obj, err := store.Open(t.Context(), storage.Location{})
		if err != nil {
			t.Fatal(err)
		}
		seq := storage.Sequential(obj, time.Minute)
		defer seq.Close()
		_, err = storage.Fetch(t.Context(), seq, oneByOne(), func(off int64, _ []byte) error {
			if off == 3*chunk {
				store.Put(storage.Location{}, randomBytes(20*chunk+1))
			}
			return nil
		})
		if !errors.Is(err, storage.ErrChanged) {
			t.Errorf("got %v", err)
		}
	})
}

// Neither a long way to a range nor a consumer that takes its time is a stall.
func TestSequentialSlowIsNotStalled(t *testing.T) {
	t.Parallel()
	content := randomBytes(10 * chunk)
	for name, tt := range map[string]struct {
		from         int64
		read, taking time.Duration
	}{
		"passing over": {from: 9 * chunk, read: 9 * time.Second},
		"consumer":     {taking: time.Minute},
		"both":         {from: 2 * chunk, read: 9 * time.Second, taking: time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				obj := &watched{Object: reading(storagetest.Object(content), func(r io.Reader) io.Reader {
					return pausing{few{r}, tt.read}
				})}
				opt := oneByOne()
				opt.Stats = new(storage.Stats)
				if tt.from > 0 {
					opt.Resume = markAt(t, content, tt.from)
				}
				seq := storage.Sequential(obj, 10*time.Second)
				defer seq.Close()
				_, err := storage.Fetch(t.Context(), seq, opt, func(int64, []byte) error { time.Sleep(tt.taking); return nil })
				if err != nil || opt.Stats.Stalls.Load() != 0 || len(obj.offs) != 1 {
					t.Errorf("%v, %d stalls, %d bodies", err, opt.Stats.Stalls.Load(), len(obj.offs))
				}
			})
		})
	}
}

// few gives at most 100 bytes at a time.
type few struct{ io.Reader }

func (f few) Read(p []byte) (int, error) { return f.Reader.Read(p[:min(len(p), 100)]) }

// What stalls is begun anew, at the front as in a range, and counted as a stall.
func TestSequentialStalls(t *testing.T) {
	t.Parallel()
	for name, how := range map[string]storagetest.Fault{"open": storagetest.StallOpen, "body": storagetest.StallBody} {
		for _, from := range []int64{0, 9 * chunk} {
			t.Run(fmt.Sprintf("%s,from=%d", name, from), func(t *testing.T) {
				bubble(t, func(t *testing.T) {
					content := randomBytes(20 * chunk)
					obj := &watched{Object: storagetest.Break(storagetest.Object(content), how, 2*chunk+5, 1, nil)}
					seq := storage.Sequential(obj, time.Minute)
					defer seq.Close()
					opt := oneByOne()
					opt.Stats = new(storage.Stats)
					if from > 0 {
						opt.Resume = markAt(t, content, from)
					}
					began := time.Now()
					if _, err := storage.Fetch(t.Context(), seq, opt); err != nil {
						t.Fatal(err)
					}
					if took := time.Since(began); took < time.Minute || took > time.Minute+time.Second {
						t.Errorf("took %v", took)
					}
					if stalls := opt.Stats.Stalls.Load(); stalls != 1 || len(obj.offs) != 2 {
						t.Errorf("%d stalls, %d bodies", stalls, len(obj.offs))
					}
				})
			})
		}
	}
}

// Such a body leaves no goroutine blocked, so fake time would stand still.
func TestSequentialEmptyReadsAreAStall(t *testing.T) {
	t.Parallel()
	obj := reading(storagetest.Object(randomBytes(chunk)), func(io.Reader) io.Reader { return emptyReader{} })
	opt := oneByOne()
	opt.Attempts, opt.Stats = 2, new(storage.Stats)
	seq := storage.Sequential(obj, time.Millisecond)
	defer seq.Close()
	if _, err := storage.Fetch(t.Context(), seq, opt); !errors.Is(err, storage.ErrUnreadable) || opt.Stats.Stalls.Load() != 1 {
		t.Errorf("got %v, %d stalls", err, opt.Stats.Stalls.Load())
	}
}

func readRange(ctx context.Context, obj storage.Object, off, n int64) ([]byte, error) {
	body, err := obj.ReadRange(ctx, off, n)
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(body)
	return b, errors.Join(err, body.Close(), body.Close())
}

// Only what is further back begins at the front again.
func TestSequentialGoesOn(t *testing.T) {
	bubble(t, func(t *testing.T) {
		content := randomBytes(20 * chunk)
		obj := &watched{Object: storagetest.Object(content)}
		seq := storage.Sequential(obj, time.Minute)
		for _, step := range []struct{ off, n, bodies int64 }{
			{0, 100, 1}, {100, 1, 1}, {5000, 1, 1}, {5001, 20*chunk - 5001, 1}, {20*chunk - 1, 1, 2}, {0, 20 * chunk, 3},
		} {
			got, err := readRange(t.Context(), seq, step.off, step.n)
			if err != nil || !bytes.Equal(got, content[step.off:step.off+step.n]) || len(obj.offs) != int(step.bodies) {
				t.Errorf("%d+%d: %d bytes, %v, %d bodies of %d", step.off, step.n, len(got), err, len(obj.offs), step.bodies)
			}
		}
		for range 2 {
			if err := seq.Close(); err != nil || obj.open.Load() != 0 {
				t.Errorf("Close: %v, %d bodies are open", err, obj.open.Load())
			}
		}
		if got, err := readRange(t.Context(), seq, 7, 1); err != nil || got[0] != content[7] || len(obj.offs) != 4 {
			t.Errorf("after Close: %x, %v, %d bodies", got, err, len(obj.offs))
		}
		_ = seq.Close()
	})
}

// A range belongs to its context, and what is open behind it to none.
func TestSequentialObeys(t *testing.T) {
	bubble(t, func(t *testing.T) {
		content := randomBytes(20 * chunk)
		stuck := storagetest.Break(storagetest.Object(content), storagetest.StallBody, 5*chunk, 3, nil)
		seq := storage.Sequential(&watched{Object: stuck}, day)
		left := errors.New("the user left")
		soon := func() context.Context {
			ctx, cancel := context.WithCancelCause(t.Context())
			time.AfterFunc(time.Second, func() { cancel(left) })
			return ctx
		}
		for name, off := range map[string]int64{"within a range": 4 * chunk, "on the way to one": 6 * chunk} {
			if _, err := readRange(soon(), seq, off, 2*chunk); !errors.Is(err, left) {
				t.Errorf("%s: %v", name, err)
			}
		}

		first, cancel := context.WithCancelCause(t.Context())
		body, err := seq.ReadRange(first, 0, chunk)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := seq.ReadRange(soon(), 0, chunk); !errors.Is(err, left) {
			t.Errorf("beside another range: %v", err)
		}
		if got, err := io.ReadAll(body); err != nil || !bytes.Equal(got, content[:chunk]) {
			t.Errorf("%d bytes, %v", len(got), err)
		}
		if err := body.Close(); err != nil {
			t.Error(err)
		}
		cancel(left)
		if got, err := readRange(t.Context(), seq, chunk, 4*chunk); err != nil || !bytes.Equal(got, content[chunk:5*chunk]) {
			t.Errorf("after the first range's context: %d bytes, %v", len(got), err)
		}
		early, err := seq.ReadRange(t.Context(), 0, chunk)
		if err != nil {
			t.Fatal(err)
		}
		if err := early.Close(); err != nil {
			t.Error(err)
		}
		if n, err := early.Read(make([]byte, 1)); n != 0 || err == nil || err == io.EOF {
			t.Errorf("after its Close: %d bytes, %v", n, err)
		}
		_ = seq.Close()
	})
}

func TestSequentialCanceledAtAnyMoment(t *testing.T) {
	t.Parallel()
	stop := errors.New("the user asked to stop")
	for seed := range uint64(12) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				moment := time.Duration(rand.New(rand.NewPCG(seed, 0)).Int64N(int64(120 * time.Millisecond)))
				ctx, cancel := context.WithCancelCause(t.Context())
				time.AfterFunc(moment, func() { cancel(stop) })
				obj := &watched{Object: reading(storagetest.Paced(64*chunk, 30*time.Millisecond, 0), func(r io.Reader) io.Reader {
					return pausing{iotest.HalfReader(r), time.Millisecond}
				})}
				seq := storage.Sequential(obj, time.Second)
				opt := oneByOne()
				if _, err := storage.Fetch(ctx, seq, opt); !errors.Is(err, stop) {
					t.Errorf("got %v", err)
				}
				_ = seq.Close()
				if opt.Pool.InUse() != 0 || obj.open.Load() != 0 {
					t.Error("something was left behind")
				}
			})
		})
	}
}
