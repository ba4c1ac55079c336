package inflate

import (
	"bytes"
	stdflate "compress/flate"
	"hash/adler32"
	"io"
	"testing"

	"github.com/klauspost/compress/flate"
)

// BenchmarkInflate decodes units of each kind of content, beside the decoders of
// streams, which are reset and not made for each unit.
func BenchmarkInflate(b *testing.B) {
	var d Decoder
	own := func(dst, src []byte) error {
		_, err := d.Inflate(dst, src)
		return err
	}
	stream := func(r io.Reader) func(dst, src []byte) error {
		return func(dst, src []byte) error {
			if err := r.(stdflate.Resetter).Reset(bytes.NewReader(src), nil); err != nil {
				return err
			}
			_, err := io.ReadFull(r, dst)
			return err
		}
	}
	for _, c := range contents {
		var units [][]byte
		for seed := range uint64(16) {
			units = append(units, compress(b, c.make(unit, seed), stdflate.DefaultCompression))
		}
		for _, decoder := range []struct {
			name   string
			decode func(dst, src []byte) error
		}{
			{"own", own},
			{"klauspost", stream(flate.NewReader(nil))},
			{"std", stream(stdflate.NewReader(bytes.NewReader(nil)))},
		} {
			b.Run(c.name+"/"+decoder.name, func(b *testing.B) {
				dst := make([]byte, unit)
				b.SetBytes(int64(len(units) * unit))
				for b.Loop() {
					for _, src := range units {
						if err := decoder.decode(dst, src); err != nil {
							b.Fatal(err)
						}
					}
				}
			})
		}
	}
}

func BenchmarkChecksum(b *testing.B) {
	p := random(unit, 1)
	for name, sum := range map[string]func([]byte) uint32{"own": checksum, "std": adler32.Checksum} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(unit)
			for b.Loop() {
				sum(p)
			}
		})
	}
}
