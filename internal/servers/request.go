package servers

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/gophercloud/gophercloud/v2"

	"vmimport/internal/secret"
)

// call is a request to one of the cloud's services.
type call struct {
	service string // type of the service
	method  string
	path    string // below the service's endpoint, with the query
	body    any    // to be sent as JSON; nil: none
	patch   bool   // the body is a JSON patch of an image
	ok      int    // the status of a good answer
	into    any    // what is decoded from a good answer; nil: nothing is
	silent  bool   // a good answer may be empty
}

// failure is a request that had no good answer. It holds nothing of the answer but
// its status and a sentence that is known to name nothing else than ids and states.
type failure struct {
	call       string        // method and service
	status     int           // 0: there was no answer, or none that could be read
	text       string        // what was wrong, in words known here; may be empty if there was one
	retryAfter time.Duration // as the answer says; 0: it does not
}

func (f *failure) Error() string {
	s := f.call
	if f.status != 0 {
		s += fmt.Sprintf(": status %d", f.status)
	}
	if f.text != "" {
		s += ": " + f.text
	}
	return s
}

// passing reports whether the same request may have a good answer later.
func (f *failure) passing() bool {
	return f.status == 0 || f.status >= 500 || f.status == http.StatusRequestTimeout || f.limited()
}

// limited reports whether the cloud wants fewer requests. Its older parts say so
// with 413.
func (f *failure) limited() bool {
	return f.status == http.StatusTooManyRequests || f.status == http.StatusRequestEntityTooLarge
}

// meaning makes a fault of a failure that nobody knew a better meaning of.
func meaning(err error) error {
	f, ok := err.(*failure) // one that is wrapped has a meaning already
	if !ok {
		return err
	}
	switch {
	case f.status == http.StatusUnauthorized:
		return ErrToken.Because(f)
	case f.status == http.StatusForbidden:
		return ErrDenied.Because(f)
	case f.passing():
		return ErrUnavailable.Because(f)
	}
	return ErrRefused.Because(f)
}

// statusOf returns the status of the answer that made err, 0 if there was none.
func statusOf(err error) int {
	if f, ok := errors.AsType[*failure](err); ok {
		return f.status
	}
	return 0
}

// do makes a request, and once more with a new token if the old one has ended and the
// customer's password is at hand. Its errors are failures, faults, or the cause of
// ctx's end.
func (c *Cloud) do(ctx context.Context, r call) (http.Header, error) {
	header, err := c.once(ctx, r)
	if statusOf(err) != http.StatusUnauthorized || c.givenToken() {
		return header, err
	}
	if err := c.authenticate(ctx); err != nil {
		return nil, err
	}
	return c.once(ctx, r)
}

func (c *Cloud) once(ctx context.Context, r call) (http.Header, error) {
	endpoint, err := c.endpoint(r.service)
	if err != nil {
		return nil, err
	}
	return c.send(ctx, c.session.token, endpoint, r)
}

// maxAnswerBytes is far above the catalogue of any cloud, and a page of images.
const maxAnswerBytes = 8 << 20

// send makes one request below endpoint, with the token if there is one.
func (c *Cloud) send(ctx context.Context, token secret.Text, endpoint string, r call) (http.Header, error) {
	bounded, cancel := context.WithTimeout(ctx, c.opt.AnswerTimeout)
	defer cancel()
	opts := &gophercloud.RequestOpts{
		JSONBody: r.body, OkCodes: []int{r.ok}, KeepResponseBody: true,
		MoreHeaders: map[string]string{},
	}
	if r.patch {
		opts.MoreHeaders["Content-Type"] = "application/openstack-images-v2.1-json-patch"
	}
	if r.service == identity && !token.IsZero() {
		opts.MoreHeaders["X-Subject-Token"] = token.Reveal()
	}
	provider := gophercloud.ProviderClient{HTTPClient: c.client, TokenID: token.Reveal()}
	resp, err := provider.Request(bounded, r.method, endpoint+r.path, opts)
	if err == nil {
		defer resp.Body.Close()
		if r.into == nil {
			return resp.Header, nil
		}
		body, readErr := io.ReadAll(io.LimitReader(resp.Body, maxAnswerBytes))
		if readErr == nil && (r.silent && len(body) == 0 || json.Unmarshal(body, r.into) == nil) {
			return resp.Header, nil
		}
		// What json says of a wrong answer may quote it.
		err = errAnswer
		if readErr != nil {
			err = readErr
		}
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return nil, newFailure(r, err)
}

var errAnswer = errors.New("the answer is not in the form that it should have")

func newFailure(r call, err error) *failure {
	f := &failure{call: r.method + " " + r.service}
	e, ok := errors.AsType[gophercloud.ErrUnexpectedResponseCode](err)
	if !ok {
		f.text = transportText(err)
		return f
	}
	f.status, f.text = e.Actual, sentence(e.Actual, e.Body)
	f.retryAfter = retryAfter(e.ResponseHeader)
	return f
}

// transportText tells what kept a request from its answer. Only errors that are made
// before an answer begins are quoted.
func transportText(err error) string {
	if errors.Is(err, errAnswer) {
		return errAnswer.Error()
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return "it took too long"
	}
	if e, ok := errors.AsType[*net.OpError](err); ok && e.Op == "dial" {
		return e.Error()
	}
	if e, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return e.Error()
	}
	return "the connection failed"
}

// retryAfter reads the header of that name, which is in seconds or a time.
func retryAfter(h http.Header) time.Duration {
	value := h.Get("Retry-After")
	if n, err := strconv.ParseUint(value, 10, 32); err == nil {
		return time.Duration(n) * time.Second
	}
	if t, err := http.ParseTime(value); err == nil {
		return max(0, time.Until(t))
	}
	return 0
}

// sentences are what Nova and Cinder say that a customer can use. Each names nothing
// but ids, actions and states.
var sentences = []*regexp.Regexp{
	regexp.MustCompile(`^Instance [0-9a-f-]{36} is locked\.?$`),
	regexp.MustCompile(`^Cannot '[A-Za-z-]{1,32}' instance [0-9a-f-]{36} while it is in (vm_state|task_state|power_state) [a-z_]{1,40}\.?$`),
	regexp.MustCompile(`^(Invalid volume: )?Volume [0-9a-f-]{36} status must be [a-z ,:'-]{1,120}\.?$`),
}

// sentence returns what the body of an answer says in one of the known sentences: an
// object with one member, which has the status as code, and the sentence as message.
// All else may repeat what the server's owner once sent.
func sentence(status int, body []byte) string {
	var answer map[string]struct {
		Code    int    `json:"code"`
		Message string `json:"message"`
	}
	if status/100 != 4 || json.Unmarshal(body, &answer) != nil || len(answer) != 1 {
		return ""
	}
	for _, said := range answer {
		if said.Code != status {
			return ""
		}
		for _, known := range sentences {
			if known.MatchString(said.Message) {
				return strings.TrimSuffix(said.Message, ".")
			}
		}
	}
	return ""
}

// moment is a time in an answer, zero if it is in no known form: none here is worth
// failing for. Block storage leaves out the zone, which is UTC.
type moment struct{ time.Time }

// UnmarshalJSON implements json.Unmarshaler.
func (m *moment) UnmarshalJSON(b []byte) error {
	s := strings.Trim(string(b), `"`)
	for _, form := range []string{time.RFC3339, "2006-01-02T15:04:05"} {
		if t, err := time.Parse(form, s); err == nil {
			m.Time = t
			break
		}
	}
	return nil
}
