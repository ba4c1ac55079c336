package openstacktest

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"vmimport/internal/client"
	"vmimport/internal/diskimage/imagetest"
	"vmimport/internal/testenv/link"
	env "vmimport/internal/testenv/openstack"
	"vmimport/tasks"
)

// export asks for an export that is to be accepted.
func (in *installation) export(c *client.Client, r client.ExportRequest) (id tasks.ID) {
	in.t.Helper()
	until(in.t, "an answer to a request for an export", func() bool {
		var err error
		if id, err = c.Export(in.t.Context(), r); err != nil && !client.HasCode(err, "50301") {
			in.t.Fatalf("export image %s: %v", r.ImageID, err)
		}
		return err == nil
	})
	return id
}

// wantExportEnd waits until an export has ended, and as it should: why says why it
// failed, or is "".
func (in *installation) wantExportEnd(c *client.Client, id tasks.ID, state tasks.State, why string) *client.Export {
	in.t.Helper()
	progress := 0
	var last *client.Export
	for e, err := range c.WatchExport(in.t.Context(), id, client.WatchOptions{Interval: 50 * time.Millisecond}) {
		if err != nil {
			in.t.Fatalf("export %s: %v\n%s", id, err, in.explain(id))
		}
		if e.Progress < progress || (e.Progress == 100) != (e.State == tasks.Succeeded) {
			in.t.Errorf("export %s is %s at %d percent after %d", id, e.State, e.Progress, progress)
		}
		last, progress = e, e.Progress
	}
	if last.State != state || last.Extra.FailureCode != why {
		in.t.Fatalf("export %s is %s (%s, %s), want %s %s\n%s", id, last.State, last.Extra.FailureCode, last.ErrorMessage, state, why, in.explain(id))
	}
	return last
}

// storageContainer is how the API calls the customer's container.
func (c *customer) storageContainer() string {
	return client.Gen3.ContainerLocation(c.user.ProjectID, c.container)
}

// gotten is an object as anybody gets it.
func (c *customer) gotten(name string) []byte {
	c.t.Helper()
	resp, body := c.do(http.MethodGet, c.container, name, "", nil)
	c.must(resp, body)
	return body
}

// partsOf lists what is in the container of an export's parts.
func (c *customer) partsOf() []string { return c.list(c.container+"_segments", "") }

// wantNoParts checks that nothing is left of exports, and that the container of parts went
// with them.
func (c *customer) wantNoParts() {
	c.t.Helper()
	if resp, _ := c.do(http.MethodHead, c.container+"_segments", "", "", nil); resp.StatusCode != http.StatusNotFound {
		c.t.Errorf("the container of parts is there, with %q", c.partsOf())
	}
}

// rawOf unpacks what an export has written.
func rawOf(t *testing.T, name string, content []byte) []byte {
	t.Helper()
	if strings.HasSuffix(name, ".img.gz") {
		z, err := gzip.NewReader(bytes.NewReader(content))
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(z)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	dir := t.TempDir()
	path, raw := filepath.Join(dir, "image"), filepath.Join(dir, "raw")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	imagetest.QemuImg(t, "convert", "-O", "raw", path, raw)
	return readFile(t, raw)
}

// An image goes into a container in each form, and from there it becomes an image again, of
// the same bytes and with what was said of it.
func TestExport(t *testing.T) {
	t.Parallel()
	in := install(t, settings{checkpoints: "2MiB"})
	in.start("worker", settings{checkpoints: "2MiB"})
	alice := customerOf(t, cloud.Alpha)
	api := in.client(cloud.Alpha)
	disk := readFile(t, guest(t, "dense").Path)
	alice.put("source.raw", disk)
	imported := in.wantImported(api, in.register(api, client.Registration{
		Name: "web 01", Location: alice.location("source.raw"), OSType: "rocky", MinRAM: 1024, MinDisk: 2,
	}), time.Minute, disk)
	if resp, body := asUser(t, cloud.Alpha, http.MethodPatch, "/v2/images/"+imported.ID, "application/openstack-images-v2.1-json-patch",
		[]byte(`[{"op": "add", "path": "/hw_firmware_type", "value": "uefi"}]`)); resp.StatusCode != http.StatusOK {
		t.Fatalf("change image: %s: %s", resp.Status, body)
	}
	alice.remove(alice.container, "source.raw")

	for _, tt := range []struct {
		to      string
		objects []string
	}{
		{"cloud", []string{"web 01.img.gz", "web 01.json"}},
		{"vmware", []string{"web 01.vmdk", "web 01.ovf", "web 01.mf"}},
		{"kvm", []string{"web 01.qcow2"}},
	} {
		request := client.ExportRequest{ImageID: imported.ID, StorageContainer: alice.storageContainer(), ImageTo: tt.to}
		done := in.wantExportEnd(api, in.export(api, request), tasks.Succeeded, "")
		var names []string
		for _, o := range done.Extra.Objects {
			names = append(names, o.Name)
			if got := alice.gotten(o.Name); int64(len(got)) != o.Bytes {
				t.Errorf("%s has %d bytes, and %d in the status", o.Name, len(got), o.Bytes)
			}
		}
		if !slices.Equal(slices.Sorted(slices.Values(names)), slices.Sorted(slices.Values(tt.objects))) {
			t.Errorf("%s: objects %q", tt.to, names)
		}
		image := alice.gotten(names[0])
		if sum := done.Extra.Checksum; tt.to != "kvm" && sum != sha1Of(image) {
			t.Errorf("%s: checksum %s", tt.to, sum)
		}
		if !bytes.Equal(rawOf(t, names[0], image), disk) {
			t.Errorf("%s: the disk differs", tt.to)
		}
		if resp, _ := alice.do(http.MethodHead, alice.container, names[0], "", nil); resp.Header.Get("X-Static-Large-Object") != "True" {
			t.Errorf("%s is no large object: %v", names[0], resp.Header)
		}
		if _, err := api.Export(t.Context(), request); !client.HasCode(err, "40009") {
			t.Errorf("%s again: %v", tt.to, err)
		}
	}
	// Parts are there for each of the three, and nothing else.
	if want := len(alice.partsOf()); want < 3*2 {
		t.Errorf("parts: %q", alice.partsOf())
	}

	// Metadata does for the import what was said at first. The id is taken.
	again := in.wantImported(api, in.register(api, client.Registration{Location: alice.location("web 01.img.gz")}), time.Minute, disk)
	image := show(t, again.ID)
	for member, want := range map[string]any{
		"name": "web 01", "os_type": "rocky", "min_ram": 1024.0, "min_disk": 2.0, "hw_firmware_type": "uefi", "owner": cloud.Alpha.ProjectID,
	} {
		if image[member] != want {
			t.Errorf("%s of the new image is %v, want %v", member, image[member], want)
		}
	}
	for _, name := range []string{"web 01.vmdk", "web 01.qcow2"} {
		r := alice.request(name)
		if strings.HasSuffix(name, "2") {
			r.Details = &client.Details{ImageFrom: "kvm"}
		}
		in.wantImported(api, in.register(api, r), time.Minute, disk)
	}
}

// Of what is not the project's own nothing is told, and nothing is written elsewhere.
func TestExportOfOthers(t *testing.T) {
	t.Parallel()
	in := install(t, settings{})
	alice := customerOf(t, cloud.Alpha)
	imageID := uploaded(t, cloud.Alpha, random(50, 1<<20))
	public := uploaded(t, cloud.Beta, random(51, 1<<20))
	for name, tt := range map[string]struct {
		user    *env.User
		request client.ExportRequest
		code    string
	}{
		"another project":           {cloud.Beta, client.ExportRequest{ImageID: imageID, StorageContainer: client.Gen3.ContainerLocation(cloud.Beta.ProjectID, "none")}, "40006"},
		"another's image":           {cloud.Alpha, client.ExportRequest{ImageID: public, StorageContainer: alice.storageContainer()}, "40006"},
		"no image":                  {cloud.Alpha, client.ExportRequest{ImageID: uuid.NewString(), StorageContainer: alice.storageContainer()}, "40006"},
		"another's container":       {cloud.Beta, client.ExportRequest{ImageID: public, StorageContainer: alice.storageContainer()}, "40004"},
		"no container":              {cloud.Alpha, client.ExportRequest{ImageID: imageID, StorageContainer: alice.storageContainer() + "-none"}, "40008"},
		"a reader may only look on": {cloud.Reader, client.ExportRequest{ImageID: imageID, StorageContainer: alice.storageContainer()}, "40301"},
	} {
		_, err := in.client(tt.user).Export(t.Context(), tt.request)
		if !client.HasCode(err, tt.code) {
			t.Errorf("%s: %v, want %s", name, err, tt.code)
		}
	}
	alice.wantNoParts()
}

// underExport is an export that reads its image slowly, in parts of 1 MiB.
type underExport struct {
	*installation
	s     settings
	alice *customer
	api   *client.Client
	disk  []byte
	id    tasks.ID
}

func slowExport(t *testing.T) *underExport {
	way := link.Start(t, strings.TrimPrefix(cloud.GlanceURL, "http://"), 4<<20)
	u := &underExport{s: settings{glance: way.URL, checkpoints: "1MiB"}, alice: customerOf(t, cloud.Alpha), disk: random(60, 16<<20+512)}
	u.installation = install(t, u.s)
	u.api = u.client(cloud.Alpha)
	imageID := uploaded(t, cloud.Alpha, u.disk)
	u.id = u.export(u.api, client.ExportRequest{ImageID: imageID, StorageContainer: u.alice.storageContainer(), ImageTo: "vmware"})
	return u
}

// untilParts waits until that many parts are stored.
func (u *underExport) untilParts(n int) {
	u.t.Helper()
	until(u.t, "some parts", func() bool { return len(u.alice.partsOf()) >= n })
}

// A worker is killed in the middle of an export. Another one goes on.
func TestExportSurvivesItsWorker(t *testing.T) {
	t.Parallel()
	u := slowExport(t)
	first := u.start("worker", u.s)
	u.untilParts(6)
	first.Kill()
	before := u.stamps()
	u.start("worker", u.s)
	done := u.wantExportEnd(u.api, u.id, tasks.Succeeded, "")
	if done.Extra.Attempt != 2 {
		t.Errorf("attempts: %d", done.Extra.Attempt)
	}
	name := done.Extra.Objects[0].Name
	if !bytes.Equal(rawOf(t, name, u.alice.gotten(name)), u.disk) {
		t.Error("the disk differs")
	}
	kept := 0
	for part, stamp := range u.stamps() {
		if before[part] == stamp {
			kept++
		}
	}
	// What was in flight is stored again, and what the last checkpoint did not have yet.
	if kept < len(before)-4 || kept < 2 {
		t.Errorf("of %d parts %d were kept", len(before), kept)
	}
}

// stamps says when each part was stored.
func (u *underExport) stamps() map[string]string {
	u.t.Helper()
	_, body := u.alice.do(http.MethodGet, u.alice.container+"_segments", "", "?format=json", nil)
	var list []struct {
		Name string `json:"name"`
		Time string `json:"last_modified"`
	}
	if err := json.Unmarshal(body, &list); err != nil {
		u.t.Fatalf("list parts: %v: %s", err, body)
	}
	stamps := map[string]string{}
	for _, o := range list {
		stamps[o.Name] = o.Time
	}
	return stamps
}

func TestExportCanceled(t *testing.T) {
	t.Parallel()
	u := slowExport(t)
	u.start("worker", u.s)
	u.untilParts(3)
	if err := u.api.CancelExport(t.Context(), u.id); err != nil {
		t.Fatal(err)
	}
	u.wantExportEnd(u.api, u.id, tasks.Canceled, "")
	u.alice.wantNoParts()
	if left := u.alice.list(u.alice.container, ""); len(left) > 0 {
		t.Errorf("left are %q", left)
	}
	if err := u.api.CancelExport(t.Context(), u.id); !client.HasCode(err, client.CodeExportCancelRequested) {
		t.Errorf("a second cancel: %v", err)
	}
}

// The customer puts an object where the export wants to.
func TestExportFindsItsPlaceTaken(t *testing.T) {
	t.Parallel()
	u := slowExport(t)
	u.start("worker", u.s)
	u.untilParts(3)
	status, err := u.api.ExportStatus(t.Context(), u.id)
	if err != nil {
		t.Fatal(err)
	}
	name := status.ImageName + ".vmdk"
	u.alice.put(name, []byte("mine"))
	u.wantExportEnd(u.api, u.id, tasks.Failed, "object_exists")
	u.alice.wantNoParts()
	if got := u.alice.list(u.alice.container, ""); !slices.Equal(got, []string{name}) || string(u.alice.gotten(name)) != "mine" {
		t.Errorf("objects: %q", got)
	}
}
