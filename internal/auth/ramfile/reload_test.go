package ramfile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// watched is a directory with its own clock, and what it told of.
type watched struct {
	*Directory
	t        *testing.T
	now      time.Time
	failures []error
	reloads  []Summary
}

func watch(t *testing.T, content string) *watched {
	t.Helper()
	w := &watched{t: t, now: time.Now()}
	path := write(t, content)
	w.age(path)
	d, err := Open(path, Options{
		OnError:  func(err error) { w.failures = append(w.failures, err) },
		OnReload: func(s Summary) { w.reloads = append(w.reloads, s) },
		Now:      func() time.Time { return w.now },
	})
	if err != nil {
		t.Fatal(err)
	}
	w.Directory = d
	return w
}

// age gives a file a time of change that is past, another at each call.
func (w *watched) age(path string) {
	w.t.Helper()
	w.now = w.now.Add(interval)
	if err := os.Chtimes(path, time.Time{}, w.now.Add(-time.Hour)); err != nil {
		w.t.Fatal(err)
	}
}

// edit writes the file in place.
func (w *watched) edit(content string) {
	w.t.Helper()
	if err := os.WriteFile(w.path, []byte(content), 0o600); err != nil {
		w.t.Fatal(err)
	}
	w.age(w.path)
}

// secret returns what the key k has, "" without one.
func (w *watched) secret() string {
	if c, ok := w.Credential("k"); ok {
		return c.Secret.Reveal()
	}
	return ""
}

// expect checks what is in force, and what was told of since the last time.
func (w *watched) expect(when, secret string, reloads int, failures ...string) {
	w.t.Helper()
	if got := w.secret(); got != secret {
		w.t.Errorf("%s: the secret is %q, want %q", when, got, secret)
	}
	if len(w.reloads) != reloads {
		w.t.Errorf("%s: reloads %v, want %d", when, w.reloads, reloads)
	}
	if len(w.failures) != len(failures) {
		w.t.Fatalf("%s: failures %v, want %q", when, w.failures, failures)
	}
	for i, err := range w.failures {
		if !strings.Contains(err.Error(), failures[i]) || !strings.Contains(err.Error(), w.path) {
			w.t.Errorf("%s: failure %v, want %q", when, err, failures[i])
		}
	}
	w.reloads, w.failures = nil, nil
}

func with(secret string) string {
	return fmt.Sprintf("accounts: [{id: \"1\", keys: [{id: k, secret: %s}]}]\n", secret)
}

func TestReload(t *testing.T) {
	t.Parallel()
	w := watch(t, with("one"))
	w.expect("at first", "one", 0)

	w.edit(with("two"))
	w.expect("edited", "two", 1)

	if err := os.WriteFile(w.path, []byte(with("three")), 0o600); err != nil {
		t.Fatal(err)
	}
	w.expect("edited less than a second ago", "two", 0)
	w.now = w.now.Add(interval)
	w.expect("edited a second ago", "three", 1)

	w.edit(with("three") + "# and nothing else\n")
	w.expect("edited without effect", "three", 1)
	w.now = w.now.Add(interval)
	w.expect("not edited", "three", 0)

	w.edit(`accounts: [{id: "1"}]`)
	w.expect("key removed", "", 1)
}

func TestReloadReplaced(t *testing.T) {
	t.Parallel()
	w := watch(t, with("one"))
	before, err := os.Stat(w.path)
	if err != nil {
		t.Fatal(err)
	}
	next := filepath.Join(t.TempDir(), "next")
	if err := os.WriteFile(next, []byte(with("two")), 0o600); err != nil {
		t.Fatal(err)
	}
	// As long as the other, and of the same time: only the file is another.
	if err := os.Chtimes(next, time.Time{}, before.ModTime()); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(next, w.path); err != nil {
		t.Fatal(err)
	}
	w.now = w.now.Add(interval)
	w.expect("replaced", "two", 1)
}

// Two changes within a tick of the file system's clock have the same time.
func TestReloadWithinATick(t *testing.T) {
	t.Parallel()
	w := watch(t, with("one"))
	change := w.now.Add(2 * time.Second)
	for i, secret := range []string{"two", "six"} {
		if err := os.WriteFile(w.path, []byte(with(secret)), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(w.path, time.Time{}, change); err != nil {
			t.Fatal(err)
		}
		w.now = change.Add(time.Duration(i) * interval)
		if got := w.secret(); got != secret {
			t.Errorf("change %d: the secret is %q", i+1, got)
		}
	}
	w.now = w.now.Add(settled)
	w.secret()
	if w.young {
		t.Error("a file that is old enough is read again and again")
	}
}

func TestReloadKeepsTheLastGoodOne(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name    string
		breaks  func(t *testing.T, path string) error
		failure string
	}{
		{"not YAML", func(_ *testing.T, path string) error { return os.WriteFile(path, []byte("accounts: [hunter2"), 0o600) }, "line 1"},
		{"wrong", func(_ *testing.T, path string) error {
			return os.WriteFile(path, []byte(with("hunter2, secret_file: x")), 0o600)
		}, "key 1 (k)"},
		{"empty", func(_ *testing.T, path string) error { return os.Truncate(path, 0) }, "it is empty"},
		{"too long", func(_ *testing.T, path string) error { return os.Truncate(path, maxBytes+1) }, "longer than"},
		{"removed", func(_ *testing.T, path string) error { return os.Remove(path) }, "no such file"},
		{"open to others", func(_ *testing.T, path string) error { return os.Chmod(path, 0o604) }, "mode 0604); chmod 600"},
		{"a directory", func(_ *testing.T, path string) error { return errors.Join(os.Remove(path), os.Mkdir(path, 0o700)) }, "no regular file"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			w := watch(t, with("one"))
			if err := tt.breaks(t, w.path); err != nil {
				t.Fatal(err)
			}
			w.now = w.now.Add(time.Hour)
			w.expect("broken", "one", 0, tt.failure)
			for range 5 {
				w.now = w.now.Add(interval)
				w.expect("still broken", "one", 0)
			}

			if err := os.RemoveAll(w.path); err != nil {
				t.Fatal(err)
			}
			w.edit(with("two"))
			w.expect("repaired", "two", 1)
			w.edit("accounts: []")
			w.expect("broken again", "two", 0, "names no accounts")
			w.edit("accounts:  []")
			w.expect("broken in the same way", "two", 0, "names no accounts")
			w.edit(with("three"))
			w.expect("repaired again", "three", 1)
		})
	}
}

// A key is rotated by writing the file that its secret is in.
func TestReloadSecretFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	name := filepath.Join(dir, "k.secret")
	if err := os.WriteFile(name, []byte("one"), 0o600); err != nil {
		t.Fatal(err)
	}
	w := watch(t, `accounts: [{id: "1", keys: [{id: k, secret_file: `+name+`}]}]`)
	w.age(name)
	w.expect("at first", "one", 1)

	if err := os.WriteFile(name, []byte("two"), 0o600); err != nil {
		t.Fatal(err)
	}
	w.age(name)
	w.expect("written", "two", 1)

	if err := os.Remove(name); err != nil {
		t.Fatal(err)
	}
	w.now = w.now.Add(interval)
	w.expect("removed", "two", 0, "key 1 (k): secret_file: no such file")

	if err := os.WriteFile(name, []byte("three"), 0o600); err != nil {
		t.Fatal(err)
	}
	w.age(name)
	w.expect("written again", "three", 1)
}

func TestTheClockGoesBack(t *testing.T) {
	t.Parallel()
	w := watch(t, with("one"))
	w.edit(with("two"))
	w.now = w.now.Add(-24 * time.Hour)
	w.expect("a day before", "two", 1)
}

func TestOpenAbsent(t *testing.T) {
	t.Parallel()
	if d, err := Open(filepath.Join(t.TempDir(), "absent"), Options{}); d != nil || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v, %v", d, err)
	}
	path := write(t, with("one"))
	if err := os.Chmod(path, 0o660); err != nil {
		t.Fatal(err)
	}
	if d, err := Open(path, Options{}); d != nil || err == nil || !strings.Contains(err.Error(), "mode 0660); chmod 600") {
		t.Errorf("got %v, %v", d, err)
	}
}

// Lookups go on while the file changes, and each sees one whole content.
func TestConcurrentLookups(t *testing.T) {
	t.Parallel()
	start := time.Now()
	var ticks, reported atomic.Int64
	content := func(n int) string {
		s := fmt.Sprintf("s%06d", n)
		return fmt.Sprintf("accounts: [{id: \"1\", name: %s, keys: [{id: k, secret: %s}]}]", s, s)
	}
	path := write(t, content(0))
	d, err := Open(path, Options{
		OnError: func(error) { reported.Add(1) },
		Now:     func() time.Time { return start.Add(time.Duration(ticks.Add(1)) * interval) },
	})
	if err != nil {
		t.Fatal(err)
	}
	var done atomic.Bool
	var readers sync.WaitGroup
	for range 4 {
		readers.Go(func() {
			last := ""
			for !done.Load() {
				c, ok := d.Credential("k")
				if !ok || c.Secret.Reveal() != c.Caller.Account.Name {
					t.Errorf("%+v, %v: not one content", c, ok)
					return
				}
				if c.Caller.Account.Name < last {
					t.Errorf("%s after %s", c.Caller.Account.Name, last)
				}
				last = c.Caller.Account.Name
				d.Summary()
			}
		})
	}
	next := path + ".next"
	for n := 1; n <= 50; n++ {
		if err := os.WriteFile(next, []byte(content(n)), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(next, path); err != nil {
			t.Fatal(err)
		}
	}
	done.Store(true)
	readers.Wait()
	if c, ok := d.Credential("k"); !ok || c.Secret.Reveal() != "s000050" || reported.Load() != 0 {
		t.Errorf("at the end: %+v, %v, %d errors", c, ok, reported.Load())
	}
}

// Who asks while another reads the file gets what is in force, at once.
func TestLookupsDoNotWait(t *testing.T) {
	t.Parallel()
	w := watch(t, with("one"))
	w.mu.Lock()
	w.edit(with("two"))
	w.expect("while somebody reads", "one", 0)
	w.mu.Unlock()
	w.expect("afterwards", "two", 1)
}

func BenchmarkCredential(b *testing.B) {
	d := open(b, write(b, with("one")))
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			d.Credential("k")
		}
	})
}
