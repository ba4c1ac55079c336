package openstacktest

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/goccy/go-yaml"

	"vmimport/internal/client"
	"vmimport/internal/secret"
	"vmimport/internal/testenv"
	"vmimport/internal/testenv/link"
	env "vmimport/internal/testenv/openstack"
	programs "vmimport/internal/testenv/service"
	"vmimport/tasks"
)

const region = "jp-east-3"

// settings are what differs between the programs that tests start. Zero members are as
// in production.
type settings struct {
	keystone    string // where the service gets its own tokens
	swift       string // in front of Swift, without a path
	glance      string // in front of Glance
	cacheTokens time.Duration
	listScope   string
	stallAfter  time.Duration
	accounts    string     // file of a second region, which has the ECS API
	cloud       *env.Cloud // in place of the one that all tests share
	checkpoints string     // how often one is made, and so how large the parts of exports are
}

// installation is the service as it is shipped, in processes of its own, with a Redis.
type installation struct {
	t     testing.TB
	dir   string
	redis *testenv.Redis
	api   *programs.Process

	mu  sync.Mutex
	all []*programs.Process // dead ones too
}

// binaries builds the programs, once.
var binaries = sync.OnceValues(func() (string, error) {
	dir := filepath.Join(cloud.Dir, "bin")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return "", err
	}
	return dir, programs.Build(dir)
})

// install starts an API that lives as long as the test, and no worker.
func install(t testing.TB, s settings) *installation {
	t.Helper()
	in := &installation{t: t, dir: t.TempDir(), redis: testenv.StartRedis(t)}
	t.Cleanup(in.end)
	in.api = in.start("api", s)
	return in
}

// start starts a program.
func (in *installation) start(program string, s settings) *programs.Process {
	in.t.Helper()
	bin, err := binaries()
	if err != nil {
		in.t.Fatal(err)
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	name := fmt.Sprintf("%s-%d", program, len(in.all)+1)
	config := filepath.Join(in.dir, name+".yaml")
	if err := in.configure(config, s); err != nil {
		in.t.Fatal(err)
	}
	p, err := programs.Start(bin, program, name, in.dir, config)
	if err != nil {
		in.t.Fatal(err)
	}
	in.all = append(in.all, p)
	return p
}

// configure writes a configuration.
func (in *installation) configure(path string, s settings) error {
	type m = map[string]any
	cloud := cmp.Or(s.cloud, cloud)
	password := filepath.Join(in.dir, "password")
	if err := os.WriteFile(password, []byte(cloud.Service.Password), 0o600); err != nil {
		return err
	}
	keystone := m{
		"url": cloud.KeystoneURL, "username": cloud.Service.Name, "password_file": password,
		"project": cloud.Service.ProjectName, "domain": cloud.Service.Domain,
	}
	fjcloud := m{"profile": "gen3", "extensions": []string{".raw", ".img", ".vhd", ".vhdx", ".vdi", ".ova", ".gz"}}
	swift := m{}
	worker := m{"listen": "127.0.0.1:0", "scratch": in.dir}
	if s.keystone != "" {
		keystone["url"] = s.keystone
	}
	if s.cacheTokens != 0 {
		keystone["cache_tokens"] = s.cacheTokens.String()
	}
	if s.glance != "" {
		keystone["endpoints"] = m{"image": s.glance}
	}
	if s.swift != "" {
		swift["account_url"] = s.swift + "/v1/AUTH_{project}"
		// So that an object of the tests' size does not come all at once.
		worker["chunk"], worker["parallel"] = "1MiB", 2
	}
	if s.checkpoints != "" {
		worker["checkpoint_every"], worker["chunk"], worker["parallel"] = s.checkpoints, "1MiB", 2
	}
	if s.stallAfter != 0 {
		worker["stall_after"] = s.stallAfter.String()
	}
	if s.listScope != "" {
		fjcloud["list_scope"] = s.listScope
	}
	stores := m{"keystone": keystone, "objects": m{"swift": swift}, "images": m{"glance": m{}}}
	regions := []m{{"id": region, "fjcloud": fjcloud}}
	maps.Copy(regions[0], stores)
	cfg := m{
		"redis":    m{"url": in.redis.URL(), "require_durable": true},
		"listen":   "127.0.0.1:0",
		"operator": m{"open_metrics": true},
		"worker":   worker,
	}
	if s.accounts != "" {
		cfg["aliyun"] = m{"accounts_file": s.accounts}
		regions = append(regions, m{"id": aliyunRegion, "aliyun": m{}})
		maps.Copy(regions[1], stores)
	}
	cfg["regions"] = regions
	b, err := yaml.Marshal(cfg)
	if err != nil {
		return err
	}
	return os.WriteFile(path, b, 0o600)
}

// end kills all processes. Whatever happened to them, they have logged neither a panic
// nor a secret.
func (in *installation) end() {
	for _, p := range in.all {
		p.Kill()
		for _, line := range p.Lines() {
			if !json.Valid([]byte(line)) && line != "" || strings.Contains(line, `"panic"`) {
				in.t.Errorf("%s logged: %s", p.Name, line)
			}
			// All tokens of Keystone's begin like this.
			if strings.Contains(line, cloud.Service.Password) || strings.Contains(line, "gAAAA") {
				in.t.Errorf("%s logged a secret: %s", p.Name, line)
			}
		}
		if in.t.Failed() {
			lines := events(p)
			in.t.Logf("the end of the log of %s:\n%s", p.Name, strings.Join(lines[max(0, len(lines)-12):], "\n"))
		}
	}
}

// tokenOf returns a new token.
func tokenOf(t testing.TB, user *env.User, scope env.Scope) string {
	t.Helper()
	token, err := cloud.Token(t.Context(), user, scope)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// client returns a client of the service that acts for a user.
func (in *installation) client(user *env.User) *client.Client {
	in.t.Helper()
	return in.clientWith(tokenOf(in.t, user, env.ProjectScope))
}

func (in *installation) clientWith(token string) *client.Client {
	in.t.Helper()
	c, err := client.New(client.Options{Endpoint: "http://" + in.api.Listen, Token: secret.New(token)})
	if err != nil {
		in.t.Fatal(err)
	}
	return c
}

// answer is what came of a plain request to the API.
type answer struct {
	status int
	header http.Header
	body   string
}

// code is the API's, of an error.
func (a answer) code() string {
	var body struct {
		Code string `json:"error_code"`
	}
	_ = json.Unmarshal([]byte(a.body), &body) // "" says that it was none
	return body.Code
}

// call makes a request as anybody can make it, without a library.
func call(t testing.TB, api *programs.Process, method, path, token, body string) answer {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, "http://"+api.Listen+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if token != "" {
		req.Header.Set("X-Auth-Token", token)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer{resp.StatusCode, resp.Header, string(b)}
}

// slowly returns the URL of a way to Swift on which that many bytes come in a second,
// for all connections together.
func slowly(t testing.TB, bytesPerSecond int64) *link.Link {
	t.Helper()
	return link.Start(t, strings.TrimPrefix(cloud.SwiftURL, "http://"), bytesPerSecond)
}

// random returns n bytes that no format begins with, others for each seed.
func random(seed byte, n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(b) // never fails
	return b
}

// location is how the API calls an object of the customer's.
func (c *customer) location(name string) string {
	return client.Gen3.Location(c.user.ProjectID, client.Object{Container: c.container, Name: name})
}

// request asks for the import of an object.
func (c *customer) request(name string) client.Registration {
	return client.Registration{Name: name, Location: c.location(name), OSType: "ubuntu"}
}

// register asks for an import that is to be accepted. Where much runs at the same time,
// Keystone's answer may come too late for one request.
func (in *installation) register(c *client.Client, r client.Registration) (id tasks.ID) {
	in.t.Helper()
	until(in.t, "an answer to a registration", func() bool {
		var err error
		if id, err = c.Register(in.t.Context(), r); err != nil && !client.HasCode(err, "50301") {
			in.t.Fatalf("register %s: %v", r.Location+r.S3Location, err)
		}
		return err == nil
	})
	return id
}

// watch looks at an import, often, until it is as wanted. Whatever it goes through,
// its progress never falls, and is 100 when it has succeeded and not before.
func (in *installation) watch(c *client.Client, id tasks.ID, most time.Duration, wanted func(*client.Import) bool) *client.Import {
	in.t.Helper()
	ctx, cancel := context.WithTimeoutCause(in.t.Context(), most, fmt.Errorf("it is not as wanted after %s", most))
	defer cancel()
	var last *client.Import
	for imp, err := range c.Watch(ctx, id, client.WatchOptions{Interval: 50 * time.Millisecond}) {
		if err != nil {
			in.t.Fatalf("import %s: %v; last seen: %+v\n%s", id, err, last, in.explain(id))
		}
		if last != nil && imp.Progress < last.Progress {
			in.t.Errorf("progress of import %s fell from %d to %d", id, last.Progress, imp.Progress)
		}
		if (imp.Progress == 100) != (imp.State == tasks.Succeeded) {
			in.t.Errorf("import %s is %s at %d percent", id, imp.State, imp.Progress)
		}
		if last = imp; wanted(imp) {
			return imp
		}
	}
	in.t.Fatalf("import %s has ended: %+v\n%s", id, last, in.explain(id))
	return nil
}

// wantEnd waits until an import has ended, and as it should: why says why it failed, or
// is "".
func (in *installation) wantEnd(c *client.Client, id tasks.ID, most time.Duration, state tasks.State, why string) *client.Import {
	in.t.Helper()
	imp := in.watch(c, id, most, func(imp *client.Import) bool { return imp.State.Final() })
	if imp.State != state || imp.Extra.FailureCode != why {
		in.t.Fatalf("import %s is %s (%s, %s), want %s %s\n%s", id, imp.State, imp.Extra.FailureCode, imp.ErrorMessage, state, why, in.explain(id))
	}
	return imp
}

// wantImported waits for the success of an import, and checks its image.
func (in *installation) wantImported(c *client.Client, id tasks.ID, most time.Duration, disk []byte) *client.Import {
	in.t.Helper()
	imp := in.wantEnd(c, id, most, tasks.Succeeded, "")
	wantImage(in.t, imp, disk)
	return imp
}

// underWay waits until some of an import's image is in Glance's store.
func (in *installation) underWay(c *client.Client, id tasks.ID) *client.Import {
	in.t.Helper()
	return in.watch(c, id, time.Minute, func(imp *client.Import) bool { return stored(in.t, imp.ID) > 1<<20 })
}

// explain returns what all processes logged about an import, but for requests.
func (in *installation) explain(id tasks.ID) string {
	in.mu.Lock()
	defer in.mu.Unlock()
	var found []string
	for _, p := range in.all {
		for _, line := range events(p) {
			if strings.Contains(line, string(id)) {
				found = append(found, p.Name+": "+line)
			}
		}
	}
	return strings.Join(found, "\n")
}

// events returns what a process has logged, but for requests.
func events(p *programs.Process) []string {
	return slices.DeleteFunc(p.Lines(), func(line string) bool { return strings.Contains(line, `"message":"request"`) })
}

// stored returns how much of an image's data is in Glance's store, -1 if there is no
// such file.
func stored(t testing.TB, imageID string) int64 {
	t.Helper()
	info, err := os.Stat(filepath.Join(cloud.Dir, "glance/images", imageID))
	if errors.Is(err, os.ErrNotExist) {
		return -1
	}
	if err != nil {
		t.Fatal(err)
	}
	return info.Size()
}

// imagesOf returns all images that bear an import's id, whoever's they are.
func imagesOf(t testing.TB, id tasks.ID) (found []map[string]any) {
	t.Helper()
	for _, hidden := range []string{"false", "true"} {
		body, status := get(t, cloud.Admin, cloud.GlanceURL+"/v2/images?os_hidden="+hidden+"&vmimport_import_id="+string(id))
		var list struct {
			Images []map[string]any `json:"images"`
		}
		if err := json.Unmarshal(body, &list); status != http.StatusOK || err != nil {
			t.Fatalf("list images: %d, %v: %s", status, err, body)
		}
		found = append(found, list.Images...)
	}
	return found
}

// wantImage checks that an import has made its image and no other, that it is the
// customer's, and that it has the bytes of the disk.
func wantImage(t testing.TB, imp *client.Import, disk []byte) {
	t.Helper()
	all := imagesOf(t, imp.ImportID)
	if len(all) != 1 || all[0]["id"] != imp.ID || all[0]["status"] != "active" || all[0]["vmimport_attempt"] != nil {
		t.Fatalf("import %s with image %s has the images %v", imp.ImportID, imp.ID, all)
	}
	if got := download(t, imp.ID); !bytes.Equal(got, disk) {
		t.Fatalf("image %s has %d bytes, not the %d of the guest", imp.ID, len(got), len(disk))
	}
}

// wantNothing checks that nothing is left of an import that came to nothing, but, if
// that was asked for, its image id: which then waits where no customer sees it.
func wantNothing(t testing.TB, imp *client.Import, parked bool) {
	t.Helper()
	if all := imagesOf(t, imp.ImportID); len(all) > 0 {
		t.Errorf("import %s has left %v", imp.ImportID, all)
	}
	image := show(t, imp.ID)
	if parked != (image != nil) {
		t.Errorf("the image id of import %s belongs to %v", imp.ImportID, image)
	}
	if image != nil && (image["vmimport_parked"] != "true" || image["status"] != "queued" || image["os_hidden"] != true || image["owner"] != cloud.Service.ProjectID) {
		t.Errorf("the image id of import %s is not parked: %v", imp.ImportID, image)
	}
	if body, status := get(t, cloud.Alpha, cloud.GlanceURL+"/v2/images/"+imp.ID); status != http.StatusNotFound {
		t.Errorf("the customer sees an image of import %s: %d: %s", imp.ImportID, status, body)
	}
	if n := stored(t, imp.ID); n >= 0 {
		t.Errorf("import %s has left %d bytes in Glance's store", imp.ImportID, n)
	}
}

// until asks again and again.
func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("waited a minute for: %s", what)
		}
	}
}

// together runs tests at the same time, however few cores there are: they wait for
// clocks rather than for cores.
func together(t *testing.T, tests map[string]func(*testing.T)) {
	var wg sync.WaitGroup
	for name, test := range tests {
		wg.Go(func() { t.Run(name, test) })
	}
	wg.Wait()
}

// serve returns the URL of a server that lives as long as the test.
func serve(t testing.TB, h http.Handler) string {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s.URL
}
