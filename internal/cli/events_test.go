package cli_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"vmimport/internal/cli"
	"vmimport/internal/client"
	"vmimport/internal/client/clienttest"
	"vmimport/tasks"
)

func run(t *testing.T, s *clienttest.Service, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	c := newConsole(s, args...)
	code = cli.Main(t.Context(), c.Env)
	return code, c.out.String(), c.err.String()
}

func TestRetry(t *testing.T) {
	t.Parallel()
	s := clienttest.New()
	defer s.Close()
	s.Add("i", client.Import{State: tasks.Failed, Name: "web01", ID: "image"})
	s.AddExport("e", client.Export{State: tasks.Failed})
	for _, tt := range []struct {
		args   string
		code   int
		stdout string
		stderr string
	}{
		{"retry i", 0, "retry of i accepted\n", ""},
		{"retry i", 1, "", "Only what has failed"},
		{"watch i --quiet", 0, "succeeded", ""},
		{"export retry e --json", 0, `{"export_id":"e","retry":"accepted"}`, ""},
		{"export retry", 2, "", "the id of one export"},
		{"retry a b", 2, "", "the id of one import"},
		{"retry z", 1, "", "Invalid import_id."},
	} {
		code, stdout, stderr := run(t, s, strings.Fields(tt.args)...)
		if code != tt.code || !strings.Contains(stdout, tt.stdout) || !strings.Contains(stderr, tt.stderr) {
			t.Errorf("%s: %d\n%s\n%s", tt.args, code, stdout, stderr)
		}
	}
	s.Add("j", client.Import{State: tasks.Failed, Name: "web02", ID: "image"})
	if code, stdout, stderr := run(t, s, "retry", "j", "--wait", "-q"); code != 0 || !strings.Contains(stdout, "web02") {
		t.Errorf("%d\n%s\n%s", code, stdout, stderr)
	}
}

func TestStatusOfAttempts(t *testing.T) {
	t.Parallel()
	s := clienttest.New()
	defer s.Close()
	at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	s.Add("i", client.Import{State: tasks.Queued, Extra: client.Extra{Run: client.Run{
		QueuePosition: 3, EstimatedStart: at, Retried: 1, Attempts: []client.Attempt{
			{Attempt: 1, StartedAt: at.Add(-time.Hour), EndedAt: at, Outcome: "lost", DoneBytes: 1 << 30},
			{Attempt: 2, StartedAt: at, EndedAt: at.Add(time.Hour), Outcome: "retry", FromBytes: 1 << 30, DoneBytes: 3 << 30, Message: "The object store does not answer.", Evidence: "HTTP \x1b503"},
		},
	}}})
	_, stdout, _ := run(t, s, "status", "i")
	for _, want := range []string{
		"queue     number 3, starts at about 2026-03-01T12:00:00Z\n", "retried   1\n",
		"attempt   1, 2026-03-01T11:00:00Z to 2026-03-01T12:00:00Z, lost, 1.0 GiB read\n",
		"attempt   2, 2026-03-01T12:00:00Z to 2026-03-01T13:00:00Z, retry, 2.0 GiB read: The object store does not answer. (HTTP \ufffd503)\n",
	} {
		if !strings.Contains(stdout, want) {
			t.Errorf("lacks %q:\n%s", want, stdout)
		}
	}
}

func TestEvents(t *testing.T) {
	t.Parallel()
	const stream = "retry: 1\n\nevent: ready\nid: m-0\ndata: {}\n\n" +
		"event: state\nid: m-1\ndata: {\"kind\":\"import\",\"id\":\"i\",\"name\":\"web\u001b01\",\"state\":\"processing\",\"progress\":7,\"attempt\":1,\"at\":\"2026-03-01T12:00:00Z\"}\n\n" +
		"event: progress\ndata: {\"kind\":\"import\",\"id\":\"i\",\"state\":\"processing\",\"done_bytes\":9}\n\n" +
		"event: reset\nid: m-9\ndata: {}\n\n" +
		"event: state\nid: m-10\ndata: {\"kind\":\"export\",\"id\":\"e\",\"name\":\"web02\",\"state\":\"failed\",\"progress\":8,\"attempt\":1,\"at\":\"2026-03-01T12:00:01Z\"," +
		"\"failure\":{\"code\":\"c\",\"message\":\"It broke.\",\"remedy\":\"Mend it.\"}}\n\n"
	for _, tt := range []struct{ args, stdout string }{
		{"events", "2026-03-01T12:00:00Z  import  i  processing    7%  web\ufffd01\n2026-03-01T12:00:01Z  export  e  failed        8%  web02: It broke. Mend it.\n"},
		{"events --json --kind import", `{"event":"ready","mark":"m-0","progress":0,"attempt":0}
{"event":"state","mark":"m-1","kind":"import","id":"i","name":"web\u001b01","state":"processing","progress":7,"attempt":1,"at":"2026-03-01T12:00:00Z"}
{"event":"progress","kind":"import","id":"i","state":"processing","progress":0,"attempt":0,"done_bytes":9}
{"event":"reset","mark":"m-9","progress":0,"attempt":0}
{"event":"state","mark":"m-10","kind":"export","id":"e","name":"web02","state":"failed","progress":8,"attempt":1,"at":"2026-03-01T12:00:01Z","failure":{"code":"c","message":"It broke.","remedy":"Mend it."}}
`},
	} {
		t.Run(tt.args, func(t *testing.T) {
			t.Parallel()
			s := clienttest.New()
			defer s.Close()
			s.Tell(strings.ReplaceAll(stream, "\u001b", `\u001b`))
			ctx, interrupt := context.WithCancel(t.Context())
			go func() { s.Await(clienttest.Events, 2); interrupt() }() // the second is after all was read
			c := newConsole(s, strings.Fields(tt.args)...)
			if code := cli.Main(ctx, c.Env); code != cli.ExitInterrupted {
				t.Errorf("exit code %d: %s", code, c.err.String())
			}
			if got := c.out.String(); got != tt.stdout {
				t.Errorf("got\n%s\nwant\n%s", got, tt.stdout)
			}
		})
	}
	s := clienttest.New()
	defer s.Close()
	if code, _, _ := run(t, s, "events", "--kind", "both"); code != cli.ExitUsage {
		t.Errorf("exit code %d", code)
	}
	if code, _, _ := run(t, s, "events", "x"); code != cli.ExitUsage {
		t.Errorf("exit code %d", code)
	}
}
