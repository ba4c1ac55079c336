// Package outbound is how the service talks HTTP to the servers that its
// configuration names. It honours no proxy variables, and leaves redirects and
// retries to its callers, who know what may be sent twice and to whom.
package outbound

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"fmt"
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
}

// Transport returns a transport for many parallel requests to few servers.
func Transport(o Options) (*http.Transport, error) {
	roots, err := o.roots()
	if err != nil {
		return nil, err
	}
	return &http.Transport{
		DialContext:           (&net.Dialer{Timeout: 10 * time.Second}).DialContext,
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
