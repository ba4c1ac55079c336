package dirimages

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// startWriteback has the kernel write n bytes at off to disk, and does not wait.
func startWriteback(f *os.File, off, n int64) {
	_ = unix.SyncFileRange(int(f.Fd()), off, n, unix.SYNC_FILE_RANGE_WRITE)
}

// syncData makes a file's contents durable.
func syncData(f *os.File) error {
	for {
		if err := unix.Fdatasync(int(f.Fd())); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// lockable refuses file systems on which a lock of a directory is granted, but
// holds on one machine only. The kernel does not tell them by an error.
func lockable(d *os.File) error {
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(d.Fd()), &fs); err != nil {
		return err
	}
	if fs.Type == unix.NFS_SUPER_MAGIC {
		return fmt.Errorf("NFS: %w", errors.ErrUnsupported)
	}
	return nil
}
