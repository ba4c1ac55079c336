package qcow2

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"

	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/zstd"

	"vmimport/internal/diskimage"
	"vmimport/internal/diskimage/imagetest"
)

// clusterOf returns a cluster that packs a little.
func clusterOf(seed uint64, n int) []byte {
	rng := rand.New(rand.NewPCG(seed, 0))
	b := make([]byte, n)
	for i := range b {
		b[i] = "abcdefgh"[rng.IntN(8)]
	}
	return b
}

func deflated(t testing.TB, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := flate.NewWriter(&out, 6)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// frame packs b as one frame that says how long b is.
func frame(t testing.TB, b []byte, options ...zstd.EOption) []byte {
	t.Helper()
	e, err := zstd.NewWriter(nil, append(options, zstd.WithEncoderConcurrency(1))...)
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	return e.EncodeAll(b, nil)
}

// stream packs b as one frame that does not.
func stream(t testing.TB, b []byte, options ...zstd.EOption) []byte {
	t.Helper()
	var out bytes.Buffer
	e, err := zstd.NewWriter(&out, append(options, zstd.WithEncoderConcurrency(1))...)
	if err != nil {
		t.Fatal(err)
	}
	for part := range slices.Chunk(b, max(1, len(b)/3)) {
		if _, err := e.Write(part); err != nil {
			t.Fatal(err)
		}
		if err := e.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestUnpack(t *testing.T) {
	t.Parallel()
	for _, size := range []int{512, 64 << 10, 2 << 20} {
		b, other := clusterOf(1, size), clusterOf(2, size)
		twice := append(bytes.Clone(b), b...)
		for name, c := range map[string]struct {
			zstd bool
			src  []byte
			good bool
		}{
			"deflate":                  {false, deflated(t, b), true},
			"deflate and another one":  {false, append(deflated(t, b), deflated(t, other)...), true},
			"deflate of zeros":         {false, deflated(t, make([]byte, size)), false}, // good, but not b
			"deflate is short":         {false, deflated(t, b[:size-1]), false},
			"deflate is long":          {false, deflated(t, append(bytes.Clone(b), 0)), false},
			"deflate is cut":           {false, deflated(t, b)[:size/8], false},
			"zstd":                     {true, frame(t, b), true},
			"zstd and another one":     {true, append(frame(t, b), frame(t, other)...), true},
			"zstd and zeros":           {true, append(frame(t, b), 0, 0, 0, 0, 0), true},
			"zstd and noise":           {true, append(frame(t, b), 0x28, 0xb5, 0x2f, 0xfd, 0xff), true},
			"zstd with a checksum":     {true, frame(t, b, zstd.WithEncoderCRC(true)), true},
			"zstd without a checksum":  {true, frame(t, b, zstd.WithEncoderCRC(false)), true},
			"zstd without its length":  {true, stream(t, b, zstd.WithWindowSize(8<<20)), true},
			"zstd stream and another":  {true, append(stream(t, b), stream(t, other)...), true},
			"zstd is short":            {true, frame(t, b[:size-1]), false},
			"zstd stream is short":     {true, stream(t, b[:size-1]), false},
			"zstd is long":             {true, frame(t, twice), false},
			"zstd stream is long":      {true, stream(t, twice), false},
			"zstd of many zeros":       {true, stream(t, make([]byte, 64*size)), false},
			"zstd with a large window": {true, stream(t, b, zstd.WithWindowSize(16<<20)), false},
			"zstd in halves":           {true, append(frame(t, b[:size/2]), frame(t, b[size/2:])...), false},
			"zstd to be skipped":       {true, append([]byte("\x50\x2a\x4d\x18\x01\x00\x00\x00x"), frame(t, b)...), false},
			"nothing":                  {true, nil, false},
			"nothing of deflate":       {false, nil, false},
		} {
			m := &clusterMap{header: header{zstd: c.zstd, cluster: int64(size)}}
			dst := make([]byte, size, size+100)
			err := m.Unpack(dst, c.src)
			if good := err == nil && bytes.Equal(dst, b); good != c.good {
				t.Errorf("%s of %d bytes: good is %v (%v)", name, size, good, err)
			}
			if err != nil && !errors.Is(err, diskimage.ErrCorrupt) {
				t.Errorf("%s of %d bytes: %v", name, size, err)
			}
			if spare := dst[size:cap(dst)]; !bytes.Equal(spare, make([]byte, 100)) {
				t.Errorf("%s of %d bytes wrote behind the cluster", name, size)
			}
		}
	}
}

// TestUnpackTruncated cuts packed clusters everywhere.
func TestUnpackTruncated(t *testing.T) {
	t.Parallel()
	b := clusterOf(1, 2048)
	for name, packed := range map[string][]byte{"deflate": deflated(t, b), "zstd": frame(t, b), "stream": stream(t, b)} {
		m := &clusterMap{header: header{zstd: name != "deflate"}}
		for n := range len(packed) {
			if err := m.Unpack(make([]byte, len(b)), packed[:n]); !errors.Is(err, diskimage.ErrCorrupt) {
				t.Errorf("%d of %d bytes of %s: %v", n, len(packed), name, err)
			}
		}
	}
}

// TestUnpackBounds checks that no more memory is used than a cluster, whatever a
// frame claims. It has the process for itself.
func TestUnpackBounds(t *testing.T) {
	const size = 64 << 10
	b := clusterOf(1, size)
	giant := append([]byte("\x28\xb5\x2f\xfd\xe0\x00\x00\x00\x00\x00\x00\x10\x00"), make([]byte, 100)...) // a segment of 2^52 bytes
	window := append([]byte("\x28\xb5\x2f\xfd\x00\xff"), make([]byte, 100)...)
	bomb := stream(t, make([]byte, 64<<20))
	m := &clusterMap{header: header{zstd: true}}
	dst := make([]byte, size)
	if err := m.Unpack(dst, frame(t, b)); err != nil {
		t.Fatal(err)
	}
	for name, src := range map[string][]byte{"giant": giant, "window": window, "bomb": bomb} {
		imagetest.Bounded(t, 1<<20, func() {
			if err := m.Unpack(dst, src); !errors.Is(err, diskimage.ErrCorrupt) {
				t.Errorf("%s: %v", name, err)
			}
		})
	}
}

// TestDecoderHasNoGoroutines checks that a decoder can be dropped: the bubble would
// not end before its goroutines.
func TestDecoderHasNoGoroutines(t *testing.T) {
	t.Parallel()
	b := clusterOf(1, 300<<10)
	src := stream(t, b)
	synctest.Test(t, func(t *testing.T) {
		d := newZstdDecoder()
		for range 3 {
			if out, err := d.DecodeAll(src, make([]byte, 0, len(b))); err != nil || !bytes.Equal(out, b) {
				t.Fatalf("%d bytes: %v", len(out), err)
			}
			if _, err := d.DecodeAll(src, make([]byte, 0, 100)); err == nil {
				t.Fatal("decoded over the capacity")
			}
		}
	})
}

func BenchmarkUnpack(b *testing.B) {
	cluster := clusterOf(1, 64<<10)
	for name, src := range map[string][]byte{"zlib": deflated(b, cluster), "zstd": frame(b, cluster)} {
		b.Run(name, func(b *testing.B) {
			m := &clusterMap{header: header{zstd: name == "zstd"}}
			dst := make([]byte, len(cluster))
			b.SetBytes(int64(len(dst)))
			b.ReportAllocs()
			for b.Loop() {
				if err := m.Unpack(dst, src); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
