package openstacktest

import (
	"bytes"
	"compress/gzip"
	"crypto/sha1"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"vmimport/internal/client"
	"vmimport/internal/diskimage/imagetest"
	env "vmimport/internal/testenv/openstack"
	"vmimport/tasks"
)

// run returns what a command prints.
func run(t testing.TB, cmd *exec.Cmd) []byte {
	t.Helper()
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%q: %v\n%s%s", cmd.Args, err, out, &stderr)
	}
	return out
}

// guest returns one of the disks that readers are known to stumble over.
func guest(t testing.TB, name string) imagetest.Guest {
	t.Helper()
	all := imagetest.Guests(t)
	return all[slices.IndexFunc(all, func(g imagetest.Guest) bool { return g.Name == name })]
}

func readFile(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func sha1Of(b []byte) string {
	sum := sha1.Sum(b)
	return hex.EncodeToString(sum[:])
}

// A customer brings a disk into the cloud with nothing but the tools that everybody has.
func TestImport(t *testing.T) {
	t.Parallel()
	in := install(t, settings{})
	in.start("worker", settings{})
	alice := customerOf(t, cloud.Alpha)
	stock := func(name string, args ...string) []byte {
		t.Helper()
		return run(t, cloud.Command(t.Context(), cloud.Alpha, name, args...))
	}
	disk := guest(t, "ext4")
	vmdk := imagetest.Convert(t, disk.Path, "vmdk", "subformat=streamOptimized")
	stock("swift", "upload", alice.container, vmdk, "--object-name", "web 01.vmdk")
	token := strings.TrimSpace(string(stock("openstack", "token", "issue", "-f", "value", "-c", "id")))

	const name = "Ubuntu 24.04 für Büro – 東京"
	imageID, sum := uuid.NewString(), sha1Of(readFile(t, vmdk))
	registered := call(t, in.api, http.MethodPost, "/v1/imageimport", token, `{"name": "`+name+`", "id": "`+imageID+`",
		"location": "/v2/AUTH_`+cloud.Alpha.ProjectID+`/`+alice.container+`/web 01.vmdk",
		"min_ram": "2048", "min_disk": 3, "os_type": "ubuntu", "checksum": "`+strings.ToUpper(sum)+`"}`)
	var accepted struct {
		ImportID tasks.ID `json:"import_id"`
	}
	if err := json.Unmarshal([]byte(registered.body), &accepted); err != nil || registered.status != http.StatusCreated {
		t.Fatalf("register: %d, %v: %s", registered.status, err, registered.body)
	}
	imp := in.wantEnd(in.clientWith(token), accepted.ImportID, time.Minute, tasks.Succeeded, "")
	if imp.ID != imageID || imp.Name != name || imp.Extra.SourceFormat != "vmdk" || imp.Extra.Digests["sha1"] != sum {
		t.Errorf("status in the end: %+v", imp)
	}

	var image struct {
		ID, Name, Status, Visibility, Owner string
		DiskFormat                          string `json:"disk_format"`
		MinRAM                              int    `json:"min_ram"`
		MinDisk                             int    `json:"min_disk"`
		Size                                int
		Properties                          map[string]any
	}
	shown := stock("openstack", "image", "show", imageID, "-f", "json")
	if err := json.Unmarshal(shown, &image); err != nil {
		t.Fatal(err)
	}
	want := readFile(t, disk.Path)
	if image.ID != imageID || image.Name != name || image.Status != "active" || image.Visibility != "private" || image.Owner != cloud.Alpha.ProjectID ||
		image.DiskFormat != "raw" || image.MinRAM != 2048 || image.MinDisk != 3 || image.Size != len(want) {
		t.Errorf("image: %s", shown)
	}
	for property, want := range map[string]any{
		"os_type":                "ubuntu",
		"vmimport_import_id":     string(accepted.ImportID),
		"vmimport_region":        region,
		"vmimport_request_id":    registered.header.Get("X-Request-Id"),
		"vmimport_source_format": "vmdk",
		"vmimport_source_sha1":   sum,
		"vmimport_attempt":       nil, // of images that are not finished
		"vmimport_keep_id":       nil,
		"vmimport_parked":        nil,
	} {
		if got := image.Properties[property]; got != want {
			t.Errorf("property %s is %v, want %v", property, got, want)
		}
	}
	saved := filepath.Join(t.TempDir(), "saved.raw")
	stock("openstack", "image", "save", "--file", saved, imageID)
	imagetest.SameFile(t, saved, disk.Path)
}

// Whatever a disk is packed in, its image is raw and has the guest's bytes.
func TestFormats(t *testing.T) {
	t.Parallel()
	in := install(t, settings{})
	in.start("worker", settings{})
	alice := customerOf(t, cloud.Alpha)
	api := in.client(cloud.Alpha)
	disk := guest(t, "sparse")
	want := readFile(t, disk.Path)

	requests := map[string]client.Registration{}
	for name, image := range map[string]string{
		"disk.raw":     disk.Path,
		"packed.qcow2": imagetest.Convert(t, disk.Path, "qcow2", "", "-c"),
		"disk.vmdk":    imagetest.Convert(t, disk.Path, "vmdk", ""),
		"disk.vhd":     imagetest.Convert(t, disk.Path, "vpc", "subformat=dynamic,force_size=on"),
		"disk.vhdx":    imagetest.Convert(t, disk.Path, "vhdx", ""),
		"disk.vdi":     imagetest.Convert(t, disk.Path, "vdi", ""),
	} {
		content := readFile(t, image)
		alice.put(name, content)
		r := alice.request(name)
		r.Checksum = sha1Of(content)
		if filepath.Ext(name) == ".qcow2" {
			r.Details = &client.Details{ImageFrom: "kvm"}
		}
		requests[name] = r
	}
	// An image that was exported says of itself what it is.
	exported := map[string]any{"id": uuid.NewString(), "name": "exported", "min_ram": 512, "min_disk": 1, "os_type": "win2019SE", "base_image_id": "b-1"}
	metadata, err := json.Marshal(exported)
	if err != nil {
		t.Fatal(err)
	}
	alice.put("exported.json", metadata)
	alice.put("exported.img.gz", gzipped(t, want))
	requests["exported.img.gz"] = client.Registration{Location: alice.location("exported.img.gz")}

	ids := map[string]tasks.ID{}
	for name, r := range requests {
		ids[name] = in.register(api, r)
	}
	for name, id := range ids {
		imp := in.wantImported(api, id, time.Minute, want)
		if name != "exported.img.gz" {
			continue
		}
		image := show(t, imp.ID)
		if image["id"] != exported["id"] || image["name"] != "exported" || image["min_ram"] != 512.0 || image["min_disk"] != 1.0 || image["os_type"] != "win2019SE" {
			t.Errorf("image of an exported one: %v", image)
		}
	}
}

func gzipped(t testing.TB, b []byte) []byte {
	t.Helper()
	var packed bytes.Buffer
	w := gzip.NewWriter(&packed)
	_, err := w.Write(b)
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return packed.Bytes()
}

// Large objects are what most images are, since Swift takes 5 GiB at once, and the
// clients upload in parts.
func TestLargeObjects(t *testing.T) {
	t.Parallel()
	in := install(t, settings{})
	in.start("worker", settings{})
	alice := customerOf(t, cloud.Alpha)
	api := in.client(cloud.Alpha)
	disk := random(20, 12<<20+512)
	file := filepath.Join(t.TempDir(), "disk.raw")
	if err := os.WriteFile(file, disk, 0o600); err != nil {
		t.Fatal(err)
	}
	small := disk[:3<<20]

	requests := map[string]client.Registration{}
	for name, options := range map[string][]string{"dynamic.raw": nil, "static.raw": {"--use-slo"}} {
		args := append([]string{"upload", alice.container, file, "--object-name", name, "--segment-size", "5000000"}, options...)
		run(t, cloud.Command(t.Context(), cloud.Alpha, "swift", args...))
		requests[name] = alice.request(name)
	}
	s3, bucket := s3Client(t, cloud.Alpha), "images-"+uuid.NewString()
	if err := s3.MakeBucket(t.Context(), bucket, minio.MakeBucketOptions{Region: cloud.Region}); err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{"small.raw": small, "parts/of disk.raw": disk} {
		_, err := s3.PutObject(t.Context(), bucket, name, bytes.NewReader(content), int64(len(content)),
			minio.PutObjectOptions{PartSize: 5 << 20, DisableContentSha256: true}) // Swift knows no signed chunks
		if err != nil {
			t.Fatalf("upload %s: %v", name, err)
		}
		requests[name] = client.Registration{Name: name, S3Location: "/" + bucket + "/" + name, OSType: "ubuntu"}
	}
	ids := map[string]tasks.ID{}
	for name, r := range requests {
		r.Checksum = sha1Of(disk)
		if name == "small.raw" {
			r.Checksum = sha1Of(small)
		}
		ids[name] = in.register(api, r)
	}
	for name, id := range ids {
		want := disk
		if name == "small.raw" {
			want = small
		}
		in.wantImported(api, id, time.Minute, want)
	}
}

// s3Client returns a client of Swift's S3 API.
func s3Client(t testing.TB, user *env.User) *minio.Client {
	t.Helper()
	access, key, err := cloud.EC2Key(t.Context(), user)
	if err != nil {
		t.Fatal(err)
	}
	endpoint, err := url.Parse(cloud.SwiftURL)
	if err != nil {
		t.Fatal(err)
	}
	c, err := minio.New(endpoint.Host, &minio.Options{
		Creds: credentials.NewStaticV4(access, key, ""), Region: cloud.Region, BucketLookup: minio.BucketLookupPath,
	})
	if err != nil {
		t.Fatal(err)
	}
	return c
}
