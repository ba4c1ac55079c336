// Package encode writes a disk as the file of an image, front to back, while the disk
// comes front to back: the counterpart of package decode.
//
// What a form knows only at its end is put behind what it is about, or into a head whose
// length is known before. So the file can be sent off as it comes, and cut into parts at
// any place where the encoder says what a later one needs to go on.
//
// Several cores compress, and the file does not depend on how many. An encoder keeps at most
// MaxBytes in memory, however many cores there are and however large the disk is.
package encode

import (
	"context"
	"errors"
	"fmt"
	"io"

	"vmimport/internal/diskimage"
)

// Version changes when encoders write other bytes than before for the same disk, or have other
// states. What one version began is not for another to go on with.
const Version = 1

// Form is what the file becomes.
type Form string

// The forms.
const (
	Copy  Form = "copy"  // the bytes as they are
	Gzip  Form = "gzip"  // RFC 1952, a member for each MiB
	VMDK  Form = "vmdk"  // stream-optimised
	QCOW2 Form = "qcow2" // version 3, nothing compressed
)

// Encoder writes one file. One goroutine uses it.
type Encoder interface {
	// Write takes the next bytes of the disk. It keeps none of p, and returns when all that
	// is to be written of them now was handed to the sink, or will be by the next calls.
	io.Writer

	// Cut has all bytes written that Write took, and returns what a later encoder needs to
	// go on behind them. ok is false, and nothing is promised, where the form cannot be cut: in
	// the middle of a grain or cluster. Every form can be cut at multiples of MaxUnit, and at the
	// end of the disk. At its start nothing is written, and there is no state.
	Cut() (state []byte, ok bool, err error)

	// Finish writes the rest of the file, and returns its head, of HeadBytes bytes. It fails if
	// the disk is not as long as was announced.
	Finish() (head []byte, err error)

	// Close ends all goroutines. It may be called at any time, and more than once.
	Close()
}

// ErrState is the failure of New for a state that no encoder of the form has made.
var ErrState = errors.New("encode: not a state of this form")

// MaxUnit is the largest grain or cluster of any form: Encoder.Cut works at its multiples.
const MaxUnit = diskimage.MaxUnitBytes

// Options set up an encoder.
type Options struct {
	Form Form
	Size int64 // of the disk, or for Copy and Gzip of any file, in bytes
	// Workers is the most goroutines that compress: if it is 0 one for each processor,
	// but no more than 8. There are fewer where they would not have room in MaxBytes: no more than 4
	// for Gzip, and 15 for VMDK.
	Workers int
	// State and At are from a Cut of an earlier encoder with the same Form and Size: its state,
	// and how many bytes of the disk it had taken by then. Offset is how long the file was, its head
	// included. At 0 there is none of these.
	State  []byte
	At     int64
	Offset int64
}

// New returns an encoder that writes the file, but for its head, to out: the bytes from
// Options.Offset on, or from HeadBytes at the start. Calls of out.Write do not overlap, and come
// from whatever goroutine calls the encoder. An error of out is returned, wrapped.
//
// It fails with diskimage.ErrTooLarge if the form cannot hold a disk of that size, with the
// error of diskimage.CheckSize if none has it, and with ErrState for a state that is not one of
// the form. When ctx ends, calls fail soon with its cause.
func New(ctx context.Context, out io.Writer, opt Options) (Encoder, error) {
	switch opt.Form {
	case Copy:
		return newCopier(ctx, out, opt)
	case Gzip:
		return newGzip(ctx, out, opt)
	case VMDK:
		return newVMDK(ctx, out, opt)
	case QCOW2:
		return newQCOW2(ctx, out, opt)
	}
	return nil, fmt.Errorf("encode: unknown form %q", opt.Form)
}
