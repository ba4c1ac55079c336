package clustertest

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

var (
	soak         = flag.Bool("soak", false, "run TestCluster and TestTakeover at length")
	soakDuration = flag.Duration("soak.duration", 5*time.Minute, "how long a soak is disturbed")
	soakImports  = flag.Int("soak.imports", 200, "how many imports a soak asks for")
)

// binaries is the directory of the programs, once they are built.
var binaries string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "clustertest")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		binaries = dir
		return m.Run()
	}())
}

// build builds the programs once. They are built as they are shipped, without
// the race detector: what is measured here is time and memory.
var build = sync.OnceValue(func() error {
	cmd := exec.Command("go", "build", "-buildvcs=false", "-o", binaries+string(filepath.Separator), "vmimport/cmd/api", "vmimport/cmd/worker")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build the programs: %w\n%s", err, out)
	}
	return nil
})
