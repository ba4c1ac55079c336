package encode_test

import (
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"vmimport/internal/diskimage/encode"
	"vmimport/internal/diskimage/imagetest"
)

const benchBytes = 128 * mib

// BenchmarkEncode encodes disks in pieces of a MiB, as they are fetched: one of a system
// that was in use for a while, one of random bytes, which nothing packs, and one of zeros.
func BenchmarkEncode(b *testing.B) {
	path := filepath.Join(b.TempDir(), "disk")
	imagetest.Disk(b, path, benchBytes)
	used, err := os.ReadFile(path)
	if err != nil {
		b.Fatal(err)
	}
	random := make([]byte, benchBytes)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(random)
	disks := []struct {
		name string
		data []byte
	}{{"used", used}, {"random", random}, {"zeros", make([]byte, benchBytes)}}
	for _, form := range allForms {
		for _, disk := range disks {
			for _, workers := range []int{1, 2} {
				b.Run(fmt.Sprintf("%s/%s/workers=%d", form, disk.name, workers), func(b *testing.B) {
					b.SetBytes(benchBytes)
					b.ReportAllocs()
					var file counter
					for b.Loop() {
						file = 0
						encodeOnce(b, &file, encode.Options{Form: form, Size: benchBytes, Workers: workers}, disk.data)
					}
					b.ReportMetric(100*float64(file)/benchBytes, "%")
				})
			}
		}
	}
}

func encodeOnce(b *testing.B, out io.Writer, opt encode.Options, disk []byte) {
	e, err := encode.New(b.Context(), out, opt)
	if err != nil {
		b.Fatal(err)
	}
	defer e.Close()
	for at := 0; at < len(disk); at += mib {
		if _, err := e.Write(disk[at:][:mib]); err != nil {
			b.Fatal(err)
		}
	}
	if _, err := e.Finish(); err != nil {
		b.Fatal(err)
	}
}

// counter counts what is written to it.
type counter int64

func (c *counter) Write(p []byte) (int, error) {
	*c += counter(len(p))
	return len(p), nil
}
