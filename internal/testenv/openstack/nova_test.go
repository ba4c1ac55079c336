package openstack

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"os"
	"path"
	"strings"
	"testing"
	"time"
)

// One Nova in the cloud that all tests share.
func testCompute(t *testing.T, c *Cloud) {
	began := time.Now()
	n, err := c.StartCompute(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("up in %s", time.Since(began).Round(100*time.Millisecond))
	t.Run("use", func(t *testing.T) {
		t.Run("server with a disk", func(t *testing.T) { t.Parallel(); testDiskServer(t, n) })
		t.Run("server with a volume", func(t *testing.T) { t.Parallel(); testVolumeServer(t, n) })
		t.Run("uploads", func(t *testing.T) { t.Parallel(); testUploads(t, n) })
		t.Run("strangers", func(t *testing.T) { t.Parallel(); testStrangers(t, n) })
	})
	n.Nova.Kill()
	if err := n.Nova.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	status, b := do(t, http.MethodGet, n.URL+"/servers", token(t, c, c.Alpha, ProjectScope), nil, nil)
	if status != http.StatusOK || !bytes.Contains(b, []byte("web01")) {
		t.Errorf("Nova was killed and started, and says %d %s", status, b)
	}
}

// eventually waits until a condition is met.
func eventually(t *testing.T, what string, met func() bool) {
	t.Helper()
	err := poll(t.Context(), time.Minute, func(context.Context) (bool, error) { return met(), nil })
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

// stop stops a server, and waits until it is shown as stopped.
func stop(t *testing.T, n *Compute, token, id string) {
	t.Helper()
	if status, b := do(t, http.MethodPost, n.URL+"/servers/"+id+"/action", token, []byte(`{"os-stop": null}`), jsonHeader); status != http.StatusAccepted {
		t.Fatalf("os-stop: %d %s", status, b)
	}
	awaitRest(t, n, id, "SHUTOFF")
}

// awaitRest waits until a server has a status and no task.
func awaitRest(t *testing.T, n *Compute, id, status string) {
	t.Helper()
	eventually(t, "the server is "+status, func() bool {
		s, err := n.Server(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		return s.Status == status && s.TaskState == ""
	})
}

var jsonHeader = http.Header{"Content-Type": {"application/json"}}

// imageBytes waits for an image to be active, and returns what is in it.
func imageBytes(t *testing.T, c *Cloud, token, id string) []byte {
	t.Helper()
	url := c.GlanceURL + "/v2/images/" + id
	eventually(t, "the image is active", func() bool {
		status, b := do(t, http.MethodGet, url, token, nil, nil)
		var img image
		if err := json.Unmarshal(b, &img); err != nil || status != http.StatusOK {
			t.Fatalf("image: %d %s", status, b)
		}
		return img.Status == "active"
	})
	_, b := do(t, http.MethodGet, url+"/file", token, nil, nil)
	return b
}

// createImage asks Nova for an image of a stopped server, and returns its id. While one
// is being made, Nova refuses to make another.
func createImage(t *testing.T, n *Compute, token, server string) string {
	t.Helper()
	awaitRest(t, n, server, "SHUTOFF")
	url := n.URL + "/servers/" + server + "/action"
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, strings.NewReader(`{"createImage": {"name": "image"}}`))
	if err != nil {
		t.Fatal(err)
	}
	req.Header = jsonHeader.Clone()
	req.Header.Set("X-Auth-Token", token)
	resp, err := httpClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusAccepted {
		t.Fatalf("createImage: %s", resp.Status)
	}
	return path.Base(resp.Header.Get("Location"))
}

func testDiskServer(t *testing.T, n *Compute) {
	c := n.cloud
	alice := token(t, c, c.Alpha, ProjectScope)
	content := bytes.Repeat([]byte("a disk "), 100_000)
	id, err := n.CreateServer(t.Context(), c.Alpha, "web01", content, map[string]string{"admin_pass": "not told"})
	if err != nil {
		t.Fatal(err)
	}
	stop(t, n, alice, id)
	if b := imageBytes(t, c, alice, createImage(t, n, alice, id)); !bytes.Equal(b, content) {
		t.Errorf("the image has %d bytes, not the %d that the server was made of", len(b), len(content))
	}

	written := []byte("QFI\xfb and what a guest has written")
	if err := os.WriteFile(n.Disk(id), written, 0o600); err != nil {
		t.Fatal(err)
	}
	image := createImage(t, n, alice, id)
	if b := imageBytes(t, c, alice, image); !bytes.Equal(b, written) {
		t.Errorf("the image is %q", b)
	}
	if _, b := do(t, http.MethodGet, c.GlanceURL+"/v2/images/"+image, alice, nil, nil); !bytes.Contains(b, []byte(`"disk_format": "qcow2"`)) {
		t.Errorf("the image of a QCOW2: %s", b)
	}

	if err := os.Remove(n.Disk(id)); err != nil {
		t.Fatal(err)
	}
	image = createImage(t, n, alice, id)
	eventually(t, "the image of a server without its disk is deleted", func() bool {
		status, _ := do(t, http.MethodGet, c.GlanceURL+"/v2/images/"+image, alice, nil, nil)
		return status == http.StatusNotFound
	})
}

// upload asks for the upload of a volume, and returns the answer and the image's id.
func upload(t *testing.T, vol *Volume, token string) (status int, image string) {
	t.Helper()
	url := vol.of.server.URL + "/v3/" + vol.ProjectID + "/volumes/" + vol.ID + "/action"
	body := []byte(`{"os-volume_upload_image": {"image_name": "web02", "disk_format": "raw", "container_format": "bare", "force": "True"}}`)
	status, b := do(t, http.MethodPost, url, token, body, jsonHeader)
	var accepted struct {
		Upload struct {
			Image  string `json:"image_id"`
			Status string
		} `json:"os-volume_upload_image"`
	}
	if err := json.Unmarshal(b, &accepted); err != nil || status == http.StatusAccepted && accepted.Upload.Status != "uploading" {
		t.Fatalf("os-volume_upload_image: %d %s", status, b)
	}
	return status, accepted.Upload.Image
}

func testVolumeServer(t *testing.T, n *Compute) {
	c := n.cloud
	alice := token(t, c, c.Alpha, ProjectScope)
	content := bytes.Repeat([]byte("a volume "), 100_000)
	id, vol, err := n.CreateVolumeServer(t.Context(), c.Alpha, "web02", content, nil)
	if err != nil {
		t.Fatal(err)
	}
	if s := vol.Status(); s != "in-use" {
		t.Errorf("the volume is %s", s)
	}
	stop(t, n, alice, id)
	_, b := do(t, http.MethodGet, n.URL+"/servers/"+id, alice, nil, nil)
	var shown struct {
		Server struct {
			Image   any
			Volumes []struct{ ID string } `json:"os-extended-volumes:volumes_attached"`
		}
	}
	if err := json.Unmarshal(b, &shown); err != nil || shown.Server.Image != "" || len(shown.Server.Volumes) != 1 || shown.Server.Volumes[0].ID != vol.ID {
		t.Errorf("the server is %s, %v", b, err)
	}
	_, image := upload(t, vol, alice)
	if b := imageBytes(t, c, alice, image); !bytes.Equal(b, content) {
		t.Errorf("the image has %d bytes", len(b))
	}
	eventually(t, "the volume is in use again", func() bool { return vol.Status() == "in-use" })

	if status, b := do(t, http.MethodDelete, n.URL+"/servers/"+id, alice, nil, nil); status != http.StatusNoContent {
		t.Errorf("delete the server: %d %s", status, b)
	}
	eventually(t, "the volume is let go", func() bool { return vol.Status() == "available" })
}

func testUploads(t *testing.T, n *Compute) {
	c := n.cloud
	bob := token(t, c, c.Beta, ProjectScope)
	vol := n.Volumes.Create(c.Beta, "volume", []byte("content"))

	hold := make(chan struct{})
	vol.SetUploads(Uploads{Hold: hold, SyncStatusReason: "az2 failed"})
	status, image := upload(t, vol, bob)
	if s := vol.Status(); status != http.StatusAccepted || s != "uploading" {
		t.Errorf("%d, and the volume is %s", status, s)
	}
	if status, _ := upload(t, vol, bob); status != http.StatusBadRequest {
		t.Errorf("a second upload meanwhile: %d", status)
	}
	_, b := do(t, http.MethodGet, c.GlanceURL+"/v2/images/"+image, bob, nil, nil)
	if !bytes.Contains(b, []byte(`"queued"`)) || !bytes.Contains(b, []byte(`"sync_status_reason": "az2 failed"`)) {
		t.Errorf("the image is %s", b)
	}
	close(hold)
	if b := imageBytes(t, c, bob, image); string(b) != "content" {
		t.Errorf("the image is %q", b)
	}
	eventually(t, "the volume rests", func() bool { return vol.Status() == "available" })

	vol.SetUploads(Uploads{Fail: true})
	_, image = upload(t, vol, bob)
	eventually(t, "the volume rests", func() bool { return vol.Status() == "available" })
	if status, b := do(t, http.MethodGet, c.GlanceURL+"/v2/images/"+image, bob, nil, nil); status != http.StatusNotFound {
		t.Errorf("the image after a failure: %d %s", status, b)
	}

	vol.SetUploads(Uploads{Limit: func(request int) (int, time.Duration) {
		if request > 1 {
			return http.StatusRequestEntityTooLarge, time.Minute
		}
		return 0, 0
	}})
	for _, want := range []int{http.StatusAccepted, http.StatusRequestEntityTooLarge} {
		if status, _ := upload(t, vol, bob); status != want {
			t.Errorf("%d, want %d", status, want)
		}
	}
}

// Neither Nova nor the stand-in shows anything to those of other projects.
func testStrangers(t *testing.T, n *Compute) {
	c := n.cloud
	vol := n.Volumes.Create(c.Alpha, "volume", []byte("content"))
	alice, bob := token(t, c, c.Alpha, ProjectScope), token(t, c, c.Beta, ProjectScope)
	volumes := n.Volumes.server.URL + "/v3/"
	for _, tt := range []struct {
		name, token, url string
		want             int
	}{
		{"its own", alice, volumes + c.Alpha.ProjectID + "/volumes/" + vol.ID, http.StatusOK},
		{"another project's, by its path", bob, volumes + c.Alpha.ProjectID + "/volumes/" + vol.ID, http.StatusBadRequest},
		{"another project's", bob, volumes + c.Beta.ProjectID + "/volumes/" + vol.ID, http.StatusNotFound},
		{"with a bogus token", "bogus", volumes + c.Alpha.ProjectID + "/volumes/" + vol.ID, http.StatusUnauthorized},
		{"the versions", "", n.Volumes.server.URL, http.StatusMultipleChoices},
		{"no server", bob, n.URL + "/servers/" + vol.ID, http.StatusNotFound},
		{"servers with a bogus token", "bogus", n.URL + "/servers", http.StatusUnauthorized},
	} {
		if status, b := do(t, http.MethodGet, tt.url, tt.token, nil, nil); status != tt.want {
			t.Errorf("%s: %d %s, want %d", tt.name, status, b, tt.want)
		}
	}
}
