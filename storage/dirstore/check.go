package dirstore

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"vmimport/internal/fault"
)

// Check reports whether objects could be read: the root is a directory that can
// be listed and looked into. Of a root for each project it looks at the
// directory that they lie in. It changes nothing.
func (s *Store) Check(context.Context) error {
	dir := s.root
	if above, _, perProject := strings.Cut(s.root, project); perProject {
		dir = filepath.Dir(above + "x")
	}
	err := list(dir)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, fs.ErrNotExist):
		return fault.Wrap(err, fault.Unavailable, "object_directory_missing", "The object directory is not there.").
			Try("Make it, or mount the file system that holds it.")
	case errors.Is(err, syscall.ENOTDIR):
		return fault.Wrap(err, fault.Unavailable, "object_directory_is_none", "The path of the object directory leads to something else.").
			Try("Correct the path.")
	case errors.Is(err, fs.ErrPermission):
		return fault.Wrap(err, fault.Denied, "object_directory_closed", "The object directory cannot be read.").
			Try("Let the service's user list it and look into it.")
	}
	return fault.Wrap(err, fault.Unavailable, "object_directory_failed", "The object directory cannot be read.").
		Try("Look for what is wrong with its file system.")
}

// list reads one entry of a directory. Unlike an open by its own path, one by
// "." also needs the right to look into it.
func list(dir string) error {
	if info, err := os.Stat(dir); err != nil {
		return err
	} else if !info.IsDir() {
		return &fs.PathError{Op: "open", Path: dir, Err: syscall.ENOTDIR}
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	d, err := root.Open(".")
	if err != nil {
		return err
	}
	defer d.Close()
	if _, err = d.Readdirnames(1); errors.Is(err, io.EOF) {
		return nil
	}
	return err
}
