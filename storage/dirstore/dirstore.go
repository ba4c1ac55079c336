// Package dirstore serves the files of a directory as objects.
//
// An object is a regular file below root/container; the APIs "swift" and "s3"
// name the same files. Nothing outside of the container is ever opened, by
// whatever name or symbolic link, and a link is no object itself.
//
// A file is pinned by its inode, length and times, which are compared again
// after each read and before the bytes are handed out. This holds for files
// replaced by rename, and for those overwritten or cut in place by system
// calls, on file systems that keep change times: all local ones, and NFS as far
// as its servers and clients agree on the time. It does not hold for a file
// that is changed through a memory map.
//
// The directory is a storage.Target, too, for several processes at once. How uploads are
// staged is explained in target_stage.go.
package dirstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"vmimport/storage"
)

// project is replaced in the root's path by the location's project.
const project = "{project}"

// tempPrefix begins the names of unfinished uploads. No object can be called so.
const tempPrefix = ".vmimport-upload-"

// tick is longer than the steps of a file system's clock (10 ms at most on
// Linux): a file that was changed longer ago than this cannot be changed again
// under the same change time.
const tick = 20 * time.Millisecond

// settleTries bounds how often Open looks at a file that is being written.
const settleTries = 10

// Store is a directory of objects. It is safe for concurrent use.
type Store struct {
	root string
	now  func() time.Time

	// tree is held while directories are made or removed for objects, so that
	// none is removed between its making and its first object. Other
	// processes are rare here, and place tries again.
	tree sync.Mutex
}

// New returns the store whose containers are the directories in root. If root
// contains "{project}", each project has a root of its own; otherwise all
// projects see the same objects. The directory need not exist yet.
func New(root string) (*Store, error) {
	if root == "" {
		return nil, errors.New("object directory: no path")
	}
	abs, err := filepath.Abs(root)
	if err != nil {
		return nil, fmt.Errorf("object directory: %w", err)
	}
	if strings.Contains(strings.Replace(abs, project, "", 1), "{") {
		return nil, fmt.Errorf("object directory %q: only one %s can be replaced", root, project)
	}
	return &Store{root: abs, now: time.Now}, nil
}

// Open implements storage.Store. A file that was changed just now it can pin
// only a fraction of a second later, and waits for that; one that does not stop
// changing is ErrChanged.
func (s *Store) Open(ctx context.Context, loc storage.Location) (storage.Object, error) {
	for range settleTries {
		if ctx.Err() != nil {
			return nil, fmt.Errorf("open object: %w", context.Cause(ctx))
		}
		seen, err := s.look(loc)
		if err != nil {
			return nil, err
		}
		if !seen.fresh(s.now()) {
			return &object{store: s, loc: loc, pinned: seen}, nil
		}
		select {
		case <-time.After(tick):
		case <-ctx.Done():
		}
	}
	return nil, storage.ErrChanged
}

// look returns the present state of a file.
func (s *Store) look(loc storage.Location) (state, error) {
	f, seen, err := s.openFile(loc)
	if err != nil {
		return state{}, err
	}
	_ = f.Close() // only read from
	return seen, nil
}

// openFile opens an object's file, if it is a regular one.
func (s *Store) openFile(loc storage.Location) (*os.File, state, error) {
	container, err := s.openContainer(loc)
	if err != nil {
		return nil, state{}, err
	}
	defer container.Close()
	if !fileName(loc.Name) {
		return nil, state{}, storage.ErrNoObject
	}
	// A link is refused here, as it is in List. That it may be put in place
	// after the look is no harm: it could not lead out of the container.
	if info, err := container.Lstat(loc.Name); err != nil {
		return nil, state{}, translate(err)
	} else if !info.Mode().IsRegular() {
		return nil, state{}, storage.ErrNoObject
	}
	// O_NONBLOCK: to open a pipe must not wait for a writer.
	f, err := container.OpenFile(loc.Name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, state{}, translate(err)
	}
	seen, err := stateOf(f)
	if err != nil {
		_ = f.Close()
		return nil, state{}, err
	}
	return f, seen, nil
}

// openContainer opens the container of loc as a root that nothing leads out of.
func (s *Store) openContainer(loc storage.Location) (*os.Root, error) {
	root, err := s.openRoot(loc)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	container, err := root.OpenRoot(loc.Container)
	if err != nil {
		return nil, translate(err)
	}
	return container, nil
}

// openRoot opens the directory of loc's project, for a valid loc.
func (s *Store) openRoot(loc storage.Location) (*os.Root, error) {
	if !loc.Valid() {
		return nil, storage.ErrNoObject
	}
	above, _, perProject := strings.Cut(s.root, project)
	if perProject && loc.Project == "" {
		return nil, storage.ErrNoObject
	}
	root, err := os.OpenRoot(s.rootOf(loc.Project))
	if err == nil {
		return root, nil
	}
	// A project without a directory has no objects. Any other directory that
	// is missing is a file system that is not mounted.
	if perProject && errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Stat(filepath.Dir(above + "x")); err == nil {
			return nil, storage.ErrNoObject
		}
	}
	return nil, storage.ErrUnavailable.Because(err)
}

func (s *Store) rootOf(name string) string { return strings.Replace(s.root, project, name, 1) }

// fileName reports whether name can be a file's path and means itself: the
// kernel would read "a//b" and "a/b/" as "a/b".
func fileName(name string) bool {
	return filepath.IsLocal(name) && filepath.Clean(name) == name && !strings.HasPrefix(name, tempPrefix)
}

// state is what tells one content of a file from another. The device is not
// part of it: its number for a shared file system differs from host to host,
// and versions are compared across hosts.
type state struct {
	inode        uint64
	size         int64
	mtime, ctime int64 // ns since 1970
}

// stateOf returns the state of an open regular file.
func stateOf(f *os.File) (state, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return state{}, translate(fmt.Errorf("stat object: %w", err))
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return state{}, storage.ErrNoObject
	}
	return state{st.Ino, st.Size, st.Mtim.Nano(), st.Ctim.Nano()}, nil
}

// fresh reports whether the file changed so short a time ago that another
// change could leave the same state.
func (st state) fresh(now time.Time) bool {
	age := now.Sub(time.Unix(0, st.ctime))
	return age > -tick && age < tick
}

func (st state) version() string {
	return fmt.Sprintf("%x-%x-%x-%x", st.inode, st.size, st.mtime, st.ctime)
}

// object is a file in one state.
type object struct {
	store  *Store
	loc    storage.Location
	pinned state
}

func (o *object) Size() int64     { return o.pinned.size }
func (o *object) Version() string { return o.pinned.version() }

func (o *object) ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	if off < 0 || n <= 0 || off > o.pinned.size-n {
		return nil, fmt.Errorf("read object: range %d+%d is not within its %d bytes", off, n, o.pinned.size)
	}
	if ctx.Err() != nil {
		return nil, fmt.Errorf("read object: %w", context.Cause(ctx))
	}
	f, now, err := o.store.openFile(o.loc)
	if errors.Is(err, storage.ErrNoObject) || err == nil && now != o.pinned {
		if f != nil {
			_ = f.Close()
		}
		return nil, storage.ErrChanged.Because(err)
	}
	if err != nil {
		return nil, err
	}
	return &body{ctx: ctx, file: f, pinned: o.pinned, off: off, left: n}, nil
}

// body reads a range of a file for as long as the file stays as it was.
type body struct {
	ctx    context.Context // of the range, which the body belongs to
	file   *os.File
	pinned state
	off    int64
	left   int64
	err    error // ended every later Read
}

// Read gives out no byte before it has seen that the file is still the same:
// the kernel sets a file's times before it changes the bytes. Disks do not
// wait for ctx, so it is looked at before each read and not within.
func (b *body) Read(p []byte) (int, error) {
	if b.err == nil && b.ctx.Err() != nil {
		b.err = fmt.Errorf("read object: %w", context.Cause(b.ctx))
	}
	if b.err == nil && b.left == 0 {
		b.err = io.EOF
	}
	if b.err != nil {
		return 0, b.err
	}
	p = p[:min(int64(len(p)), b.left)]
	n, err := b.file.ReadAt(p, b.off)
	if err == io.EOF {
		err = io.ErrUnexpectedEOF // the range lies within the pinned size
	}
	now, serr := stateOf(b.file)
	switch {
	case serr != nil:
		b.err = serr
	case now != b.pinned:
		b.err = storage.ErrChanged
	case err != nil:
		b.err = translate(fmt.Errorf("read object: %w", err))
	}
	if b.err != nil {
		return 0, b.err
	}
	b.off += int64(n)
	b.left -= int64(n)
	return n, nil
}

func (b *body) Close() error {
	if err := b.file.Close(); err != nil && !errors.Is(err, fs.ErrClosed) {
		return fmt.Errorf("close object: %w", err)
	}
	return nil
}

// translate gives an error of the file system its meaning. Paths stay in the
// cause, which is for the log.
func translate(err error) error {
	switch {
	case errors.Is(err, syscall.ESTALE): // NFS: the file is gone from the server
		return storage.ErrChanged.Because(err)
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, fs.ErrPermission),
		errors.Is(err, syscall.ENOTDIR), errors.Is(err, syscall.ENAMETOOLONG),
		errors.Is(err, syscall.ELOOP), escapes(err):
		return storage.ErrNoObject.Because(err)
	default:
		return storage.ErrUnavailable.Because(err)
	}
}

// escapes reports whether os.Root refused a link that leads out of it. The
// error has no name; it is the only one here that is no system call's.
func escapes(err error) bool {
	e, ok := errors.AsType[*fs.PathError](err)
	if !ok {
		return false
	}
	_, system := errors.AsType[syscall.Errno](e.Err)
	return !system && e.Err != nil && !errors.Is(e.Err, fs.ErrClosed)
}
