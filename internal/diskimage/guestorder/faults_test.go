package guestorder_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"iter"
	"math"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"testing"

	"vmimport/internal/diskimage"
	"vmimport/internal/diskimage/imagetest"
	"vmimport/internal/fault"
	"vmimport/storage"
	"vmimport/storage/storagetest"
)

var loc = storage.Location{API: "swift", Project: "p", Container: "c", Name: "n"}

var errDown = storage.ErrUnavailable.Because(errors.New("down"))

// layout makes a random image: its file, its map, and the disk that it is. Extents of both kinds
// lie in any order, with gaps, and packed ones have more bytes than they need.
func layout(rng *rand.Rand, unit, units int) (file []byte, d *diskimage.Disk, want []byte) {
	want = make([]byte, units*unit)
	extents := make([]diskimage.Extent, 0, units)
	for _, g := range rng.Perm(units) {
		if rng.IntN(4) == 0 {
			continue
		}
		file = append(file, make([]byte, rng.IntN(3)*unit/7)...)
		guest, at, into := int64(g*unit), int64(len(file)), want[g*unit:][:unit]
		if rng.IntN(2) == 0 {
			copy(into, bytes.Repeat([]byte{byte(1 + rng.IntN(255))}, unit))
			file = append(file, 'p', into[0])
			extents = append(extents, packed(guest, int64(unit), at, 2+rng.Int64N(int64(unit))))
			continue
		}
		_, _ = rand.NewChaCha8([32]byte{byte(g)}).Read(into)
		file = append(file, into...)
		extents = append(extents, plain(guest, at, int64(unit)))
	}
	file = append(file, make([]byte, unit+2)...)
	slices.SortFunc(extents, func(a, b diskimage.Extent) int { return int(a.Guest - b.Guest) })
	size := int64(len(want) - 512)
	return file, &diskimage.Disk{Format: diskimage.QCOW2, Size: size, Map: table{extents: extents}}, want[:size]
}

func TestAnyLayout(t *testing.T) {
	t.Parallel()
	for seed := range uint64(20) {
		rng := rand.New(rand.NewPCG(seed, 1))
		file, d, want := layout(rng, 1024<<rng.IntN(4)<<rng.IntN(3), 60)
		o := newObject(t, storagetest.Object(file), d)
		for range 15 {
			off := rng.Int64N(o.Size())
			n := 1 + rng.Int64N(o.Size()-off)
			got, err := readRange(t.Context(), o, off, n)
			if err != nil || !bytes.Equal(got, want[off:off+n]) {
				t.Fatalf("seed %d: %d bytes at %d: got %d, %v", seed, n, off, len(got), err)
			}
		}
		if got, err := fetch(t, o, 10_000); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("seed %d: the disk differs, %v", seed, err)
		}
	}
}

// Whatever goes wrong with any byte of the file: what is read before is right, and the error
// is that of the source.
func TestFaultsOfTheSource(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(7, 7))
	file, d, want := layout(rng, 4096, 60)
	good := storagetest.Object(file)
	for _, tt := range []struct {
		how       storagetest.Fault
		err, want error
	}{
		{storagetest.FailOpen, errDown, storage.ErrUnavailable},
		{storagetest.FailOpen, storage.ErrChanged, storage.ErrChanged},
		{storagetest.FailBody, errDown, storage.ErrUnavailable},
		{storagetest.FailBody, storage.ErrNoObject, storage.ErrNoObject},
		{storagetest.CutBody, nil, io.ErrUnexpectedEOF},
	} {
		failures := 0
		for at := int64(0); at < int64(len(file)); at += 4999 {
			src := &counted{Object: storagetest.Break(good, tt.how, at, -1, tt.err)}
			got, err := readRange(t.Context(), newObject(t, src, d), 0, d.Size)
			if !bytes.Equal(got, want[:len(got)]) {
				t.Fatalf("fault %d at %d: wrong bytes before it", tt.how, at)
			}
			if err == nil && len(got) < len(want) {
				t.Fatalf("fault %d at %d: %d bytes and no error", tt.how, at, len(got))
			}
			if err != nil && (!errors.Is(err, tt.want) || fault.KindOf(err) != fault.KindOf(tt.want)) {
				t.Fatalf("fault %d at %d: %v, want %v", tt.how, at, err, tt.want)
			}
			if err != nil {
				failures++
			}
			if n := src.open.Load(); n != 0 {
				t.Errorf("%d bodies were left open", n)
			}
			got, err = fetch(t, newObject(t, storagetest.Break(good, tt.how, at, 1, errDown), d), 30_000)
			if err != nil || !bytes.Equal(got, want) {
				t.Fatalf("fault %d at %d, once: the disk differs, %v", tt.how, at, err)
			}
		}
		if failures == 0 {
			t.Errorf("fault %d never struck", tt.how)
		}
	}
}

func TestRangeThatIsTooLong(t *testing.T) {
	t.Parallel()
	file := bytes.Repeat([]byte{7}, 4096)
	for _, e := range []diskimage.Extent{plain(0, 1024, 1024), packed(0, 1024, 1024, 1024)} {
		src, d := disk(1024, file, e)
		o := newObject(t, storagetest.Break(src, storagetest.LongBody, 1500, -1, nil), d)
		body, err := o.ReadRange(t.Context(), 0, 1024)
		if err != nil {
			t.Fatal(err)
		}
		defer body.Close()
		if n, err := io.ReadFull(body, make([]byte, 1024)); err == nil {
			t.Errorf("%d bytes of a range that is longer than asked for", n)
		}
	}
}

// late is an object whose bodies have all bytes, and fail then.
type late struct {
	storage.Object
	err error
}

func (l late) ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	body, err := l.Object.ReadRange(ctx, off, n)
	return lateBody{body, l.err}, err
}

type lateBody struct {
	io.ReadCloser
	err error
}

func (b lateBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err == io.EOF {
		err = b.err
	}
	return n, err
}

// An object that was found changed behind the last byte was changed before.
func TestFailureBehindTheLastByte(t *testing.T) {
	t.Parallel()
	src, d := disk(8192, make([]byte, 4096), plain(0, 0, 1024), plain(4096, 1024, 512))
	for n, want := range map[int64]int{1024: 1024, 4096: 1024, 4608: 4608, 8192: 4608} {
		got, err := readRange(t.Context(), newObject(t, late{src, storage.ErrChanged}, d), 0, n)
		if !errors.Is(err, storage.ErrChanged) || len(got) != want {
			t.Errorf("range of %d: %d bytes, %v", n, len(got), err)
		}
	}
	if _, err := fetch(t, newObject(t, late{src, storage.ErrChanged}, d), 4096); !errors.Is(err, storage.ErrChanged) {
		t.Errorf("fetch: %v", err)
	}
}

func TestHostileMaps(t *testing.T) {
	t.Parallel()
	const size, fileSize = 1 << 20, 64 << 10
	file := bytes.Repeat([]byte("pq"), fileSize/2)
	for name, extents := range map[string][]diskimage.Extent{
		"overlap":               {plain(0, 0, 1024), plain(512, 0, 1024)},
		"twice":                 {plain(0, 0, 1024), plain(0, 0, 1024)},
		"backwards":             {plain(4096, 0, 1024), plain(0, 0, 5000)},
		"behind the disk":       {plain(size, 0, 512)},
		"negative place":        {plain(-512, 0, 1024)},
		"no length":             {plain(0, 0, 512), plain(512, 0, 0)},
		"negative length":       {plain(0, 0, 512), plain(512, 0, -1)},
		"behind the file":       {plain(0, fileSize, 512)},
		"across the file's end": {plain(0, fileSize-511, 512)},
		"before the file":       {plain(0, -1, 512)},
		"far behind the file":   {plain(0, math.MaxInt64-100, 512)},
		"endless":               {plain(0, 0, math.MaxInt64)},
		"unit too long":         {packed(0, diskimage.MaxUnitBytes+1, 0, 512)},
		"packed behind file":    {packed(0, 512, fileSize-2, 3)},
		"packed into nothing":   {packed(0, 512, 0, 0)},
		"packed of nothing":     {packed(0, 512, 0, 512), packed(512, 0, 0, 512)},
		"packed of too much":    {packed(0, 512, 0, diskimage.MaxPackedBytes+1)},
		"plain but shorter":     {{Guest: 0, Length: 1024, File: 0, Stored: 512}},
		"not what Unpack takes": {packed(0, 512, 1, 512)},
	} {
		src, d := disk(size, file, extents...)
		got, err := readRange(t.Context(), newObject(t, src, d), 0, size)
		if fault.KindOf(err) != fault.Invalid || !errors.Is(err, diskimage.ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
		if len(got) > 512 {
			t.Errorf("%s: %d bytes passed as good", name, len(got))
		}
	}
}

// What a map is sure of is read; behind it comes its error, each time.
func TestFailureOfTheMap(t *testing.T) {
	t.Parallel()
	for _, want := range []error{diskimage.ErrTruncated, storage.ErrUnavailable} {
		src, d := disk(4096, bytes.Repeat([]byte{7}, 1024))
		d.Map = table{extents: []diskimage.Extent{plain(0, 0, 1024)}, err: want}
		o := newObject(t, src, d)
		for range 2 {
			got, err := readRange(t.Context(), o, 0, 4096)
			if !errors.Is(err, want) || len(got) != 1024 {
				t.Errorf("%d bytes, %v", len(got), err)
			}
			if got, err := readRange(t.Context(), o, 2048, 1024); !errors.Is(err, want) || len(got) != 0 {
				t.Errorf("%d bytes behind the failure, %v", len(got), err)
			}
		}
	}
}

// bomb is a map that fails as no map should.
type bomb struct{ diskimage.Map }

func (bomb) Extents(int64) iter.Seq2[diskimage.Extent, error] { panic("boom") }

func TestPanicOfTheMap(t *testing.T) {
	t.Parallel()
	src, d := disk(4096, nil)
	d.Map = bomb{}
	o := newObject(t, src, d)
	for range 2 { // nobody waits for the one that failed
		if _, err := readRange(t.Context(), o, 0, 4096); fault.KindOf(err) != fault.Internal {
			t.Error(err)
		}
	}
}

// Damage anywhere in a real image is an error or other bytes, and never more than that.
func damaged(t *testing.T, guest imagetest.Guest) {
	s := newSample(t, "packed", imagetest.Convert(t, guest.Path, "qcow2", "", "-c"))
	rng := rand.New(rand.NewPCG(8, 9))
	failed := 0
	for range 60 {
		file := bytes.Clone(s.file)
		for range 1 + rng.IntN(3) {
			file[rng.IntN(min(len(file), 512<<10))] ^= 1 << rng.IntN(8)
		}
		d, err := openDamaged(file)
		if err != nil {
			continue
		}
		d.Size = min(d.Size, 2<<20)
		got, err := readRange(t.Context(), newObject(t, storagetest.Object(file), d), 0, d.Size)
		switch {
		case err != nil && fault.KindOf(err) != fault.Invalid:
			t.Error(err)
		case err != nil:
			failed++
		case int64(len(got)) != d.Size:
			t.Errorf("%d bytes of %d, and no error", len(got), d.Size)
		}
	}
	if failed == 0 {
		t.Error("no damage was noticed")
	}
}

func TestCanceled(t *testing.T) {
	t.Parallel()
	cause := errors.New("enough")
	src, d := disk(1<<20, make([]byte, 4096), plain(512<<10, 0, 512))
	o := newObject(t, src, d)

	ctx, cancel := context.WithCancelCause(t.Context())
	body, err := o.ReadRange(ctx, 0, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	if n, err := body.Read(make([]byte, 100)); n != 100 || err != nil {
		t.Fatalf("zeros: %d, %v", n, err)
	}
	cancel(cause)
	if n, err := body.Read(make([]byte, 100)); n != 0 || !errors.Is(err, cause) {
		t.Errorf("zeros after the end of ctx: %d, %v", n, err)
	}
	if _, err := o.ReadRange(ctx, 0, 1); !errors.Is(err, cause) {
		t.Errorf("ReadRange after the end of ctx: %v", err)
	}
}

// silent announces that it was asked, and then says nothing until the context ends.
type silent struct {
	storage.Object
	asked chan struct{}
}

func (s silent) ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	return io.NopCloser(silentBody{ctx, s.asked}), nil
}

type silentBody struct {
	ctx   context.Context
	asked chan struct{}
}

func (b silentBody) Read([]byte) (int, error) {
	close(b.asked)
	<-b.ctx.Done()
	return 0, context.Cause(b.ctx)
}

func TestCanceledWhileSilent(t *testing.T) {
	t.Parallel()
	cause := errors.New("enough")
	src, d := disk(512, make([]byte, 512), plain(0, 0, 512))
	asked := make(chan struct{})
	ctx, cancel := context.WithCancelCause(t.Context())
	go func() {
		<-asked
		cancel(cause)
	}()
	if _, err := readRange(ctx, newObject(t, silent{src, asked}, d), 0, 512); !errors.Is(err, cause) {
		t.Error(err)
	}
}

func TestClosedWhileSilent(t *testing.T) {
	t.Parallel()
	src, d := disk(512, make([]byte, 512), plain(0, 0, 512))
	asked := make(chan struct{})
	body, err := newObject(t, silent{src, asked}, d).ReadRange(t.Context(), 0, 512)
	if err != nil {
		t.Fatal(err)
	}
	closed := make(chan error)
	go func() {
		<-asked
		closed <- body.Close()
	}()
	if n, err := body.Read(make([]byte, 512)); n != 0 || !errors.Is(err, fs.ErrClosed) {
		t.Errorf("Read of a body that was closed: %d, %v", n, err)
	}
	if err := errors.Join(<-closed, body.Close()); err != nil {
		t.Errorf("close: %v", err)
	}
	if _, err := body.Read(make([]byte, 1)); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("Read behind Close: %v", err)
	}
}

func TestClosedEarly(t *testing.T) {
	t.Parallel()
	file, d, _ := layout(rand.New(rand.NewPCG(2, 2)), 4096, 50)
	src := &counted{Object: storagetest.Object(file)}
	o := newObject(t, src, d)
	for n := range 40 {
		body, err := o.ReadRange(t.Context(), 0, d.Size)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.CopyN(io.Discard, body, int64(n*5000)); err != nil {
			t.Fatal(err)
		}
		if err := body.Close(); err != nil {
			t.Error(err)
		}
	}
	if n := src.open.Load(); n != 0 {
		t.Errorf("%d bodies were left open", n)
	}
}

// Tables are read about once, though ranges are asked for 16 at a time and not quite in
// order, and far apart for a while.
func TestWalks(t *testing.T) {
	t.Parallel()
	const cluster, clusters = 512, 300_000
	extents := make([]diskimage.Extent, clusters)
	for i := range extents {
		extents[i] = plain(int64(i)*cluster, int64(clusters-1-i)*cluster, cluster)
	}
	var walks atomic.Int64
	d := &diskimage.Disk{Format: diskimage.QCOW2, Size: cluster * clusters, Map: table{extents: extents, walks: &walks}}
	o := newObject(t, zeros(cluster*clusters), d)
	const ranges = cluster * clusters / (4 << 20)
	for i := range ranges {
		for _, j := range []int{i, min(i+15, ranges-1), max(0, i-3)} {
			if _, err := readRange(t.Context(), o, int64(j)*4<<20, 1); err != nil {
				t.Fatal(err)
			}
		}
	}
	if n, most := walks.Load(), int64(clusters/(1<<15)+4); n > most {
		t.Errorf("%d walks over the map, want at most %d", n, most)
	}
}

// zeros is an object of that many zeros.
type zeros int64

func (z zeros) Size() int64   { return int64(z) }
func (zeros) Version() string { return "0" }
func (zeros) ReadRange(_ context.Context, _, n int64) (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(make([]byte, n))), nil
}
