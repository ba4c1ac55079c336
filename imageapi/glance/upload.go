package glance

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"vmimport/imageapi"
	"vmimport/internal/fault"
)

// upload is one attempt's work on an image. Its disk is sent while it is written, but
// for the last of it, and complete in Glance only in the middle of Publish.
type upload struct {
	images *Images
	spec   imageapi.Spec
	own    string // the service's project
	disk   *disk

	published bool
	closed    bool
}

// Streams implements imageapi.Upload.
func (u *upload) Streams() bool { return true }

// Disk implements imageapi.Upload.
func (u *upload) Disk(ctx context.Context, d imageapi.DiskSpec) (imageapi.DiskWriter, bool, error) {
	switch {
	case ctx.Err() != nil:
		return nil, false, context.Cause(ctx)
	case u.closed:
		return nil, false, errClosed
	case d.Number != 1:
		return nil, false, imageapi.ErrOneDisk
	case d.Size <= 0 || u.disk != nil:
		return nil, false, fault.New(fault.Internal, "bad_disk", "The disk cannot be opened like this.").Saw("%d bytes", d.Size)
	}
	u.disk = &disk{ctx: ctx, upload: u, size: d.Size, bound: d.AtMost, digest: newDigest(*u.images.algo.Load())}
	return u.disk, false, nil
}

// Publish implements imageapi.Upload.
func (u *upload) Publish(ctx context.Context, facts []imageapi.DiskFacts) error {
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case u.published:
		return nil
	case u.closed:
		return errClosed
	case len(facts) != 1 || u.disk == nil || !u.disk.complete:
		return errIncomplete.Saw("%d disks", len(facts))
	}
	r, err := u.current(ctx)
	if err != nil || u.published {
		return err
	}
	if u.disk.sending != nil {
		if err := u.disk.deliver(ctx); err != nil {
			return err
		}
		if r, err = u.current(ctx); err != nil || u.published {
			return err
		}
	}
	if err = u.disk.verify(ctx, r); errors.Is(err, errAltered) {
		// Nobody must take this for the image, and it cannot be sent again.
		err = errors.Join(err, u.discard(ctx))
	}
	if err != nil {
		return err
	}
	return u.handOver(ctx, facts[0])
}

// handOver gives the image to its owner.
func (u *upload) handOver(ctx context.Context, facts imageapi.DiskFacts) (err error) {
	// More than once, for it may have been done although the answer was lost, and what
	// was seen of the image may be too old to act upon.
	for range 3 {
		r, look := u.current(ctx)
		if look != nil || u.published {
			return look
		}
		if err = u.images.update(ctx, "hand over image", r, handover(r, u.spec, facts)); err == nil {
			u.published = true
			return nil
		}
	}
	return err
}

// discard deletes the image.
func (u *upload) discard(ctx context.Context) error {
	r, err := u.current(ctx)
	if err != nil || u.published {
		return err
	}
	return u.images.delete(ctx, r)
}

// current returns the image, if it is still this attempt's. It notices that the image
// has been published meanwhile.
func (u *upload) current(ctx context.Context) (*record, error) {
	r, err := u.images.show(ctx, u.spec.ImageID)
	switch {
	case errors.Is(err, imageapi.ErrNoImage): // removed, or its id given up
		return nil, imageapi.ErrShutOut
	case err != nil:
		return nil, err
	case r.parked(u.own):
		return nil, imageapi.ErrShutOut
	case !r.isOf(u.spec, u.own):
		return nil, imageapi.ErrTaken
	case !r.unpublished(u.own):
		u.published = true
	case r.attempt() > u.spec.Attempt:
		return nil, imageapi.ErrShutOut
	}
	return r, nil
}

// Close implements imageapi.Upload. What was sent of an image that is not published is
// lost; Glance is told so by the end of the connection.
func (u *upload) Close() error {
	u.closed = true
	if u.disk != nil {
		u.disk.abandon()
	}
	return nil
}

// disk sends one disk.
type disk struct {
	ctx    context.Context // of the attempt
	upload *upload
	size   int64
	bound  bool // size is only a bound
	digest digest

	begun    bool
	sending  *sending // nil if Glance has it all from an earlier attempt
	off      int64    // bytes that were written
	complete bool
}

// zeros are sent for what was never written.
var zeros [256 << 10]byte

// WriteAt implements imageapi.DiskWriter.
func (d *disk) WriteAt(p []byte, off int64) (int, error) {
	switch {
	case d.complete:
		return 0, errClosed
	case off < d.off || off > d.size || int64(len(p)) > d.size-off:
		return 0, fmt.Errorf("write image: %d bytes at %d, behind %d of %d", len(p), off, d.off, d.size)
	}
	if err := d.fill(off); err != nil {
		return 0, err
	}
	if err := d.write(p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// fill writes zeros up to off.
func (d *disk) fill(off int64) error {
	for d.off < off {
		if err := d.write(zeros[:min(int64(len(zeros)), off-d.off)]); err != nil {
			return err
		}
	}
	return nil
}

func (d *disk) write(p []byte) error {
	if len(p) == 0 {
		return nil
	}
	if !d.begun {
		if err := d.begin(); err != nil {
			return err
		}
		d.begun = true
	}
	d.digest.Write(p)
	d.off += int64(len(p))
	if d.sending == nil {
		return context.Cause(d.ctx)
	}
	err := d.sending.body.write(d.ctx, p)
	if errors.Is(err, errNoBody) {
		err = d.answer(d.ctx)
	}
	return err
}

// begin starts to send, unless Glance has the image already: then what is written is
// only compared.
func (d *disk) begin() error {
	r, err := d.upload.current(d.ctx)
	switch {
	case err != nil:
		return err
	case d.upload.published, r.Status == active:
		return nil
	case r.Status != queued:
		return errBusy.Because(fmt.Errorf("image is %s", r.Status))
	}
	length := d.size
	if d.bound {
		length = -1
	}
	d.sending, err = d.upload.images.send(d.ctx, r.ID, length)
	return err
}

// Resize implements imageapi.DiskWriter.
func (d *disk) Resize(size int64) error {
	if d.complete || !d.bound || size < d.off || size > d.size || size <= 0 {
		return fmt.Errorf("resize image: to %d bytes with %d written of %d", size, d.off, d.size)
	}
	d.size, d.bound = size, false
	return nil
}

// Sync implements imageapi.DiskWriter. There is nothing that it could make durable.
func (d *disk) Sync() error { return nil }

// Close implements imageapi.DiskWriter.
func (d *disk) Close() error {
	switch {
	case d.complete:
		return nil
	case d.bound: // nobody has said where the disk ends
		return errIncomplete.Saw("no size")
	}
	if err := d.fill(d.size); err != nil {
		return err
	}
	d.complete = true
	return nil
}

// deliver lets Glance have the last of the disk, and returns when it has stored all.
// From here on the end of the attempt's context is no reason to stop.
func (d *disk) deliver(ctx context.Context) error {
	d.sending.detach()
	d.sending.body.end()
	return d.answer(ctx)
}

// answer waits for the end of the request, and finds out what it means.
func (d *disk) answer(ctx context.Context) error {
	err := d.sending.wait(ctx)
	switch statusOf(err) {
	case http.StatusConflict, http.StatusNotFound, http.StatusGone:
		if _, look := d.upload.current(ctx); look != nil {
			return look
		}
	}
	if statusOf(err) == http.StatusConflict {
		return errBusy.Because(err)
	}
	return err
}

func (d *disk) abandon() {
	if d.sending != nil {
		// An id that nobody asked for is not needed again: see Remove.
		begun := !d.upload.spec.KeepID || d.upload.images.hasBegun(d.sending, d.upload.spec)
		if broken := d.sending.stop(); broken && !begun {
			d.upload.images.brokeOff(d.upload.spec.ImageID)
		}
	}
	d.complete = true
}
