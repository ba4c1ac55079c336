package s3store_test

import (
	"context"
	"crypto/tls"
	"encoding/pem"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"vmimport/internal/fault"
	"vmimport/internal/secret"
	"vmimport/internal/testenv"
	"vmimport/storage/s3store"
	"vmimport/storage/storagetest"
)

// code is what Check finds wrong, "" if nothing.
func code(t *testing.T, store *s3store.Store) string {
	t.Helper()
	err := store.Check(t.Context())
	if err != nil && strings.Contains(err.Error(), "secret of the test") {
		t.Errorf("the error holds the key: %v", err)
	}
	return fault.CodeOf(err)
}

func TestCheck(t *testing.T) {
	t.Parallel()
	server := storagetest.NewS3(t)
	server.Tamper(func(_ *http.Request, a *storagetest.Answer) { // a key that may not list
		a.Status, a.Body, a.Header = 403, []byte(`<Error><Code>AccessDenied</Code></Error>`), http.Header{}
	})
	gone, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := gone.Close(); err != nil {
		t.Fatal(err)
	}
	for want, change := range map[string]func(*s3store.Options){
		"":                  nil,
		"s3_key_refused":    func(o *s3store.Options) { o.Secret = secret.New("the wrong secret of the test") },
		"s3_region_refused": func(o *s3store.Options) { o.Region = "elsewhere-1" },
		"s3_tls_failed":     func(o *s3store.Options) { o.Endpoint = strings.Replace(o.Endpoint, "http:", "https:", 1) },
		"s3_unreachable":    func(o *s3store.Options) { o.Endpoint = "http://" + gone.Addr().String() },
	} {
		if got := code(t, open(t, server, change)); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	if got := code(t, open(t, server, func(o *s3store.Options) { o.AccessKey = "AKOTHER" })); got != "s3_key_refused" {
		t.Errorf("unknown key: %q", got)
	}
}

func TestCheckAnswers(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		status     int
		body, want string
	}{
		{200, `<ListAllMyBucketsResult><Buckets></Buckets></ListAllMyBucketsResult>`, ""},
		{403, `<Error><Code>AccessDenied</Code></Error>`, ""},
		{403, `<Error><Code>RequestTimeTooSkewed</Code></Error>`, "s3_clock_refused"},
		{403, `<Error><Code>ExpiredToken</Code></Error>`, "s3_key_refused"},
		{401, ``, "s3_key_refused"},
		{503, `<Error><Code>SlowDown</Code></Error>`, "s3_answer_wrong"},
		{500, `<html>out of order</html>`, "s3_answer_wrong"},
		{404, `no such page`, "s3_answer_wrong"},
		{200, `<html>a page about something else`, "s3_answer_wrong"},
		{301, ``, "s3_answer_wrong"},
	} {
		server := storagetest.NewS3(t)
		server.Tamper(func(_ *http.Request, a *storagetest.Answer) {
			a.Status, a.Body, a.Header = tt.status, []byte(tt.body), http.Header{}
		})
		if got := code(t, open(t, server, nil)); got != tt.want {
			t.Errorf("%d %s: %q, want %q", tt.status, tt.body, got, tt.want)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := open(t, storagetest.NewS3(t), nil).Check(ctx); err == nil {
		t.Error("Check did not obey its context")
	}
}

func TestCheckTLS(t *testing.T) {
	t.Parallel()
	s3 := storagetest.NewS3(t)
	s3.Tamper(func(_ *http.Request, a *storagetest.Answer) {
		a.Status, a.Body, a.Header = 200, []byte(`<ListAllMyBucketsResult/>`), http.Header{}
	})
	server := httptest.NewUnstartedServer(s3)
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.StartTLS()
	t.Cleanup(server.Close)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	at := func(endpoint, ca string) *s3store.Store {
		return open(t, s3, func(o *s3store.Options) { o.Endpoint, o.CAFile = endpoint, ca })
	}
	if got := code(t, at(server.URL, ca)); got != "" {
		t.Errorf("trusted certificate: %q", got)
	}
	if got := code(t, at(server.URL, "")); got != "s3_tls_failed" {
		t.Errorf("untrusted certificate: %q", got)
	}
	if got := code(t, at(strings.Replace(server.URL, "https:", "http:", 1), "")); got != "s3_answer_wrong" {
		t.Errorf("http to https: %q", got)
	}
	old := httptest.NewUnstartedServer(s3)
	old.Config.ErrorLog = log.New(io.Discard, "", 0)
	old.TLS = &tls.Config{MaxVersion: tls.VersionTLS11, MinVersion: tls.VersionTLS10} //nolint:gosec // what must be refused
	old.StartTLS()
	t.Cleanup(old.Close)
	if got := code(t, at(old.URL, ca)); got != "s3_tls_failed" {
		t.Errorf("old version of TLS: %q", got)
	}
}

// A real server says the same.
func TestCheckGateway(t *testing.T) {
	t.Parallel()
	server := testenv.StartS3(t)
	for name, tt := range map[string]struct {
		key, secret, region, want string
	}{
		"right":        {server.AccessKey, server.SecretKey, server.Region, ""},
		"wrong key":    {"AKOTHER", server.SecretKey, server.Region, "s3_key_refused"},
		"wrong secret": {server.AccessKey, "wrong", server.Region, "s3_key_refused"},
		"wrong region": {server.AccessKey, server.SecretKey, "elsewhere-1", "s3_region_refused"},
	} {
		store, err := s3store.New(s3store.Options{Endpoint: server.URL, Region: tt.region, PathStyle: true, AccessKey: tt.key, Secret: secret.New(tt.secret)})
		if err != nil {
			t.Fatal(err)
		}
		if err := store.Check(t.Context()); fault.CodeOf(err) != tt.want {
			t.Errorf("%s: %v, want %q", name, err, tt.want)
		}
	}
}
