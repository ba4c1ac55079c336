package webhook

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"

	"vmimport/internal/outbound"
	"vmimport/internal/secret"
	"vmimport/tasks"
)

// Receiver is who gets events.
type Receiver struct {
	ID string // in the log, metrics and store
	// URL is https, or with AllowPrivate http, without user and password. Its query may be
	// a secret, so that it is never logged.
	URL    string
	Secret secret.Text // in a form that Key takes
	// Tenants, Dialects and States are those whose events are sent; none: all.
	Tenants  []tasks.Tenant
	Dialects []string
	States   []tasks.State
	// AllowPrivate allows addresses that are not of the public internet.
	AllowPrivate bool
	CAFile       string // of certificates to trust besides the system's
}

// wantsOf and wants tell what the receiver is to get.
func (r *Receiver) wantsOf(t tasks.Tenant) bool { return among(r.Tenants, t) }

func (r *Receiver) wants(c *tasks.Change) bool {
	return among(r.Dialects, c.Dialect) && among(r.States, c.State)
}

func among[T comparable](list []T, v T) bool { return len(list) == 0 || slices.Contains(list, v) }

// endpoint is a receiver as requests go to it.
type endpoint struct {
	url       string
	key       secret.Text
	transport http.RoundTripper
}

// maxAnswerBytes is what is read of an answer, so that its connection can be used again.
const maxAnswerBytes = 4 << 10

func newEndpoint(r *Receiver) (*endpoint, error) {
	u, err := url.Parse(r.URL)
	switch {
	case err != nil: // which quotes the URL
		return nil, errors.New("the url cannot be read")
	case u.Scheme != "https" && (u.Scheme != "http" || !r.AllowPrivate):
		return nil, errors.New("the url is not https")
	case u.Host == "" || u.Opaque != "":
		return nil, errors.New("the url has no host")
	case u.User != nil:
		return nil, errors.New("the url has a user in it")
	case u.Fragment != "":
		return nil, errors.New("the url has a fragment")
	}
	key, err := Key(r.Secret)
	if err != nil {
		return nil, err
	}
	transport, err := outbound.Transport(outbound.Options{CAFile: r.CAFile, PublicOnly: !r.AllowPrivate})
	if err != nil {
		return nil, err
	}
	return &endpoint{url: u.String(), key: key, transport: transport}, nil
}

// refusal is an answer that is no success.
type refusal struct {
	status     int
	retryAfter time.Duration // as the answer says; 0: it does not
}

func (r *refusal) Error() string { return fmt.Sprintf("status %d", r.status) }

// final reports whether the same request will hardly have another answer later.
func (r *refusal) final() bool {
	switch r.status {
	case http.StatusRequestTimeout, http.StatusConflict, http.StatusTooEarly, http.StatusTooManyRequests:
		return false
	}
	return r.status/100 == 4
}

// deliver makes one request, and follows no redirect: events go where the configuration
// says. Its errors do not quote the URL; if there was an answer they are refusals.
func (e *endpoint) deliver(ctx context.Context, id string, body []byte) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, e.url, bytes.NewReader(body))
	if err != nil {
		return errors.New("the request cannot be made")
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", "vmimport")
	now := time.Now()
	Sign(req.Header, e.key, id, now, body)
	// Not an http.Client, whose errors have the URL in them.
	resp, err := e.transport.RoundTrip(req)
	if err != nil {
		return tellable(err)
	}
	defer resp.Body.Close()
	_, _ = io.CopyN(io.Discard, resp.Body, maxAnswerBytes)
	if resp.StatusCode/100 == 2 {
		return nil
	}
	return &refusal{status: resp.StatusCode, retryAfter: retryAfter(resp, now)}
}

// errUnreadable stands for what quotes an answer that is no HTTP: the URL may be in it, if the
// receiver sends back what it got.
var errUnreadable = errors.New("the answer cannot be read")

// tellable returns what may be told of why there is no answer.
func tellable(err error) error {
	_, network := errors.AsType[net.Error](err)
	_, certificate := errors.AsType[*tls.CertificateVerificationError](err)
	_, plain := errors.AsType[tls.RecordHeaderError](err)
	known := func(target error) bool { return errors.Is(err, target) }
	if network || certificate || plain ||
		slices.ContainsFunc([]error{io.EOF, io.ErrUnexpectedEOF, context.Canceled, outbound.ErrNotPublic}, known) {
		return err
	}
	return errUnreadable
}

// retryAfter reads the header of that name, which is in seconds or a time, of the answers
// that it means something for.
func retryAfter(resp *http.Response, now time.Time) time.Duration {
	if resp.StatusCode != http.StatusTooManyRequests && resp.StatusCode != http.StatusServiceUnavailable {
		return 0
	}
	value := resp.Header.Get("Retry-After")
	if n, err := strconv.ParseUint(value, 10, 31); err == nil {
		return time.Duration(n) * time.Second
	}
	if t, err := http.ParseTime(value); err == nil {
		return max(0, t.Sub(now))
	}
	return 0
}
