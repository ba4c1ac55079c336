package openstacktest

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"testing"
	"time"

	"vmimport/imageapi"
	"vmimport/imageapi/glance"
	"vmimport/imageapi/imageapitest"
	env "vmimport/internal/testenv/openstack"
)

// openGlance returns the image service of the cloud.
func openGlance(t testing.TB) *glance.Images {
	t.Helper()
	images, err := glance.New(glance.Options{Cloud: service(t), Patience: 10 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = images.Close() })
	return images
}

// Glance as the service uses it does all that an image service promises.
func TestGlanceConformance(t *testing.T) {
	imageapitest.Run(t, func(t *testing.T) imageapitest.Service {
		return imageapitest.Service{
			Images:   openGlance(t),
			Another:  func(t *testing.T) imageapi.Images { return openGlance(t) },
			ReadDisk: func(t *testing.T, id string, _ int) []byte { return download(t, id) },
			Leftovers: func(t *testing.T, id string) []string {
				if image := show(t, id); image != nil && image["vmimport_parked"] == nil && image["vmimport_attempt"] != nil {
					return []string{fmt.Sprint(image)}
				}
				return nil
			},
			Streams: true,
		}
	})
}

// show returns the image as the cloud's administrator sees it, nil if there is none.
func show(t testing.TB, id string) map[string]any {
	t.Helper()
	body, status := get(t, cloud.Admin, cloud.GlanceURL+"/v2/images/"+id)
	switch status {
	case http.StatusNotFound:
		return nil
	case http.StatusOK:
	default:
		t.Fatalf("show image: %d: %s", status, body)
	}
	var image map[string]any
	if err := json.Unmarshal(body, &image); err != nil {
		t.Fatal(err)
	}
	return image
}

// download returns the data of an image.
func download(t testing.TB, id string) []byte {
	t.Helper()
	body, status := get(t, cloud.Admin, cloud.GlanceURL+"/v2/images/"+id+"/file")
	if status != http.StatusOK {
		t.Fatalf("download image: %d: %s", status, body)
	}
	return body
}

// get reads a URL with a new token of a user.
func get(t testing.TB, user *env.User, url string) ([]byte, int) {
	t.Helper()
	token, err := cloud.Token(t.Context(), user, env.ProjectScope)
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Auth-Token", token)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return body, resp.StatusCode
}
