package storage

import (
	"cmp"
	"context"
	"errors"
	"io"
	"time"
)

// Sequential returns obj for a Fetch with Parallel 1, where a range of obj costs all bytes
// before it. It reads obj from its front, all in one range, and cuts consecutive ranges out
// of that. A range further on passes over what is between; one further back, or the next
// one after a failure, starts again at the front.
//
// While bytes are passed over, which may take long, a range gives none. So Sequential has a
// watch of its own: what goes for stallAfter, by default that of Options, without a byte of obj
// fails, and counts among the stalls of a Fetch. The StallAfter of the Fetch has to be
// longer than it takes to read all of obj.
func Sequential(obj Object, stallAfter time.Duration) *SequentialObject {
	return &SequentialObject{Object: obj, stallAfter: cmp.Or(stallAfter, defaultStallAfter), turn: make(chan struct{}, 1)}
}

// SequentialObject is an Object that is read from front to back. A range waits until the one
// before it has been read, has failed, or is closed.
type SequentialObject struct {
	Object
	// Throttle bounds the pace of what is passed over, which waits for it piece by piece; for
	// the ranges themselves a Fetch has it in its Options. nil: nothing does.
	Throttle *Throttle

	stallAfter time.Duration

	turn  chan struct{} // held by the range that is under way, who alone may touch front
	front *front        // nil: nothing is open
}

// ReadRange implements Object.
func (s *SequentialObject) ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	select {
	case s.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	if s.front == nil || s.front.at > off || s.front.ctx.Err() != nil {
		s.drop()
		s.front = newFront(ctx, s.Object, s.stallAfter)
	}
	f := s.front
	r := &sequentialRange{of: s, ctx: ctx, left: n}
	r.release = context.AfterFunc(ctx, func() { f.dog.cancel(context.Cause(ctx)) })
	if err := f.pass(ctx, off, s.Throttle); err != nil {
		r.end(err)
		return nil, err
	}
	return r, nil
}

// Close lets go of what is open between ranges. It waits for the last one. It may be called
// more than once; a range after it begins anew.
func (s *SequentialObject) Close() error {
	s.turn <- struct{}{}
	s.drop()
	<-s.turn
	return nil
}

func (s *SequentialObject) drop() {
	if s.front != nil {
		s.front.close()
		s.front = nil
	}
}

// sequentialRange is a range that is cut out of the front.
type sequentialRange struct {
	of      *SequentialObject
	ctx     context.Context // of the range, which the body belongs to
	release func() bool     // the front from ctx; false: that has ended it
	left    int64
	err     error // ended every later Read
}

func (r *sequentialRange) Read(p []byte) (n int, err error) {
	switch {
	case r.err != nil:
		return 0, r.err
	case r.ctx.Err() != nil: // which the front may not have heard of yet
		r.end(context.Cause(r.ctx))
		return 0, r.err
	case len(p) == 0:
		return 0, nil
	}
	n, err = r.of.front.read(p[:min(int64(len(p)), r.left)])
	r.left -= int64(n)
	switch {
	case r.left == 0 && (err == nil || err == io.EOF):
		r.end(io.EOF)
		return n, nil
	case err != nil:
		r.end(err)
	}
	return n, err
}

var errClosed = errors.New("the range is closed")

// Close implements io.Closer. What is behind the range stays open for the next one.
func (r *sequentialRange) Close() error {
	r.end(errClosed)
	return nil
}

// end gives the turn to the next range, once. After a failure that has to begin anew.
func (r *sequentialRange) end(why error) {
	if r.err != nil {
		return
	}
	r.err = why
	if !r.release() || why != io.EOF && why != errClosed {
		r.of.drop()
	}
	<-r.of.turn
}

// front is one reading of an object from its first byte on.
type front struct {
	obj  Object
	ctx  context.Context // of the body, which outlives the range that it was opened for
	dog  *watchdog       // awake only while something is waited for
	body io.ReadCloser   // nil before the first byte is asked for
	at   int64
}

func newFront(ctx context.Context, obj Object, stallAfter time.Duration) *front {
	f := &front{obj: obj}
	f.ctx, f.dog = watch(context.WithoutCancel(ctx), stallAfter)
	return f
}

func (f *front) close() {
	f.dog.stop()
	if f.body != nil {
		_ = f.body.Close() // all that it had to say, a read has said
	}
}

// passBytes is how much is passed over at a time.
const passBytes = 128 << 10

// pass reads up to off, for a range that lives as long as ctx, and drops what it reads. While it waits
// for the pace nothing is expected of obj.
func (f *front) pass(ctx context.Context, off int64, throttle *Throttle) error {
	if f.body == nil {
		if err := f.open(); err != nil {
			return err
		}
	}
	if f.at == off {
		return nil
	}
	buf := make([]byte, min(passBytes, off-f.at))
	for f.at < off {
		n, err := throttle.Wait(ctx, min(int64(len(buf)), off-f.at))
		if err != nil {
			return err
		}
		read, err := f.read(buf[:n])
		throttle.Take(int64(read))
		if err != nil {
			return err
		}
	}
	return nil
}

func (f *front) open() (err error) {
	f.dog.feed()
	defer f.dog.rest()
	f.body, err = f.obj.ReadRange(f.ctx, 0, f.obj.Size())
	return f.meaning(err)
}

// read is io.Reader's, but for a p that is not empty returns bytes or an error.
func (f *front) read(p []byte) (n int, err error) {
	f.dog.feed()
	defer f.dog.rest()
	for n == 0 && err == nil {
		if err = context.Cause(f.ctx); err == nil {
			n, err = f.body.Read(p)
		}
	}
	f.at += int64(n)
	if err == io.EOF && f.at < f.obj.Size() {
		err = io.ErrUnexpectedEOF
	}
	return n, f.meaning(err)
}

// meaning returns why something failed. That the context ended, the body tells in words of
// its own.
func (f *front) meaning(err error) error {
	if err != nil && err != io.EOF && f.ctx.Err() != nil {
		return context.Cause(f.ctx)
	}
	return err
}
