package outbound_test

import (
	"encoding/pem"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"

	"vmimport/internal/outbound"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func client(t *testing.T, o outbound.Options) *http.Client {
	t.Helper()
	transport, err := outbound.Transport(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

func write(t *testing.T, text []byte) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(name, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestOwnCertificates(t *testing.T) {
	t.Parallel()
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, r.Proto)
	}))
	server.EnableHTTP2 = true
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.StartTLS()
	t.Cleanup(server.Close)
	if _, err := client(t, outbound.Options{}).Get(server.URL); err == nil {
		t.Error("a server nobody vouches for was trusted")
	}
	ca := write(t, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}))
	resp, err := client(t, outbound.Options{CAFile: ca}).Get(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if proto, err := io.ReadAll(resp.Body); err != nil || string(proto) != "HTTP/1.1" {
		t.Errorf("%s, %v", proto, err)
	}
}

func TestCAFileThatHoldsNothing(t *testing.T) {
	t.Parallel()
	for _, name := range []string{write(t, nil), write(t, []byte("certificate")), filepath.Join(t.TempDir(), "missing")} {
		if _, err := outbound.Transport(outbound.Options{CAFile: name}); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
}

func TestBytesAsTheyAreStored(t *testing.T) {
	t.Parallel()
	const stored = "\x1f\x8b\x08 as if packed"
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if accept := r.Header.Get("Accept-Encoding"); accept != "" {
			t.Errorf("Accept-Encoding: %s", accept)
		}
		w.Header().Set("Content-Encoding", "gzip")
		_, _ = io.WriteString(w, stored)
	}))
	t.Cleanup(server.Close)
	resp, err := client(t, outbound.Options{}).Get(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if got, err := io.ReadAll(resp.Body); err != nil || string(got) != stored {
		t.Errorf("%q, %v", got, err)
	}
}

func TestSilentServer(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
	t.Cleanup(server.Close)
	_, err := client(t, outbound.Options{AnswerTimeout: 20 * time.Millisecond}).Get(server.URL)
	if e, ok := errors.AsType[net.Error](err); !ok || !e.Timeout() {
		t.Errorf("got %v, want a timeout", err)
	}
}

func TestDefaults(t *testing.T) {
	t.Parallel()
	transport, err := outbound.Transport(outbound.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if transport.Proxy != nil || transport.ResponseHeaderTimeout != 30*time.Second {
		t.Errorf("proxy %v, timeout %v", transport.Proxy != nil, transport.ResponseHeaderTimeout)
	}
}
