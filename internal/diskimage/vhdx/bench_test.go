package vhdx

import (
	"path/filepath"
	"testing"

	"vmimport/internal/diskimage/imagetest"
)

// The largest disk there is, in the smallest blocks, without data: 512 MiB of table.
func BenchmarkLargestDisk(b *testing.B) {
	path := filepath.Join(b.TempDir(), "image.vhdx")
	imagetest.QemuImg(b, "create", "-q", "-f", "vhdx", "-o", "block_size=1M,block_state_zero=off", path, "64T")
	f := imagetest.Open(b, path)
	b.ReportAllocs()
	for b.Loop() {
		if err := verdict(f); err != nil {
			b.Fatal(err)
		}
	}
}
