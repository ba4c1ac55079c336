// Package storagetest proves object stores against the contract of package
// storage, and holds the stores that other tests run on.
package storagetest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"testing/iotest"

	"vmimport/internal/fault"
	"vmimport/storage"
)

// Subject is a store under test, with one object in it.
type Subject struct {
	Store    storage.Store
	Location storage.Location // of the object

	// Replace gives the object other bytes as the store's users do, and Remove
	// removes it. Both end the test if they fail.
	Replace func(content []byte)
	Remove  func()

	// Put stores an object anywhere, its container included. It fails if the
	// store cannot hold that name. Nil: only the absence of odd names is tested.
	Put func(loc storage.Location, content []byte) error

	// Overwrite changes the object in place, without a moment in which it is
	// another object. Nil for a store that has no such thing.
	Overwrite func(content []byte)

	// Stall makes the store fall silent within every body that is longer than
	// a few bytes. Nil for a store that cannot be made to.
	Stall func()

	// SharedProjects tells that all projects see the same containers.
	SharedProjects bool
}

// Run tests everything that package storage asks of a Store and its Objects.
// open returns a new store, or a new place in one, whose object holds content.
func Run(t *testing.T, open func(t *testing.T, content []byte) Subject) {
	s := suite{open}
	for _, test := range []struct {
		name string
		run  func(*testing.T)
	}{
		{"Ranges", s.ranges},
		{"Reader", s.reader},
		{"Empty", s.empty},
		{"Version", s.version},
		{"NoObject", s.noObject},
		{"ChangedBeforeRead", s.changedBeforeRead},
		{"ChangedWhileRead", s.changedWhileRead},
		{"SameBytesAgain", s.sameBytesAgain},
		{"Canceled", s.canceled},
		{"CanceledWhileSilent", s.canceledWhileSilent},
		{"ClosedEarly", s.closedEarly},
		{"Concurrent", s.concurrent},
		{"LiteralNames", s.literalNames},
		{"EscapingNames", s.escapingNames},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			test.run(t)
		})
	}
}

type suite struct {
	open func(*testing.T, []byte) Subject
}

func (s suite) ranges(t *testing.T) {
	for _, size := range []int{1, 2, 3, 4096, 100_003} {
		content := noise(size, 1)
		obj := mustOpen(t, s.open(t, content))
		if obj.Size() != int64(size) {
			t.Fatalf("Size() = %d, want %d", obj.Size(), size)
		}
		edges := []int{0, 1, 2, size / 2, size - 2, size - 1, size}
		for _, off := range edges {
			for _, n := range edges {
				if off < 0 || n <= 0 || off+n > size {
					continue
				}
				got, err := read(t.Context(), obj, int64(off), int64(n))
				if err != nil || !bytes.Equal(got, content[off:off+n]) {
					t.Errorf("size %d: range %d+%d: %d bytes, %v", size, off, n, len(got), err)
				}
				// Readers that know n never see io.EOF.
				body, err := obj.ReadRange(t.Context(), int64(off), int64(n))
				if err != nil {
					t.Fatal(err)
				}
				full := make([]byte, n)
				if _, err := io.ReadFull(body, full); err != nil || !bytes.Equal(full, content[off:off+n]) {
					t.Errorf("size %d: range %d+%d, read full: %v", size, off, n, err)
				}
				if err := body.Close(); err != nil {
					t.Errorf("close: %v", err)
				}
			}
		}
	}
}

// reader checks a body against all that io.Reader promises.
func (s suite) reader(t *testing.T) {
	content := noise(5000, 1)
	obj := mustOpen(t, s.open(t, content))
	body, err := obj.ReadRange(t.Context(), 7, 4000)
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	if err := iotest.TestReader(body, content[7:4007]); err != nil {
		t.Error(err)
	}
}

func (s suite) empty(t *testing.T) {
	if obj := mustOpen(t, s.open(t, nil)); obj.Size() != 0 {
		t.Errorf("Size() = %d, want 0", obj.Size())
	}
}

func (s suite) version(t *testing.T) {
	sub := s.open(t, noise(3000, 1))
	seen := make(map[string]int)
	for i := range 5 {
		one, two := mustOpen(t, sub), mustOpen(t, sub)
		v := one.Version()
		if v == "" || len(v) > 256 {
			t.Fatalf("Version() = %q, want 1 to 256 bytes", v)
		}
		if two.Version() != v || one.Version() != v {
			t.Fatalf("the version changed without the object: %q, %q", v, two.Version())
		}
		if j, ok := seen[v]; ok {
			t.Fatalf("contents %d and %d have one version, %q", j, i, v)
		}
		seen[v] = i
		sub.Replace(noise(3000, uint64(i)+2))
	}
}

func (s suite) noObject(t *testing.T) {
	sub := s.open(t, noise(10, 1))
	for what, change := range map[string]func(*storage.Location){
		"no such object":    func(l *storage.Location) { l.Name += ".other" },
		"below an object":   func(l *storage.Location) { l.Name += "/other" },
		"no such container": func(l *storage.Location) { l.Container += "-other" },
		"no API":            func(l *storage.Location) { l.API = "" },
		"no project":        func(l *storage.Location) { l.Project = "" },
		"foreign project":   func(l *storage.Location) { l.Project += "0" },
		"start of project":  func(l *storage.Location) { l.Project = l.Project[:len(l.Project)-1] },
	} {
		if sub.SharedProjects && strings.Contains(what, "project") {
			continue
		}
		loc := sub.Location
		change(&loc)
		wantNoObject(t, sub.Store, loc, what)
	}
	sub.Remove()
	wantNoObject(t, sub.Store, sub.Location, "removed")
}

func (s suite) changedBeforeRead(t *testing.T) {
	for what, change := range s.changes(1000) {
		t.Run(what, func(t *testing.T) {
			sub := s.open(t, noise(1000, 1))
			obj := mustOpen(t, sub)
			if !change(sub) {
				return
			}
			for range 2 {
				if got, err := read(t.Context(), obj, 10, 500); !errors.Is(err, storage.ErrChanged) {
					t.Fatalf("%d bytes, %v; want ErrChanged", len(got), err)
				}
			}
		})
	}
}

func (s suite) changedWhileRead(t *testing.T) {
	const size = 4 << 20 // more than a connection holds underway
	content := noise(size, 1)
	for what, change := range s.changes(size) {
		t.Run(what, func(t *testing.T) {
			sub := s.open(t, content)
			body, err := mustOpen(t, sub).ReadRange(t.Context(), 0, size)
			if err != nil {
				t.Fatal(err)
			}
			defer body.Close()
			head := make([]byte, 1000)
			if _, err := io.ReadFull(body, head); err != nil {
				t.Fatal(err)
			}
			if !change(sub) {
				return
			}
			rest := make([]byte, size-len(head))
			switch _, err := io.ReadFull(body, rest); {
			case errors.Is(err, storage.ErrChanged):
			case err != nil:
				t.Errorf("%v; want the old bytes or ErrChanged", err)
			case !bytes.Equal(append(head, rest...), content):
				t.Error("the body mixed two versions, or gave the new one")
			}
		})
	}
}

// changes are the ways in which an object of size bytes is another one
// afterwards. They return false where the store knows no such way.
func (s suite) changes(size int) map[string]func(Subject) bool {
	replace := func(n int) func(Subject) bool {
		return func(sub Subject) bool { sub.Replace(noise(n, 2)); return true }
	}
	overwrite := func(n int) func(Subject) bool {
		return func(sub Subject) bool {
			if sub.Overwrite == nil {
				return false
			}
			sub.Overwrite(noise(n, 3))
			return true
		}
	}
	return map[string]func(Subject) bool{
		"replaced by as many":    replace(size),
		"replaced by more":       replace(2 * size),
		"replaced by less":       replace(size / 2),
		"replaced by nothing":    replace(0),
		"overwritten by as many": overwrite(size),
		"overwritten by more":    overwrite(2 * size),
		"overwritten by less":    overwrite(size / 2),
		"removed":                func(sub Subject) bool { sub.Remove(); return true },
		"removed and put back": func(sub Subject) bool {
			sub.Remove()
			sub.Replace(noise(size, 4))
			return true
		},
	}
}

// sameBytesAgain: whether the same bytes stored anew are the same version is
// the store's own matter, but they are not an error of another kind.
func (s suite) sameBytesAgain(t *testing.T) {
	content := noise(1000, 1)
	sub := s.open(t, content)
	obj := mustOpen(t, sub)
	sub.Replace(content)
	switch got, err := read(t.Context(), obj, 1, 999); {
	case errors.Is(err, storage.ErrChanged):
	case err != nil || !bytes.Equal(got, content[1:]):
		t.Errorf("%d bytes, %v; want the bytes or ErrChanged", len(got), err)
	}
}

func (s suite) canceled(t *testing.T) {
	sub := s.open(t, noise(1<<20, 1))
	obj := mustOpen(t, sub)

	ctx, cancel := context.WithCancel(t.Context())
	body, err := obj.ReadRange(ctx, 0, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	if _, err := io.ReadFull(body, make([]byte, 100)); err != nil {
		t.Fatal(err)
	}
	cancel()
	for range 2 {
		if n, err := body.Read(make([]byte, 100)); n != 0 || !errors.Is(err, context.Canceled) {
			t.Errorf("read after cancel: %d, %v; want 0, canceled", n, err)
		}
	}
	if _, err := read(ctx, obj, 0, 100); !errors.Is(err, context.Canceled) {
		t.Errorf("range after cancel: %v; want canceled", err)
	}
	if _, err := sub.Store.Open(ctx, sub.Location); !errors.Is(err, context.Canceled) {
		t.Errorf("open after cancel: %v; want canceled", err)
	}
	if got, err := read(t.Context(), obj, 0, 100); err != nil {
		t.Errorf("the object is lost after a cancel: %d bytes, %v", len(got), err)
	}
}

func (s suite) canceledWhileSilent(t *testing.T) {
	const size = 1 << 20
	sub := s.open(t, noise(size, 1))
	if sub.Stall == nil {
		return
	}
	obj := mustOpen(t, sub)
	sub.Stall()
	gone := errors.New("the user left")
	ctx, cancel := context.WithCancelCause(t.Context())
	body, err := obj.ReadRange(ctx, 0, size)
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	started, ended := make(chan struct{}), make(chan error)
	go func() {
		_, err := io.ReadFull(body, make([]byte, 1))
		close(started)
		if err == nil {
			_, err = io.ReadFull(body, make([]byte, size-1))
		}
		ended <- err
	}()
	<-started
	cancel(gone)
	if err := <-ended; !errors.Is(err, gone) {
		t.Errorf("%v; want the cause of the cancel", err)
	}
}

// closedEarly: a body may be closed at any point, and costs nothing then.
func (s suite) closedEarly(t *testing.T) {
	content := noise(1<<20, 1)
	obj := mustOpen(t, s.open(t, content))
	for i := range 50 {
		body, err := obj.ReadRange(t.Context(), int64(i), 1<<19)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(body, make([]byte, i)); err != nil {
			t.Fatal(err)
		}
		if err := body.Close(); err != nil {
			t.Fatalf("close after %d bytes: %v", i, err)
		}
	}
	if got, err := read(t.Context(), obj, 5, 1000); err != nil || !bytes.Equal(got, content[5:1005]) {
		t.Errorf("afterwards: %d bytes, %v", len(got), err)
	}
}

func (s suite) concurrent(t *testing.T) {
	const size = 300_000
	content := noise(size, 1)
	obj := mustOpen(t, s.open(t, content))
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(i), 0))
			for range 8 {
				off := rng.Int64N(size)
				n := 1 + rng.Int64N(size-off)
				got, err := read(t.Context(), obj, off, n)
				if err != nil || !bytes.Equal(got, content[off:off+n]) {
					t.Errorf("range %d+%d: %d bytes, %v", off, n, len(got), err)
				}
				if obj.Size() != size || obj.Version() == "" {
					t.Error("size or version went away")
				}
			}
		})
	}
	wg.Wait()
}

// literalNames: what is a name for the store is read back under exactly that
// name, and what is not is no object.
func (s suite) literalNames(t *testing.T) {
	sub := s.open(t, noise(10, 1))
	names := []string{
		"plain.raw", "with space", " lead", "trail ", "a+b", "a%2Bb", "a%20b", "a b",
		"a?b", "a?versionId=null", "a#b", "a&b=c;d", "a%2Fb", "a%252Fb", "%2e%2e%2Fup", "%00", "%",
		"a:b", "~", "$HOME", "*", `a"b'c`, "<a>&amp;", "a|b", "{project}", `back\slash`, `..\up`,
		"...", "..a", ".hidden", "a/.hidden/b", "deep/er/est/file.raw", "-dash",
		"ü", "u\u0308", "日本語.raw", "\u202egnp.raw", "😀",
		strings.Repeat("n", 255), strings.Repeat("n", 256), strings.Repeat("ä", 500),
		strings.Repeat("d/", 100) + "f", strings.Repeat("d/", 511) + "ff", strings.Repeat("x/", 5000) + "f",
	}
	// All are stored before any is read, so that two names for one object show.
	held := make(map[string][]byte)
	for _, name := range names {
		loc := sub.Location
		loc.Name = name
		if content := []byte("content of " + name); sub.Put != nil && sub.Put(loc, content) == nil {
			held[name] = content
		}
	}
	for _, name := range names {
		loc := sub.Location
		loc.Name = name
		content, ok := held[name]
		if !ok {
			wantNoObject(t, sub.Store, loc, "not stored")
			continue
		}
		obj, err := sub.Store.Open(t.Context(), loc)
		if err != nil {
			t.Errorf("%.40q was stored, but: %v", name, err)
			continue
		}
		if got, err := read(t.Context(), obj, 0, obj.Size()); err != nil || !bytes.Equal(got, content) {
			t.Errorf("%.40q: read %.60q, %v", name, got, err)
		}
	}
	if sub.Put != nil && held["plain.raw"] == nil {
		t.Error("Put refuses a plain name")
	}
}

// escapingNames: no name leads out of its container, or to an object whose
// name it is not.
func (s suite) escapingNames(t *testing.T) {
	sub := s.open(t, noise(10, 1))
	in, out := sub.Location, sub.Location
	in.Name = "dir/decoy"
	out.Container += "-other"
	out.Name = "decoy"
	if sub.Put != nil {
		for _, loc := range []storage.Location{in, out} {
			if err := sub.Put(loc, []byte("decoy")); err != nil {
				t.Fatal(err)
			}
		}
	}
	c, other := in.Container, out.Container
	for _, name := range []string{
		"", ".", "..", "/", "../", "../..", "../../../../../../etc/passwd", "/etc/passwd", "//etc/passwd",
		"../" + other + "/decoy", "x/../../" + other + "/decoy", "dir/../../" + other + "/decoy", "/../" + other + "/decoy",
		"./dir/decoy", "dir/./decoy", "dir/../dir/decoy", "x/../dir/decoy", "dir/decoy/.", "dir/decoy/..", "dir",
		"dir/decoy\x00", "dir/decoy\x00.raw", "\x00", "dir/decoy\n", "dir/decoy\r\nX-Header: 1", "\x1b[2J", "\x7f", "\u0085", "\xff\xfe", "dir/decoy\xff",
	} {
		loc := in
		loc.Name = name
		wantNoObject(t, sub.Store, loc, "escaping")
	}
	for _, container := range []string{
		"", ".", "..", "/", c + "/", "/" + c, "./" + c, c + "/../" + other, c + "/dir", "../" + c, c + "\x00", c + "\n",
		c + "?x=", c + "#", c + "%2Fdir", c + "%2F..%2F" + other, c + `\..\` + other, c + ":80", c + "@" + other, strings.Repeat("c", 300),
	} {
		for _, name := range []string{"decoy", "dir/decoy"} {
			loc := in
			loc.Container, loc.Name = container, name
			wantNoObject(t, sub.Store, loc, "escaping")
		}
	}
	if sub.SharedProjects {
		return
	}
	for _, project := range []string{"", ".", "..", "/", "../", in.Project + "/", in.Project + "/../" + in.Project, in.Project + "\x00", "*", "{project}"} {
		loc := in
		loc.Project = project
		wantNoObject(t, sub.Store, loc, "escaping")
	}
}

func wantNoObject(t *testing.T, store storage.Store, loc storage.Location, why string) {
	t.Helper()
	_, err := store.Open(t.Context(), loc)
	if !errors.Is(err, storage.ErrNoObject) || fault.KindOf(err) != fault.NotFound {
		t.Errorf("%s: open %.80q: %v; want ErrNoObject", why, fmt.Sprint(loc), err)
	}
}

func mustOpen(t *testing.T, sub Subject) storage.Object {
	t.Helper()
	obj, err := sub.Store.Open(t.Context(), sub.Location)
	if err != nil {
		t.Fatalf("open %+v: %v", sub.Location, err)
	}
	return obj
}

// read reads one range to its end.
func read(ctx context.Context, obj storage.Object, off, n int64) ([]byte, error) {
	body, err := obj.ReadRange(ctx, off, n)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	return io.ReadAll(body)
}

// noise returns size bytes that do not repeat, different for each seed.
func noise(size int, seed uint64) []byte {
	b := make([]byte, size)
	_, _ = rand.NewChaCha8(sha256.Sum256(fmt.Append(nil, seed))).Read(b) // never fails
	return b
}
