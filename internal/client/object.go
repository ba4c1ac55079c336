package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

const (
	// readTries bounds how often one part of an object is asked for.
	readTries = 4
	// readPause precedes the second try and doubles for each further one.
	readPause = 500 * time.Millisecond
	// slowest is the rate, in bytes a second, below which a part is given up.
	slowest = 64 << 10
)

// ParseLocation takes apart what Profile.Location makes, of either profile. It
// reports false for anything else. Object.Check says whether the names are good.
func ParseLocation(location string) (project string, o Object, ok bool) {
	for _, version := range []string{"/v1", "/v2"} {
		if rest, found := strings.CutPrefix(location, version+"/AUTH_"); found {
			project, rest, _ = strings.Cut(rest, "/")
			o.Container, o.Name, _ = strings.Cut(rest, "/")
			return project, o, true
		}
	}
	return "", Object{}, false
}

// ObjectReader reads parts of an object, all of the same version of it. It is safe
// for concurrent use.
type ObjectReader struct {
	c       *Client
	ctx     context.Context // of the reads too, since io.ReaderAt knows none
	target  string
	size    int64
	version version
}

// version tells versions of an object apart.
type version struct{ etag, modified string }

func versionOf(h http.Header) version {
	v := version{etag: h.Get("ETag")}
	if v.etag == "" {
		v.modified = h.Get("Last-Modified") // of Swift's, a new comment changes it
	}
	return v
}

// condition is the value of If-Match that holds an answer to the version. It is
// empty if the store has none: a weak ETag matches nothing (RFC 9110, 13.1.1).
// Swift sends its ETags without quotes, and takes them with them.
func (v version) condition() string {
	if v.etag == "" || strings.HasPrefix(v.etag, "W/") {
		return ""
	}
	return `"` + strings.Trim(v.etag, `"`) + `"`
}

// OpenObject looks an object up, and returns a reader of the version that it has
// now. Reading ends when ctx does.
func (c *Client) OpenObject(ctx context.Context, o Object) (*ObjectReader, error) {
	if c.objects == "" {
		return nil, errors.New("read object: no objects URL is configured")
	}
	if err := o.Check(); err != nil {
		return nil, err
	}
	r := &ObjectReader{c: c, ctx: ctx, target: c.objects + o.path()}
	if err := r.retry(r.lookUp); err != nil {
		return nil, err
	}
	return r, nil
}

// Size is the length of the object in bytes.
func (r *ObjectReader) Size() int64 { return r.size }

// ReadAt implements io.ReaderAt by one request for each call. A passing failure is
// waited out, a few times. If the object has another version now it fails: parts
// of two versions are no file.
func (r *ObjectReader) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, errors.New("read object: negative offset")
	}
	if off >= r.size {
		return 0, io.EOF
	}
	short := int64(len(p)) > r.size-off
	if short {
		p = p[:r.size-off]
	}
	if len(p) == 0 {
		return 0, nil
	}
	if err := r.retry(func() error { return r.fetch(p, off) }); err != nil {
		return 0, err
	}
	if short {
		return len(p), io.EOF
	}
	return len(p), nil
}

func (r *ObjectReader) retry(call func() error) error {
	for try := 1; ; try++ {
		err := call()
		if err == nil {
			return nil
		}
		if r.ctx.Err() != nil {
			return fmt.Errorf("read object: %w", context.Cause(r.ctx))
		}
		again, asked := passing(err)
		if !again || try == readTries {
			return err
		}
		if err := pause(r.ctx, max(readPause<<(try-1), asked)); err != nil {
			return fmt.Errorf("read object: %w", err)
		}
	}
}

// lookUp learns the size and the version.
func (r *ObjectReader) lookUp() error {
	const op = "look up object"
	ctx, cancel := context.WithTimeout(r.ctx, callTimeout)
	defer cancel()
	resp, err := r.send(ctx, op, http.MethodHead, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	switch {
	case resp.StatusCode != http.StatusOK:
		return answerError(op, resp, nil)
	case resp.ContentLength < 0:
		return &Error{Op: op, Status: resp.StatusCode, Message: "The object store does not say how long the object is."}
	}
	r.size, r.version = resp.ContentLength, versionOf(resp.Header)
	return nil
}

// fetch makes one try to fill p.
func (r *ObjectReader) fetch(p []byte, off int64) error {
	const op = "read object"
	ctx, cancel := context.WithTimeout(r.ctx, callTimeout+time.Duration(len(p))*time.Second/slowest)
	defer cancel()
	span := fmt.Sprintf("%d-%d", off, off+int64(len(p))-1)
	header := http.Header{"Range": {"bytes=" + span}}
	if condition := r.version.condition(); condition != "" {
		header.Set("If-Match", condition)
	}
	resp, err := r.send(ctx, op, http.MethodGet, header)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	refused := func(message string) error { return &Error{Op: op, Status: resp.StatusCode, Message: message} }
	switch {
	case resp.StatusCode == http.StatusPreconditionFailed,
		resp.StatusCode == http.StatusPartialContent && versionOf(resp.Header) != r.version:
		return refused("The object was replaced while it was read; try again.")
	case resp.StatusCode == http.StatusOK:
		return refused("The object store does not serve parts of objects.")
	case resp.StatusCode != http.StatusPartialContent:
		body, _ := io.ReadAll(io.LimitReader(resp.Body, maxAnswer)) // the status says enough without
		return answerError(op, resp, body)
	case resp.Header.Get("Content-Range") != fmt.Sprintf("bytes %s/%d", span, r.size):
		return refused("The object store answered with another part of the object than was asked for.")
	}
	if _, err := io.ReadFull(resp.Body, p); err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	return nil
}

func (r *ObjectReader) send(ctx context.Context, op, method string, header http.Header) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, r.target, nil)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", op, err)
	}
	if header != nil {
		req.Header = header
	}
	req.Header.Set("X-Auth-Token", r.c.token.Reveal())
	resp, err := r.c.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", op, err)
	}
	return resp, nil
}
