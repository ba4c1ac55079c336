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
type mapped struct {
	disk *diskimage.Disk
	file *diskimage.File
	plan *plan
	out  *writer

	active []run  // begun and not ended, in the file's order
	tail   []byte // the file from tailAt to where the next chunk begins
	tailAt int64
	parts  []part
}

func newMapped(ctx context.Context, d *diskimage.Disk, f *diskimage.File) (*mapped, error) {
	p, err := newPlan(ctx, d, f.Size(), usual)
	if err != nil {
		return nil, err
	}
	return &mapped{disk: d, file: f, plan: p}, nil
}

func (m *mapped) inOrder() bool { return m.plan.inOrder }

func (m *mapped) dataBytes() int64 { return m.plan.bytes }

// begin goes on when an earlier decoder has taken everything up to at. Of runs that
// lie across it, that one has written plain ones up to there, and of packed ones
// nothing: what they have before it is read again.
func (m *mapped) begin(out io.WriterAt, _ diskimage.Position, at int64) error {
	m.out = newWriter(out, m.disk.Size, m.disk.Map.Unpack)
	m.tailAt = at
	for {
		r, ok, err := m.plan.before(at)
		switch {
		case err != nil:
			return err
		case !ok:
			return m.readTail(at)
		case r.end() > at:
			if m.active = append(m.active, r); len(m.active) > maxStragglers {
				return errShared(at)
			}
		}
	}
}

func errShared(off int64) error {
	return diskimage.ErrShared.Saw("more than %d parts of the disk share the data at %d", maxStragglers, off)
}

func (m *mapped) readTail(end int64) (err error) {
	for _, r := range m.active {
		if r.packed > 0 {
			m.tailAt = min(m.tailAt, r.file)
		}
	}
	m.tail, err = m.file.Read("compressed data", m.tailAt, end-m.tailAt)
	return err
}

func (m *mapped) position() diskimage.Position { return diskimage.Position{} }

// take writes what the chunk p at off holds, and what it completes.
func (m *mapped) take(off int64, p []byte) error {
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

// finish fails if the object ended before the runs did.
func (m *mapped) finish() (int64, error) {
	if _, more, err := m.plan.before(m.file.Size()); more || len(m.active) > 0 || err != nil {
		if err == nil {
			err = diskimage.ErrTruncated.Saw("data behind the end of the file")
		}
		return 0, err
	}
	return m.disk.Size, nil
}

func (m *mapped) close() {}
