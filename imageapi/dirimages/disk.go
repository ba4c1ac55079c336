package dirimages

import (
	"bytes"
	"errors"
	"iter"
	"os"
	"sync"
	"sync/atomic"

	"vmimport/internal/fault"
)

// blockBytes is the unit in which zeros are looked for. It is the block size of
// the usual file systems; a larger one leaves fewer holes and is no faster.
const blockBytes = 4096

var zeroBlock [blockBytes]byte

// disk writes one disk file. Its methods may run beside each other, so that
// Close of the upload can wait for what is under way.
type disk struct {
	size    int64
	current func() error // whether the attempt still is

	err atomic.Pointer[error] // the first error; the disk is lost with it

	// Of what was written and is not on its way to disk: the first and the last
	// byte, and how much. For WriteAt alone.
	dirtyFrom, dirtyTo, dirty int64

	using sync.RWMutex // held for reading while file is in use
	file  *os.File     // nil once closed
	done  bool         // closed without error
}

// WriteAt implements imageapi.DiskWriter. Blocks of zeros stay holes.
func (d *disk) WriteAt(p []byte, off int64) (int, error) {
	d.using.RLock()
	defer d.using.RUnlock()
	if d.file == nil {
		return 0, errClosed
	}
	if off < 0 || off > d.size || int64(len(p)) > d.size-off {
		return 0, d.failed(fault.New(fault.Internal, "write_outside", "A write lies outside of the disk.").
			Saw("%d bytes at %d of %d", len(p), off, d.size))
	}
	for from, to := range dataRuns(p, off) {
		if _, err := d.file.WriteAt(p[from:to], off+int64(from)); err != nil {
			return from, d.failed(failure("write disk", err))
		}
		d.wrote(off+int64(from), int64(to-from))
	}
	return len(p), nil
}

// writebackBytes is how much is written before the kernel is told to bring it to disk.
// A call for each write would cost more than it saves where these are small.
const writebackBytes = 8 << 20

// wrote starts the write-back of what has gathered, so that Sync finds little left to
// do. It is a hint: what fails here fails again in Sync or Close.
func (d *disk) wrote(off, n int64) {
	if d.dirty == 0 {
		d.dirtyFrom, d.dirtyTo = off, off
	}
	d.dirtyFrom, d.dirtyTo = min(d.dirtyFrom, off), max(d.dirtyTo, off+n)
	if d.dirty += n; d.dirty >= writebackBytes {
		startWriteback(d.file, d.dirtyFrom, d.dirtyTo-d.dirtyFrom)
		d.dirty = 0
	}
}

// Resize implements imageapi.DiskWriter.
func (d *disk) Resize(size int64) error {
	d.using.Lock()
	defer d.using.Unlock()
	if d.file == nil {
		return errClosed
	}
	if size <= 0 || size > d.size {
		return d.failed(fault.New(fault.Internal, "bad_size", "The disk cannot get this size.").Saw("%d of %d bytes", size, d.size))
	}
	d.size = size
	return nil
}

// Sync implements imageapi.DiskWriter. It also fails with ErrShutOut, so that
// an attempt does not write on and on for nothing.
func (d *disk) Sync() error {
	d.using.RLock()
	defer d.using.RUnlock()
	if d.file == nil {
		return errClosed
	}
	if first := d.err.Load(); first != nil {
		return *first
	}
	if err := syncData(d.file); err != nil {
		return d.failed(failure("sync disk", err))
	}
	return d.current()
}

// Close implements imageapi.DiskWriter. After any error it fails with the first
// one: the kernel reports a lost write once, and a later fsync succeeds.
func (d *disk) Close() error {
	d.using.Lock()
	defer d.using.Unlock()
	if d.file == nil {
		if d.done {
			return nil
		}
		return errClosed
	}
	err := errors.Join(d.file.Truncate(d.size), d.file.Sync(), d.file.Close())
	d.file = nil
	if first := d.err.Load(); first != nil {
		return *first
	}
	if err != nil {
		return d.failed(failure("close disk", err))
	}
	d.done = true
	return nil
}

// letGo closes the file of an unfinished disk.
func (d *disk) letGo() {
	d.using.Lock()
	defer d.using.Unlock()
	if d.file != nil {
		d.file.Close()
		d.file = nil
	}
}

// complete reports whether the disk was closed without error.
func (d *disk) complete() bool {
	d.using.RLock()
	defer d.using.RUnlock()
	return d.done
}

// failed keeps the first error and returns err.
func (d *disk) failed(err error) error {
	d.err.CompareAndSwap(nil, &err)
	return err
}

// dataRuns yields the parts p[from:to] that are not zero, for p at off of a
// file: whole blocks of the file, but for the ends of p, and neighbours joined.
func dataRuns(p []byte, off int64) iter.Seq2[int, int] {
	return func(yield func(int, int) bool) {
		from := -1 // start of the run, if one is open
		for at := 0; at < len(p); {
			end := min(at+blockBytes-int((off+int64(at))%blockBytes), len(p))
			zero := bytes.Equal(p[at:end], zeroBlock[:end-at])
			switch {
			case !zero && from < 0:
				from = at
			case zero && from >= 0:
				if !yield(from, at) {
					return
				}
				from = -1
			}
			at = end
		}
		if from >= 0 {
			yield(from, len(p))
		}
	}
}
