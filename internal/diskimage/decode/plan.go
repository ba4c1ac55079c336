package decode

import (
	"cmp"
	"context"
	"math/bits"
	"slices"

	"vmimport/internal/diskimage"
)

// Bounds of a plan.
const (
	// maxRunBytes is what a run can say of its length.
	maxRunBytes = 1 << 30
	// maxSharing is how many times the bytes of a file may be used for the disk, all
	// in all, and how many runs may begin at one place. Images that are made by
	// anybody's tools use each byte once.
	maxSharing = 16
	// leastPacked is the length of the shortest stream that unpacks to a cluster or
	// grain, or rather less than that.
	leastPacked = 8
	// buckets is how finely it is counted where in the file the runs are.
	buckets = 4096
	// askEvery is after how many extents a scan asks whether it is still wanted.
	askEvery = 1 << 12
	// firstRuns is what a plan begins with: most images have fewer.
	firstRuns = 1 << 12
)

// bounds are how many runs a plan has in memory at a time, and how often it reads the
// tables of an image.
type bounds struct{ runs, windows int }

// usual bounds hold 24 MiB of runs, and let every cluster of 64 KiB in an image of 2
// TiB be somewhere else.
var usual = bounds{runs: 1 << 20, windows: 64}

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

// behind reports whether r, in a list by the disk's order, can be written when last
// has been: whatever the chunks, last is complete before r is.
func (r run) behind(last run) bool {
	if r.packed > 0 && last.packed > 0 {
		return r.file > last.file && r.end() >= last.end()
	}
	return r.file >= last.end()
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

	cuts   []int64 // where the windows begin, and the end of the last one
	window int     // the next one to be loaded
	runs   []run   // what is left of the present one
	buffer []run
}

// survey is what the first reading of the tables tells.
type survey struct {
	inOrder bool    // the order of the file is that of the disk
	units   spread  // of the disk, that runs touch
	cuts    []int64 // of the plan
	front   []run   // of the first headBytes of the disk
	back    run     // the last one
}

// spread counts the units of 4 KiB, 8 KiB and so on to 2 MiB that runs touch which
// come in the disk's order.
type spread struct {
	touched [10]int64
	last    [10]int64 // behind the last unit that was counted
}

// leastUnit is the smallest unit of a spread, as a power of two.
const leastUnit = 12

func (s *spread) add(from, to int64) {
	for i := range s.touched {
		shift := leastUnit + i
		first, end := max(from>>shift, s.last[i]), (to-1)>>shift+1
		if end > first {
			s.touched[i] += end - first
			s.last[i] = end
		}
	}
}

// bytes is the size of all units that were touched. unit is a power of two.
func (s *spread) bytes(unit int64) int64 {
	i := min(max(bits.TrailingZeros64(uint64(unit))-leastUnit, 0), len(s.touched)-1)
	return s.touched[i] << (leastUnit + i)
}

// newPlan reads the tables once.
func newPlan(ctx context.Context, d *diskimage.Disk, fileSize int64, most bounds) (*plan, *survey, error) {
	p := &plan{ctx: ctx, disk: d, size: fileSize, most: most, buffer: make([]run, 0, min(most.runs, firstRuns))}
	s := &survey{inOrder: true}
	shift := 0
	for fileSize>>shift >= buckets {
		shift++
	}
	var counts [buckets]int
	var total, uses int64
	last := run{file: -1}
	for r, err := range p.scan() {
		if err != nil {
			return nil, nil, err
		}
		if total++; total > int64(most.runs)*int64(most.windows) {
			return nil, nil, diskimage.ErrFragmented.Saw("more than %d parts", int64(most.runs)*int64(most.windows))
		}
		counts[r.file>>shift]++
		s.units.add(r.guest, min(r.guest+int64(r.length), d.Size))
		s.inOrder = s.inOrder && r.behind(last)
		last = r
		if r.guest < headBytes {
			s.front = append(s.front, r)
		}
		if r.packed > 0 {
			uses += leastPacked
		} else {
			uses += int64(r.length)
		}
		if total <= int64(most.runs) {
			p.keep(r)
		}
	}
	s.back = last
	if uses/maxSharing > fileSize {
		return nil, nil, diskimage.ErrShared.Saw("a file of %d bytes is used for %d", fileSize, uses)
	}
	if total <= int64(most.runs) {
		s.cuts, p.window = []int64{0, fileSize}, 1
	} else if err := s.cut(&counts, shift, fileSize, most); err != nil {
		return nil, nil, err
	}
	p.cuts = s.cuts
	if p.window == 0 {
		p.buffer = nil
		return p, s, nil
	}
	return p, s, p.sort()
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
func (s *survey) cut(counts *[buckets]int, shift int, size int64, most bounds) error {
	s.cuts = []int64{0}
	in := 0
	for i, n := range counts {
		if n > most.runs {
			return diskimage.ErrShared.Saw("%d parts within %d bytes", n, int64(1)<<shift)
		}
		if in += n; in > most.runs {
			s.cuts = append(s.cuts, int64(i)<<shift)
			in = n
		}
	}
	if len(s.cuts) > most.windows {
		return diskimage.ErrFragmented.Saw("parts for more than %d readings of the tables", most.windows)
	}
	s.cuts = append(s.cuts, size)
	return nil
}

// scan yields all runs in the disk's order.
func (p *plan) scan() func(func(run, error) bool) {
	return func(yield func(run, error) bool) {
		n, high := 0, int64(0)
		for e, err := range p.disk.Map.Extents(0) {
			if err == nil {
				err = p.check(e, high)
			}
			if n++; err == nil && n%askEvery == 0 {
				err = context.Cause(p.ctx)
			}
			if err != nil {
				yield(run{}, err)
				return
			}
			high = e.Guest + e.Length
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

// check holds a reader to what it owes: what follows trusts it with memory, and with
// writing no byte twice.
func (p *plan) check(e diskimage.Extent, high int64) error {
	sound := e.Guest >= high && e.Guest < p.disk.Size && e.Length > 0 &&
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
		if _, err := p.load(p.cuts[p.window]); err != nil {
			return run{}, false, err
		}
	}
	if p.runs[0].file >= end {
		return run{}, false, nil
	}
	r, p.runs = p.runs[0], p.runs[1:]
	return r, true, nil
}

// skip goes on at an offset of the file, and returns the runs that lie across it.
func (p *plan) skip(at int64) (across []run, err error) {
	if p.window == 0 {
		return p.load(at)
	}
	for len(p.runs) > 0 && p.runs[0].file < at {
		if p.runs[0].end() > at {
			across = append(across, p.runs[0])
		}
		p.runs = p.runs[1:]
	}
	return across, nil
}

// load reads the tables again for what the window of an offset has from there on. It
// returns the runs that lie across the offset.
func (p *plan) load(at int64) (across []run, err error) {
	for p.window++; p.window < len(p.cuts)-1 && p.cuts[p.window] <= at; {
		p.window++
	}
	to := p.cuts[p.window]
	p.buffer = slices.Grow(p.buffer[:0], min(p.most.runs, firstRuns))
	for r, err := range p.scan() {
		switch {
		case err != nil:
			return nil, err
		case r.file >= to || r.end() <= at:
		case r.file < at:
			if across = append(across, r); len(across) > maxStragglers {
				return nil, errShared(at)
			}
		case len(p.buffer) == p.most.runs:
			// The same tables had fewer when they were counted.
			return nil, diskimage.ErrCorrupt.Saw("tables that change while they are read")
		default:
			p.keep(r)
		}
	}
	slices.SortFunc(across, byFile)
	return across, p.sort()
}

// sort brings the runs of a window into the file's order.
func (p *plan) sort() error {
	p.runs = p.buffer
	slices.SortFunc(p.runs, byFile)
	for i := maxSharing; i < len(p.runs); i++ {
		if p.runs[i].file == p.runs[i-maxSharing].file {
			return diskimage.ErrShared.Saw("more than %d parts of the disk are the data at %d", maxSharing, p.runs[i].file)
		}
	}
	return nil
}
