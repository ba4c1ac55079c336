package dirstore

import (
	"context"
	"crypto/md5" //nolint:gosec // not for secrecy: what Swift calls an ETag
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"vmimport/internal/fault"
	"vmimport/storage"
)

// Errors of the write side, to be tested with errors.Is, beside those of package storage.
var (
	ErrName = fault.New(fault.Invalid, "object_name_invalid",
		"The name cannot be stored: it is empty, too long, or holds control characters, empty segments, or the segments '.' or '..'.")
	ErrNameTaken = fault.New(fault.Conflict, "object_name_conflict",
		"A segment of the name is an object, or the name is the start of other objects' names.")
	ErrUpload = fault.New(fault.Invalid, "upload_incomplete",
		"The bytes received are not those that were announced.").
		Try("Upload the object again.")
)

// Put stores what r gives, and returns the MD5 of it in hex. The object appears
// whole and durable, in place of an earlier one, or not at all: after any
// failure, ErrUpload included, nothing is left. The memory used does not depend
// on the size. ctx is looked at between reads; r must end when its caller leaves.
func (s *Store) Put(ctx context.Context, loc storage.Location, r io.Reader, want storage.Announced) (etag string, err error) {
	if !loc.Valid() || !fileName(loc.Name) {
		return "", ErrName
	}
	container, err := s.openContainer(loc)
	if errors.Is(err, storage.ErrNoObject) {
		return "", storage.ErrNoContainer.Because(err)
	}
	if err != nil {
		return "", err
	}
	defer container.Close()

	temp := tempPrefix + rand.Text()
	f, err := container.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o640)
	if err != nil {
		return "", translateWrite(err)
	}
	defer func() {
		if err != nil {
			_ = f.Close() // the second close, if all but the rename went well
			_ = container.Remove(temp)
		}
	}()
	if etag, err = receive(ctx, f, r, want); err != nil {
		return "", err
	}
	if err = errors.Join(f.Sync(), f.Close()); err != nil {
		return "", translateWrite(fmt.Errorf("store object: %w", err))
	}
	if err = s.install(container, temp, loc.Name); err != nil {
		return "", err
	}
	return etag, nil
}

// receive copies r to w and compares what came with what was announced.
func receive(ctx context.Context, w io.Writer, r io.Reader, want storage.Announced) (etag string, err error) {
	sum := md5.New() //nolint:gosec // see the import
	buf := make([]byte, 256<<10)
	var size int64
	for {
		if ctx.Err() != nil {
			return "", fmt.Errorf("receive object: %w", context.Cause(ctx))
		}
		n, rerr := r.Read(buf)
		if size += int64(n); want.Size >= 0 && size > want.Size {
			return "", ErrUpload.Saw("more than %d bytes", want.Size)
		}
		sum.Write(buf[:n])
		if _, err := w.Write(buf[:n]); err != nil {
			return "", translateWrite(fmt.Errorf("store object: %w", err))
		}
		if rerr == io.EOF {
			break
		}
		if rerr != nil {
			return "", ErrUpload.Saw("%d bytes", size).Because(rerr)
		}
	}
	etag = hex.EncodeToString(sum.Sum(nil))
	if want.Size >= 0 && size != want.Size {
		return "", ErrUpload.Saw("%d bytes of %d", size, want.Size)
	}
	if want.MD5 != "" && !strings.EqualFold(want.MD5, etag) {
		return "", ErrUpload.Saw("MD5 %s, announced %.64q", etag, want.MD5)
	}
	return etag, nil
}

// install gives a finished file its name, and makes that durable.
func (s *Store) install(container *os.Root, temp, name string) error {
	s.tree.Lock()
	defer s.tree.Unlock()
	if info, err := container.Lstat(name); err == nil && !info.Mode().IsRegular() {
		return ErrNameTaken
	}
	dir := path.Dir(name)
	if err := place(container, dir, func() error { return container.Rename(temp, name) }); err != nil {
		return translateWrite(err)
	}
	if err := syncAbove(container, dir); err != nil {
		return translateWrite(err)
	}
	return nil
}

// placeTries bounds how often other processes may remove a directory between its making and
// its first object.
const placeTries = 100

// place has do put an object into dir, which it makes first. If that fails, no directory
// stays that is empty. s.tree is held.
func place(container *os.Root, dir string, do func() error) error {
	var err error
	for range placeTries {
		if err = container.MkdirAll(dir, 0o750); err == nil {
			err = do()
		} else if info, statErr := container.Lstat(dir); errors.Is(err, fs.ErrExist) && (statErr != nil || info.IsDir()) {
			continue // it was there, and was gone before MkdirAll had looked what it is
		}
		if !errors.Is(err, fs.ErrNotExist) {
			break
		}
	}
	if err != nil {
		prune(container, dir)
	}
	return err
}

// syncAbove makes an entry of dir durable. Each directory on the way may be new, and is an
// entry of the one above.
func syncAbove(container *os.Root, dir string) error {
	for ; ; dir = path.Dir(dir) {
		// What is gone has been removed since, together with the entry.
		if err := syncDir(container, dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if dir == "." {
			return nil
		}
	}
}

func syncDir(root *os.Root, name string) error {
	d, err := root.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Delete removes an object, or returns storage.ErrNoObject. Directories that it
// leaves empty go with it, so that their names are free again.
func (s *Store) Delete(loc storage.Location) error {
	if !fileName(loc.Name) {
		return storage.ErrNoObject
	}
	container, err := s.openContainer(loc)
	if err != nil {
		return err
	}
	defer container.Close()
	s.tree.Lock()
	defer s.tree.Unlock()
	if info, err := container.Lstat(loc.Name); err != nil {
		return translate(err)
	} else if !info.Mode().IsRegular() {
		return storage.ErrNoObject
	}
	if err := container.Remove(loc.Name); err != nil {
		return translate(err)
	}
	prune(container, path.Dir(loc.Name))
	return nil
}

// prune removes dir and those above it, up to the first that is not empty, or is no
// directory: an object may have the name of one that is not there.
func prune(container *os.Root, dir string) {
	for ; dir != "." && removeDir(container, dir) == nil; dir = path.Dir(dir) {
	}
}

// removeDir is rmdir(2), which os.Root lacks: its Remove would take a file, too.
func removeDir(container *os.Root, dir string) error {
	above, err := container.Open(path.Dir(dir))
	if err != nil {
		return err
	}
	defer above.Close()
	return unix.Unlinkat(int(above.Fd()), path.Base(dir), unix.AT_REMOVEDIR)
}

// MakeContainer makes a container of a project, if there is none.
func (s *Store) MakeContainer(project, container string) error {
	loc := containerLocation(project, container)
	if !loc.Valid() {
		return ErrName
	}
	if err := os.MkdirAll(s.rootOf(project), 0o750); err != nil {
		return translateWrite(err)
	}
	root, err := s.openRoot(loc)
	if err != nil {
		return err
	}
	defer root.Close()
	if err := root.Mkdir(container, 0o750); err != nil && !errors.Is(err, fs.ErrExist) {
		return translateWrite(err)
	}
	return nil
}

// Stat describes an object, or fails as Open does.
func (s *Store) Stat(loc storage.Location) (storage.Entry, error) {
	st, err := s.look(loc)
	if err != nil {
		return storage.Entry{}, err
	}
	return storage.Entry{Name: loc.Name, Size: st.size, ModTime: time.Unix(0, st.mtime), Version: st.version()}, nil
}

// List returns a container's objects, sorted by the bytes of their names, or
// storage.ErrNoContainer. Files that no name leads to are left out, and Version is empty.
func (s *Store) List(ctx context.Context, project, container string) ([]storage.Entry, error) {
	loc := containerLocation(project, container)
	root, err := s.openContainer(loc)
	if errors.Is(err, storage.ErrNoObject) {
		return nil, storage.ErrNoContainer.Because(err)
	}
	if err != nil {
		return nil, err
	}
	defer root.Close()
	var list []storage.Entry
	err = fs.WalkDir(root.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
			return nil // gone since its directory was read, or not ours to see
		}
		if err != nil {
			return storage.ErrUnavailable.Because(err)
		}
		if d.IsDir() && strings.HasPrefix(name, tempPrefix) {
			return fs.SkipDir
		}
		loc.Name = name
		if !d.Type().IsRegular() || !loc.Valid() || !fileName(name) {
			return nil
		}
		info, err := d.Info()
		if err != nil {
			return nil // as above
		}
		list = append(list, storage.Entry{Name: name, Size: info.Size(), ModTime: info.ModTime()})
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list container: %w", err)
	}
	slices.SortFunc(list, func(a, b storage.Entry) int { return strings.Compare(a.Name, b.Name) })
	return list, nil
}

// SweepPuts removes what calls of Put for a project left that were cut off by a crash,
// judged by not having been written to since before. What an Upload has staged is for
// Sweep.
func (s *Store) SweepPuts(project string, before time.Time) error {
	root, err := s.openRoot(containerLocation(project, "x"))
	if errors.Is(err, storage.ErrNoObject) {
		return nil
	}
	if err != nil {
		return err
	}
	defer root.Close()
	leftovers, err := fs.Glob(root.FS(), "*/"+tempPrefix+"*")
	if err != nil {
		return storage.ErrUnavailable.Because(err)
	}
	for _, name := range leftovers {
		info, err := root.Lstat(name)
		if err == nil && info.Mode().IsRegular() && info.ModTime().Before(before) {
			err = root.Remove(name)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return translateWrite(err)
		}
	}
	return nil
}

// containerLocation is a valid location in a container, for what needs no name.
func containerLocation(project, container string) storage.Location {
	return storage.Location{API: "swift", Project: project, Container: container, Name: "x"}
}

// translateWrite is translate for what can go wrong only when writing.
func translateWrite(err error) error {
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return storage.ErrFull.Because(err)
	case errors.Is(err, syscall.ENAMETOOLONG):
		return ErrName.Because(err)
	case errors.Is(err, syscall.ENOTDIR), errors.Is(err, syscall.EISDIR), errors.Is(err, fs.ErrExist), escapes(err):
		return ErrNameTaken.Because(err)
	default:
		return storage.ErrUnavailable.Because(err)
	}
}
