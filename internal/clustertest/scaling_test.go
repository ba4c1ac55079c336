package clustertest

import (
	"crypto/sha1"
	"encoding/hex"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"
	"time"

	"golang.org/x/time/rate"

	"vmimport/internal/config"
	"vmimport/tasks"
)

// What BenchmarkScaling does. The backlog is so large that the fastest run takes some
// twenty seconds, in which what an import costs besides its bytes hardly counts.
var (
	scalingRate  = config.ByteSize(100e6)
	scalingImage = config.ByteSize(128 << 20)
	scalingCount = flag.Int("scaling.images", 128, "how many images BenchmarkScaling imports")
	scalingData  = flag.Int("scaling.data", 100, "how much of each image is data and no hole, in percent")
	scalingPlot  = flag.String("scaling.plot", "../../docs/operations/scaling.svg", "where BenchmarkScaling draws its result; empty for nowhere")
	scalingDir   = flag.String("scaling.dir", "/dev/shm", "where BenchmarkScaling keeps its images meanwhile")
)

func init() {
	flag.TextVar(&scalingRate, "scaling.rate", scalingRate, "bytes per second that BenchmarkScaling's source gives each worker")
	flag.TextVar(&scalingImage, "scaling.image", scalingImage, "size of each image that BenchmarkScaling imports")
}

var scalingWorkers = []int{1, 2, 4, 8}

// leastEfficiency is how much of a worker must be left when it is one of many.
const leastEfficiency = 0.90

// BenchmarkScaling has the same backlog imported by 1, 2, 4 and 8 worker processes, of
// which each reads from a source of its own that gives so many bytes a second and no
// more, as a machine's network does. The time is from the first request to the last
// success. With n workers it should be an n-th: the efficiency is the part of that
// which is reached.
func BenchmarkScaling(b *testing.B) {
	var points []scalingPoint
	for _, workers := range scalingWorkers {
		b.Run(fmt.Sprint("workers=", workers), func(b *testing.B) {
			for b.Loop() {
				p := runScaling(b, workers)
				if len(points) > 0 {
					p.efficiency = points[0].took.Seconds() / (float64(workers) * p.took.Seconds())
				}
				points = append(points, p)
				b.ReportMetric(p.took.Seconds(), "s")
				b.ReportMetric(p.efficiency, "efficiency")
				if p.efficiency < leastEfficiency {
					b.Errorf("efficiency of %d workers is %.3f, want %.2f; the cores of this machine were busy for %.0f %% of the time, and if that is all, a lower -scaling.rate is what they can serve",
						workers, p.efficiency, leastEfficiency, 100*p.busy)
				}
			}
		})
	}
	if len(points) == 0 {
		return
	}
	fmt.Print(scalingTable(points))
	if *scalingPlot != "" && len(points) == len(scalingWorkers) {
		plot, err := drawScaling(points, int64(scalingRate))
		if err == nil {
			err = os.WriteFile(*scalingPlot, plot, 0o644)
		}
		if err != nil {
			b.Error(err)
		}
	}
}

// scalingPoint is the result for a number of workers.
type scalingPoint struct {
	workers    int
	took       time.Duration
	efficiency float64
	busy       float64 // part of the machine's time in which its cores were
	bytes      int64   // of the backlog
}

func (p scalingPoint) rate() float64 { return float64(p.bytes) / p.took.Seconds() }

func scalingTable(points []scalingPoint) string {
	var text strings.Builder
	w := tabwriter.NewWriter(&text, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "workers\ttime\tMB/s\tMB/s each\tefficiency\tcores busy\t")
	for _, p := range points {
		fmt.Fprintf(w, "%d\t%.1f s\t%.0f\t%.1f\t%.1f %%\t%.0f %%\t\n",
			p.workers, p.took.Seconds(), p.rate()/1e6, p.rate()/1e6/float64(p.workers), 100*p.efficiency, 100*p.busy)
	}
	_ = w.Flush() // into memory
	return text.String()
}

// runScaling imports the backlog once.
func runScaling(b *testing.B, workers int) scalingPoint {
	b.Helper()
	images, err := os.MkdirTemp(*scalingDir, "scaling")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { // once the workers are gone
		if err := os.RemoveAll(images); err != nil {
			b.Error(err)
		}
	})
	c := startCluster(b, settings{})
	c.images = images
	src := newScalingSource(int64(scalingImage), *scalingData)
	begin := func(program string, limit rate.Limit) {
		server := httptest.NewServer(src.limited(limit))
		b.Cleanup(func() {
			server.CloseClientConnections()
			server.Close()
		})
		// Each process reads its configuration once, when it starts.
		c.link.URL = server.URL
		c.configure(settings{concurrency: 2, parallel: 4})
		c.start(program)
	}
	begin("api", rate.Inf)
	c.apis = c.all[:1]
	for range workers {
		begin("worker", rate.Limit(scalingRate))
	}
	busy := coresBusy(b)
	took := c.importBacklog(*scalingCount, src.object)
	return scalingPoint{
		workers: workers, took: took, efficiency: 1, busy: busy(), bytes: int64(*scalingCount) * int64(scalingImage),
	}
}

// coresBusy begins to watch the machine's cores, and returns what tells for which part of
// the time since they had something to do.
func coresBusy(b *testing.B) func() float64 {
	b.Helper()
	read := func() (idle, all float64) {
		text, err := os.ReadFile("/proc/stat")
		if err != nil {
			b.Fatal(err)
		}
		line, _, _ := strings.Cut(string(text), "\n")     // of all cores together
		for i, field := range strings.Fields(line)[1:9] { // what follows is in these already
			ticks, err := strconv.ParseFloat(field, 64)
			if err != nil {
				b.Fatal(err)
			}
			all += ticks
			if i == 3 || i == 4 { // idle, and waiting for a disk
				idle += ticks
			}
		}
		return idle, all
	}
	idle, all := read()
	return func() float64 {
		idleNow, allNow := read()
		return 1 - (idleNow-idle)/max(allNow-all, 1)
	}
}

// importBacklog imports an object so many times, and returns how long that took from the
// first request until the last import was recorded as successful. Images that are done
// are removed, since memory may not hold all of them.
func (c *cluster) importBacklog(count int, o *object) time.Duration {
	c.t.Helper()
	tn := c.tenants[0]
	ids := make([]tasks.ID, count)
	began := time.Now()
	var wg sync.WaitGroup
	for first := range registrars {
		wg.Go(func() {
			var err error
			for n := first; n < count && err == nil; n += registrars {
				ids[n], err = tn.api().Register(c.t.Context(), tn.request(fmt.Sprint("image ", n), o))
			}
			if err != nil {
				c.t.Error(err)
			}
		})
	}
	wg.Wait()
	if c.t.Failed() {
		c.t.FailNow()
	}
	last := began
	for _, id := range ids {
		end := tn.await(id, longestBacklog, func(imp *tasks.Task) bool { return imp.State.Final() })
		if end.State != tasks.Succeeded {
			c.t.Fatalf("import is %s: %+v", end.State, end.Failure)
		}
		if end.FinishedAt.After(last) {
			last = end.FinishedAt
		}
		if err := os.RemoveAll(filepath.Join(c.images, end.ImageID)); err != nil {
			c.t.Fatal(err)
		}
	}
	return last.Sub(began)
}

const (
	registrars     = 4 // that ask for imports at a time
	longestBacklog = 20 * time.Minute
)

// scalingSource is an S3 server that costs next to nothing: whatever it is asked for is
// one object, made of the same piece of memory over and over.
type scalingSource struct {
	*object
	piece []byte
	holes []byte
	data  int // pieces of these are data, of 100
}

const scalingPiece = 1 << 20

func newScalingSource(size int64, percent int) *scalingSource {
	s := &scalingSource{
		piece: random(rand.New(rand.NewPCG(4, 5)), scalingPiece), holes: make([]byte, scalingPiece), data: percent,
		object: &object{key: "disk.raw", size: size},
	}
	sum := sha1.New()
	for off := int64(0); off < size; {
		p := s.at(off, size-off)
		sum.Write(p)
		off += int64(len(p))
	}
	s.sha1 = hex.EncodeToString(sum.Sum(nil))
	return s
}

// at returns some of the n bytes from off on.
func (s *scalingSource) at(off, n int64) []byte {
	from := s.piece
	// Data and holes take turns as evenly as they can, and the first piece is data.
	if i := int(off / scalingPiece); (i*s.data)%100 >= s.data && s.data < 100 {
		from = s.holes
	}
	p := from[off%scalingPiece:]
	return p[:min(int64(len(p)), n)]
}

// limited returns the server for one process. All its connections share the limit.
func (s *scalingSource) limited(limit rate.Limit) http.Handler {
	const at = 512 << 10 // a time: even enough, and cheap
	limiter := rate.NewLimiter(limit, 2*at)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		off, end := int64(0), s.size-1
		h := w.Header()
		h.Set("ETag", `"scaling"`)
		h.Set("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
		h.Set("Content-Type", "application/octet-stream")
		status := http.StatusOK
		if text := r.Header.Get("Range"); text != "" {
			if _, err := fmt.Sscanf(text, "bytes=%d-%d", &off, &end); err != nil || off > end || end >= s.size {
				http.Error(w, "InvalidRange", http.StatusRequestedRangeNotSatisfiable)
				return
			}
			h.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", off, end, s.size))
			status = http.StatusPartialContent
		}
		h.Set("Content-Length", fmt.Sprint(end+1-off))
		w.WriteHeader(status)
		for n := end + 1 - off; n > 0 && r.Method != http.MethodHead; {
			p := s.at(off, min(n, at))
			if limiter.WaitN(r.Context(), len(p)) != nil {
				return
			}
			if _, err := w.Write(p); err != nil {
				return
			}
			off, n = off+int64(len(p)), n-int64(len(p))
		}
	})
}
