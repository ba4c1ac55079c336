package vhdx

import (
	"testing"

	"vmimport/internal/diskimage"
	"vmimport/internal/diskimage/imagetest"
	"vmimport/internal/fault"
)

// The parts of an image that a reader looks at, and how much of them is worth
// mutating. The rest of a seed is zeros, and so it has a KiB and not many MiB.
var fuzzed = []struct{ at, n int64 }{
	{header1At, 80}, {header2At, 80}, {regions1At, 16 + 3*entryBytes}, {tableAt, 7 * entryBytes}, {itemsAt, 40}, {batAt, 64},
}

// FuzzOpen changes the structures of an image and then corrects the checksums, but
// those of the copies that damage has a bit for.
func FuzzOpen(f *testing.F) {
	base := small(f)
	parts := func(m *image) (b [][]byte) {
		for _, p := range fuzzed {
			part := make([]byte, p.n)
			if _, err := m.ReadAt(part, p.at); err != nil {
				f.Fatal(err)
			}
			b = append(b, part)
		}
		return b
	}
	for _, tt := range hostile {
		m := over(base)
		tt.change(m)
		p := parts(m)
		f.Add(uint32(m.size>>10), byte(0), p[0], p[1], p[2], p[3], p[4], p[5])
	}
	p := parts(over(base))
	for damage := range byte(1 << 4) {
		f.Add(uint32(base.Size()>>10), damage, p[0], p[1], p[2], p[3], p[4], p[5])
	}

	f.Fuzz(func(t *testing.T, kib uint32, damage byte, header1, header2, regions, table, items, bat []byte) {
		m := &image{size: int64(kib) << 10 % (16 * mib)}
		m.put(0, []byte("vhdxfile"))
		for i, b := range [][]byte{header1, header2, regions, table, items, bat} {
			m.put(fuzzed[i].at, b[:min(len(b), headerBytes)])
		}
		m.put(regions2At, regions[:min(len(regions), headerBytes)])
		m.seal()
		for i, at := range []int64{header1At, header2At, regions1At, regions2At} {
			if damage>>i&1 != 0 {
				m.put(at+headerBytes-1, []byte{1})
			}
		}
		check(t, m.file())
	})
}

// check holds a file to what must be true of any, good or not.
func check(t *testing.T, f *diskimage.File) {
	t.Helper()
	var d *diskimage.Disk
	var err error
	imagetest.Bounded(t, 2*mib, func() { d, err = Open(f) })
	if err != nil {
		if fault.KindOf(err) != fault.Invalid {
			t.Fatal(err)
		}
		return
	}
	var all []diskimage.Extent
	imagetest.Bounded(t, uint64(f.Size())+8*mib, func() { all, err = extents(d, f, 0) })
	again := verdict(f)
	if (err == nil) != (again == nil) || err != nil && err.Error() != again.Error() {
		t.Fatalf("first %v, then %v", err, again)
	}
	if err != nil {
		if fault.KindOf(err) != fault.Invalid {
			t.Fatal(err) // not the image's fault: a broken contract
		}
		return
	}
	places := []int64{1, d.Size / 2, d.Size - 1}
	if len(all) > 0 {
		places = append(places, all[len(all)-1].Guest, all[0].Guest+all[0].Length)
	}
	for _, from := range places {
		if err := sameFrom(d, f, from); err != nil {
			t.Fatal(err)
		}
	}
	if d.Size <= 8*mib {
		if _, err := imagetest.Read(d, f); err != nil {
			t.Fatal(err)
		}
	}
}
