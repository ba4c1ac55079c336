package clustertest

import (
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"

	"vmimport/internal/client"
	"vmimport/internal/config"
	"vmimport/internal/diskimage/imagetest"
	"vmimport/tasks"
)

// guestBytes is the size of the disk that is imported.
var guestBytes = config.ByteSize(2 << 30)

func init() {
	flag.TextVar(&guestBytes, "bench.guest", guestBytes, "size of the disk that benchmarks import")
}

// packings are the objects that are imported. Their extensions are those of the API,
// and their formats are called as qemu-img calls them.
var packings = []struct {
	name, extension, format, options string
	args                             []string
}{
	{"raw", ".raw", "raw", "", nil},
	{"vmdk-stream", ".vmdk", "vmdk", "subformat=streamOptimized", nil},
	{"qcow2-zlib", ".qcow2", "qcow2", "compression_type=zlib", []string{"-c"}},
	{"qcow2", ".qcow2", "qcow2", "", nil},
	{"vhd", ".vhd", "vpc", "subformat=dynamic,force_size=on", nil},
}

// BenchmarkImport compares an import, from the request until it is recorded as
// successful, with what people do by hand: download the object, have openssl hash it,
// and have qemu-img convert it, one after the other. The import ends with a disk that
// is durable, the other does not. Both read from the same server, which is on the
// same cores. time/by-hand is the import's time for 1 of that.
func BenchmarkImport(b *testing.B) {
	guest := filepath.Join(b.TempDir(), "guest.raw")
	imagetest.Disk(b, guest, int64(guestBytes))
	for _, p := range packings {
		b.Run(p.name, func(b *testing.B) {
			c := startNear(b)
			tn := c.tenants[0]
			image := imagetest.Convert(b, guest, p.format, p.options, p.args...)
			o := c.store.putFile(tn.bucket(), "disk"+p.extension, image)
			c.timeImport(o, guest)
			c.timeByHand(o, p.format, guest)
			var ratios, took []float64
			for b.Loop() {
				byHand, ours := c.timeByHand(o, p.format, ""), c.timeImport(o, "")
				ratios = append(ratios, ours.Seconds()/byHand.Seconds())
				took = append(took, ours.Seconds())
			}
			b.ReportMetric(0, "ns/op") // of a whole pair, and of all around it
			b.ReportMetric(median(ratios), "time/by-hand")
			b.ReportMetric(median(took), "s")
		})
	}
}

func median(values []float64) float64 {
	slices.Sort(values)
	return values[len(values)/2]
}

// startNear starts an API and a worker that reach the object store without the link,
// which would take a share of the cores.
func startNear(b *testing.B) *cluster {
	b.Helper()
	c := startCluster(b, settings{})
	c.link.URL = c.store.URL
	c.configure(settings{})
	c.apis = append(c.apis, c.start("api"))
	c.workers = append(c.workers, c.start("worker"))
	return c
}

// putFile makes the file at path an object, without moving its bytes: as putSparse
// does.
func (s *objectStore) putFile(bucket, key, path string) *object {
	s.t.Helper()
	s.put(bucket, key, []byte("to be replaced"))
	place := filepath.Join(s.Root, bucket, key)
	fi, err := os.Stat(path)
	if err == nil {
		err = os.Rename(path, place)
	}
	if err != nil {
		s.t.Fatal(err)
	}
	o := &object{key: key, size: fi.Size()}
	s.sum(bucket, o)
	return o
}

// timeImport imports an object and removes the image again. If guest is not empty the
// image is compared with it.
func (c *cluster) timeImport(o *object, guest string) time.Duration {
	c.t.Helper()
	tn := c.tenants[0]
	request := tn.request("benchmark", o)
	if filepath.Ext(o.key) == ".qcow2" {
		request.Details = &client.Details{ImageFrom: "kvm"}
	}
	syscall.Sync()
	began := time.Now()
	id, err := tn.api().Register(c.t.Context(), request)
	if err != nil {
		c.t.Fatal(err)
	}
	end := tn.await(id, 10*time.Minute, func(imp *tasks.Task) bool { return imp.State.Final() })
	took := time.Since(began)
	if end.State != tasks.Succeeded {
		c.t.Fatalf("import is %s: %v", end.State, end.Failure)
	}
	image := filepath.Join(c.images, end.ImageID)
	if guest != "" {
		imagetest.SameFile(c.t, filepath.Join(image, "disk-1.raw"), guest)
	}
	if err := os.RemoveAll(image); err != nil {
		c.t.Fatal(err)
	}
	return took
}

// timeByHand does with an object what is done without this service, and removes the
// results. If guest is not empty the disk is compared with it.
func (c *cluster) timeByHand(o *object, format, guest string) time.Duration {
	c.t.Helper()
	dir := c.t.TempDir()
	file, disk := filepath.Join(dir, o.key), filepath.Join(dir, "disk-1.raw")
	syscall.Sync()
	began := time.Now()
	err := c.store.core.FGetObject(c.t.Context(), c.tenants[0].bucket(), o.key, file, minio.GetObjectOptions{})
	if err != nil {
		c.t.Fatal(err)
	}
	sum := c.command("openssl", "sha1", file)
	c.command("qemu-img", "convert", "-f", format, "-O", "raw", file, disk)
	took := time.Since(began)
	if !strings.Contains(sum, o.sha1) {
		c.t.Fatalf("openssl says %q, want %s", sum, o.sha1)
	}
	if guest != "" {
		imagetest.SameFile(c.t, disk, guest)
	}
	for _, path := range []string{file, disk} {
		if err := os.Remove(path); err != nil {
			c.t.Fatal(err)
		}
	}
	return took
}

func (c *cluster) command(name string, args ...string) string {
	c.t.Helper()
	out, err := exec.CommandContext(c.t.Context(), name, args...).CombinedOutput()
	if err != nil {
		c.t.Fatalf("%s: %v\n%s", name, err, out)
	}
	return string(out)
}
