package imagetest

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Runs of one kind on a Disk, in bytes.
const (
	blockBytes  = 4 << 10 // what their lengths are multiples of
	shortestRun = 128 << 10
	longestRun  = 4 << 20
)

// Disk makes a large guest for benchmarks at path: a raw file of size bytes, which are
// some MiB at least. 30 % of it are contents of files, 30 % random bytes, which nothing
// packs, and the rest holes. They alternate as on a disk that was in use for a while.
// The files are those of the Go installation, sources and programs, one behind the
// other and again from the first. The same size makes the same disk, as long as the
// installation is the same.
func Disk(t testing.TB, path string, size int64) {
	t.Helper()
	files := &endless{paths: installation(t)}
	defer files.close()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	share := size * 3 / 10 &^ (blockBytes - 1)
	kinds := []struct {
		from io.Reader // nil for holes
		left int64
	}{{files, share}, {rand.NewChaCha8([32]byte{1}), share}, {nil, size - 2*share}}
	rng := rand.New(rand.NewPCG(3, 4))
	buf := make([]byte, longestRun)
	for off := int64(0); off < size; {
		kind := 0
		for at := rng.Int64N(size - off); at >= kinds[kind].left; kind++ {
			at -= kinds[kind].left
		}
		k := &kinds[kind]
		n := min((shortestRun+rng.Int64N(longestRun-shortestRun))&^(blockBytes-1), k.left)
		if k.from != nil {
			_, err := io.ReadFull(k.from, buf[:n])
			if err == nil {
				_, err = f.WriteAt(buf[:n], off)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		off, k.left = off+n, k.left-n
	}
	// Without it chance would decide what the disk is taken for.
	if _, err := f.WriteAt(BootSector(2048, uint32(size/512-2048)), 0); err != nil {
		t.Fatal(err)
	}
}

// installation returns the files of the Go installation.
func installation(t testing.TB) (paths []string) {
	t.Helper()
	root := strings.TrimSpace(string(run(t, "go", "env", "GOROOT")))
	for _, dir := range []string{"src", "bin", "pkg/tool"} {
		err := filepath.WalkDir(filepath.Join(root, dir), func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() {
				paths = append(paths, path)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return paths
}

// endless reads files one behind the other, and then from the first again.
type endless struct {
	paths []string // at least one of them has bytes
	next  int
	file  *os.File // nil between two of them
}

func (e *endless) Read(p []byte) (n int, err error) {
	for n == 0 {
		if e.file == nil {
			if e.file, err = os.Open(e.paths[e.next]); err != nil {
				return 0, err
			}
			e.next = (e.next + 1) % len(e.paths)
		}
		n, err = e.file.Read(p)
		switch {
		case errors.Is(err, io.EOF):
			e.close()
		case err != nil:
			return n, err
		}
	}
	return n, nil
}

func (e *endless) close() {
	if e.file != nil {
		e.file.Close()
		e.file = nil
	}
}

// SameFile fails unless the file at got has the bytes of that at want. It holds
// little of them in memory.
func SameFile(t testing.TB, got, want string) {
	t.Helper()
	var pieces [2][]byte
	var files [2]*os.File
	for i, path := range []string{got, want} {
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		files[i], pieces[i] = f, make([]byte, 1<<20)
	}
	for off := 0; ; off += len(pieces[0]) {
		var n [2]int
		for i, f := range files {
			var err error
			n[i], err = io.ReadFull(f, pieces[i])
			if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Fatal(err)
			}
		}
		a, b := pieces[0][:n[0]], pieces[1][:n[1]]
		switch {
		case !bytes.Equal(a, b):
			t.Fatalf("%s differs from %s at byte %d", got, want, off+differ(a, b))
		case len(a) < len(pieces[0]):
			return
		}
	}
}
