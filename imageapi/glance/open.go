package glance

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/gophercloud/gophercloud/v2"

	"vmimport/imageapi"
	"vmimport/internal/fault"
	"vmimport/internal/openstack"
)

var errNoData = fault.New(fault.Invalid, "image_without_data", "The image has no data of its own.").
	Try("The image of a server that starts from a volume is such: make an image of the volume.")

// errNoRanges is what comes of most of Glance's stores: of those in its own source, only
// that of files and that of Cinder's volumes can read from the middle of an image. See
// _CAPABILITIES in glance_store/_drivers. Of an image that was opened as one with ranges it
// is worth another attempt, which opens it anew.
var errNoRanges = errors.New("the image comes only as a whole")

// Open implements imageapi.Images.
func (i *Images) Open(ctx context.Context, imageID string) (imageapi.File, error) {
	r, err := i.published(ctx, imageID)
	switch {
	case err != nil:
		return nil, err
	case r.Status != active:
		return nil, imageapi.ErrNotReady.Saw("its status is '%s'", r.Status)
	case r.Size == 0:
		return nil, errNoData
	}
	shown, err := json.Marshal(r.properties)
	if err != nil {
		return nil, errUnavailable.Because(fmt.Errorf("open image: %w", err))
	}
	facts, err := imageapi.FactsOf(shown)
	if fault.KindOf(err) == fault.Internal {
		err = errUnavailable.Because(fmt.Errorf("open image: %w", err))
	}
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(fmt.Appendf(nil, "%q %d %q %q %q", r.ID, r.Size, r.properties["checksum"], r.HashAlgo, r.HashValue))
	f := &file{images: i, id: r.ID, facts: facts, size: r.Size, version: fmt.Sprintf("%x", sum)}
	if err := f.probe(ctx); err != nil {
		return nil, err
	}
	return f, nil
}

// file is the data of an active image, which Glance lets nobody change.
type file struct {
	images  *Images
	id      string
	facts   imageapi.Facts
	size    int64
	version string
}

func (f *file) Facts() imageapi.Facts { return f.facts }
func (f *file) Size() int64           { return f.size }
func (f *file) Version() string       { return f.version }

const opRead = "read image"

// probe finds out whether the file can be read from its middle, which no other request tells.
func (f *file) probe(ctx context.Context) error {
	body, err := f.get(ctx, "0-0", 1)
	switch {
	case err == nil:
		return body.Close()
	case errors.Is(err, errNoRanges):
		f.facts.Streams = true
		return nil
	case errors.Is(err, imageapi.ErrGone):
		return imageapi.ErrNoImage
	}
	return err
}

// ReadRange implements imageapi.File.
func (f *file) ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	if off < 0 || n <= 0 || off > f.size-n {
		return nil, fmt.Errorf("%s: range %d+%d is not within its %d bytes", opRead, off, n, f.size)
	}
	if !f.facts.Streams && n < f.size {
		return f.get(ctx, fmt.Sprintf("%d-%d", off, off+n-1), n)
	}
	body, err := f.get(ctx, "", f.size)
	if err != nil {
		return nil, err
	}
	if _, err := io.CopyN(io.Discard, body, off); err != nil {
		_ = body.Close()
		return nil, err
	}
	return struct {
		io.Reader
		io.Closer
	}{io.LimitReader(body, n), body}, nil
}

// get opens the n bytes of a span, or all of the file if span is empty.
func (f *file) get(ctx context.Context, span string, n int64) (io.ReadCloser, error) {
	resp, err := f.images.data(ctx, f.id, span)
	if err != nil {
		return nil, err
	}
	if err := f.check(ctx, resp, span, n); err != nil {
		_ = resp.Body.Close() // unread, it takes its connection along
		return nil, err
	}
	return &ranged{ctx: ctx, raw: resp.Body}, nil
}

// data asks for bytes of an image: all of them, or a span of the form "first-last". The
// answer may have any status but 401.
func (i *Images) data(ctx context.Context, imageID, span string) (resp *http.Response, err error) {
	err = i.cloud.Call(ctx, openstack.Image, func(c *gophercloud.ServiceClient) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, versioned(c.Endpoint)+"images/"+imageID+"/file", nil)
		if err != nil {
			return err
		}
		req.Header.Set("X-Auth-Token", c.Token())
		if span != "" {
			req.Header.Set("Range", "bytes="+span)
		}
		if resp, err = c.HTTPClient.Do(req); err != nil {
			return err
		}
		if resp.StatusCode == http.StatusUnauthorized {
			_ = resp.Body.Close()
			// What Call knows a refused token by.
			return gophercloud.ErrUnexpectedResponseCode{Method: req.Method, Actual: resp.StatusCode}
		}
		return nil
	})
	if err != nil {
		return nil, failure(ctx, opRead, err)
	}
	return resp, nil
}

// check returns nil if resp holds the n bytes of a span, or all if span is empty.
func (f *file) check(ctx context.Context, resp *http.Response, span string, n int64) error {
	want := ""
	switch status := resp.StatusCode; {
	case status == http.StatusPartialContent:
		want = fmt.Sprintf("bytes %s/%d", span, f.size)
	case status == http.StatusOK && span == "":
	case status == http.StatusOK:
		return errUnavailable.Because(fmt.Errorf("%s: %w", opRead, errNoRanges))
	case status == http.StatusBadRequest && span != "":
		return errUnavailable.Because(fmt.Errorf("%w: %w", errNoRanges, &statusError{opRead, status, excerpt(resp.Body)}))
	default:
		return f.explain(ctx, answered(opRead, status, excerpt(resp.Body)))
	}
	if got := resp.Header.Get("Content-Range"); got != want || resp.ContentLength != n {
		return errUnavailable.Because(fmt.Errorf("%s: got %q with %d bytes, not %q with %d", opRead, got, resp.ContentLength, want, n))
	}
	return nil
}

// explain returns what err, an answer that is no success, means: ErrGone if the image is
// no more. Between the two, the data of an image that is being deleted can be missing.
func (f *file) explain(ctx context.Context, err error) error {
	if _, now := f.images.show(ctx, f.id); errors.Is(now, imageapi.ErrNoImage) {
		return imageapi.ErrGone.Because(err)
	}
	return err
}

// ranged is the body of an answer whose length is known: to read less is an error
// of the client's.
type ranged struct {
	ctx context.Context // of the range, which the body belongs to
	raw io.ReadCloser
	err error // ended every later Read
}

func (b *ranged) Read(p []byte) (int, error) {
	if b.err == nil && b.ctx.Err() != nil {
		b.err = failure(b.ctx, opRead, b.ctx.Err()) // even if bytes are buffered
	}
	if b.err != nil {
		return 0, b.err
	}
	n, err := b.raw.Read(p)
	if err != nil && err != io.EOF {
		err = failure(b.ctx, opRead, err)
	}
	b.err = err
	return n, err
}

func (b *ranged) Close() error { return b.raw.Close() }
