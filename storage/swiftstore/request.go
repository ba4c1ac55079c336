package swiftstore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/gophercloud/gophercloud/v2"

	"vmimport/internal/fault"
	"vmimport/storage"
)

// Queries of requests for objects.
const (
	// asStored asks for what lies under a name, be it a manifest or a link.
	asStored = "multipart-manifest=get&symlink=get"
	// asJoined asks for the object that a manifest stands for.
	asJoined = "symlink=get"
)

// place is where an object lies within its account.
type place struct {
	container, name string
	version         string // its id in a versioned container; empty: the present one
}

// path returns the place as it stands in a URL.
func (p place) path() string { return escape(p.container, false) + "/" + escape(p.name, true) }

// query adds the version to a query.
func (p place) query(q string) string {
	if p.version != "" {
		q += "&version-id=" + escape(p.version, false)
	}
	return q
}

// escape percent-encodes everything but what no server could read as anything
// else. Slashes stay where they separate segments of names.
func escape(s string, slashes bool) string {
	var b strings.Builder
	for _, c := range []byte(s) {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', strings.IndexByte("-._~", c) >= 0, slashes && c == '/':
			b.WriteByte(c)
		default:
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}

// request is one to Swift.
type request struct {
	op     string // for the log
	method string
	path   string // below the account, percent-encoded; may be empty
	query  string
	header map[string]string
}

// send returns Swift's answer, whatever its status but 401. The caller closes it.
func (a *account) send(ctx context.Context, r request) (*http.Response, error) {
	var answer *http.Response
	err := a.store.call(ctx, func(c *gophercloud.ServiceClient) error {
		req, err := a.request(ctx, r, c.Token())
		if err != nil {
			return err
		}
		answer, err = c.HTTPClient.Do(req)
		if err != nil {
			return err
		}
		if answer.StatusCode == http.StatusUnauthorized {
			discard(answer)
			return tokenRefused(r.method)
		}
		return nil
	})
	if err != nil {
		return nil, unanswered(ctx, r.op, err)
	}
	return answer, nil
}

// tokenRefused returns what Cloud.Call knows a refused token by.
func tokenRefused(method string) error {
	return gophercloud.ErrUnexpectedResponseCode{Method: method, Actual: http.StatusUnauthorized}
}

// request makes a request that has no body yet.
func (a *account) request(ctx context.Context, r request, token string) (*http.Request, error) {
	url := a.url
	if r.path != "" {
		url += "/" + r.path
	}
	if r.query != "" {
		url += "?" + r.query
	}
	req, err := http.NewRequestWithContext(ctx, r.method, url, nil)
	if err != nil {
		return nil, err
	}
	for name, value := range r.header {
		req.Header.Set(name, value)
	}
	req.Header.Set("X-Auth-Token", token)
	return req, nil
}

// discard ends an answer whose body is of no use. What is short is read, so that
// the connection can be used again.
func discard(answer *http.Response) {
	_, _ = io.CopyN(io.Discard, answer.Body, 4<<10)
	_ = answer.Body.Close()
}

// state is what Swift says of something that is stored. Two looks that see the
// same state saw the same object.
type state struct {
	etag        string // without quotes
	size        int64  // bytes; of what was asked for: as stored, or joined; negative: unknown
	stamp       string // when it was written, data or metadata
	static      bool   // it is the manifest of a static large object
	dynamic     string // it is that of a dynamic one: container and prefix, percent-encoded
	link        string // it is a link: container and name, percent-encoded
	linkAccount string // percent-encoded; empty: the same
	linkETag    string // what the target's ETag must be; empty: anything
}

// plain reports whether s is an object whose bytes are its own.
func (s state) plain() bool { return !s.static && s.dynamic == "" && s.link == "" }

// before reports whether s was written before other, for all that is known.
func (s state) before(other string) bool {
	mine, ok := seconds(s.stamp)
	theirs, ok2 := seconds(other)
	return ok && ok2 && mine < theirs
}

// stateOf reads the header of an answer. missing is the error for an answer that
// comes from elsewhere than it was asked for.
func stateOf(op string, answer *http.Response, missing *fault.Error) (state, error) {
	h := answer.Header
	// Swift says so when it has followed a link, which it was asked not to do.
	if from := h.Get("Content-Location"); from != "" {
		return state{}, missing.Because(fmt.Errorf("%s: the answer is that of %q", op, from))
	}
	s := state{
		etag:        strings.Trim(h.Get("ETag"), `"`),
		size:        answer.ContentLength,
		stamp:       cmp.Or(h.Get("X-Timestamp"), h.Get("Last-Modified")),
		static:      strings.EqualFold(h.Get("X-Static-Large-Object"), "true"),
		dynamic:     h.Get("X-Object-Manifest"),
		link:        h.Get("X-Symlink-Target"),
		linkAccount: h.Get("X-Symlink-Target-Account"),
		linkETag:    strings.Trim(h.Get("X-Symlink-Target-Etag"), `"`),
	}
	if !validETag(s.etag) || s.stamp == "" {
		return state{}, storage.ErrUnavailable.Because(fmt.Errorf("%s: the answer has no ETag or no time", op))
	}
	return s, nil
}

// validETag reports whether s can stand in an If-Match header, between quotes.
func validETag(s string) bool {
	return s != "" && len(s) <= 128 && !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r >= 0x7f || strings.ContainsRune(`"\,;`, r) })
}

// head looks at an object, asking all replicas for the newest. missing is the error
// for there being none.
func (a *account) head(ctx context.Context, op string, at place, query string, missing *fault.Error) (state, error) {
	answer, err := a.send(ctx, request{
		op: op, method: http.MethodHead, path: at.path(), query: at.query(query),
		header: map[string]string{"X-Newest": "true"},
	})
	if err != nil {
		return state{}, err
	}
	discard(answer)
	if answer.StatusCode != http.StatusOK {
		return state{}, refused(op, answer.StatusCode, missing)
	}
	return stateOf(op, answer, missing)
}

// unanswered gives meaning to a request that got no answer.
func unanswered(ctx context.Context, op string, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("%s: %w", op, context.Cause(ctx))
	}
	e := storage.ErrUnavailable.Because(fmt.Errorf("%s: %w", op, err))
	if inner, ok := errors.AsType[*fault.Error](err); ok {
		return e.Try(inner.Remedy) // of the identity service or the catalogue
	}
	if gophercloud.ResponseCodeIs(err, http.StatusUnauthorized) {
		return e.Try("Let Swift validate tokens with the same Keystone, and look into its log.")
	}
	return e
}

// refused gives meaning to an answer that is no success. missing is what the absence
// of the object means: ErrNoObject, or ErrChanged once it was seen.
func refused(op string, status int, missing *fault.Error) error {
	err := fmt.Errorf("%s: status %d", op, status)
	switch status {
	case http.StatusNotFound, http.StatusGone:
		return missing.Because(err)
	case http.StatusBadRequest, http.StatusPreconditionFailed, http.StatusRequestURITooLong:
		// So Swift says of names that it cannot hold.
		if errors.Is(missing, storage.ErrNoObject) {
			return missing.Because(err)
		}
	case http.StatusForbidden:
		return storage.ErrUnavailable.Because(err).Try(giveRight)
	}
	// 5xx, throttling, redirects: nothing that a customer could mend.
	return storage.ErrUnavailable.Because(err)
}
