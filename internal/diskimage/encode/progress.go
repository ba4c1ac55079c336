package encode

import (
	"context"
	"errors"
	"fmt"
	"io"

	"vmimport/internal/diskimage"
)

var (
	errClosed   = errors.New("encoder was closed")
	errFinished = errors.New("encoder has finished")
)

// sink is where the file goes.
type sink struct {
	ctx context.Context
	out io.Writer
}

func (s sink) Write(p []byte) (int, error) {
	if err := context.Cause(s.ctx); err != nil {
		return 0, err
	}
	n, err := s.out.Write(p)
	if err != nil {
		err = fmt.Errorf("write encoded image: %w", err)
	}
	return n, err
}

// progress is how far an encoder is.
type progress struct {
	sink   sink
	cancel context.CancelCauseFunc // of the context of sink
	size   int64
	at     int64 // bytes of the disk that were taken
	err    error // the first, for good
}

// newProgress fails for what no form takes as options.
func newProgress(ctx context.Context, out io.Writer, opt Options) (progress, error) {
	fresh := len(opt.State) == 0 && (opt.Offset == 0 || opt.Offset == HeadBytes(opt.Form, opt.Size))
	switch {
	case opt.Size < 0:
		return progress{}, diskimage.CheckSize(opt.Size)
	case opt.At < 0 || opt.At > opt.Size || opt.Offset < 0 || opt.At == 0 && !fresh:
		return progress{}, ErrState
	}
	ctx, cancel := context.WithCancelCause(ctx)
	return progress{sink: sink{ctx, out}, cancel: cancel, size: opt.Size, at: opt.At}, nil
}

// ready fails if the encoder has failed or ended, if its context has, or if n more bytes
// are too many.
func (p *progress) ready(n int) error {
	if p.err == nil {
		p.err = context.Cause(p.sink.ctx)
	}
	if p.err == nil && int64(n) > p.size-p.at {
		p.err = fmt.Errorf("encode: %d bytes at %d, the disk has %d", n, p.at, p.size)
	}
	return p.err
}

// complete fails as ready, and if the disk has not come to its end.
func (p *progress) complete() error {
	if p.ready(0) == nil && p.at < p.size {
		p.err = fmt.Errorf("encode: the disk has ended after %d bytes of %d", p.at, p.size)
	}
	return p.err
}

func (p *progress) fail(err error) error {
	p.err = err
	return err
}
