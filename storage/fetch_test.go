package storage_test

import (
	"bytes"
	"context"
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"log"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"vmimport/internal/fault"
	"vmimport/storage"
	"vmimport/storage/storagetest"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(serveEnv); dir != "" { // the child of a benchmark
		if err := serve(dir); !errors.Is(err, net.ErrClosed) {
			log.Fatal(err)
		}
		return
	}
	goleak.VerifyTestMain(m)
}

// chunk is the size of ranges in these tests.
const chunk = 1 << 10

var allDigests = []string{"md5", "sha256", "sha512"}

// bubble runs a test in a synctest bubble: time is fake, a goroutine that
// outlives the test or a deadlock fails it.
func bubble(t *testing.T, test func(t *testing.T)) {
	t.Helper()
	t.Parallel()
	synctest.Test(t, test)
}

func randomBytes(n int) []byte {
	p := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{byte(n)}).Read(p)
	return p
}

func digestsOf(content []byte, names ...string) map[string]string {
	sums := make(map[string]string)
	for _, name := range append([]string{"sha1"}, names...) {
		h := map[string]func() hash.Hash{"sha1": sha1.New, "md5": md5.New, "sha256": sha256.New, "sha512": sha512.New}[name]()
		h.Write(content)
		sums[name] = hex.EncodeToString(h.Sum(nil))
	}
	return sums
}

// sink is a Consumer that checks order and keeps the bytes.
type sink struct {
	start int64
	data  []byte
}

func (s *sink) take(off int64, p []byte) error {
	if want := s.start + int64(len(s.data)); off != want {
		return fmt.Errorf("piece at %d after %d", off, want)
	}
	s.data = append(s.data, p...)
	return nil
}

// fetched fetches obj with two sinks, and checks all that a Fetch promises if
// it succeeds, and that it leaves nothing behind in any case.
func fetched(t *testing.T, content []byte, obj storage.Object, opt storage.Options) error {
	t.Helper()
	var start int64
	if opt.Resume != nil {
		start = opt.Resume.Offset
	}
	a, b := sink{start: start}, sink{start: start}
	opt.Stats = new(storage.Stats)
	sums, err := storage.Fetch(t.Context(), obj, opt, a.take, b.take)
	if n := opt.Pool.InUse(); n != 0 {
		t.Errorf("%d buffers were not given back", n)
	}
	if err != nil {
		return err
	}
	if want := digestsOf(content, opt.Digests...); !maps.Equal(sums, want) {
		t.Errorf("digests are %v, want %v", sums, want)
	}
	if want := content[start:]; !bytes.Equal(a.data, want) || !bytes.Equal(b.data, want) {
		t.Errorf("a consumer got other bytes than the object's")
	}
	if got, want := opt.Stats.Done.Load(), int64(len(content))-start; got != want {
		t.Errorf("done is %d bytes, want %d", got, want)
	}
	return nil
}

// reading returns obj with each body wrapped by one of the iotest readers.
func reading(obj storage.Object, wrap func(io.Reader) io.Reader) storage.Object {
	return wrapped{obj, wrap}
}

type wrapped struct {
	storage.Object
	wrap func(io.Reader) io.Reader
}

func (w wrapped) ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	body, err := w.Object.ReadRange(ctx, off, n)
	if err != nil {
		return nil, err
	}
	return struct {
		io.Reader
		io.Closer
	}{w.wrap(body), body}, nil
}

// watched records what is asked of an object, and how much at a time. With
// check, it also calls that for each request.
type watched struct {
	storage.Object
	check func()

	mu           sync.Mutex
	offs         []int64
	flying, peak int
	open         atomic.Int64 // bodies
}

func (w *watched) ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	w.mu.Lock()
	w.offs = append(w.offs, off)
	w.flying++
	w.peak = max(w.peak, w.flying)
	w.mu.Unlock()
	if w.check != nil {
		w.check()
	}
	body, err := w.Object.ReadRange(ctx, off, n)
	if err != nil {
		w.landed()
		return nil, err
	}
	w.open.Add(1)
	return &watchedBody{body, w}, nil
}

func (w *watched) landed() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.flying--
}

type watchedBody struct {
	io.ReadCloser
	w *watched
}

func (b *watchedBody) Close() error {
	b.w.open.Add(-1)
	b.w.landed()
	return b.ReadCloser.Close()
}

func TestFetchEdges(t *testing.T) {
	t.Parallel()
	readers := map[string]func(io.Reader) io.Reader{
		"whole":      func(r io.Reader) io.Reader { return r },
		"half":       iotest.HalfReader,
		"byte":       iotest.OneByteReader,
		"data+error": iotest.DataErrReader,
	}
	for _, size := range []int{0, 1, chunk - 1, chunk, chunk + 1, 3*chunk + 7, 40*chunk + 1} {
		for _, parallel := range []int{1, 2, 16} {
			for name, wrap := range readers {
				t.Run(fmt.Sprintf("size=%d,parallel=%d,%s", size, parallel, name), func(t *testing.T) {
					bubble(t, func(t *testing.T) {
						content := randomBytes(size)
						obj := &watched{Object: reading(storagetest.Object(content), wrap)}
						opt := storage.Options{Pool: storage.NewPool(8*chunk, chunk), Parallel: parallel, Digests: allDigests}
						if err := fetched(t, content, obj, opt); err != nil {
							t.Fatal(err)
						}
						if want := (size + chunk - 1) / chunk; len(obj.offs) != want {
							t.Errorf("made %d requests, want %d", len(obj.offs), want)
						}
						if n := obj.open.Load(); n != 0 {
							t.Errorf("%d bodies were left open", n)
						}
					})
				})
			}
		}
	}
}

func TestFetchOfNothingConsumesNothing(t *testing.T) {
	t.Parallel()
	sums, err := storage.Fetch(t.Context(), storagetest.Object(nil), storage.Options{Pool: storage.NewPool(1, 1)},
		func(int64, []byte) error { return errors.New("called") })
	if want := "da39a3ee5e6b4b0d3255bfef95601890afd80709"; err != nil || sums["sha1"] != want {
		t.Errorf("got %v, %v", sums, err)
	}
}

func TestUnknownDigest(t *testing.T) {
	t.Parallel()
	_, err := storage.Fetch(t.Context(), storagetest.Object(nil), storage.Options{Pool: storage.NewPool(1, 1), Digests: []string{"crc32"}})
	if fault.CodeOf(err) != "unknown_digest" {
		t.Errorf("got %v", err)
	}
}

// marks fetches content and returns the marks, as they look after a stay in a
// record.
func marks(t *testing.T, content []byte, every int64) []*storage.Mark {
	t.Helper()
	var all []*storage.Mark
	opt := storage.Options{
		Pool: storage.NewPool(4*chunk, chunk), Digests: allDigests, MarkEvery: every,
		OnMark: func(m storage.Mark) {
			text, err := json.Marshal(m)
			if err != nil {
				t.Error(err)
			}
			all = append(all, new(storage.Mark))
			if err := json.Unmarshal(text, all[len(all)-1]); err != nil {
				t.Error(err)
			}
		},
	}
	if err := fetched(t, content, storagetest.Object(content), opt); err != nil {
		t.Fatal(err)
	}
	return all
}

func TestMarksAreRoundedUpToChunks(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		every int64
		want  []int64
	}{
		{1, []int64{chunk, 2 * chunk, 3 * chunk, 3*chunk + 7}},
		{chunk, []int64{chunk, 2 * chunk, 3 * chunk}},
		{chunk + 1, []int64{2 * chunk, 3 * chunk, 3*chunk + 7}}, // past 1, 2 and 3 times as much
		{2 * chunk, []int64{2 * chunk}},
		{4 * chunk, nil},
	} {
		var got []int64
		for _, m := range marks(t, randomBytes(3*chunk+7), tt.every) {
			got = append(got, m.Offset)
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("every %d bytes: marks at %v, want %v", tt.every, got, tt.want)
		}
	}
}

func TestFetchResumesAtEveryMark(t *testing.T) {
	t.Parallel()
	content := randomBytes(5*chunk + 7)
	for _, mark := range append(marks(t, content, 1), &storage.Mark{}) {
		for _, newChunk := range []int64{chunk, 100, 3 * chunk, 64 * chunk} {
			t.Run(fmt.Sprintf("at=%d,chunk=%d", mark.Offset, newChunk), func(t *testing.T) {
				t.Parallel()
				opt := storage.Options{Pool: storage.NewPool(4*newChunk, newChunk), Digests: allDigests, Resume: mark}
				if err := fetched(t, content, storagetest.Object(content), opt); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

func TestFetchRefusesBadMark(t *testing.T) {
	t.Parallel()
	content := randomBytes(2 * chunk)
	good := marks(t, content, 1)[0]
	for name, tt := range map[string]struct {
		mark    storage.Mark
		digests []string
	}{
		"negative":      {storage.Mark{Offset: -1}, nil},
		"past the end":  {storage.Mark{Offset: 2*chunk + 1, States: good.States}, nil},
		"no state":      {storage.Mark{Offset: chunk}, nil},
		"state missing": {storage.Mark{Offset: chunk, States: map[string][]byte{"sha1": good.States["sha1"]}}, []string{"md5"}},
		"other state":   {storage.Mark{Offset: chunk, States: map[string][]byte{"sha1": good.States["md5"]}}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			opt := storage.Options{Pool: storage.NewPool(chunk, chunk), Resume: &tt.mark, Digests: tt.digests}
			if err := fetched(t, content, storagetest.Object(content), opt); !errors.Is(err, storage.ErrBadMark) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestMarkMeansThatAllConsumersAreThere(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var quick, slow atomic.Int64
		count := func(n *atomic.Int64, pause time.Duration) storage.Consumer {
			return func(off int64, p []byte) error {
				time.Sleep(pause)
				n.Store(off + int64(len(p)))
				return nil
			}
		}
		var seen int64
		opt := storage.Options{
			Pool: storage.NewPool(8*chunk, chunk), MarkEvery: 1,
			OnMark: func(m storage.Mark) {
				if a, b := quick.Load(), slow.Load(); a < m.Offset || b < m.Offset {
					t.Errorf("mark at %d, consumers at %d and %d", m.Offset, a, b)
				}
				if m.Offset <= seen {
					t.Errorf("mark at %d after %d", m.Offset, seen)
				}
				seen = m.Offset
			},
		}
		_, err := storage.Fetch(t.Context(), storagetest.Object(randomBytes(50*chunk)), opt,
			count(&quick, 0), count(&slow, time.Millisecond))
		if err != nil || seen != 50*chunk {
			t.Errorf("last mark at %d, error %v", seen, err)
		}
	})
}

func TestFetchesShareATinyPool(t *testing.T) {
	t.Parallel()
	for _, buffers := range []int64{1, 2, 3} {
		t.Run(fmt.Sprint(buffers), func(t *testing.T) {
			bubble(t, func(t *testing.T) { // which notices a deadlock
				pool := storage.NewPool(buffers*chunk, chunk)
				var wg sync.WaitGroup
				for i := range 24 {
					wg.Go(func() {
						rnd := rand.New(rand.NewPCG(uint64(i), 2))
						content := randomBytes(rnd.IntN(20 * chunk))
						obj := reading(storagetest.Object(content), func(r io.Reader) io.Reader {
							return pausing{r, time.Duration(i%3) * time.Millisecond}
						})
						opt := storage.Options{Pool: pool, Parallel: 1 + i%5}
						consumed := 0
						sums, err := storage.Fetch(t.Context(), obj, opt, func(_ int64, p []byte) error {
							time.Sleep(time.Duration(i%4) * time.Millisecond)
							consumed += len(p)
							return nil
						})
						if err != nil || sums["sha1"] != digestsOf(content)["sha1"] || consumed != len(content) {
							t.Errorf("fetch %d: %v", i, err)
						}
					})
				}
				wg.Wait()
				if pool.InUse() != 0 {
					t.Errorf("%d buffers were not given back", pool.InUse())
				}
			})
		})
	}
}

func TestWindowFollowsTheDistance(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name    string
		latency time.Duration
		pause   time.Duration // of the consumer, for each chunk
		buffers int64
		limit   int
		want    int // requests in flight
	}{
		{"near", time.Millisecond / 100, 0, 100, 16, 4},
		{"far", 50 * time.Millisecond, 0, 100, 16, 16},
		{"far, but limited", 50 * time.Millisecond, 0, 100, 7, 7},
		{"far, limit below the start", 50 * time.Millisecond, 0, 100, 2, 2},
		{"far, small pool", 50 * time.Millisecond, 0, 5, 16, 4},
		{"far, half of the pool", 50 * time.Millisecond, 0, 20, 16, 8},
		{"near, slower consumer", time.Millisecond, 200 * time.Millisecond, 100, 16, 4},
		{"far, slower consumer", 60 * time.Millisecond, 200 * time.Millisecond, 100, 16, 4}, // silence before the first chunk counts for nothing
	} {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				pool := storage.NewPool(tt.buffers*chunk, chunk)
				var held int
				obj := &watched{Object: storagetest.Paced(400*chunk, tt.latency, 0)}
				obj.check = func() {
					obj.mu.Lock()
					defer obj.mu.Unlock()
					held = max(held, pool.InUse())
				}
				opt := storage.Options{Pool: pool, Parallel: tt.limit}
				_, err := storage.Fetch(t.Context(), obj, opt, func(int64, []byte) error {
					time.Sleep(tt.pause)
					return nil
				})
				if err != nil {
					t.Fatal(err)
				}
				if obj.peak != tt.want {
					t.Errorf("%d requests were in flight, want %d", obj.peak, tt.want)
				}
				if held > tt.want+2 {
					t.Errorf("%d buffers were held, for a window of %d", held, tt.want)
				}
			})
		})
	}
}
