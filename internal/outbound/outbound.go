// Package outbound is how the service talks HTTP to the servers that its
// configuration names. It honours no proxy variables, and leaves redirects and
// retries to its callers, who know what may be sent twice and to whom.
package outbound

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"time"
)

// Options set up a transport.
type Options struct {
	// CAFile holds certificates, in PEM, to trust besides the system's.
	CAFile string

	// AnswerTimeout bounds the wait for the first byte of an answer, counted from
	// the end of the request; zero is 30 s. The body after it may take any time;
	// only its reader can tell.
	AnswerTimeout time.Duration

	// PublicOnly refuses connections to addresses that Public does not hold for. Each is
	// looked at when it is connected to, whatever its name stood for before.
	PublicOnly bool

	// Resolver looks names up; nil is that of the system.
	Resolver *net.Resolver
}

// Transport returns a transport for many parallel requests to few servers.
func Transport(o Options) (*http.Transport, error) {
	roots, err := o.roots()
	if err != nil {
		return nil, err
	}
	dialer := &net.Dialer{Timeout: 10 * time.Second, Resolver: o.Resolver}
	if o.PublicOnly {
		dialer.ControlContext = refusePrivate
	}
	return &http.Transport{
		DialContext:           dialer.DialContext,
		TLSHandshakeTimeout:   10 * time.Second,
		ResponseHeaderTimeout: cmp.Or(o.AnswerTimeout, 30*time.Second),
		IdleConnTimeout:       time.Minute,
		// HTTP/1.1 only: ranges that share one connection share its pace. Idle
		// connections must outnumber the ranges in flight of all imports, or
		// each range opens one.
		TLSClientConfig:     &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}},
		MaxIdleConns:        256,
		MaxIdleConnsPerHost: 128,
		// Bytes come as they are stored, whatever their Content-Encoding.
		DisableCompression: true,
	}, nil
}

// roots returns the certificates to trust; nil stands for the system's.
func (o *Options) roots() (*x509.CertPool, error) {
	if o.CAFile == "" {
		return nil, nil
	}
	pem, err := os.ReadFile(o.CAFile)
	if err != nil {
		return nil, fmt.Errorf("CA file: %w", err)
	}
	roots, err := x509.SystemCertPool()
	if err != nil {
		return nil, fmt.Errorf("system certificates: %w", err)
	}
	if !roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("CA file %s: no certificate in it", o.CAFile)
	}
	return roots, nil
}

// MaxErrorBytes is how much ShortErrors leaves of an answer, far above what services say.
const MaxErrorBytes = 64 << 10

// ShortErrors cuts the bodies of answers that are no success, for clients that read all of
// them into memory.
func ShortErrors(next http.RoundTripper) http.RoundTripper { return shortErrors{next} }

type shortErrors struct{ http.RoundTripper }

// RoundTrip implements http.RoundTripper.
func (t shortErrors) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := t.RoundTripper.RoundTrip(r)
	if err == nil && resp.StatusCode >= http.StatusMultipleChoices {
		resp.Body = struct {
			io.Reader
			io.Closer
		}{io.LimitReader(resp.Body, MaxErrorBytes), resp.Body}
	}
	return resp, err
}

// CloseIdleConnections is what http.Client looks for.
func (t shortErrors) CloseIdleConnections() {
	(&http.Client{Transport: t.RoundTripper}).CloseIdleConnections()
}
