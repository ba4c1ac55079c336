package scratch

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"vmimport/internal/fault"
)

func open(t *testing.T) (*Dir, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "a", "scratch")
	d, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	return d, path
}

func TestFile(t *testing.T) {
	t.Parallel()
	d, path := open(t)
	f, err := d.Reserve(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	block := bytes.Repeat([]byte("data"), 1<<10)
	for _, off := range []int64{1 << 30, 8192} {
		if _, err := f.WriteAt(block, off); err != nil {
			t.Fatal(err)
		}
	}
	got := make([]byte, 3*4096)
	if _, err := f.ReadAt(got, 4096); err != nil || !bytes.Equal(got, slicesOf(make([]byte, 4096), block, make([]byte, 4096))) {
		t.Errorf("ReadAt: %v", err)
	}
	if n, err := f.ReadAt(got, 1<<30+4000); n != 96 || err != io.EOF {
		t.Errorf("ReadAt the end: %d, %v", n, err)
	}
	var runs []int64
	for off := int64(0); ; {
		from, to, ok, err := f.Data(off)
		if err != nil {
			t.Fatal(err)
		}
		if !ok {
			break
		}
		runs, off = append(runs, from, to), to
	}
	// A file system may tell more than was written, but not everything.
	if len(runs) < 2 || runs[0] > 8192 || runs[len(runs)-1] != 1<<30+4096 || runs[1] > 1<<29 {
		t.Errorf("runs of data: %v", runs)
	}
	if left, err := os.ReadDir(path); err != nil || len(left) > 0 {
		t.Errorf("the file has a name: %v, %v", left, err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
}

func slicesOf(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

// What one import was promised is not promised to another, and what has been used is
// not counted twice.
func TestReserve(t *testing.T) {
	t.Parallel()
	d, _ := open(t)
	const disk = 100 << 20
	used := int64(0)
	d.available = func(string) (int64, error) { return disk - used, nil }
	first, err := d.Reserve(60 << 20)
	if err != nil {
		t.Fatal(err)
	}
	_, err = d.Reserve(41 << 20)
	if !errors.Is(err, ErrFull) || fault.KindOf(err) != fault.Unavailable {
		t.Fatalf("Reserve of 41 MiB, after 60 of 100: %v", err)
	}
	if _, err := first.WriteAt(bytes.Repeat([]byte("x"), 8<<20), 1<<40); err != nil {
		t.Fatal(err)
	}
	if err := first.file.Sync(); err != nil {
		t.Fatal(err)
	}
	used = 8 << 20
	second, err := d.Reserve(39 << 20)
	if err != nil {
		t.Fatalf("Reserve of 39 MiB, after 60 of 100: %v", err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	used = 0
	third, err := d.Reserve(60 << 20)
	if err != nil {
		t.Fatalf("Reserve when the space was given back: %v", err)
	}
	if err := errors.Join(second.Close(), third.Close()); err != nil {
		t.Fatal(err)
	}
	if len(d.files) > 0 {
		t.Error("a reservation is left")
	}
}

func TestCheck(t *testing.T) {
	t.Parallel()
	_, path := open(t)
	missing := filepath.Join(path, "not", "there")
	if free, err := Check(missing); err != nil || free == "" {
		t.Errorf("Check: %q, %v", free, err)
	}
	if _, err := os.Stat(missing); !os.IsNotExist(err) {
		t.Errorf("Check made the directory: %v", err)
	}
	file := filepath.Join(path, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Check(filepath.Join(file, "in")); err == nil {
		t.Error("Check below a file succeeds")
	}
	if _, err := Open(file); err == nil {
		t.Error("Open of a file succeeds")
	}
}
