package cli_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"

	"vmimport/internal/cli"
	"vmimport/internal/client"
	"vmimport/internal/client/clienttest"
	"vmimport/internal/servers/serverstest"
	"vmimport/tasks"
)

// departure is a site with an import service, whose requests may be in the way.
type departure struct {
	*site
	service *clienttest.Service
	before  func(n int) // each request, from 1
	after   func(n int)
	n       int
}

// withService runs f with a cloud and a service in a time of their own.
func withService(t *testing.T, f func(*testing.T, *departure)) {
	t.Helper()
	service := clienttest.New() // which listens, and so is outside
	defer service.Close()
	synctest.Test(t, func(t *testing.T) {
		d := &departure{site: newSite(), service: service, before: func(int) {}, after: func(int) {}}
		d.vars["VMIMPORT_ENDPOINT"] = service.URL
		d.vars["VMIMPORT_OBJECTS_URL"] = service.ObjectsURL()
		d.HTTP = &http.Client{Transport: &wire{d, d.cloud.Client().Transport}}
		f(t, d)
	})
}

// wire brings requests to the cloud or to the service, without a network.
type wire struct {
	*departure
	cloud http.RoundTripper
}

func (w *wire) RoundTrip(r *http.Request) (resp *http.Response, err error) {
	w.n++
	n := w.n
	w.before(n)
	if err := r.Context().Err(); err != nil {
		return nil, err
	}
	defer func() {
		if recover() == http.ErrAbortHandler {
			resp, err = nil, io.ErrUnexpectedEOF
		}
		if w.after(n); r.Context().Err() != nil {
			resp, err = nil, r.Context().Err()
		}
	}()
	if "http://"+r.URL.Host != w.service.URL {
		return w.cloud.RoundTrip(r)
	}
	if r.Header.Get("X-Auth-Token") == serverstest.Token { // the token's names differ here
		r.Header.Set("X-Auth-Token", clienttest.Token)
	}
	answer := httptest.NewRecorder()
	w.service.Config.Handler.ServeHTTP(answer, r)
	return answer.Result(), nil
}

const serverExport = "server export --to backup --yes --start-again " + serverID

func TestServerExport(t *testing.T) {
	t.Parallel()
	withService(t, func(t *testing.T, d *departure) {
		d.wants(t, serverExport, 0, "object         web01.img.gz  3.0 MiB",
			"stopping: ACTIVE", "imaging: saving", "starting: ", "export 00000000-0000-4000-8000-000000000001\n", "copying 40%", "succeeded 100%",
			"next: vmimport import --container backup --object web01.img.gz --checksum 2fd4")
		if want := (client.ExportRequest{ImageID: imageID, StorageContainer: "/v2/AUTH_" + serverstest.Project + "/backup"}); d.service.Exported()[0] != want {
			t.Errorf("asked for %+v", d.service.Exported())
		}
		// Again: all is there.
		d.wants(t, serverExport, 0, "server status  ACTIVE\n", imageID+" was begun at", "export 00000000-0000-4000-8000-000000000001\n")
		d.wants(t, "server export --to other --for kvm "+serverID, 0, "for            kvm\n", "next: vmimport server start "+serverID)
		if len(d.service.Exported()) != 2 || d.cloud.Calls("POST /volume/") != 1 {
			t.Errorf("%d exports, %d images", len(d.service.Exported()), d.cloud.Calls("POST /volume/"))
		}
		d.wants(t, serverExport+" --new --name web02", 0, "succeeded")
		if len(d.service.Exported()) != 3 || d.cloud.Calls("POST /volume/") != 2 {
			t.Errorf("%d exports, %d images", len(d.service.Exported()), d.cloud.Calls("POST /volume/"))
		}
	})
}

// The token that the cloud has given for a password serves for the service, too.
func TestServerExportWithAPassword(t *testing.T) {
	t.Parallel()
	withService(t, func(t *testing.T, d *departure) {
		delete(d.vars, "VMIMPORT_TOKEN")
		for name, value := range map[string]string{"OS_USERNAME": "alice", "OS_PASSWORD": serverstest.Password,
			"OS_USER_DOMAIN_NAME": "contract01", "OS_PROJECT_ID": serverstest.Project} {
			d.vars[name] = value
		}
		d.wants(t, serverExport, 0, "succeeded")
	})
}

func TestServerExportAsJSON(t *testing.T) {
	t.Parallel()
	withService(t, func(t *testing.T, d *departure) {
		steps := func() (all string, last map[string]any) {
			for j := json.NewDecoder(&d.out); j.More(); {
				last = nil
				if err := j.Decode(&last); err != nil {
					t.Fatal(err)
				}
				if last["event"] == "step" {
					all += fmt.Sprint(last["step"], " ", last["state"], ", ")
				}
			}
			return all, last
		}
		d.wants(t, serverExport+" --json", 0, `{"event":"step","step":"image","state":"done","server_id":"`+serverID+`","image_id":"`+imageID+`"}`)
		all, last := steps()
		if all != "stop begun, stop done, image begun, image done, start begun, start done, export begun, export done, " {
			t.Errorf("steps are %s", all)
		}
		if last["server_id"] != serverID || last["server_status"] != "ACTIVE" || last["image_id"] != imageID || last["export_status"] != "succeeded" || d.err.Len() > 0 {
			t.Errorf("the result is %v", last)
		}
		d.wants(t, "server export --json --to backup "+serverID, 0, `"stop","state":"skipped"`)
		if all, _ = steps(); all != "stop skipped, image begun, image done, export begun, export done, " {
			t.Errorf("steps are %s", all)
		}
	})
}

// A run ends at any moment: before any of its requests, or when nobody heard the answer.
// The next one goes on, and nothing is done twice.
func TestServerExportGoesOn(t *testing.T) {
	t.Parallel()
	for _, heard := range []bool{false, true} {
		for at, ended := 1, false; !ended; at++ {
			name := fmt.Sprintf("at request %d, heard %v", at, heard)
			withService(t, func(t *testing.T, d *departure) {
				ctx, cancel := context.WithCancel(t.Context())
				leave := func(n int) {
					if n == at {
						cancel()
					}
				}
				if d.before = leave; heard {
					d.before, d.after = func(int) {}, leave
				}
				d.Args = strings.Fields(serverExport)
				code := cli.Main(ctx, d.Env)
				ended = ctx.Err() == nil
				cancel()
				if !ended && (code != cli.ExitInterrupted || !strings.Contains(d.err.String(), "the same command   to go on from here")) {
					t.Errorf("%s: exit code %d: %s", name, code, d.err.String())
				}
				d.before, d.after = func(int) {}, func(int) {}
				d.wants(t, serverExport, 0, "server status  ACTIVE\n", "next: vmimport import")
				if stops := d.cloud.Calls("POST /compute/.*/action"); stops > 2 {
					t.Errorf("%s: %d stops and starts", name, stops)
				}
				if images, exports := d.cloud.Calls("POST /volume/"), len(d.service.Exported()); images != 1 || exports != 1 {
					t.Errorf("%s: %d images, %d exports", name, images, exports)
				}
				if t.Failed() {
					ended = true
				}
			})
		}
	}
}

func TestServerExportRefusals(t *testing.T) {
	t.Parallel()
	untouched := func(d *departure) bool { return d.cloud.Calls("POST /") == 0 && len(d.service.Exported()) == 0 }
	for name, tt := range map[string]struct {
		prepare func(*departure)
		line    string
		code    int
		says    string
	}{
		"no container":  {func(*departure) {}, "server export --yes " + serverID, 2, "set --to"},
		"odd purpose":   {func(*departure) {}, serverExport + " --for hyperv", 2, "cloud, vmware, kvm"},
		"no server":     {func(*departure) {}, "server export --to backup", 2, "takes the id of one server"},
		"nobody to ask": {func(*departure) {}, "server export --to backup " + serverID, 2, "needs --yes"},
		"no service":    {func(d *departure) { delete(d.vars, "VMIMPORT_ENDPOINT") }, serverExport, 2, "VMIMPORT_ENDPOINT"},
		"a service that is away": {func(d *departure) { d.service.Fail(clienttest.ListExports, 1, 503, "") }, serverExport, 1,
			"temporarily unavailable"},
		"another project": {func(*departure) {}, serverExport + " --project-id other", 1, "project_mismatch"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			withService(t, func(t *testing.T, d *departure) {
				tt.prepare(d)
				d.wants(t, tt.line, tt.code, "", tt.says)
				if !untouched(d) {
					t.Error("something was done")
				}
			})
		})
	}
}

func TestServerExportFails(t *testing.T) {
	t.Parallel()
	withService(t, func(t *testing.T, d *departure) {
		// The answer is lost: the export is found.
		d.service.PutObject("backup", "other", nil)
		d.service.Lose(clienttest.Export, 1)
		d.service.PlanExport(imageID, client.Export{State: tasks.Processing, ImageName: "web01"},
			client.Export{State: tasks.Failed, ErrorMessage: "No. Do.", Extra: client.ExportExtra{Run: client.Run{Remedy: "Do."}}})
		d.wants(t, serverExport, 3, "", "the export failed: No.", "export: 00000000-0000-4000-8000-000000000001", "remedy: Do.")
		// It was not there, and is not asked for again by itself.
		d.service.Fail(clienttest.Export, 1, 0, "")
		d.wants(t, serverExport, 1, "", "may have been accepted", "vmimport export list --long")
		// The server does not start: the export goes on, and that is said at its end.
		d.service.PlanExport(imageID, clienttest.Exports("web01")...)
		d.cloud.AddServer(serverstest.Server{ID: serverID, Status: "SHUTOFF", Locked: true})
		d.wants(t, serverExport, 1, "status         succeeded", "locked", "next: vmimport import")
	})
}
