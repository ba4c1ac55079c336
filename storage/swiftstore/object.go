package swiftstore

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"

	"vmimport/storage"
)

// object is an object as Open found it. It never changes.
type object struct {
	account *account
	pins    []pin // links and manifests that lead to the parts
	parts   []part
	size    int64
	version string
}

func (o *object) Size() int64     { return o.size }
func (o *object) Version() string { return o.version }

// digest makes the version, of all that tells this object from another. The time at
// which it was stored is in it, and so another upload of the same bytes is another
// version; so is a change of its metadata. MD5 alone would let someone prepare two
// objects that look the same.
func (o *object) digest(found state) string {
	h := sha256.New()
	fmt.Fprintf(h, "%q %q\n", found.etag, found.stamp)
	for _, p := range o.pins {
		fmt.Fprintf(h, "by %q %q %q %#v\n", p.at.container, p.at.name, p.at.version, p.was)
	}
	for _, p := range o.parts {
		fmt.Fprintf(h, "of %q %q %q %q %d %d+%d %q\n", p.at.container, p.at.name, p.at.version, p.etag, p.size, p.off, p.n, p.data)
	}
	return fmt.Sprintf("%x", h.Sum(nil))
}

// pin is something that must stay as it was, besides the bytes themselves.
type pin struct {
	at    place
	query string
	was   state
	looks int // how often to look for it; lists lag, and not all replicas alike
}

// held fails if something is not as it was.
func (o *object) held(ctx context.Context) error {
	for _, p := range o.pins {
		if err := o.account.holds(ctx, p); err != nil {
			return err
		}
	}
	return nil
}

func (a *account) holds(ctx context.Context, p pin) error {
	var now state
	for range p.looks {
		var err error
		if now, err = a.head(ctx, "read object", p.at, p.query, storage.ErrChanged); err != nil {
			return err
		}
		if now == p.was {
			return nil
		}
	}
	if now.before(p.was.stamp) {
		return errBehind
	}
	return storage.ErrChanged
}

func (o *object) ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	if off < 0 || n <= 0 || off > o.size-n {
		return nil, fmt.Errorf("read object: range %d+%d is not within its %d bytes", off, n, o.size)
	}
	if err := o.held(ctx); err != nil {
		return nil, err
	}
	b := &body{ctx: ctx, object: o, parts: cut(o.parts, off, n)}
	if err := b.next(); err != nil {
		return nil, err
	}
	return b, nil
}

// open asks for a part.
func (o *object) open(ctx context.Context, p part) (io.ReadCloser, error) {
	const op = "read object"
	if p.data != nil {
		return io.NopCloser(bytes.NewReader(p.data[p.off : p.off+p.n])), nil
	}
	answer, err := o.account.send(ctx, request{
		op: op, method: http.MethodGet, path: p.at.path(), query: p.at.query(asStored),
		// A replica that has another version is passed over by Swift, for one that
		// has this; so there is no need to ask for the newest.
		header: map[string]string{"If-Match": `"` + p.etag + `"`, "Range": fmt.Sprintf("bytes=%d-%d", p.off, p.off+p.n-1)},
	})
	if err != nil {
		return nil, err
	}
	switch answer.StatusCode {
	case http.StatusPartialContent:
		err = o.check(answer, p)
	case http.StatusNotFound, http.StatusGone, http.StatusPreconditionFailed, http.StatusRequestedRangeNotSatisfiable:
		err = o.explain(ctx, p)
	default:
		err = refused(op, answer.StatusCode, storage.ErrChanged)
	}
	if err != nil {
		_ = answer.Body.Close() // unread, it takes its connection along
		return nil, err
	}
	return answer.Body, nil
}

// check compares the header of an answer with what was asked for. A proxy or cache
// that ignores If-Match or Range shows here.
func (o *object) check(answer *http.Response, p part) error {
	now, err := stateOf("read object", answer, storage.ErrChanged)
	if err != nil {
		return err
	}
	if !p.is(now) {
		return p.changed(now)
	}
	got, want := answer.Header.Get("Content-Range"), fmt.Sprintf("bytes %d-%d/%d", p.off, p.off+p.n-1, p.size)
	if got != want || now.size >= 0 && now.size != p.n {
		return storage.ErrUnavailable.Because(fmt.Errorf("read object: asked for %q, got %q with %d bytes", want, got, now.size))
	}
	return nil
}

// explain finds out why Swift does not have a part. It could be that the replicas
// it asked are behind, which passes.
func (o *object) explain(ctx context.Context, p part) error {
	now, err := o.account.head(ctx, "read object", p.at, asStored, storage.ErrChanged)
	switch {
	case errors.Is(err, storage.ErrChanged):
		return p.missing()
	case err != nil:
		return err
	case p.is(now) && now.size == p.size:
		return errBehind
	}
	return p.changed(now)
}

// is reports whether now is the state of the object that p is of.
func (p part) is(now state) bool {
	return now.plain() && now.etag == p.etag && (!p.whole() || now.stamp == p.stamp)
}

// changed says what it means that there is something else in the place of p.
func (p part) changed(now state) error {
	switch {
	case p.whole() && now.before(p.stamp):
		return errBehind
	case !now.plain() && !p.whole():
		// It may always have been so: a manifest does not tell.
		return errUnsupported.Saw("a part is a link, or a large object itself")
	}
	return p.missing()
}

// body gives exactly the bytes of its parts, or an error.
type body struct {
	ctx    context.Context // of the range, which the body belongs to
	object *object
	parts  []part // not yet opened
	raw    io.ReadCloser
	left   int64 // of raw
	err    error // ended every later Read
}

// next opens the next part.
func (b *body) next() error {
	raw, err := b.object.open(b.ctx, b.parts[0])
	if err != nil {
		return err
	}
	b.raw, b.left, b.parts = raw, b.parts[0].n, b.parts[1:]
	return nil
}

func (b *body) Read(p []byte) (int, error) {
	if b.err == nil && b.ctx.Err() != nil {
		b.err = fmt.Errorf("read object: %w", context.Cause(b.ctx)) // even if bytes are buffered
	}
	if b.err != nil || len(p) == 0 {
		return 0, b.err
	}
	if b.left == 0 {
		_ = b.raw.Close() // read to its end
		if b.err = b.next(); b.err != nil {
			return 0, b.err
		}
	}
	n, err := b.raw.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	if b.left == 0 && err == nil {
		// The end is looked for before the last bytes are given out: a reader
		// that counts would not come back for it.
		err = expectEnd(b.raw)
	}
	switch {
	case err == nil:
		return n, nil
	case err == io.EOF && b.left == 0:
		if len(b.parts) == 0 {
			b.err = io.EOF
		}
		return n, b.err
	case err == io.EOF:
		err = io.ErrUnexpectedEOF
	}
	b.err = unanswered(b.ctx, "read object", err)
	return 0, b.err
}

// expectEnd returns io.EOF if r ends here.
func expectEnd(r io.Reader) error {
	n, err := io.ReadFull(r, make([]byte, 1))
	if n > 0 {
		return errLonger
	}
	return err
}

var errLonger = errors.New("it is longer than it should be")

func (b *body) Close() error {
	if b.err == nil || b.err == io.EOF {
		b.err = errClosed
	}
	if err := b.raw.Close(); err != nil {
		return fmt.Errorf("close object: %w", err)
	}
	return nil
}

var errClosed = errors.New("read object: the body is closed")
