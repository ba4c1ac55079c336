package dirstore_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/iotest"
	"time"

	"go.uber.org/goleak"

	"vmimport/internal/fault"
	"vmimport/storage"
	"vmimport/storage/dirstore"
	"vmimport/storage/storagetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestConformance(t *testing.T) {
	t.Parallel()
	for name, layout := range map[string]string{
		"shared":      "objects",
		"per project": "AUTH_{project}/objects",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			storagetest.Run(t, func(t *testing.T, content []byte) storagetest.Subject {
				return subject(t, layout, content)
			})
		})
	}
}

func subject(t *testing.T, layout string, content []byte) storagetest.Subject {
	root := filepath.Join(t.TempDir(), layout)
	store := must(dirstore.New(root))(t)
	loc := at("disks/web.raw")
	put := func(loc storage.Location, content []byte) error {
		if err := store.MakeContainer(loc.Project, loc.Container); err != nil {
			return err
		}
		_, err := store.Put(t.Context(), loc, bytes.NewReader(content), storage.Announced{Size: int64(len(content))})
		return err
	}
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	check(put(loc, content))
	return storagetest.Subject{
		Store:    store,
		Location: loc,
		Replace:  func(content []byte) { t.Helper(); check(put(loc, content)) },
		Remove:   func() { t.Helper(); check(store.Delete(loc)) },
		Put:      put,
		Overwrite: func(content []byte) {
			t.Helper()
			file := filepath.Join(strings.Replace(root, "{project}", loc.Project, 1), loc.Container, loc.Name)
			check(os.WriteFile(file, content, 0))
		},
		SharedProjects: !strings.Contains(layout, "{project}"),
	}
}

// at is a location in the container that fixture makes.
func at(name string) storage.Location {
	return storage.Location{API: "swift", Project: "p1", Container: "images", Name: name}
}

// fixture is a store that all projects share, and its only container's path.
func fixture(t testing.TB) (store *dirstore.Store, container string) {
	t.Helper()
	root := t.TempDir()
	store = must(dirstore.New(root))(t)
	if err := store.MakeContainer("p1", "images"); err != nil {
		t.Fatal(err)
	}
	return store, filepath.Join(root, "images")
}

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	for _, root := range []string{"", "/srv/{region}/{project}", "/srv/{project}/{project}"} {
		if _, err := dirstore.New(root); err == nil {
			t.Errorf("New(%q) succeeded", root)
		}
	}
}

func TestOnlyRegularFilesAreObjects(t *testing.T) {
	t.Parallel()
	store, container := fixture(t)
	outside := t.TempDir()
	write(t, filepath.Join(outside, "secret"))
	write(t, filepath.Join(container, "file"))
	write(t, filepath.Join(container, ".vmimport-upload-X"))
	for _, err := range []error{
		os.Symlink("file", filepath.Join(container, "link")),
		os.Symlink("nowhere", filepath.Join(container, "dangling")),
		os.Symlink("loop", filepath.Join(container, "loop")),
		os.Symlink(filepath.Join(outside, "secret"), filepath.Join(container, "absolute")),
		os.Symlink("../../"+filepath.Base(outside)+"/secret", filepath.Join(container, "relative")),
		os.Symlink(outside, filepath.Join(container, "dirlink")),
		os.Symlink(outside, filepath.Join(container, "..", "linked")),
		os.Mkdir(filepath.Join(container, "dir"), 0o755),
		syscall.Mkfifo(filepath.Join(container, "pipe"), 0o644),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if _, err := store.Open(t.Context(), at("file")); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"link", "dangling", "loop", "absolute", "relative", "dirlink/secret", "dir", "pipe", ".vmimport-upload-X"} {
		if _, err := store.Open(t.Context(), at(name)); !errors.Is(err, storage.ErrNoObject) {
			t.Errorf("open %s: %v; want ErrNoObject", name, err)
		}
		if err := store.Delete(at(name)); !errors.Is(err, storage.ErrNoObject) {
			t.Errorf("delete %s: %v; want ErrNoObject", name, err)
		}
	}
	for _, name := range []string{"link", "absolute", "dirlink/new", "dir", "pipe", "pipe/new"} {
		if err := put(t, store, name, "x"); !errors.Is(err, dirstore.ErrNameTaken) {
			t.Errorf("put %s: %v; want ErrNameTaken", name, err)
		}
	}
	linked := at("secret")
	linked.Container = "linked"
	if _, err := store.Open(t.Context(), linked); !errors.Is(err, storage.ErrNoObject) {
		t.Errorf("linked container: %v; want ErrNoObject", err)
	}
	if err := put(t, store, ".vmimport-upload-Y", "x"); !errors.Is(err, dirstore.ErrName) {
		t.Errorf("put a reserved name: %v; want ErrName", err)
	}
	if got := names(t, store); !slices.Equal(got, []string{"file"}) {
		t.Errorf("list = %q, want only the file", got)
	}
	if got := files(t, outside); !slices.Equal(got, []string{"secret"}) {
		t.Errorf("outside there are now %q", got)
	}
}

// A missing mount must not look like a customer's mistake.
func TestMissingRoot(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for layout, want := range map[string]error{
		"gone":                 storage.ErrUnavailable,
		"gone/{project}":       storage.ErrUnavailable,
		"{project}":            storage.ErrNoObject,
		"AUTH_{project}":       storage.ErrNoObject,
		"{project}/containers": storage.ErrNoObject,
	} {
		store := must(dirstore.New(filepath.Join(dir, layout)))(t)
		if _, err := store.Open(t.Context(), at("x")); !errors.Is(err, want) {
			t.Errorf("%s: %v; want %v", layout, err, want)
		}
	}
}

func TestPathsStayInTheCause(t *testing.T) {
	t.Parallel()
	store, container := fixture(t)
	_, err := store.Open(t.Context(), at("missing"))
	if e := fault.Of(err); strings.Contains(e.Message+e.Evidence+e.Remedy, filepath.Dir(container)) {
		t.Errorf("the customer would see %+v", e)
	}
}

// A change right after a change leaves the file's times as they were, since
// these move in steps; Open must not pin such a file.
func TestChangeWithinATick(t *testing.T) {
	t.Parallel()
	store, container := fixture(t)
	file := filepath.Join(container, "file")
	for range 20 {
		write(t, file)
		obj := must(store.Open(t.Context(), at("file")))(t)
		write(t, file)
		if _, err := obj.ReadRange(t.Context(), 0, 3); !errors.Is(err, storage.ErrChanged) {
			t.Errorf("%v; want ErrChanged", err)
		}
	}
}

func TestRangeOutsideOfObject(t *testing.T) {
	t.Parallel()
	store, container := fixture(t)
	write(t, filepath.Join(container, "file"))
	obj := must(store.Open(t.Context(), at("file")))(t)
	for _, r := range [][2]int64{{0, 0}, {0, -1}, {-1, 1}, {0, 8}, {6, 2}, {7, 1}, {1, 1<<63 - 1}, {1<<63 - 1, 1}} {
		if _, err := obj.ReadRange(t.Context(), r[0], r[1]); err == nil {
			t.Errorf("range %d+%d of 7 bytes was opened", r[0], r[1])
		}
	}
}

func TestPut(t *testing.T) {
	t.Parallel()
	const md5 = "5d41402abc4b2a76b9719d911017c592" // of "hello"
	ended, end := context.WithCancelCause(t.Context())
	gone := errors.New("gone")
	end(gone)
	for name, test := range map[string]struct {
		ctx  context.Context
		from io.Reader
		want storage.Announced
		err  error
	}{
		"unknown":        {from: strings.NewReader("hello"), want: storage.Announced{Size: -1}},
		"announced":      {from: strings.NewReader("hello"), want: storage.Announced{Size: 5, MD5: strings.ToUpper(md5)}},
		"byte by byte":   {from: iotest.OneByteReader(strings.NewReader("hello")), want: storage.Announced{Size: 5}},
		"data with EOF":  {from: iotest.DataErrReader(strings.NewReader("hello")), want: storage.Announced{Size: 5}},
		"too short":      {from: strings.NewReader("hell"), want: storage.Announced{Size: 5}, err: dirstore.ErrUpload},
		"too long":       {from: strings.NewReader("hello!"), want: storage.Announced{Size: 5}, err: dirstore.ErrUpload},
		"other bytes":    {from: strings.NewReader("hallo"), want: storage.Announced{Size: 5, MD5: md5}, err: dirstore.ErrUpload},
		"broken off":     {from: io.MultiReader(strings.NewReader("he"), iotest.ErrReader(io.ErrUnexpectedEOF)), want: storage.Announced{Size: -1}, err: dirstore.ErrUpload},
		"canceled":       {ctx: ended, from: strings.NewReader("hello"), want: storage.Announced{Size: 5}, err: gone},
		"nothing at all": {from: strings.NewReader(""), want: storage.Announced{Size: 5}, err: dirstore.ErrUpload},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			store, container := fixture(t)
			if err := put(t, store, "kept", "old"); err != nil {
				t.Fatal(err)
			}
			ctx := test.ctx
			if ctx == nil {
				ctx = t.Context()
			}
			for _, name := range []string{"kept", "new/one"} {
				if s, ok := test.from.(io.Seeker); ok {
					_ = must(s.Seek(0, io.SeekStart))(t)
				} else if name != "kept" {
					continue
				}
				etag, err := store.Put(ctx, at(name), test.from, test.want)
				if !errors.Is(err, test.err) {
					t.Fatalf("put %s: %v; want %v", name, err, test.err)
				}
				if err == nil && etag != md5 {
					t.Errorf("etag %q, want %q", etag, md5)
				}
			}
			if test.err == nil {
				if got := string(must(os.ReadFile(filepath.Join(container, "kept")))(t)); got != "hello" {
					t.Errorf("stored %q", got)
				}
				return
			}
			if got := files(t, container); !slices.Equal(got, []string{"kept"}) {
				t.Errorf("after the failure there are %q", got)
			}
			if got := string(must(os.ReadFile(filepath.Join(container, "kept")))(t)); got != "old" {
				t.Errorf("the earlier object is now %q", got)
			}
		})
	}
}

func TestPutRefuses(t *testing.T) {
	t.Parallel()
	store, container := fixture(t)
	if err := put(t, store, "a/b", "x"); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]error{
		"a":                               dirstore.ErrNameTaken,
		"a/b/c":                           dirstore.ErrNameTaken,
		"":                                dirstore.ErrName,
		"../up":                           dirstore.ErrName,
		"a//c":                            dirstore.ErrName,
		"c/":                              dirstore.ErrName,
		"/c":                              dirstore.ErrName,
		"c\n":                             dirstore.ErrName,
		strings.Repeat("n", 300):          dirstore.ErrName,
		"c/d/" + strings.Repeat("n", 300): dirstore.ErrName,
	} {
		if err := put(t, store, name, "y"); !errors.Is(err, want) {
			t.Errorf("put %.20q: %v; want %v", name, err, want)
		}
	}
	if got := files(t, container); !slices.Equal(got, []string{"a", "a/b"}) {
		t.Errorf("there are now %q", got)
	}
	loc := at("x")
	loc.Container = "none"
	if _, err := store.Put(t.Context(), loc, strings.NewReader(""), storage.Announced{}); !errors.Is(err, storage.ErrNoContainer) {
		t.Errorf("put without a container: %v", err)
	}
	if _, err := store.List(t.Context(), "p1", "none"); !errors.Is(err, storage.ErrNoContainer) {
		t.Errorf("list without a container: %v", err)
	}
	if err := store.MakeContainer("p1", "../x"); !errors.Is(err, dirstore.ErrName) {
		t.Errorf("make container ../x: %v", err)
	}
}

func TestListStatDelete(t *testing.T) {
	t.Parallel()
	store, container := fixture(t)
	// "a-b" sorts before "a/b", although a walk meets "a" first.
	all := []string{"Z", "a-b", "a/b", "a/c/d", "a0", "ü"}
	for _, name := range []string{"ü", "a/c/d", "a0", "Z", "a/b", "a-b"} {
		if err := put(t, store, name, name); err != nil {
			t.Fatal(err)
		}
	}
	if got := names(t, store); !slices.Equal(got, all) {
		t.Errorf("list = %q, want %q", got, all)
	}
	entry := must(store.Stat(at("a/c/d")))(t)
	obj := must(store.Open(t.Context(), at("a/c/d")))(t)
	if entry.Size != 5 || entry.Version != obj.Version() || time.Since(entry.ModTime).Abs() > time.Hour {
		t.Errorf("stat = %+v, version %s", entry, obj.Version())
	}
	if err := store.Delete(at("a/c/d")); err != nil {
		t.Fatal(err)
	}
	if _, err := store.Stat(at("a/c/d")); !errors.Is(err, storage.ErrNoObject) {
		t.Errorf("stat of a deleted object: %v", err)
	}
	if err := put(t, store, "a/c", "the name is free again"); err != nil {
		t.Error(err)
	}
	for _, name := range names(t, store) {
		if err := store.Delete(at(name)); err != nil {
			t.Error(err)
		}
	}
	if got := files(t, container); len(got) != 0 {
		t.Errorf("there are still %q", got)
	}
}

func TestSweepPuts(t *testing.T) {
	t.Parallel()
	store, container := fixture(t)
	write(t, filepath.Join(container, ".vmimport-upload-OLD"))
	write(t, filepath.Join(container, "kept"))
	if err := store.SweepPuts("p1", time.Now().Add(-time.Hour)); err != nil {
		t.Fatal(err)
	}
	if got := files(t, container); len(got) != 2 {
		t.Errorf("a running upload was swept: %q", got)
	}
	if err := store.SweepPuts("p1", time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	if got := files(t, container); !slices.Equal(got, []string{"kept"}) {
		t.Errorf("after the sweep: %q", got)
	}
}

// Objects that share directories come and go at the same time.
func TestConcurrentPutDelete(t *testing.T) {
	t.Parallel()
	store, container := fixture(t)
	var wg sync.WaitGroup
	for _, name := range []string{"d/e/1", "d/e/2", "d/3", "d/f/4"} {
		wg.Go(func() {
			for range 25 {
				if err := put(t, store, name, name); err != nil {
					t.Error(err)
				}
				if err := store.Delete(at(name)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if got := files(t, container); len(got) != 0 {
		t.Errorf("there are still %q", got)
	}
}

// FuzzNames: only the very name of an object opens it.
func FuzzNames(f *testing.F) {
	for _, seed := range [][3]string{
		{"p1", "images", "dir/in"}, {"p1", "images", "../other/out"}, {"p1", "images", "dir//in"}, {"p1", "images", "link/out"},
		{"..", "images", "dir/in"}, {"p1/..", "p1/images", "./dir/in"}, {"p1", "..", "out"}, {"", "", ""}, {"p1", "images\x00", "dir/in\x00"},
	} {
		f.Add(seed[0], seed[1], seed[2])
	}
	base := f.TempDir()
	store := must(dirstore.New(filepath.Join(base, "objects/{project}")))(f)
	for _, err := range []error{
		store.MakeContainer("p1", "images"), store.MakeContainer("p1", "other"), store.MakeContainer("p2", "images"),
		os.Mkdir(filepath.Join(base, "objects/p1/images/dir"), 0o755),
		os.Symlink("../other", filepath.Join(base, "objects/p1/images/link")),
	} {
		if err != nil {
			f.Fatal(err)
		}
	}
	for _, file := range []string{"out", "objects/out", "objects/p1/out", "objects/p1/other/out", "objects/p2/images/out", "objects/p1/images/dir/in"} {
		write(f, filepath.Join(base, file))
	}
	known := []string{"p1/images/dir/in", "p1/other/out", "p2/images/out"}
	f.Fuzz(func(t *testing.T, project, container, name string) {
		loc := storage.Location{API: "s3", Project: project, Container: container, Name: name}
		_, err := store.Stat(loc)
		if err == nil != slices.Contains(known, strings.Join([]string{project, container, name}, "/")) {
			t.Fatalf("stat %q: %v", loc, err)
		}
		if err != nil && !errors.Is(err, storage.ErrNoObject) {
			t.Fatalf("stat %q: %v; want ErrNoObject", loc, err)
		}
	})
}

// must unwraps a call that has to succeed: must(f())(t).
func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func put(t testing.TB, store *dirstore.Store, name, content string) error {
	_, err := store.Put(t.Context(), at(name), strings.NewReader(content), storage.Announced{Size: -1})
	return err
}

func write(t testing.TB, file string) {
	t.Helper()
	if err := os.WriteFile(file, []byte("content"), 0o644); err != nil {
		t.Fatal(err)
	}
}

func names(t testing.TB, store *dirstore.Store) []string {
	t.Helper()
	var list []string
	for _, e := range must(store.List(t.Context(), "p1", "images"))(t) {
		list = append(list, e.Name)
	}
	return list
}

// files lists everything below dir, whatever it is.
func files(t testing.TB, dir string) []string {
	t.Helper()
	var list []string
	if err := fs.WalkDir(os.DirFS(dir), ".", func(name string, _ fs.DirEntry, err error) error {
		if name != "." {
			list = append(list, name)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return list
}
