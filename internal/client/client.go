// Package client speaks the REST dialect of the service (package fjcloud is the
// other end) and puts files into the object store that imports read from.
//
// Answers are decoded leniently: members that a service leaves out are zero, and
// members that it adds are ignored, so that the client also works with other
// services of that API. Calls are made once; only Watch, Events and Upload, which may be
// repeated without harm, try again after a passing failure.
//
// The token is sent to the two configured addresses and nowhere else: redirects
// are not followed.
package client

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"vmimport/internal/secret"
)

const (
	// callTimeout bounds one call without a body to speak of. The slowest,
	// register, waits for the service to look an object up.
	callTimeout = 30 * time.Second

	// maxAnswer is more than a list of 200 exports needs.
	maxAnswer = 1 << 20
)

// Options configure a Client.
type Options struct {
	// Endpoint is the base address of the service, without the version.
	Endpoint string
	// ObjectsURL is the address that a project's containers lie under; in the
	// Swift API it ends in /AUTH_ and the project id. Only Upload and Push
	// need it.
	ObjectsURL string
	// Token is sent as X-Auth-Token. It must be scoped to a project.
	Token secret.Text
	// HTTP makes the requests; nil means one with http.DefaultTransport. Its
	// Timeout should be zero, since it would also bound an upload.
	HTTP *http.Client
}

// Client is one caller of one service. It is safe for concurrent use.
type Client struct {
	endpoint string
	objects  string
	token    secret.Text
	http     *http.Client
}

// New checks the addresses in opt and returns a Client. It does not call anyone.
func New(opt Options) (*Client, error) {
	endpoint, err := baseURL("endpoint", opt.Endpoint)
	if err != nil {
		return nil, err
	}
	c := &Client{endpoint: endpoint, token: opt.Token}
	if opt.ObjectsURL != "" {
		if c.objects, err = baseURL("objects URL", opt.ObjectsURL); err != nil {
			return nil, err
		}
	}
	var h http.Client
	if opt.HTTP != nil {
		h = *opt.HTTP
	}
	// net/http strips Authorization from a redirect to another host, but does
	// not know that X-Auth-Token is a credential too.
	h.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	c.http = &h
	return c, nil
}

func baseURL(what, s string) (string, error) {
	u, err := url.Parse(s)
	switch {
	case err != nil:
		return "", fmt.Errorf("%s: not a URL", what) // a parse error would show a password in s
	case u.Scheme != "http" && u.Scheme != "https", u.Host == "":
		return "", fmt.Errorf("%s: not an http or https URL", what)
	case u.User != nil, u.RawQuery != "", u.Fragment != "":
		return "", fmt.Errorf("%s: must have no user, query or fragment", what)
	}
	return strings.TrimRight(s, "/"), nil
}

// Error is an answer that is not success.
type Error struct {
	Op         string        // what was tried, such as "register import"
	Status     int           // of HTTP
	Code       string        // the API's five digits; empty if the answer was not the API's
	Message    string        // one sentence, from the service
	RequestID  string        // to quote to the operator; may be empty
	RetryAfter time.Duration // how long the service asked to wait; may be zero
}

func (e *Error) Error() string {
	s := fmt.Sprintf("%s: %s (HTTP %d", e.Op, e.Message, e.Status)
	if e.Code != "" {
		s += ", code " + e.Code
	}
	if e.RequestID != "" {
		s += ", request " + e.RequestID
	}
	return s + ")"
}

// The API's codes that a caller may want to tell apart.
const (
	CodeUnknownImport         = "40401" // or export
	CodeFinished              = "40402" // too late to cancel
	CodeCancelRequested       = "40037" // a cancel of the import was accepted before
	CodeExportCancelRequested = "40010" // a cancel of the export was accepted before
	CodeNotFailed             = "40038" // there is nothing to try again
	CodeNoContainer           = "40008" // the container of an export is not there, or cannot be used
)

// HasCode reports whether err is an Error with that code.
func HasCode(err error, code string) bool {
	e, ok := errors.AsType[*Error](err)
	return ok && e.Code == code
}

// passing reports whether a repetition of the call may succeed soon, and how
// long the service asked to wait before it.
func passing(err error) (bool, time.Duration) {
	if e, ok := errors.AsType[*Error](err); ok {
		again := e.Status >= 500 || e.Status == http.StatusTooManyRequests || e.Status == http.StatusRequestTimeout
		return again, e.RetryAfter
	}
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return false, 0
	}
	return true, 0 // the connection failed
}

// call sends in as JSON, if it is not nil, and decodes a successful answer into
// out, if that is not nil.
func (c *Client) call(ctx context.Context, op, method, path string, in, out any) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("%s: %w", op, err)
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.endpoint+path, body)
	if err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	answer, err := c.do(op, req)
	if err != nil || out == nil {
		return err
	}
	if err := json.Unmarshal(answer, out); err != nil {
		// The status was one of success, so what answered is not this API.
		return &Error{Op: op, Status: http.StatusOK, Message: "The answer is not what this API sends; check the endpoint."}
	}
	return nil
}

// do sends req with the token and returns the body of a 2xx answer.
func (c *Client) do(op string, req *http.Request) ([]byte, error) {
	req.Header.Set("X-Auth-Token", c.token.Reveal())
	req.Header.Set("Accept", "application/json")
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", op, err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return nil, fmt.Errorf("%s: read answer: %w", op, err)
	}
	if resp.StatusCode/100 == 2 {
		return answer, nil
	}
	return nil, answerError(op, resp, answer)
}

func answerError(op string, resp *http.Response, body []byte) *Error {
	e := &Error{
		Op: op, Status: resp.StatusCode,
		RequestID:  resp.Header.Get("X-Request-Id"),
		RetryAfter: retryAfter(resp.Header.Get("Retry-After"), time.Now()),
	}
	var said struct {
		Code         string `json:"error_code"`
		Message      string `json:"message"`
		ErrorMessage string `json:"error_message"` // the same, in the API for exports
	}
	if json.Unmarshal(body, &said) == nil {
		e.Code, e.Message = said.Code, cmp.Or(said.Message, said.ErrorMessage)
	}
	if e.Message == "" {
		e.Message = http.StatusText(resp.StatusCode)
	}
	return e
}

// retryAfter reads both forms of the header, RFC 9110 section 10.2.3. What it
// cannot read counts as absent.
func retryAfter(s string, now time.Time) time.Duration {
	if n, err := strconv.Atoi(s); err == nil {
		return max(0, time.Duration(n)*time.Second)
	}
	if t, err := http.ParseTime(s); err == nil {
		return max(0, t.Sub(now))
	}
	return 0
}

// pause waits for d, or fails with the cause of ctx's end.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return nil
	}
}
