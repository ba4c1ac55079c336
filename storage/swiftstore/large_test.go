package swiftstore_test

import (
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"vmimport/internal/fault"
	"vmimport/storage"
)

// wantUnsupported checks for the fault of large objects that are not read.
func wantUnsupported(t *testing.T, what string, err error) {
	t.Helper()
	if e := fault.Of(err); err == nil || e.Kind != fault.Invalid || e.Code != "manifest_unsupported" || e.Remedy == "" {
		t.Errorf("%s: %v; want manifest_unsupported", what, err)
	}
}

// All that a static large object can be made of.
func TestStatic(t *testing.T) {
	t.Parallel()
	f := newFake(t)
	f.put("c/a", []byte("0123456789"))
	f.put("c/b", []byte("abcdefgh"))
	f.put("c/empty", nil)
	f.put("c/odd name%2F?#&=;+ü", []byte("odd"))
	data := func(text string) fields { return fields{"data": base64.StdEncoding.EncodeToString([]byte(text))} }
	// "345" + "abcdefgh" + "xyz"
	f.putStatic("c/inner", f.segment("c/a", fields{"range": "3-5"}), f.segment("c/b", nil), data("xyz"))
	// The ETag of a joined object is made of those of its parts.
	inner := fields{"name": "/c/inner", "sub_slo": true, "bytes": 14, "hash": "b7de6e3d4ec1ad0ed3a94e11b12e4b6b"}
	inner["hash"] = md5Hex(f.segment("c/a", nil)["hash"].(string) + ":3-5;" + f.segment("c/b", nil)["hash"].(string) + md5Hex("xyz"))
	with := func(more fields) fields {
		all := fields{}
		for _, m := range []fields{inner, more} {
			for k, v := range m {
				all[k] = v
			}
		}
		return all
	}
	for name, test := range map[string]struct {
		segments []any
		want     string
	}{
		"parts":           {[]any{f.segment("c/a", nil), f.segment("c/b", nil)}, "0123456789abcdefgh"},
		"one":             {[]any{f.segment("c/b", nil)}, "abcdefgh"},
		"twice the same":  {[]any{f.segment("c/b", nil), f.segment("c/b", nil)}, "abcdefghabcdefgh"},
		"ranges":          {[]any{f.segment("c/a", fields{"range": "2-4"}), f.segment("c/a", fields{"range": "0-0"}), f.segment("c/b", fields{"range": "6-7"})}, "2340gh"},
		"empty at end":    {[]any{f.segment("c/b", nil), f.segment("c/empty", nil)}, "abcdefgh"},
		"odd name":        {[]any{f.segment("c/odd name%2F?#&=;+ü", nil)}, "odd"},
		"data":            {[]any{data("head"), f.segment("c/b", nil), data("tail")}, "headabcdefghtail"},
		"inner":           {[]any{f.segment("c/b", nil), inner, inner}, "abcdefgh345abcdefghxyz345abcdefghxyz"},
		"range of inner":  {[]any{with(fields{"range": "2-3"}), with(fields{"range": "10-12"})}, "5ahxy"},
		"no extra fields": {[]any{with(fields{"last_modified": nil, "range": nil, "extra": []int{1}})}, "345abcdefghxyz"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := "images/" + name
			f.putStatic(path, test.segments...)
			wantAll(t, mustOpen(t, f.store(), at("images", name)), test.want)
		})
	}
}

// What Swift would join and the service does not, or what nobody could read.
func TestStaticRefused(t *testing.T) {
	t.Parallel()
	f := newFake(t)
	f.put("c/a", []byte("0123456789"))
	f.put("c/b", nil, "X-Symlink-Target", "c/a")
	f.putStatic("c/1", f.segment("c/a", nil))
	deep := fields{"sub_slo": true, "name": "/c/1", "bytes": 10, "hash": md5Hex(f.segment("c/a", nil)["hash"].(string))}
	for i := range 4 {
		f.putStatic(fmt.Sprintf("c/%d", i+2), deep)
		deep = fields{"sub_slo": true, "name": fmt.Sprintf("/c/%d", i+2), "bytes": 10, "hash": md5Hex(deep["hash"].(string))}
	}
	f.putStatic("c/loop", fields{"sub_slo": true, "name": "/c/loop", "bytes": 1, "hash": "x"})
	var many []any
	for i := range 70 {
		path := fmt.Sprintf("m/%d", i)
		f.putStatic(path, f.segment("c/a", nil))
		many = append(many, fields{"sub_slo": true, "name": "/" + path, "bytes": 10, "hash": md5Hex(f.segment("c/a", nil)["hash"].(string))})
	}
	one := f.segment("c/a", nil)
	f.put("images/text", []byte("no manifest"), "X-Static-Large-Object", "True")
	f.put("images/big", []byte("["+strings.Repeat(" ", 8<<20)+"]"), "X-Static-Large-Object", "True")
	f.put("images/many parts", []byte(`[`+strings.Repeat(`{"name":"/c/a","bytes":10,"hash":"x"},`, 10_000)+`{"name":"/c/a","bytes":10,"hash":"x"}]`), "X-Static-Large-Object", "True")
	f.putStatic("images/deep", deep)
	f.putStatic("images/loop", fields{"sub_slo": true, "name": "/c/loop", "bytes": 1, "hash": "x"})
	f.putStatic("images/many", many...)
	f.putStatic("images/dots", fields{"name": "/c/../../AUTH_p2/c/a", "bytes": 10, "hash": "x"})
	f.putStatic("images/absurd", fields{"name": "/c/a", "bytes": int64(1<<63 - 1), "hash": "x"}, one)
	for _, name := range []string{"text", "big", "many parts", "deep", "loop", "many", "dots", "absurd"} {
		_, err := f.store().Open(t.Context(), at("images", name))
		wantUnsupported(t, name, err)
	}

	inner := fields{"sub_slo": true, "name": "/c/1", "bytes": 10, "hash": md5Hex(one["hash"].(string))}
	for name, change := range map[string]fields{
		"other hash": {"hash": "x"}, "other size": {"bytes": 9}, "gone": {"name": "/c/gone"}, "not a manifest": {"name": "/c/a"}, "a link": {"name": "/c/b"},
	} {
		s := fields{}
		for _, m := range []fields{inner, change} {
			for k, v := range m {
				s[k] = v
			}
		}
		f.putStatic("images/"+name, s)
		if _, err := f.store().Open(t.Context(), at("images", name)); !errors.Is(err, storage.ErrNoObject) || fault.Of(err).Evidence == "" {
			t.Errorf("inner manifest, %s: %v", name, err)
		}
	}
}

// A part that is not what the manifest says is never read, and neither is anything
// beyond it; what lies before it can be.
func TestPartChanged(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		change func(*fake)
		code   string
	}{
		"overwritten":       {func(f *fake) { f.put("c/b", []byte("ABCDEFGH")) }, "object_changed"},
		"shorter":           {func(f *fake) { f.put("c/b", []byte("a")) }, "object_changed"},
		"removed":           {func(f *fake) { f.remove("c/b") }, "object_changed"},
		"a link":            {func(f *fake) { f.put("c/b", nil, "X-Symlink-Target", "c/other") }, "manifest_unsupported"},
		"a link to another": {func(f *fake) { f.put("c/b", nil, "X-Symlink-Target", "c/b", "X-Symlink-Target-Account", "AUTH_p2") }, "manifest_unsupported"},
		"a manifest":        {func(f *fake) { f.putStatic("c/b", f.segment("c/a", nil)) }, "manifest_unsupported"},
		"a manifest by its header": {func(f *fake) { f.touch("c/b", "X-Object-Manifest", "c/") },
			"manifest_unsupported"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFake(t)
			f.put("c/a", []byte("01234567"))
			f.put("c/b", []byte("abcdefgh"))
			f.put("c/other", []byte("abcdefgh"))
			f.putIn("AUTH_p2", "c/b", []byte("abcdefgh"))
			f.putStatic("images/disk", f.segment("c/a", nil), f.segment("c/b", nil), f.segment("c/a", nil))
			obj := mustOpen(t, f.store(), at("images", "disk"))
			test.change(f)
			if got, err := read(t.Context(), obj, 0, 8); err != nil || string(got) != "01234567" {
				t.Errorf("before it: %q, %v", got, err)
			}
			for _, r := range [][2]int64{{9, 2}, {8, 8}, {15, 1}, {4, 12}, {0, 24}} {
				_, err := read(t.Context(), obj, r[0], r[1])
				if fault.CodeOf(err) != test.code {
					t.Errorf("range %v: %v; want %s", r, err, test.code)
				}
			}
			body, err := obj.ReadRange(t.Context(), 0, 24)
			if err != nil {
				t.Fatal(err)
			}
			defer body.Close()
			all, err := io.ReadAll(body)
			if string(all) != "01234567" || fault.CodeOf(err) != test.code {
				t.Errorf("%q, %v", all, err)
			}
		})
	}
}

// A large object is the manifest as well: with the parts still there, another
// manifest is another object.
func TestManifestChanged(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*fake){
		"removed":        func(f *fake) { f.remove("images/disk") },
		"another":        func(f *fake) { f.putStatic("images/disk", f.segment("c/b", nil)) },
		"the same again": func(f *fake) { f.touch("images/disk", "X-Static-Large-Object", "True") },
		"a plain one":    func(f *fake) { f.put("images/disk", f.content("images/disk")) },
		"a link":         func(f *fake) { f.put("images/disk", nil, "X-Symlink-Target", "c/a") },
		"a dynamic one":  func(f *fake) { f.put("images/disk", nil, "X-Object-Manifest", "c/a") },
		"a link to another": func(f *fake) {
			f.put("images/disk", nil, "X-Symlink-Target", "c/a", "X-Symlink-Target-Account", "AUTH_p2")
		},
	} {
		f := newFake(t)
		f.put("c/a", []byte("01234567"))
		f.put("c/b", []byte("abcdefgh"))
		f.putStatic("images/disk", f.segment("c/a", nil))
		obj := mustOpen(t, f.store(), at("images", "disk"))
		change(f)
		if _, err := read(t.Context(), obj, 2, 3); !errors.Is(err, storage.ErrChanged) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A manifest that is replaced while the object is opened is worth another try.
func TestManifestReplacedMeanwhile(t *testing.T) {
	t.Parallel()
	f := newFake(t)
	f.put("c/a", []byte("01234567"))
	f.putStatic("images/static", f.segment("c/a", nil))
	f.put("images/dynamic", nil, "X-Object-Manifest", "c/a")
	for name, replaced := range map[string]func(*http.Request, *answer){
		"static": func(r *http.Request, a *answer) {
			if r.Method == http.MethodGet {
				a.header.Set("ETag", "other")
			}
		},
		"dynamic": func(r *http.Request, a *answer) {
			if !strings.Contains(r.URL.RawQuery, "multipart-manifest") {
				a.header.Set("X-Timestamp", "1800000000.00000")
			}
		},
	} {
		f.setTamper(replaced)
		if _, err := f.store().Open(t.Context(), at("images", name)); !errors.Is(err, storage.ErrUnavailable) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestManifestBehind(t *testing.T) {
	t.Parallel()
	f := newFake(t)
	f.put("c/a", []byte("01234567"))
	f.putStatic("images/disk", f.segment("c/a", nil))
	obj := mustOpen(t, f.store(), at("images", "disk"))
	f.setTamper(func(r *http.Request, a *answer) {
		if r.Method == http.MethodHead {
			a.header.Set("ETag", "old")
			a.header.Set("X-Timestamp", "1600000000.00000")
		}
	})
	if _, err := read(t.Context(), obj, 2, 3); !errors.Is(err, storage.ErrUnavailable) {
		t.Errorf("%v", err)
	}
}

func TestDynamic(t *testing.T) {
	t.Parallel()
	f := newFake(t)
	f.pageLimit = 2
	f.put("c/a", []byte("none of it"))
	f.put("c/disk 1%+/10", []byte("cd"))
	f.put("c/disk 1%+/1", []byte("ab"))
	f.put("c/disk 1%+/2", []byte("ef"))
	f.put("c/disk 1%+/2/empty", nil)
	f.put("c/disk 1%+/ü", []byte("ij"))
	f.put("c/disk 1%+/z", []byte("gh"))
	f.put("c/disk 2", []byte("none of it"))
	f.put("images/disk", []byte("its own bytes are nothing"), "X-Object-Manifest", "c/disk%201%25%2B/")
	f.put("images/none", nil, "X-Object-Manifest", "c/nothing")
	f.put("images/empty", nil, "X-Object-Manifest", "c/disk%201%25%2B/2/")
	wantAll(t, mustOpen(t, f.store(), at("images", "disk")), "abcdefghij")
	for _, name := range []string{"none", "empty"} {
		if size := mustOpen(t, f.store(), at("images", name)).Size(); size != 0 {
			t.Errorf("%s: %d bytes", name, size)
		}
	}
}

// Any change of the parts is another version, and ends what is being read.
func TestDynamicChanged(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*fake){
		"added at the end":   func(f *fake) { f.put("c/disk/9", []byte("more")) },
		"added between":      func(f *fake) { f.put("c/disk/11", []byte("more")) },
		"removed, the last":  func(f *fake) { f.remove("c/disk/2") },
		"removed, the first": func(f *fake) { f.remove("c/disk/1") },
		"replaced":           func(f *fake) { f.put("c/disk/2", []byte("EFGH")) },
		"renamed": func(f *fake) {
			f.put("c/disk/0", f.content("c/disk/2"))
			f.remove("c/disk/2")
		},
		"renamed in its place": func(f *fake) {
			f.put("c/disk/3", f.content("c/disk/2"))
			f.remove("c/disk/2")
		},
		"prefix":   func(f *fake) { f.put("images/disk", nil, "X-Object-Manifest", "c/disk") },
		"manifest": func(f *fake) { f.put("images/disk", nil, "X-Object-Manifest", "c/disk/") },
		"metadata": func(f *fake) { f.put("images/disk", nil, "X-Object-Manifest", "c/disk/", "X-Object-Meta-A", "b") },
	} {
		f := newFake(t)
		f.put("c/disk/1", []byte("abcd"))
		f.put("c/disk/2", []byte("efgh"))
		f.put("images/disk", nil, "X-Object-Manifest", "c/disk/")
		obj := mustOpen(t, f.store(), at("images", "disk"))
		change(f)
		if got, err := read(t.Context(), obj, 0, 8); !errors.Is(err, storage.ErrChanged) {
			t.Errorf("%s: %q, %v", name, got, err)
		}
		if mustOpen(t, f.store(), at("images", "disk")).Version() == obj.Version() {
			t.Errorf("%s: the same version", name)
		}
	}
	f := newFake(t)
	f.put("c/disk/1", []byte("abcd"))
	f.put("images/disk", nil, "X-Object-Manifest", "c/disk/")
	obj := mustOpen(t, f.store(), at("images", "disk"))
	f.remove("images/disk")
	if _, err := read(t.Context(), obj, 0, 2); !errors.Is(err, storage.ErrChanged) {
		t.Errorf("manifest removed: %v", err)
	}
}

// One replica of the list that is behind does not make a changed object; a list that
// disagrees with what Swift would join is no object yet.
func TestDynamicLag(t *testing.T) {
	t.Parallel()
	f := newFake(t)
	f.put("c/disk/1", []byte("abcd"))
	f.put("images/disk", nil, "X-Object-Manifest", "c/disk/")
	obj := mustOpen(t, f.store(), at("images", "disk"))
	behind := 2
	lag := func(r *http.Request, a *answer) {
		if r.Method == http.MethodHead && !strings.Contains(r.URL.RawQuery, "multipart-manifest") && behind != 0 {
			behind--
			a.header.Set("Content-Length", "2")
			a.header.Set("ETag", `"other"`)
		}
	}
	f.setTamper(lag)
	if got, err := read(t.Context(), obj, 0, 4); err != nil || string(got) != "abcd" {
		t.Errorf("%q, %v", got, err)
	}
	behind = 3
	if _, err := read(t.Context(), obj, 0, 4); !errors.Is(err, storage.ErrChanged) {
		t.Errorf("%v", err)
	}
	behind = 1
	if _, err := f.store().Open(t.Context(), at("images", "disk")); !errors.Is(err, storage.ErrUnavailable) {
		t.Errorf("%v", err)
	}
}

func TestDynamicRefused(t *testing.T) {
	t.Parallel()
	f := newFake(t)
	f.put("c/part", []byte("abcd"))
	f.putStatic("c/static/1", f.segment("c/part", nil))
	f.put("c/link/1", nil, "X-Symlink-Target", "c/part")
	f.put("c/foreign/1", nil, "X-Symlink-Target", "c/part", "X-Symlink-Target-Account", "AUTH_p2")
	f.put("c/dots/../1", []byte("abcd"))
	for name, manifest := range map[string]string{
		"static": "c/static/", "link": "c/link/", "foreign": "c/foreign/", "dots": "c/dots/",
		"no prefix": "c/", "no container": "/x", "odd container": "..%2Fx/y", "half an escape": "c/%2", "no slash": "c", "control": "c%00/x",
	} {
		f.put("images/"+name, nil, "X-Object-Manifest", manifest)
		_, err := f.store().Open(t.Context(), at("images", name))
		wantUnsupported(t, name, err)
	}
	// A manifest within a list is of no bytes and is passed over, as Swift does;
	// one that has bytes of its own is found when it is read.
	f.put("c/nested/1", []byte("abcd"), "X-Object-Manifest", "c/part")
	f.put("images/nested", nil, "X-Object-Manifest", "c/nested/")
	_, err := read(t.Context(), mustOpen(t, f.store(), at("images", "nested")), 0, 4)
	wantUnsupported(t, "nested", err)
}

// Lists are bounded, and in order.
func TestLists(t *testing.T) {
	t.Parallel()
	entry := func(name string) string { return fmt.Sprintf(`{"name":%q,"hash":"x","bytes":1}`, name) }
	var many []string
	for i := range 10_001 {
		many = append(many, entry(fmt.Sprintf("disk/%05d", i)))
	}
	for name, test := range map[string]struct {
		body string
		want string
	}{
		"too many":       {"[" + strings.Join(many, ",") + "]", "manifest_unsupported"},
		"same for ever":  {"[" + entry("disk/1") + "]", "object_store_unavailable"},
		"out of order":   {"[" + entry("disk/2") + "," + entry("disk/1") + "]", "object_store_unavailable"},
		"of others":      {"[" + entry("other/1") + "]", "object_store_unavailable"},
		"cut off":        {"[" + entry("disk/1") + ",", "object_store_unavailable"},
		"a page":         {"<html>", "object_store_unavailable"},
		"an object":      {"{}", "object_store_unavailable"},
		"negative bytes": {`[{"name":"disk/1","hash":"x","bytes":-1}]`, "manifest_unsupported"},
		"no hash":        {`[{"name":"disk/1","bytes":1}]`, "manifest_unsupported"},
		"half numbers":   {`[{"name":"disk/1","hash":"x","bytes":1.5}]`, "object_store_unavailable"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFake(t)
			f.put("images/disk", nil, "X-Object-Manifest", "c/disk/")
			f.setTamper(func(r *http.Request, a *answer) {
				if r.Method == http.MethodGet {
					a.body = []byte(test.body)
					a.header.Del("Content-Length")
				}
			})
			if _, err := f.store().Open(t.Context(), at("images", "disk")); fault.CodeOf(err) != test.want {
				t.Errorf("%v; want %s", err, test.want)
			}
		})
	}
	for status, want := range map[int]string{204: "", 404: "object_not_found", 403: "object_store_unavailable", 500: "object_store_unavailable"} {
		f := newFake(t)
		f.put("images/disk", nil, "X-Object-Manifest", "c/disk/")
		f.setTamper(func(r *http.Request, a *answer) {
			if r.Method == http.MethodGet {
				a.status, a.body = status, nil
			}
		})
		if _, err := f.store().Open(t.Context(), at("images", "disk")); fault.CodeOf(err) != want {
			t.Errorf("status %d: %v; want %q", status, err, want)
		}
	}
}
