package encode

import (
	"bytes"
	"context"
	"errors"
	"io"

	"vmimport/internal/diskimage/qcow2"
	"vmimport/internal/diskimage/vmdk"
)

// layout puts the units of a disk into the file of a form.
type layout interface {
	// Put is called with units by rising number. Of a sparse form those that are zeros
	// do not come.
	Put(number int64, packed []byte) error
	// State writes what comes before the unit of that number, which is behind those that
	// were put, and returns what a later layout needs to go on with it.
	State(number int64) ([]byte, error)
	// Finish writes what comes behind the last unit.
	Finish() (head []byte, err error)
}

// traits are what forms of units differ in, besides their layout.
type traits struct {
	unit      int64         // bytes
	maxPacked int64         // the most that one takes when it is compressed
	sparse    bool          // units of zeros are left out
	padded    bool          // the last unit is filled up with zeros
	anywhere  bool          // cuts are possible within a unit
	newPacker func() packer // of a worker; nil if units are not compressed
}

// file is the Encoder of forms that consist of units.
type file struct {
	progress
	traits
	layout  layout
	crew    *crew // nil if units are not compressed
	current *unit // that is being filled, nil between two of them
	free    []*unit
}

// newFile returns the encoder of a form of units, with the layout that begin makes of the
// form's own part of opt.
func newFile(ctx context.Context, out io.Writer, opt Options, t traits, begin func(io.Writer) (layout, error)) (Encoder, error) {
	if !t.anywhere && opt.At%t.unit != 0 && opt.At != opt.Size {
		return nil, ErrState
	}
	p, err := newProgress(ctx, out, opt)
	if err != nil {
		return nil, err
	}
	f := &file{progress: p, traits: t}
	if f.layout, err = begin(p.sink); err != nil {
		f.cancel(err)
		if errors.Is(err, vmdk.ErrStreamState) || errors.Is(err, qcow2.ErrStreamState) {
			err = ErrState
		}
		return nil, err
	}
	if t.newPacker != nil {
		f.crew = newCrew(f.sink.ctx, opt.Workers, max(t.unit, t.maxPacked), t.newPacker)
	}
	return f, nil
}

// Write implements Encoder.
func (f *file) Write(p []byte) (int, error) {
	if err := f.ready(len(p)); err != nil {
		return 0, err
	}
	for rest := p; len(rest) > 0; {
		if f.current == nil {
			if err := f.begin(); err != nil {
				return len(p) - len(rest), f.fail(err)
			}
		}
		room := f.unit - f.at%f.unit
		n := min(room, int64(len(rest)))
		f.current.data = append(f.current.data, rest[:n]...)
		f.at += n
		rest = rest[n:]
		if n == room {
			if err := f.end(); err != nil {
				return len(p) - len(rest), f.fail(err)
			}
		}
	}
	return len(p), nil
}

// begin begins the next unit.
func (f *file) begin() error {
	if f.crew != nil && f.crew.full() {
		if err := f.retire(); err != nil {
			return err
		}
	}
	if n := len(f.free); n > 0 {
		f.current, f.free = f.free[n-1], f.free[:n-1]
	} else {
		f.current = &unit{data: make([]byte, 0, max(f.unit, f.maxPacked)), done: make(chan error, 1)}
	}
	f.current.number = f.at / f.unit
	f.current.data = f.current.data[:0]
	return nil
}

// end has the current unit written, if there is one, after those before it.
func (f *file) end() error {
	u := f.current
	f.current = nil
	switch {
	case u == nil:
		return nil
	case f.sparse && zeros(u.data):
		f.free = append(f.free, u)
		return nil
	}
	if f.padded {
		u.data = append(u.data, make([]byte, f.unit-int64(len(u.data)))...)
	}
	if f.crew != nil {
		f.crew.give(u)
		return nil
	}
	f.free = append(f.free, u)
	return f.layout.Put(u.number, u.data)
}

// retire writes the oldest unit that is being compressed.
func (f *file) retire() error {
	u, err := f.crew.fetch()
	if err != nil {
		return err
	}
	f.free = append(f.free, u)
	return f.layout.Put(u.number, u.data)
}

// drain writes all units.
func (f *file) drain() error {
	if err := f.end(); err != nil {
		return err
	}
	for f.crew != nil && len(f.crew.queue) > 0 {
		if err := f.retire(); err != nil {
			return err
		}
	}
	return nil
}

// Cut implements Encoder.
func (f *file) Cut() (state []byte, ok bool, err error) {
	if err := f.ready(0); err != nil {
		return nil, false, err
	}
	switch {
	case f.at == 0:
		return nil, true, nil
	case !f.anywhere && f.at%f.unit != 0 && f.at != f.size:
		return nil, false, nil
	}
	if err := f.drain(); err != nil {
		return nil, false, f.fail(err)
	}
	if state, err = f.layout.State(divide(f.at, f.unit)); err != nil {
		return nil, false, f.fail(err)
	}
	return state, true, nil
}

// Finish implements Encoder.
func (f *file) Finish() ([]byte, error) {
	if err := f.complete(); err != nil {
		return nil, err
	}
	if err := f.drain(); err != nil {
		return nil, f.fail(err)
	}
	head, err := f.layout.Finish()
	if err != nil {
		return nil, f.fail(err)
	}
	f.err = errFinished
	return head, nil
}

// Close implements Encoder.
func (f *file) Close() {
	f.cancel(errClosed)
	if f.crew != nil {
		f.crew.wg.Wait()
	}
}

var zeroPage [4 << 10]byte

// zeros reports whether all bytes of b are zeros.
func zeros(b []byte) bool {
	for len(b) > len(zeroPage) {
		if !bytes.Equal(b[:len(zeroPage)], zeroPage[:]) {
			return false
		}
		b = b[len(zeroPage):]
	}
	return bytes.Equal(b, zeroPage[:len(b)])
}

// divide is n / by, rounded up.
func divide(n, by int64) int64 { return (n + by - 1) / by }
