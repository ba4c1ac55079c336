package dirstore

import (
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// lock locks n bytes of an open file, or all from off if n is zero, against all who opened it
// on their own, in this process too. It reports whether it could; it does not wait.
func lock(f *os.File, off, n int64) bool {
	return setLock(f, &unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart, Start: off, Len: n})
}

func unlock(f *os.File) {
	setLock(f, &unix.Flock_t{Type: unix.F_UNLCK, Whence: io.SeekStart})
}

func setLock(f *os.File, l *unix.Flock_t) bool {
	return unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, l) == nil
}
