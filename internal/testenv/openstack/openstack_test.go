package openstack

import (
	"bytes"
	"crypto/sha512"
	"encoding/hex"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
)

// One cloud for everything: it is started, used in all ways that other tests rely
// on, and stopped.
func TestCloud(t *testing.T) {
	began := time.Now()
	c, err := Start(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Stop)
	t.Logf("up in %s", time.Since(began).Round(100*time.Millisecond))
	t.Run("use", func(t *testing.T) {
		t.Run("tokens", func(t *testing.T) { t.Parallel(); testTokens(t, c) })
		t.Run("short-lived tokens", func(t *testing.T) { t.Parallel(); testShortLived(t, c) })
		t.Run("swift", func(t *testing.T) { t.Parallel(); testSwift(t, c) })
		t.Run("S3", func(t *testing.T) { t.Parallel(); testS3(t, c) })
		t.Run("glance", func(t *testing.T) { t.Parallel(); testGlance(t, c) })
	})
	t.Run("restart", func(t *testing.T) { testRestart(t, c) })
	t.Run("compute", func(t *testing.T) { testCompute(t, c) })
	if n := len(processes(t, c.Dir)); n < 15 {
		t.Errorf("only %d processes are known as the cloud's", n)
	}
	c.Stop()
	if left := processes(t, c.Dir); len(left) > 0 || exists(t, c.Dir) {
		t.Errorf("left: the directory (%t) and %q", exists(t, c.Dir), left)
	}
}

func token(t *testing.T, c *Cloud, u *User, scope Scope) string {
	t.Helper()
	token, err := c.Token(t.Context(), u, scope)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// do makes a request with a token, and returns status and body of the answer.
func do(t *testing.T, method, url, token string, body []byte, header http.Header) (int, []byte) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for name, values := range header {
		req.Header[name] = values
	}
	req.Header.Set("X-Auth-Token", token)
	resp, err := httpClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, b
}

func testTokens(t *testing.T, c *Cloud) {
	validator := token(t, c, c.Service, ProjectScope)
	revoked := token(t, c, c.Beta, ProjectScope)
	if err := c.Revoke(t.Context(), revoked); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name               string
		validator, subject string
		want               int
		project, domain    string
		roles              string
	}{
		{"of a project", validator, token(t, c, c.Alpha, ProjectScope), 200, "alpha in contract01", "", "member reader"},
		{"of another domain", validator, token(t, c, c.Gamma, ProjectScope), 200, "gamma in contract02", "", "member reader"},
		{"of a reader", validator, token(t, c, c.Reader, ProjectScope), 200, "alpha in contract01", "", "reader"},
		{"of a domain", validator, token(t, c, c.Alpha, DomainScope), 200, "", "contract01", "member reader"},
		{"unscoped", validator, token(t, c, c.Alpha, Unscoped), 200, "", "", ""},
		{"revoked", validator, revoked, 404, "", "", ""},
		{"bogus", validator, "gAAAAAbogus", 404, "", "", ""},
		{"by a bogus one", "gAAAAAbogus", token(t, c, c.Alpha, ProjectScope), 401, "", "", ""},
		{"by another user's", token(t, c, c.Beta, ProjectScope), token(t, c, c.Alpha, ProjectScope), 403, "", "", ""},
	} {
		status, b := do(t, http.MethodGet, c.KeystoneURL+"/auth/tokens?nocatalog", tt.validator, nil, http.Header{"X-Subject-Token": {tt.subject}})
		if status != tt.want {
			t.Errorf("%s: %d, want %d: %s", tt.name, status, tt.want, b)
			continue
		}
		if status != http.StatusOK {
			continue
		}
		var v struct {
			Token struct {
				Project struct {
					Name   string
					Domain struct{ Name string }
				}
				Domain struct{ Name string }
				Roles  []struct{ Name string }
			}
		}
		if err := json.Unmarshal(b, &v); err != nil {
			t.Fatal(err)
		}
		var project string
		if p := v.Token.Project; p.Name != "" {
			project = p.Name + " in " + p.Domain.Name
		}
		var roles []string
		for _, r := range v.Token.Roles {
			roles = append(roles, r.Name)
		}
		if project != tt.project || v.Token.Domain.Name != tt.domain || !sameWords(strings.Join(roles, " "), tt.roles) {
			t.Errorf("%s: %s", tt.name, b)
		}
	}
}

func sameWords(a, b string) bool {
	return slices.Equal(slices.Sorted(slices.Values(strings.Fields(a))), slices.Sorted(slices.Values(strings.Fields(b))))
}

func testShortLived(t *testing.T, c *Cloud) {
	const life = 60 * time.Second
	url, err := c.StartShortLived(t.Context(), life)
	if err != nil {
		t.Fatal(err)
	}
	short, err := c.TokenAt(t.Context(), url, c.Alpha, ProjectScope)
	if err != nil {
		t.Fatal(err)
	}
	status, b := do(t, http.MethodGet, c.KeystoneURL+"/auth/tokens?nocatalog", short, nil, http.Header{"X-Subject-Token": {short}})
	var v struct {
		Token struct {
			Expires time.Time `json:"expires_at"`
		}
	}
	if err := json.Unmarshal(b, &v); err != nil || status != http.StatusOK {
		t.Fatalf("%d %s, %v", status, b, err)
	}
	if left := time.Until(v.Token.Expires); left > life {
		t.Errorf("the token lives for another %s", left)
	}
	if status, b := do(t, http.MethodGet, c.GlanceURL+"/v2/images", short, nil, nil); status != http.StatusOK {
		t.Errorf("Glance answers it with %d %s", status, b)
	}
}

func testSwift(t *testing.T, c *Cloud) {
	content := []byte(strings.Repeat("an object ", 1000))
	path := filepath.Join(t.TempDir(), "object")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	upload := c.Command(t.Context(), c.Alpha, "swift", "upload", "images", path, "--object-name", "disk.raw", "--segment-size", "4000", "--use-slo")
	if out, err := upload.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	object := c.AccountURL(c.Alpha) + "/images/disk.raw"
	for _, tt := range []struct {
		user *User
		want int
	}{
		{c.Alpha, http.StatusOK}, {c.Service, http.StatusOK},
		{c.Beta, http.StatusForbidden}, {c.Gamma, http.StatusForbidden}, {c.Reader, http.StatusForbidden}, {c.Admin, http.StatusForbidden},
	} {
		status, b := do(t, http.MethodGet, object, token(t, c, tt.user, ProjectScope), nil, nil)
		if status != tt.want || status == http.StatusOK && !bytes.Equal(b, content) {
			t.Errorf("%s reads the object: %d, %d bytes", tt.user.Name, status, len(b))
		}
	}
}

// Swift looks keys up in Keystone, which tells it nothing unless both are set up for it.
func testS3(t *testing.T, c *Cloud) {
	access, secret, err := c.EC2Key(t.Context(), c.Beta)
	if err != nil {
		t.Fatal(err)
	}
	s3, err := minio.New(strings.TrimPrefix(c.SwiftURL, "http://"), &minio.Options{
		Creds: credentials.NewStaticV4(access, secret, ""), Region: c.Region, BucketLookup: minio.BucketLookupPath,
		Transport: httpClient.Transport,
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := s3.MakeBucket(t.Context(), "bucket", minio.MakeBucketOptions{}); err != nil {
		t.Fatal(err)
	}
	status, b := do(t, http.MethodGet, c.AccountURL(c.Beta)+"/bucket", token(t, c, c.Beta, ProjectScope), nil, nil)
	if status/100 != 2 {
		t.Errorf("the bucket's container: %d %s", status, b)
	}
}

// image is what Glance says about an image, as far as the tests want to know.
type image struct {
	ID, Status, Owner string
	Hash              string `json:"os_hash_value"`
}

func testGlance(t *testing.T, c *Cloud) {
	content := []byte(strings.Repeat("an image ", 100_000))
	path := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	create := c.Command(t.Context(), c.Alpha, "glance", "image-create", "--disk-format", "raw", "--container-format", "bare", "--file", path)
	if out, err := create.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	owner := token(t, c, c.Alpha, ProjectScope)
	_, b := do(t, http.MethodGet, c.GlanceURL+"/v2/images", owner, nil, nil)
	var list struct{ Images []image }
	if err := json.Unmarshal(b, &list); err != nil || len(list.Images) != 1 {
		t.Fatalf("%s, %v", b, err)
	}
	sum := sha512.Sum512(content)
	img := list.Images[0]
	if img != (image{ID: img.ID, Status: "active", Owner: c.Alpha.ProjectID, Hash: hex.EncodeToString(sum[:])}) {
		t.Errorf("image is %+v", img)
	}
	if _, b := do(t, http.MethodGet, c.GlanceURL+"/v2/images/"+img.ID+"/file", owner, nil, nil); !bytes.Equal(b, content) {
		t.Errorf("read back %d bytes, want %d", len(b), len(content))
	}
	if status, b := do(t, http.MethodGet, c.GlanceURL+"/v2/images/"+img.ID, token(t, c, c.Beta, ProjectScope), nil, nil); status != http.StatusNotFound {
		t.Errorf("bob sees the image: %d %s", status, b)
	}
}

// What the servers know survives them.
func testRestart(t *testing.T, c *Cloud) {
	alice := token(t, c, c.Alpha, ProjectScope)
	for _, tt := range []struct {
		server *Server
		url    string
	}{
		{c.Glance, c.GlanceURL + "/v2/images"}, {c.Swift, c.AccountURL(c.Alpha) + "/images"}, {c.Keystone, c.KeystoneURL + "/auth/projects"},
	} {
		_, before := do(t, http.MethodGet, tt.url, alice, nil, nil)
		tt.server.Kill()
		if resp, err := httpClient.Get(tt.url); err == nil {
			t.Errorf("%s answers after it was killed: %s, %v", tt.server.name, resp.Status, resp.Body.Close())
		}
		if err := tt.server.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		if status, after := do(t, http.MethodGet, tt.url, alice, nil, nil); status != http.StatusOK || !bytes.Equal(before, after) {
			t.Errorf("%s says %d %s, and before %s", tt.server.name, status, after, before)
		}
	}
}
