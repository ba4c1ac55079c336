package dirimages

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"

	"golang.org/x/sys/unix"

	"vmimport/imageapi"
	"vmimport/internal/fault"
)

// checkPrefix begins the names of trials. No image can be called so.
const checkPrefix = ".check-"

// errUnusable is what Check finds.
var errUnusable = fault.New(fault.Unavailable, "image_directory_unusable", "Images cannot be written into the image directory.").
	Try("Correct the path, or let the service's user write there, on a file system where directories can be locked.")

// Check reports whether New would succeed for root, and images could be written
// then: it does in little what an import does, with a directory of its own that
// it removes again. A root that is not there yet it does not make, but tries the
// directory that New would make it in.
func Check(_ context.Context, root string) error {
	dir, err := existing(root)
	if err != nil {
		return errUnusable.Because(err)
	}
	if err := try(dir); errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return imageapi.ErrFull.Because(err).Try("Remove what is not needed, or enlarge the file system.")
	} else if err != nil {
		return errUnusable.Because(err)
	}
	return nil
}

// existing returns dir or the first above it that exists.
func existing(dir string) (string, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	for {
		_, err := os.Stat(dir)
		if !errors.Is(err, fs.ErrNotExist) {
			return dir, err
		}
		dir = filepath.Dir(dir)
	}
}

// try writes, locks and renames in dir, and leaves it as it was.
func try(dir string) (err error) {
	var space unix.Statfs_t
	if err := unix.Statfs(dir, &space); err != nil {
		return fmt.Errorf("ask for free space: %w", err)
	}
	if space.Bavail == 0 && space.Blocks > 0 { // else it is no file system of files
		return fmt.Errorf("ask for free space: %w", unix.ENOSPC)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	staged := checkPrefix + rand.Text()
	published := staged + "-published"
	if err := root.Mkdir(staged, dirMode); err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, root.RemoveAll(staged), root.RemoveAll(published))
	}()
	work, err := openWorkdir(root, staged)
	if err != nil {
		return fmt.Errorf("lock a directory: %w", err)
	}
	defer work.close()
	if err := lockable(work.lock); err != nil {
		return fmt.Errorf("lock a directory: %w", err)
	}
	if err := writeJSON(work.root, recordFile, "a trial"); err != nil {
		return err
	}
	if err := root.Rename(staged, published); err != nil {
		return err
	}
	_, err = root.Stat(path.Join(published, recordFile))
	return err
}
