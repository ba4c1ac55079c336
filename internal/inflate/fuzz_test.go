package inflate

import (
	"bytes"
	stdflate "compress/flate"
	"compress/zlib"
	"encoding/binary"
	"hash/adler32"
	"io"
	"testing"
)

// most bounds what a fuzzed stream may unpack to.
const most = 4 * unit

// seeds returns small streams of all kinds.
func seeds(tb testing.TB) (all [][]byte) {
	for _, c := range contents {
		data := c.make(5000, 1)[:1500]
		for _, level := range []int{stdflate.HuffmanOnly, stdflate.NoCompression, 1, 6, 9} {
			all = append(all, compress(tb, data, level))
		}
	}
	all = append(all,
		new(bitWriter).bits(1, 1).dynamic(long, lens{0: 0}).word(0, 1).word(1<<15-1, 15).bytes,
		new(bitWriter).bits(1, 1).dynamic(short, lens{0: 1, 20: 1}).word(0, 1).word(3, 2).word(0, 1).word(2, 2).bytes)
	return all
}

// FuzzInflate compares with compress/flate: the same streams are accepted, and give
// the same bytes. The data is taken as a stream, compressed, and compressed with one
// byte changed.
func FuzzInflate(f *testing.F) {
	for _, src := range seeds(f) {
		f.Add(src, uint8(6), uint16(0), uint8(0))
		f.Add(src, uint8(1), uint16(len(src)/2), uint8(1))
	}
	var d Decoder
	var b bytes.Buffer
	var writers []*stdflate.Writer
	for level := stdflate.HuffmanOnly; level <= stdflate.BestCompression; level++ {
		w, err := stdflate.NewWriter(&b, level)
		if err != nil {
			f.Fatal(err)
		}
		writers = append(writers, w)
	}
	f.Fuzz(func(t *testing.T, data []byte, level uint8, at uint16, flip uint8) {
		compare(t, &d, data)
		b.Reset()
		w := writers[int(level)%len(writers)]
		w.Reset(&b)
		write(t, w, data)
		src := b.Bytes()
		src[int(at)%len(src)] ^= flip
		compare(t, &d, src)
	})
}

func compare(t *testing.T, d *Decoder, src []byte) {
	t.Helper()
	want, used, err := oracle(src, most)
	if len(want) == most {
		return
	}
	if err == nil {
		check(t, d, src[:used], want)
		return
	}
	dst := make([]byte, len(want)+1000)
	for _, n := range []int{0, 1, len(want), len(want) + 1, len(dst)} {
		if _, ours := d.Inflate(dst[:n], src); ours == nil {
			t.Fatalf("accepted into %d bytes, but compress/flate: %v after %d", n, err, len(want))
		}
	}
}

// FuzzZlib compares with compress/zlib: the data as it is, then with the right
// checksum behind it.
func FuzzZlib(f *testing.F) {
	for _, c := range contents {
		f.Add(compressZlib(f, c.make(5000, 1)[:1500]))
	}
	var d Decoder
	f.Fuzz(func(t *testing.T, src []byte) {
		compareZlib(t, &d, src)
		if len(src) < 2 {
			return
		}
		if out, used, err := oracle(src[2:], most); err == nil && len(out) < most {
			src = binary.BigEndian.AppendUint32(src[:2+used:2+used], adler32.Checksum(out))
			compareZlib(t, &d, src)
		}
	})
}

func compareZlib(t *testing.T, d *Decoder, src []byte) {
	t.Helper()
	rest := bytes.NewReader(src)
	var want []byte
	r, err := zlib.NewReader(rest)
	if err == nil {
		want, err = io.ReadAll(io.LimitReader(r, most))
	}
	if len(want) == most {
		return
	}
	got := make([]byte, len(want))
	used, ours := d.Zlib(got, src)
	if (err == nil) != (ours == nil) {
		t.Fatalf("got %v, but compress/zlib: %v", ours, err)
	}
	if err == nil && (used != len(src)-rest.Len() || !bytes.Equal(got, want)) {
		t.Fatalf("took %d of %d bytes, right %v", used, len(src)-rest.Len(), bytes.Equal(got, want))
	}
}
