package clustertest

import (
	"flag"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"vmimport/internal/testenv/service"
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

// build builds the programs once.
var build = sync.OnceValue(func() error { return service.Build(binaries) })
