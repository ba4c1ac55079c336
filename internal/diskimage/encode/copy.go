package encode

import (
	"context"
	"io"
)

// copier is the Encoder of Copy.
type copier struct{ progress }

func newCopier(ctx context.Context, out io.Writer, opt Options) (Encoder, error) {
	p, err := newProgress(ctx, out, opt)
	if err == nil && (opt.Offset != opt.At || len(opt.State) > 0) {
		p.cancel(ErrState)
		err = ErrState
	}
	if err != nil {
		return nil, err
	}
	return &copier{p}, nil
}

// Write implements Encoder.
func (c *copier) Write(p []byte) (int, error) {
	if err := c.ready(len(p)); err != nil {
		return 0, err
	}
	n, err := c.sink.Write(p)
	c.at += int64(n)
	c.err = err
	return n, err
}

// Cut implements Encoder.
func (c *copier) Cut() (state []byte, ok bool, err error) {
	err = c.ready(0)
	return nil, err == nil, err
}

// Finish implements Encoder.
func (c *copier) Finish() (head []byte, err error) {
	if err := c.complete(); err != nil {
		return nil, err
	}
	c.err = errFinished
	return nil, nil
}

// Close implements Encoder.
func (c *copier) Close() { c.cancel(errClosed) }
