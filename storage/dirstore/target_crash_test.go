package dirstore_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"vmimport/storage"
	"vmimport/storage/dirstore"
)

// The states that a crash within Join, or between Join and Settle, can leave. Each is made
// from what is staged before a Join, and what is there after it.
func TestCrashAroundPublication(t *testing.T) {
	t.Parallel()
	states := map[string]struct {
		keep      func(file string) bool // of the staging before Join
		published bool
	}{
		"sealed":                  {keep: func(string) bool { return true }},
		"published":               {keep: func(string) bool { return true }, published: true},
		"published, no records":   {keep: func(file string) bool { return !strings.HasPrefix(file, "part-") }, published: true},
		"published, half tidied":  {keep: func(file string) bool { return strings.HasPrefix(file, "part-0001-") }, published: true},
		"published, and all done": {keep: func(string) bool { return false }, published: true},
	}
	for what, state := range states {
		for _, then := range []string{"join", "join of others", "discard", "settle"} {
			t.Run(what+", then "+then, func(t *testing.T) {
				t.Parallel()
				store, container := fixture(t)
				crashed(t, store, container, state.keep, state.published)
				next := must(dirstore.New(filepath.Dir(container)))(t)
				old, content := fileOf("abc")
				switch then {
				case "join":
					join(t, next, old)
					wantObject(t, container, content)
				case "join of others":
					storeParts(t, next, "abxy", 2, 3)
					parts, others := fileOf("abxy")
					err := next.Join(t.Context(), upload, object, parts)
					if state.published {
						others = content
					}
					if errors.Is(err, storage.ErrObjectExists) != state.published || !state.published && err != nil {
						t.Error(err)
					}
					wantObject(t, container, others)
				case "settle":
					if err := next.Settle(t.Context(), upload, object); err != nil {
						t.Fatal(err)
					}
					wantStaged(t, container, 0)
					if state.published {
						wantObject(t, container, content)
					}
					return
				}
				if err := next.Discard(t.Context(), upload, object); err != nil {
					t.Fatal(err)
				}
				if got := files(t, container); len(got) != 0 {
					t.Errorf("there are still %q", got)
				}
			})
		}
	}
}

// crashed makes the state that is left of "abc": what the staging held, as far as it is to be
// kept, with the seal that Join made, and the object if it was published.
func crashed(t *testing.T, store *dirstore.Store, container string, keep func(string) bool, published bool) {
	t.Helper()
	storeParts(t, store, "xbc", 0, 1, 2)
	storeParts(t, store, "abc", 0)
	stage, saved := stageOf(t, container), t.TempDir()
	for _, e := range must(os.ReadDir(stage))(t) {
		if err := os.Link(filepath.Join(stage, e.Name()), filepath.Join(saved, e.Name())); err != nil {
			t.Fatal(err)
		}
	}
	parts, _ := fileOf("abc")
	join(t, store, parts)
	for _, e := range must(os.ReadDir(saved))(t) {
		if !keep(e.Name()) {
			continue
		}
		if err := os.Link(filepath.Join(saved, e.Name()), filepath.Join(stage, e.Name())); err != nil {
			t.Fatal(err)
		}
	}
	if !published {
		if err := os.Remove(filepath.Join(container, object)); err != nil {
			t.Fatal(err)
		}
	}
}

func join(t testing.TB, store storage.Target, parts []storage.Part) {
	t.Helper()
	if err := store.Join(t.Context(), upload, object, parts); err != nil {
		t.Fatal(err)
	}
}

func wantStaged(t testing.TB, container string, n int) {
	t.Helper()
	if got := must(filepath.Glob(filepath.Join(container, ".vmimport-*")))(t); len(got) != n {
		t.Errorf("staged are %q, want %d", got, n)
	}
}

// letters are the parts that the killed process stores, one letter each.
const letters = "abcdefgh"

// TestKilled kills a process at some point of each step of an upload. What it has
// acknowledged before is there for the next one, which either ends the upload or discards it.
func TestKilled(t *testing.T) {
	t.Parallel()
	// The steps: parts, the same ones with other content, a small object, Join, and Join again.
	const second, small = len(letters), 2 * len(letters)
	for _, step := range []int{0, 3, second, second + 3, small, small + 1, small + 2} {
		t.Run(fmt.Sprint("discard after ", step), func(t *testing.T) {
			t.Parallel()
			store, container := fixture(t)
			killAt(t, filepath.Dir(container), step)
			if err := store.Discard(t.Context(), upload, object, object+".json"); err != nil {
				t.Fatal(err)
			}
			if got := files(t, container); len(got) != 0 {
				t.Errorf("there are still %q", got)
			}
		})
		t.Run(fmt.Sprint("go on after ", step), func(t *testing.T) {
			t.Parallel()
			store, container := fixture(t)
			for n := max(0, killAt(t, filepath.Dir(container), step)-second); n < len(letters); n++ {
				storeParts(t, store, letters, n)
			}
			if err := store.PutNew(t.Context(), upload, object+".json", []byte("{}")); err != nil {
				t.Fatal(err)
			}
			parts, content := fileOf(letters)
			join(t, store, parts)
			wantObject(t, container, content)
			if err := store.Settle(t.Context(), upload, object, object+".json"); err != nil {
				t.Fatal(err)
			}
			wantStaged(t, container, 0)
		})
	}
}

// killAt runs TestUploadUntilKilled in a process of its own, kills it when it has said that it begins
// a step, and returns how many steps had ended then, by its word.
func killAt(t *testing.T, root string, step int) (ended int) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestUploadUntilKilled$")
	cmd.Env = append(os.Environ(), "DIRSTORE_TEST_ROOT="+root)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if n := 0; strings.HasPrefix(lines.Text(), "begin ") {
			_, _ = fmt.Sscanf(lines.Text(), "begin %d", &n)
			if ended = n; n == step {
				_ = cmd.Process.Kill()
			}
		}
	}
	_ = cmd.Wait() // killed, or faster than we
	if ended < step {
		t.Fatalf("the process ended in step %d", ended)
	}
	return ended
}

// TestUploadUntilKilled is the process that TestKilled kills. By itself it does nothing.
func TestUploadUntilKilled(t *testing.T) {
	root := os.Getenv("DIRSTORE_TEST_ROOT")
	if root == "" {
		return
	}
	store := must(dirstore.New(root))(t)
	step := 0
	begin := func() {
		fmt.Printf("begin %d\n", step)
		step++
	}
	for n := range len(letters) {
		begin()
		storeParts(t, store, strings.ToUpper(letters), n)
	}
	for n := range len(letters) {
		begin()
		storeParts(t, store, letters, n)
	}
	begin()
	if err := store.PutNew(t.Context(), upload, object+".json", []byte("{}")); err != nil {
		t.Fatal(err)
	}
	parts, _ := fileOf(letters)
	for range 2 {
		begin()
		join(t, store, parts)
	}
}

func TestSweep(t *testing.T) {
	t.Parallel()
	for name, layout := range map[string]string{"shared": "objects", "in each project": "AUTH_{project}/objects", "each project": "{project}-data"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			base := t.TempDir()
			store := must(dirstore.New(filepath.Join(base, layout)))(t)
			if err := os.WriteFile(filepath.Join(base, "AUTH_file-data"), nil, 0o640); err != nil {
				t.Fatal(err)
			}
			dead, live := upload, upload
			dead.ID = "dead-1"
			for _, project := range []string{"p1", "p2"} {
				if err := store.MakeContainer(project, "images"); err != nil {
					t.Fatal(err)
				}
			}
			p, content := partOf(0, 'a')
			for _, up := range []storage.Upload{dead, live, {ID: dead.ID, Project: "p2", Container: "images"}} {
				if err := store.PutPart(t.Context(), up, "web", p, bytes.NewReader(content)); err != nil {
					t.Fatal(err)
				}
			}
			if err := store.PutNew(t.Context(), dead, "web.json", []byte("{}")); err != nil {
				t.Fatal(err)
			}
			broken := errors.New("no record store")
			if n, err := store.Sweep(t.Context(), func(string) (bool, error) { return false, broken }); n != 0 || !errors.Is(err, broken) {
				t.Errorf("swept %d, %v; want the verdict's error", n, err)
			}
			ended, end := context.WithCancel(t.Context())
			end()
			if n, err := store.Sweep(ended, func(string) (bool, error) { return false, nil }); n != 0 || !errors.Is(err, context.Canceled) {
				t.Errorf("swept %d, %v; want canceled", n, err)
			}
			staged := len(must(filepath.Glob(filepath.Join(base, "*", "images", ".vmimport-*-dead-1")))(t)) +
				len(must(filepath.Glob(filepath.Join(base, "*", "*", "images", ".vmimport-*-dead-1")))(t))
			for _, want := range []int{staged, 0} {
				if n, err := store.Sweep(t.Context(), func(id string) (bool, error) { return id != dead.ID, nil }); n != want || err != nil {
					t.Errorf("swept %d, %v; want %d", n, err, want)
				}
			}
			join := func(up storage.Upload) error { return store.Join(t.Context(), up, "web", []storage.Part{p}) }
			if err := join(dead); !errors.Is(err, storage.ErrPart) {
				t.Errorf("join of swept parts: %v", err)
			}
			if err := join(live); err != nil {
				t.Errorf("join of an unfinished upload: %v", err)
			}
			obj := must(store.Open(t.Context(), dead.At("web.json")))(t)
			body := must(obj.ReadRange(t.Context(), 0, obj.Size()))(t)
			defer body.Close()
			if got := string(must(io.ReadAll(body))(t)); got != "{}" {
				t.Errorf("the object of a swept upload is %q", got)
			}
		})
	}
}

// A removal that a crash cut off is gone with the next sweep, and holds no parts until then.
func TestSweepRemovesTheRest(t *testing.T) {
	t.Parallel()
	store, container := fixture(t)
	storeParts(t, store, "a", 0)
	stage := stageOf(t, container)
	if err := os.Rename(stage, stage+".ABCDEFGHIJKLMNOPQRSTUVWXYZ"); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(container, ".vmimport-upload-ABCDEFGHIJKLMNOPQRSTUVWXYZ")) // a Put under way
	other := upload
	other.ID = "other"
	if err := store.Vacant(t.Context(), other, object); err != nil {
		t.Errorf("vacant: %v", err)
	}
	if n, err := store.Sweep(t.Context(), func(string) (bool, error) { return false, nil }); n != 1 || err != nil {
		t.Errorf("swept %d, %v", n, err)
	}
	wantStaged(t, container, 1)
}
