package dirimages

import (
	"errors"
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
