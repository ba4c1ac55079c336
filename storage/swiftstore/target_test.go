package swiftstore_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	"vmimport/internal/fault"
	"vmimport/storage"
	"vmimport/storage/storagetest"
	"vmimport/storage/swiftstore"
)

func TestTarget(t *testing.T) {
	t.Parallel()
	storagetest.RunTarget(t, func(t *testing.T) storagetest.TargetSubject {
		f := newFake(t)
		f.makeContainer("images")
		f.pageLimit = 3
		return storagetest.TargetSubject{
			Target:        f.store(),
			Another:       func(*testing.T) storage.Target { return f.store() },
			Project:       "p1",
			Container:     "images",
			MakeContainer: func(name string) { f.makeContainer(name) },
			Put:           func(name string, content []byte) { f.put("images/"+name, content) },
			Read:          func(name string) ([]byte, bool) { return f.download("images/" + name) },
			RemovePart: func(up storage.Upload, name string, number int) {
				f.removeAll(fmt.Sprintf("%s_segments/%s/%s/%08d-", up.Container, name, up.ID, number))
			},
			Leftovers: f.leftovers,
		}
	})
}

// download returns what a customer gets, who has Swift join the parts.
func (f *fake) download(path string) ([]byte, bool) {
	f.mu.Lock()
	o := f.objects["AUTH_p1/"+path]
	f.mu.Unlock()
	if o == nil || o.header.Get("X-Static-Large-Object") == "" {
		if o == nil {
			return nil, false
		}
		return append([]byte{}, o.content...), true
	}
	var all []byte
	for _, s := range f.manifest(path) {
		f.mu.Lock()
		part := f.objects["AUTH_p1"+s.Name]
		f.mu.Unlock()
		if part == nil || part.etag != s.Hash {
			return nil, true // Swift breaks off
		}
		all = append(all, part.content...)
	}
	return all, true
}

// leftovers are parts that are in no object, and containers that the service made and
// that are empty.
func (f *fake) leftovers() []string {
	used := map[string]bool{}
	for _, path := range f.names("AUTH_p1/") {
		f.mu.Lock()
		o := f.objects[path]
		f.mu.Unlock()
		if o.header.Get("X-Static-Large-Object") != "" {
			for _, s := range f.manifest(strings.TrimPrefix(path, "AUTH_p1/")) {
				used["AUTH_p1"+s.Name] = true
			}
		}
	}
	var left []string
	for _, path := range f.names("AUTH_p1/") {
		if strings.Contains(path, "_segments/") && !used[path] {
			left = append(left, path)
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for path, header := range f.made {
		if header.Get("X-Container-Meta-Vmimport-Upload") != "" && f.empty(path) {
			left = append(left, path)
		}
	}
	return left
}

var upload = storage.Upload{ID: "6f0b1c2d-0001", Project: "p1", Container: "images"}

// once hides all that a reader can do besides.
func once(text string) io.Reader { return io.MultiReader(strings.NewReader(text)) }

func partOf(number int, text string) storage.Part {
	return storage.Part{Number: number, Size: int64(len(text)), MD5: md5Hex(text)}
}

// writable returns a fake with a container, and a store in front of it.
func writable(t *testing.T) (*fake, *swiftstore.Store) {
	f := newFake(t)
	f.makeContainer("images", "X-Storage-Policy", "gold")
	return f, f.store()
}

// steps are the ways in which something is put, each on what the former have left.
var steps = []struct {
	name string
	do   func(ctx context.Context, s *swiftstore.Store) error
}{
	{"part", func(ctx context.Context, s *swiftstore.Store) error {
		return s.PutPart(ctx, upload, "disk", partOf(0, "hello"), strings.NewReader("hello"))
	}},
	{"join", func(ctx context.Context, s *swiftstore.Store) error {
		return s.Join(ctx, upload, "disk", []storage.Part{partOf(0, "hello")})
	}},
	{"small", func(ctx context.Context, s *swiftstore.Store) error {
		return s.PutNew(ctx, upload, "disk.json", []byte("{}"))
	}},
}

// isPut reports whether a request puts an object.
func isPut(r *http.Request) bool {
	return r.Method == http.MethodPut && strings.Count(r.URL.Path, "/") > 3
}

func (f *fake) puts() (puts []*http.Request) {
	return slices.DeleteFunc(f.seen(), func(r *http.Request) bool { return !isPut(r) })
}

// What is asked of Swift for an object.
func TestTargetRequests(t *testing.T) {
	t.Parallel()
	f, s := writable(t)
	for _, step := range steps {
		if err := step.do(t.Context(), s); err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
	}
	puts := f.puts()
	dir := "/v1/AUTH_p1/images_segments/disk/" + upload.ID
	for i, want := range []struct{ uri, contentType, etag string }{
		{dir + "/00000000-" + md5Hex("hello"), "application/octet-stream", md5Hex("hello")}, // there is no container for it
		{dir + "/00000000-" + md5Hex("hello"), "application/octet-stream", md5Hex("hello")},
		{"/v1/AUTH_p1/images/disk?multipart-manifest=put&heartbeat=on", "application/octet-stream", md5Hex(md5Hex("hello"))},
		{"/v1/AUTH_p1/images/disk.json", "application/json", md5Hex("{}")},
	} {
		r := puts[i]
		if r.RequestURI != want.uri {
			t.Errorf("put %s\nwant %s", r.RequestURI, want.uri)
		}
		for name, value := range map[string]string{"Content-Type": want.contentType, "Etag": want.etag, "If-None-Match": "*", "X-Object-Meta-Vmimport-Upload": upload.ID} {
			if r.Header.Get(name) != value {
				t.Errorf("%s: %s is %q, want %q", want.uri, name, r.Header.Get(name), value)
			}
		}
		if r.ContentLength <= 0 {
			t.Errorf("%s: length %d", want.uri, r.ContentLength)
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if h := f.made["AUTH_p1/images_segments/"]; h.Get("X-Storage-Policy") != "gold" || h.Get("X-Container-Meta-Vmimport-Upload") != upload.ID {
		t.Errorf("container of parts: %v", h)
	}
}

func TestTargetLimits(t *testing.T) {
	t.Parallel()
	f, s := writable(t)
	with := func(edit func(*storage.Part)) storage.Part {
		p := partOf(0, "hello")
		edit(&p)
		return p
	}
	for name, p := range map[string]storage.Part{
		"too large":     with(func(p *storage.Part) { p.Size = storage.MaxPartBytes + 1 }),
		"empty":         with(func(p *storage.Part) { p.Size = 0 }),
		"too many":      with(func(p *storage.Part) { p.Number = storage.MaxParts }),
		"before first":  with(func(p *storage.Part) { p.Number = -1 }),
		"no MD5":        with(func(p *storage.Part) { p.MD5 = "" }),
		"half an MD5":   with(func(p *storage.Part) { p.MD5 = p.MD5[:16] }),
		"MD5 of a path": with(func(p *storage.Part) { p.MD5 = "../../../../../../../../../../.." }),
	} {
		if err := s.PutPart(t.Context(), upload, "disk", p, strings.NewReader("hello")); err == nil {
			t.Errorf("%s: stored", name)
		}
	}
	for _, n := range []int{0, storage.MaxParts + 1} {
		if err := s.Join(t.Context(), upload, "disk", make([]storage.Part, n)); err == nil {
			t.Errorf("%d parts: joined", n)
		}
	}
	edited := func(edit func(*storage.Upload)) storage.Upload {
		up := upload
		edit(&up)
		return up
	}
	for _, test := range []struct {
		up   storage.Upload
		name string
		code string
	}{
		{upload, "", "object_name_invalid"},
		{upload, "../disk", "object_name_invalid"},
		{upload, "a\x00b", "object_name_invalid"},
		{upload, strings.Repeat("n", 1000), "object_name_invalid"}, // the parts' names are longer
		{edited(func(u *storage.Upload) { u.Container = strings.Repeat("c", 250) }), "disk", "object_name_invalid"},
		{edited(func(u *storage.Upload) { u.Container = "a/b" }), "disk", "object_name_invalid"},
		{edited(func(u *storage.Upload) { u.Container = "" }), "disk", "object_name_invalid"},
		{edited(func(u *storage.Upload) { u.Project = "p1/../AUTH_p2" }), "disk", "internal_error"},
		{edited(func(u *storage.Upload) { u.Project = "" }), "disk", "internal_error"},
		{edited(func(u *storage.Upload) { u.ID = "a/b" }), "disk", "internal_error"},
		{edited(func(u *storage.Upload) { u.ID = "" }), "disk", "internal_error"},
	} {
		for what, err := range map[string]error{
			"vacant":  s.Vacant(t.Context(), test.up, test.name),
			"part":    s.PutPart(t.Context(), test.up, test.name, partOf(0, "hello"), strings.NewReader("hello")),
			"join":    s.Join(t.Context(), test.up, test.name, []storage.Part{partOf(0, "hello")}),
			"small":   s.PutNew(t.Context(), test.up, test.name, nil),
			"discard": s.Discard(t.Context(), test.up, test.name),
			"settle":  s.Settle(t.Context(), test.up, test.name),
		} {
			if fault.CodeOf(err) != test.code {
				t.Errorf("%s, %+v %.20q: %v", what, test.up, test.name, err)
			}
		}
	}
	if seen := f.seen(); len(seen) > 0 {
		t.Errorf("asked for %s", seen[0].RequestURI)
	}
}

// A customer who has removed the manifest alone does not see what is in the way.
func TestTargetSaysWhatIsInTheWay(t *testing.T) {
	t.Parallel()
	f, s := writable(t)
	f.put("images/taken", []byte("x"))
	f.put("images/split/001", []byte("x"))
	f.put("images_segments/parts/001", []byte("x"))
	for name, want := range map[string]string{
		"taken": "(taken). Remove it,",
		"split": "(split/001). Remove it,",
		"parts": "(parts/001 in container images_segments). Remove them too,",
	} {
		err := s.Vacant(t.Context(), upload, name)
		if !errors.Is(err, storage.ErrObjectExists) || !strings.Contains(fault.Of(err).Sentences(), want) {
			t.Errorf("%s: %v; want %q", name, err, want)
		}
	}
}

// As many parts as there can be, with names as long as they can be.
func TestTargetMostParts(t *testing.T) {
	t.Parallel()
	f, s := writable(t)
	name := strings.Repeat("語", 300) + `"<&>`
	var parts []storage.Part
	for i := range storage.MaxParts {
		p := partOf(i, fmt.Sprint(i))
		parts = append(parts, p)
		f.put(fmt.Sprintf("images_segments/%s/%s/%08d-%s", name, upload.ID, i, p.MD5), []byte(fmt.Sprint(i)), "X-Object-Meta-Vmimport-Upload", upload.ID)
	}
	if err := s.Join(t.Context(), upload, name, parts); err != nil {
		t.Fatal(err)
	}
	if n := len(f.manifest("images/" + name)); n != storage.MaxParts {
		t.Errorf("of %d parts", n)
	}
	if err := s.Discard(t.Context(), upload, name); err != nil || !f.empty("AUTH_p1/images") {
		t.Errorf("discard: %v, or something is left", err)
	}
}

// Lists lag: they show what is gone, and show later what was there.
func TestTargetListsLag(t *testing.T) {
	t.Parallel()
	f, s := writable(t)
	put := func(number int) {
		text := fmt.Sprint(number)
		f.put(fmt.Sprintf("images_segments/disk/%s/%08d-%s", upload.ID, number, md5Hex(text)), []byte(text), "X-Object-Meta-Vmimport-Upload", upload.ID)
	}
	put(1)
	stale := fmt.Appendf(nil, `[{"name":"disk/%s/00000000-%s","hash":"x","bytes":1}]`, upload.ID, md5Hex("0"))
	lists := 0
	f.setTamper(func(r *http.Request, a *answer) {
		if r.Method != http.MethodGet || r.URL.Query().Get("marker") != "" {
			return
		}
		switch lists++; lists {
		case 1:
			put(2)
		case 2, 3:
			a.header.Del("Content-Length")
			a.body = stale
		}
	})
	if err := s.Discard(t.Context(), upload, "disk"); err != nil || lists != 2 {
		t.Errorf("%d lists, %v", lists, err)
	}
	number := 50
	put(number)
	f.setTamper(func(r *http.Request, _ *answer) {
		if r.Method == http.MethodGet && r.URL.Query().Get("marker") == "" {
			number-- // before what the next page begins with
			put(number)
		}
	})
	if err := s.Discard(t.Context(), upload, "disk"); !errors.Is(err, storage.ErrUnavailable) {
		t.Errorf("without end: %v", err)
	}
}

// Nothing is removed but what says that the upload made it.
func TestTargetNotOwn(t *testing.T) {
	t.Parallel()
	f, s := writable(t)
	if err := steps[0].do(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	dir := "images_segments/disk/" + upload.ID + "/"
	f.put(dir+"00000001-"+md5Hex("x"), []byte("x"))
	f.put(dir+"notes", []byte("x"), "X-Object-Meta-Vmimport-Upload", upload.ID)
	f.put(dir+"00000002-"+md5Hex(""), nil, "X-Symlink-Target", "images/x", "X-Object-Meta-Vmimport-Upload", upload.ID)
	f.put("images/disk", nil, "X-Symlink-Target", "images/x", "X-Object-Meta-Vmimport-Upload", upload.ID)
	if err := s.PutPart(t.Context(), upload, "disk", partOf(1, "x"), strings.NewReader("x")); !errors.Is(err, storage.ErrObjectExists) {
		t.Errorf("part: %v", err)
	}
	if err := steps[1].do(t.Context(), s); !errors.Is(err, storage.ErrObjectExists) {
		t.Errorf("join: %v", err)
	}
	if err := s.Vacant(t.Context(), upload, "disk"); !errors.Is(err, storage.ErrObjectExists) {
		t.Errorf("vacant: %v", err)
	}
	if err := errors.Join(s.Settle(t.Context(), upload, "disk"), s.Discard(t.Context(), upload, "disk")); err != nil {
		t.Error(err)
	}
	if n := len(f.names("AUTH_p1/")); n != 4 {
		t.Errorf("%d objects are left", n)
	}
	for _, r := range f.seen() {
		if !strings.HasPrefix(r.RequestURI, "/v1/AUTH_p1") {
			t.Errorf("asked for %s", r.RequestURI)
		}
	}
}

// Swift does not hold the service to an account's quota.
func TestTargetAccountQuota(t *testing.T) {
	t.Parallel()
	f, s := writable(t)
	f.setAccount("X-Account-Bytes-Used", "96")
	for quota, ok := range map[string]bool{"": true, "100": false, "101": true, "-1": false, "x": true} {
		f.setAccount("X-Account-Meta-Quota-Bytes", quota)
		if err := steps[0].do(t.Context(), s); (err == nil) != ok || !ok && fault.CodeOf(err) != "object_store_quota" {
			t.Errorf("%q: %v", quota, err)
		}
	}
	f.setAccount("X-Account-Meta-Quota-Bytes", "97")
	if err := steps[2].do(t.Context(), s); fault.CodeOf(err) != "object_store_quota" {
		t.Errorf("small: %v", err)
	}
}
