package vmdk

import (
	"bytes"
	"encoding/binary"
	"slices"

	"vmimport/internal/diskimage"
)

// The types of markers that are not of a grain (Virtual Disk Format 1.1, "Markers").
const (
	markEnd       = 0
	markTable     = 1
	markDirectory = 2
	markFooter    = 3
	// markUnknown is in no specification. VirtualBox has met it in files of vSphere,
	// and skips the one sector (vmdkStreamReadSequential).
	markUnknown = 4

	grainMarkBytes = 12 // its data follows at once
	markBytes      = sectorBytes

	// maxTail is how much is read to see whether a file is cut short. With that it
	// bounds the zeros that may follow a footer.
	maxTail = 64 << 10
)

// stream is what parsers know of a stream-optimised image. Places are offsets in the
// file.
//
// A file that was cut between two grains looks whole from the front, and must not
// become a disk with zeros at its end. Where the tables are at the end, it is the
// footer, and the end-of-stream marker behind it, that prove the file whole. Where
// they are in front, most writers put nothing at the end: there a parser counts the
// entries of the tables as they pass, and wants to see as many grains.
type stream struct {
	header header
	size   int64 // of the disk, in bytes
	grain  int64 // the same
	tables int64 // how many there are

	// The tables in front: the directory, padded to a sector, and the tables in a
	// row. All are zero where these are at the end.
	dir, dirEnd, tablesEnd int64
	marks                  int64 // the first marker
}

// newStream works out where in the file everything is.
func newStream(h header, size int64) (*stream, error) {
	s := &stream{header: h, size: size, grain: h.grainBytes(), marks: int64(h.overHead) * sectorBytes}
	s.tables = tables(size, s.grain)
	if s.grains() > maxGrains {
		return nil, diskimage.ErrUnsupported.Saw("a disk of %d grains", s.grains())
	}
	if !h.tablesAtEnd() {
		s.dir = int64(h.gd) * sectorBytes
		s.dirEnd = s.dir + s.directorySectors()*sectorBytes
		s.tablesEnd = s.dirEnd + s.tables*tableBytes
		if _, desc := h.descriptor(); s.dir < desc || s.tablesEnd > s.marks {
			return nil, diskimage.ErrCorrupt.Saw("tables from %d to %d, where the grains begin at %d", s.dir, s.tablesEnd, s.marks)
		}
	}
	return s, nil
}

// front reports whether the tables are in front of the grains.
func (s *stream) front() bool { return s.dir > 0 }

// parser is the Parser of a Disk.
func (s *stream) parser(at diskimage.Position) diskimage.Parser {
	return &parser{stream: s, at: at.Offset, seen: unpackProgress(at.State)}
}

// grains is how many grains the disk has.
func (s *stream) grains() int64 { return (s.size + s.grain - 1) / s.grain }

// directorySectors is the size of the grain directory.
func (s *stream) directorySectors() int64 {
	return (s.tables*entryBytes + sectorBytes - 1) / sectorBytes
}

// checkFile looks at the end of the tables and of the file, for no more than to refuse
// a file that is cut short before all of it was read.
func (s *stream) checkFile(f *diskimage.File) error {
	if !f.Has(s.marks, 0) {
		return diskimage.ErrTruncated.Saw("grains begin at %d, the file ends at %d", s.marks, f.Size())
	}
	if s.front() {
		return s.checkLastGrain(f)
	}
	return s.checkEnd(f)
}

// checkLastGrain looks whether the file has the grain of the tables' last entry.
func (s *stream) checkLastGrain(f *diskimage.File) error {
	entries := s.grains() * entryBytes
	n := min(entries, maxTail)
	tail, err := f.Read("the last grain tables", s.dirEnd+entries-n, n)
	if err != nil {
		return err
	}
	for ; len(tail) > 0; tail = tail[:len(tail)-entryBytes] {
		sector := binary.LittleEndian.Uint32(tail[len(tail)-entryBytes:])
		if at := int64(sector) * sectorBytes; sector > 1 && !f.Has(at, grainMarkBytes) {
			return diskimage.ErrTruncated.Saw("the last grain is at %d, the file ends at %d", at, f.Size())
		}
		if sector > 1 {
			break
		}
	}
	return nil
}

// checkEnd looks for the footer, between its marker and the end-of-stream marker,
// which is zeros.
func (s *stream) checkEnd(f *diskimage.File) error {
	n := min(f.Size(), maxTail)
	tail, err := f.Read("the end", f.Size()-n, n)
	if err != nil {
		return err
	}
	end := len(bytes.TrimRight(tail, "\x00"))
	end = (end + sectorBytes - 1) &^ (sectorBytes - 1)
	if f.Size()%sectorBytes != 0 || end < 2*markBytes || end > len(tail)-markBytes || kind(tail[end-2*markBytes:]) != markFooter {
		return diskimage.ErrTruncated.Saw("no footer at the end of the file")
	}
	return s.header.checkFooter(tail[end-headerBytes:end], f.Size()-n+int64(end-headerBytes))
}

// kind is the type of the marker b, or one that there is not if it is a grain's.
func kind(b []byte) uint32 {
	if binary.LittleEndian.Uint32(b[8:]) != 0 {
		return 1<<32 - 1
	}
	return binary.LittleEndian.Uint32(b[12:])
}

// maxGrains bounds the disk of a stream: 64 TiB in grains of 64 KiB, the only ones in
// use. A progress has room for no more.
const maxGrains = 1 << 30

// progress is what a parser has seen.
type progress struct {
	next   int64 // the lowest grain that may come
	owed   int64 // entries of the tables in front whose grain has not come
	footer bool
	ended  bool // by an end-of-stream marker; if there is a footer, behind it
}

func (p progress) pack() uint64 {
	n := uint64(p.next) | uint64(p.owed)<<31
	if p.footer {
		n |= 1 << 62
	}
	if p.ended {
		n |= 1 << 63
	}
	return n
}

func unpackProgress(n uint64) progress {
	return progress{int64(n & (1<<31 - 1)), int64(n >> 31 & (1<<31 - 1)), n&(1<<62) != 0, n&(1<<63) != 0}
}

// parser implements diskimage.Parser.
type parser struct {
	*stream
	at   int64
	seen progress
}

// Position implements diskimage.Parser.
func (p *parser) Position() diskimage.Position {
	return diskimage.Position{Offset: p.at, State: p.seen.pack()}
}

// use consumes n bytes.
func (p *parser) use(n int64) (diskimage.Step, error) {
	p.at += n
	return diskimage.Step{Used: n}, nil
}

func need(n int) (diskimage.Step, error) { return diskimage.Step{Need: n}, nil }

// Next implements diskimage.Parser.
func (p *parser) Next(b []byte) (diskimage.Step, error) {
	padding := -p.at & (sectorBytes - 1)
	switch {
	case p.at < p.dir:
		return p.use(p.dir - p.at)
	case p.at < p.dirEnd:
		return p.directory(b)
	case p.at < p.tablesEnd:
		return p.table(b)
	case p.at < p.marks:
		return p.use(p.marks - p.at)
	case padding != 0 && len(b) == 0:
		return need(1)
	case padding != 0:
		return p.use(min(padding, int64(len(b))))
	}
	return p.marker(b)
}

// directory checks a part of the directory in front: that it names the tables behind
// it, in a row. QEMU and open-vmdk write them so.
func (p *parser) directory(b []byte) (diskimage.Step, error) {
	if len(b) < entryBytes {
		return need(entryBytes)
	}
	n := min(int64(len(b)), p.dirEnd-p.at) &^ (entryBytes - 1)
	for i := int64(0); i < n; i += entryBytes {
		entry := (p.at + i - p.dir) / entryBytes
		if entry >= p.tables {
			break
		}
		sector := int64(binary.LittleEndian.Uint32(b[i:]))
		if sector*sectorBytes != p.dirEnd+entry*tableBytes {
			return diskimage.Step{}, diskimage.ErrUnsupported.Saw("grain table %d of a stream at sector %d, not behind the one before it", entry, sector)
		}
	}
	return p.use(n)
}

// table counts the grains in a part of the tables in front.
func (p *parser) table(b []byte) (diskimage.Step, error) {
	if len(b) < entryBytes {
		return need(entryBytes)
	}
	n := min(int64(len(b)), p.tablesEnd-p.at) &^ (entryBytes - 1)
	grain := (p.at - p.dirEnd) / entryBytes
	for i := int64(0); i < n && grain < p.grains(); i, grain = i+entryBytes, grain+1 {
		if binary.LittleEndian.Uint32(b[i:]) > 1 { // 0 and 1 stand for zeros
			p.seen.owed++
		}
	}
	return p.use(n)
}

// marker takes what a marker precedes.
func (p *parser) marker(b []byte) (diskimage.Step, error) {
	if len(b) < grainMarkBytes {
		return need(grainMarkBytes)
	}
	value, size := binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint32(b[8:])
	if size > 0 {
		return p.grainData(b, value, size)
	}
	if len(b) < markBytes {
		return need(markBytes)
	}
	k := kind(b)
	if k == markEnd {
		p.seen.ended = true
		zeros := int64(len(b) - len(bytes.TrimLeft(b, "\x00")))
		return p.use(max(markBytes, zeros&^(sectorBytes-1)))
	}
	// Xen Orchestra fills up with zeros between the last grain and the tables, and
	// with that writes end-of-stream markers where the stream goes on.
	if p.seen.footer || p.seen.ended && p.front() {
		return diskimage.Step{}, diskimage.ErrTrailing.Saw("a marker of type %d at %d", k, p.at)
	}
	switch k {
	case markTable:
		return p.metadata(value, p.tables*tableSectors)
	case markDirectory:
		return p.metadata(value, p.directorySectors())
	case markUnknown:
		return p.use(markBytes)
	case markFooter:
		return p.footer(b)
	}
	return diskimage.Step{}, diskimage.ErrCorrupt.Saw("a marker of type %d at %d", k, p.at)
}

// metadata skips tables or the directory: as many sectors as the marker says, or all
// there can be where it says 0, which is what Xen Orchestra writes.
func (p *parser) metadata(sectors uint64, all int64) (diskimage.Step, error) {
	n := int64(min(sectors, maxSector))
	if n == 0 {
		n = all
	}
	if n > p.tables*tableSectors {
		return diskimage.Step{}, diskimage.ErrCorrupt.Saw("%d sectors of tables at %d", n, p.at)
	}
	return p.use(markBytes + n*sectorBytes)
}

func (p *parser) footer(b []byte) (diskimage.Step, error) {
	if len(b) < markBytes+headerBytes {
		return need(markBytes + headerBytes)
	}
	if err := p.header.checkFooter(b[markBytes:], p.at+markBytes); err != nil {
		return diskimage.Step{}, err
	}
	p.seen.footer, p.seen.ended = true, false
	return p.use(markBytes + headerBytes)
}

// grainData takes a grain. The padding behind its data is taken along if it is there;
// the last one of a file may have none.
func (p *parser) grainData(b []byte, lba uint64, size uint32) (diskimage.Step, error) {
	number := int64(min(lba/p.header.grain, maxSector))
	var err error
	switch {
	case p.seen.ended || p.seen.footer:
		err = diskimage.ErrTrailing.Saw("more data at %d", p.at)
	case lba >= p.header.capacity || lba%p.header.grain != 0:
		err = diskimage.ErrCorrupt.Saw("a grain of sector %d at %d", lba, p.at)
	case int64(size) > 2*p.grain:
		err = diskimage.ErrCorrupt.Saw("a grain of %d bytes at %d", size, p.at)
	case number < p.seen.next:
		err = diskimage.ErrUnsupported.Saw("grains are not in the disk's order: number %d at %d", number, p.at)
	case p.front() && p.seen.owed == 0:
		err = diskimage.ErrCorrupt.Saw("the grain at %d is in no table", p.at)
	}
	if err != nil {
		return diskimage.Step{}, err
	}
	end := grainMarkBytes + int(size)
	if len(b) < end {
		return need(end)
	}
	used := (end + sectorBytes - 1) &^ (sectorBytes - 1)
	if len(b) < used {
		used = end
	}
	p.seen.next = number + 1
	if p.front() {
		p.seen.owed--
	}
	step, _ := p.use(int64(used))
	guest := number * p.grain
	step.Piece = diskimage.Piece{Guest: guest, Length: min(p.grain, p.size-guest), Data: b[grainMarkBytes:end], Packed: true}
	return step, nil
}

// End implements diskimage.Parser.
func (p *parser) End(rest []byte) error {
	whole := p.at >= p.marks && p.seen.owed == 0
	if !p.front() {
		whole = p.seen.footer && p.seen.ended
	}
	nonzero := slices.ContainsFunc(rest, func(b byte) bool { return b != 0 })
	switch {
	case !whole && p.front():
		return diskimage.ErrTruncated.Saw("the file ends at %d, where %d grains have not come", p.at+int64(len(rest)), p.seen.owed)
	case !whole:
		return diskimage.ErrTruncated.Saw("the file ends at %d without a footer and an end-of-stream marker", p.at+int64(len(rest)))
	case nonzero:
		return diskimage.ErrTrailing.Saw("%d bytes at %d", len(rest), p.at)
	}
	return nil
}
