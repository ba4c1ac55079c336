package openstack

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gophercloud/gophercloud/v2"

	"vmimport/internal/fault"
	"vmimport/internal/outbound"
	"vmimport/internal/secret"
)

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*Options){
		"no URL":             func(o *Options) { o.AuthURL = "" },
		"a path":             func(o *Options) { o.AuthURL = "/v3" },
		"another scheme":     func(o *Options) { o.AuthURL = "ftp://keystone/v3" },
		"a broken URL":       func(o *Options) { o.AuthURL = "http://u:" + password + "@keystone:port/v3" },
		"a password in it":   func(o *Options) { o.AuthURL = "http://u:" + password + "@keystone/v3" },
		"a query":            func(o *Options) { o.AuthURL = "http://keystone/v3?" },
		"a fragment":         func(o *Options) { o.AuthURL = "http://keystone/v3#a" },
		"an endpoint":        func(o *Options) { o.Endpoints = map[string]string{Image: "glance:9292"} },
		"nobody":             func(o *Options) { o.Username = "" },
		"no password":        func(o *Options) { o.Password = secret.Text{} },
		"no project":         func(o *Options) { o.Project = "" },
		"both ways":          func(o *Options) { o.ApplicationCredentialID = "id" },
		"a lone credential":  func(o *Options) { o.Username, o.ApplicationCredentialID = "", "id" },
		"an old interface":   func(o *Options) { o.Interface = "publicURL" },
		"no certificates":    func(o *Options) { o.CAFile = "openstack_test.go" },
		"missing CA":         func(o *Options) { o.CAFile = "missing.pem" },
		"broken percentages": func(o *Options) { o.AuthURL = "http://keystone/%zz" },
	} {
		o := asUser
		change(&o)
		if _, err := New(o); err == nil || strings.Contains(err.Error(), password) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestRequestForToken(t *testing.T) {
	t.Parallel()
	const user = `{"auth":{"identity":{"methods":["password"],"password":{"user":{"name":"vmimport","password":"` + password + `","domain":{"name":%q}}}},
		"scope":{"project":{"name":"service","domain":{"name":%q}}}}}`
	for name, tc := range map[string]struct {
		change func(*Options)
		want   string
	}{
		"default domain":  {func(*Options) {}, fmt.Sprintf(user, "Default", "Default")},
		"own domain":      {func(o *Options) { o.UserDomain = "users" }, fmt.Sprintf(user, "users", "users")},
		"two domains":     {func(o *Options) { o.UserDomain, o.ProjectDomain = "users", "projects" }, fmt.Sprintf(user, "users", "projects")},
		"project's alone": {func(o *Options) { o.ProjectDomain = "projects" }, fmt.Sprintf(user, "Default", "projects")},
		"application credential": {
			func(o *Options) {
				*o = Options{ApplicationCredentialID: "id", ApplicationCredentialSecret: secret.New("s3cret"), UserDomain: "users"}
			},
			// Keystone refuses a scope with it.
			`{"auth":{"identity":{"methods":["application_credential"],"application_credential":{"id":"id","secret":"s3cret"}}}}`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			k := newKeystone(t)
			server := httptest.NewServer(k)
			t.Cleanup(server.Close)
			o := asUser
			tc.change(&o)
			o.AuthURL = server.URL + "/v3/"
			c := newCloud(t, o)
			if id, err := c.ProjectID(t.Context()); err != nil || id != "own" {
				t.Fatalf("project %q, %v", id, err)
			}
			sameJSON(t, k.bodies[0], tc.want)
		})
	}
}

func TestCatalogue(t *testing.T) {
	t.Parallel()
	const one = `{"type":"image","endpoints":[
		{"interface":"public","region":"r1","region_id":"r1","url":"http://glance/r1"},
		{"interface":"internal","region":"r1","region_id":"r1","url":"http://inside/r1/"},
		{"interface":"admin","region":"r1","url":"http://admin/r1//"}]}`
	const two = `{"type":"image","endpoints":[
		{"interface":"public","region":"old name","region_id":"r2","url":"http://glance/r2"},
		{"interface":"public","region":"r3","url":"http://glance/r3"}]}`
	const swift = `{"type":"object-store","endpoints":[{"interface":"public","region_id":"r1","url":"http://swift/v1/AUTH_own"}]}`
	for name, tc := range map[string]struct {
		catalogue          string
		region, iface, own string
		want               string // empty: ErrCatalogue
	}{
		"the only one":         {catalogue: one, want: "http://glance/r1/"},
		"internal":             {catalogue: one, iface: "internal", want: "http://inside/r1/"},
		"admin, by region":     {catalogue: one, iface: "admin", region: "r1", want: "http://admin/r1/"},
		"first region":         {catalogue: one + "," + two, region: "r1", want: "http://glance/r1/"},
		"by its id":            {catalogue: one + "," + two, region: "r2", want: "http://glance/r2/"},
		"not by its old name":  {catalogue: one + "," + two, region: "old name"},
		"by its name":          {catalogue: one + "," + two, region: "r3", want: "http://glance/r3/"},
		"several":              {catalogue: one + "," + two},
		"several, overridden":  {catalogue: one + "," + two, own: "http://mine", want: "http://mine/"},
		"the same twice":       {catalogue: one + "," + one, want: "http://glance/r1/"},
		"no such region":       {catalogue: one, region: "r9"},
		"no such interface":    {catalogue: two, iface: "internal"},
		"none":                 {catalogue: swift},
		"none, overridden":     {catalogue: swift, own: "https://mine:9292/image/", want: "https://mine:9292/image/"},
		"overridden by nought": {catalogue: one + "," + swift, own: "", want: "http://glance/r1/"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			k := newKeystone(t)
			k.catalogue = "[" + tc.catalogue + "]"
			o := asUser
			o.Region, o.Interface, o.Endpoints = tc.region, tc.iface, map[string]string{Image: tc.own}
			c := newCloud(t, o)
			c.client.Transport = direct{k}
			got := ""
			err := c.Call(t.Context(), Image, func(s *gophercloud.ServiceClient) error {
				got = s.Endpoint
				return nil
			})
			if got != tc.want || (tc.want == "") != errors.Is(err, ErrCatalogue) {
				t.Errorf("got %q, %v; want %q", got, err, tc.want)
			}
			if _, endpoint, err := c.Fresh(t.Context(), Image); endpoint != tc.want || (tc.want == "") != errors.Is(err, ErrCatalogue) {
				t.Errorf("fresh: got %q, %v; want %q", endpoint, err, tc.want)
			}
		})
	}
}

func TestCallWithRefusedToken(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		taken      string // the token that the service takes
		otherwise  int
		want       int // the status of the error, 0 for none
		calls, got int
	}{
		"taken":         {taken: "token-1", otherwise: 401, calls: 1, got: 1},
		"the second":    {taken: "token-2", otherwise: 401, calls: 2, got: 2},
		"never":         {taken: "token-3", otherwise: 401, want: 401, calls: 2, got: 2},
		"another error": {taken: "token-2", otherwise: 403, want: 403, calls: 1, got: 1},
		"an outage":     {taken: "token-2", otherwise: 503, want: 503, calls: 1, got: 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var calls atomic.Int32
			service := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				calls.Add(1)
				if r.Header.Get("X-Auth-Token") != tc.taken {
					w.WriteHeader(tc.otherwise)
				}
			}))
			t.Cleanup(service.Close)
			k := newKeystone(t)
			c := served(t, k, map[string]string{Image: service.URL})
			err := c.Call(t.Context(), Image, get(t))
			if StatusOf(err) != tc.want || (tc.want == 0) != (err == nil) || int(calls.Load()) != tc.calls {
				t.Errorf("%v after %d calls", err, calls.Load())
			}
			k.wantAsked(tc.got)
		})
	}
}

func TestCallWithRefusedTokenAndNoOther(t *testing.T) {
	t.Parallel()
	service := httptest.NewServer(status(401, ""))
	t.Cleanup(service.Close)
	k := newKeystone(t)
	c := served(t, k, map[string]string{Image: service.URL})
	token(t, c)
	k.set(status(503, ""))
	wantFault(t, c.Call(t.Context(), Image, get(t)), ErrIdentity)
}

// A token is worth as much as the password while it lasts, and both go only to where
// the configuration or the catalogue says.
func TestNothingFollowsRedirects(t *testing.T) {
	t.Parallel()
	var reached atomic.Bool
	thief := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { reached.Store(true) }))
	t.Cleanup(thief.Close)
	for _, code := range []int{301, 302, 303, 307, 308} {
		redirect := func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, thief.URL+"/v3/auth/tokens", code) }
		service := httptest.NewServer(http.HandlerFunc(redirect))
		t.Cleanup(service.Close)
		k := newKeystone(t)
		c := served(t, k, map[string]string{Image: service.URL})
		if err := c.Call(t.Context(), Image, get(t)); StatusOf(err) != code {
			t.Errorf("service: %v, want status %d", err, code)
		}
		k.set(redirect)
		_, _, err := c.Fresh(t.Context(), Image)
		wantFault(t, err, ErrIdentity)
	}
	if reached.Load() {
		t.Error("a redirect was followed")
	}
}

// Services that repeat what they were sent must not get it into the log.
func TestErrorsHoldNoSecret(t *testing.T) {
	t.Parallel()
	for _, code := range []int{400, 401, 403, 404, 500} {
		service := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			status(code, "who has sent "+r.Header.Get("X-Auth-Token"))(w, r)
		}))
		t.Cleanup(service.Close)
		k := newKeystone(t)
		c := served(t, k, map[string]string{Image: service.URL})
		err := c.Call(t.Context(), Image, get(t))
		if err == nil || !strings.Contains(err.Error(), "token-") || StatusOf(err) != code {
			t.Fatalf("the service repeated nothing: %v", err)
		}
		if logged := Cause(fmt.Errorf("stat: %w", err)).Error(); logged != fmt.Sprintf("GET: status %d", code) {
			t.Errorf("in the log: %s", logged)
		}

		k.set(func(w http.ResponseWriter, r *http.Request) { status(code, k.bodies[0])(w, r) })
		_, _, err = c.Fresh(t.Context(), Image)
		wantFault(t, err, fault.New(fault.Unavailable, fault.CodeOf(err), ""))
	}
}

func TestNoKeystone(t *testing.T) {
	t.Parallel()
	c := served(t, newKeystone(t), nil)
	gone := httptest.NewServer(nil)
	gone.Close()
	c.opt.AuthURL = gone.URL + "/v3"
	_, err := c.ProjectID(t.Context())
	wantFault(t, err, ErrIdentity)
	if fault.KindOf(err) != fault.Unavailable {
		t.Errorf("%v is not worth another attempt", err)
	}
}

// The headers are there at once; the rest never comes.
func TestDribblingKeystone(t *testing.T) {
	t.Parallel()
	k := newKeystone(t)
	k.set(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Subject-Token", "token-1")
		w.WriteHeader(http.StatusCreated)
		_, _ = io.WriteString(w, `{"token":`)
		_ = http.NewResponseController(w).Flush()
		hang(w, r)
	})
	c := served(t, k, nil)
	c.opt.AnswerTimeout = 50 * time.Millisecond
	_, err := c.ProjectID(t.Context())
	wantFault(t, err, ErrIdentity)
}

func TestEndlessErrorIsCut(t *testing.T) {
	t.Parallel()
	service := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusInternalServerError)
		for {
			if _, err := w.Write(make([]byte, 1<<20)); err != nil {
				return
			}
		}
	}))
	t.Cleanup(service.Close)
	c := served(t, newKeystone(t), map[string]string{Image: service.URL})
	err := c.Call(t.Context(), Image, get(t))
	e, ok := errors.AsType[gophercloud.ErrUnexpectedResponseCode](err)
	if !ok || e.Actual != http.StatusInternalServerError || len(e.Body) != outbound.MaxErrorBytes {
		t.Errorf("%d bytes of %v", len(e.Body), ok)
	}
}
