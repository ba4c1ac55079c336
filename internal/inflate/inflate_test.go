package inflate

import (
	"bytes"
	stdflate "compress/flate"
	"errors"
	"io"
	"slices"
	"testing"
	"time"
)

// oracle decodes at most limit bytes with compress/flate, which reads no byte more
// than it needs.
func oracle(src []byte, limit int) (out []byte, used int, err error) {
	r := bytes.NewReader(src)
	out, err = io.ReadAll(io.LimitReader(stdflate.NewReader(r), int64(limit)))
	return out, len(src) - r.Len(), err
}

// check decodes src into want, with bytes behind both that may not matter.
func check(t *testing.T, d *Decoder, src, want []byte) {
	t.Helper()
	const guard = 0xa5
	room := bytes.Repeat([]byte{guard}, len(want)+300)
	got := room[:len(want)]
	for _, behind := range []int{0, 1, 300} {
		clear(got)
		used, err := d.Inflate(got, append(src[:len(src):len(src)], make([]byte, behind)...))
		if err != nil || used != len(src) || !bytes.Equal(got, want) {
			t.Fatalf("%d bytes behind: took %d of %d bytes, error %v, right %v",
				behind, used, len(src), err, bytes.Equal(got, want))
		}
	}
	for _, n := range []int{0, len(want) / 2, len(want) - 1, len(want) + 1} {
		if n < 0 || n == len(want) {
			continue
		}
		if _, err := d.Inflate(room[:n], src); !errors.Is(err, ErrLength) {
			t.Fatalf("%d bytes into %d: %v", len(want), n, err)
		}
	}
	if rest := room[len(want)+1:]; !bytes.Equal(rest, bytes.Repeat([]byte{guard}, len(rest))) {
		t.Fatal("wrote outside of dst")
	}
}

func TestCompressors(t *testing.T) {
	t.Parallel()
	for _, c := range contents {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			var d Decoder
			for name, compressor := range compressors {
				for _, n := range []int{0, 1, 5000, unit + 1} {
					data := c.make(max(n, 5000), uint64(n))[:n]
					var b bytes.Buffer
					w, err := compressor(&b)
					if err != nil {
						t.Fatal(err)
					}
					write(t, w, data)
					t.Logf("%s, %d bytes in %d", name, n, b.Len())
					check(t, &d, b.Bytes(), data)
				}
			}
		})
	}
}

// TestDistances copies matches of every distance and of all lengths, everywhere in
// dst.
func TestDistances(t *testing.T) {
	t.Parallel()
	var d Decoder
	for distance := 1; distance <= 40; distance++ {
		var data []byte
		for length := 3; length <= 300; length++ {
			data = append(data, random(distance, uint64(length))...)
			for range length {
				data = append(data, data[len(data)-distance])
			}
		}
		check(t, &d, compress(t, data, stdflate.BestCompression), data)
	}
}

// TestCuts cuts streams everywhere, and gives them every dst but the right one.
func TestCuts(t *testing.T) {
	t.Parallel()
	data := slices.Concat(words(300, 1), make([]byte, 600), random(20, 1), program(300, 1))
	for _, level := range []int{stdflate.HuffmanOnly, stdflate.NoCompression, 1, 9} {
		src := compress(t, data, level)
		var d Decoder
		check(t, &d, src, data)
		dst := make([]byte, len(data)+300)
		for n := range src {
			if _, err := d.Inflate(dst[:len(data)], src[:n]); !errors.Is(err, ErrShort) {
				t.Fatalf("level %d: %d of %d bytes: %v", level, n, len(src), err)
			}
		}
		for n := range dst {
			if n == len(data) {
				continue
			}
			if _, err := d.Inflate(dst[:n], src); !errors.Is(err, ErrLength) {
				t.Fatalf("level %d: %d bytes into %d: %v", level, len(data), n, err)
			}
		}
	}
}

func TestAllocations(t *testing.T) {
	var d Decoder
	data := words(unit, 1)
	src := compress(t, data, stdflate.DefaultCompression)
	dst := make([]byte, len(data))
	if n := testing.AllocsPerRun(10, func() {
		if _, err := d.Inflate(dst, src); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Fatalf("%v allocations", n)
	}
}

// TestHostileTime decodes streams that cost as much as they can for each byte: blocks
// that hold nothing, some after new tables. The time may only grow with the length.
func TestHostileTime(t *testing.T) {
	const (
		factor = 32
		slack  = 8
	)
	fixed := func(w *bitWriter) { w.bits(0, 1).bits(1, 2).word(0, 7) }
	// The shortest block with codes of its own, 90 bits: 256 zeros and twice a 1.
	dynamic := func(w *bitWriter) {
		w.bits(0, 1).bits(2, 2).bits(0, 5).bits(0, 5).bits(18-4, 4)
		for _, sym := range clenOrder[:18] {
			if sym == 18 || sym == 1 {
				w.bits(1, 3)
			} else {
				w.bits(0, 3)
			}
		}
		w.word(1, 1).bits(127, 7).word(1, 1).bits(107, 7).word(0, 1).word(0, 1).word(0, 1)
	}
	for _, tt := range []struct {
		name  string
		block func(w *bitWriter)
	}{
		{"stored", func(w *bitWriter) { w.bits(0, 3).align().bits(0, 16).bits(0xffff, 16) }},
		{"fixed", fixed},
		{"dynamic", dynamic},
		{"both", func(w *bitWriter) { fixed(w); dynamic(w) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var d Decoder
			decode := func(size int) time.Duration {
				w := &bitWriter{}
				for len(w.bytes) < size {
					tt.block(w)
				}
				src := w.bits(1, 1).bits(1, 2).word(0, 7).bytes
				best := time.Duration(1 << 62)
				for range 3 {
					start := time.Now()
					if used, err := d.Inflate(nil, src); err != nil || used != len(src) {
						t.Fatalf("took %d of %d bytes, error %v", used, len(src), err)
					}
					best = min(best, time.Since(start))
				}
				return best
			}
			small, large := decode(2<<10), decode(factor*2<<10)
			t.Logf("%v for 2 KiB, %v for %d KiB", small, large, factor*2)
			if large > slack*factor*small {
				t.Errorf("%v for 2 KiB, but %v for %d times as much", small, large, factor)
			}
		})
	}
}
