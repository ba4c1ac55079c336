package swiftstore_test

import (
	"crypto/md5"
	"errors"
	"fmt"
	"strings"
	"testing"

	"vmimport/internal/fault"
	"vmimport/storage"
)

func md5Hex(text string) string { return fmt.Sprintf("%x", md5.Sum([]byte(text))) }

// Links within the account are followed, and pinned.
func TestLinks(t *testing.T) {
	t.Parallel()
	f := newFake(t)
	f.put("c/a b%", []byte("hello"))
	f.put("c/other", []byte("HELLO"))
	f.put("l/1", nil, "X-Symlink-Target", "c/a%20b%25")
	f.put("l/2", nil, "X-Symlink-Target", "l/1", "X-Symlink-Target-Account", "AUTH_p1")
	f.put("l/3", nil, "X-Symlink-Target", "l/2")
	f.put("l/static", nil, "X-Symlink-Target", "c/a%20b%25", "X-Symlink-Target-Etag", md5Hex("hello"))
	f.put("l/static to static", nil, "X-Symlink-Target", "l/static", "X-Symlink-Target-Etag", md5Hex("hello"))
	f.put("l/static to link", nil, "X-Symlink-Target", "l/1", "X-Symlink-Target-Etag", md5Hex(""))
	f.putStatic("l/large", f.segment("c/a b%", nil))
	f.put("l/to large", nil, "X-Symlink-Target", "l/large")
	f.put("l/dynamic", nil, "X-Object-Manifest", "c/a b%25")
	f.put("l/to dynamic", nil, "X-Symlink-Target", "l/dynamic")
	for _, name := range []string{"1", "2", "3", "static", "static to static", "static to link", "to large", "to dynamic"} {
		wantAll(t, mustOpen(t, f.store(), at("l", name)), "hello")
	}

	obj := mustOpen(t, f.store(), at("l", "3"))
	f.put("l/1", nil, "X-Symlink-Target", "c/other")
	if _, err := read(t.Context(), obj, 0, 2); !errors.Is(err, storage.ErrChanged) {
		t.Errorf("link replaced: %v", err)
	}
	obj = mustOpen(t, f.store(), at("l", "3"))
	wantAll(t, obj, "HELLO")
	f.put("c/other", []byte("hELLO"))
	if _, err := read(t.Context(), obj, 0, 2); !errors.Is(err, storage.ErrChanged) {
		t.Errorf("target replaced: %v", err)
	}
	f.remove("l/2")
	if _, err := read(t.Context(), obj, 0, 2); !errors.Is(err, storage.ErrChanged) {
		t.Errorf("link removed: %v", err)
	}
}

// A link to another's object is no object, whether there is one or not, and so is
// all that leads there. It is not even looked at.
func TestLinksOut(t *testing.T) {
	t.Parallel()
	f := newFake(t)
	f.put("c/own", []byte("own"))
	f.putIn("AUTH_p2", "c/secret", []byte("secret"))
	f.putIn("AUTH_p2", "c/back", nil, "X-Symlink-Target", "c/own", "X-Symlink-Target-Account", "AUTH_p1")
	out := func(path, target, account string) {
		f.put(path, nil, "X-Symlink-Target", target, "X-Symlink-Target-Account", account)
	}
	out("l/secret", "c/secret", "AUTH_p2")
	out("l/nothing", "c/nothing", "AUTH_p2")
	out("l/back", "c/back", "AUTH_p2")
	out("l/quoted", "c/secret", "AUTH%5Fp2")
	out("l/service", "c/x", "AUTH_serviceid")
	out("l/like mine", "c/own", "auth_p1")
	out("l/more than mine", "c/own", "AUTH_p1%2F..%2FAUTH_p2")
	out("l/odd", "c/own", "%")
	f.put("l/static", nil, "X-Symlink-Target", "c/secret", "X-Symlink-Target-Account", "AUTH_p2", "X-Symlink-Target-Etag", md5Hex("secret"))
	f.put("l/chain", nil, "X-Symlink-Target", "l/secret")
	f.put("l/version@1.0", nil, "X-Symlink-Target", "c/secret", "X-Symlink-Target-Account", "AUTH_p2")
	f.put("l/version", nil, "X-Symlink-Target", "l/version?version-id=1.0")
	want := ""
	for _, name := range []string{"secret", "nothing", "back", "quoted", "service", "like mine", "more than mine", "odd", "static", "chain", "version"} {
		_, err := f.store().Open(t.Context(), at("l", name))
		e := fault.Of(err)
		if !errors.Is(err, storage.ErrNoObject) {
			t.Fatalf("%s: %v", name, err)
		}
		if want == "" {
			want = e.Sentences()
		}
		if e.Sentences() != want || e.Sentences() != storage.ErrNoObject.Sentences() {
			t.Errorf("%s: the customer learns %q", name, e.Sentences())
		}
	}
	for _, r := range f.seen() {
		if !strings.HasPrefix(r.RequestURI, "/v1/AUTH_p1/") {
			t.Errorf("asked for %s", r.RequestURI)
		}
	}
}

func TestLinksRefused(t *testing.T) {
	t.Parallel()
	f := newFake(t)
	f.put("c/a", []byte("hello"))
	f.put("l/1", nil, "X-Symlink-Target", "c/a")
	for i := range 5 {
		f.put(fmt.Sprintf("l/%d", i+2), nil, "X-Symlink-Target", fmt.Sprintf("l/%d", i+1))
	}
	f.put("l/loop", nil, "X-Symlink-Target", "l/loop")
	f.put("l/nowhere", nil, "X-Symlink-Target", "c/gone")
	f.put("l/stale", nil, "X-Symlink-Target", "c/a", "X-Symlink-Target-Etag", md5Hex("other"))
	f.put("l/stale link", nil, "X-Symlink-Target", "l/1", "X-Symlink-Target-Etag", md5Hex("hello"))
	for _, name := range []string{"6", "loop", "nowhere", "stale", "stale link"} {
		if _, err := f.store().Open(t.Context(), at("l", name)); !errors.Is(err, storage.ErrNoObject) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, target := range map[string]string{
		"no name": "c", "nothing": "c/", "dots": "c/../x", "dots, quoted": "c/%2E%2E/x", "control": "%00versions%00c/%00a%001",
		"half an escape": "c/%2", "odd version": "c/a?version-id=../x", "no query": "c/a?version-id=1&x=y",
	} {
		f.put("l/odd", nil, "X-Symlink-Target", target)
		_, err := f.store().Open(t.Context(), at("l", "odd"))
		wantUnsupported(t, name, err)
	}
}
