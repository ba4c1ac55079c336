package openstacktest

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"vmimport/internal/auth/aliyunsig/aliyunsigtest"
	"vmimport/internal/auth/ram"
	"vmimport/internal/auth/ramfile"
	"vmimport/internal/secret"
	"vmimport/tasks"
)

const aliyunRegion = "cn-hangzhou"

var accessKey = aliyunsigtest.Key{ID: "LTAIopenstack", Secret: "a-secret-of-thirty-characters."}

// accountOf writes an accounts file in which a customer of the cloud has an account, and a
// bucket that is its container.
func accountOf(t *testing.T, c *customer) string {
	t.Helper()
	file, err := ramfile.Standalone{
		AccountID: "1000000000000001", Project: c.user.ProjectID,
		KeyID: accessKey.ID, Secret: secret.New(accessKey.Secret),
		Bucket: ram.Bucket{Name: "images", Region: aliyunRegion, API: "swift", Container: c.container},
	}.File()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "accounts.yaml")
	if err := os.WriteFile(path, file, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// rpc does an action of the ECS API. It returns the error code, or "" and fills answer.
func (in *installation) rpc(action string, answer any, params ...string) (code string) {
	in.t.Helper()
	query := url.Values{"Action": {action}, "Version": {"2014-05-26"}, "Format": {"JSON"}, "RegionId": {aliyunRegion}}
	for i := 0; i < len(params); i += 2 {
		query.Set(params[i], params[i+1])
	}
	req, err := http.NewRequestWithContext(in.t.Context(), http.MethodPost, "http://"+in.api.Listen+"/?"+query.Encode(), nil)
	if err != nil {
		in.t.Fatal(err)
	}
	aliyunsigtest.SignRPC(in.t, req, accessKey, rand.Text(), time.Now())
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		in.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		in.t.Fatal(err)
	}
	var refused struct{ Code string }
	if err := json.Unmarshal(body, &refused); err != nil || resp.StatusCode == http.StatusOK && refused.Code != "" {
		in.t.Fatalf("%s: %s: %s", action, resp.Status, body)
	}
	if resp.StatusCode == http.StatusOK && answer != nil {
		if err := json.Unmarshal(body, answer); err != nil {
			in.t.Fatal(err)
		}
	}
	return refused.Code
}

// The ImportImage API works on Swift and Glance as well: an image gets an id of Glance's and
// the customer's project as its owner, and is gone from Glance after it was deleted.
func TestAliyun(t *testing.T) {
	t.Parallel()
	alice := customerOf(t, cloud.Alpha)
	s := settings{accounts: accountOf(t, alice)}
	in := install(t, s)
	in.start("worker", s)
	content := random(7, 3<<20)
	alice.put("disk.raw", content)

	if code := in.rpc("ImportImage", nil, "DiskDeviceMapping.1.OSSBucket", "images", "DiskDeviceMapping.1.OSSObject", "disk.raw",
		"DiskDeviceMapping.2.OSSBucket", "images", "DiskDeviceMapping.2.OSSObject", "disk.raw"); code != "InvalidParameter" {
		t.Errorf("two disks for Glance: %q", code)
	}
	if code := in.rpc("ImportImage", nil, "DiskDeviceMapping.1.OSSBucket", "images", "DiskDeviceMapping.1.OSSObject", "none.raw"); code != "InvalidOSSObject.NotFound" {
		t.Errorf("no object: %q", code)
	}
	var accepted struct{ ImageId, TaskId string }
	if code := in.rpc("ImportImage", &accepted, "ImageName", "web01", "BootMode", "UEFI", "Platform", "Ubuntu",
		"DiskDeviceMapping.1.OSSBucket", "images", "DiskDeviceMapping.1.OSSObject", "disk.raw", "DiskDeviceMapping.1.DiskImageSize", "7"); code != "" {
		t.Fatal(code)
	}
	status := func() string {
		var list struct {
			Images struct{ Image []struct{ Status string } }
		}
		if code := in.rpc("DescribeImages", &list, "ImageId", accepted.ImageId, "Status", "ALL"); code != "" || len(list.Images.Image) != 1 {
			t.Fatalf("%q: %+v", code, list)
		}
		return list.Images.Image[0].Status
	}
	until(t, "the image", func() bool { return status() == "Available" })

	images := imagesOf(t, tasks.ID(accepted.TaskId))
	if len(images) != 1 {
		t.Fatalf("the import has the images %v", images)
	}
	for property, want := range map[string]any{
		"name": "web01", "owner": cloud.Alpha.ProjectID, "status": "active", "min_disk": 7.0, "os_type": "linux", "os_distro": "ubuntu",
		"hw_firmware_type": "uefi", "architecture": "x86_64",
	} {
		if got := images[0][property]; got != want {
			t.Errorf("property %s is %v, want %v", property, got, want)
		}
	}
	id, _ := images[0]["id"].(string)
	if got := download(t, id); !bytes.Equal(got, content) || strings.HasPrefix(id, "m-") {
		t.Errorf("image %s has %d bytes, not the %d of the guest", id, len(got), len(content))
	}

	if code := in.rpc("DeleteImage", nil, "ImageId", accepted.ImageId); code != "" {
		t.Fatal(code)
	}
	until(t, "the removal", func() bool {
		return in.rpc("DeleteImage", nil, "ImageId", accepted.ImageId) == "InvalidImageId.NotFound"
	})
	if left := imagesOf(t, tasks.ID(accepted.TaskId)); len(left) > 0 || stored(t, id) >= 0 {
		t.Errorf("left in Glance: %v", left)
	}
}
