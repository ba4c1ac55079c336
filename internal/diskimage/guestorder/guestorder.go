// Package guestorder reads the disk in an image as an object: its bytes are those that the
// guest sees, in the guest's order, whatever the order of the image's file.
//
// It is for images with a map, QCOW2 above all, whose clusters lie in the file as the guest
// happened to write them. What the map leaves out is zeros, and read from nowhere. What
// lies close together in the file is read by one request, for each goes to a store that
// is far away.
//
// A map is made of tables that a stranger wrote. Its extents are checked before anything
// is read or allocated for them, and memory does not depend on them: an Object and all its
// bodies keep at most MaxBytes, beside what the map keeps of its tables.
package guestorder

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"

	"vmimport/internal/diskimage"
)

// Source is the file of an image. It is safe for concurrent use; storage.Object and
// imageapi.File are Sources.
type Source interface {
	// Size is the file's length in bytes.
	Size() int64

	// Version identifies the bytes.
	Version() string

	// ReadRange opens the n > 0 bytes at off, which lie in the file. The body gives
	// exactly n bytes and then io.EOF, or fails. Both obey ctx.
	ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error)
}

// Object is the disk in an image. It has the methods of a storage.Object, and is safe for
// concurrent use. It has to be read about from the front to the end, by as many bodies at
// once as one likes: then tables are read about once.
type Object struct {
	src  Source
	disk *diskimage.Disk

	turn  chan struct{} // holds a token while somebody looks at spans
	spans []*span       // the one that was asked for last comes first
	rooms chan *room    // that no body has
}

const (
	// MaxBytes bounds what an Object keeps in memory.
	MaxBytes = maxRooms*maxRoomBytes + maxSpans*maxExtents*extentBytes

	// maxRooms is how many bodies may keep bytes at a time: as many as a storage.Fetch
	// begins with. Each asks for some MiB at once, and what they unpack comes slower than it
	// is read.
	maxRooms     = 4
	maxRoomBytes = maxBufferBytes + diskimage.MaxUnitBytes
)

// room is what a body needs that has to keep bytes.
type room struct {
	buf  []byte // of the file
	unit []byte // an extent that was unpacked
}

// New returns the disk in the image that src is the file of. It fails if the disk has no
// map, or a size that no disk has.
//
// Tables are read by way of the diskimage.File that disk was opened with: for how long,
// and how often a read is tried, is that one's business.
func New(src Source, disk *diskimage.Disk) (*Object, error) {
	if disk.Map == nil {
		return nil, fmt.Errorf("read in the guest's order: a %s image of the kind %q has no map", disk.Format, disk.Variant)
	}
	if err := diskimage.CheckSize(disk.Size); err != nil {
		return nil, err
	}
	o := &Object{src: src, disk: disk, turn: make(chan struct{}, 1), rooms: make(chan *room, maxRooms)}
	for range maxRooms {
		o.rooms <- new(room)
	}
	return o, nil
}

// Size is that of the disk in bytes.
func (o *Object) Size() int64 { return o.disk.Size }

// Version identifies the bytes: it follows from that of the source, and differs from it. It
// has 70 bytes.
func (o *Object) Version() string {
	sum := sha256.Sum256([]byte(o.src.Version()))
	return "guest-" + hex.EncodeToString(sum[:])
}

// ReadRange opens the n > 0 bytes of the disk at off, which lie in it. The body gives
// exactly n bytes and then io.EOF, or fails: with what the source failed with, wrapped, or
// io.ErrUnexpectedEOF where it was cut short; with a fault of package diskimage if the image
// is to blame; with what the map's reader failed with; and with the cause of ctx.
//
// Nothing is read before the first Read. Where the image is compressed, or its file in
// another order, a body keeps some MiB until it was read to the end of these. Of an Object 4
// bodies may do so at a time: a Read of another waits, so a body that is not read any
// more has to be closed. Close may be called at any time, and waits for a Read that is under
// way to break off.
func (o *Object) ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	if off < 0 || n <= 0 || off > o.disk.Size || n > o.disk.Size-off {
		return nil, fmt.Errorf("read in the guest's order: %d bytes at %d of a disk of %d", n, off, o.disk.Size)
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	return &body{obj: o, ctx: ctx, cancel: cancel, at: off, end: off + n, known: off, unitAt: -1}, nil
}
