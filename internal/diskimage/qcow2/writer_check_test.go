package qcow2_test

import (
	"encoding/json"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"vmimport/internal/diskimage/imagetest"
	"vmimport/internal/diskimage/qcow2"
)

// writerPiece is a part of a disk, written at once.
type writerPiece struct{ from, to int64 }

// writerCut cuts a disk into pieces of n bytes.
func writerCut(size, n int64) []writerPiece {
	var pieces []writerPiece
	for at := int64(0); at < size; at += n {
		pieces = append(pieces, writerPiece{at, min(at+n, size)})
	}
	return pieces
}

// writerShatter cuts a disk into pieces of odd sizes, and shuffles them.
func writerShatter(rng *rand.Rand, size int64) []writerPiece {
	var pieces []writerPiece
	for at := int64(0); at < size; {
		n := 1 + rng.Int64N(1<<(1+rng.IntN(19)))
		pieces = append(pieces, writerPiece{at, min(at+n, size)})
		at += n
	}
	rng.Shuffle(len(pieces), func(i, j int) { pieces[i], pieces[j] = pieces[j], pieces[i] })
	return pieces
}

// writerRun writes an image of guest, piece by piece, and returns its length.
func writerRun(t testing.TB, out io.WriterAt, maxSize int64, guest []byte, pieces []writerPiece) int64 {
	t.Helper()
	w, err := qcow2.NewWriter(out, maxSize)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range pieces {
		if n, err := w.WriteAt(guest[p.from:p.to], p.from); err != nil || int64(n) != p.to-p.from {
			t.Fatalf("write %d bytes at %d: %d, %v", p.to-p.from, p.from, n, err)
		}
	}
	n, err := w.Finish(int64(len(guest)))
	if err != nil {
		t.Fatal(err)
	}
	if most := qcow2.MaxFileBytes(maxSize); n > most {
		t.Fatalf("image has %d bytes, at most %d were promised", n, most)
	}
	return n
}

// writerFile makes a file for an image.
func writerFile(t testing.TB) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "image.qcow2"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// writerCheck has qemu-img check the image of n bytes in f: neither errors nor
// leaks, and no cluster behind the last that is used. It returns how many clusters
// of the disk are allocated.
func writerCheck(t testing.TB, f *os.File, n int64) (allocated int64) {
	t.Helper()
	if err := f.Truncate(n); err != nil {
		t.Fatal(err)
	}
	end, allocated := writerCheckPath(t, f.Name())
	if end != n {
		t.Fatalf("image ends at %d, its file has %d bytes", end, n)
	}
	return allocated
}

func writerCheckPath(t testing.TB, path string) (end, allocated int64) {
	t.Helper()
	var report struct {
		Errors    int64 `json:"check-errors"`
		Corrupt   int64 `json:"corruptions"`
		Leaks     int64 `json:"leaks"`
		End       int64 `json:"image-end-offset"`
		Allocated int64 `json:"allocated-clusters"`
	}
	out := imagetest.QemuImg(t, "check", "-f", "qcow2", "--output=json", path)
	if err := json.Unmarshal(out, &report); err != nil {
		t.Fatal(err)
	}
	if report.Errors != 0 || report.Corrupt != 0 || report.Leaks != 0 {
		t.Fatalf("qemu-img check: %s", out)
	}
	return report.End, report.Allocated
}

// writerSame has qemu-img compare an image with the raw file of a disk.
func writerSame(t testing.TB, path, raw string) {
	t.Helper()
	imagetest.QemuImg(t, "compare", "-f", "raw", "-F", "qcow2", raw, path)
	var info struct {
		Size int64 `json:"virtual-size"`
	}
	if err := json.Unmarshal(imagetest.QemuImg(t, "info", "-f", "qcow2", "--output=json", path), &info); err != nil {
		t.Fatal(err)
	}
	fi, err := os.Stat(raw)
	if err != nil {
		t.Fatal(err)
	}
	if info.Size != fi.Size() { // to compare, sizes differ if there is data in what is missing
		t.Errorf("disk of %d bytes, want %d", info.Size, fi.Size())
	}
}

func writerAt(t testing.TB, w io.WriterAt, p []byte, off int64) {
	t.Helper()
	if _, err := w.WriteAt(p, off); err != nil {
		t.Fatal(err)
	}
}
