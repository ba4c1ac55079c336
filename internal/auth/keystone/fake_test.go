package keystone

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"vmimport/internal/openstack"
	"vmimport/internal/secret"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeKeystone knows the service, and says of other tokens what a test wants.
type fakeKeystone struct {
	t testing.TB

	refusal int // the status of answers to the service that wants a token; 0: none

	mu     sync.Mutex
	made   int // tokens of the service
	asked  int // about tokens
	answer func(w http.ResponseWriter, r *http.Request, asked int)
}

const layout = "2006-01-02T15:04:05.000000Z"

func (k *fakeKeystone) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	k.mu.Lock()
	switch {
	case r.Method == http.MethodPost && k.refusal != 0:
		k.mu.Unlock()
		say(k.refusal, notFound)(w, r, 0)
	case r.URL.Path == "/v3/auth/tokens" && r.Method == http.MethodPost:
		k.made++
		w.Header().Set("X-Subject-Token", fmt.Sprintf("own-token-%d", k.made))
		w.WriteHeader(http.StatusCreated)
		_, _ = io.WriteString(w, `{"token":{"project":{"id":"service"},"issued_at":"2026-01-01T00:00:00Z","expires_at":"2026-01-01T01:00:00Z"}}`)
		k.mu.Unlock()
	case r.URL.RequestURI() == "/v3/auth/tokens?nocatalog" && r.Method == http.MethodGet:
		k.asked++
		asked, answer := k.asked, k.answer
		k.mu.Unlock()
		if own := r.Header.Get("X-Auth-Token"); !strings.HasPrefix(own, "own-token-") {
			k.t.Errorf("asked with the token %q", own)
		}
		answer(w, r, asked)
	default:
		k.mu.Unlock()
		k.t.Errorf("unexpected %s %s", r.Method, r.URL)
	}
}

// counts returns how many tokens it has made, and how often it was asked about one.
func (k *fakeKeystone) counts() (made, asked int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.made, k.asked
}

// say is an answer about the token that was asked about. A status of 0 cuts the
// connection.
func say(status int, body string) func(http.ResponseWriter, *http.Request, int) {
	return func(w http.ResponseWriter, r *http.Request, _ int) {
		if status == 0 {
			panic(http.ErrAbortHandler)
		}
		w.Header().Set("X-Subject-Token", r.Header.Get("X-Subject-Token"))
		w.Header().Set("Location", "/v3/elsewhere")
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}
}

// notFound is Keystone's own 404; the message is one of those that repeat the token.
const notFound = `{"error":{"code":404,"message":"Could not find token: their-token.","title":"Not Found"}}`

// aliceUntil is a token of alice in project alpha.
func aliceUntil(t time.Time) string {
	return fmt.Sprintf(`{"token":{"methods":["password"],"user":{"domain":{"id":"d1","name":"contract"},"id":"alice","name":"Alice","password_expires_at":null},
		"audit_ids":["x"],"expires_at":%q,"issued_at":"2026-01-01T00:00:00.000000Z",
		"project":{"domain":{"id":"d1","name":"contract"},"id":"alpha","name":"Alpha"},"is_domain":false,
		"roles":[{"id":"r1","name":"member"},{"id":"r2","name":"reader"}]}}`, t.UTC().Format(layout))
}

func served(t testing.TB, answer func(http.ResponseWriter, *http.Request, int)) (*Authenticator, *fakeKeystone) {
	t.Helper()
	k := &fakeKeystone{t: t, answer: answer}
	server := httptest.NewServer(k)
	t.Cleanup(server.Close)
	return at(t, server.URL), k
}

// at returns an authenticator for the Keystone at a URL.
func at(t testing.TB, url string) *Authenticator {
	t.Helper()
	cloud, err := openstack.New(openstack.Options{
		AuthURL: url + "/v3", Username: "vmimport", Password: secret.New("pass-word"), Project: "service",
	})
	if err != nil {
		t.Fatal(err)
	}
	a, err := New(cloud, Options{})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func wantFault(t testing.TB, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("got error %v, want %v", err, want)
	}
	if err != nil && (strings.Contains(err.Error(), "-token") || strings.Contains(err.Error(), "pass-word")) {
		t.Errorf("a secret in %v", err)
	}
}
