package main

import (
	"encoding/json"
	"errors"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"vmimport/internal/client"
	"vmimport/internal/client/clienttest"
	"vmimport/tasks"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"vmimport": main})
}

// TestScripts runs the program against a service of its own for each script in
// testdata. The commands that scripts have besides the usual ones are:
//
//	exits CODE ARG…                 run vmimport, which must exit with that code
//	plan NAME STEP…                 how imports of that name go on: state[:percent]
//	add ID STEP…                    an import that exists
//	planexport IMAGE STEP…          how exports of that image go on
//	addexport ID STEP…              an export that exists
//	object CONTAINER NAME FILE      put a file into object storage
//	stored CONTAINER NAME FILE      the object must be as the file
//	fail CALL N STATUS              the next N calls fail; 0 loses the connection
//	await CALL N                    wait for N more calls
//	lose CALL N                     the next N calls are heard, and not answered
//	registered                      print the last accepted registration
//	exported                        print the last accepted request for an export
func TestScripts(t *testing.T) {
	t.Parallel()
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(env *testscript.Env) error {
			s := clienttest.New()
			env.Defer(s.Close)
			env.Values[service{}] = s
			env.Setenv("GORACE", "atexit_sleep_ms=0") // the race detector's second after each run
			env.Setenv("VMIMPORT_ENDPOINT", s.URL)
			env.Setenv("VMIMPORT_TOKEN", clienttest.Token)
			env.Setenv("VMIMPORT_PROJECT_ID", clienttest.Project)
			env.Setenv("VMIMPORT_REGION", "jp-east-3")
			env.Setenv("VMIMPORT_OBJECTS_URL", s.ObjectsURL())
			env.Setenv("VMIMPORT_CONTAINER", "images")
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits":      exits,
			"plan":       onService(func(s *clienttest.Service, a []string) { s.Plan(a[0], steps(a[1:])...) }),
			"add":        onService(func(s *clienttest.Service, a []string) { s.Add(tasks.ID(a[0]), steps(a[1:])...) }),
			"planexport": onService(func(s *clienttest.Service, a []string) { s.PlanExport(a[0], exportSteps(a[1:])...) }),
			"addexport":  onService(func(s *clienttest.Service, a []string) { s.AddExport(tasks.ID(a[0]), exportSteps(a[1:])...) }),
			"lose":       onService(func(s *clienttest.Service, a []string) { s.Lose(a[0], number(a[1])) }),
			"fail":       onService(func(s *clienttest.Service, a []string) { s.Fail(a[0], number(a[1]), number(a[2]), "") }),
			"await":      onService(func(s *clienttest.Service, a []string) { s.Await(a[0], s.Calls(a[0])+number(a[1])) }),
			"object": func(ts *testscript.TestScript, _ bool, a []string) {
				serviceOf(ts).PutObject(a[0], a[1], []byte(ts.ReadFile(a[2])))
			},
			"stored": func(ts *testscript.TestScript, _ bool, a []string) {
				if content, ok := serviceOf(ts).Object(a[0], a[1]); !ok || string(content) != ts.ReadFile(a[2]) {
					ts.Fatalf("object %s in %s: found %v, or it is not as %s", a[1], a[0], ok, a[2])
				}
			},
			"registered": func(ts *testscript.TestScript, _ bool, _ []string) {
				all := serviceOf(ts).Registered()
				ts.Check(json.NewEncoder(ts.Stdout()).Encode(all[len(all)-1]))
			},
			"exported": func(ts *testscript.TestScript, _ bool, _ []string) {
				all := serviceOf(ts).Exported()
				ts.Check(json.NewEncoder(ts.Stdout()).Encode(all[len(all)-1]))
			},
		},
	})
}

// service is the key of a script's service.
type service struct{}

func serviceOf(ts *testscript.TestScript) *clienttest.Service {
	return ts.Value(service{}).(*clienttest.Service)
}

func onService(f func(*clienttest.Service, []string)) func(*testscript.TestScript, bool, []string) {
	return func(ts *testscript.TestScript, _ bool, args []string) { f(serviceOf(ts), args) }
}

func exits(ts *testscript.TestScript, _ bool, args []string) {
	err := ts.Exec("vmimport", args[1:]...)
	code := 0
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		code = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	if code != number(args[0]) {
		ts.Fatalf("vmimport %s: exit code %d, want %s", strings.Join(args[1:], " "), code, args[0])
	}
}

func steps(args []string) []client.Import {
	var out []client.Import
	for _, arg := range args {
		state, percent, _ := strings.Cut(arg, ":")
		imp := client.Import{State: tasks.State(state)}
		if percent != "" {
			imp.Progress = number(percent)
			imp.Extra.Run = client.Run{Stage: tasks.StageCopying, DoneBytes: int64(imp.Progress), TotalBytes: 100, Attempt: 1}
		}
		if imp.State == tasks.Succeeded {
			imp.Extra.SourceFormat, imp.Extra.VirtualSize = "qcow2", 10<<30
		}
		if imp.State == tasks.Failed {
			imp.ErrorMessage = "Image file is not a valid vmdk. Export it again."
			imp.Extra.FailureCode, imp.Extra.Remedy = "format_invalid", "Export it again."
		}
		out = append(out, imp)
	}
	return out
}

// exportSteps are steps for an export: what is common is told in the same words.
func exportSteps(args []string) []client.Export {
	done := clienttest.Exports("web01")[2]
	var out []client.Export
	for _, imp := range steps(args) {
		e := client.Export{State: imp.State, Progress: imp.Progress, ImageID: "i-1", ImageName: "web01",
			StorageContainer: "/v2/AUTH_" + clienttest.Project + "/backup", ErrorMessage: imp.ErrorMessage}
		if e.State == tasks.Succeeded {
			e.Extra = done.Extra
		}
		e.Extra.Run = imp.Extra.Run
		out = append(out, e)
	}
	return out
}

func number(s string) int {
	n, err := strconv.Atoi(s)
	if err != nil {
		panic(err)
	}
	return n
}
