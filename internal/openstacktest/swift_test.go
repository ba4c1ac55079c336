package openstacktest

import (
	"bytes"
	"crypto/md5"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"testing"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"vmimport/internal/fault"
	"vmimport/internal/openstack"
	"vmimport/internal/secret"
	env "vmimport/internal/testenv/openstack"
	"vmimport/storage"
	"vmimport/storage/storagetest"
	"vmimport/storage/swiftstore"
)

func openSwift(t testing.TB) *swiftstore.Store {
	t.Helper()
	s, err := swiftstore.New(swiftstore.Options{Cloud: service(t)})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestSwiftConformance(t *testing.T) {
	t.Parallel()
	for kind, put := range swiftKinds {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			storagetest.Run(t, func(t *testing.T, content []byte) storagetest.Subject {
				const name = "disks/web 1.raw"
				c := customerOf(t, cloud.Alpha)
				put(c, name, content)
				sub := storagetest.Subject{
					Store:    openSwift(t),
					Location: c.at(name),
					Replace:  func(content []byte) { put(c, name, content) },
					Remove:   func() { c.remove(c.container, name) },
					Put: func(loc storage.Location, content []byte) error {
						c.putIn(loc.Container, "", nil)
						resp, answer := c.do(http.MethodPut, loc.Container, loc.Name, "", content)
						if resp.StatusCode != http.StatusCreated {
							return fmt.Errorf("%s: %s", resp.Status, answer)
						}
						return nil
					},
				}
				if kind != "plain" {
					sub.Put = nil // names are all the same
					sub.Overwrite = func(content []byte) { c.parts(content) }
				}
				return sub
			})
		})
	}
}

// wantBytes reads an object, and ranges of it that lie across its parts.
func wantBytes(t *testing.T, loc storage.Location, want string) {
	t.Helper()
	obj, err := openSwift(t).Open(t.Context(), loc)
	if err != nil {
		t.Errorf("%s: %v", loc.Name, err)
		return
	}
	if obj.Size() != int64(len(want)) {
		t.Errorf("%s: %d bytes, want %d", loc.Name, obj.Size(), len(want))
		return
	}
	for _, r := range [][2]int{{0, len(want)}, {1, len(want) - 2}, {len(want) / 3, len(want) / 2}} {
		got, err := readRange(t, obj, int64(r[0]), int64(r[1]))
		if err != nil || got != want[r[0]:r[0]+r[1]] {
			t.Errorf("%s: range %v: %q, %v", loc.Name, r, got, err)
		}
	}
}

func readRange(t testing.TB, obj storage.Object, off, n int64) (string, error) {
	body, err := obj.ReadRange(t.Context(), off, n)
	if err != nil {
		return "", err
	}
	defer body.Close()
	got, err := io.ReadAll(body)
	return string(got), err
}

func TestSwiftLargeObjects(t *testing.T) {
	t.Parallel()
	c := customerOf(t, cloud.Alpha)
	c.part("a", []byte("0123456789"))
	c.part("ö dd/%2F?#&=;+", []byte("abcdefgh"))
	odd := c.segment("ö dd/%2F?#&=;+")
	with := func(s map[string]any, name string, value any) map[string]any {
		s = maps.Clone(s)
		s[name] = value
		return s
	}
	data := map[string]any{"data": "eHl6"}
	c.putStatic("parts", c.segment("a"), odd, c.segment("a"))
	c.putStatic("ranges", with(c.segment("a"), "range", "2-4"), with(c.segment("a"), "range", "-1"), with(odd, "range", "0-7"), with(odd, "range", "7-"))
	c.putStatic("data", data, odd, data)
	inner := map[string]any{"path": "/" + c.container + "/data"}
	c.putStatic("inner", c.segment("a"), inner, with(inner, "range", "2-4"))
	inner["path"] = "/" + c.container + "/inner"
	c.putStatic("inner inner", with(inner, "range", "9-14"), data)
	wantBytes(t, c.at("parts"), "0123456789abcdefgh0123456789")
	wantBytes(t, c.at("ranges"), "2349abcdefghh")
	wantBytes(t, c.at("data"), "xyzabcdefghxyz")
	wantBytes(t, c.at("inner"), "0123456789xyzabcdefghxyzzab")
	wantBytes(t, c.at("inner inner"), "9xyzabxyz")

	c.part("d/ü", []byte("last"))
	c.part("d/10", []byte("two-"))
	c.part("d/1", []byte("one-"))
	c.part("d/2", []byte("three-"))
	c.part("d/2empty", nil)
	c.putDynamic("dynamic", "d/")
	wantBytes(t, c.at("dynamic"), "one-two-three-last")

	// An object may have a header that changes nothing about its bytes.
	c.put("gzip", []byte("as stored"), "Content-Encoding", "gzip", "X-Delete-After", "3600")
	wantBytes(t, c.at("gzip"), "as stored")

	// What Swift itself would not join alike.
	c.part("nested/1", []byte("abc"))
	c.must(c.do(http.MethodPut, c.container+"-parts", "nested/2", "?multipart-manifest=put", []byte(`[{"path":"`+c.container+`-parts/a"}]`)))
	c.putDynamic("nested", "nested/")
	if _, err := openSwift(t).Open(t.Context(), c.at("nested")); fault.CodeOf(err) != "manifest_unsupported" {
		t.Errorf("a manifest as a part: %v", err)
	}
}

// What was put by the S3 API in parts is a static large object, whose parts lie in a
// container of their own.
func TestSwiftUploadedByS3(t *testing.T) {
	t.Parallel()
	access, key, err := cloud.EC2Key(t.Context(), cloud.Alpha)
	if err != nil {
		t.Fatal(err)
	}
	endpoint, err := url.Parse(cloud.SwiftURL)
	if err != nil {
		t.Fatal(err)
	}
	client, err := minio.New(endpoint.Host, &minio.Options{
		Creds: credentials.NewStaticV4(access, key, ""), Region: cloud.Region, BucketLookup: minio.BucketLookupPath,
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, versioned := range []bool{false, true} {
		bucket := fmt.Sprintf("uploaded-by-s3-%v", versioned)
		if err := client.MakeBucket(t.Context(), bucket, minio.MakeBucketOptions{Region: cloud.Region}); err != nil {
			t.Fatal(err)
		}
		if versioned {
			if err := client.EnableVersioning(t.Context(), bucket); err != nil {
				t.Fatal(err)
			}
		}
		content := bytes.Repeat([]byte("0123456789abcdef"), 12<<16)
		for name, size := range map[string]int{"small": 100, "disk 1+ü.raw": len(content)} {
			_, err := client.PutObject(t.Context(), bucket, name, bytes.NewReader(content[:size]), int64(size), minio.PutObjectOptions{PartSize: 5 << 20, DisableContentSha256: true})
			if err != nil {
				t.Fatal(err)
			}
			for _, api := range []string{"s3", "swift"} {
				obj, err := openSwift(t).Open(t.Context(), storage.Location{API: api, Project: cloud.Alpha.ProjectID, Container: bucket, Name: name})
				if err != nil {
					t.Fatalf("%s, versioned %v: %v", name, versioned, err)
				}
				got, err := readRange(t, obj, 0, obj.Size())
				if err != nil || got != string(content[:size]) {
					t.Errorf("%s, versioned %v: %d bytes, %v", name, versioned, len(got), err)
				}
			}
		}
	}
}

// While a large object is read, any change of a part that was not read yet ends it.
func TestSwiftPartChanges(t *testing.T) {
	t.Parallel()
	const size = 6 << 20 // more than connections hold underway
	content := bytes.Repeat([]byte("0123456789abcdef"), size/16)
	for _, kind := range []string{"static", "dynamic"} {
		for what, change := range map[string]func(*customer){
			"overwritten":            func(c *customer) { c.part("web disk/1", content[1:1+size/3]) },
			"overwritten by less":    func(c *customer) { c.part("web disk/1", content[1:100]) },
			"removed":                func(c *customer) { c.remove(c.container+"-parts", "web disk/1") },
			"made a link":            func(c *customer) { c.link(c.container+"-parts", "web disk/1", c, "decoy") },
			"overwritten, the first": func(c *customer) { c.part("web disk/0", content[1:1+size/3]) },
		} {
			t.Run(kind+" "+what, func(t *testing.T) {
				t.Parallel()
				c := customerOf(t, cloud.Alpha)
				c.put("decoy", content[:size/3])
				swiftKinds[kind](c, "disk", content)
				obj, err := openSwift(t).Open(t.Context(), c.at("disk"))
				if err != nil {
					t.Fatal(err)
				}
				body, err := obj.ReadRange(t.Context(), 0, size)
				if err != nil {
					t.Fatal(err)
				}
				defer body.Close()
				head := make([]byte, 1000)
				if _, err := io.ReadFull(body, head); err != nil {
					t.Fatal(err)
				}
				change(c)
				rest, err := io.ReadAll(body)
				if got := append(head, rest...); !bytes.HasPrefix(content, got) {
					t.Error("the body mixed two versions")
				}
				// What is underway may come to its end.
				if first := strings.HasSuffix(what, "first"); !first && !isChange(err) {
					t.Errorf("%d bytes, %v", len(rest), err)
				}
				if _, err := readRange(t, obj, size/3-10, 20); !isChange(err) {
					t.Errorf("another range: %v", err)
				}
			})
		}
	}
}

func isChange(err error) bool {
	return errors.Is(err, storage.ErrChanged) || fault.CodeOf(err) == "manifest_unsupported"
}

// A link is the way to make a service with great rights read what is another's. All
// of them are tried that a customer of Swift can make.
func TestSwiftLinksOut(t *testing.T) {
	t.Parallel()
	alice, bob := customerOf(t, cloud.Alpha), customerOf(t, cloud.Beta)
	text := []byte("the secret of bob")
	bob.put("secret", text)
	alice.put("own", text)
	bob.link(bob.container, "back", alice, "own")

	alice.link(alice.container, "link", bob, "secret")
	alice.link(alice.container, "to nothing", bob, "nothing")
	alice.link(alice.container, "to link back", bob, "back")
	alice.link(alice.container, "to link", alice, "link")
	alice.link(alice.container, "link to link", alice, "to link")

	// The attack is one: Swift itself, asked by the service, would have given it.
	token, err := cloud.Token(t.Context(), cloud.Service, env.ProjectScope)
	if err != nil {
		t.Fatal(err)
	}
	robbed := *alice
	robbed.token = token
	if resp, got := robbed.do(http.MethodGet, alice.container, "link", "", nil); !bytes.Equal(got, text) {
		t.Fatalf("the service cannot read through links at all: %s", resp.Status)
	}

	// In a versioned container the link lies behind another.
	versioned := *alice
	versioned.container += "-versioned"
	versioned.put("", nil, "X-Versions-Enabled", "true")
	versioned.link(versioned.container, "link", bob, "secret")

	want := storage.ErrNoObject.Sentences()
	for _, loc := range []storage.Location{
		alice.at("link"), alice.at("to nothing"), alice.at("to link back"), alice.at("to link"), alice.at("link to link"), versioned.at("link"),
	} {
		obj, err := openSwift(t).Open(t.Context(), loc)
		if err == nil {
			got, err := readRange(t, obj, 0, obj.Size())
			t.Errorf("%s: opened, and read %q, %v", loc.Name, got, err)
		} else if !errors.Is(err, storage.ErrNoObject) || fault.Of(err).Sentences() != want {
			t.Errorf("%s: %v", loc.Name, err)
		}
	}

	// As parts: the bytes that the manifest was made of, so that Swift's own checks
	// let them pass.
	for _, kind := range []string{"static", "dynamic"} {
		c := customerOf(t, cloud.Alpha)
		swiftKinds[kind](c, "disk", text)
		opened, err := openSwift(t).Open(t.Context(), c.at("disk"))
		if err != nil {
			t.Fatal(err)
		}
		for i, p := range thirds(text) {
			name := fmt.Sprintf("third %d", i)
			bob.put(name, p)
			c.link(c.container+"-parts", fmt.Sprintf("web disk/%d", i), bob, name)
		}
		if got, err := readRange(t, opened, 0, opened.Size()); !isChange(err) {
			t.Errorf("%s, linked after it was opened: %q, %v", kind, got, err)
		}
		obj, err := openSwift(t).Open(t.Context(), c.at("disk"))
		if err == nil {
			_, err = readRange(t, obj, 0, obj.Size())
		}
		if fault.CodeOf(err) != "manifest_unsupported" {
			t.Errorf("%s, of links: %v", kind, err)
		}
	}

	// An object that becomes a link while it is read.
	obj, err := openSwift(t).Open(t.Context(), alice.at("own"))
	if err != nil {
		t.Fatal(err)
	}
	alice.link(alice.container, "own", bob, "secret")
	if got, err := readRange(t, obj, 0, obj.Size()); !errors.Is(err, storage.ErrChanged) {
		t.Errorf("linked after it was opened: %q, %v", got, err)
	}
}

// Links within the account are as good as what they lead to.
func TestSwiftLinks(t *testing.T) {
	t.Parallel()
	c := customerOf(t, cloud.Alpha)
	text := "all the same"
	c.put("a b%2F", []byte(text))
	swiftKinds["static"](c, "static", []byte(text))
	c.put("1", nil, "X-Symlink-Target", c.container+"/a%20b%252F")
	c.put("2", nil, "X-Symlink-Target", c.container+"/1")
	c.put("3", nil, "X-Symlink-Target", c.container+"/a%20b%252F", "X-Symlink-Target-Etag", fmt.Sprintf("%x", md5.Sum([]byte(text))))
	c.put("4", nil, "X-Symlink-Target", c.container+"/static")
	for _, name := range []string{"1", "2", "3", "4"} {
		wantBytes(t, c.at(name), text)
	}
	c.put("a b%2F", []byte("other bytes"))
	if _, err := openSwift(t).Open(t.Context(), c.at("3")); !errors.Is(err, storage.ErrNoObject) {
		t.Errorf("a link to bytes that are gone: %v", err)
	}
	obj, err := openSwift(t).Open(t.Context(), c.at("2"))
	if err != nil {
		t.Fatal(err)
	}
	c.put("1", nil, "X-Symlink-Target", c.container+"/static")
	if got, err := readRange(t, obj, 0, 3); !errors.Is(err, storage.ErrChanged) {
		t.Errorf("a link that was replaced: %q, %v", got, err)
	}

	// An object of a versioned container is a link to its present version.
	versioned := *c
	versioned.container += "-versioned"
	versioned.put("", nil, "X-Versions-Enabled", "true")
	versioned.put("disk", []byte(text))
	wantBytes(t, versioned.at("disk"), text)
	if obj, err = openSwift(t).Open(t.Context(), versioned.at("disk")); err != nil {
		t.Fatal(err)
	}
	versioned.put("disk", []byte("the same all"))
	if got, err := readRange(t, obj, 0, 3); !errors.Is(err, storage.ErrChanged) {
		t.Errorf("an object of which there is another version: %q, %v", got, err)
	}
}

// Names are of the caller's project, whoever else has an object under them.
func TestSwiftProjects(t *testing.T) {
	t.Parallel()
	alice, bob := customerOf(t, cloud.Alpha), customerOf(t, cloud.Beta)
	bob.container = alice.container
	bob.put("", nil)
	alice.put("disk", []byte("of alice"))
	bob.put("disk", []byte("of bob"))
	bob.put("his own", []byte("of bob"))
	wantBytes(t, alice.at("disk"), "of alice")
	wantBytes(t, bob.at("disk"), "of bob")
	for _, name := range []string{"his own", "../../AUTH_" + bob.user.ProjectID + "/" + bob.container + "/disk"} {
		if _, err := openSwift(t).Open(t.Context(), alice.at(name)); !errors.Is(err, storage.ErrNoObject) {
			t.Errorf("%s: %v", name, err)
		}
	}
	template, err := swiftstore.New(swiftstore.Options{Cloud: service(t), AccountURL: cloud.SwiftURL + "/v1/AUTH_{project}"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := template.Open(t.Context(), bob.at("disk")); err != nil {
		t.Errorf("by a URL: %v", err)
	}
}

// The doctor's question is answered and leaves nothing behind.
func TestSwiftCheck(t *testing.T) {
	before := accounts(t)
	for range 3 {
		if err := openSwift(t).Check(t.Context()); err != nil {
			t.Error(err)
		}
	}
	if after := accounts(t); after != before {
		t.Errorf("%d accounts were made", after-before)
	}
	// A member of a project may read that alone.
	store, err := swiftstore.New(swiftstore.Options{Cloud: service(t, func(o *openstack.Options) {
		u := cloud.Alpha
		o.Username, o.Password, o.UserDomain, o.Project = u.Name, secret.New(u.Password), u.Domain, u.ProjectName
	})})
	if err != nil {
		t.Fatal(err)
	}
	if err := store.Check(t.Context()); fault.CodeOf(err) != "swift_right_missing" {
		t.Errorf("without the right: %v", err)
	}
	bob := customerOf(t, cloud.Beta)
	bob.put("disk", []byte("hello"))
	_, err = store.Open(t.Context(), bob.at("disk"))
	if e := fault.Of(err); !errors.Is(err, storage.ErrUnavailable) || !strings.Contains(e.Remedy, "ResellerAdmin") {
		t.Errorf("without the right: %v", err)
	}
}

// accounts counts the accounts that Swift has.
func accounts(t *testing.T) int {
	t.Helper()
	n := 0
	err := filepath.WalkDir(cloud.Dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && strings.Contains(path, "/accounts/") && strings.HasSuffix(path, ".db") {
			n++
		}
		return nil // files come and go
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}
