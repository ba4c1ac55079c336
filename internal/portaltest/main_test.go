package portaltest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"
	"go.uber.org/goleak"
)

// TestMain starts the browser that the tests share, and sees to it that neither a process, a
// goroutine nor a temporary file is left.
func TestMain(m *testing.M) {
	temp, err := os.MkdirTemp("", "portaltest")
	if err == nil {
		err = os.Setenv("TMPDIR", temp)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	goleak.VerifyTestMain(suite{m}, goleak.Cleanup(func(code int) {
		files, err := os.ReadDir(temp)
		if processes := processesOf(temp); err != nil || len(files) > 0 || len(processes) > 0 {
			fmt.Fprintln(os.Stderr, "left behind:", files, processes, err)
			code = max(code, 1)
		}
		_ = os.RemoveAll(temp)
		os.Exit(code)
	}))
}

// suite is all tests, with the browser around them.
type suite struct{ tests *testing.M }

func (s suite) Run() int {
	var end func()
	var err error
	if chromium, end, err = startChromium(); err != nil {
		fmt.Fprintln(os.Stderr, "the tests of the portal need the Debian package chromium:", err)
		return 1
	}
	defer end()
	code := s.tests.Run()
	if err := chromedp.Cancel(chromium); err != nil {
		fmt.Fprintln(os.Stderr, "end chromium:", err)
		code = max(code, 1)
	}
	return code
}

// processesOf returns the command lines of the processes that were started with a file of a directory.
func processesOf(dir string) (found []string) {
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline") // fails for a bad pattern alone
	for _, f := range files {
		line, err := os.ReadFile(f) // fails if the process has ended
		if err == nil && strings.Contains(string(line), dir) {
			found = append(found, strings.ReplaceAll(string(line), "\x00", " "))
		}
	}
	return found
}
