package encode_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"testing"

	"go.uber.org/goleak"

	"vmimport/internal/diskimage"
	"vmimport/internal/diskimage/encode"
	"vmimport/internal/diskimage/formats"
	"vmimport/internal/diskimage/gz"
	"vmimport/internal/diskimage/imagetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var allForms = []encode.Form{encode.Copy, encode.Gzip, encode.VMDK, encode.QCOW2}

// unitOf is where a form can be cut.
var unitOf = map[encode.Form]int64{encode.Copy: 1, encode.Gzip: 1, encode.VMDK: 64 << 10, encode.QCOW2: 64 << 10}

const (
	kib = 1 << 10
	mib = 1 << 20
)

// sizes are disks around the edges of sectors, grains, clusters and members. Those of
// VMDK are around those of grain tables, too.
var (
	sizes     = []int64{512, 64*kib - 512, 64 * kib, 64*kib + 512, mib - 512, mib, mib + 512, 3*mib + 64*kib}
	vmdkSizes = []int64{32*mib - 64*kib, 32*mib - 512, 32 * mib, 32*mib + 512, 33 * mib, 64*mib + 64*kib + 512}
)

// mixed makes a disk of runs of zeros, random bytes and text, with edges at any byte. Of a large
// disk most are zeros.
func mixed(rng *rand.Rand, size int64) []byte {
	disk := make([]byte, size)
	noise := rand.NewChaCha8([32]byte{byte(rng.Uint32())})
	for at := int64(0); at < size; {
		run := disk[at:min(size, at+1+rng.Int64N(1<<rng.IntN(22)))]
		switch rng.IntN(4) {
		case 0:
			_, _ = noise.Read(run)
		case 1:
			for i := range run {
				run[i] = "a disk of text. "[(i*i>>3)%16]
			}
		case 2:
			run[rng.IntN(len(run))] = 1
		}
		at += int64(len(run)) + size/8
	}
	return disk
}

// written is a file in the making: what was written, cut into parts.
type written struct{ bytes.Buffer }

// run is how a disk is encoded.
type run struct {
	form    encode.Form
	workers int
	pieces  int64   // the most bytes of a Write
	cuts    []int64 // places on the disk, rising
	resume  bool    // go on with another encoder after each cut
}

// encoded returns the file of a disk. It checks that what is cut can be, and that no part is
// larger than is bounded.
func (r run) encoded(t testing.TB, disk []byte) []byte {
	t.Helper()
	size := int64(len(disk))
	head := encode.HeadBytes(r.form, size)
	var out written
	opt := encode.Options{Form: r.form, Size: size, Workers: r.workers}
	e := r.begin(t, &out, opt)
	defer func() { e.Close() }()
	rng := rand.New(rand.NewPCG(uint64(r.pieces), 7))
	var at, cut, length int64
	bounded := func() {
		t.Helper()
		if n, most := int64(out.Len())-length, encode.Bound(r.form, size, at-cut); n > most {
			t.Fatalf("%d bytes for those of the disk from %d to %d, at most %d were promised", n, cut, at, most)
		}
		cut, length = at, int64(out.Len())
	}
	for _, to := range append(slices.Clone(r.cuts), size) {
		for at < to {
			n := min(to-at, 1+rng.Int64N(max(1, r.pieces)))
			if got, err := e.Write(disk[at : at+n]); err != nil || int64(got) != n {
				t.Fatalf("write %d bytes at %d: %d, %v", n, at, got, err)
			}
			at += n
		}
		state, ok, err := e.Cut()
		if can := at%unitOf[r.form] == 0 || at == size; err != nil || ok != can {
			t.Fatalf("cut at %d of %d: %t, %v", at, size, ok, err)
		}
		if !ok {
			continue
		}
		bounded()
		if r.resume {
			e.Close()
			opt.State, opt.At, opt.Offset = state, at, head+int64(out.Len())
			e = r.begin(t, &out, opt)
		}
	}
	front, err := e.Finish()
	if err != nil {
		t.Fatal(err)
	}
	bounded()
	if int64(len(front)) != head {
		t.Fatalf("a head of %d bytes, %d were promised", len(front), head)
	}
	return append(front, out.Bytes()...)
}

func (r run) begin(t testing.TB, out io.Writer, opt encode.Options) encode.Encoder {
	t.Helper()
	e, err := encode.New(t.Context(), out, opt)
	if err != nil {
		t.Fatalf("new %s encoder at %d of %d, offset %d: %v", opt.Form, opt.At, opt.Size, opt.Offset, err)
	}
	return e
}

// decoded is the disk in a file, as an import would read it.
func decoded(t testing.TB, form encode.Form, file []byte) []byte {
	t.Helper()
	switch form {
	case encode.Copy:
		return file
	case encode.Gzip:
		content, err := io.ReadAll(gz.NewReader(bytes.NewReader(file), 1<<30))
		if err != nil {
			t.Fatal(err)
		}
		return content
	}
	image := imagetest.Of(file)
	format, err := diskimage.Detect(image, image.Size())
	if err != nil || string(format) != string(form) {
		t.Fatalf("the %s file is %q, %v", form, format, err)
	}
	disk, err := formats.OpenDisk(image, format)
	if err != nil {
		t.Fatal(err)
	}
	content, err := imagetest.Read(disk, image)
	if err != nil {
		t.Fatal(err)
	}
	return content
}

func same(t testing.TB, what string, got, want []byte) {
	t.Helper()
	if bytes.Equal(got, want) {
		return
	}
	for i := range min(len(got), len(want)) {
		if got[i] != want[i] {
			t.Fatalf("%s differs at byte %d, of %d and %d", what, i, len(got), len(want))
		}
	}
	t.Fatalf("%s has %d bytes, want %d", what, len(got), len(want))
}

// TestSizes encodes disks of many sizes and reads them back: whole, in resumed pieces, and with
// other workers, which gives the same bytes each time.
func TestSizes(t *testing.T) {
	t.Parallel()
	for _, form := range allForms {
		all := sizes
		if form == encode.VMDK {
			all = slices.Concat(sizes, vmdkSizes)
		}
		for i, size := range all {
			t.Run(fmt.Sprintf("%s/%d", form, size), func(t *testing.T) {
				t.Parallel()
				rng := rand.New(rand.NewPCG(uint64(i), 1))
				verify(t, rng, form, mixed(rng, size))
			})
		}
	}
}

// TestDisksOfZeros encodes disks that hold nothing.
func TestDisksOfZeros(t *testing.T) {
	t.Parallel()
	for _, form := range allForms {
		for _, size := range []int64{512, mib, 3*mib + 512} {
			t.Run(fmt.Sprintf("%s/%d", form, size), func(t *testing.T) {
				t.Parallel()
				verify(t, rand.New(rand.NewPCG(uint64(size), 2)), form, make([]byte, size))
			})
		}
	}
}

// verify encodes a disk in several ways.
func verify(t testing.TB, rng *rand.Rand, form encode.Form, disk []byte) {
	t.Helper()
	size := int64(len(disk))
	plain := run{form: form, workers: 1, pieces: size/1000 + 1<<rng.IntN(20)}.encoded(t, disk)
	same(t, "the disk in the file", decoded(t, form, plain), disk)

	crowd := run{form: form, workers: 3, pieces: size}.encoded(t, disk)
	same(t, "the file of three workers", crowd, plain)

	// Cuts between members change nothing.
	cuts := places(rng, size, 1+rng.IntN(8), mib)
	r := run{form: form, workers: 1 + rng.IntN(3), pieces: 1 << (10 + rng.IntN(13)), cuts: cuts, resume: true}
	same(t, "the resumed file", r.encoded(t, disk), plain)

	r.cuts = places(rng, size, 1+rng.IntN(8), []int64{1, 512, 64 * kib}[rng.IntN(3)])
	resumed := r.encoded(t, disk)
	r.resume = false
	r.workers = 2
	same(t, "the file that was cut", r.encoded(t, disk), resumed)
	if form != encode.Gzip {
		same(t, "the file that was cut anywhere", resumed, plain)
	}
	same(t, "the disk in the file that was cut", decoded(t, form, resumed), disk)
}

// places are n places on a disk, at multiples of unit, and may be the same.
func places(rng *rand.Rand, size int64, n int, unit int64) []int64 {
	cuts := make([]int64, n)
	for i := range cuts {
		cuts[i] = rng.Int64N(size/unit+1) * unit
	}
	slices.Sort(cuts)
	return cuts
}

// FuzzEncode encodes disks that the fuzzer describes, each part with two bytes: its length in
// units of a prime number, and what it holds.
func FuzzEncode(f *testing.F) {
	f.Add(uint8(1), uint64(1), []byte{1, 1})
	f.Add(uint8(2), uint64(2), []byte{0, 1, 255, 0, 3, 2, 255, 0, 129, 1})
	f.Add(uint8(3), uint64(3), []byte{9, 0, 9, 3, 200, 1, 200, 2, 1, 0})
	f.Add(uint8(0), uint64(4), bytes.Repeat([]byte{31, 1, 77, 0, 5, 2, 16, 3}, 8))
	f.Fuzz(func(t *testing.T, form uint8, seed uint64, plan []byte) {
		rng := rand.New(rand.NewPCG(seed, 0))
		var disk []byte
		for part := range slices.Chunk(plan[:min(len(plan), 64)], 2) {
			b := make([]byte, int(part[0])*1021)
			switch part[len(part)-1] % 4 {
			case 1:
				_, _ = rand.NewChaCha8([32]byte{part[0]}).Read(b)
			case 2:
				copy(b, "x")
			case 3:
				for i := range b {
					b[i] = byte(i % 7)
				}
			}
			disk = append(disk, b...)
		}
		disk = append(disk, make([]byte, max(512, diskimage.VirtualSize(int64(len(disk))))-int64(len(disk)))...)
		verify(t, rng, allForms[int(form)%len(allForms)], disk)
	})
}

// FuzzState goes on with states that nobody has made.
func FuzzState(f *testing.F) {
	f.Add(uint8(2), int64(33*mib), int64(mib), int64(64*kib), []byte{1, 2})
	f.Add(uint8(2), int64(33*mib), int64(32*mib), int64(64*kib), []byte{0})
	f.Add(uint8(3), int64(33*mib), int64(mib), int64(4*64*kib), []byte{1, 0})
	f.Add(uint8(3), int64(16<<40), int64(16<<40), int64(1<<42), bytes.Repeat([]byte{128, 128, 16}, 32))
	f.Add(uint8(2), int64(2<<40), int64(2<<40), int64(1<<41), bytes.Repeat([]byte{128, 128, 4}, 65536))
	f.Add(uint8(1), int64(5), int64(3), int64(2), []byte{})
	f.Fuzz(func(t *testing.T, form uint8, size, at, offset int64, state []byte) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		opt := encode.Options{Form: allForms[int(form)%len(allForms)], Size: size, Workers: 1, State: state, At: at, Offset: offset}
		var out bytes.Buffer
		e, err := encode.New(ctx, &out, opt)
		if err != nil {
			return
		}
		defer e.Close()
		if at > 0 {
			again, ok, err := e.Cut()
			if !ok || err != nil || out.Len() > 0 {
				t.Fatalf("cut of a new encoder: %t, %v, %d bytes", ok, err, out.Len())
			}
			opt.State = again
			e2, err := encode.New(ctx, &out, opt)
			if err != nil {
				t.Fatalf("its own state: %v", err)
			}
			e2.Close()
		}
		if size-at > 4*mib {
			return
		}
		if _, err := e.Write(bytes.Repeat([]byte{1}, int(size-at))); err != nil {
			t.Fatal(err)
		}
		if _, err := e.Finish(); err != nil {
			t.Fatal(err)
		}
	})
}
