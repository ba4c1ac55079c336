package inflate

import (
	"bytes"
	stdflate "compress/flate"
	"encoding/binary"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/klauspost/compress/flate"
)

// unit is the size of what is decoded: a cluster of qcow2, a grain of VMDK.
const unit = 64 << 10

func random(n int, seed uint64) []byte {
	p := make([]byte, n)
	r := rand.New(rand.NewPCG(seed, 1))
	for i := range p {
		p[i] = byte(r.Uint32())
	}
	return p
}

// words is like text: words of a language, the common ones much more often.
func words(n int, seed uint64) []byte {
	r := rand.New(rand.NewPCG(seed, 2))
	vocabulary := make([]string, 4000)
	for i := range vocabulary {
		w := make([]byte, 2+r.IntN(4)+r.IntN(5))
		for j := range w {
			w[j] = "eeeettaaooiinnsshhrrddlcumwfgypbvk"[r.IntN(34)]
		}
		vocabulary[i] = string(w)
	}
	common := rand.NewZipf(r, 1.1, 3, uint64(len(vocabulary)-1))
	var p []byte
	for len(p) < n {
		p = append(p, vocabulary[common.Uint64()]...)
		switch r.IntN(12) {
		case 0:
			p = append(p, ", "...)
		case 1:
			p = append(p, ".\n"...)
		default:
			p = append(p, ' ')
		}
	}
	return p[:n]
}

// program is like machine code: instructions of a few forms with small operands,
// and between them tables of ascending addresses.
func program(n int, seed uint64) []byte {
	r := rand.New(rand.NewPCG(seed, 3))
	forms := make([][]byte, 600)
	for i := range forms {
		forms[i] = random(1+r.IntN(4), seed+uint64(i))
	}
	common := rand.NewZipf(r, 1.2, 4, uint64(len(forms)-1))
	address := uint32(0x401000)
	var p []byte
	for len(p) < n {
		for range 50 + r.IntN(400) {
			p = append(p, forms[common.Uint64()]...)
			switch r.IntN(5) {
			case 0:
				p = append(p, byte(r.IntN(16)*8))
			case 1:
				p = binary.LittleEndian.AppendUint32(p, uint32(int32(r.NormFloat64()*5000)))
			}
		}
		for range r.IntN(60) {
			address += uint32(r.IntN(64) * 16)
			p = binary.LittleEndian.AppendUint64(p, uint64(address))
		}
	}
	return p[:n]
}

// repeats has only long matches, far and near.
func repeats(n int, seed uint64) []byte {
	r := rand.New(rand.NewPCG(seed, 4))
	p := random(4096, seed)
	for len(p) < n {
		from := r.IntN(len(p) - 300)
		p = append(p, p[from:from+100+r.IntN(200)]...)
		p = append(p, bytes.Repeat(p[len(p)-1-r.IntN(20):], r.IntN(20))...)
	}
	return p[:n]
}

// contents are the kinds of content that disks hold.
var contents = []struct {
	name string
	make func(n int, seed uint64) []byte
}{
	{"words", words},
	{"program", program},
	{"repeats", repeats},
	{"random", random},
	{"zeros", func(n int, _ uint64) []byte { return make([]byte, n) }},
}

// compressors make DEFLATE streams in all the ways that the encoders know.
var compressors = func() map[string]func(io.Writer) (io.WriteCloser, error) {
	m := make(map[string]func(io.Writer) (io.WriteCloser, error))
	for level := stdflate.HuffmanOnly; level <= stdflate.BestCompression; level++ {
		name := string(rune('a' + level - stdflate.HuffmanOnly))
		m["std"+name] = func(w io.Writer) (io.WriteCloser, error) { return stdflate.NewWriter(w, level) }
		m["klauspost"+name] = func(w io.Writer) (io.WriteCloser, error) { return flate.NewWriter(w, level) }
	}
	m["window"] = func(w io.Writer) (io.WriteCloser, error) { return flate.NewWriterWindow(w, 4096) }
	return m
}()

func compress(tb testing.TB, data []byte, level int) []byte {
	tb.Helper()
	var b bytes.Buffer
	w, err := stdflate.NewWriter(&b, level)
	if err != nil {
		tb.Fatal(err)
	}
	write(tb, w, data)
	return b.Bytes()
}

func write(tb testing.TB, w io.WriteCloser, data []byte) {
	tb.Helper()
	if _, err := w.Write(data); err != nil {
		tb.Fatal(err)
	}
	if err := w.Close(); err != nil {
		tb.Fatal(err)
	}
}
