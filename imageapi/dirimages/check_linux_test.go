package dirimages

import (
	"os"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"vmimport/internal/fault"
)

// A directory that the service's user may not write to is found, also if the
// tests run as root, whom nothing is closed to.
func TestCheckRights(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("/tmp", "check") // below nothing that is closed itself
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	for mode, code := range map[os.FileMode]string{0o777: "", 0o555: "image_directory_unusable", 0o333: "image_directory_unusable"} {
		if err := os.Chmod(dir, mode); err != nil {
			t.Fatal(err)
		}
		checked := make(chan error)
		go func() {
			runtime.LockOSThread() // and never unlocked: the thread, which is nobody's, ends with the goroutine
			if os.Geteuid() == 0 {
				_ = unix.Setfsuid(65534)
			}
			checked <- Check(t.Context(), dir)
		}()
		if err := <-checked; fault.CodeOf(err) != code {
			t.Errorf("mode %o: %v, want %q", mode, err, code)
		}
	}
}
