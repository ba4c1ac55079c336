package glance

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"vmimport/internal/openstack"
)

// sending is the request that carries an image.
type sending struct {
	body   *body
	detach func() bool // from the attempt's context
	cancel context.CancelCauseFunc
	done   chan struct{}
	err    error // once done
}

var (
	errAbandoned = errors.New("the upload was abandoned")
	errStalled   = errUnavailable.Because(errors.New("it stands still"))
	errTooEarly  = errUnavailable.Because(errors.New("send image: the answer came before the end of the image"))
)

// send begins to send an image of that many bytes, or of an unknown number if it is
// negative. It is one request that is never made again: it has a token of its own,
// that no renewal can get in the way of.
func (i *Images) send(ctx context.Context, imageID string, length int64) (*sending, error) {
	token, endpoint, err := i.cloud.Fresh(ctx, openstack.Image)
	if err != nil {
		return nil, err
	}
	request, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	s := &sending{body: newBody(i.opt.KeepAlive), cancel: cancel, done: make(chan struct{})}
	w := &watched{s.body, time.AfterFunc(i.opt.AnswerTimeout, func() { s.abort(errStalled) }), i.opt.AnswerTimeout}
	req, err := http.NewRequestWithContext(request, http.MethodPut, versioned(endpoint)+"images/"+imageID+"/file", w)
	if err != nil {
		w.stall.Stop()
		cancel(err)
		return nil, fmt.Errorf("send image: %w", err)
	}
	req.ContentLength = length
	req.Header.Set("X-Auth-Token", token)
	req.Header.Set("Content-Type", "application/octet-stream")
	// So that a refusal is read before the body is in its way.
	req.Header.Set("Expect", "100-continue")
	// A connection that was left over could end just now, and the body comes only once.
	req.Close = true
	s.detach = context.AfterFunc(ctx, func() { s.abort(context.Cause(ctx)) })
	go func() {
		defer close(s.done)
		defer s.detach()
		defer w.stall.Stop()
		s.err = i.exchange(req, s.body)
		cancel(errNoBody)
		s.body.giveUp(errNoBody)
	}()
	return s, nil
}

// exchange returns nil if Glance has stored the body. It ends no later than the
// body's reader.
func (i *Images) exchange(req *http.Request, b *body) error {
	const op = "send image"
	resp, err := i.client.Do(req)
	if err != nil {
		return failure(req.Context(), op, err)
	}
	defer resp.Body.Close()
	switch {
	case resp.StatusCode != http.StatusNoContent:
		return answered(op, resp.StatusCode, excerpt(resp.Body))
	case !b.sent():
		return errTooEarly
	}
	return nil
}

// abort ends the request. The client waits for the body's reader, whatever becomes of
// the request, so that must not wait for anything either.
func (s *sending) abort(err error) {
	s.cancel(err)
	s.body.giveUp(err)
}

// wait returns how the request ended.
func (s *sending) wait(ctx context.Context) error {
	select {
	case <-s.done:
		return s.err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// stop ends the request, and returns when it has ended, and whether it was broken off: it
// had no answer.
func (s *sending) stop() (broken bool) {
	s.detach()
	s.abort(errAbandoned)
	<-s.done
	return s.err != nil && statusOf(s.err) == 0
}

// watched is a body whose reader has only so much time between two reads, and after
// the last.
type watched struct {
	*body
	stall *time.Timer
	limit time.Duration
}

// Read implements io.Reader. Here it is the other side that is waited for.
func (w *watched) Read(p []byte) (int, error) {
	w.stall.Stop()
	defer w.stall.Reset(w.limit)
	return w.body.Read(p)
}
