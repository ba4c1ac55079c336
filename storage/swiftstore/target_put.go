package swiftstore

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"vmimport/storage"
)

// found is what lies under a name.
type found struct {
	state
	at  place // with the version, where versions are kept
	own bool  // it says that the upload made it
}

// look looks at what lies under a name. It returns nil if there is nothing.
func (w *writer) look(ctx context.Context, at place) (*found, error) {
	f, err := w.lookOnce(ctx, at)
	if f == nil || err != nil || f.link == "" {
		return f, err
	}
	// Where versions are kept, all objects are links to their versions. Any other link
	// is nothing that the upload made, whatever it says.
	f.own = false
	to, err := w.target(f.state)
	if err != nil || to.version == "" || to.container != at.container || to.name != at.name {
		return f, nil
	}
	version, err := w.lookOnce(ctx, to)
	if version == nil && err == nil {
		return f, nil
	}
	return version, err
}

func (w *writer) lookOnce(ctx context.Context, at place) (*found, error) {
	const op = "look at object"
	answer, err := w.send(ctx, request{
		op: op, method: http.MethodHead, path: at.path(), query: at.query(asStored),
		header: map[string]string{"X-Newest": "true"},
	})
	if err != nil {
		return nil, err
	}
	discard(answer)
	switch answer.StatusCode {
	case http.StatusOK:
	case http.StatusNotFound, http.StatusGone:
		return nil, nil
	default:
		return nil, denied(op, answer.StatusCode)
	}
	s, err := stateOf(op, answer, storage.ErrUnavailable)
	if err != nil {
		return nil, err
	}
	return &found{state: s, at: at, own: answer.Header.Get(mark) == w.up.ID}, nil
}

// newObject is an object to be put where nothing is.
type newObject struct {
	op          string
	at          place
	query       string
	contentType string
	content     *content
	etag        string // that Swift must answer with

	// stays reports whether the upload's own object that is there is the same. shared says
	// that others may put one there, too.
	stays  func(*found) (bool, error)
	shared bool
}

// put puts an object, unless it is there. The first look is not only cheaper than a refusal: where
// versions are kept, Swift stores what it refuses to show.
func (w *writer) put(ctx context.Context, o newObject) error {
	if done, err := w.inPlace(ctx, o); done || err != nil {
		return err
	}
	answer, err := w.upload(ctx, request{
		op: o.op, method: http.MethodPut, path: o.at.path(), query: o.query,
		header: map[string]string{
			"Accept": "application/json", "Content-Type": o.contentType, "ETag": o.etag, "If-None-Match": "*", mark: w.up.ID,
		},
	}, o.content)
	switch {
	case err != nil:
		return err
	case answer.status == http.StatusCreated && answer.etag != o.etag:
		return storage.ErrPart.Because(fmt.Errorf("%s: the ETag is %.200q, want %q", o.op, answer.etag, o.etag))
	case answer.status == http.StatusCreated && !o.shared:
		return nil
	case answer.status == http.StatusCreated:
		// Of two who come at the same time, Swift may have told both that there was nothing.
	case answer.status == http.StatusPreconditionFailed, answer.status == http.StatusAccepted:
		// There is something by now, or something later. It may be what an earlier request left.
	default:
		return answer.fault(o.op)
	}
	done, err := w.inPlace(ctx, o)
	if !done && err == nil {
		err = storage.ErrUnavailable.Because(fmt.Errorf("%s: status %d, and nothing is there", o.op, answer.status))
	}
	return err
}

// inPlace reports whether o is there, or fails if something else is.
func (w *writer) inPlace(ctx context.Context, o newObject) (bool, error) {
	there, err := w.look(ctx, o.at)
	if there == nil || err != nil {
		return false, err
	}
	if there.own {
		if ok, err := o.stays(there); ok || err != nil {
			return ok, err
		}
	}
	return false, w.inTheWay(o.at)
}

// afford fails if n more bytes are beyond the quota of the account. Swift compares that for
// others, but not for users who may change it, as the service's may.
func (w *writer) afford(ctx context.Context, n int64) error {
	account, err := w.lookAt(ctx, "look at account", "")
	if err != nil {
		return err
	}
	quota, err := strconv.ParseInt(account.Get("X-Account-Meta-Quota-Bytes"), 10, 64)
	if err != nil {
		return nil // there is none
	}
	used, _ := strconv.ParseInt(account.Get("X-Account-Bytes-Used"), 10, 64) // 0: of an account that is not there yet
	if used > quota-n {
		return errQuota
	}
	return nil
}

// reply is Swift's answer to the sending of an object.
type reply struct {
	status   int
	etag     string
	text     []byte
	problems []problem
}

// problem is a part that Swift does not put into a large object: its name, and why.
type problem [2]string

// isOfPart reports whether it is the part itself that is wrong, and not Swift.
func (p problem) isOfPart() bool {
	return slices.Contains([]string{"Etag Mismatch", "Size Mismatch", "404 Not Found"}, p[1]) || strings.HasPrefix(p[1], "Too small")
}

// unwrap takes the answer out of the text, where it comes behind signs of life. These begin before
// Swift knows what it will be, so they are headed 202.
func (r *reply) unwrap() {
	var text struct {
		Status   string    `json:"Response Status"`
		ETag     string    `json:"Etag"`
		Body     string    `json:"Response Body"`
		Problems []problem `json:"Errors"`
	}
	if json.Unmarshal(r.text, &text) != nil {
		return // then it is what it is
	}
	r.problems = text.Problems
	if r.status != http.StatusAccepted {
		return
	}
	code, _, _ := strings.Cut(text.Status, " ")
	if status, err := strconv.Atoi(code); err == nil {
		r.status, r.etag, r.text = status, strings.Trim(text.ETag, `"`), []byte(text.Body)
	}
}

// tokenRefused reports whether Swift did not take the token, if only for the parts.
func (r *reply) tokenRefused() bool {
	return r.status == http.StatusUnauthorized ||
		slices.ContainsFunc(r.problems, func(p problem) bool { return strings.HasPrefix(p[1], "401") })
}

// fault gives meaning to an answer that is no success.
func (r *reply) fault(op string) error {
	err := fmt.Errorf("%s: status %d", op, r.status)
	switch r.status {
	case http.StatusBadRequest:
		if i := slices.IndexFunc(r.problems, problem.isOfPart); i >= 0 {
			return storage.ErrPart.Because(fmt.Errorf("%s: %.300q: %.100q", op, r.problems[i][0], r.problems[i][1]))
		}
	case http.StatusUnprocessableEntity:
		return storage.ErrPart.Because(err)
	case http.StatusRequestEntityTooLarge:
		if bytes.Contains(bytes.ToLower(r.text), []byte("quota")) {
			return errQuota.Because(err)
		}
		return errLimit.Because(err)
	}
	return denied(op, r.status)
}

// denied gives meaning to what Swift does not do for the service, within a project that
// is there.
func denied(op string, status int) error {
	err := fmt.Errorf("%s: status %d", op, status)
	switch status {
	case http.StatusNotFound, http.StatusGone:
		return storage.ErrNoContainer.Because(err)
	case http.StatusForbidden:
		return errWrite.Because(err)
	case http.StatusInsufficientStorage:
		return storage.ErrFull.Because(err)
	}
	return storage.ErrUnavailable.Because(err)
}
