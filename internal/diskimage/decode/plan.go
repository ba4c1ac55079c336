package decode

import (
	"cmp"
	"context"
	"slices"

	"vmimport/internal/diskimage"
)

// Bounds of a plan.
const (
	// maxRunBytes is what a run can say of its length.
	maxRunBytes = 1 << 30
	// maxSharing is how many times the bytes of a file may be used for the disk.
	// Images that are made by anybody's tools use each of them once.
	maxSharing = 16
	// leastPacked is the length of the shortest stream that unpacks to a cluster or
	// grain, or rather less than that.
	leastPacked = 8
	// buckets is how finely it is counted where in the file the runs are.
	buckets = 4096
)

// bounds are how many runs a plan has in memory at a time, and how often it reads the
// tables of an image.
type bounds struct{ runs, windows int }

// usual bounds hold 24 MiB of runs, and let every cluster of 64 KiB in an image of 4
// TiB be somewhere else.
var usual = bounds{runs: 1 << 20, windows: 64}

// askEvery is after how many extents a scan asks whether it is still wanted.
const askEvery = 1 << 12

// firstRuns is what a plan begins with: most images have fewer.
const firstRuns = 1 << 12

// run is an extent, made small.
type run struct {
	file, guest int64
	length      uint32
	packed      uint32 // stored bytes if packed, else 0
}

func (r run) stored() int64 {
	if r.packed > 0 {
		return int64(r.packed)
	}
	return int64(r.length)
}

func (r run) end() int64 { return r.file + r.stored() }

func byFile(a, b run) int {
	return cmp.Or(cmp.Compare(a.file, b.file), cmp.Compare(a.guest, b.guest))
}

// plan gives the runs of a mapped image in the order of its file.
//
// Tables list them in the disk's order, and sorting all of them would need memory
// by the size of the image. So the file is cut into windows that have few enough
// runs each, and the tables are read once for each window. Nearly every image has
// one window: a run is not a cluster, but as many as are neighbours on both sides.
type plan struct {
	ctx  context.Context // of the decoder, which lives as long as one call
	disk *diskimage.Disk
	size int64 // of the file
	most bounds

	inOrder bool  // the order of the file is that of the disk
	bytes   int64 // of the disk that runs cover

	cuts   []int64 // where the windows begin, and the end of the last one
	window int     // the next one to be loaded
	runs   []run   // what is left of the present one
	buffer []run
}

// newPlan reads the tables once.
func newPlan(ctx context.Context, d *diskimage.Disk, fileSize int64, most bounds) (*plan, error) {
	p := &plan{ctx: ctx, disk: d, size: fileSize, most: most, inOrder: true, buffer: make([]run, 0, min(most.runs, firstRuns))}
	shift := 0
	for fileSize>>shift >= buckets {
		shift++
	}
	var counts [buckets]int
	var total, packed, plain int64
	last := run{file: -1}
	for r, err := range p.scan() {
		if err != nil {
			return nil, err
		}
		total++
		counts[r.file>>shift]++
		p.bytes += min(int64(r.length), d.Size-r.guest)
		if r.packed > 0 {
			packed++
		} else {
			plain += int64(r.length)
		}
		if r.file < last.end() && (last.packed == 0 || r.file <= last.file) {
			p.inOrder = false
		}
		last = r
		if total > int64(most.runs)*int64(most.windows) {
			return nil, diskimage.ErrFragmented.Saw("more than %d parts", int64(most.runs)*int64(most.windows))
		}
		if total <= int64(most.runs) {
			p.keep(r)
		}
	}
	if uses := plain + packed*leastPacked; uses/maxSharing > fileSize {
		return nil, diskimage.ErrShared.Saw("a file of %d bytes is used for %d", fileSize, uses)
	}
	if total <= int64(most.runs) {
		p.cuts = []int64{0, fileSize}
		p.window = 1
		p.runs = p.buffer
		slices.SortFunc(p.runs, byFile)
		return p, nil
	}
	return p, p.cut(&counts, shift)
}

// keep adds a run to the buffer. It grows in one step to all that it may ever hold:
// growing little by little would need more memory, not less.
func (p *plan) keep(r run) {
	if len(p.buffer) == firstRuns {
		p.buffer = slices.Grow(p.buffer, p.most.runs-firstRuns)
	}
	p.buffer = append(p.buffer, r)
}

// cut lays the windows.
func (p *plan) cut(counts *[buckets]int, shift int) error {
	p.cuts = []int64{0}
	in := 0
	for i, n := range counts {
		if n > p.most.runs {
			return diskimage.ErrShared.Saw("%d parts within %d bytes", n, int64(1)<<shift)
		}
		if in += n; in > p.most.runs {
			p.cuts = append(p.cuts, int64(i)<<shift)
			in = n
		}
	}
	p.cuts = append(p.cuts, p.size)
	p.runs = nil
	return nil
}

// scan yields all runs in the disk's order.
func (p *plan) scan() func(func(run, error) bool) {
	return func(yield func(run, error) bool) {
		n := 0
		for e, err := range p.disk.Map.Extents(0) {
			if err == nil {
				err = p.check(e)
			}
			if n++; err == nil && n%askEvery == 0 {
				err = context.Cause(p.ctx)
			}
			if err != nil {
				yield(run{}, err)
				return
			}
			if e.Packed {
				if !yield(run{e.File, e.Guest, uint32(e.Length), uint32(e.Stored)}, nil) {
					return
				}
				continue
			}
			e.Length = min(e.Length, p.disk.Size-e.Guest)
			for e.Length > 0 {
				n := min(e.Length, maxRunBytes)
				if !yield(run{e.File, e.Guest, uint32(n), 0}, nil) {
					return
				}
				e.File, e.Guest, e.Length = e.File+n, e.Guest+n, e.Length-n
			}
		}
	}
}

// check holds a reader to what it owes: what follows trusts it with memory.
func (p *plan) check(e diskimage.Extent) error {
	sound := e.Guest >= 0 && e.Guest < p.disk.Size && e.Length > 0 &&
		e.File >= 0 && e.Stored > 0 && e.File <= p.size && e.Stored <= p.size-e.File
	if e.Packed {
		sound = sound && e.Length <= diskimage.MaxUnitBytes && e.Stored <= diskimage.MaxPackedBytes
	} else {
		sound = sound && e.Length == e.Stored
	}
	if !sound {
		return diskimage.ErrCorrupt.Saw("%d bytes of the disk at %d are said to be the %d bytes at %d", e.Length, e.Guest, e.Stored, e.File)
	}
	return nil
}

// before returns the next run if it begins before the file's offset end. It loads
// windows as needed.
func (p *plan) before(end int64) (r run, ok bool, err error) {
	for len(p.runs) == 0 {
		if p.window == len(p.cuts)-1 || p.cuts[p.window] >= end {
			return run{}, false, nil
		}
		if err := p.load(); err != nil {
			return run{}, false, err
		}
	}
	if p.runs[0].file >= end {
		return run{}, false, nil
	}
	r, p.runs = p.runs[0], p.runs[1:]
	return r, true, nil
}

// load reads the tables again for the next window.
func (p *plan) load() error {
	from, to := p.cuts[p.window], p.cuts[p.window+1]
	p.window++
	p.buffer = p.buffer[:0]
	for r, err := range p.scan() {
		switch {
		case err != nil:
			return err
		case r.file < from || r.file >= to:
		case len(p.buffer) == p.most.runs:
			// The same tables had fewer when they were counted.
			return diskimage.ErrCorrupt.Saw("tables that change while they are read")
		default:
			p.keep(r)
		}
	}
	p.runs = p.buffer
	slices.SortFunc(p.runs, byFile)
	return nil
}
