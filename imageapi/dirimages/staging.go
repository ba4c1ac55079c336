package dirimages

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"vmimport/imageapi"
)

// How attempts are kept apart
//
// Each attempt of an import works in <root>/.staging/<import id>/<attempt>, and
// can publish only what has that name. It holds a lock (flock) on the directory
// as long as it has it open; the kernel drops the lock with the process. All
// changes are renames of such directories, which are atomic; no lock is ever
// waited for, so that a stopped worker can stop nobody else.
//
//   - A later attempt moves every earlier directory away before it begins.
//     From then on the earlier attempt's publishing rename finds nothing.
//   - A directory whose lock is free has no writer left. The later attempt locks
//     it and gives it its own number: that is how an import is resumed.
//   - A directory whose lock is held belongs to a worker that may wake up at any
//     time. Nothing in it is used again. It is renamed to a name that no attempt
//     looks for, and removed; what its worker still writes goes to files without
//     a name.
//
// An attempt makes its own directory first and looks at the others then. So of
// two that begin at once, whichever looks second sees the other, and the higher
// number wins.

// workdir is an attempt's directory, open and locked.
type workdir struct {
	root *os.Root // the directory itself, wherever it is moved
	lock *os.File // holds the lock, and is what fsync is called on
}

// take makes the directory of an attempt, shuts out all earlier ones, and takes
// over what the last of them left, if its writer is gone. It fails with
// ErrShutOut if a later attempt has begun.
func (s *Images) take(ctx context.Context, importID string, attempt int64) (*workdir, error) {
	dir := path.Join(stagingDir, importID)
	w, err := s.shutOutEarlier(ctx, dir, attempt)
	if err != nil {
		return nil, err
	}
	own := path.Join(dir, attemptName(attempt))
	if w == nil {
		if w, err = openWorkdir(s.root, own); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, failure("begin attempt", err)
		}
	}
	err = errors.Join(syncDir(s.root, dir), syncDir(s.root, stagingDir))
	// The directory is gone, is locked, or is another: a later attempt, or a
	// Remove, got in between.
	if w == nil || !isAt(s.root, own, w.root) {
		w.close()
		return nil, imageapi.ErrShutOut
	}
	if err != nil {
		w.close()
		return nil, failure("begin attempt", err)
	}
	return w, nil
}

// shutOutEarlier returns when it has looked and seen no earlier attempt. It
// returns the directory that it took over from one, or nil.
func (s *Images) shutOutEarlier(ctx context.Context, dir string, attempt int64) (w *workdir, err error) {
	defer func() {
		if err != nil {
			w.close()
			w = nil
		}
	}()
	own := path.Join(dir, attemptName(attempt))
	for {
		if err := ctx.Err(); err != nil {
			return w, err
		}
		if w == nil {
			err := s.root.MkdirAll(own, dirMode)
			if errors.Is(err, fs.ErrNotExist) {
				continue // another removed the parent, which was empty, under us
			}
			if errors.Is(err, fs.ErrExist) {
				// It was there, and was moved away before MkdirAll had looked what it is.
				if info, statErr := s.root.Lstat(own); missing(statErr) || statErr == nil && info.IsDir() {
					continue
				}
			}
			if err != nil {
				return w, failure("begin attempt", err)
			}
		}
		attempts, err := s.attempts(dir)
		if err != nil {
			return w, failure("begin attempt", err)
		}
		if len(attempts) > 0 && attempts[0] > attempt {
			_ = s.root.Remove(own) // if it is empty, which it is unless this attempt began before
			return w, imageapi.ErrShutOut
		}
		earlier := slices.DeleteFunc(attempts, func(n int64) bool { return n == attempt })
		if len(earlier) == 0 {
			return w, nil
		}
		for _, n := range earlier {
			if w == nil {
				if w, err = s.adopt(dir, n, attempt); err != nil {
					return w, failure("take over attempt", err)
				}
			}
			if err := s.discard(dir, attemptName(n)); err != nil {
				return w, err
			}
		}
	}
}

// adopt gives the directory of attempt from to attempt to. It returns nil if
// that is not possible: its writer is alive, it is gone, or the new attempt
// has a directory with something in it.
func (s *Images) adopt(dir string, from, to int64) (*workdir, error) {
	w, err := openWorkdir(s.root, path.Join(dir, attemptName(from)))
	if w == nil || !isAt(s.root, path.Join(dir, attemptName(from)), w.root) {
		w.close()
		if errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
		return nil, err
	}
	err = s.rename(dir, attemptName(from), dir, attemptName(to))
	switch {
	case err == nil:
		return w, nil
	case errors.Is(err, fs.ErrNotExist), occupied(err):
		w.close()
		return nil, nil
	default:
		w.close()
		return nil, err
	}
}

// rename is rename(2): unlike os.Root.Rename it replaces an empty directory, and
// only an empty one.
func (s *Images) rename(fromDir, from, toDir, to string) error {
	a, err := s.root.Open(fromDir)
	if err != nil {
		return err
	}
	defer a.Close()
	b, err := s.root.Open(toDir)
	if err != nil {
		return err
	}
	defer b.Close()
	return unix.Renameat(int(a.Fd()), from, int(b.Fd()), to)
}

// discard takes the name from an entry of an import's directory, in one step,
// and removes it then. Only the first must succeed: the rest is tried again by
// whoever comes next.
func (s *Images) discard(dir, name string) error {
	trash := path.Join(dir, trashName())
	err := s.root.Rename(path.Join(dir, name), trash)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return failure("shut out attempt", err)
	}
	_ = s.root.RemoveAll(trash)
	return nil
}

// clear shuts out all attempts of an import and removes all that is staged.
func (s *Images) clear(ctx context.Context, importID string) error {
	dir := path.Join(stagingDir, importID)
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		entries, err := fs.ReadDir(s.root.FS(), dir)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return failure("remove staged image", err)
		}
		for _, e := range entries {
			if !isTrash(e.Name()) {
				if err := s.discard(dir, e.Name()); err != nil {
					return err
				}
			} else if err := s.root.RemoveAll(path.Join(dir, e.Name())); err != nil && !occupied(err) {
				return failure("remove staged image", err)
			}
		}
		switch err := s.root.Remove(dir); {
		case err == nil, errors.Is(err, fs.ErrNotExist):
			if err := syncDir(s.root, stagingDir); err != nil {
				return failure("remove staged image", err)
			}
			return nil
		case !occupied(err):
			return failure("remove staged image", err)
		}
	}
}

// attempts lists the attempts of an import, the last one first, and removes
// trash that a crash has left.
func (s *Images) attempts(dir string) ([]int64, error) {
	entries, err := fs.ReadDir(s.root.FS(), dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var list []int64
	for _, e := range entries {
		if isTrash(e.Name()) {
			_ = s.root.RemoveAll(path.Join(dir, e.Name()))
		} else if n, err := strconv.ParseInt(e.Name(), 10, 64); err == nil && attemptName(n) == e.Name() {
			list = append(list, n)
		}
	}
	slices.SortFunc(list, func(a, b int64) int { return cmp.Compare(b, a) })
	return list, nil
}

func attemptName(n int64) string { return strconv.FormatInt(n, 10) }

const trashPrefix = ".trash-"

func trashName() string { return trashPrefix + rand.Text() }

func isTrash(name string) bool { return strings.HasPrefix(name, trashPrefix) }

// openWorkdir opens and locks an attempt's directory. It returns nil if another
// holds the lock.
func openWorkdir(root *os.Root, name string) (*workdir, error) {
	dir, err := root.OpenRoot(name)
	if err != nil {
		return nil, err
	}
	lock, err := dir.Open(".") // through dir, so that both are one directory
	if err != nil {
		return nil, errors.Join(err, dir.Close())
	}
	w := &workdir{root: dir, lock: lock}
	if ok, err := tryLock(lock); !ok {
		w.close()
		return nil, err
	}
	return w, nil
}

// close drops the lock. It does nothing for nil.
func (w *workdir) close() {
	if w != nil {
		w.root.Close()
		// A program that this process is just starting has a copy of the descriptor
		// for a moment, and with that the lock.
		_ = unix.Flock(int(w.lock.Fd()), unix.LOCK_UN)
		w.lock.Close()
	}
}

// tryLock locks an open directory; ok is false if another has the lock.
func tryLock(d *os.File) (ok bool, err error) {
	err = unix.Flock(int(d.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return false, nil
	}
	return err == nil, err
}

// isAt reports whether name in root is the directory dir.
func isAt(root *os.Root, name string, dir *os.Root) bool {
	there, err := root.Lstat(name)
	if err != nil {
		return false
	}
	this, err := dir.Stat(".")
	return err == nil && os.SameFile(there, this)
}

// occupied reports whether a rename or rmdir failed since the target is there
// and is not an empty directory. Which error says so differs by file system.
func occupied(err error) bool {
	return errors.Is(err, unix.EEXIST) || errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, unix.ENOTDIR)
}
