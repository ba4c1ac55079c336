package swiftstore

import (
	"bytes"
	"context"
	"crypto/md5"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/gophercloud/gophercloud/v2"

	"vmimport/storage"
)

// content is what an object is to be made of: a reader of exactly so many bytes. It can be
// read again if that can be rewound.
type content struct {
	from  io.Reader
	size  int64
	start int64 // where it begins; negative: it cannot be rewound
	moved bool  // it was read from
}

func newContent(from io.Reader, size int64) *content {
	c := &content{from: from, size: size, start: -1}
	if s, ok := from.(io.Seeker); ok {
		if at, err := s.Seek(0, io.SeekCurrent); err == nil {
			c.start = at
		}
	}
	return c
}

// begin has c read from its beginning.
func (c *content) begin() error {
	if !c.moved {
		return nil
	}
	if c.start < 0 {
		return errors.New("the body cannot be read again")
	}
	_, err := c.from.(io.Seeker).Seek(c.start, io.SeekStart)
	return err
}

// check reads c to its end, and fails if it does not have that MD5.
func (c *content) check(sum []byte) error {
	if err := c.begin(); err != nil {
		return storage.ErrUnavailable.Because(fmt.Errorf("read body: %w", err))
	}
	h := md5.New()
	if _, err := io.Copy(h, &exactly{content: c, left: c.size}); err != nil {
		return err
	}
	if !bytes.Equal(h.Sum(nil), sum) {
		return storage.ErrPart.Because(errors.New("read body: it has another MD5"))
	}
	return nil
}

// exactly reads content once, as long as it was announced, or fails. The last bytes it gives
// only if the content ends there.
type exactly struct {
	*content
	left int64
	err  error // ErrPart, with the reader's; io.EOF once all is read
}

func (e *exactly) Read(p []byte) (int, error) {
	if e.err == nil && e.left == 0 {
		e.err = io.EOF
	}
	if e.err != nil || len(p) == 0 {
		return 0, e.err
	}
	e.moved = true
	n, err := e.from.Read(p[:min(int64(len(p)), e.left)])
	e.left -= int64(n)
	if e.left == 0 && err == nil {
		err = expectEnd(e.from)
	}
	switch {
	case err == nil:
		return n, nil
	case err == io.EOF && e.left == 0:
		e.err = err
		return n, err
	case err == io.EOF:
		err = io.ErrUnexpectedEOF
	}
	e.err = storage.ErrPart.Because(fmt.Errorf("read body: %w", err))
	return 0, e.err
}

// freight is content on its way. The client may read it after it has returned an answer, so
// it is taken away then.
type freight struct {
	exactly
	ctx   context.Context // of the sender, which takes the content away when it ends
	stall *time.Timer     // runs while nobody reads
	limit time.Duration
	turn  chan struct{} // held while the content is read
	fate  atomic.Int32
}

// What becomes of freight, once and for all.
const (
	handedOver = 1 + iota // to its last byte
	recalled              // before
)

// become decides the fate of b, and reports whether it is this one.
func (b *freight) become(fate int32) bool {
	b.fate.CompareAndSwap(0, fate)
	return b.fate.Load() == fate
}

func (b *freight) Read(p []byte) (int, error) {
	b.turn <- struct{}{}
	defer func() { <-b.turn }()
	if b.over() {
		return 0, errOver
	}
	// Here it is the content that is waited for.
	b.stall.Stop()
	defer b.stall.Reset(b.limit)
	n, err := b.exactly.Read(p)
	if b.over() || err == io.EOF && !b.become(handedOver) {
		return 0, errOver
	}
	return n, err
}

// over reports whether the content was taken away.
func (b *freight) over() bool {
	if b.ctx.Err() != nil {
		b.become(recalled)
	}
	return b.fate.Load() == recalled
}

// end takes the content away, once a read that is under way has ended, and returns why it was
// not read to its end, if that was its fault.
func (b *freight) end() error {
	b.become(recalled)
	b.turn <- struct{}{}
	defer func() { <-b.turn }()
	b.stall.Stop()
	if b.err != io.EOF {
		return b.err
	}
	return nil
}

var (
	errOver    = errors.New("the request is over")
	errStalled = errors.New("it stands still")
)

// maxReplyBytes is far above what Swift can say of all parts of a large object.
const maxReplyBytes = 4 << 20

// upload sends content with a request, and with another token once more if the first is
// refused. It returns Swift's answer, whatever its status but 401.
func (a *account) upload(ctx context.Context, r request, c *content) (*reply, error) {
	var got *reply
	var broken error // of the content
	err := a.store.call(ctx, func(sc *gophercloud.ServiceClient) (err error) {
		if err := c.begin(); err != nil {
			return err
		}
		got, broken, err = a.carry(ctx, r, sc.Token(), c)
		if err == nil && got.tokenRefused() {
			return tokenRefused(r.method)
		}
		return err
	})
	switch {
	case err != nil && broken == nil, ctx.Err() != nil:
		return nil, unanswered(ctx, r.op, err)
	case broken != nil:
		return nil, broken
	}
	return got, nil
}

// carry makes one request. It lasts no longer than something moves.
//
// If ctx ends when the content was sent completely, it waits for the answer: Swift may store the
// object even if nobody listens, and then behind the back of a Discard that comes next.
func (a *account) carry(ctx context.Context, r request, token string, c *content) (got *reply, broken, err error) {
	if ctx.Err() != nil {
		return nil, nil, context.Cause(ctx)
	}
	moving, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cancel(nil)
	limit := a.store.patience
	stall := time.AfterFunc(limit, func() { cancel(errStalled) })
	defer stall.Stop()
	req, err := a.request(moving, r, token)
	if err != nil {
		return nil, nil, err
	}
	b := &freight{exactly: exactly{content: c, left: c.size}, ctx: ctx, stall: stall, limit: limit, turn: make(chan struct{}, 1)}
	if req.ContentLength = c.size; c.size > 0 {
		req.Body = io.NopCloser(b)
		// So that a refusal is read before the body is in its way.
		req.Header.Set("Expect", "100-continue")
	} else {
		b.become(handedOver)
	}
	defer context.AfterFunc(ctx, func() {
		if !b.become(recalled) {
			select {
			case <-time.After(a.store.parting):
			case <-moving.Done():
			}
		}
		cancel(context.Cause(ctx))
	})()
	// A connection that was left over could end just now, and not every body comes twice.
	req.Close = true
	answer, err := a.store.client.Do(req)
	if err == nil {
		defer answer.Body.Close()
		got, err = readReply(answer, func() { stall.Reset(limit) })
	}
	if err != nil && context.Cause(moving) == errStalled {
		err = errStalled
	}
	return got, b.end(), err
}

// readReply reads an answer, and reports each sign of life.
func readReply(answer *http.Response, alive func()) (*reply, error) {
	text, err := io.ReadAll(io.LimitReader(lively{answer.Body, alive}, maxReplyBytes))
	if err != nil {
		return nil, err
	}
	r := &reply{status: answer.StatusCode, etag: strings.Trim(answer.Header.Get("ETag"), `"`), text: text}
	r.unwrap()
	return r, nil
}

// lively reports each read that has brought something.
type lively struct {
	io.Reader
	alive func()
}

func (l lively) Read(p []byte) (int, error) {
	n, err := l.Reader.Read(p)
	if n > 0 {
		l.alive()
	}
	return n, err
}
