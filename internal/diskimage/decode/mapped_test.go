package decode

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"strings"
	"testing"

	"vmimport/internal/diskimage"
	"vmimport/internal/diskimage/imagetest"
	"vmimport/internal/fault"
)

// is returns the reader of a file that holds d.
func is(d *diskimage.Disk) func(*diskimage.File) (*diskimage.Disk, error) {
	return func(*diskimage.File) (*diskimage.Disk, error) { return d, nil }
}

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
			m, err := newMapped(t.Context(), imagetest.Of(file), is(d), true, newBuffers())
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
		first, err := newMapped(t.Context(), imagetest.Of(file), is(d), stop%2 == 0, newBuffers())
		if err != nil {
			t.Fatal(err)
		}
		second, err := newMapped(t.Context(), imagetest.Of(file), is(d), stop%3 == 0, newBuffers())
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
	m, err := newMapped(t.Context(), imagetest.Of(file), is(d), true, newBuffers())
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
		{"packed in packed", []diskimage.Extent{packed(0, 0, 1024), packed(512, 100, 100)}, false},
		{"plain in packed", []diskimage.Extent{packed(0, 0, 1024), plain(512, 256)}, false},
		{"packed behind plain", []diskimage.Extent{plain(0, 0), packed(512, 512, 100)}, true},
		{"packed in plain", []diskimage.Extent{plain(0, 0), packed(512, 500, 100)}, false},
	} {
		_, s, err := newPlan(t.Context(), &diskimage.Disk{Size: 4096, Map: table{extents: tt.extents}}, 1<<20, usual)
		if err != nil {
			t.Fatalf("%s: %v", tt.name, err)
		}
		if s.inOrder != tt.want {
			t.Errorf("%s: in order %v", tt.name, s.inOrder)
		}
		if want := int64(min(len(tt.extents), 1)) * 4096; s.units.bytes(4096) != want {
			t.Errorf("%s: %d bytes of data, want %d", tt.name, s.units.bytes(4096), want)
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
	p, survey, err := newPlan(t.Context(), d, units*512, most)
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
	if survey.inOrder {
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
		{"out of order", table{extents: []diskimage.Extent{{Guest: 512, Length: 512, Stored: 512}, {Guest: 0, Length: 512, Stored: 512}}}, 4096, 1024, diskimage.ErrCorrupt},
		{"overlapping", table{extents: []diskimage.Extent{{Length: 1024, Stored: 1024}, {Guest: 512, Length: 512, Stored: 512}}}, 4096, 1024, diskimage.ErrCorrupt},
		{"lengths that overflow", table{extents: []diskimage.Extent{{Length: 1 << 62, File: 1 << 62, Stored: 1 << 62}}}, 4096, 1024, diskimage.ErrCorrupt},
		{"long packed part", table{extents: []diskimage.Extent{{Length: 4 << 20, Stored: 5, Packed: true}}}, 8 << 20, 1024, diskimage.ErrCorrupt},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if _, _, err := newPlan(t.Context(), &diskimage.Disk{Size: tt.size, Map: tt.m}, tt.bytes, most); !errors.Is(err, tt.want) {
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
	share := func(n, length, alike int) error {
		extents := make([]diskimage.Extent, n)
		for i := range extents {
			extents[i] = diskimage.Extent{Guest: int64(i * length), Length: int64(length), File: int64(i / alike), Stored: int64(length)}
		}
		d := &diskimage.Disk{Size: int64(n * length), Map: table{extents: extents}}
		m, err := newMapped(t.Context(), imagetest.Of(file), is(d), true, newBuffers())
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
			if !bytes.Equal(out.data[i*length:][:length], file[e.File:][:length]) {
				return fmt.Errorf("part %d differs", i)
			}
		}
		_, err = m.finish()
		return err
	}
	if err := share(800, 64, 8); err != nil {
		t.Error(err)
	}
	if err := share(800, 64, 17); !errors.Is(err, diskimage.ErrShared) {
		t.Errorf("17 parts that are the same: %v", err)
	}
	if err := share(1200, 90, 13); !errors.Is(err, diskimage.ErrShared) {
		t.Errorf("more than 1024 parts at one place: %v", err)
	}
}

// A chunk that unpacks to much more than itself is given up when its import is.
func TestChunkIsGivenUp(t *testing.T) {
	t.Parallel()
	const units = 1 << 12
	var extents []diskimage.Extent
	file := make([]byte, 2*units)
	for i := range int64(units) {
		copy(file[2*i:], "pz")
		extents = append(extents, diskimage.Extent{Guest: i << 20, Length: 1 << 20, File: 2 * i, Stored: 2, Packed: true})
	}
	d := &diskimage.Disk{Size: units << 20, Map: table{extents: extents}}
	ctx, cancel := context.WithCancelCause(t.Context())
	m, err := newMapped(ctx, imagetest.Of(file), is(d), true, newBuffers())
	if err != nil {
		t.Fatal(err)
	}
	gone, wrote := errors.New("gone"), 0
	if err := m.begin(writerFunc(func(p []byte) { wrote++; cancel(gone) }), diskimage.Position{}, 0); err != nil {
		t.Fatal(err)
	}
	if err := m.take(0, file); !errors.Is(err, gone) || wrote > 1 {
		t.Fatalf("take, with %d writes: %v", wrote, err)
	}
}

type writerFunc func([]byte)

func (f writerFunc) WriteAt(p []byte, _ int64) (int, error) {
	f(p)
	return len(p), nil
}

// A reader that panics ends its own import, in whatever goroutine that is.
func TestPanic(t *testing.T) {
	t.Parallel()
	file := make([]byte, 1024)
	d := &diskimage.Disk{Size: 1 << 20, Map: bug{table{extents: []diskimage.Extent{{Guest: 1 << 19, Length: 4096, Stored: 100, Packed: true}}}}}
	m, err := newMapped(t.Context(), imagetest.Of(file), is(d), true, newBuffers())
	if err != nil {
		t.Fatal(err)
	}
	if err := m.begin(newCanvas(d.Size), diskimage.Position{}, 0); err != nil {
		t.Fatal(err)
	}
	err = m.take(0, file)
	if fault.KindOf(err) != fault.Internal || !strings.Contains(err.Error(), "a bug") {
		t.Fatalf("take: %v", err)
	}
}

type bug struct{ table }

func (bug) Unpack([]byte, []byte) error { panic("a bug") }

type failing struct{ error }

func (f failing) WriteAt([]byte, int64) (int, error) { return 0, f.error }

func TestWriteFails(t *testing.T) {
	t.Parallel()
	full := errors.New("full")
	for seed := range uint64(10) {
		file, d, _ := layout(rand.New(rand.NewPCG(seed, 9)), 4096, 200)
		m, err := newMapped(t.Context(), imagetest.Of(file), is(d), true, newBuffers())
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
	m, err := newMapped(t.Context(), imagetest.Of(file), is(d), true, newBuffers())
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
