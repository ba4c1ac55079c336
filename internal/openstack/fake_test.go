package openstack

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gophercloud/gophercloud/v2"
	"go.uber.org/goleak"

	"vmimport/internal/secret"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const password = "pass-word-9921"

// fakeKeystone gives out the tokens "token-1", "token-2" and so on.
type fakeKeystone struct {
	t     testing.TB
	ahead time.Duration // its clock before ours
	life  time.Duration

	catalogue string // JSON

	mu     sync.Mutex
	bodies []string // of the requests for tokens
	made   int
	odd    http.HandlerFunc // answers instead, if set
}

func newKeystone(t testing.TB) *fakeKeystone {
	return &fakeKeystone{t: t, life: time.Hour, catalogue: "[]"}
}

func (k *fakeKeystone) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil || r.Method != http.MethodPost || r.URL.Path != "/v3/auth/tokens" || r.Header.Get("X-Auth-Token") != "" {
		k.t.Errorf("%s %s with token %q: %v", r.Method, r.URL, r.Header.Get("X-Auth-Token"), err)
	}
	k.mu.Lock()
	k.bodies = append(k.bodies, string(body))
	odd := k.odd
	k.mu.Unlock()
	if odd != nil {
		odd(w, r)
		return
	}
	k.answer(w)
}

// answer gives out a token.
func (k *fakeKeystone) answer(w http.ResponseWriter) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.made++
	now := time.Now().Add(k.ahead).UTC()
	w.Header().Set("X-Subject-Token", fmt.Sprintf("token-%d", k.made))
	w.WriteHeader(http.StatusCreated)
	fmt.Fprintf(w, `{"token":{"project":{"id":"own","domain":{"id":"default"}},"catalog":%s,"issued_at":%q,"expires_at":%q}}`,
		k.catalogue, now.Format(keystoneTime), now.Add(k.life).Format(keystoneTime))
}

const keystoneTime = "2006-01-02T15:04:05.000000Z"

func (k *fakeKeystone) set(odd http.HandlerFunc) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.odd = odd
}

// asked returns how often a token was asked for.
func (k *fakeKeystone) asked() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.bodies)
}

func (k *fakeKeystone) wantAsked(want int) {
	k.t.Helper()
	if n := k.asked(); n != want {
		k.t.Errorf("%d requests for tokens, want %d", n, want)
	}
}

func status(code int, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(code)
		_, _ = io.WriteString(w, body)
	}
}

func hang(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }

// direct hands requests to a handler without a network, so that time may be fake.
type direct struct{ http.Handler }

func (d direct) RoundTrip(r *http.Request) (*http.Response, error) {
	w := httptest.NewRecorder()
	d.ServeHTTP(w, r)
	if r.Context().Err() != nil {
		return nil, r.Context().Err()
	}
	return w.Result(), nil
}

var asUser = Options{AuthURL: "http://keystone.invalid/v3", Username: "vmimport", Password: secret.New(password), Project: "service"}

func newCloud(t testing.TB, o Options) *Cloud {
	t.Helper()
	c, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// cloudOf returns a cloud whose requests go to k without a network.
func cloudOf(t testing.TB, k *fakeKeystone) *Cloud {
	t.Helper()
	c := newCloud(t, asUser)
	c.client.Transport = direct{k}
	return c
}

// served returns a cloud with k on a network, and with other endpoints.
func served(t testing.TB, k *fakeKeystone, endpoints map[string]string) *Cloud {
	t.Helper()
	server := httptest.NewServer(k)
	t.Cleanup(server.Close)
	o := asUser
	o.AuthURL, o.Endpoints = server.URL+"/v3", endpoints
	c := newCloud(t, o)
	t.Cleanup(c.client.CloseIdleConnections)
	return c
}

// token returns the token that a call would use.
func token(t testing.TB, c *Cloud) string {
	t.Helper()
	token := ""
	err := c.Identity(t.Context(), func(s *gophercloud.ServiceClient) error {
		token = s.Token()
		return nil
	})
	if err != nil {
		t.Fatalf("get token: %v", err)
	}
	return token
}

// get is something to do with a client.
func get(t testing.TB) func(*gophercloud.ServiceClient) error {
	return func(s *gophercloud.ServiceClient) error {
		_, err := s.Get(t.Context(), s.ServiceURL("thing"), nil, nil)
		return err
	}
}

func wantFault(t testing.TB, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("got error %v, want %v", err, want)
	}
	if err != nil && (strings.Contains(err.Error(), password) || strings.Contains(err.Error(), "token-")) {
		t.Errorf("a secret in %v", err)
	}
}

func sameJSON(t testing.TB, got, want string) {
	t.Helper()
	var g, w any
	if err := errors.Join(json.Unmarshal([]byte(got), &g), json.Unmarshal([]byte(want), &w)); err != nil {
		t.Fatal(err)
	}
	if a, b := fmt.Sprint(g), fmt.Sprint(w); a != b {
		t.Errorf("got\n%s, want\n%s", a, b)
	}
}
