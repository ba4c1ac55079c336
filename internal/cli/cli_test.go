package cli_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spf13/cobra"
	"go.uber.org/goleak"

	"vmimport/internal/cli"
	"vmimport/internal/client"
	"vmimport/internal/client/clienttest"
	"vmimport/internal/fault"
	"vmimport/tasks"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// console is an Env and what was printed there.
type console struct {
	cli.Env
	out, err bytes.Buffer
}

// newConsole returns an Env that knows s, which may be nil.
func newConsole(s *clienttest.Service, args ...string) *console {
	vars := map[string]string{"VMIMPORT_TOKEN": clienttest.Token, "VMIMPORT_PROJECT_ID": clienttest.Project, "VMIMPORT_CONTAINER": "images"}
	c := &console{}
	c.Env = cli.Env{Args: args, Stdin: strings.NewReader(""), Stdout: &c.out, Stderr: &c.err,
		Getenv: func(name string) string { return vars[name] }, Columns: func() int { return 0 }}
	if s != nil {
		vars["VMIMPORT_ENDPOINT"], vars["VMIMPORT_OBJECTS_URL"] = s.URL, s.ObjectsURL()
		c.HTTP = s.Client()
	}
	return c
}

func TestInterrupt(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "disk.vmdk")
	if err := os.WriteFile(file, make([]byte, 8<<20), 0o600); err != nil { // more than a connection buffers
		t.Fatal(err)
	}
	for _, tt := range []struct {
		during string // the call that is held
		args   []string
		want   []string // on stderr
	}{
		{clienttest.Object, []string{"push", file, "--os-type", "rocky"}, []string{"the upload was stopped"}},
		{clienttest.Object, []string{"upload", file}, []string{"the upload was stopped"}},
		{clienttest.Register, []string{"push", file, "--os-type", "rocky"}, []string{"may have been accepted", "vmimport list"}},
		{clienttest.Status, []string{"push", file, "--os-type", "rocky"}, []string{"the import goes on", "vmimport watch 0000", "vmimport cancel 0000"}},
		{clienttest.Status, []string{"watch", "x"}, []string{"the import goes on", "vmimport watch x"}},
		{clienttest.List, []string{"list"}, []string{"list imports"}},
		{clienttest.Export, []string{"export", "i-1", "--to", "images"}, []string{"may have been accepted", "vmimport export list"}},
		{clienttest.ExportStatus, []string{"export", "i-1", "--to", "images", "--wait"},
			[]string{"the export goes on", "vmimport export watch 0000", "vmimport export cancel 0000"}},
	} {
		t.Run(tt.args[0]+" in "+tt.during, func(t *testing.T) {
			t.Parallel()
			s := clienttest.New()
			defer s.Close()
			s.PutObject("images", "other", nil)
			reached, release := s.Hold(tt.during)
			defer release()
			ctx, cancel := context.WithCancel(t.Context())
			go func() { <-reached; cancel() }()
			c := newConsole(s, tt.args...)
			if code := cli.Main(ctx, c.Env); code != cli.ExitInterrupted {
				t.Errorf("exit code %d", code)
			}
			for _, want := range tt.want {
				if !strings.Contains(c.err.String(), want) {
					t.Errorf("stderr lacks %q:\n%s", want, c.err.String())
				}
			}
			if c.out.Len() > 0 {
				t.Errorf("stdout has %s", c.out.String())
			}
		})
	}
}

func TestExtraCommandsArguments(t *testing.T) {
	t.Parallel()
	c := newConsole(nil, "extra", "argument")
	extra := &cobra.Command{Use: "extra", Args: cobra.NoArgs, RunE: func(*cobra.Command, []string) error { return nil }}
	if code := cli.Main(t.Context(), c.Env, extra); code != cli.ExitUsage {
		t.Errorf("exit code %d", code)
	}
}

func TestExtraCommands(t *testing.T) {
	t.Parallel()
	damaged := fault.New(fault.Invalid, "format_invalid", "Not a vmdk.").Saw("magic %x", 0).Try("Export it again.")
	for _, tt := range []struct {
		name   string
		err    error
		code   int
		stderr string
	}{
		{"success", nil, 0, ""},
		{"plain error", errors.New("no luck"), 1, "vmimport: no luck\n"},
		{"fault", damaged, 1, "vmimport: format_invalid: Not a vmdk. (magic 0)\n  remedy: Export it again.\n"},
		{"usage", cli.Usagef("what?"), 2, "vmimport: what?\n"},
		{"hostile text", errors.New("\x1b]0;x\a\u009b2J"), 1, "vmimport: \uFFFD]0;x\uFFFD\uFFFD2J\n"},
		{"a failed import", cli.Outcome(&client.Import{ImportID: "i", State: tasks.Failed, ErrorMessage: "No. Do.", Extra: client.Extra{Run: client.Run{Remedy: "Do."}}}),
			3, "vmimport: the import failed: No.\n  import: i\n  remedy: Do.\n"},
		{"a failed export", cli.Outcome(&client.Export{ExportID: "e", State: tasks.Failed}), 3, "vmimport: the export failed\n  export: e\n"},
		{"a canceled import", cli.Outcome(&client.Import{ImportID: "i", State: tasks.Canceled}),
			4, "vmimport: the import was canceled\n  import: i\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			c := newConsole(nil, "extra")
			code := cli.Main(t.Context(), c.Env, &cobra.Command{Use: "extra", RunE: func(*cobra.Command, []string) error { return tt.err }})
			if code != tt.code || c.err.String() != tt.stderr {
				t.Errorf("exit code %d, stderr %q", code, c.err.String())
			}
		})
	}
}

// play feeds a Progress a push with every turn it can take.
func play(p *cli.Progress) {
	obs := p.Observer()
	for try := 1; try <= 2; try++ {
		for done := int64(0); done <= 40; done += 20 {
			obs.Uploading(client.Transfer{Done: done, Total: 40, Try: try})
			time.Sleep(1050 * time.Millisecond)
		}
	}
	obs.Uploaded("da39")
	obs.Registered("i-1")
	copying := client.Import{ImportID: "i-1", State: tasks.Processing, Progress: 50,
		Extra: client.Extra{Run: client.Run{Stage: tasks.StageCopying, DoneBytes: 20, TotalBytes: 40, BytesPerSecond: 20, Attempt: 1}}}
	done := client.Import{ImportID: "i-1", State: tasks.Succeeded, Progress: 100}
	obs.Changed(&copying)
	obs.Changed(&copying)
	obs.Trouble(errors.New("connection refused"))
	obs.Changed(&done)
}

func TestProgress(t *testing.T) {
	t.Run("in a log", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			c := newConsole(nil)
			p := cli.NewProgress(c.Env, false, false)
			play(p)
			if err := p.Stop(); err != nil {
				t.Error(err)
			}
			want := strings.Join([]string{
				"uploading 0%,  0/40 B",
				"uploading (attempt 2) 99%,  0/40 B",
				"uploading (attempt 2) 99%, 20/40 B, 19 B/s, 2s left",
				"uploaded 100%",
				"import i-1",
				"copying 50%, 20/40 B, 20 B/s, 1s left",
				"no answer, asking again 50%",
				"succeeded 100%", "",
			}, "\n")
			if got := c.err.String(); got != want || c.out.Len() > 0 {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
		})
	})
	t.Run("on a terminal", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			c := newConsole(nil)
			c.Columns = func() int { return 60 }
			p := cli.NewProgress(c.Env, false, false)
			play(p)
			_ = p.Stop()
			lines := strings.Split(c.err.String(), "\n")
			for i, begin := range []string{"\ruploaded   100% [", "import i-1", "\rsucceeded  100% ["} {
				if last := lines[i][max(0, strings.LastIndex(lines[i], "\r")):]; !strings.HasPrefix(last, begin) {
					t.Errorf("line %d is left as %q", i, last)
				}
			}
			if len(lines) != 4 {
				t.Errorf("%d lines are left", len(lines)-1)
			}
		})
	})
	t.Run("as events", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			c := newConsole(nil)
			p := cli.NewProgress(c.Env, true, false)
			play(p)
			_ = p.Stop()
			var got []string
			for d := json.NewDecoder(&c.out); d.More(); {
				var e struct {
					Event string `json:"event"`
				}
				if err := d.Decode(&e); err != nil {
					t.Fatal(err)
				}
				got = append(got, e.Event)
			}
			want := "upload upload upload upload upload upload uploaded registered status trouble status"
			if strings.Join(got, " ") != want || c.err.Len() > 0 {
				t.Errorf("got %v and on stderr %q", got, c.err.String())
			}
		})
	})
	t.Run("quiet", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			c := newConsole(nil)
			p := cli.NewProgress(c.Env, false, true)
			play(p)
			_ = p.Stop()
			if c.out.Len()+c.err.Len() > 0 {
				t.Errorf("printed %q and %q", c.out.String(), c.err.String())
			}
		})
	})
	t.Run("on a full disk", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			c := newConsole(nil)
			full := errors.New("no space left")
			c.Stdout = failing{full}
			p := cli.NewProgress(c.Env, true, false)
			play(p)
			if err := p.Stop(); !errors.Is(err, full) {
				t.Errorf("got %v", err)
			}
		})
	})
}

type failing struct{ err error }

func (f failing) Write([]byte) (int, error) { return 0, f.err }
