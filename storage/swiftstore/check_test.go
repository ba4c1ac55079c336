package swiftstore_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"vmimport/internal/fault"
	"vmimport/internal/openstack"
	"vmimport/internal/secret"
	"vmimport/storage"
	"vmimport/storage/swiftstore"
)

func TestNew(t *testing.T) {
	t.Parallel()
	if _, err := swiftstore.New(swiftstore.Options{}); err == nil {
		t.Error("no cloud, and no error")
	}
	cloud, err := openstack.New(openstack.Options{AuthURL: "http://k/v3", Username: "u", Password: secret.New("p"), Project: "service"})
	if err != nil {
		t.Fatal(err)
	}
	for u, ok := range map[string]bool{
		"":                                  true,
		"http://s/v1/AUTH_{project}":        true,
		"https://s:8080/swift/{project}/":   true,
		"http://s/v1/AUTH_p":                false,
		"http://s/{project}/{project}":      false,
		"http://s/{project}/v1":             false,
		"http://{project}":                  false,
		"http://{project}/v1":               false,
		"ftp://s/{project}":                 false,
		"s/{project}":                       false,
		"http://s/v1/{project}?x=1":         false,
		"http://s/v1/{project}#x":           false,
		"http://user:secret@s/v1/{project}": false,
		"://":                               false,
	} {
		_, err := swiftstore.New(swiftstore.Options{Cloud: cloud, AccountURL: u})
		if (err == nil) != ok {
			t.Errorf("%q: %v", u, err)
		}
		if err != nil && strings.Contains(err.Error(), "secret") {
			t.Errorf("%v", err)
		}
	}
}

// An endpoint that is not plainly that of the service's own account says nothing
// about the accounts of others.
func TestEndpoint(t *testing.T) {
	t.Parallel()
	for _, tail := range []string{"", "/", "/v1", "/v1/AUTH_other", "/v1/AUTH_xserviceid", "/v1/AUTH_serviceid/x"} {
		f := newFake(t)
		f.put("images/disk", []byte("hello"))
		f.endpoint = f.url + tail
		s := f.store()
		_, err := s.Open(t.Context(), at("images", "disk"))
		if !errors.Is(err, storage.ErrUnavailable) || !strings.Contains(fault.Of(err).Remedy, "{project}") {
			t.Errorf("%q: %v", tail, err)
		}
		if err := s.Check(t.Context()); fault.CodeOf(err) != "endpoint_unknown" {
			t.Errorf("%q: %v", tail, err)
		}
		if seen := f.seen(); len(seen) > 0 {
			t.Errorf("%q: asked for %s", tail, seen[0].RequestURI)
		}
	}
	// With a URL, the catalogue need not have any.
	f := newFake(t)
	f.put("images/disk", []byte("hello"))
	f.endpoint = ""
	wantAll(t, mustOpen(t, f.storeAt(f.url+"/v1/AUTH_{project}"), at("images", "disk")), "hello")
}

func TestCheck(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		answer func(*answer)
		code   string // of the fault; empty: all is well
	}{
		"account made later": {func(*answer) {}, ""},
		"no such account":    {func(a *answer) { a.status = 404 }, ""},
		"no right":           {func(a *answer) { a.status = 403 }, "swift_right_missing"},
		"token refused":      {func(a *answer) { a.status = 401 }, "swift_token_refused"},
		"out of order":       {func(a *answer) { a.status = 500 }, "swift_answer_wrong"},
		"another server":     {func(a *answer) { a.status = 404; a.header.Del("X-Trans-Id") }, "swift_answer_wrong"},
		"a page":             {func(a *answer) { a.status = 200; a.header.Del("X-Trans-Id") }, "swift_answer_wrong"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFake(t)
			f.setTamper(func(_ *http.Request, a *answer) { test.answer(a) })
			err := f.store().Check(t.Context())
			if (err == nil) != (test.code == "") || err != nil && fault.CodeOf(err) != test.code {
				t.Errorf("%v; want %q", err, test.code)
			}
			for _, r := range f.seen() {
				if r.Method != http.MethodHead || !strings.HasPrefix(r.URL.Path, "/v1/AUTH_") || strings.Contains(r.URL.Path, f.service) {
					t.Errorf("%s %s", r.Method, r.URL)
				}
			}
		})
	}
	gone := httptest.NewServer(http.NotFoundHandler())
	gone.Close()
	f := newFake(t)
	err := f.storeAt(gone.URL + "/v1/AUTH_{project}").Check(t.Context())
	if fault.CodeOf(err) != "swift_unreachable" {
		t.Errorf("nobody there: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), -time.Second)
	defer cancel()
	if err := f.store().Check(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("out of time: %v", err)
	}
}

func TestNobodyThere(t *testing.T) {
	t.Parallel()
	gone := httptest.NewServer(http.NotFoundHandler())
	gone.Close()
	cloud, err := openstack.New(openstack.Options{
		AuthURL: gone.URL, Username: "u", Password: secret.New("p"), Project: "service",
		Endpoints: map[string]string{openstack.ObjectStore: gone.URL + "/v1/AUTH_service"},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, accountURL := range []string{"", gone.URL + "/{project}"} {
		s, err := swiftstore.New(swiftstore.Options{Cloud: cloud, AccountURL: accountURL})
		if err != nil {
			t.Fatal(err)
		}
		_, err = s.Open(t.Context(), at("images", "disk"))
		if !errors.Is(err, storage.ErrUnavailable) || fault.Of(err).Remedy != openstack.ErrIdentity.Remedy {
			t.Errorf("no identity service: %v", err)
		}
		if err := s.Check(t.Context()); !errors.Is(err, openstack.ErrIdentity) {
			t.Errorf("no identity service: %v", err)
		}
		canceled, cancel := context.WithCancelCause(t.Context())
		left := errors.New("the user left")
		cancel(left)
		if _, err := s.Open(canceled, at("images", "disk")); !errors.Is(err, left) {
			t.Errorf("canceled: %v", err)
		}
	}
	f := newFake(t)
	f.endpoint = gone.URL + "/v1/AUTH_" + f.service
	if _, err := f.store().Open(t.Context(), at("images", "disk")); !errors.Is(err, storage.ErrUnavailable) {
		t.Errorf("no Swift: %v", err)
	}
}
