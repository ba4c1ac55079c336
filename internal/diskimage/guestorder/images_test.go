package guestorder_test

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"testing/iotest"

	"vmimport/internal/diskimage/guestorder"
	"vmimport/internal/diskimage/imagetest"
	"vmimport/storage/storagetest"
)

// sample is a QCOW2 image, and the disk in it as qemu-img sees it.
type sample struct {
	name       string
	file, want []byte
}

func newSample(t testing.TB, name, path string) sample {
	t.Helper()
	raw := filepath.Join(t.TempDir(), "disk.raw")
	imagetest.QemuImg(t, "convert", "-f", "qcow2", "-O", "raw", path, raw)
	file, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile(raw)
	if err != nil {
		t.Fatal(err)
	}
	return sample{name, file, want}
}

// samples are images of all the kinds that a cloud has.
func samples(t testing.TB, sparse, text imagetest.Guest) (all []sample) {
	t.Helper()
	for _, kind := range []struct {
		name, options string
		args          []string
	}{
		{name: "plain"},
		{name: "packed", args: []string{"-c"}},
		{name: "packed by zstd", options: "compression_type=zstd", args: []string{"-c"}},
		{name: "large clusters", options: "cluster_size=2M"},
		{name: "large clusters packed", options: "cluster_size=2M", args: []string{"-c"}},
		{name: "small clusters", options: "cluster_size=512"},
		{name: "small clusters packed", options: "cluster_size=4k", args: []string{"-c"}},
		{name: "subclusters", options: "extended_l2=on"},
		{name: "out of order", args: []string{"-W", "-m", "16"}},
	} {
		for _, g := range []imagetest.Guest{sparse, text} {
			path := imagetest.Convert(t, g.Path, "qcow2", kind.options, kind.args...)
			all = append(all, newSample(t, kind.name+" "+g.Name, path))
		}
	}
	return append(all, scattered(t, "64k"), scattered(t, "2M"), snapshots(t), mixed(t, text.Path))
}

// scattered is written at random places in random order. Its last cluster is partial.
func scattered(t testing.TB, cluster string) sample {
	t.Helper()
	path := filepath.Join(t.TempDir(), "scattered.qcow2")
	const size = 21<<20 + 1536
	imagetest.QemuImg(t, "create", "-q", "-f", "qcow2", "-o", "cluster_size="+cluster, path, fmt.Sprint(size))
	rng := rand.New(rand.NewPCG(1, 2))
	var writes []string
	for i := range 150 {
		off := rng.Int64N(size / 512)
		writes = append(writes, fmt.Sprintf("write -P %d %d %d", i+1, off*512, 512*min(1+rng.Int64N(300), size/512-off)))
	}
	imagetest.QemuIO(t, path, "qcow2", append(writes, fmt.Sprintf("write -P 9 %d 512", size-512), "write -z 3M 512k", "discard 6M 1M")...)
	return newSample(t, "scattered in clusters of "+cluster, path)
}

// snapshots was written to after each of several snapshots, so that its clusters were copied.
func snapshots(t testing.TB) sample {
	t.Helper()
	path := filepath.Join(t.TempDir(), "snapshots.qcow2")
	imagetest.QemuImg(t, "create", "-q", "-f", "qcow2", path, "12M")
	imagetest.QemuIO(t, path, "qcow2", "write -P 1 0 12M")
	for i := range 4 {
		imagetest.QemuImg(t, "snapshot", "-c", fmt.Sprint("s", i), path)
		imagetest.QemuIO(t, path, "qcow2", fmt.Sprintf("write -P %d %dk 200k", 20+i, 1000*i), fmt.Sprintf("write -P %d %dk 70k", 30+i, 11000-900*i))
	}
	return newSample(t, "with snapshots", path)
}

// mixed was packed, and then written to.
func mixed(t testing.TB, raw string) sample {
	t.Helper()
	path := imagetest.Convert(t, raw, "qcow2", "", "-c")
	rng := rand.New(rand.NewPCG(3, 4))
	var writes []string
	for i := range 30 {
		writes = append(writes, fmt.Sprintf("write -P %d %d 9k", i+1, rng.Int64N(6<<20)&^511))
	}
	imagetest.QemuIO(t, path, "qcow2", writes...)
	return newSample(t, "packed and written to", path)
}

func TestImages(t *testing.T) {
	t.Parallel()
	guests := imagetest.Guests(t)
	empty, sparse, dense, text := guests[0], guests[1], guests[2], guests[3]
	for name, test := range map[string]func(*testing.T){
		"Whole":    func(t *testing.T) { whole(t, samples(t, sparse, text)) },
		"Small":    func(t *testing.T) { smallReads(t, mixed(t, text.Path)) },
		"Requests": func(t *testing.T) { requests(t, empty, dense, text) },
		"Damaged":  func(t *testing.T) { damaged(t, sparse) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t)
		})
	}
}

func whole(t *testing.T, samples []sample) {
	for i, s := range samples {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			src := &counted{Object: storagetest.Object(s.file)}
			o := newObject(t, src, openQCOW2(t, s.file))
			if o.Size() != int64(len(s.want)) {
				t.Fatalf("Size() = %d, want %d", o.Size(), len(s.want))
			}
			for _, chunk := range []int64{4 << 20, 1_111_111} {
				got, err := fetch(t, o, chunk)
				if err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(got, s.want) {
					t.Fatalf("chunks of %d: the disk differs", chunk)
				}
			}
			rng := rand.New(rand.NewPCG(uint64(i), 0))
			for range 6 {
				off := rng.Int64N(o.Size())
				n := 1 + rng.Int64N(min(o.Size()-off, 1<<rng.IntN(20)))
				got, err := readRange(t.Context(), o, off, n)
				if err != nil || !bytes.Equal(got, s.want[off:off+n]) {
					t.Fatalf("%d bytes at %d: got %d, %v", n, off, len(got), err)
				}
			}
			if n := src.open.Load(); n != 0 {
				t.Errorf("%d bodies were left open", n)
			}
		})
	}
}

// However little a reader asks for at a time, it gets the same.
func smallReads(t *testing.T, s sample) {
	o := newObject(t, storagetest.Object(s.file), openQCOW2(t, s.file))
	for _, off := range []int64{0, 70_001, 1 << 20, o.Size() - 40_000} {
		body, err := o.ReadRange(t.Context(), off, 40_000)
		if err != nil {
			t.Fatal(err)
		}
		if err := iotest.TestReader(body, s.want[off:off+40_000]); err != nil {
			t.Error(err)
		}
		if n, err := body.Read(make([]byte, 1)); n != 0 || err != io.EOF {
			t.Errorf("read behind the end: %d, %v", n, err)
		}
		if err := body.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestConcurrent(t *testing.T) {
	t.Parallel()
	s := scattered(t, "64k")
	o := newObject(t, storagetest.Object(s.file), openQCOW2(t, s.file))
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(i), 5))
			for range 15 {
				off := rng.Int64N(o.Size())
				n := 1 + rng.Int64N(min(o.Size()-off, 256<<10))
				got, err := readRange(t.Context(), o, off, n)
				if err != nil || !bytes.Equal(got, s.want[off:off+n]) {
					t.Errorf("%d bytes at %d: got %d, %v", n, off, len(got), err)
				}
			}
		})
	}
	wg.Wait()
}

// Requests are few: none for holes, and one for what lies together.
func requests(t *testing.T, empty, dense, text imagetest.Guest) {
	for _, tt := range []struct {
		name, options string
		guest         imagetest.Guest
		args          []string
		requests      int64 // at most, in ranges of 4 MiB
	}{
		{"holes", "", empty, nil, 0},
		{"plain", "", dense, nil, 2},
		{"packed", "", text, []string{"-c"}, 2},
		{"packed small clusters", "cluster_size=4k", text, []string{"-c"}, 3},
		{"packed large clusters", "cluster_size=2M", text, []string{"-c"}, 2},
		{"incompressible", "", dense, []string{"-c"}, 2},
	} {
		s := newSample(t, tt.name, imagetest.Convert(t, tt.guest.Path, "qcow2", tt.options, tt.args...))
		src := &counted{Object: storagetest.Object(s.file)}
		got, err := fetch(t, newObject(t, src, openQCOW2(t, s.file)), 4<<20)
		if err != nil || !bytes.Equal(got, s.want) {
			t.Fatalf("%s: the disk differs, %v", tt.name, err)
		}
		if n := src.requests.Load(); n > tt.requests {
			t.Errorf("%s: %d requests, want at most %d", tt.name, n, tt.requests)
		}
		if n := src.bytes.Load(); n > int64(len(s.file)) {
			t.Errorf("%s: %d bytes of a file of %d", tt.name, n, len(s.file))
		}
	}
}

func TestVersion(t *testing.T) {
	t.Parallel()
	m := storagetest.NewMemory()
	var versions []string
	for range 2 {
		m.Put(loc, make([]byte, 512))
		src, err := m.Open(t.Context(), loc)
		if err != nil {
			t.Fatal(err)
		}
		_, d := disk(512, nil)
		v := newObject(t, src, d).Version()
		if v != newObject(t, src, d).Version() || v == src.Version() || len(v) != 70 {
			t.Errorf("version %q of a source of version %q", v, src.Version())
		}
		versions = append(versions, v)
	}
	if len(slices.Compact(versions)) != 2 {
		t.Errorf("two versions of a source have the same: %q", versions)
	}
}

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	src, d := disk(512, nil)
	d.Map = nil
	if _, err := guestorder.New(src, d); err == nil {
		t.Error("a disk without a map was taken")
	}
	src, d = disk(0, nil)
	if _, err := guestorder.New(src, d); err == nil {
		t.Error("a disk of no bytes was taken")
	}
}

func TestRangesOutside(t *testing.T) {
	t.Parallel()
	src, d := disk(1024, nil)
	o := newObject(t, src, d)
	for _, r := range [][2]int64{{-1, 1}, {0, 0}, {0, -1}, {0, 1025}, {1024, 1}, {1025, 1}, {1, 1<<63 - 1}} {
		if body, err := o.ReadRange(t.Context(), r[0], r[1]); err == nil {
			t.Errorf("%d bytes at %d were opened", r[1], r[0])
			body.Close()
		}
	}
}
