// Package dirimages keeps disk images as files in a directory.
//
// An image is a directory named by its id: one sparse file for each disk, and
// image.json, the image's record in the shape of the Glance v2 API. It appears
// by one rename, with everything in it already on disk, so that a crash at any
// point leaves a whole image or none.
//
//	<root>/<image id>/image.json
//	<root>/<image id>/disk-1.raw
//	<root>/.staging/<import id>/<attempt>/...
//
// Several processes may use one root. What keeps them apart is explained in
// staging.go; it needs a file system on which flock works for directories, and
// between all who use the root. Local file systems are such.
package dirimages

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"regexp"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"vmimport/imageapi"
	"vmimport/internal/fault"
)

const (
	stagingDir = ".staging"
	dirMode    = 0o750
	fileMode   = 0o640
)

// Options change how Images works. The zero value is right for production.
type Options struct {
	Now func() time.Time // for updated_at; nil means time.Now
}

// Images is an image service on a directory. It is safe for concurrent use.
type Images struct {
	root *os.Root
	now  func() time.Time
}

var _ imageapi.Images = (*Images)(nil)

// New opens the image directory root, and makes it if it is not there.
func New(root string, opts Options) (*Images, error) {
	if err := os.MkdirAll(root, dirMode); err != nil {
		return nil, fmt.Errorf("open image directory: %w", err)
	}
	r, err := os.OpenRoot(root)
	if err != nil {
		return nil, fmt.Errorf("open image directory: %w", err)
	}
	s := &Images{root: r, now: opts.Now}
	if s.now == nil {
		s.now = time.Now
	}
	if err := s.prepare(); err != nil {
		return nil, errors.Join(fmt.Errorf("open image directory %s: %w", root, err), r.Close())
	}
	return s, nil
}

// prepare makes the staging directory, and fails where directories cannot be
// locked: there a paused worker could write into what its successor publishes.
func (s *Images) prepare() error {
	if err := s.root.MkdirAll(stagingDir, dirMode); err != nil {
		return err
	}
	if err := syncDir(s.root, "."); err != nil {
		return err
	}
	d, err := s.root.Open(stagingDir)
	if err != nil {
		return err
	}
	defer d.Close()
	err = lockable(d)
	if err == nil {
		_, err = tryLock(d)
	}
	if err != nil {
		return fmt.Errorf("lock a directory: %w", err)
	}
	return nil
}

// Close lets go of the directory. Uploads must have been closed before.
func (s *Images) Close() error { return s.root.Close() }

// Get implements imageapi.Images. What it returns is durable.
func (s *Images) Get(ctx context.Context, imageID string) (*imageapi.Image, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if !validID(imageID) {
		return nil, imageapi.ErrNoImage
	}
	dir, err := s.root.OpenRoot(imageID)
	if missing(err) {
		return nil, imageapi.ErrNoImage
	}
	if err != nil {
		return nil, failure("open image", err)
	}
	defer dir.Close()
	rec, err := readRecord(dir, recordFile)
	if missing(err) {
		return nil, imageapi.ErrNoImage
	}
	if err != nil {
		return nil, failure("read image record", err)
	}
	// A publisher may have died between its rename and the fsync. Whoever acts
	// on the sight of the image must not lose it to a power failure.
	if err := syncDir(s.root, "."); err != nil {
		return nil, failure("sync image directory", err)
	}
	return &imageapi.Image{ImageID: imageID, ImportID: rec.ImportID, Owner: rec.Owner}, nil
}

// Accepts implements imageapi.Images.
func (i *Images) Accepts(imageapi.Spec) error { return nil }

// Begin implements imageapi.Images.
func (s *Images) Begin(ctx context.Context, spec imageapi.Spec) (imageapi.Upload, error) {
	if err := validate(spec); err != nil {
		return nil, err
	}
	switch img, err := s.Get(ctx, spec.ImageID); {
	case errors.Is(err, imageapi.ErrNoImage):
	case err != nil:
		return nil, err
	case img.ImportID != spec.ImportID:
		return nil, imageapi.ErrTaken
	}
	w, err := s.take(ctx, spec.ImportID, spec.Attempt)
	if err != nil {
		return nil, err
	}
	return &upload{images: s, spec: spec, work: w, draft: readDraft(w.root, spec.Format)}, nil
}

// Remove implements imageapi.Images.
func (s *Images) Remove(ctx context.Context, importID, imageID string) error {
	if !validID(importID) || !validID(imageID) {
		return errBadID
	}
	// First the uploads, so that none of them publishes behind our back.
	if err := s.clear(ctx, importID); err != nil {
		return err
	}
	if err := s.unpublish(importID, imageID); err != nil {
		return failure("remove image", err)
	}
	return nil
}

// unpublish removes an image if the import made it. Its record goes first, in
// one step, and with it the image.
//
// All of this goes through the open directory: should we be stopped half way,
// for so long that another import has the id when we go on, then the open
// directory is still the one whose record we have read. Only the empty
// directory is removed by its name.
func (s *Images) unpublish(importID, imageID string) error {
	dir, err := s.root.OpenRoot(imageID)
	if missing(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer dir.Close()
	switch rec, err := readRecord(dir, recordFile); {
	case err == nil && rec.ImportID != importID:
		return nil
	case err == nil:
		if err := dir.Rename(recordFile, removedFile); err != nil && !missing(err) {
			return err
		}
	case !missing(err):
		return err
	}
	switch rec, err := readRecord(dir, removedFile); {
	case err == nil && rec.ImportID != importID:
		return nil
	case err == nil:
		if err := errors.Join(syncDir(dir, "."), removeBut(dir, removedFile)); err != nil {
			return err
		}
		if err := dir.Remove(removedFile); err != nil && !missing(err) {
			return err
		}
	case !missing(err):
		return err
	}
	if err := s.root.Remove(imageID); err != nil && !missing(err) && !occupied(err) {
		return err
	}
	return syncDir(s.root, ".")
}

// removeBut removes all entries of a directory but those named.
func removeBut(dir *os.Root, keep ...string) error {
	entries, err := fs.ReadDir(dir.FS(), ".")
	if err != nil {
		return err
	}
	for _, e := range entries {
		if slices.Contains(keep, e.Name()) {
			continue
		}
		if err := dir.RemoveAll(e.Name()); err != nil {
			return err
		}
	}
	return nil
}

// Sweep removes what is left in staging of imports that are no longer
// unfinished, such as of those whose record is gone. It is a safety net: each
// import cleans up after itself. alive reports whether an import is unfinished;
// it is asked after the import's directory was seen, so that an import that
// begins meanwhile is not mistaken. Sweep stops at the first error and returns
// how many imports it has cleared.
func (s *Images) Sweep(ctx context.Context, alive func(importID string) (bool, error)) (removed int, err error) {
	entries, err := fs.ReadDir(s.root.FS(), stagingDir)
	if err != nil {
		return 0, failure("list staging directory", err)
	}
	for _, e := range entries {
		if !e.IsDir() || !validID(e.Name()) {
			continue // not ours
		}
		switch live, err := alive(e.Name()); {
		case err != nil:
			return removed, fmt.Errorf("sweep staging directory: %w", err)
		case live:
			continue
		}
		if err := s.clear(ctx, e.Name()); err != nil {
			return removed, err
		}
		removed++
	}
	return removed, nil
}

// idPattern admits UUIDs and similar names, and nothing that has a meaning to a
// file system. A first dot is kept for our own names.
var idPattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$`)

func validID(id string) bool { return idPattern.MatchString(id) }

var errBadID = fault.New(fault.Invalid, "bad_image_id",
	"Image and import ids have 1 to 128 letters, digits, dots, hyphens and underscores, and begin with a letter or digit.")

func validate(spec imageapi.Spec) error {
	switch {
	case !validID(spec.ImageID) || !validID(spec.ImportID):
		return errBadID
	case spec.Format != "raw" && spec.Format != "qcow2":
		return fault.New(fault.Invalid, "bad_disk_format", "The image directory takes disks in raw or qcow2 format.")
	case spec.Attempt <= 0:
		return fault.New(fault.Internal, "bad_attempt", "Attempts are numbered from 1.")
	}
	return nil
}

// failure gives an error of the file system its kind. The customer reads
// nothing of paths; the log does.
func failure(op string, err error) error {
	err = fmt.Errorf("%s: %w", op, err)
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return imageapi.ErrFull.Because(err)
	}
	if errors.Is(err, unix.EFBIG) {
		return fault.Wrap(err, fault.Invalid, "disk_too_large", "The disk is larger than the image store can hold.")
	}
	return fault.Wrap(err, fault.Unavailable, "image_store_failed", "The image store failed.")
}

// missing reports whether there is no image where one was looked for: nothing,
// or a stray file.
func missing(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR)
}

// syncDir makes the entries of a directory durable.
func syncDir(root *os.Root, name string) error {
	d, err := root.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
