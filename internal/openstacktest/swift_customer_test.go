package openstacktest

import (
	"bytes"
	"crypto/md5"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"

	env "vmimport/internal/testenv/openstack"
	"vmimport/storage"
)

// customer uses Swift as one of the cloud's users.
type customer struct {
	t         testing.TB
	user      *env.User
	token     string
	container string // of this test alone
}

// customerOf returns a user with two new containers: one of its own, and one for
// the parts of large objects, which is called the same with "-parts" after it.
func customerOf(t testing.TB, user *env.User) *customer {
	t.Helper()
	token, err := cloud.Token(t.Context(), user, env.ProjectScope)
	if err != nil {
		t.Fatal(err)
	}
	name := strings.NewReplacer("/", "-", " ", "-").Replace(t.Name()) + "-" + fmt.Sprintf("%.4x", md5.Sum([]byte(t.TempDir())))
	c := &customer{t: t, user: user, token: token, container: name}
	c.put("", nil)
	c.putIn(c.container+"-parts", "", nil)
	return c
}

// do sends a request about an object, or about a container if name is empty.
func (c *customer) do(method, container, name, query string, body []byte, header ...string) (*http.Response, []byte) {
	c.t.Helper()
	u := cloud.AccountURL(c.user) + "/" + url.PathEscape(container)
	if name != "" {
		u += "/" + strings.ReplaceAll(url.PathEscape(name), "%2F", "/")
	}
	req, err := http.NewRequestWithContext(c.t.Context(), method, u+query, bytes.NewReader(body))
	if err != nil {
		c.t.Fatal(err)
	}
	req.Header.Set("X-Auth-Token", c.token)
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		c.t.Fatal(err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		c.t.Fatal(err)
	}
	return resp, answer
}

func (c *customer) must(resp *http.Response, answer []byte) {
	c.t.Helper()
	if resp.StatusCode/100 != 2 {
		c.t.Fatalf("%s %s: %s: %s", resp.Request.Method, resp.Request.URL.Path, resp.Status, answer)
	}
}

func (c *customer) put(name string, content []byte, header ...string) {
	c.t.Helper()
	c.putIn(c.container, name, content, header...)
}

func (c *customer) putIn(container, name string, content []byte, header ...string) {
	c.t.Helper()
	c.must(c.do(http.MethodPut, container, name, "", content, header...))
}

func (c *customer) part(name string, content []byte, header ...string) {
	c.t.Helper()
	c.putIn(c.container+"-parts", name, content, header...)
}

func (c *customer) remove(container, name string) {
	c.t.Helper()
	c.must(c.do(http.MethodDelete, container, name, "", nil))
}

// putStatic makes a static large object of what is in the container of parts.
func (c *customer) putStatic(name string, segments ...map[string]any) {
	c.t.Helper()
	text, err := json.Marshal(segments)
	if err != nil {
		c.t.Fatal(err)
	}
	c.must(c.do(http.MethodPut, c.container, name, "?multipart-manifest=put", text))
}

func (c *customer) segment(name string) map[string]any {
	return map[string]any{"path": "/" + c.container + "-parts/" + name}
}

func (c *customer) putDynamic(name, prefix string) {
	c.t.Helper()
	c.put(name, nil, "X-Object-Manifest", c.container+"-parts/"+url.PathEscape(prefix))
}

// link makes a link to an object of another user.
func (c *customer) link(container, name string, to *customer, target string, header ...string) {
	c.t.Helper()
	c.putIn(container, name, nil, append(header, "X-Symlink-Target", to.container+"/"+target, "X-Symlink-Target-Account", "AUTH_"+to.user.ProjectID)...)
}

func (c *customer) at(name string) storage.Location {
	return storage.Location{API: "swift", Project: c.user.ProjectID, Container: c.container, Name: name}
}

// thirds cuts content into parts.
func thirds(content []byte) [][]byte {
	if len(content) < 3 {
		return [][]byte{content}
	}
	n := len(content) / 3
	return [][]byte{content[:n], content[n : 2*n], content[2*n:]}
}

func (c *customer) parts(content []byte) (segments []map[string]any) {
	for i, p := range thirds(content) {
		name := fmt.Sprintf("web disk/%d", i)
		c.part(name, p)
		segments = append(segments, c.segment(name))
	}
	return segments
}

// swiftKinds are the ways in which an object can be stored.
var swiftKinds = map[string]func(c *customer, name string, content []byte){
	"plain": func(c *customer, name string, content []byte) { c.put(name, content) },
	"static": func(c *customer, name string, content []byte) {
		if len(content) == 0 {
			c.put(name, nil)
			return
		}
		c.putStatic(name, c.parts(content)...)
	},
	"dynamic": func(c *customer, name string, content []byte) {
		for i := range 3 {
			c.do(http.MethodDelete, c.container+"-parts", fmt.Sprintf("web disk/%d", i), "", nil)
		}
		c.parts(content)
		c.putDynamic(name, "web disk/")
	},
}
