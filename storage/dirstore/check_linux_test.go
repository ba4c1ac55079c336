package dirstore

import (
	"os"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"vmimport/internal/fault"
)

// What the service's user may not read or look into is found, also if the tests
// run as root, whom nothing is closed to.
func TestCheckRights(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("/tmp", "check") // below nothing that is closed itself
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	s, err := New(dir)
	if err != nil {
		t.Fatal(err)
	}
	for mode, code := range map[os.FileMode]string{0o777: "", 0o555: "", 0o333: "object_directory_closed", 0o444: "object_directory_closed", 0: "object_directory_closed"} {
		if err := os.Chmod(dir, mode); err != nil {
			t.Fatal(err)
		}
		checked := make(chan error)
		go func() {
			runtime.LockOSThread() // and never unlocked: the thread, which is nobody's, ends with the goroutine
			if os.Geteuid() == 0 {
				_ = unix.Setfsuid(65534)
			}
			checked <- s.Check(t.Context())
		}()
		if err := <-checked; fault.CodeOf(err) != code {
			t.Errorf("mode %o: %v, want %q", mode, err, code)
		}
	}
}
