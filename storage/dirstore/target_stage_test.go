package dirstore_test

import (
	"bytes"
	"crypto/md5"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"vmimport/storage"
	"vmimport/storage/dirstore"
)

// object is the name that these tests write, in parts of partBytes.
const (
	object    = "disks/web.qcow2"
	partBytes = 100_000
)

var upload = storage.Upload{ID: "6f0b1c2d-1", Project: "p1", Container: "images"}

// partOf returns part n, full of one letter.
func partOf(n int, letter byte) (storage.Part, []byte) {
	content := bytes.Repeat([]byte{letter}, partBytes)
	sum := md5.Sum(content)
	return storage.Part{Number: n, Offset: int64(n) * partBytes, Size: partBytes, MD5: hex.EncodeToString(sum[:])}, content
}

// fileOf returns an object whose parts are full of these letters.
func fileOf(letters string) (parts []storage.Part, content []byte) {
	for n := range len(letters) {
		p, b := partOf(n, letters[n])
		parts, content = append(parts, p), append(content, b...)
	}
	return parts, content
}

func storeParts(t testing.TB, store storage.Target, letters string, numbers ...int) {
	t.Helper()
	for _, n := range numbers {
		p, content := partOf(n, letters[n])
		if err := store.PutPart(t.Context(), upload, object, p, bytes.NewReader(content)); err != nil {
			t.Fatal(err)
		}
	}
}

// stageOf returns the only staging in a container.
func stageOf(t testing.TB, container string) string {
	t.Helper()
	dirs := must(filepath.Glob(filepath.Join(container, ".vmimport-upload-*-"+upload.ID)))(t)
	if len(dirs) != 1 {
		t.Fatalf("staged are %q", dirs)
	}
	return dirs[0]
}

func wantObject(t testing.TB, container string, want []byte) os.FileInfo {
	t.Helper()
	file := filepath.Join(container, object)
	if got := must(os.ReadFile(file))(t); !bytes.Equal(got, want) {
		t.Errorf("the object has %d bytes %.10q, want %d bytes %.10q", len(got), got, len(want), want)
	}
	return must(os.Stat(file))(t)
}

// recordOf names the record of a part that is full of one letter.
func recordOf(stage string, n int, letter byte) string {
	p, _ := partOf(n, letter)
	return filepath.Join(stage, fmt.Sprintf("part-%04d-%s", n, p.MD5))
}

// The usual case: parts are written once, to where they stay.
func TestJoinCopiesNothing(t *testing.T) {
	t.Parallel()
	store, container := fixture(t)
	parts, content := fileOf("abc")
	storeParts(t, store, "abc", 2, 0, 1)
	staged := must(os.Stat(filepath.Join(stageOf(t, container), "data")))(t)
	join(t, store, parts)
	info := wantObject(t, container, content)
	if !os.SameFile(info, staged) {
		t.Error("the object is not the file that parts were written to")
	}
	if info.Mode() != 0o640 {
		t.Errorf("the object's mode is %v", info.Mode())
	}
}

// What is staged has no name that a customer could use or see.
func TestStagingIsHidden(t *testing.T) {
	t.Parallel()
	store, container := fixture(t)
	storeParts(t, store, "ab", 0, 1)
	if got := names(t, store); len(got) != 0 {
		t.Errorf("list = %q", got)
	}
	for _, file := range files(t, container) {
		if _, err := store.Open(t.Context(), at(file)); !errors.Is(err, storage.ErrNoObject) {
			t.Errorf("open %s: %v", file, err)
		}
		if err := put(t, store, file, "x"); !errors.Is(err, dirstore.ErrName) {
			t.Errorf("put %s: %v", file, err)
		}
	}
	if err := store.SweepPuts("p1", time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	parts, _ := fileOf("ab")
	if err := store.Join(t.Context(), upload, object, parts); err != nil {
		t.Errorf("a sweep of puts took parts: %v", err)
	}
}

func TestRefusedNamesAndUploads(t *testing.T) {
	t.Parallel()
	store, container := fixture(t)
	if err := put(t, store, "file", "x"); err != nil {
		t.Fatal(err)
	}
	if err := put(t, store, "dir/file", "x"); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]error{
		"": dirstore.ErrName, "../up": dirstore.ErrName, "a//b": dirstore.ErrName, "a\n": dirstore.ErrName,
		".vmimport-upload-X": dirstore.ErrName, strings.Repeat("n", 300): dirstore.ErrName,
		"dir": dirstore.ErrNameTaken, "file/below": dirstore.ErrNameTaken,
	} {
		if err := store.Vacant(t.Context(), upload, name); !errors.Is(err, want) {
			t.Errorf("vacant %.20q: %v; want %v", name, err, want)
		}
		if err := store.PutNew(t.Context(), upload, name, []byte("new")); !errors.Is(err, want) {
			t.Errorf("put new %.20q: %v; want %v", name, err, want)
		}
		if err := store.Discard(t.Context(), upload, name); err != nil {
			t.Errorf("discard %.20q: %v", name, err)
		}
	}
	for _, id := range []string{"", "a/b", "..", "a.b", strings.Repeat("i", 200)} {
		up := upload
		up.ID = id
		if err := store.PutNew(t.Context(), up, "new", nil); err == nil {
			t.Errorf("upload %.20q was taken", id)
		}
	}
	if got := files(t, container); !slices.Equal(got, []string{"dir", "dir/file", "file"}) {
		t.Errorf("there are now %q", got)
	}
}

// paused is a body that waits in its middle.
type paused struct {
	head, tail   io.Reader
	inside, goOn chan struct{}
}

func pausing(content []byte) *paused {
	half := len(content) / 2
	return &paused{
		head: bytes.NewReader(content[:half]), tail: bytes.NewReader(content[half:]),
		inside: make(chan struct{}), goOn: make(chan struct{}),
	}
}

func (p *paused) Read(b []byte) (int, error) {
	if n, err := p.head.Read(b); err == nil {
		return n, nil
	}
	select {
	case <-p.goOn:
	default:
		close(p.inside)
		<-p.goOn
	}
	return p.tail.Read(b)
}

// A worker that was stopped in the midst of a part goes on when its successor has joined the
// object, or has settled it. Neither the object nor the directory shows it.
func TestStoppedWriterGoesOn(t *testing.T) {
	t.Parallel()
	for _, settled := range []bool{false, true} {
		store, container := fixture(t)
		successor := must(dirstore.New(filepath.Dir(container)))(t)
		storeParts(t, store, "abc", 0)
		p, content := partOf(1, 'X')
		body, done := pausing(content), make(chan error)
		go func() { done <- store.PutPart(t.Context(), upload, object, p, body) }()
		<-body.inside

		parts, want := fileOf("abc")
		storeParts(t, successor, "abc", 1, 2)
		join(t, successor, parts)
		if settled {
			if err := successor.Settle(t.Context(), upload, object); err != nil {
				t.Fatal(err)
			}
		}
		close(body.goOn)
		if err := <-done; err != nil && !errors.Is(err, storage.ErrUnavailable) {
			t.Errorf("the late part: %v", err)
		}
		wantObject(t, container, want)
		if !settled {
			if err := successor.Join(t.Context(), upload, object, parts); err != nil {
				t.Error(err)
			}
			if err := successor.Discard(t.Context(), upload, object); err != nil {
				t.Error(err)
			}
		} else if err := os.Remove(filepath.Join(container, object)); err != nil {
			t.Error(err)
		}
		_ = os.Remove(filepath.Join(container, "disks"))
		if got := files(t, container); len(got) != 0 {
			t.Errorf("settled %v: there are still %q", settled, got)
		}
	}
}

// The same while the first writer has the range for itself: both parts are there, and none
// is a mixture.
func TestTwoWritersOfOnePart(t *testing.T) {
	t.Parallel()
	for _, joined := range []string{"a", "X"} {
		store, container := fixture(t)
		p, content := partOf(0, 'X')
		body, done := pausing(content), make(chan error)
		go func() { done <- store.PutPart(t.Context(), upload, object, p, body) }()
		<-body.inside
		storeParts(t, store, "a", 0)
		close(body.goOn)
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		parts, content := fileOf(joined)
		join(t, store, parts)
		wantObject(t, container, content)
	}
}

// Bytes that were cut off or damaged behind the store's back are noticed where they can be
// without reading all again.
func TestDamagedStaging(t *testing.T) {
	t.Parallel()
	for what, damage := range map[string]func(stage string) error{
		"data is cut off":  func(dir string) error { return os.Truncate(filepath.Join(dir, "data"), 2*partBytes-1) },
		"data is gone":     func(dir string) error { return os.Remove(filepath.Join(dir, "data")) },
		"a record is none": func(dir string) error { return os.WriteFile(recordOf(dir, 1, 'b'), []byte("{"), 0o640) },
		"a later part is other": func(dir string) error {
			later, err := filepath.Glob(filepath.Join(dir, "data-*"))
			return errors.Join(err, os.WriteFile(later[0], make([]byte, partBytes), 0o640))
		},
		"a later part is gone": func(dir string) error {
			later, err := filepath.Glob(filepath.Join(dir, "data-*"))
			return errors.Join(err, os.Remove(later[0]))
		},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			store, container := fixture(t)
			storeParts(t, store, "xb", 0, 1)
			storeParts(t, store, "ab", 0)
			if err := damage(stageOf(t, container)); err != nil {
				t.Fatal(err)
			}
			parts, content := fileOf("ab")
			if err := store.Join(t.Context(), upload, object, parts); !errors.Is(err, storage.ErrPart) {
				t.Fatalf("join: %v; want ErrPart", err)
			}
			storeParts(t, store, "ab", 0, 1)
			join(t, store, parts)
			wantObject(t, container, content)
		})
	}
}

// A Join that fails half way has written over parts that were not in its list, and they are
// not there for the next one.
func TestFailedJoinForgetsFurtherParts(t *testing.T) {
	t.Parallel()
	store, container := fixture(t)
	storeParts(t, store, "abcx", 0, 1, 2, 3)
	storeParts(t, store, "abcd", 3)
	large := bytes.Repeat([]byte{'B'}, 2*partBytes) // where b and c lie
	sum := md5.Sum(large)
	wide := storage.Part{Number: 1, Offset: partBytes, Size: 2 * partBytes, MD5: hex.EncodeToString(sum[:])}
	later := must(filepath.Glob(filepath.Join(stageOf(t, container), "data-*")))(t)
	if err := store.PutPart(t.Context(), upload, object, wide, bytes.NewReader(large)); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(later[0], make([]byte, partBytes), 0o640); err != nil {
		t.Fatal(err)
	}
	parts, content := fileOf("abcd")
	if err := store.Join(t.Context(), upload, object, []storage.Part{parts[0], wide, parts[3]}); !errors.Is(err, storage.ErrPart) {
		t.Fatalf("join with a damaged part: %v", err)
	}
	storeParts(t, store, "abcd", 1, 3)
	if err := store.Join(t.Context(), upload, object, parts); !errors.Is(err, storage.ErrPart) {
		t.Errorf("join with a part that was written over: %v", err)
	}
	storeParts(t, store, "abcd", 2)
	join(t, store, parts)
	wantObject(t, container, content)
}

// It leaves those that it could not write over.
func TestFailedJoinKeepsPartsElsewhere(t *testing.T) {
	t.Parallel()
	store, container := fixture(t)
	storeParts(t, store, "abc", 0, 1, 2)
	storeParts(t, store, "axy", 1)
	later := must(filepath.Glob(filepath.Join(stageOf(t, container), "data-*")))(t)
	if err := os.WriteFile(later[0], make([]byte, partBytes), 0o640); err != nil {
		t.Fatal(err)
	}
	storeParts(t, store, "axy", 2)
	mixed, _ := fileOf("axc")
	if err := store.Join(t.Context(), upload, object, mixed); !errors.Is(err, storage.ErrPart) {
		t.Fatalf("join with a damaged part: %v", err)
	}
	storeParts(t, store, "axy", 1)
	parts, content := fileOf("axy")
	join(t, store, parts)
	wantObject(t, container, content)
}

// An inode alone does not make an object the upload's: it may have been freed, and given to a
// customer's file of the same length.
func TestSameInodeIsNotEnough(t *testing.T) {
	t.Parallel()
	store, container := fixture(t)
	storeParts(t, store, "a", 0)
	parts, _ := fileOf("a")
	join(t, store, parts)
	_, others := fileOf("z")
	file, later := filepath.Join(container, object), time.Now().Add(time.Second)
	if err := errors.Join(os.WriteFile(file, others, 0o640), os.Chtimes(file, later, later)); err != nil {
		t.Fatal(err)
	}
	if err := store.Vacant(t.Context(), upload, object); !errors.Is(err, storage.ErrObjectExists) {
		t.Errorf("vacant: %v", err)
	}
	if err := store.Discard(t.Context(), upload, object); err != nil {
		t.Fatal(err)
	}
	wantObject(t, container, others)
}

// Customers put and delete objects of the very names that uploads join and discard.
func TestDiscardBesideCustomers(t *testing.T) {
	t.Parallel()
	store, container := fixture(t)
	other := must(dirstore.New(filepath.Dir(container)))(t)
	parts, _ := fileOf("ab")
	var wg sync.WaitGroup
	wg.Go(func() {
		for range 60 {
			storeParts(t, store, "ab", 0, 1)
			if err := store.Join(t.Context(), upload, object, parts); err != nil && !errors.Is(err, storage.ErrObjectExists) {
				t.Errorf("join: %v", err)
			}
			if err := store.Discard(t.Context(), upload, object); err != nil {
				t.Errorf("discard: %v", err)
			}
		}
	})
	wg.Go(func() {
		for i := range 120 {
			if err := put(t, other, object, "the customer's"); err != nil {
				t.Errorf("put: %v", err)
			}
			if i%2 == 1 {
				continue
			}
			if err := other.Delete(at(object)); err != nil && !errors.Is(err, storage.ErrNoObject) {
				t.Errorf("delete: %v", err)
			}
		}
	})
	wg.Wait()
	wantObject(t, container, []byte("the customer's"))
	if got := files(t, container); !slices.Equal(got, []string{"disks", object}) {
		t.Errorf("there are now %q", got)
	}
}
