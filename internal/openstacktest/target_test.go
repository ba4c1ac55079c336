package openstacktest

import (
	"bytes"
	"crypto/md5"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"vmimport/internal/fault"
	"vmimport/internal/openstack"
	"vmimport/internal/secret"
	env "vmimport/internal/testenv/openstack"
	"vmimport/storage"
	"vmimport/storage/storagetest"
	"vmimport/storage/swiftstore"
)

func TestTargetConformance(t *testing.T) {
	t.Parallel()
	storagetest.RunTarget(t, func(t *testing.T) storagetest.TargetSubject {
		c := customerOf(t, cloud.Alpha)
		return c.subject(t)
	})
}

// subject is the customer's container as a target.
func (c *customer) subject(t *testing.T) storagetest.TargetSubject {
	return storagetest.TargetSubject{
		Target:    openSwift(t),
		Another:   func(t *testing.T) storage.Target { return openSwift(t) },
		Project:   c.user.ProjectID,
		Container: c.container,
		MakeContainer: func(name string) {
			c.putIn(name, "", nil)
		},
		Put: func(name string, content []byte) { c.put(name, content) },
		Read: func(name string) ([]byte, bool) {
			resp, content := c.do(http.MethodGet, c.container, name, "", nil)
			if resp.StatusCode == http.StatusNotFound {
				return nil, false
			}
			return content, true
		},
		RemovePart: func(up storage.Upload, name string, number int) {
			for _, o := range c.list(up.Container+"_segments", fmt.Sprintf("%s/%s/%08d-", name, up.ID, number)) {
				c.remove(up.Container+"_segments", o)
			}
		},
		Leftovers: c.leftovers,
	}
}

// upload returns an upload to the customer's container.
func (c *customer) upload(id string) storage.Upload {
	return storage.Upload{ID: id, Project: c.user.ProjectID, Container: c.container}
}

// store stores parts of an object, all but joined.
func store(t *testing.T, up storage.Upload, name string, contents ...string) []storage.Part {
	t.Helper()
	var parts []storage.Part
	var off int64
	for i, text := range contents {
		p := storage.Part{Number: i, Offset: off, Size: int64(len(text)), MD5: fmt.Sprintf("%x", md5.Sum([]byte(text)))}
		if err := openSwift(t).PutPart(t.Context(), up, name, p, strings.NewReader(text)); err != nil {
			t.Fatalf("part %d of %s: %v", i, name, err)
		}
		off += p.Size
		parts = append(parts, p)
	}
	return parts
}

// Where a customer keeps versions, it all works the same, and nothing but what the customer's own
// removals leave is left.
func TestTargetVersioned(t *testing.T) {
	t.Parallel()
	c := customerOf(t, cloud.Alpha)
	for _, container := range []string{c.container, c.container + "_segments"} {
		c.putIn(container, "", nil, "X-Versions-Enabled", "true")
	}
	s, up := openSwift(t), c.upload("versioned")
	vacant := func(up storage.Upload, names ...string) error { return s.Vacant(t.Context(), up, names...) }
	reads := func(name, want string) {
		if _, got := c.do(http.MethodGet, c.container, name, "", nil); string(got) != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	for range 2 {
		store(t, up, "disk", "replaced", "kept")
		parts := store(t, up, "disk", "first", "kept")
		for range 2 {
			if err := errors.Join(s.PutNew(t.Context(), up, "disk.json", []byte("{}")), s.Join(t.Context(), up, "disk", parts), vacant(up, "disk", "disk.json")); err != nil {
				t.Fatal(err)
			}
		}
		reads("disk", "firstkept")
		reads("disk.json", "{}")
		for what, err := range map[string]error{
			"join of others": s.Join(t.Context(), up, "disk", parts[:1]), "other bytes": s.PutNew(t.Context(), up, "disk.json", []byte("[]")),
		} {
			if !errors.Is(err, storage.ErrObjectExists) {
				t.Errorf("%s: %v", what, err)
			}
		}
		if err := vacant(c.upload("other"), "disk"); !errors.Is(err, storage.ErrObjectExists) {
			t.Errorf("vacant for another: %v", err)
		}
		if err := s.Settle(t.Context(), up, "disk", "disk.json"); err != nil {
			t.Fatal(err)
		}
		reads("disk", "firstkept")
		if err := s.Discard(t.Context(), up, "disk", "disk.json"); err != nil {
			t.Fatal(err)
		}
		for _, container := range []string{c.container, c.container + "_segments"} {
			resp, text := c.do(http.MethodGet, container, "", "?versions&format=json", nil)
			if c.must(resp, text); strings.Contains(string(text), "kept") || strings.Contains(string(text), "disk") {
				t.Errorf("left in %s: %s", container, text)
			}
		}
	}
}

// What a customer sees of an export.
func TestTargetSeen(t *testing.T) {
	t.Parallel()
	c := customerOf(t, cloud.Alpha)
	s, up := openSwift(t), c.upload("seen")
	parts := store(t, up, "web 01.img.gz", strings.Split(strings.Repeat("a,b,", 15)+"end", ",")...)
	if err := errors.Join(s.Join(t.Context(), up, "web 01.img.gz", parts), s.PutNew(t.Context(), up, "web 01.ovf", []byte("<x/>"))); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"web 01.img.gz": "application/octet-stream", "web 01.ovf": "application/xml"} {
		resp, text := c.do(http.MethodHead, c.container, name, "", nil)
		c.must(resp, text)
		if resp.Header.Get("Content-Type") != want || resp.Header.Get("X-Object-Meta-Vmimport-Upload") != "seen" {
			t.Errorf("%s: %v", name, resp.Header)
		}
	}
	resp, text := c.do(http.MethodGet, c.container, "web 01.img.gz", "", nil)
	if c.must(resp, text); string(text) != strings.Repeat("ab", 15)+"end" {
		t.Errorf("%q", text)
	}
	for i, path := range c.manifest(c.container, "web 01.img.gz") {
		if want := fmt.Sprintf("/%s_segments/web 01.img.gz/seen/%08d-%s", c.container, i, parts[i].MD5); path != want {
			t.Errorf("part %d is %s, want %s", i, path, want)
		}
	}
	resp, _ = c.do(http.MethodGet, c.container+"_segments", "", "", nil)
	like, _ := c.do(http.MethodGet, c.container, "", "", nil)
	if resp.Header.Get("X-Storage-Policy") != like.Header.Get("X-Storage-Policy") || resp.Header.Get("X-Container-Meta-Vmimport-Upload") != "seen" {
		t.Errorf("container of parts: %v", resp.Header)
	}
}

// Whatever a customer has under a name is in the way: also what is no object of its own, and parts
// of one.
func TestTargetVacant(t *testing.T) {
	t.Parallel()
	c := customerOf(t, cloud.Alpha)
	s, up := openSwift(t), c.upload("vacant")
	if err := s.Vacant(t.Context(), up, "link", "dynamic", "split", "split elsewhere"); err != nil {
		t.Fatal(err)
	}
	c.link(c.container, "link", c, "nowhere")
	c.putDynamic("dynamic", "nowhere/")
	c.put("split/001", []byte("x"))
	c.putIn(c.container+"_segments", "", nil)
	c.putIn(c.container+"_segments", "split elsewhere/1469", []byte("x"))
	c.link(c.container, "marked", c, "nowhere", "X-Object-Meta-Vmimport-Upload", up.ID)
	for name, evidence := range map[string]string{
		"link": "link", "dynamic": "dynamic", "split": "split/001", "marked": "marked",
		"split elsewhere": "split elsewhere/1469 in container " + c.container + "_segments",
	} {
		if err := s.Vacant(t.Context(), up, name); !errors.Is(err, storage.ErrObjectExists) || fault.Of(err).Evidence != evidence {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, name := range []string{"link", "dynamic", "marked"} {
		if err := s.PutNew(t.Context(), up, name, []byte("x")); !errors.Is(err, storage.ErrObjectExists) {
			t.Errorf("put %s: %v", name, err)
		}
	}
	if err := s.Discard(t.Context(), up, "link", "dynamic", "split", "split elsewhere", "marked"); err != nil {
		t.Error(err)
	}
	if n := len(c.list(c.container, "")) + len(c.list(c.container+"_segments", "")); n != 5 {
		t.Errorf("%d objects are left", n)
	}
}

// newAccount makes an account with a container "c" for a project that Keystone does not know, and
// returns a way to ask for things in it.
func newAccount(t *testing.T, project string) func(method, path string, header ...string) int {
	t.Helper()
	token, err := cloud.Token(t.Context(), cloud.Service, env.ProjectScope)
	if err != nil {
		t.Fatal(err)
	}
	ask := func(method, path string, header ...string) int {
		req, err := http.NewRequestWithContext(t.Context(), method, cloud.SwiftURL+"/v1/AUTH_"+project+path, strings.NewReader(""))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("X-Auth-Token", token)
		for pair := range slices.Chunk(header, 2) {
			req.Header.Set(pair[0], pair[1])
		}
		if method == http.MethodPut && strings.Count(path, "/") > 1 {
			req.Body, req.ContentLength = io.NopCloser(strings.NewReader("0123456789")), 10
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		return resp.StatusCode
	}
	if code := ask(http.MethodPut, "/c"); code/100 != 2 {
		t.Fatalf("make container: %d", code)
	}
	return ask
}

// Swift holds everybody to the quota of a container, and everybody but the service to that of an
// account.
func TestTargetQuota(t *testing.T) {
	t.Parallel()
	const project = "0000000000000000000000000000c0de"
	ask := newAccount(t, project)
	s := openSwift(t)
	up := storage.Upload{ID: "quota", Project: project, Container: "c"}
	text := "0123456789"
	part := storage.Part{Size: 10, MD5: fmt.Sprintf("%x", md5.Sum([]byte(text)))}
	try := func() error { return s.PutPart(t.Context(), up, "disk", part, strings.NewReader(text)) }
	if err := s.Vacant(t.Context(), up, "disk"); err != nil {
		t.Fatal(err)
	}
	if code := ask(http.MethodPost, "", "X-Account-Meta-Quota-Bytes", "9"); code/100 != 2 {
		t.Fatalf("set quota: %d", code)
	}
	if code := ask(http.MethodPut, "/c/beyond"); code != http.StatusCreated {
		t.Errorf("Swift holds the service to a quota: %d", code)
	}
	if err := try(); fault.CodeOf(err) != "object_store_quota" || fault.Retryable(err) {
		t.Errorf("beyond the quota of the account: %v", err)
	}
	ask(http.MethodPost, "", "X-Account-Meta-Quota-Bytes", "1000")
	if err := try(); err != nil {
		t.Errorf("within the quota of the account: %v", err)
	}
	ask(http.MethodPost, "/c_segments", "X-Container-Meta-Quota-Count", "1")
	ask(http.MethodPost, "/c", "X-Container-Meta-Quota-Bytes", "1")
	part.Number = 1
	for what, err := range map[string]error{
		"part": try(), "join": s.Join(t.Context(), up, "disk", []storage.Part{{Size: 10, MD5: part.MD5}}), "small": s.PutNew(t.Context(), up, "disk.json", []byte("{}")),
	} {
		if fault.CodeOf(err) != "object_store_quota" || fault.KindOf(err) != fault.Invalid {
			t.Errorf("%s beyond the quota of the container: %v", what, err)
		}
	}
}

// In the account of a project that has none, nothing is made, nor is one.
func TestTargetNoAccount(t *testing.T) {
	before := accounts(t)
	s, up := openSwift(t), storage.Upload{ID: "none", Project: "0000000000000000000000000000dead", Container: "c"}
	for what, err := range map[string]error{
		"vacant": s.Vacant(t.Context(), up, "disk"),
		"part":   s.PutPart(t.Context(), up, "disk", storage.Part{Size: 1, MD5: fmt.Sprintf("%x", md5.Sum([]byte("x")))}, strings.NewReader("x")),
		"small":  s.PutNew(t.Context(), up, "disk", nil),
	} {
		if !errors.Is(err, storage.ErrNoContainer) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := s.Discard(t.Context(), up, "disk"); err != nil {
		t.Error(err)
	}
	if after := accounts(t); after != before {
		t.Errorf("%d accounts were made", after-before)
	}
}

// A member of a project may write into that alone.
func TestTargetNoRight(t *testing.T) {
	t.Parallel()
	c := customerOf(t, cloud.Beta)
	s, err := swiftstore.New(swiftstore.Options{Cloud: service(t, func(o *openstack.Options) {
		u := cloud.Alpha
		o.Username, o.Password, o.UserDomain, o.Project = u.Name, secret.New(u.Password), u.Domain, u.ProjectName
	})})
	if err != nil {
		t.Fatal(err)
	}
	up := c.upload("no-right")
	for what, err := range map[string]error{
		"vacant": s.Vacant(t.Context(), up, "disk"), "small": s.PutNew(t.Context(), up, "disk", nil), "discard": s.Discard(t.Context(), up, "disk"),
	} {
		if fault.CodeOf(err) != "swift_right_missing" || fault.KindOf(err) != fault.Denied {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// list returns the names of objects in a container, or of containers if that is "".
func (c *customer) list(container, prefix string) (names []string) {
	c.t.Helper()
	resp, text := c.do(http.MethodGet, container, "", "?format=json&prefix="+url.QueryEscape(prefix), nil)
	if resp.StatusCode == http.StatusNotFound {
		return nil
	}
	c.must(resp, text)
	var list []struct {
		Name string `json:"name"`
	}
	if err := json.Unmarshal(bytes.TrimSpace(text), &list); err != nil && len(text) > 0 {
		c.t.Fatal(err)
	}
	for _, o := range list {
		names = append(names, o.Name)
	}
	return names
}

// manifest returns what a static large object is made of, or nothing if it is none.
func (c *customer) manifest(container, name string) (paths []string) {
	c.t.Helper()
	resp, text := c.do(http.MethodGet, container, name, "?multipart-manifest=get", nil)
	if resp.Header.Get("X-Static-Large-Object") == "" {
		return nil
	}
	var segments []struct {
		Name string `json:"name"`
	}
	if err := json.Unmarshal(text, &segments); err != nil {
		c.t.Fatal(err)
	}
	for _, s := range segments {
		paths = append(paths, s.Name)
	}
	return paths
}

// leftovers are parts that are in no object, and containers of parts that are empty.
func (c *customer) leftovers() (left []string) {
	c.t.Helper()
	used := map[string]bool{}
	containers := c.list("", c.container)
	for _, container := range containers {
		for _, name := range c.list(container, "") {
			for _, path := range c.manifest(container, name) {
				used[path] = true
			}
		}
	}
	for _, container := range containers {
		if !strings.HasSuffix(container, "_segments") {
			continue
		}
		parts := c.list(container, "")
		if len(parts) == 0 {
			left = append(left, container)
		}
		for _, name := range parts {
			if path := "/" + container + "/" + name; !used[path] {
				left = append(left, path)
			}
		}
	}
	return left
}
