package openstacktest

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"

	"vmimport/imageapi"
	"vmimport/imageapi/glance"
	"vmimport/internal/client"
	"vmimport/internal/fault"
	"vmimport/internal/testenv/link"
	env "vmimport/internal/testenv/openstack"
	"vmimport/tasks"
)

// faulty is an installation in which something goes wrong with the import of one
// object, whose image id is asked for.
type faulty struct {
	*installation
	settings settings
	way      *link.Link // to Swift
	alice    *customer
	api      *client.Client
	disk     []byte
	request  client.Registration
}

// faultyBytes is the size of the object.
const faultyBytes = 12<<20 + 512

// How fast it comes, in bytes a second.
const (
	slow = 4 << 20
	fast = 64 << 20
)

func newFaulty(t *testing.T, pace int64, s settings) *faulty {
	t.Helper()
	f := &faulty{settings: s, way: slowly(t, pace), alice: customerOf(t, cloud.Alpha), disk: random(40, faultyBytes)}
	if f.settings.swift == "" {
		f.settings.swift = f.way.URL
	}
	f.installation = install(t, f.settings)
	f.api = f.client(cloud.Alpha)
	f.alice.put("disk.raw", f.disk)
	f.request = f.alice.request("disk.raw")
	f.request.ID, f.request.Checksum = uuid.NewString(), sha1Of(f.disk)
	return f
}

func (f *faulty) worker() { f.start("worker", f.settings) }

// wantAgain checks that an import that came to nothing has left nothing, and that
// another can have the image id that it had.
func (f *faulty) wantAgain(t *testing.T, imp *client.Import) {
	t.Helper()
	wantNothing(t, imp, true)
	f.alice.put("disk.raw", f.disk)
	f.request.Checksum, f.request.Name = sha1Of(f.disk), "another name"
	again := f.wantImported(f.api, f.register(f.api, f.request), time.Minute, f.disk)
	image := show(t, imp.ID)
	if again.ID != imp.ID || again.Extra.Attempt != 1 || image["owner"] != cloud.Alpha.ProjectID || image["name"] != "another name" || image["os_hidden"] != false || image["vmimport_parked"] != nil {
		t.Errorf("asked for again: %+v, with the image %v\n%s", again, image, f.explain(again.ImportID))
	}
}

// Whatever goes wrong, an import ends as it should, and leaves an image or nothing.
func TestFaults(t *testing.T) {
	t.Parallel()
	together(t, map[string]func(*testing.T){
		"wrong checksum":  testWrongChecksum,
		"canceled":        testCanceled,
		"worker killed":   testWorkerKilled,
		"Swift cut off":   testSwiftCutOff,
		"Swift silent":    testSwiftSilent,
		"object replaced": testObjectReplaced,
	})
}

func testWrongChecksum(t *testing.T) {
	f := newFaulty(t, fast, settings{})
	f.worker()
	f.request.Checksum = sha1Of(nil)
	f.wantAgain(t, f.wantEnd(f.api, f.register(f.api, f.request), time.Minute, tasks.Failed, "checksum_mismatch"))
}

// mostCancel is how long a cancel may take here, where much happens at the same time.
const mostCancel = 5 * time.Second

func testCanceled(t *testing.T) {
	f := newFaulty(t, slow, settings{})
	f.worker()
	id := f.register(f.api, f.request)
	f.underWay(f.api, id)
	cancel := call(t, f.installation.api, http.MethodPost, "/v1/imageimport/"+string(id)+"/cancel", f.alice.token, "")
	wantAnswer(t, "cancel", cancel, http.StatusAccepted, "")
	accepted := time.Now()
	imp := f.wantEnd(f.api, id, time.Minute, tasks.Canceled, "")
	took := time.Since(accepted)
	t.Logf("canceled %s after the cancel was accepted, at %d percent", took.Round(time.Millisecond), imp.Progress)
	if took > mostCancel {
		t.Errorf("the cancel took %s", took)
	}
	f.wantAgain(t, imp)
}

func testWorkerKilled(t *testing.T) {
	f := newFaulty(t, slow, settings{})
	first := f.start("worker", f.settings)
	id := f.register(f.api, f.request)
	f.underWay(f.api, id)
	first.Kill()
	f.worker()
	imp := f.wantImported(f.api, id, time.Minute, f.disk)
	if imp.ID != f.request.ID || imp.Extra.Attempt != 2 {
		t.Errorf("in the end: %+v", imp)
	}
}

func testSwiftCutOff(t *testing.T) {
	f := newFaulty(t, slow, settings{})
	f.worker()
	id := f.register(f.api, f.request)
	f.underWay(f.api, id)
	f.way.Cut()
	f.watch(f.api, id, time.Minute, func(imp *client.Import) bool { return imp.Extra.Retries >= 2 })
	f.way.Mend()
	if imp := f.wantImported(f.api, id, time.Minute, f.disk); imp.ID != f.request.ID {
		t.Errorf("in the end: %+v", imp)
	}
}

func testSwiftSilent(t *testing.T) {
	f := newFaulty(t, fast, settings{swift: silentOnce(t, 300<<10), stallAfter: 2 * time.Second})
	f.worker()
	imp := f.wantImported(f.api, f.register(f.api, f.request), time.Minute, f.disk)
	if imp.Extra.Stalls == 0 || imp.ID != f.request.ID {
		t.Errorf("in the end: %+v", imp)
	}
}

// silentOnce returns the URL of a Swift of which one range falls silent after some
// bytes, until nobody waits for it any more.
func silentOnce(t testing.TB, after int64) string {
	t.Helper()
	swift, err := url.Parse(cloud.SwiftURL)
	if err != nil {
		t.Fatal(err)
	}
	var done atomic.Bool
	proxy := &httputil.ReverseProxy{
		Rewrite:       func(r *httputil.ProxyRequest) { r.SetURL(swift) },
		FlushInterval: -1, // at once
		ModifyResponse: func(r *http.Response) error {
			if r.StatusCode == http.StatusPartialContent && r.ContentLength > 2*after && done.CompareAndSwap(false, true) {
				body := r.Body
				r.Body = struct {
					io.Reader
					io.Closer
				}{io.MultiReader(io.LimitReader(body, after), silence{r.Request.Context()}), body}
			}
			return nil
		},
	}
	return serve(t, proxy)
}

// silence is read until a context ends.
type silence struct{ context.Context }

func (s silence) Read([]byte) (int, error) {
	<-s.Done()
	return 0, s.Err()
}

func testObjectReplaced(t *testing.T) {
	f := newFaulty(t, slow, settings{})
	f.worker()
	id := f.register(f.api, f.request)
	f.underWay(f.api, id)
	f.alice.put("disk.raw", random(41, faultyBytes))
	f.wantAgain(t, f.wantEnd(f.api, id, time.Minute, tasks.Failed, "object_changed"))
}

// TestOutages takes parts of the cloud away, in turn. No other test runs beside it.
func TestOutages(t *testing.T) {
	t.Run("Swift", testSwiftOutage)
	t.Run("Glance", testGlanceOutage)
	t.Run("Glance that takes less", testGlanceCap)
	t.Run("Keystone", testKeystoneOutage)
}

// startServer starts a server of the cloud again.
func startServer(t *testing.T, s *env.Server) {
	t.Helper()
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func testSwiftOutage(t *testing.T) {
	f := newFaulty(t, slow, settings{})
	f.worker()
	id := f.register(f.api, f.request)
	f.underWay(f.api, id)
	cloud.Swift.Kill()
	t.Cleanup(func() { startServer(t, cloud.Swift) })
	f.watch(f.api, id, time.Minute, func(imp *client.Import) bool { return imp.Extra.Retries >= 2 })
	if _, err := f.api.Register(t.Context(), f.request); !client.HasCode(err, "50301") {
		t.Errorf("register without Swift: %v", err)
	}
	startServer(t, cloud.Swift)
	f.wantImported(f.api, id, time.Minute, f.disk)
}

func testGlanceOutage(t *testing.T) {
	// One import's upload is torn apart. It may get any image id.
	torn := newFaulty(t, slow, settings{})
	torn.request.ID = ""
	torn.worker()
	tornID := torn.register(torn.api, torn.request)
	// The other has been accepted, and begins when Glance is away.
	late := newFaulty(t, slow, settings{})
	lateID := late.register(late.api, late.request)
	// A third attempt's image must have the id that it has.
	stuck := beginStuck(t)
	before := torn.underWay(torn.api, tornID)

	cloud.Glance.Kill()
	t.Cleanup(func() { startServer(t, cloud.Glance) })
	late.worker()
	setback := func(imp *client.Import) bool { return imp.State == tasks.Queued && imp.Extra.Attempt == 1 }
	late.watch(late.api, lateID, time.Minute, setback)
	if _, err := late.api.Register(t.Context(), torn.request); !client.HasCode(err, "50301") {
		t.Errorf("register without Glance: %v", err)
	}
	startServer(t, cloud.Glance)
	stuck.wantSpent(t)

	after := torn.wantImported(torn.api, tornID, time.Minute, torn.disk)
	if image := show(t, before.ID); after.ID == before.ID || image != nil {
		t.Errorf("the image that Glance forgot is %v, and the import's image is %s", image, after.ID)
	}
	if imp := late.wantImported(late.api, lateID, time.Minute, late.disk); imp.ID != late.request.ID {
		t.Errorf("in the end: %+v", imp)
	}
}

// stuck is an image that Glance takes for one that is being uploaded, for ever.
type stuck struct {
	images *glance.Images
	spec   imageapi.Spec
}

// beginStuck begins an upload that Glance must not survive.
func beginStuck(t *testing.T) *stuck {
	t.Helper()
	images, err := glance.New(glance.Options{Cloud: service(t), Patience: 100 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = images.Close() })
	s := &stuck{images, imageapi.Spec{
		ImageID: uuid.NewString(), KeepID: true, ImportID: uuid.NewString(), Attempt: 1, Name: "stuck", Owner: cloud.Alpha.ProjectID, Format: "raw",
	}}
	upload, err := images.Begin(t.Context(), s.spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = upload.Close() })
	disk, _, err := upload.Disk(t.Context(), imageapi.DiskSpec{Number: 1, Size: 64 << 20})
	if err == nil {
		_, err = disk.WriteAt(random(42, 8<<20), 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	until(t, "the upload to begin", func() bool { return show(t, s.spec.ImageID)["status"] == "saving" })
	return s
}

// wantSpent makes the attempts that an import makes, without the pauses between them:
// they hope for Glance to let go of the image, and give its id up in the end.
func (s *stuck) wantSpent(t *testing.T) {
	t.Helper()
	if image := show(t, s.spec.ImageID); image["status"] != "saving" {
		t.Errorf("an image whose upload did not end: %v", image)
	}
	for s.spec.Attempt < 6 {
		s.spec.Attempt++
		_, err := s.images.Begin(t.Context(), s.spec)
		if last := s.spec.Attempt == 6; last != errors.Is(err, imageapi.ErrSpent) || last != (fault.CodeOf(err) != "image_service_busy") {
			t.Errorf("attempt %d: %v", s.spec.Attempt, err)
		}
	}
	if image := show(t, s.spec.ImageID); image != nil {
		t.Errorf("an image that was given up: %v", image)
	}
}

// Glance has a bound for images, of which it says nothing before it is reached.
func testGlanceCap(t *testing.T) {
	config := filepath.Join(cloud.Dir, "glance/glance-api.conf")
	original := readFile(t, config)
	restart := func(config string, content []byte) {
		t.Helper()
		if err := os.WriteFile(config, content, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := cloud.Glance.Terminate(t.Context()); err != nil {
			t.Fatal(err)
		}
		startServer(t, cloud.Glance)
	}
	f := newFaulty(t, fast, settings{})
	f.worker()
	restart(config, append(original, "\n[DEFAULT]\nimage_size_cap = 4000000\n"...))
	imp := f.wantEnd(f.api, f.register(f.api, f.request), time.Minute, tasks.Failed, "image_too_large")
	restart(config, original)
	f.wantAgain(t, imp)
}

func testKeystoneOutage(t *testing.T) {
	// One import is under way, and asked about with tokens that are hardly cached. The
	// other begins when Keystone is away.
	running := newFaulty(t, slow, settings{cacheTokens: time.Second})
	running.worker()
	runningID := running.register(running.api, running.request)
	late := newFaulty(t, slow, settings{})
	lateID := late.register(late.api, late.request)
	token, unseen := tokenOf(t, cloud.Alpha, env.ProjectScope), tokenOf(t, cloud.Beta, env.ProjectScope)
	list := func(token string) answer {
		t.Helper()
		return call(t, running.installation.api, http.MethodGet, "/v1/imageimport", token, "")
	}
	wantAnswer(t, "a good token", list(token), http.StatusOK, "")
	running.underWay(running.api, runningID)

	cloud.Keystone.Kill()
	t.Cleanup(func() { startServer(t, cloud.Keystone) })
	killed := time.Now()
	late.worker()
	for what, token := range map[string]string{"a token never seen": unseen, "a token that is none": "gAAAAABnonsense"} {
		a := list(token)
		wantAnswer(t, what+", without Keystone", a, http.StatusServiceUnavailable, "50301")
		if a.header.Get("Retry-After") == "" {
			t.Errorf("503 without Keystone does not say when to come back: %v", a.header)
		}
	}
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for list(token).status == http.StatusOK {
		if time.Since(killed) > 3*time.Second {
			t.Fatal("a token is still taken that Keystone was not asked about for more than a second")
		}
		<-tick.C
	}
	wantAnswer(t, "a token seen before, without Keystone", list(token), http.StatusServiceUnavailable, "50301")
	late.watch(late.api, lateID, time.Minute, func(imp *client.Import) bool { return imp.State == tasks.Queued && imp.Extra.Attempt == 1 })
	startServer(t, cloud.Keystone)

	wantAnswer(t, "a good token, with Keystone back", list(token), http.StatusOK, "")
	running.wantImported(running.api, runningID, time.Minute, running.disk)
	late.wantImported(late.api, lateID, time.Minute, late.disk)
}
