package decode_test

import (
	"context"
	"errors"
	"flag"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"vmimport/imageapi"
	"vmimport/imageapi/dirimages"
	"vmimport/internal/config"
	"vmimport/internal/diskimage"
	"vmimport/internal/diskimage/decode"
	"vmimport/internal/diskimage/formats"
	"vmimport/internal/diskimage/imagetest"
)

// guestBytes is the size of the disk that is converted.
var guestBytes = config.ByteSize(2 << 30)

func init() {
	flag.TextVar(&guestBytes, "bench.guest", guestBytes, "size of the disk that benchmarks convert")
}

// packings are the images that are converted, by qemu-img's names of their formats.
var packings = []struct {
	name, format, options string
	args                  []string
}{
	{"vmdk-stream", "vmdk", "subformat=streamOptimized", nil},
	{"qcow2-zlib", "qcow2", "compression_type=zlib", []string{"-c"}},
	{"qcow2-zstd", "qcow2", "compression_type=zstd", []string{"-c"}},
	{"qcow2", "qcow2", "", nil},
	{"vhd", "vpc", "subformat=dynamic,force_size=on", nil},
	{"vhdx", "vhdx", "subformat=dynamic", nil},
	{"vdi", "vdi", "", nil},
	{"vmdk-sparse", "vmdk", "subformat=monolithicSparse", nil},
	{"raw", "raw", "", nil},
}

// BenchmarkConvert compares decoding an image into an image directory with qemu-img,
// which converts the same image into a raw file. Both read from the page cache, and
// for neither the time is counted that it takes until the disk is durable: qemu-img
// leaves that to the kernel, and a worker has the kernel begin with it as it goes,
// which is counted (it costs nothing where the files are in memory). x-qemu-img is how many times as fast this is, and cpu-x-qemu-img how
// many times as much of the processors' time qemu-img takes.
func BenchmarkConvert(b *testing.B) {
	guest := filepath.Join(b.TempDir(), "guest.raw")
	imagetest.Disk(b, guest, int64(guestBytes))
	for _, p := range packings {
		b.Run(p.name, func(b *testing.B) {
			c := conversion{
				guest:  guest,
				image:  dense(b, imagetest.Convert(b, guest, p.format, p.options, p.args...)),
				format: p.format,
				dir:    b.TempDir(),
			}
			c.own(b, true)
			c.qemuImg(b, true)
			var wall, cpu, took []float64
			for b.Loop() {
				theirs, ours := c.qemuImg(b, false), c.own(b, false)
				wall = append(wall, theirs.wall.Seconds()/ours.wall.Seconds())
				cpu = append(cpu, theirs.cpu.Seconds()/ours.cpu.Seconds())
				took = append(took, ours.wall.Seconds())
			}
			b.ReportMetric(0, "ns/op") // of a whole pair, and of all around it
			b.ReportMetric(median(wall), "x-qemu-img")
			b.ReportMetric(median(cpu), "cpu-x-qemu-img")
			b.ReportMetric(median(took), "s")
		})
	}
}

// dense writes a file again, without the holes that qemu-img left in it and would skip:
// what was downloaded has none.
func dense(b *testing.B, path string) string {
	b.Helper()
	from, err := os.Open(path)
	if err != nil {
		b.Fatal(err)
	}
	defer from.Close()
	to, err := os.Create(path + ".dense")
	if err != nil {
		b.Fatal(err)
	}
	// Hiding what they are: files would be copied by the kernel, holes as holes.
	_, err = io.Copy(struct{ io.Writer }{to}, struct{ io.Reader }{from})
	if err := errors.Join(err, to.Close(), os.Rename(to.Name(), path)); err != nil {
		b.Fatal(err)
	}
	return path
}

// conversion is one image that is converted again and again.
type conversion struct {
	guest, image string
	format       string
	dir          string // for what comes out
}

// cost is what a conversion takes.
type cost struct{ wall, cpu time.Duration }

func median(values []float64) float64 {
	slices.Sort(values)
	return values[len(values)/2]
}

// qemuImg converts with qemu-img, and compares the result with the guest if asked to.
func (c conversion) qemuImg(b *testing.B, check bool) cost {
	b.Helper()
	out := filepath.Join(c.dir, "out.raw")
	cmd := exec.CommandContext(b.Context(), "qemu-img", "convert", "-f", c.format, "-O", "raw", c.image, out)
	syscall.Sync()
	began := time.Now()
	if message, err := cmd.CombinedOutput(); err != nil {
		b.Fatalf("qemu-img: %v\n%s", err, message)
	}
	took := cost{time.Since(began), cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()}
	if check {
		imagetest.SameFile(b, out, c.guest)
	}
	if err := os.Remove(out); err != nil {
		b.Fatal(err)
	}
	return took
}

// own converts as a worker does, and publishes the result and compares it with the
// guest if asked to.
func (c conversion) own(b *testing.B, check bool) cost {
	b.Helper()
	must := func(err error) {
		b.Helper()
		if err != nil {
			b.Fatal(err)
		}
	}
	const image, task = "image", "import"
	images, err := dirimages.New(c.dir, dirimages.Options{})
	must(err)
	defer images.Close()
	upload, err := images.Begin(b.Context(), imageapi.Spec{ImageID: image, ImportID: task, Attempt: 1, Format: "raw"})
	must(err)
	defer upload.Close()
	disk, _, err := upload.Disk(b.Context(), imageapi.DiskSpec{Number: 1, Size: int64(guestBytes)})
	must(err)
	syscall.Sync()
	began, used := time.Now(), cpuTime()
	must(convert(b.Context(), c.image, disk))
	took := cost{time.Since(began), cpuTime() - used}
	if check {
		must(disk.Close())
		must(upload.Publish(b.Context(), []imageapi.DiskFacts{{VirtualSize: int64(guestBytes)}}))
		imagetest.SameFile(b, filepath.Join(c.dir, image, "disk-1.raw"), c.guest)
	}
	must(upload.Close())
	must(images.Remove(b.Context(), task, image))
	return took
}

// cpuTime is what this process has used.
func cpuTime() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u) // cannot fail
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// chunkBytes is how an object comes to a worker by default.
const chunkBytes = 4 << 20

// convert writes the disk in the image at path to out.
func convert(ctx context.Context, path string, out io.WriterAt) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	src, err := formats.Open(diskimage.NewFile(f, fi.Size()), diskimage.Declared{}, formats.Limits{})
	if err != nil {
		return err
	}
	dec, err := decode.New(ctx, src, decode.Options{})
	if err != nil {
		return err
	}
	defer dec.Close()
	if err := dec.Begin([]io.WriterAt{out}, 0, nil); err != nil {
		return err
	}
	if err := take(dec, f, fi.Size()); err != nil {
		return err
	}
	_, err = dec.Finish()
	return err
}

// take gives a file to dec. As in a worker the next chunk comes while one is decoded.
func take(dec *decode.Decoder, f *os.File, size int64) error {
	came := make(chan error, 1)
	read := func(p []byte, off int64) {
		_, err := f.ReadAt(p, off)
		came <- err
	}
	chunk, ahead := make([]byte, chunkBytes), make([]byte, chunkBytes)
	ahead = ahead[:min(chunkBytes, size)]
	go read(ahead, 0)
	for off := int64(0); off < size; off += int64(len(chunk)) {
		if err := <-came; err != nil {
			return err
		}
		chunk, ahead = ahead, chunk[:cap(chunk)]
		if next := off + int64(len(chunk)); next < size {
			ahead = ahead[:min(chunkBytes, size-next)]
			go read(ahead, next)
		}
		if err := dec.Take(off, chunk); err != nil {
			return err
		}
	}
	return nil
}
