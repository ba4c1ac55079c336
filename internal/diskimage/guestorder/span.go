package guestorder

import (
	"context"
	"slices"

	"vmimport/internal/diskimage"
)

// What is kept of a map. Each walk over a map reads whole tables from its start on, 64 KiB
// or one table of up to 2 MiB at the least, before the first extent: for every range of
// 4 MiB this could be as much as the range itself, and a round trip more. So a walk goes on
// for many ranges, and what it found is kept for those to come.
const (
	// maxSpanBytes is how much of the disk a walk goes on for: it has at most 0.05 % as
	// many bytes of tables where clusters have the usual 64 KiB, and the first range does
	// not wait for the tables of all the disk.
	maxSpanBytes = 4 << 30
	// maxExtents is how many extents a walk goes on for: 2 GiB of the disk if every cluster of
	// 64 KiB is elsewhere.
	maxExtents = 1 << 15
	// maxSpans is how many walks are kept: enough for 16 ranges of 4 MiB that are read at
	// the same time, of a disk whose clusters have 512 bytes. All together take less
	// than diskimage.MaxTableBytes.
	maxSpans = 8
	// extentBytes is the size of a diskimage.Extent, with what a slice that grows has to spare.
	extentBytes = 40 * 5 / 4
)

// span is what one walk over the map has found: all extents that touch the disk between two
// offsets. It never changes.
type span struct {
	from, to int64
	extents  []diskimage.Extent
}

// behind returns the extents that end behind the disk's offset off.
func (s *span) behind(off int64) []diskimage.Extent {
	i, _ := slices.BinarySearchFunc(s.extents, off, func(e diskimage.Extent, off int64) int {
		if e.Guest+e.Length <= off {
			return -1
		}
		return 1
	})
	return s.extents[i:]
}

// span returns the span that the disk's offset off lies in. While somebody walks, the others
// wait: most of them for the same walk.
func (o *Object) span(ctx context.Context, off int64) (*span, error) {
	select {
	case o.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	defer func() { <-o.turn }()
	i := slices.IndexFunc(o.spans, func(s *span) bool { return s.from <= off && off < s.to })
	if i < 0 {
		s, err := o.walk(ctx, off)
		if err != nil {
			return nil, err
		}
		i = min(len(o.spans), maxSpans-1)
		o.spans = append(o.spans[:i], s)
	}
	s := o.spans[i]
	copy(o.spans[1:], o.spans[:i])
	o.spans[0] = s
	return s, nil
}

// walk looks at the map from the disk's offset from on. What it has found when the map or ctx
// fails is good for those who read that: the failure comes again for those who need more.
// Nothing is good of a map that breaks its word, for another walk may not notice.
func (o *Object) walk(ctx context.Context, from int64) (*span, error) {
	s := &span{from: from, to: from}
	for e, err := range o.disk.Map.Extents(from) {
		if err == nil {
			err = context.Cause(ctx)
		}
		if err != nil && len(s.extents) == 0 {
			return nil, err
		}
		if err != nil {
			return s, nil
		}
		if err := o.check(s, e); err != nil {
			return nil, err
		}
		s.extents = append(s.extents, e)
		s.to = min(e.Guest+e.Length, o.disk.Size)
		if len(s.extents) == maxExtents || s.to-from >= maxSpanBytes {
			return s, nil
		}
	}
	s.to = o.disk.Size
	return s, nil
}

// check holds a map to what it owes, of an extent that is to become the next one of s: what
// follows trusts it with memory and with the source's bounds.
func (o *Object) check(s *span, e diskimage.Extent) error {
	size := o.src.Size()
	sound := e.Guest >= 0 && e.Guest < o.disk.Size && e.Length > 0 &&
		e.Stored > 0 && e.File >= 0 && e.File <= size && e.Stored <= size-e.File
	if e.Packed {
		sound = sound && e.Length <= diskimage.MaxUnitBytes && e.Stored <= diskimage.MaxPackedBytes
	} else {
		sound = sound && e.Length == e.Stored
	}
	if len(s.extents) > 0 {
		sound = sound && e.Guest >= s.to
	} else {
		sound = sound && e.Guest+e.Length > s.from
	}
	if !sound {
		return diskimage.ErrCorrupt.Saw("%d bytes of the disk at %d are said to be the %d bytes at %d", e.Length, e.Guest, e.Stored, e.File)
	}
	return nil
}
