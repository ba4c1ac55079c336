package decode

import (
	"bytes"
	"iter"
	"math/rand/v2"
	"slices"

	"vmimport/internal/diskimage"
)

// table is a mapped image made of a list of extents. Packed ones are stored as the
// length of a row of one byte, and that byte.
type table struct {
	extents []diskimage.Extent
	scans   *int
}

func (t table) Extents(from int64) iter.Seq2[diskimage.Extent, error] {
	return func(yield func(diskimage.Extent, error) bool) {
		if t.scans != nil {
			*t.scans++
		}
		for _, e := range t.extents {
			if e.Guest+e.Length > from && !yield(e, nil) {
				return
			}
		}
	}
}

func (table) Unpack(dst, src []byte) error {
	if src[0] != 'p' {
		return diskimage.ErrCorrupt
	}
	for i := range dst {
		dst[i] = src[1]
	}
	return nil
}

// layout makes a random image: its file, its map, and the disk that it is.
func layout(rng *rand.Rand, unit, units int) (file []byte, d *diskimage.Disk, want []byte) {
	want = make([]byte, units*unit)
	var extents []diskimage.Extent
	guest := make([]int, 0, units)
	for i := range units {
		if rng.IntN(4) > 0 {
			guest = append(guest, i)
		}
	}
	inOrder := slices.Clone(guest)
	rng.Shuffle(len(guest), func(i, j int) { guest[i], guest[j] = guest[j], guest[i] })
	places := map[int]diskimage.Extent{}
	for _, g := range guest {
		e := diskimage.Extent{Guest: int64(g * unit), Length: int64(unit)}
		file = append(file, make([]byte, rng.IntN(3)*7)...)
		e.File = int64(len(file))
		into := want[g*unit:][:unit]
		if rng.IntN(2) == 0 {
			b := byte(rng.IntN(255) + 1)
			copy(into, bytes.Repeat([]byte{b}, unit))
			file = append(file, 'p', b)
			file = append(file, make([]byte, rng.IntN(unit))...)
			e.Packed, e.Stored = true, int64(len(file))-e.File
		} else {
			for i := range into {
				into[i] = byte(rng.IntN(256))
			}
			file = append(file, into...)
			e.Stored = int64(unit)
		}
		places[g] = e
	}
	for _, g := range inOrder {
		extents = append(extents, places[g])
	}
	return file, &diskimage.Disk{Format: diskimage.QCOW2, Size: int64(len(want)) - 512, Map: table{extents: extents}}, want[:len(want)-512]
}

// canvas is what a disk is written to. It keeps count of what was written twice.
type canvas struct {
	data    []byte
	written []bool
	twice   int
	end     int64
	back    int // writes that were not in order
}

func newCanvas(size int64) *canvas {
	c := &canvas{data: make([]byte, size)}
	if size <= 1<<20 { // looking at each byte takes long
		c.written = make([]bool, size)
	}
	return c
}

func (c *canvas) WriteAt(p []byte, off int64) (int, error) {
	if off < c.end {
		c.back++
	}
	c.end = off + int64(len(p))
	for i := range min(len(p), len(c.written)) {
		if c.written[int(off)+i] {
			c.twice++
		}
		c.written[int(off)+i] = true
	}
	return copy(c.data[off:], p), nil
}
