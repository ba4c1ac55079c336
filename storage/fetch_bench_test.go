package storage_test

import (
	"bufio"
	"context"
	"crypto/sha1"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"vmimport/storage"
	"vmimport/storage/storagetest"
)

const mib = 1 << 20

// benchPool is as a worker has it by default.
func benchPool() *storage.Pool { return storage.NewPool(160*mib, 4*mib) }

// cost is what something takes.
type cost struct{ wall, cpu float64 } // seconds; cpu of this process alone

func measure(b *testing.B, f func() error) cost {
	b.Helper()
	began, used := time.Now(), cpuSeconds()
	if err := f(); err != nil {
		b.Fatal(err)
	}
	return cost{time.Since(began).Seconds(), cpuSeconds() - used}
}

func cpuSeconds() float64 {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u) // cannot fail
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()).Seconds()
}

// median of the ratios of pairs that were measured in turn: what else the
// machine does then weighs on both alike.
func median(ratios []float64) float64 {
	slices.Sort(ratios)
	return ratios[len(ratios)/2]
}

// BenchmarkFetchFar compares with one stream of the same far source, hashed as
// it comes.
func BenchmarkFetchFar(b *testing.B) {
	const size = 256 * mib
	obj := storagetest.Paced(size, 50*time.Millisecond, 25e6)
	pool := benchPool()
	var ratios []float64
	b.SetBytes(size)
	for b.Loop() {
		fetch := measure(b, func() error {
			_, err := storage.Fetch(b.Context(), obj, storage.Options{Pool: pool})
			return err
		})
		stream := measure(b, func() error {
			body, err := obj.ReadRange(b.Context(), 0, size)
			if err != nil {
				return err
			}
			defer body.Close()
			_, err = io.CopyBuffer(sha1.New(), struct{ io.Reader }{body}, make([]byte, mib))
			return err
		})
		ratios = append(ratios, fetch.wall/stream.wall)
	}
	b.ReportMetric(median(ratios), "time/stream")
}

// BenchmarkFetchNear compares sources that are no limit with SHA-1 alone over
// the same bytes in memory: one that costs nothing, which shows what Fetch
// itself costs, one that copies, and an HTTP server in a child process on the
// same cores.
func BenchmarkFetchNear(b *testing.B) {
	const size = 512 * mib
	content := contentOf(b, size)
	b.Run("free", func(b *testing.B) { benchmarkNear(b, freeObject{size}, content) })
	b.Run("memory", func(b *testing.B) { benchmarkNear(b, storagetest.Object(content), content) })
	b.Run("http", func(b *testing.B) { benchmarkNear(b, served(b, content), content) })
}

func benchmarkNear(b *testing.B, obj storage.Object, content []byte) {
	pool := benchPool()
	var ratios, cpu []float64
	b.SetBytes(int64(len(content)))
	for b.Loop() {
		alone := measure(b, func() error {
			h := sha1.New()
			for piece := range slices.Chunk(content, 8*mib) {
				h.Write(piece)
			}
			return nil
		})
		fetch := measure(b, func() error {
			_, err := storage.Fetch(b.Context(), obj, storage.Options{Pool: pool})
			return err
		})
		ratios = append(ratios, alone.wall/fetch.wall)
		cpu = append(cpu, fetch.cpu/alone.cpu)
	}
	b.ReportMetric(median(ratios), "speed/sha1")
	b.ReportMetric(median(cpu), "cpu/sha1")
}

func contentOf(tb testing.TB, size int64) []byte {
	tb.Helper()
	body, err := storagetest.Paced(size, 0, 0).ReadRange(tb.Context(), 0, size)
	if err != nil {
		tb.Fatal(err)
	}
	defer body.Close()
	content := make([]byte, size)
	if _, err := io.ReadFull(body, content); err != nil {
		tb.Fatal(err)
	}
	return content
}

// freeObject leaves the buffers as they are.
type freeObject struct{ size int64 }

func (o freeObject) Size() int64   { return o.size }
func (freeObject) Version() string { return "" }

func (freeObject) ReadRange(_ context.Context, _, n int64) (io.ReadCloser, error) {
	return io.NopCloser(io.LimitReader(freeReader{}, n)), nil
}

type freeReader struct{}

func (freeReader) Read(p []byte) (int, error) { return len(p), nil }

// serveEnv names the folder that the test binary serves over HTTP if it is set.
const serveEnv = "VMIMPORT_TEST_SERVE"

// serve prints its address and then serves until its standard input ends.
func serve(dir string) error {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		listener.Close()
	}()
	fmt.Println(listener.Addr())
	return http.Serve(listener, http.FileServer(http.Dir(dir)))
}

// served returns content as an object behind a server in a child process.
func served(b *testing.B, content []byte) storage.Object {
	b.Helper()
	dir := b.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "object"), content, 0o600); err != nil {
		b.Fatal(err)
	}
	cmd := exec.CommandContext(b.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), serveEnv+"="+dir)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	transport := &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: 16}
	b.Cleanup(func() {
		transport.CloseIdleConnections()
		stdin.Close()
		_ = cmd.Wait()
	})
	addr, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		b.Fatal(err)
	}
	return &httpObject{
		client: &http.Client{Transport: transport},
		url:    "http://" + strings.TrimSpace(addr) + "/object",
		size:   int64(len(content)),
	}
}

// httpObject reads ranges of a plain HTTP server.
type httpObject struct {
	client *http.Client
	url    string
	size   int64
}

func (o *httpObject) Size() int64     { return o.size }
func (o *httpObject) Version() string { return "" }

func (o *httpObject) ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, o.url, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", off, off+n-1))
	resp, err := o.client.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusPartialContent {
		resp.Body.Close()
		return nil, fmt.Errorf("range %d+%d: %s", off, n, resp.Status)
	}
	return resp.Body, nil
}
