package openstacktest

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"vmimport/internal/cli"
	"vmimport/internal/client"
	env "vmimport/internal/testenv/openstack"
	"vmimport/tasks"
)

// compute is Nova in the cloud that all tests share. It is started for those who need it.
var compute = sync.OnceValues(func() (*env.Compute, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	return cloud.StartCompute(ctx)
})

func nova(t *testing.T) *env.Compute {
	t.Helper()
	n, err := compute()
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// adminPass is in the metadata of servers, as some clouds put it there.
const adminPass = "correct-horse-battery-staple"

// terminal runs commands of the command line as a customer of both clouds: the one that a
// server is in, and the import service.
type terminal struct {
	t    *testing.T
	vars map[string]string
}

// terminalOf returns one for alpha, with a token of that scope.
func terminalOf(t *testing.T, in *installation, container string, scope env.Scope) *terminal {
	t.Helper()
	return &terminal{t: t, vars: map[string]string{
		"OS_AUTH_URL": cloud.KeystoneURL, "OS_REGION_NAME": cloud.Region,
		"VMIMPORT_TOKEN": tokenOf(t, cloud.Alpha, scope), "VMIMPORT_PROJECT_ID": cloud.Alpha.ProjectID,
		"VMIMPORT_ENDPOINT": "http://" + in.api.Listen, "VMIMPORT_CONTAINER": container,
	}}
}

// run runs a command and returns its exit code.
func (c *terminal) run(ctx context.Context, args ...string) (code int, stdout, stderr string) {
	c.t.Helper()
	var out, errs bytes.Buffer
	code = cli.Main(ctx, cli.Env{
		Args: args, Stdin: strings.NewReader(""), Stdout: &out, Stderr: &errs,
		Getenv: func(name string) string { return c.vars[name] }, Columns: func() int { return 0 },
	})
	for _, text := range []string{out.String(), errs.String()} {
		if strings.Contains(text, adminPass) || strings.Contains(text, "gAAAA") {
			c.t.Errorf("%q printed a secret: %s", args, text)
		}
	}
	c.t.Logf("vmimport %s: %d\n%s%s", strings.Join(args, " "), code, &out, &errs)
	return code, out.String(), errs.String()
}

// must runs a command that succeeds, and returns what it prints.
func (c *terminal) must(args ...string) (stdout, stderr string) {
	c.t.Helper()
	code, stdout, stderr := c.run(c.t.Context(), args...)
	if code != cli.ExitOK {
		c.t.Fatalf("%q: exit code %d", args, code)
	}
	return stdout, stderr
}

// A server is stopped, becomes an image, and that an image in another region: another cloud,
// with a Keystone, a Swift and a Glance of its own, and an import service beside it.
func TestLeavingTheCloud(t *testing.T) {
	t.Parallel()
	n := nova(t)
	other, err := env.Start(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer other.Stop()
	in := install(t, settings{})
	in.start("worker", settings{})
	there := install(t, settings{cloud: other})
	there.start("worker", settings{cloud: other})

	together(t, map[string]func(*testing.T){
		"a server that boots from an image": func(t *testing.T) {
			disk := readFile(t, guest(t, "ext4").Path)
			server, err := n.CreateServer(t.Context(), cloud.Alpha, "web01", disk, map[string]string{"admin_pass": adminPass})
			if err != nil {
				t.Fatal(err)
			}
			moves(t, in, there, other, n, server, disk)
		},
		"a server that boots from a volume": func(t *testing.T) {
			disk := readFile(t, guest(t, "sparse").Path)
			server, _, err := n.CreateVolumeServer(t.Context(), cloud.Alpha, "db01", disk, map[string]string{"admin_pass": adminPass})
			if err != nil {
				t.Fatal(err)
			}
			moves(t, in, there, other, n, server, disk)
		},
	})
}

// moves moves a server's disk from in to there.
func moves(t *testing.T, in, there *installation, other *env.Cloud, n *env.Compute, server string, disk []byte) {
	alice := customerOf(t, cloud.Alpha)
	c := terminalOf(t, in, alice.container, env.ProjectScope)
	stdout, _ := c.must("server", "export", server, "--to", alice.container, "--yes", "--start-again", "--json")
	var last struct {
		ImageID string `json:"image_id"`
		Extra   struct {
			Checksum string
			Objects  []struct{ Name string }
		} `json:"vmimport"`
	}
	lines := strings.Split(strings.TrimSpace(stdout), "\n")
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &last); err != nil || len(last.Extra.Objects) != 2 {
		t.Fatalf("the last line is %s, %v", lines[len(lines)-1], err)
	}
	if s, err := n.Server(t.Context(), server); err != nil || s.Status != "ACTIVE" {
		t.Errorf("the server is %+v, %v", s, err)
	}
	// Again, and nothing is done again.
	images := imagesOfServer(t, server)
	c.must("server", "export", server, "--to", alice.container, "--yes")
	if again := imagesOfServer(t, server); len(images) != 1 || !slices.Equal(images, again) {
		t.Errorf("images of the server: %q, then %q", images, again)
	}

	// The customer carries both objects over.
	token, err := other.Token(t.Context(), other.Alpha, env.ProjectScope)
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range last.Extra.Objects {
		carry(t, other, token, o.Name, alice.gotten(o.Name))
	}
	image := last.Extra.Objects[0].Name
	api := there.clientWith(token)
	id := there.register(api, client.Registration{
		Location: client.Gen3.Location(other.Alpha.ProjectID, client.Object{Container: "moved", Name: image}), Checksum: last.Extra.Checksum,
	})
	imp := there.wantEnd(api, id, time.Minute, tasks.Succeeded, "")
	if imp.ID != last.ImageID || imp.Name+".img.gz" != image {
		t.Errorf("the new image is %s called %s, the old one was %s", imp.ID, imp.Name, last.ImageID)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, other.GlanceURL+"/v2/images/"+imp.ID+"/file", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Auth-Token", token)
	if got := answerOf(t, req, http.StatusOK); !bytes.Equal(got, disk) {
		t.Errorf("the new image has %d bytes, not the %d of the server's disk", len(got), len(disk))
	}
}

// carry puts an object into the container "moved" of a cloud.
func carry(t *testing.T, to *env.Cloud, token, name string, content []byte) {
	t.Helper()
	for _, path := range []string{"/moved", "/moved/" + url.PathEscape(name)} {
		body := content
		if path == "/moved" {
			body = nil
		}
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, to.AccountURL(to.Alpha)+path, bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("X-Auth-Token", token)
		answerOf(t, req, 0)
	}
}

// answerOf returns the body of an answer with that status, or any success if it is 0.
func answerOf(t *testing.T, req *http.Request, status int) []byte {
	t.Helper()
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var body bytes.Buffer
	if _, err := body.ReadFrom(resp.Body); err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != status && (status != 0 || resp.StatusCode/100 != 2) {
		t.Fatalf("%s %s: %s: %.200s", req.Method, req.URL.Path, resp.Status, &body)
	}
	return body.Bytes()
}

// imagesOfServer lists the images that vmimport had made of a server.
func imagesOfServer(t *testing.T, server string) (ids []string) {
	t.Helper()
	body, status := get(t, cloud.Alpha, cloud.GlanceURL+"/v2/images?vmimport_server="+server)
	var list struct {
		Images []struct{ ID string } `json:"images"`
	}
	if err := json.Unmarshal(body, &list); status != http.StatusOK || err != nil {
		t.Fatalf("list images: %d, %v: %s", status, err, body)
	}
	for _, i := range list.Images {
		ids = append(ids, i.ID)
	}
	return ids
}

// Each step by itself, and what is refused.
func TestServerSteps(t *testing.T) {
	t.Parallel()
	n := nova(t)
	in := install(t, settings{})
	disk := random(70, 1<<20)
	server, volume, err := n.CreateVolumeServer(t.Context(), cloud.Alpha, "app01", disk, map[string]string{"admin_pass": adminPass})
	if err != nil {
		t.Fatal(err)
	}
	domain := terminalOf(t, in, "", env.DomainScope)
	delete(domain.vars, "VMIMPORT_PROJECT_ID")
	if code, _, stderr := domain.run(t.Context(), "server", "stop", server, "--yes"); code != cli.ExitUsage && code != cli.ExitError || !strings.Contains(stderr, "domain") {
		t.Errorf("a token of a domain: %d, %s", code, stderr)
	}
	c := terminalOf(t, in, "", env.ProjectScope)
	if code, _, _ := c.run(t.Context(), "server", "stop", server); code != cli.ExitUsage {
		t.Errorf("without a terminal and --yes: %d", code)
	}
	if code, _, stderr := c.run(t.Context(), "server", "image", server); code != cli.ExitError || !strings.Contains(stderr, "server stop") {
		t.Errorf("of a server that runs: %d, %s", code, stderr)
	}
	c.must("server", "stop", server, "--yes")
	if s, err := n.Server(t.Context(), server); err != nil || s.Status != "SHUTOFF" {
		t.Errorf("the server is %+v, %v", s, err)
	}
	c.must("server", "stop", server, "--yes") // again

	// The first try is broken off while the volume is copied, and the next one goes on with it.
	held := make(chan struct{})
	volume.SetUploads(env.Uploads{Hold: held})
	ctx, stop := context.WithCancel(t.Context())
	go func() {
		defer stop()
		until(t, "an upload", func() bool { return volume.Status() == "uploading" && len(imagesOfServer(t, server)) == 1 })
	}()
	if code, _, _ := c.run(ctx, "server", "image", server, "--name", "app"); code != cli.ExitInterrupted {
		t.Errorf("broken off: %d", code)
	}
	close(held)
	stdout, _ := c.must("server", "image", server, "--name", "app", "--start-again", "--json")
	ids := imagesOfServer(t, server)
	if len(ids) != 1 || !strings.Contains(stdout, ids[0]) || !bytes.Equal(download(t, ids[0]), disk) {
		t.Errorf("images of the server: %q; printed %s", ids, stdout)
	}
	if s, err := n.Server(t.Context(), server); err != nil || s.Status != "ACTIVE" {
		t.Errorf("the server is %+v, %v", s, err)
	}

	// The copy to another zone has failed.
	volume.SetUploads(env.Uploads{SyncStatusReason: "no room"})
	c.must("server", "stop", server, "--yes")
	if code, _, stderr := c.run(t.Context(), "server", "image", server, "--name", "app", "--new"); code != cli.ExitFailed || !strings.Contains(stderr, "no room") {
		t.Errorf("sync_status_reason: %d, %s", code, stderr)
	}
	other := terminalOf(t, in, "", env.ProjectScope)
	other.vars["VMIMPORT_TOKEN"], other.vars["VMIMPORT_PROJECT_ID"] = tokenOf(t, cloud.Beta, env.ProjectScope), cloud.Beta.ProjectID
	if code, _, _ := other.run(t.Context(), "server", "stop", server, "--yes"); code != cli.ExitError {
		t.Errorf("another project's server: %d", code)
	}
}
