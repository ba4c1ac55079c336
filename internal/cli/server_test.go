package cli_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"vmimport/internal/cli"
	"vmimport/internal/servers/serverstest"
)

const (
	serverID = serverstest.ServerID
	volumeID = serverstest.VolumeID
	imageID  = "00000000-0000-0000-0000-000000000001"
)

// site is a console, and the cloud that its commands reach.
type site struct {
	*console
	cloud *serverstest.Cloud
	vars  map[string]string
}

func newSite() *site {
	s := &site{cloud: serverstest.New(), vars: map[string]string{"OS_AUTH_URL": serverstest.AuthURL, "VMIMPORT_TOKEN": serverstest.Token}}
	s.console = newConsole(nil)
	s.HTTP = s.cloud.Client()
	s.Getenv = func(name string) string { return s.vars[name] }
	return s
}

// run runs a command line, and fails if a secret is printed.
func (s *site) run(t *testing.T, line string) int {
	t.Helper()
	s.out.Reset()
	s.err.Reset()
	s.Args = strings.Fields(line)
	code := cli.Main(t.Context(), s.Env)
	for _, secret := range []string{serverstest.AdminPass, serverstest.Token, serverstest.Password} {
		if strings.Contains(s.out.String()+s.err.String(), secret) {
			t.Errorf("%s printed a secret:\n%s\n%s", line, s.out.String(), s.err.String())
		}
	}
	return code
}

// wants runs a command line and compares what it gives: the exit code, and what is on
// stdout and stderr.
func (s *site) wants(t *testing.T, line string, code int, out string, err ...string) {
	t.Helper()
	if got := s.run(t, line); got != code {
		t.Errorf("%s: exit code %d, want %d: %s", line, got, code, s.err.String())
	}
	if !strings.Contains(s.out.String(), out) || out == "" && s.out.Len() > 0 {
		t.Errorf("%s: stdout is %q, want %q", line, s.out.String(), out)
	}
	for _, want := range err {
		if !strings.Contains(s.err.String(), want) {
			t.Errorf("%s: stderr lacks %q:\n%s", line, want, s.err.String())
		}
	}
}

func (s *site) stopped() {
	s.cloud.AddServer(serverstest.Server{ID: serverID, Name: "web01", Status: "SHUTOFF", Volumes: []string{volumeID}})
}

// inBubble runs f in a time of its own.
func inBubble(t *testing.T, f func(*testing.T, *site)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { f(t, newSite()) })
}

func TestServerWayThrough(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T, s *site) {
		s.wants(t, "server image "+serverID, 1, "", "server_running", "vmimport server stop "+serverID)
		s.wants(t, "server stop --yes "+serverID, 0, "status  SHUTOFF\n",
			"stopping: ACTIVE, 0s\n", "stopping: ACTIVE, powering-off, 1s\n", "next: vmimport server image "+serverID+"\n")
		s.wants(t, "server stop --yes "+serverID, 0, "status  SHUTOFF\n")
		s.wants(t, "server image "+serverID, 0, imageID, "imaging: queued, 0s\n", "imaging: saving",
			"next: vmimport server export "+serverID+" --to CONTAINER\n", "  or: vmimport server start "+serverID)
		s.wants(t, "server image --start-again "+serverID, 0, "server status  ACTIVE\n", imageID+" was begun at", "--new makes another")
		s.wants(t, "server start "+serverID, 0, "status  ACTIVE\n", "next: vmimport server export")
		s.wants(t, "server stop -q -y "+serverID, 0, "SHUTOFF")
		if s.err.Len() > 0 {
			t.Errorf("stderr is %s", s.err.String())
		}
	})
}

// events returns the kinds of the events on stdout, and the last line.
func (s *site) events(t *testing.T) (kinds string, last map[string]any) {
	t.Helper()
	for d := json.NewDecoder(bytes.NewReader(s.out.Bytes())); d.More(); {
		last = nil
		if err := d.Decode(&last); err != nil {
			t.Fatal(err)
		}
		kinds += fmt.Sprint(last["event"], " ")
	}
	return kinds, last
}

func TestServerAsJSON(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T, s *site) {
		s.cloud.Reply("GET /compute/", 1, 200, "<html>"+serverstest.AdminPass)
		s.wants(t, "server start --json "+serverID, 0, `"trouble"`)
		if kinds, last := s.events(t); kinds != "trouble server <nil> " || last["status"] != "ACTIVE" || last["name"] != "web01" || s.err.Len() > 0 {
			t.Errorf("got %s%v", kinds, last)
		}
		s.wants(t, "server stop --json --yes "+serverID, 0, `"powering-off"`)
		if kinds, last := s.events(t); kinds != "server server server <nil> " || last["status"] != "SHUTOFF" {
			t.Errorf("got %s%v", kinds, last)
		}
		s.cloud.Reply("POST /volume/", 1, 429, serverstest.AdminPass, "Retry-After", "600")
		s.wants(t, "server image --json --start-again "+serverID, 0, `"until"`)
		kinds, last := s.events(t)
		if kinds != "waiting image image image server server server <nil> " || last["image_id"] != imageID || last["server_status"] != "ACTIVE" || last["found"] != false {
			t.Errorf("got %s%v", kinds, last)
		}
		s.cloud.AddServer(serverstest.Server{ID: serverID, Locked: true})
		s.wants(t, "server stop --json --yes "+serverID, 1, `"ACTIVE"`, `"code":"server_locked"`, `"remedy":"Unlock it`)
	})
}

func TestServerConfirmation(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		typed    string
		terminal bool
		args     string
		status   string // of a server that is not running
		code     int
		says     string
	}{
		"the name":          {typed: "web01\n", terminal: true, says: "Type the server's name"},
		"something else":    {typed: "y\n", terminal: true, code: 1, says: "not confirmed"},
		"nothing":           {typed: "", terminal: true, code: 1, says: "the server was not touched"},
		"no terminal":       {typed: "web01\n", code: 2, says: "needs --yes"},
		"no terminal, yes":  {args: "--yes"},
		"stopped already":   {terminal: true, status: "SHUTOFF"},
		"token from there":  {typed: serverstest.Token + "\nweb01\n", terminal: true, args: "--token-file -", code: 2, says: "needs --yes"},
		"token, with a yes": {typed: serverstest.Token + "\n", terminal: true, args: "--token-file - --yes"},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, s *site) {
				if tt.status != "" {
					s.stopped()
				}
				s.Stdin = strings.NewReader(tt.typed)
				if tt.terminal {
					s.Columns = func() int { return 80 }
				}
				s.wants(t, "server stop "+serverID+" "+tt.args, tt.code, map[bool]string{true: "SHUTOFF"}[tt.code == 0], tt.says)
				if tt.code == 2 && s.cloud.Calls(".*") > 0 {
					t.Error("the cloud was asked")
				}
				if tt.code != 0 && s.cloud.Calls("POST /compute/") > 0 {
					t.Error("the server was stopped")
				}
				if strings.Contains(s.err.String(), "Type the") != (tt.typed != "" && tt.code != 2 && tt.args == "" || name == "nothing") {
					t.Errorf("stderr is %s", s.err.String())
				}
			})
		})
	}
}

// A file is a terminal or not, whatever stderr is.
func TestServerConfirmationFromAFile(t *testing.T) {
	t.Parallel()
	f, err := os.Create(filepath.Join(t.TempDir(), "in"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	s := newSite()
	s.Stdin, s.Columns = f, func() int { return 80 }
	s.wants(t, "server stop "+serverID, 2, "", "needs --yes")
}

func TestServerInterrupt(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		args   string
		at     string // request during which it comes
		stdin  bool   // it comes while a name is waited for
		says   []string
		status string
	}{
		"before":         {args: "stop -y", at: "GET /identity/", says: []string{"interrupted"}},
		"at the prompt":  {args: "stop", stdin: true, says: []string{"the server was not touched"}},
		"while stopping": {args: "stop -y", at: "POST /compute/", says: []string{"goes on", "vmimport server stop " + serverID + "   to go on"}},
		"while starting": {args: "start", at: "POST /compute/", status: "SHUTOFF", says: []string{"goes on", "vmimport server start " + serverID}},
		"while imaging":  {args: "image", at: "PATCH /image/", status: "SHUTOFF", says: []string{"it goes on", "vmimport server image " + serverID}},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, s *site) {
				if tt.status != "" {
					s.stopped()
				}
				ctx, cancel := context.WithCancel(t.Context())
				s.Args = strings.Fields("server " + tt.args + " " + serverID)
				if tt.stdin {
					in, typing := io.Pipe()
					defer typing.Close()
					s.Stdin, s.Columns = in, func() int { return 80 }
					time.AfterFunc(time.Second, cancel)
				} else {
					s.cloud.On(tt.at, 1, cancel)
				}
				if code := cli.Main(ctx, s.Env); code != cli.ExitInterrupted {
					t.Errorf("exit code %d", code)
				}
				for _, want := range tt.says {
					if !strings.Contains(s.err.String(), want) {
						t.Errorf("stderr lacks %q:\n%s", want, s.err.String())
					}
				}
			})
		})
	}
}

func TestServerFailures(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		prepare func(*site)
		args    string
		code    int
		says    []string
	}{
		"no command":       {nil, "", 2, []string{"server --help"}},
		"unknown command":  {nil, "halt", 2, []string{`unknown command "halt"`}},
		"no server":        {nil, "start", 2, []string{"id of one server"}},
		"two servers":      {nil, "start a b", 2, []string{"id of one server"}},
		"a name":           {nil, "start web/01", 2, []string{"not the name"}},
		"a wait below 0":   {nil, "start x --timeout -1s", 2, []string{"--timeout"}},
		"no cloud":         {func(s *site) { s.vars["OS_AUTH_URL"] = "" }, "start x", 2, []string{"OS_AUTH_URL or --auth-url"}},
		"nobody":           {func(s *site) { s.vars["VMIMPORT_TOKEN"] = "" }, "start x", 2, []string{"VMIMPORT_TOKEN or --token-file"}},
		"no token file":    {nil, "start x --token-file missing", 1, []string{"token"}},
		"domain":           {func(s *site) { s.vars["VMIMPORT_TOKEN"] = serverstest.TokenDomain }, "start x", 1, []string{"contract01", "a project as its scope"}},
		"another project":  {nil, "start x --project-id p9", 1, []string{"project_mismatch"}},
		"another region":   {nil, "start " + serverID + " --os-region mars", 1, []string{`"mars"`}},
		"unknown":          {nil, "start 9", 1, []string{"server_unknown"}},
		"in error":         {func(s *site) { s.cloud.AddServer(serverstest.Server{ID: serverID, Status: "ERROR"}) }, "stop -y " + serverID, 3, []string{"state ERROR"}},
		"down":             {func(s *site) { s.cloud.Reply("GET /compute/", 1000, 503, serverstest.AdminPass) }, "start " + serverID + " --timeout 5m", 1, []string{"within 5m0s", "asking again"}},
		"the image failed": {func(s *site) { s.stopped(); s.cloud.On("PATCH", 1, func() { s.cloud.DeleteImage(imageID) }) }, "image " + serverID, 3, []string{"image_failed", "remedy"}},
		"no wait": {func(s *site) { s.stopped(); s.cloud.Reply("POST /volume/", 1, 429, serverstest.AdminPass) }, "image --no-wait " + serverID, 1,
			[]string{"without --no-wait"}},
		"a long wait": {func(s *site) {
			s.stopped()
			s.cloud.Reply("POST /volume/", 1, 429, "", "Retry-After", "3600")
			s.cloud.SavingFor = 20 * time.Hour
		}, "image " + serverID + " --timeout 2h", 1, []string{"waiting until", "image_timeout"}},
		"it cannot be started again": {func(s *site) {
			s.stopped()
			s.cloud.Reply("POST /compute/", 1, 403, serverstest.Fault(403, "forbidden", serverstest.AdminPass))
		}, "image --start-again " + serverID, 1, []string{"cloud_denied", "next: vmimport server export"}},
		"a refusal with all": {func(s *site) {
			s.cloud.Reply("GET /compute/", 1, 400, `{"server":{"metadata":{"admin_pass":"`+serverstest.AdminPass+`"}}}`)
		}, "stop -y " + serverID, 1, []string{"cloud_refused", "status 400"}},
	} {
		for _, flag := range []string{"", " --json"} {
			t.Run(name+flag, func(t *testing.T) {
				inBubble(t, func(t *testing.T, s *site) {
					if tt.prepare != nil {
						tt.prepare(s)
					}
					if code := s.run(t, "server "+tt.args+flag); code != tt.code {
						t.Errorf("exit code %d, want %d: %s", code, tt.code, s.err.String())
					}
					for _, want := range tt.says {
						if flag == "" && !strings.Contains(s.err.String(), want) {
							t.Errorf("stderr lacks %q:\n%s", want, s.err.String())
						}
					}
				})
			})
		}
	}
}

func TestServerSettings(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T, s *site) {
		s.vars = map[string]string{"OS_USERNAME": "alice", "OS_PASSWORD": serverstest.Password, "OS_PROJECT_NAME": "web",
			"OS_COMPUTE_ENDPOINT_OVERRIDE": "http://cloud.test/compute/v2/" + serverstest.Project}
		s.wants(t, "server start --os-region jp-east-1 --auth-url "+serverstest.AuthURL+" "+serverID, 0, "ACTIVE")
	})
}

func TestServerOnATerminal(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T, s *site) {
		s.Columns = func() int { return 40 }
		s.wants(t, "server stop -y "+serverID, 0, "SHUTOFF", "\r/ 1s  stopping: ACTIVE", "\r| 1s  stopping: ACTIVE, powering-off", "next: vmimport server image")
		for line := range strings.SplitSeq(s.err.String(), "\r") {
			if drawn, _, _ := strings.Cut(line, "\n"); len(drawn) > 39 {
				t.Errorf("%d columns: %q", len(drawn), drawn)
			}
		}
	})
}
