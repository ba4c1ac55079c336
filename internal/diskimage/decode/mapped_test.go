package decode

import (
	"bytes"
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"testing"

	"vmimport/internal/diskimage"
	"vmimport/internal/diskimage/imagetest"
)

// take gives file[from:to] to d in chunks of n bytes.
func take(d disk, file []byte, from, to, n int) error {
	for off := from; off < to; off += n {
		p := bytes.Clone(file[off:min(off+n, to)])
		if err := d.take(int64(off), p); err != nil {
			return err
		}
		clear(p) // a chunk is used again when take has returned
	}
	return nil
}

func TestMappedInAnyChunks(t *testing.T) {
	t.Parallel()
	for seed := range uint64(40) {
		rng := rand.New(rand.NewPCG(seed, 1))
		file, d, want := layout(rng, 512*(2+rng.IntN(5)), 60)
		for _, n := range []int{1 + rng.IntN(40), 512, 4096, len(file)} {
			m, err := newMapped(t.Context(), d, imagetest.Of(file))
			if err != nil {
				t.Fatal(err)
			}
			out := newCanvas(d.Size)
			if err := m.begin(out, diskimage.Position{}, 0); err != nil {
				t.Fatal(err)
			}
			if err := take(m, file, 0, len(file), n); err != nil {
				t.Fatalf("seed %d, chunks of %d: %v", seed, n, err)
			}
			size, err := m.finish()
			if err != nil || size != d.Size {
				t.Fatalf("finish: %d, %v", size, err)
			}
			if !bytes.Equal(out.data, want) || out.twice > 0 {
				t.Fatalf("seed %d, chunks of %d: the disk differs, %d bytes written twice", seed, n, out.twice)
			}
		}
	}
}

// Wherever an attempt stops, another goes on, and both together write the disk.
func TestMappedGoesOn(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(1, 2))
	file, d, want := layout(rng, 1024, 40)
	for stop := 0; stop <= len(file); stop += 1 + rng.IntN(97) {
		out := newCanvas(d.Size)
		first, err := newMapped(t.Context(), d, imagetest.Of(file))
		if err != nil {
			t.Fatal(err)
		}
		second, err := newMapped(t.Context(), d, imagetest.Of(file))
		if err != nil {
			t.Fatal(err)
		}
		err = errors.Join(
			first.begin(out, diskimage.Position{}, 0), take(first, file, 0, stop, 700),
			second.begin(out, first.position(), int64(stop)), take(second, file, stop, len(file), 900))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := second.finish(); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(out.data, want) || out.twice > 0 {
			t.Fatalf("stopped at %d: the disk differs, %d bytes written twice", stop, out.twice)
		}
	}
}

func TestMappedEndsEarly(t *testing.T) {
	t.Parallel()
	file, d, _ := layout(rand.New(rand.NewPCG(3, 3)), 1024, 10)
	m, err := newMapped(t.Context(), d, imagetest.Of(file))
	if err != nil {
		t.Fatal(err)
	}
	err = errors.Join(m.begin(newCanvas(d.Size), diskimage.Position{}, 0), take(m, file, 0, len(file)/2, 512))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.finish(); !errors.Is(err, diskimage.ErrTruncated) {
		t.Fatalf("finish: %v", err)
	}
}

func TestOrder(t *testing.T) {
	t.Parallel()
	plain := func(guest, file int64) diskimage.Extent {
		return diskimage.Extent{Guest: guest, Length: 512, File: file, Stored: 512}
	}
	packed := func(guest, file, stored int64) diskimage.Extent {
		return diskimage.Extent{Guest: guest, Length: 512, File: file, Stored: stored, Packed: true}
	}
	for _, tt := range []struct {
		name    string
		extents []diskimage.Extent
		want    bool
	}{
		{"none", nil, true},
		{"one", []diskimage.Extent{plain(512, 9000)}, true},
		{"rising", []diskimage.Extent{plain(0, 0), plain(512, 512), plain(2048, 5000)}, true},
		{"falling", []diskimage.Extent{plain(0, 512), plain(512, 0)}, false},
		{"shared", []diskimage.Extent{plain(0, 512), plain(512, 512)}, false},
		{"overlapping", []diskimage.Extent{plain(0, 512), plain(512, 600)}, false},
		{"packed with slack", []diskimage.Extent{packed(0, 0, 512), packed(512, 300, 512)}, true},
		{"packed at one place", []diskimage.Extent{packed(0, 300, 512), packed(512, 300, 512)}, false},
	} {
		p, err := newPlan(t.Context(), &diskimage.Disk{Size: 4096, Map: table{extents: tt.extents}}, 1<<20, usual)
		if err != nil {
			t.Fatalf("%s: %v", tt.name, err)
		}
		if p.inOrder != tt.want {
			t.Errorf("%s: in order %v", tt.name, p.inOrder)
		}
		if want := int64(len(tt.extents)) * 512; p.bytes != want {
			t.Errorf("%s: %d bytes of data, want %d", tt.name, p.bytes, want)
		}
	}
}

// scattered is an image whose every unit is somewhere else.
type scattered struct {
	table
	unit, units int64
	place       func(i int64) int64
	scans       int
}

func (s *scattered) Extents(from int64) iter.Seq2[diskimage.Extent, error] {
	return func(yield func(diskimage.Extent, error) bool) {
		s.scans++
		for i := from / s.unit; i < s.units; i++ {
			if !yield(diskimage.Extent{Guest: i * s.unit, Length: s.unit, File: s.place(i) * s.unit, Stored: s.unit}, nil) {
				return
			}
		}
	}
}

// An image of more parts than are kept in memory is planned in windows.
func TestWindows(t *testing.T) {
	t.Parallel()
	most := bounds{runs: 1 << 14, windows: 8}
	const units = 3<<14 + 5
	s := &scattered{unit: 512, units: units, place: func(i int64) int64 { return units - 1 - i }}
	d := &diskimage.Disk{Size: units * 512, Map: s}
	p, err := newPlan(t.Context(), d, units*512, most)
	if err != nil {
		t.Fatal(err)
	}
	for i := range int64(units) {
		if _, ok, _ := p.before(i * 512); ok {
			t.Fatalf("a run before %d", i*512)
		}
		r, ok, err := p.before(i*512 + 1)
		if err != nil || !ok || r.file != i*512 || r.guest != (units-1-i)*512 {
			t.Fatalf("at %d: %+v, %v, %v", i*512, r, ok, err)
		}
		if cap(p.buffer) > most.runs*5/4 {
			t.Fatalf("%d runs in memory", cap(p.buffer))
		}
	}
	if _, ok, err := p.before(1 << 60); ok || err != nil {
		t.Fatalf("a run behind the last: %v", err)
	}
	if s.scans < 4 || s.scans > 8 {
		t.Errorf("the tables were read %d times", s.scans)
	}
	if p.inOrder {
		t.Error("a reversed disk is said to be in order")
	}
}

func TestPlanRefuses(t *testing.T) {
	t.Parallel()
	most := bounds{runs: 1 << 12, windows: 4}
	const many = 4<<12 + 1
	for _, tt := range []struct {
		name  string
		m     diskimage.Map
		size  int64
		bytes int64 // of the file
		want  error
	}{
		{"all in one place", &scattered{unit: 512, units: 1 << 13, place: func(int64) int64 { return 1 }}, 1 << 30, 1 << 17, diskimage.ErrShared},
		{"too many parts", &scattered{unit: 512, units: many, place: func(i int64) int64 { return many - i }}, many * 512, many * 1024, diskimage.ErrFragmented},
		{"packed bomb", repeated{1 << 13}, 1 << 42, 1 << 10, diskimage.ErrShared},
		{"outside of the file", table{extents: []diskimage.Extent{{Length: 512, File: 600, Stored: 512}}}, 4096, 1024, diskimage.ErrCorrupt},
		{"outside of the disk", table{extents: []diskimage.Extent{{Guest: 4096, Length: 512, Stored: 512}}}, 4096, 1024, diskimage.ErrCorrupt},
		{"lengths that overflow", table{extents: []diskimage.Extent{{Length: 1 << 62, File: 1 << 62, Stored: 1 << 62}}}, 4096, 1024, diskimage.ErrCorrupt},
		{"long packed part", table{extents: []diskimage.Extent{{Length: 4 << 20, Stored: 5, Packed: true}}}, 8 << 20, 1024, diskimage.ErrCorrupt},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := newPlan(t.Context(), &diskimage.Disk{Size: tt.size, Map: tt.m}, tt.bytes, most); !errors.Is(err, tt.want) {
				t.Errorf("newPlan: %v, want %v", err, tt.want)
			}
		})
	}
}

// repeated is a disk all of whose units are the same packed one.
type repeated struct{ units int64 }

func (r repeated) Extents(int64) iter.Seq2[diskimage.Extent, error] {
	return func(yield func(diskimage.Extent, error) bool) {
		for i := range r.units {
			if !yield(diskimage.Extent{Guest: i << 20, Length: 1 << 20, Stored: 512, Packed: true}, nil) {
				return
			}
		}
	}
}

func (repeated) Unpack([]byte, []byte) error { return nil }

// Parts of the disk that share data are all written, as long as there are not so
// many that an image would be a program for its reader.
func TestShared(t *testing.T) {
	t.Parallel()
	file := bytes.Repeat([]byte("abcdefgh"), 1<<10)
	share := func(n int) error {
		extents := make([]diskimage.Extent, n)
		for i := range extents {
			extents[i] = diskimage.Extent{Guest: int64(i) * 64, Length: 64, File: int64(i % 8), Stored: 64}
		}
		d := &diskimage.Disk{Size: 64 * int64(n), Map: table{extents: extents}}
		m, err := newMapped(t.Context(), d, imagetest.Of(file))
		if err != nil {
			return err
		}
		out := newCanvas(d.Size)
		if err := m.begin(out, diskimage.Position{}, 0); err != nil {
			return err
		}
		if err := take(m, file, 0, len(file), 50); err != nil {
			return err
		}
		for i, e := range extents {
			if !bytes.Equal(out.data[i*64:][:64], file[e.File:][:64]) {
				return fmt.Errorf("part %d differs", i)
			}
		}
		_, err = m.finish()
		return err
	}
	if err := share(1000); err != nil {
		t.Error(err)
	}
	if err := share(1900); !errors.Is(err, diskimage.ErrShared) {
		t.Errorf("1900 parts in one place: %v", err)
	}
}

type failing struct{ error }

func (f failing) WriteAt([]byte, int64) (int, error) { return 0, f.error }

func TestWriteFails(t *testing.T) {
	t.Parallel()
	full := errors.New("full")
	for seed := range uint64(10) {
		file, d, _ := layout(rand.New(rand.NewPCG(seed, 9)), 4096, 200)
		m, err := newMapped(t.Context(), d, imagetest.Of(file))
		if err != nil {
			t.Fatal(err)
		}
		if err := m.begin(failing{full}, diskimage.Position{}, 0); err != nil {
			t.Fatal(err)
		}
		if err := take(m, file, 0, len(file), len(file)); !errors.Is(err, full) {
			t.Fatalf("take: %v", err)
		}
	}
}

func TestUnpackFails(t *testing.T) {
	t.Parallel()
	file, d, _ := layout(rand.New(rand.NewPCG(4, 9)), 4096, 200)
	for _, e := range d.Map.(table).extents[50:] {
		if e.Packed {
			file[e.File] = 'x'
		}
	}
	m, err := newMapped(t.Context(), d, imagetest.Of(file))
	if err != nil {
		t.Fatal(err)
	}
	if err := m.begin(newCanvas(d.Size), diskimage.Position{}, 0); err != nil {
		t.Fatal(err)
	}
	if err := take(m, file, 0, len(file), len(file)); !errors.Is(err, diskimage.ErrCorrupt) {
		t.Fatalf("take: %v", err)
	}
}
