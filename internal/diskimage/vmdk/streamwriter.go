package vmdk

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"slices"
	"strconv"

	"vmimport/internal/diskimage"
)

// What a StreamWriter writes, in sectors of 512 bytes (Virtual Disk Format 1.1; the
// same in 5.0):
//
//	at      sectors  what                            section
//	0       1        header                          "Hosted Sparse Extent Header"
//	1       20       descriptor, padded with zeros   "The Descriptor File"
//	21      107      zeros
//	128              for each 32 MiB of the disk that are not all zeros:
//	        2..129     each grain that is not all    "Stream-Optimized Compressed
//	                   zeros: marker, data, padding   Sparse Extents"
//	        1          marker of a table             "Markers"
//	        4          grain table                   "Grain Table"
//	        1        marker of the directory         "Markers"
//	        1..512   grain directory                 "Grain Directory"
//	        1        marker of the footer            "Markers"
//	        1        footer: the header again, with the place of the directory
//	        1        end-of-stream marker            "Markers"
//
// A grain of zeros has a zero in its table, and a table of zeros has one in the
// directory. The directory is padded to a sector.
const (
	// GrainBytes is the unit of a StreamWriter: what an entry of a grain table stands
	// for, and is compressed as one.
	GrainBytes = writerGrain * sectorBytes
	// MaxPackedGrainBytes is the most that a grain may take as zlib data. It has room for
	// what nothing compresses.
	MaxPackedGrainBytes = (writerGrainSectors * sectorBytes) - grainMarkBytes
	// MaxStreamBytes is the largest disk of a StreamWriter, 2 TiB: entries of tables are
	// sectors of 32 bits.
	MaxStreamBytes = writerMaxSector * sectorBytes

	writerVersion      = 3
	writerGrain        = 128 // sectors
	writerGrainSectors = writerGrain + 1
	writerTable        = 1 + tableSectors
	writerOverHead     = 128
	writerDescriptor   = 20
	writerMaxSector    = 1 << 32
)

// writerText is the descriptor. The extent is the file itself, by whatever name it is
// known to its reader; geometry is what an adapter of this type shows of any large
// disk, which is 255 heads and 63 sectors a track.
const writerText = `# Disk DescriptorFile
version=1
CID=%08x
parentCID=ffffffff
isNativeSnapshot="no"
createType="streamOptimized"

# Extent description
RDONLY %d SPARSE "disk.vmdk"

# The Disk Data Base
#DDB

ddb.adapterType = "lsilogic"
ddb.geometry.cylinders = "%d"
ddb.geometry.heads = "255"
ddb.geometry.sectors = "63"
ddb.virtualHWVersion = "10"
`

// ErrStreamState is the failure of ResumeStreamWriter.
var ErrStreamState = errors.New("vmdk: not a state of a stream writer")

// StreamWriter lays out a stream-optimised image. Grains come compressed and in the disk's
// order; those that do not come are zeros. It keeps four bytes for each 32 MiB of the
// disk. It is for one goroutine, and of no use after an error.
type StreamWriter struct {
	out  io.Writer
	size int64 // of the disk, in bytes
	at   int64 // sectors of the file so far; 0 before the header

	// places are those of the tables so far, in sectors, 0 where there is none. The table
	// behind them is growing.
	places []uint32
	table  [tableEntries]uint32
	buf    []byte
}

// NewStreamWriter returns a StreamWriter to out of a disk of size bytes, a multiple of
// 512. It writes nothing yet. The error is that of diskimage.CheckSize, or
// diskimage.ErrTooLarge if size is more than MaxStreamBytes.
func NewStreamWriter(out io.Writer, size int64) (*StreamWriter, error) {
	if err := diskimage.CheckSize(size); err != nil {
		return nil, err
	}
	switch {
	case size > MaxStreamBytes:
		return nil, diskimage.ErrTooLarge.Saw("%d bytes, and VMDK images are limited to %d (2 TiB)", size, int64(MaxStreamBytes))
	case size%sectorBytes != 0:
		return nil, fmt.Errorf("write vmdk image: a disk of %d bytes, which are not whole sectors", size)
	}
	return &StreamWriter{out: out, size: size}, nil
}

// MaxStreamFileBytes bounds what a StreamWriter writes for grains grains in a row, and
// what Finish adds for a disk of size bytes. The header is counted, too.
func MaxStreamFileBytes(size, grains int64) int64 {
	tables := grains/tableEntries + 2 // the first and the last may have a part of these grains
	end := 1 + writerDirectorySectors(size) + 3
	return (writerOverHead + grains*writerGrainSectors + tables*writerTable + end) * sectorBytes
}

// writerTables is how many tables a disk has, those of zeros counted.
func writerTables(size int64) int64 { return (size-1)/(tableEntries*GrainBytes) + 1 }

func writerDirectorySectors(size int64) int64 {
	return (writerTables(size)*entryBytes-1)/sectorBytes + 1
}

// Put writes the grain of that number, as zlib data (RFC 1950) of at most
// MaxPackedGrainBytes. Numbers rise. It fails with diskimage.ErrTooLarge when the file
// gets larger than tables can tell.
func (w *StreamWriter) Put(number int64, packed []byte) error {
	if err := w.reach(number); err != nil {
		return err
	}
	w.table[number%tableEntries] = uint32(w.at)
	b := binary.LittleEndian.AppendUint64(w.buf[:0], uint64(number*writerGrain))
	b = binary.LittleEndian.AppendUint32(b, uint32(len(packed)))
	return w.write(append(b, packed...))
}

// reach writes what comes before the grain of that number: the header, and the table
// of earlier grains.
func (w *StreamWriter) reach(number int64) error {
	if w.at == 0 {
		if err := w.begin(); err != nil {
			return err
		}
	}
	for int64(len(w.places)) < number/tableEntries {
		place := uint32(0)
		if w.table != [tableEntries]uint32{} {
			place = uint32(w.at + 1)
			if err := w.writeEntries(markTable, w.table[:]); err != nil {
				return err
			}
			clear(w.table[:])
		}
		w.places = append(w.places, place)
	}
	return nil
}

func (w *StreamWriter) begin() error {
	b := w.header(gdAtEnd)
	sectors := w.size / sectorBytes
	cylinders := min(max(1, sectors/(255*63)), 65535)
	// The content ID tells a disk from its snapshots. It is any number but
	// ffffffff, and here the same for the same disk.
	cid := crc32.ChecksumIEEE(strconv.AppendInt(nil, sectors, 10)) &^ (1 << 31)
	b = fmt.Appendf(b, writerText, cid, sectors, cylinders)
	return w.write(append(b, make([]byte, writerOverHead*sectorBytes-len(b))...))
}

// header is the header, with the place of the directory in sectors.
func (w *StreamWriter) header(directory uint64) []byte {
	le := binary.LittleEndian
	b := append(w.buf[:0], make([]byte, headerBytes)...)
	copy(b, magic)
	le.PutUint32(b[4:], writerVersion)
	le.PutUint32(b[8:], flagNewlines|flagCompressed|flagMarkers)
	le.PutUint64(b[12:], uint64(w.size/sectorBytes))
	le.PutUint64(b[20:], writerGrain)
	le.PutUint64(b[28:], 1) // the descriptor's place
	le.PutUint64(b[36:], writerDescriptor)
	le.PutUint32(b[44:], tableEntries)
	le.PutUint64(b[56:], directory)
	le.PutUint64(b[64:], writerOverHead)
	copy(b[73:], "\n \r\n")
	le.PutUint16(b[77:], compressionDeflate)
	return b
}

// writeEntries writes a table or the directory behind its marker.
func (w *StreamWriter) writeEntries(kind uint32, entries []uint32) error {
	sectors := (len(entries)*entryBytes-1)/sectorBytes + 1
	b := writerMark(w.buf[:0], kind, sectors)
	for _, e := range entries {
		b = binary.LittleEndian.AppendUint32(b, e)
	}
	return w.write(b)
}

// writerMark appends a marker of what has that many sectors.
func writerMark(b []byte, kind uint32, sectors int) []byte {
	b = binary.LittleEndian.AppendUint64(b, uint64(sectors))
	b = binary.LittleEndian.AppendUint32(b, 0)
	b = binary.LittleEndian.AppendUint32(b, kind)
	return append(b, make([]byte, markBytes-16)...)
}

// write writes b, padded to a sector, and keeps its room.
func (w *StreamWriter) write(b []byte) error {
	b = append(b, make([]byte, -len(b)&(sectorBytes-1))...)
	w.buf = b
	if w.at += int64(len(b) / sectorBytes); w.at > writerMaxSector {
		return diskimage.ErrTooLarge.Saw("the disk packs to more than %d bytes, the limit of VMDK images", int64(MaxStreamBytes))
	}
	_, err := w.out.Write(b)
	return err
}

// Finish writes what is left: the last table, the directory and the footer. There is no head
// that had to wait for them: it is nil.
func (w *StreamWriter) Finish() (head []byte, err error) {
	tables := writerTables(w.size)
	if err := w.reach(tables * tableEntries); err != nil {
		return nil, err
	}
	directory := uint64(w.at + 1)
	if err := w.writeEntries(markDirectory, w.places); err != nil {
		return nil, err
	}
	b := w.header(directory)
	foot := writerMark(make([]byte, 0, 3*sectorBytes), markFooter, 1)
	return nil, w.write(writerMark(append(foot, b...), markEnd, 0))
}

// State writes what comes before the grain of that number, which is not lower than that of
// any grain that was put, and returns what ResumeStreamWriter needs to go on with it: for
// each table of earlier grains how many sectors its grains take, and for each earlier grain
// of the table that is growing how many it takes, as varints. It has 200 KiB at most.
func (w *StreamWriter) State(number int64) ([]byte, error) {
	if err := w.reach(number); err != nil {
		return nil, err
	}
	var state []byte
	at := int64(writerOverHead)
	for _, place := range w.places {
		grains := int64(0)
		if place != 0 {
			grains = int64(place) - 1 - at
			at = int64(place) + tableSectors
		}
		state = binary.AppendUvarint(state, uint64(grains))
	}
	lengths := w.lengths()
	for _, n := range lengths[:number%tableEntries] {
		state = binary.AppendUvarint(state, uint64(n))
	}
	return state, nil
}

// lengths are those of the grains of the growing table, in sectors.
func (w *StreamWriter) lengths() (lengths [tableEntries]int64) {
	end := w.at
	for i, place := range slices.Backward(w.table[:]) {
		if place != 0 {
			lengths[i] = end - int64(place)
			end = int64(place)
		}
	}
	return lengths
}

// ResumeStreamWriter returns a StreamWriter that goes on with the grain of that number,
// behind the first offset bytes of the file. It fails as NewStreamWriter, and with
// ErrStreamState if no StreamWriter can have had the state there.
func ResumeStreamWriter(out io.Writer, size, number, offset int64, state []byte) (*StreamWriter, error) {
	w, err := NewStreamWriter(out, size)
	if err != nil {
		return nil, err
	}
	if number < 0 || number > (size-1)/GrainBytes+1 {
		return nil, ErrStreamState
	}
	next := func(most int64) (n int64) {
		v, used := binary.Uvarint(state)
		if used <= 0 || v > uint64(most) {
			err = ErrStreamState
			return 0
		}
		state = state[used:]
		return int64(v)
	}
	w.at = writerOverHead
	for range number / tableEntries {
		place := uint32(0)
		if n := next(tableEntries * writerGrainSectors); n > 0 {
			place = uint32(w.at + n + 1)
			w.at += n + writerTable
		}
		w.places = append(w.places, place)
	}
	for i := range number % tableEntries {
		if n := next(writerGrainSectors); n > 0 {
			w.table[i] = uint32(w.at)
			w.at += n
		}
	}
	if err != nil || len(state) > 0 || w.at > writerMaxSector || w.at*sectorBytes != offset {
		return nil, ErrStreamState
	}
	return w, nil
}
