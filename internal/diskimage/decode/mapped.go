package decode

import (
	"context"
	"io"
	"slices"

	"vmimport/internal/diskimage"
)

// maxStragglers bounds the runs that go on behind a chunk. In an image that uses its
// bytes once there is one, and a few dozen where the lengths of compressed clusters
// are rounded up to sectors.
const maxStragglers = 1024

// mapped writes a disk whose tables say where everything is.
//
// It keeps tables and runs only while its file passes by: an archive may have many
// disks.
type mapped struct {
	ctx    context.Context
	reader func(*diskimage.File) (*diskimage.Disk, error)
	file   *diskimage.File
	size   int64 // of the disk
	survey survey

	dest io.WriterAt
	from int64 // where the first chunk begins
	bufs *buffers
	done bool

	plan   *plan // nil unless the file is passing by
	out    *writer
	active []run  // begun and not ended, in the file's order
	tail   []byte // the file from tailAt to where the next chunk begins
	tailAt int64
	parts  []part
}

// tableReads is how many reads of its tables a file of that size may need: one for each
// 64 KiB of it, which is about what tables of scattered clusters need, and some.
func tableReads(size int64) int64 { return 64<<10 + size>>16 }

// newMapped reads all tables of the disk in f, which reader opens. If alone is false,
// there are others in the object, and what was read is read again when its turn comes.
func newMapped(ctx context.Context, f *diskimage.File, reader func(*diskimage.File) (*diskimage.Disk, error), alone bool, bufs *buffers) (*mapped, error) {
	m := &mapped{ctx: ctx, reader: reader, file: f.AtMost(tableReads(f.Size())), bufs: bufs}
	d, err := reader(m.file)
	if err != nil {
		return nil, err
	}
	m.size = d.Size
	p, s, err := newPlan(ctx, d, f.Size(), usual)
	if err != nil {
		return nil, err
	}
	if err := checkGuest(d, m.file, s); err != nil {
		return nil, err
	}
	if m.survey = *s; alone {
		m.plan = p
	}
	return m, nil
}

func (m *mapped) inOrder() bool { return m.survey.inOrder }

func (m *mapped) dataBytes(unit int64) int64 { return m.survey.units.bytes(unit) }

func (m *mapped) begin(out io.WriterAt, _ diskimage.Position, at int64) error {
	m.dest, m.from, m.done = out, at, at == m.file.Size()
	return nil
}

// open is called when the file begins to pass by, at an offset up to which an earlier
// decoder has taken everything. Of runs that lie across it, that one has written
// plain ones up to there, and of packed ones nothing: what they have before it is read
// again.
func (m *mapped) open() (err error) {
	if m.plan == nil {
		d, err := m.reader(m.file)
		if err != nil {
			return err
		}
		m.plan = &plan{ctx: m.ctx, disk: d, size: m.file.Size(), most: usual, cuts: m.survey.cuts}
	}
	m.out = m.bufs.writer(m.ctx, m.dest, m.size, m.plan.disk.Map.Unpack)
	if m.active, err = m.plan.skip(m.from); err != nil {
		return err
	}
	m.tailAt = m.from
	for _, r := range m.active {
		if r.packed > 0 {
			m.tailAt = min(m.tailAt, r.file)
		}
	}
	m.tail, err = m.file.Read("compressed data", m.tailAt, m.from-m.tailAt)
	return err
}

// close lets go of what is needed only while the file passes by.
func (m *mapped) close() {
	m.plan, m.out, m.active, m.tail, m.parts = nil, nil, nil, nil, nil
}

func errShared(off int64) error {
	return diskimage.ErrShared.Saw("more than %d parts of the disk share the data at %d", maxStragglers, off)
}

func (m *mapped) position() diskimage.Position { return diskimage.Position{} }

// take writes what the chunk p at off holds, and what it completes.
func (m *mapped) take(off int64, p []byte) error {
	if m.out == nil {
		if err := m.open(); err != nil {
			return err
		}
	}
	end := off + int64(len(p))
	for {
		r, ok, err := m.plan.before(end)
		if err != nil {
			return err
		}
		if !ok {
			break
		}
		m.active = append(m.active, r)
	}
	m.join(off, p)
	m.parts = m.parts[:0]
	for _, r := range m.active {
		m.visit(r, off, p)
	}
	if err := m.out.write(m.parts); err != nil {
		return err
	}
	m.active = slices.DeleteFunc(m.active, func(r run) bool { return r.end() <= end })
	if len(m.active) > maxStragglers {
		return errShared(end)
	}
	if m.done = end == m.file.Size(); m.done {
		m.close()
		return nil
	}
	m.keep(off, p)
	return nil
}

// join makes the packed runs that began before the chunk and end in it lie in the
// tail, whole.
func (m *mapped) join(off int64, p []byte) {
	end, need := off+int64(len(p)), off
	for _, r := range m.active {
		if r.packed > 0 && r.file < off && r.end() <= end {
			need = max(need, r.end())
		}
	}
	m.tail = append(m.tail, p[:need-off]...)
}

// visit notes what can be written of a run now.
func (m *mapped) visit(r run, off int64, p []byte) {
	end := off + int64(len(p))
	if r.packed == 0 {
		from, to := max(r.file, off), min(r.end(), end)
		m.parts = append(m.parts, part{guest: r.guest + from - r.file, length: int(to - from), data: p[from-off : to-off]})
		return
	}
	if r.end() > end {
		return
	}
	data, at := p, off
	if r.file < off {
		data, at = m.tail, m.tailAt
	}
	m.parts = append(m.parts, part{guest: r.guest, length: int(r.length), data: data[r.file-at : r.end()-at], packed: true})
}

// keep keeps the end of the file so far, as much of it as packed runs need.
func (m *mapped) keep(off int64, p []byte) {
	end := off + int64(len(p))
	from := end
	for _, r := range m.active {
		if r.packed > 0 {
			from = min(from, r.file)
		}
	}
	if from >= off {
		m.tail = append(m.tail[:0], p[from-off:]...)
	} else {
		kept := copy(m.tail, m.tail[from-m.tailAt:off-m.tailAt])
		m.tail = append(m.tail[:kept], p...)
	}
	m.tailAt = from
}

// finish fails if not all of the file was taken.
func (m *mapped) finish() (int64, error) {
	if !m.done {
		return 0, diskimage.ErrTruncated.Saw("the image goes on behind the end of the object")
	}
	return m.size, nil
}

// checkGuest looks at both ends of a mapped disk.
func checkGuest(d *diskimage.Disk, f *diskimage.File, s *survey) error {
	if d.Format == diskimage.Raw {
		return nil // it was looked at when the format was found
	}
	head := make([]byte, min(headBytes, d.Size))
	if err := readRuns(d, f, s.front, head, 0); err != nil {
		return err
	}
	tail := make([]byte, diskimage.SectorBytes)
	if err := readRuns(d, f, []run{s.back}, tail, d.Size-diskimage.SectorBytes); err != nil {
		return err
	}
	return diskimage.CheckGuest(head, tail)
}

// readRuns fills in what runs have of the disk's bytes p at off.
func readRuns(d *diskimage.Disk, f *diskimage.File, runs []run, p []byte, off int64) error {
	for _, r := range runs {
		from, to := max(r.guest, off), min(r.guest+int64(r.length), off+int64(len(p)))
		if from >= to {
			continue
		}
		into := p[from-off : to-off]
		if r.packed == 0 {
			if err := f.ReadInto("data", r.file+from-r.guest, into); err != nil {
				return err
			}
			continue
		}
		src, err := f.Read("compressed data", r.file, int64(r.packed))
		if err != nil {
			return err
		}
		unit := make([]byte, r.length)
		if err := d.Map.Unpack(unit, src); err != nil {
			return err
		}
		copy(into, unit[from-r.guest:])
	}
	return nil
}
