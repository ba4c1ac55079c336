package audit_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode"

	"vmimport/internal/audit"
)

func TestEntry(t *testing.T) {
	t.Parallel()
	ctx, entry := audit.NewContext(t.Context())
	audit.From(ctx).Action = "import.register"
	if entry.Action != "import.register" {
		t.Errorf("%+v", entry)
	}
	audit.From(context.Background()).Action = "into the void" // must not panic
}

func TestOutcomeOf(t *testing.T) {
	t.Parallel()
	for status, want := range map[int]audit.Outcome{200: audit.Accepted, 202: audit.Accepted, 302: audit.Accepted, 400: audit.Refused, 404: audit.Refused, 500: audit.Failed, 503: audit.Failed} {
		if got := audit.OutcomeOf(status); got != want {
			t.Errorf("%d is %s", status, got)
		}
	}
}

// lines reads a file of records.
func lines(t *testing.T, path string) []map[string]any {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var all []map[string]any
	for line := range strings.Lines(string(text)) {
		var r map[string]any
		if err := json.Unmarshal([]byte(line), &r); err != nil || !strings.HasSuffix(line, "\n") {
			t.Fatalf("%q: %v", line, err)
		}
		all = append(all, r)
	}
	return all
}

func open(t *testing.T, path string) *audit.File {
	t.Helper()
	f, err := audit.OpenFile(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	return f
}

func TestFile(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "audit.log")
	f := open(t, path)
	r := audit.Record{
		Time: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC), RequestID: "req-1", Remote: "192.0.2.7", Dialect: "fjcloud",
		Entry: audit.Entry{Tenant: "d", Project: "p", User: "u", Region: "east", Action: "import.register", ID: "i"}, Outcome: audit.Accepted, Status: 202,
	}
	if err := f.Add(r); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	text, err := os.ReadFile(path)
	const want = `{"time":"2026-03-01T12:00:00Z","request_id":"req-1","remote":"192.0.2.7","dialect":"fjcloud","tenant":"d","project":"p","user":"u",` +
		`"region":"east","action":"import.register","id":"i","outcome":"accepted","status":202}` + "\n"
	if err != nil || string(text) != want {
		t.Errorf("%s, want %s (%v)", text, want, err)
	}
}

// What strangers send cannot make a second line, reach a terminal, or fill the disk at once.
func TestClean(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "audit.log")
	f := open(t, path)
	hostile := map[string]string{
		"new line":  "a\n{\"action\":\"forged\"}\r\n",
		"controls":  "\x00\x07\x1b[31m\x7f\u009b31m",
		"direction": "\u202eevil\u2066",
		"separator": "a\u2028b\u2029c",
		"not UTF-8": "\xff\xfe\x80",
		"quotes":    `"\"},{`,
		"very long": strings.Repeat("長", 1<<20),
		"harmless":  "image-東京 1",
	}
	for _, s := range hostile {
		e := audit.Entry{Tenant: s, Project: s, User: s, AccessKey: s, Region: s, Action: s, ID: s, Fault: s}
		if err := f.Add(audit.Record{RequestID: s, Remote: s, Entry: e}.Clean()); err != nil {
			t.Fatal(err)
		}
	}
	records := lines(t, path)
	if len(records) != len(hostile) {
		t.Fatalf("%d lines", len(records))
	}
	for _, r := range records {
		if len(r) != 14 {
			t.Errorf("%d members: %v", len(r), r)
		}
		for name, v := range r {
			s, _ := v.(string)
			if len(s) > 300 || strings.ContainsFunc(s, func(c rune) bool { return !unicode.IsPrint(c) && c != unicode.ReplacementChar }) {
				t.Errorf("%s: %.400q", name, s)
			}
		}
	}
	r := audit.Record{Entry: audit.Entry{ID: hostile["harmless"]}}
	if r.Clean() != r {
		t.Errorf("%+v was altered", r)
	}
}

// A file that was moved or removed is followed by a new one, while others write.
func TestFileIsRotated(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "audit.log")
	one, two := open(t, path), open(t, path) // as of two processes
	const rounds, each = 5, 50
	for round := range rounds {
		var wg sync.WaitGroup
		for i, f := range []*audit.File{one, two} {
			wg.Go(func() {
				for n := range each {
					if err := f.Add(audit.Record{RequestID: fmt.Sprint(round, i, n)}); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		if err := os.Rename(path, fmt.Sprintf("%s.%d", path, round)); err != nil {
			t.Fatal(err)
		}
	}
	seen := map[any]bool{}
	for round := range rounds {
		for _, r := range lines(t, fmt.Sprintf("%s.%d", path, round)) {
			seen[r["request_id"]] = true
		}
	}
	if len(seen) != rounds*2*each {
		t.Errorf("%d records", len(seen))
	}
	if err := one.Add(audit.Record{}); err != nil || len(lines(t, path)) != 1 {
		t.Errorf("after the last move: %v", err)
	}
}

// While nothing can be written each Add says so, and goes on when it can.
func TestFileThatCannotBeWritten(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "logs")
	path := filepath.Join(dir, "audit.log")
	if _, err := audit.OpenFile(path); err == nil {
		t.Error("a directory was made")
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	f := open(t, path)
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := f.Add(audit.Record{}); err == nil {
			t.Error("no error without a directory")
		}
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := f.Add(audit.Record{}); err != nil || len(lines(t, path)) != 1 {
		t.Errorf("with the directory again: %v", err)
	}
}

func TestCheckFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "audit.log")
	if err := audit.CheckFile(path); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("the check made the file: %v", err)
	}
	_ = open(t, path)
	if err := audit.CheckFile(path); err != nil {
		t.Error(err)
	}
	for _, bad := range []string{dir, filepath.Join(path, "below"), filepath.Join(dir, "missing", "audit.log"), "/proc/self/audit.log"} {
		if err := audit.CheckFile(bad); err == nil {
			t.Errorf("%s passes", bad)
		}
		if _, err := audit.OpenFile(bad); err == nil {
			t.Errorf("%s can be opened", bad)
		}
	}
}
