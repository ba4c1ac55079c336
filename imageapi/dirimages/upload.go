package dirimages

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"

	"golang.org/x/sys/unix"

	"vmimport/imageapi"
	"vmimport/internal/fault"
)

// maxDisks bounds the disks of an image.
const maxDisks = 64

var errClosed = fault.New(fault.Internal, "upload_closed", "The upload was closed before.")

// upload is one attempt's work on an image.
type upload struct {
	images    *Images
	spec      imageapi.Spec
	work      *workdir // nil once closed
	draft     draft
	disks     map[int]*disk
	published bool
}

// Disk implements imageapi.Upload. The file has its full length from the start, all
// of it a hole, unless that is a bound which the file system cannot reach.
func (u *upload) Disk(ctx context.Context, d imageapi.DiskSpec) (imageapi.DiskWriter, bool, error) {
	if err := ctx.Err(); err != nil {
		return nil, false, err
	}
	switch {
	case u.work == nil || u.published:
		return nil, false, errClosed
	case d.Number < 1 || d.Number > maxDisks || d.Size <= 0 || d.Resume < 0 || u.disks[d.Number] != nil:
		return nil, false, fault.New(fault.Internal, "bad_disk", "The disk cannot be opened like this.").
			Saw("disk %d of %d bytes from %d", d.Number, d.Size, d.Resume)
	}
	f, kept, err := u.open(d.Number, d.Size, d.Resume)
	if err != nil {
		return nil, false, u.failure("open disk", err)
	}
	w := &disk{file: f, size: d.Size, current: u.current}
	if u.disks == nil {
		u.disks = make(map[int]*disk)
	}
	u.disks[d.Number] = w
	return w, kept, nil
}

// Streams implements imageapi.Upload.
func (u *upload) Streams() bool { return false }

// open opens the file of a disk, and empties it if it does not have what was written
// up to resume.
func (u *upload) open(n int, size, resume int64) (_ *os.File, kept bool, err error) {
	f, err := u.work.root.OpenFile(u.fileName(n), os.O_WRONLY|os.O_CREATE, fileMode)
	if err != nil {
		return nil, false, err
	}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	fi, err := f.Stat()
	if err != nil {
		return nil, false, err
	}
	was, known := u.draft.Disks[n]
	if resume > 0 && known && was.Size == size && resume > was.Floor && fi.Size() == size {
		return f, true, nil
	}
	// The draft comes first: it must never promise what was cut off.
	u.draft.Disks[n] = diskDraft{Size: size, Floor: resume}
	if err := writeJSON(u.work.root, draftFile, u.draft); err != nil {
		return nil, false, err
	}
	if err := u.work.lock.Sync(); err != nil {
		return nil, false, err
	}
	if err := f.Truncate(0); err != nil {
		return nil, false, err
	}
	if err := f.Truncate(size); !errors.Is(err, unix.EFBIG) {
		return f, false, err
	}
	return f, false, nil
}

// Publish implements imageapi.Upload.
func (u *upload) Publish(ctx context.Context, facts []imageapi.DiskFacts) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	switch {
	case u.published:
		return u.finish()
	case u.work == nil:
		return errClosed
	}
	keep := []string{recordFile}
	sizes := make([]int64, len(facts))
	for i := range facts {
		d := u.disks[i+1]
		if d == nil || !d.complete() {
			return fault.New(fault.Internal, "disk_incomplete", "A disk was not written to its end.").Saw("disk %d", i+1)
		}
		sizes[i] = d.size
		keep = append(keep, u.fileName(i+1))
	}
	if len(facts) == 0 || len(facts) != len(u.disks) {
		return fault.New(fault.Internal, "disk_incomplete", "The image has other disks than were written.").
			Saw("%d of %d", len(facts), len(u.disks))
	}

	rec := newRecord(u.spec, sizes, facts, u.images.now())
	if err := writeJSON(u.work.root, recordFile, rec); err != nil {
		return u.failure("write image record", err)
	}
	if err := removeBut(u.work.root, keep...); err != nil {
		return u.failure("publish image", err)
	}
	if err := u.work.lock.Sync(); err != nil {
		return u.failure("sync image", err)
	}
	if err := u.current(); err != nil {
		return err
	}
	switch err := u.images.rename(u.stagingDir(), attemptName(u.spec.Attempt), ".", u.spec.ImageID); {
	case occupied(err):
		return u.settle(ctx)
	case err != nil:
		return u.failure("publish image", err)
	}
	u.published = true
	return u.finish()
}

// finish makes the rename durable.
func (u *upload) finish() error {
	if err := syncDir(u.images.root, "."); err != nil {
		return failure("sync image directory", err)
	}
	if err := syncDir(u.images.root, u.stagingDir()); err != nil && !missing(err) {
		return failure("sync staging directory", err)
	}
	_ = u.images.root.Remove(u.stagingDir()) // unless another attempt is in it
	return nil
}

// settle ends a publishing that found the id in use.
func (u *upload) settle(ctx context.Context) error {
	img, err := u.images.Get(ctx, u.spec.ImageID)
	switch {
	case errors.Is(err, imageapi.ErrNoImage): // something that is none of ours
		return imageapi.ErrTaken
	case err != nil:
		return err
	case img.ImportID != u.spec.ImportID:
		return imageapi.ErrTaken
	}
	if err := u.images.discard(u.stagingDir(), attemptName(u.spec.Attempt)); err != nil {
		return err
	}
	u.published = true
	return u.finish()
}

// Close implements imageapi.Upload. It returns when no write is under way any
// more, and drops the lock then.
func (u *upload) Close() error {
	if u.work == nil {
		return nil
	}
	for _, d := range u.disks {
		d.letGo()
	}
	u.work.close()
	u.work = nil
	return nil
}

// current returns ErrShutOut if the attempt's directory has lost its name.
func (u *upload) current() error {
	if !isAt(u.images.root, path.Join(u.stagingDir(), attemptName(u.spec.Attempt)), u.work.root) {
		return imageapi.ErrShutOut
	}
	return nil
}

// failure is that of the package, but for the attempt's own files: when these
// are gone, a later attempt has removed them.
func (u *upload) failure(op string, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return imageapi.ErrShutOut
	}
	return failure(op, err)
}

func (u *upload) stagingDir() string { return path.Join(stagingDir, u.spec.ImportID) }

func (u *upload) fileName(n int) string { return diskName(n, u.spec.Format) }

// diskName is the name of the file of an image's disk.
func diskName(n int, format string) string { return fmt.Sprintf("disk-%d.%s", n, format) }
