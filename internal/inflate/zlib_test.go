package inflate

import (
	"bytes"
	"compress/zlib"
	"encoding/binary"
	"errors"
	"hash/adler32"
	"testing"
)

func compressZlib(tb testing.TB, data []byte) []byte {
	tb.Helper()
	var b bytes.Buffer
	write(tb, zlib.NewWriter(&b), data)
	return b.Bytes()
}

func TestZlib(t *testing.T) {
	t.Parallel()
	for _, n := range []int{0, 1, 5000, unit} {
		data := words(max(n, 5000), 1)[:n]
		src := compressZlib(t, data)
		got := make([]byte, n)
		var d Decoder
		used, err := d.Zlib(got, append(src[:len(src):len(src)], 1, 2, 3))
		if err != nil || used != len(src) || !bytes.Equal(got, data) {
			t.Fatalf("%d bytes: took %d of %d, error %v", n, used, len(src), err)
		}
	}
}

func TestZlibRefused(t *testing.T) {
	t.Parallel()
	data := words(500, 1)
	good := compressZlib(t, data)
	patch := func(at int, with ...byte) []byte {
		b := bytes.Clone(good)
		copy(b[at:], with)
		return b
	}
	header := func(cmf, flg byte) []byte {
		flg += 31 - byte(binary.BigEndian.Uint16([]byte{cmf, flg})%31)
		return patch(0, cmf, flg)
	}
	for _, tt := range []struct {
		name string
		src  []byte
		n    int
		err  error
	}{
		{"good", header(0x78, 0), 500, nil},
		{"small window", header(0x18, 0), 500, nil},
		{"other method", header(0x77, 0), 500, ErrCorrupt},
		{"large window", header(0x88, 0), 500, ErrCorrupt},
		{"dictionary", header(0x78, 0x20), 500, ErrCorrupt},
		{"wrong header checksum", patch(1, good[1]^1), 500, ErrCorrupt},
		{"wrong checksum", patch(len(good)-1, good[len(good)-1]^1), 500, ErrChecksum},
		{"invalid data", patch(2, 7), 500, ErrCorrupt},
		{"too small", good, 499, ErrLength},
		{"too large", good, 501, ErrLength},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var d Decoder
			if _, err := d.Zlib(make([]byte, tt.n), tt.src); !errors.Is(err, tt.err) {
				t.Errorf("got %v, want %v", err, tt.err)
			}
		})
	}
	var d Decoder
	for n := range good {
		if _, err := d.Zlib(make([]byte, 500), good[:n]); !errors.Is(err, ErrShort) {
			t.Errorf("%d of %d bytes: %v", n, len(good), err)
		}
	}
}

func TestChecksum(t *testing.T) {
	t.Parallel()
	for _, p := range [][]byte{random(4*unit+5, 1), bytes.Repeat([]byte{0xff}, 4*unit+5)} {
		for n := range 700 {
			if got, want := checksum(p[:n]), adler32.Checksum(p[:n]); got != want {
				t.Fatalf("%d bytes: got %08x, want %08x", n, got, want)
			}
		}
		if got, want := checksum(p), adler32.Checksum(p); got != want {
			t.Fatalf("%d bytes: got %08x, want %08x", len(p), got, want)
		}
	}
}
