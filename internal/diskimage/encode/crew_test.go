package encode

import (
	"math/rand/v2"
	"runtime"
	"testing"

	"vmimport/internal/diskimage/vmdk"
)

// TestCrewSize holds crews to MaxBytes, and to what Options.Workers says.
func TestCrewSize(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		buffer int64
		most   int // workers
	}{
		"gzip": {maxMember(gzipUnit), 4},
		"vmdk": {maxZlib(vmdk.GrainBytes), 15},
	} {
		buffer := divide(tt.buffer, pageBytes) * pageBytes
		for asked := range 70 {
			workers, units := crewSize(asked, tt.buffer)
			want := min(asked, tt.most)
			if asked == 0 {
				want = min(runtime.GOMAXPROCS(0), maxWorkers, tt.most)
			}
			if workers != want || units < 2*workers {
				t.Errorf("%s: %d workers and %d units, %d were asked for", name, workers, units, asked)
			}
			if n := otherBytes + int64(workers)*(deflaterBytes+buffer) + int64(units)*buffer; n > MaxBytes {
				t.Errorf("%s: %d workers take %d bytes", name, workers, n)
			}
		}
	}
}

// TestBuffersHaveRoom packs what does not get smaller: no buffer grows.
func TestBuffersHaveRoom(t *testing.T) {
	t.Parallel()
	d := newDeflater()
	for _, tt := range []struct {
		unit, room int64
		pack       packer
	}{
		{gzipUnit, maxMember(gzipUnit), d.sparseMember},
		{vmdk.GrainBytes, maxZlib(vmdk.GrainBytes), d.zlib},
	} {
		src := make([]byte, tt.unit)
		_, _ = rand.NewChaCha8([32]byte{}).Read(src)
		if packed := tt.pack(make([]byte, 0, tt.room), src); int64(cap(packed)) != tt.room {
			t.Errorf("a unit of %d bytes took a buffer of %d, not %d", tt.unit, cap(packed), tt.room)
		}
	}
}

// held is how much more of the heap is in use after f, whose result is kept until then.
func held[T any](f func() T) int64 {
	var before, after runtime.MemStats
	for range 2 { // the first one empties pools
		runtime.GC()
	}
	runtime.ReadMemStats(&before)
	kept := f()
	for range 2 {
		runtime.GC()
	}
	runtime.ReadMemStats(&after)
	runtime.KeepAlive(kept)
	return int64(after.HeapAlloc) - int64(before.HeapAlloc)
}

// TestDeflatersAreSmall is not parallel: it looks at what the process holds.
func TestDeflatersAreSmall(t *testing.T) {
	src, dst := make([]byte, gzipUnit), make([]byte, 0, maxMember(gzipUnit))
	_, _ = rand.NewChaCha8([32]byte{}).Read(src)
	const n = 8
	got := held(func() (all [n]*deflater) {
		for i := range all {
			all[i] = newDeflater()
			all[i].member(dst, src)
		}
		return all
	})
	if got > n*deflaterBytes {
		t.Errorf("a deflater holds %d bytes, want at most %d", got/n, deflaterBytes)
	}
	runtime.KeepAlive(src)
	runtime.KeepAlive(dst)
}

// TestEncodersAreSmall fills the queues of encoders with bytes that nothing packs. It is not
// parallel: it looks at what the process holds.
func TestEncodersAreSmall(t *testing.T) {
	noise := make([]byte, 1<<20)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(noise)
	for _, form := range []Form{Gzip, VMDK, QCOW2} {
		for _, workers := range []int{1, 4, 16, 64} {
			got := held(func() Encoder {
				e, err := New(t.Context(), discard{}, Options{Form: form, Size: 2 << 40, Workers: workers})
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(e.Close)
				for range 2*MaxBytes/len(noise) + 1 {
					if _, err := e.Write(noise); err != nil {
						t.Fatal(err)
					}
				}
				if f, ok := e.(*file); !ok || f.crew != nil && len(f.crew.queue) != f.crew.limit {
					t.Errorf("the queue of %s is not full", form)
				}
				return e
			})
			t.Logf("%s, %d workers: %.1f MiB", form, workers, float64(got)/(1<<20))
			if got > MaxBytes {
				t.Errorf("%s: %d workers hold %d bytes, want at most %d", form, workers, got, MaxBytes)
			}
		}
	}
	runtime.KeepAlive(noise)
}

// discard is a Writer without a pool, which would count.
type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }
