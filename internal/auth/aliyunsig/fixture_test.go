package aliyunsig_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"vmimport/internal/auth/aliyunsig"
	"vmimport/internal/auth/aliyunsig/aliyunsigtest"
	"vmimport/internal/secret"
)

var (
	now       = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	permanent = aliyunsigtest.Key{ID: "testid", Secret: "testsecret"}
	temporary = aliyunsigtest.Key{ID: "STS.1", Secret: "temporary secret", Token: "token+/="}
)

func accounts(keyID string) (aliyunsig.Key, bool) {
	sts := aliyunsig.Key{Secret: secret.New(temporary.Secret), SecurityToken: secret.New(temporary.Token), Expires: now.Add(time.Hour)}
	outlived, endless := sts, sts
	outlived.Expires, endless.Expires = now, time.Time{}
	k, known := map[string]aliyunsig.Key{
		permanent.ID:         {Secret: secret.New(permanent.Secret)},
		"disabled":           {Secret: secret.New(permanent.Secret), Disabled: true},
		"without secret":     {},
		temporary.ID:         sts,
		"STS.outlived":       outlived,
		"STS.without-an-end": endless,
	}[keyID]
	return k, known
}

// memory implements Nonces for tests.
type memory struct {
	mu   sync.Mutex
	used map[[2]string]time.Duration
	err  error
}

func (m *memory) Use(_ context.Context, keyID, nonce string, ttl time.Duration) (bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.err != nil {
		return false, m.err
	}
	_, used := m.used[[2]string{keyID, nonce}]
	if m.used == nil {
		m.used = map[[2]string]time.Duration{}
	}
	m.used[[2]string{keyID, nonce}] = ttl
	return !used, nil
}

func verifier(nonces aliyunsig.Nonces) *aliyunsig.Verifier {
	return aliyunsig.New(accounts, nonces, func() time.Time { return now })
}

// newRequest makes a request as a client does. The body is a form if it is not empty.
func newRequest(t testing.TB, method, query, body string) *http.Request {
	t.Helper()
	req, err := http.NewRequest(method, "http://ecs.example:8080/?"+query, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if body != "" {
		req.Header.Set("Content-Type", aliyunsigtest.Form)
	}
	return req
}

// receive takes req over the wire and parses what a server sees of it.
func receive(t testing.TB, req *http.Request) (*aliyunsig.Request, error) {
	t.Helper()
	again := req.Clone(t.Context())
	if req.GetBody != nil {
		var err error
		if again.Body, err = req.GetBody(); err != nil {
			t.Fatal(err)
		}
	}
	var wire bytes.Buffer
	if err := again.Write(&wire); err != nil {
		t.Fatal(err)
	}
	got, err := http.ReadRequest(bufio.NewReader(&wire))
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(got.Body)
	if err != nil {
		t.Fatal(err)
	}
	return aliyunsig.Parse(got, body)
}

func check(t testing.TB, v *aliyunsig.Verifier, req *http.Request) error {
	t.Helper()
	q, err := receive(t, req)
	if q == nil {
		t.Fatal("no request")
	}
	if err != nil {
		return err
	}
	return v.Verify(t.Context(), q, nil)
}

func wantRefusal(t testing.TB, err error, status int, code string) *aliyunsig.Refusal {
	t.Helper()
	r, ok := errors.AsType[*aliyunsig.Refusal](err)
	if !ok {
		t.Fatalf("got %v, want %s", err, code)
	}
	if r.Code != code || r.Status != status || r.Message == "" {
		t.Errorf("got %d %s %q, want %d %s", r.Status, r.Code, r.Message, status, code)
	}
	return r
}

// A scheme signs a request in one of the ways.
type scheme struct {
	name string
	sign func(t testing.TB, req *http.Request, key aliyunsigtest.Key, nonce string, at time.Time)
}

var schemes = []scheme{
	{"rpc", signRPC},
	{"rpc form", signRPCForm},
	{"acs3", signACS3},
}

func signRPC(t testing.TB, req *http.Request, key aliyunsigtest.Key, nonce string, at time.Time) {
	t.Helper()
	addAction(req)
	aliyunsigtest.SignRPC(t, req, key, nonce, at)
}

func signRPCForm(t testing.TB, req *http.Request, key aliyunsigtest.Key, nonce string, at time.Time) {
	t.Helper()
	addAction(req)
	aliyunsigtest.SignRPCForm(t, req, key, nonce, at)
}

func addAction(req *http.Request) {
	editQuery(req, func(v url.Values) {
		v.Set("Action", "DescribeImages")
		v.Set("Version", "2014-05-26")
	})
}

func signACS3(t testing.TB, req *http.Request, key aliyunsigtest.Key, nonce string, at time.Time) {
	t.Helper()
	aliyunsigtest.SignACS3(t, req, key, "DescribeImages", nonce, at)
}

func forEachScheme(t *testing.T, test func(t *testing.T, s scheme)) {
	t.Parallel()
	for _, s := range schemes {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			test(t, s)
		})
	}
}

func editQuery(req *http.Request, change func(url.Values)) {
	v := req.URL.Query()
	change(v)
	req.URL.RawQuery = v.Encode()
}
