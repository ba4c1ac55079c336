package dirstore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	"vmimport/storage"
)

var _ storage.Target = (*Store)(nil)

// Vacant implements storage.Target. ErrNameTaken and ErrName are for names that cannot be
// stored at all.
func (s *Store) Vacant(ctx context.Context, up storage.Upload, names ...string) error {
	container, err := s.openTarget(ctx, up)
	if err != nil {
		return err
	}
	defer container.Close()
	entries, err := fs.ReadDir(container.FS(), ".")
	if err != nil {
		return storage.ErrUnavailable.Because(err)
	}
	for _, name := range names {
		if !fileName(name) || !up.At(name).Valid() {
			return ErrName
		}
		if err := vacant(container, up, name, entries); err != nil {
			return err
		}
	}
	return nil
}

// vacant is Vacant for one name in a container with these entries.
func vacant(container *os.Root, up storage.Upload, name string, entries []fs.DirEntry) error {
	prefix := stagePrefix(name)
	for _, e := range entries {
		id, ok := strings.CutPrefix(e.Name(), prefix)
		if !ok || id == up.ID || !uploadID.MatchString(id) {
			continue
		}
		if held, err := holdsParts(container, e.Name()); err != nil {
			return err
		} else if held {
			return storage.ErrObjectExists.Saw("parts of %s", name)
		}
	}
	there, err := lookAt(container, name)
	if there == nil || err != nil {
		return err
	}
	st, err := openStage(container, up, name)
	if errors.Is(err, fs.ErrNotExist) {
		return storage.ErrObjectExists.Saw("%s", name)
	}
	if err != nil {
		return translateWrite(err)
	}
	defer st.close()
	origin, err := st.origin(there)
	switch {
	case err != nil:
		return translateWrite(err)
	case origin == nil:
		return storage.ErrObjectExists.Saw("%s", name)
	}
	return nil
}

// lookAt describes the object of a name, or returns nil if nothing is there.
func lookAt(container *os.Root, name string) (fs.FileInfo, error) {
	info, err := container.Lstat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case err != nil:
		return nil, translateWrite(err)
	case !info.Mode().IsRegular():
		return nil, ErrNameTaken
	}
	return info, nil
}

// PutPart implements storage.Target. The part outlives a power failure.
func (s *Store) PutPart(ctx context.Context, up storage.Upload, name string, p storage.Part, body io.Reader) error {
	container, st, err := s.makeStage(ctx, up, name)
	if err != nil {
		return err
	}
	defer container.Close()
	defer st.close()
	spot, err := st.spotFor(p)
	if err != nil {
		return translateWrite(err)
	}
	if err := st.fill(ctx, spot, p, body); err != nil {
		st.giveUp(spot)
		return err
	}
	spot.close()
	return nil
}

// Join implements storage.Target. Bytes are read again, and their MD5 compared, only where
// they have to be copied, which is rare; else the MD5 is that of the bytes as they came.
func (s *Store) Join(ctx context.Context, up storage.Upload, name string, parts []storage.Part) error {
	container, err := s.openTarget(ctx, up)
	if err != nil {
		return err
	}
	defer container.Close()
	st, err := openStage(container, up, name)
	if errors.Is(err, fs.ErrNotExist) {
		if there, err := lookAt(container, name); there != nil || err != nil {
			return cmp.Or(err, error(storage.ErrObjectExists.Saw("%s", name)))
		}
		return storage.ErrPart.Saw("no part is there")
	}
	if err != nil {
		return translateWrite(err)
	}
	defer st.close()
	made := listSum(parts)
	return s.publish(container, st, name, made, func() (string, error) { return st.assemble(ctx, parts, made) })
}

// PutNew implements storage.Target.
func (s *Store) PutNew(ctx context.Context, up storage.Upload, name string, content []byte) error {
	container, st, err := s.makeStage(ctx, up, name)
	if err != nil {
		return err
	}
	defer container.Close()
	defer st.close()
	made := contentSum(content)
	return s.publish(container, st, name, made, func() (string, error) {
		spot, err := st.newSpot()
		if err != nil {
			return "", translateWrite(err)
		}
		if _, err = spot.file.Write(content); err == nil {
			err = st.seal(spot, made)
		}
		if err != nil {
			st.giveUp(spot)
			return "", translateWrite(fmt.Errorf("store object: %w", err))
		}
		spot.close()
		return spot.name, nil
	})
}

// publish gives the name of an object to the staged file that build returns, unless the
// upload's own that was made of the same is there already.
func (s *Store) publish(container *os.Root, st *stage, name, made string, build func() (file string, err error)) error {
	there, err := lookAt(container, name)
	if err != nil {
		return err
	}
	if there != nil {
		return s.finish(container, st, name, made, there)
	}
	file, err := build()
	if err == nil {
		err = s.link(container, path.Join(st.dir, file), name)
	}
	// Even if that failed: another attempt of the upload may have been faster, and have
	// removed what this one worked on.
	if there, lookErr := lookAt(container, name); lookErr == nil && there != nil {
		return s.finish(container, st, name, made, there)
	}
	return err
}

// link gives a staged file the name of an object, if nothing has it.
func (s *Store) link(container *os.Root, staged, name string) error {
	s.tree.Lock()
	defer s.tree.Unlock()
	err := place(container, path.Dir(name), func() error { return container.Link(staged, name) })
	if err != nil {
		return translateWrite(fmt.Errorf("publish object: %w", err))
	}
	return nil
}

// finish makes a published object durable, and removes what it was made from. It fails with
// storage.ErrObjectExists if the object is not the upload's, or was made of something else.
func (s *Store) finish(container *os.Root, st *stage, name, made string, object fs.FileInfo) error {
	origin, err := st.origin(object)
	switch {
	case err != nil:
		return translateWrite(err)
	case origin == nil || origin.Made != made:
		return storage.ErrObjectExists.Saw("%s", name)
	}
	if err := syncAbove(container, path.Dir(name)); err != nil {
		return translateWrite(err)
	}
	if err := st.tidy(object); err != nil {
		return translateWrite(err)
	}
	return nil
}

// Discard implements storage.Target.
func (s *Store) Discard(ctx context.Context, up storage.Upload, names ...string) error {
	return s.end(ctx, up, names, s.unpublish)
}

// Settle implements storage.Target. The objects are not known as the upload's any more.
func (s *Store) Settle(ctx context.Context, up storage.Upload, names ...string) error {
	return s.end(ctx, up, names, func(*os.Root, *stage, string) error { return nil })
}

// end removes what is staged for these names. Before that it calls first for each name that
// has something staged.
func (s *Store) end(ctx context.Context, up storage.Upload, names []string, first func(*os.Root, *stage, string) error) error {
	container, err := s.openTarget(ctx, up)
	if errors.Is(err, storage.ErrNoContainer) {
		return nil
	}
	if err != nil {
		return err
	}
	defer container.Close()
	for _, name := range names {
		st, err := openStage(container, up, name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return translateWrite(err)
		}
		err = first(container, st, name)
		st.close()
		if err == nil {
			err = removeStage(container, st.dir)
		}
		if err != nil {
			return translateWrite(err)
		}
	}
	return nil
}

// unpublish removes the object of a name if it is the upload's.
func (s *Store) unpublish(container *os.Root, st *stage, name string) error {
	s.tree.Lock()
	defer s.tree.Unlock()
	there, err := container.Lstat(name)
	if err == nil {
		origin, err := st.origin(there)
		if err == nil && origin != nil {
			err = st.takeBack(container, name)
		}
		if err != nil {
			return err
		}
	}
	prune(container, path.Dir(name)) // Join may have made them and no more
	return nil
}

// takeBack moves an object into the staging, where it goes with the rest. It looks once more
// there: a customer may have stored another in that moment, which is put back.
func (st *stage) takeBack(container *os.Root, name string) error {
	taken := newName()
	if err := container.Rename(name, path.Join(st.dir, taken)); errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	info, err := st.root.Lstat(taken)
	if err != nil {
		return err
	}
	origin, err := st.origin(info)
	if err != nil {
		return err
	}
	if origin == nil {
		err = container.Link(path.Join(st.dir, taken), name)
		if errors.Is(err, fs.ErrExist) {
			return nil // the customer has replaced it
		}
	}
	// After a power failure it would be back, and nobody would know whose it is.
	return errors.Join(err, syncAbove(container, path.Dir(name)))
}

// openTarget opens the container of an upload.
func (s *Store) openTarget(ctx context.Context, up storage.Upload) (*os.Root, error) {
	if ctx.Err() != nil {
		return nil, fmt.Errorf("open container: %w", context.Cause(ctx))
	}
	if !uploadID.MatchString(up.ID) {
		return nil, errBadUpload
	}
	container, err := s.openContainer(containerLocation(up.Project, up.Container))
	if errors.Is(err, storage.ErrNoObject) {
		return nil, storage.ErrNoContainer.Because(err)
	}
	return container, err
}

// makeStage opens an upload's container and the staging of a name, and makes the latter.
func (s *Store) makeStage(ctx context.Context, up storage.Upload, name string) (*os.Root, *stage, error) {
	if !fileName(name) || !up.At(name).Valid() {
		return nil, nil, ErrName
	}
	container, err := s.openTarget(ctx, up)
	if err != nil {
		return nil, nil, err
	}
	err = container.Mkdir(stageName(up, name), 0o750)
	if errors.Is(err, fs.ErrExist) {
		err = nil
	}
	if err == nil {
		err = syncDir(container, ".")
	}
	var st *stage
	if err == nil {
		st, err = openStage(container, up, name)
	}
	if err != nil {
		_ = container.Close()
		return nil, nil, translateWrite(fmt.Errorf("stage upload: %w", err))
	}
	return container, st, nil
}
