package dirstore

import (
	"errors"
	"fmt"
	"io/fs"
	"syscall"
	"testing"

	"vmimport/internal/fault"
	"vmimport/storage"
)

func TestTranslateWrite(t *testing.T) {
	t.Parallel()
	for errno, want := range map[syscall.Errno]error{
		syscall.ENOSPC: storage.ErrFull, syscall.EDQUOT: storage.ErrFull, syscall.ENAMETOOLONG: ErrName,
		syscall.EEXIST: ErrNameTaken, syscall.ENOTDIR: ErrNameTaken, syscall.EISDIR: ErrNameTaken, syscall.EIO: storage.ErrUnavailable,
	} {
		err := translateWrite(fmt.Errorf("store object: %w", &fs.PathError{Op: "write", Path: "/srv/secret", Err: errno}))
		if !errors.Is(err, want) || !errors.Is(err, errno) {
			t.Errorf("%v is %v, want %v", errno, err, want)
		}
		if e := fault.Of(err); e.Evidence != "" {
			t.Errorf("%v shows the customer %q", errno, e.Evidence)
		}
	}
}
