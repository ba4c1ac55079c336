package testenv

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"
)

// S3 is a real S3 server: versitygw over a directory, with signatures checked
// and keep-alive on.
type S3 struct {
	URL       string // without a path
	Region    string
	AccessKey string
	SecretKey string
	// Root holds a directory for each bucket. Objects are put there over S3: a
	// file that was not has no ETag.
	Root string
}

// StartS3 starts a server that lives as long as the test. The first call on a
// machine builds it, which takes minutes.
func StartS3(t testing.TB) *S3 {
	t.Helper()
	bin, err := buildGateway()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	s := &S3{Region: "test-region-1", AccessKey: "AKTEST", SecretKey: "the-secret-of-the-test", Root: filepath.Join(dir, "buckets")}
	meta := filepath.Join(dir, "meta") // beside the objects: not every file system has extended attributes
	for _, d := range []string{s.Root, meta} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	// Another process may take the port between its choice and its use.
	const tries = 5
	for range tries {
		if err = s.start(t, bin, meta); !errors.Is(err, errExited) {
			break
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	return s
}

var errExited = errors.New("versitygw ended")

// start runs the server on a port that was free just now, and returns when it
// answers. errExited: it did not stay, as when the port was taken.
func (s *S3) start(t testing.TB, bin, meta string) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	addr := l.Addr().String()
	if err := l.Close(); err != nil {
		return err
	}
	var log bytes.Buffer
	cmd := exec.Command(bin, "--port", addr, "--region", s.Region, "--health", "/health", "--quiet", "--keep-alive",
		"posix", "--sidecar", meta, s.Root)
	cmd.Env = append(os.Environ(), "ROOT_ACCESS_KEY="+s.AccessKey, "ROOT_SECRET_KEY="+s.SecretKey)
	cmd.Stdout, cmd.Stderr = &log, &log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return err
	}
	exited := make(chan struct{})
	go func() {
		defer close(exited)
		_ = cmd.Wait() // says "killed"
	}()
	stop := func() {
		_ = cmd.Process.Kill() // fails if it has ended
		<-exited
	}
	s.URL = "http://" + addr
	if err := waitReady(t.Context(), s.URL+"/health", exited); err != nil {
		stop()
		return fmt.Errorf("%w: %s", err, log.Bytes())
	}
	t.Cleanup(stop)
	return nil
}

// waitReady polls url until it answers 200 or the server has exited.
func waitReady(ctx context.Context, url string, exited <-chan struct{}) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		if resp, err := client.Do(req); err == nil {
			_ = resp.Body.Close() // unread
			if resp.StatusCode == http.StatusOK {
				return nil
			}
		}
		select {
		case <-tick.C:
		case <-exited:
			return errExited
		case <-ctx.Done():
			return fmt.Errorf("versitygw did not come up: %w", context.Cause(ctx))
		}
	}
}

// buildGateway builds the server, once a process, and returns its path.
var buildGateway = sync.OnceValues(func() (string, error) {
	root, err := repository()
	if err != nil {
		return "", err
	}
	cache := filepath.Join(root, ".cache")
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", err
	}
	// The tests of several packages run at once, and go build does not replace
	// its output in one step.
	lock, err := os.OpenFile(filepath.Join(cache, "s3gateway.lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return "", err
	}
	defer lock.Close() // which unlocks it
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return "", fmt.Errorf("lock %s: %w", lock.Name(), err)
	}
	// An up-to-date output is left alone, so others may be running it.
	bin := filepath.Join(cache, "s3gateway")
	cmd := exec.Command("go", "build", "-C", filepath.Join(root, "tools", "s3gateway"), "-trimpath", "-ldflags=-s -w",
		"-o", bin, "github.com/versity/versitygw/cmd/versitygw")
	cmd.Env = append(os.Environ(), "GOWORK=off", "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the S3 gateway: %w\n%s", err, out)
	}
	return bin, nil
})

// repository returns the directory of the module that the test belongs to.
func repository() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		_, err := os.Stat(filepath.Join(dir, "go.mod"))
		if err == nil {
			return dir, nil
		}
		if parent := filepath.Dir(dir); errors.Is(err, fs.ErrNotExist) && parent != dir {
			dir = parent
			continue
		}
		return "", fmt.Errorf("find go.mod: %w", err)
	}
}
