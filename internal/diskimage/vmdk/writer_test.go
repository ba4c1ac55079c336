package vmdk

import (
	"bytes"
	"compress/zlib"
	"encoding/binary"
	"fmt"
)

// dialect is how a program writes stream-optimised images. The zero value is that of
// VMware: tables behind the grains that they are about, markers that say how long
// they are, the directory, a footer and an end-of-stream marker.
type dialect struct {
	version    uint32 // 3 if 0
	grain      int64  // sectors; 128 if 0
	descriptor string // with the sectors as %d; that of VMware if empty
	capacity   int64  // sectors; those of the guest if 0

	front       bool  // directory and tables before the grains, no footer
	noEnd       bool  // of front: no end-of-stream marker, as QEMU
	inHeader    bool  // the header has the directory's place, as vmdktool
	spare       bool  // the footer has the place of a spare directory, as VirtualBox
	cutLast     bool  // the last grain is as long as the disk goes, as open-vmdk
	unsized     bool  // markers have no size, and all tables come at once, as Xen Orchestra
	fill        int   // sectors of zeros before the tables, the same
	unknown     bool  // a marker of type 4 now and then, as vSphere
	unclean     byte  // in the header
	overHead    int64 // sectors; 128 if 0
	noPad       bool  // the last grain is not padded
	descSectors int64 // 20 if 0
}

const vmwareText = `# Disk DescriptorFile
version=1
CID=3f52d97a
parentCID=ffffffff
isNativeSnapshot="no"
createType="streamOptimized"

# Extent description
RDONLY %d SPARSE "call-me-stream.vmdk"

# The Disk Data Base
#DDB

ddb.adapterType = "lsilogic"
ddb.geometry.cylinders = "2610"
ddb.longContentID = "8f15b3d0009d9a3f456ff7b28d324d2a"
ddb.virtualHWVersion = "14"
`

type fields struct {
	version, flags                    uint32
	capacity, grain, descAt, descSize int64
	entries                           uint32
	rgd, gd                           uint64
	overHead                          int64
	unclean                           byte
	compression                       uint16
}

func (f fields) bytes() []byte {
	b := make([]byte, 0, sectorBytes)
	le := binary.LittleEndian
	b = append(b, magic...)
	b = le.AppendUint32(b, f.version)
	b = le.AppendUint32(b, f.flags)
	for _, n := range []int64{f.capacity, f.grain, f.descAt, f.descSize} {
		b = le.AppendUint64(b, uint64(n))
	}
	b = le.AppendUint32(b, f.entries)
	b = le.AppendUint64(b, f.rgd)
	b = le.AppendUint64(b, f.gd)
	b = le.AppendUint64(b, uint64(f.overHead))
	b = append(b, f.unclean, '\n', ' ', '\r', '\n')
	b = le.AppendUint16(b, f.compression)
	return append(b, make([]byte, sectorBytes-len(b))...)
}

// pack writes guest as a stream-optimised image.
func pack(guest []byte, d dialect) []byte {
	w := newStreamWriter(guest, d)
	w.grains()
	if d.front {
		w.closeFront()
	} else {
		w.closeEnd()
	}
	return w.out
}

type streamWriter struct {
	dialect
	guest []byte
	head  fields
	out   []byte
	table []uint32 // of all grains
	dir   []uint32
}

func newStreamWriter(guest []byte, d dialect) *streamWriter {
	sectors := int64(len(guest)+sectorBytes-1) / sectorBytes
	set := func(p *int64, n int64) {
		if *p == 0 {
			*p = n
		}
	}
	set(&d.grain, 128)
	set(&d.capacity, sectors)
	set(&d.overHead, 128)
	set(&d.descSectors, 20)
	if d.version == 0 {
		d.version = 3
	}
	if d.descriptor == "" {
		d.descriptor = vmwareText
	}
	w := &streamWriter{dialect: d, guest: guest}
	w.head = fields{version: d.version, flags: 0x30001, capacity: d.capacity, grain: d.grain, descAt: 1, descSize: d.descSectors,
		entries: tableEntries, gd: gdAtEnd, unclean: d.unclean, compression: 1}
	grains := (sectors + d.grain - 1) / d.grain
	w.dir = make([]uint32, (grains+tableEntries-1)/tableEntries)
	w.table = make([]uint32, len(w.dir)*tableEntries)
	w.head.overHead = d.overHead
	if d.front {
		w.head.gd = uint64(1 + d.descSectors)
		tables := 1 + d.descSectors + w.dirSectors()
		for i := range w.dir {
			w.dir[i] = uint32(tables + int64(i)*tableSectors)
		}
		w.head.overHead = tables + int64(len(w.dir))*tableSectors
	}
	w.out = append(w.out, w.head.bytes()...)
	w.out = append(w.out, fmt.Sprintf(d.descriptor, sectors)...)
	w.padTo(w.head.overHead * sectorBytes)
	return w
}

func (w *streamWriter) dirSectors() int64 {
	return (int64(len(w.dir))*entryBytes + sectorBytes - 1) / sectorBytes
}

func (w *streamWriter) padTo(n int64) {
	if more := n - int64(len(w.out)); more > 0 {
		w.out = append(w.out, make([]byte, more)...)
	}
}

func (w *streamWriter) pad() { w.padTo(int64(len(w.out)+sectorBytes-1) &^ (sectorBytes - 1)) }

func (w *streamWriter) mark(kind uint32, sectors int64) {
	if w.unsized {
		sectors = 0
	}
	w.out = append(w.out, mark(uint64(sectors), kind)...)
}

func mark(value uint64, kind uint32) []byte {
	b := make([]byte, sectorBytes)
	binary.LittleEndian.PutUint64(b, value)
	binary.LittleEndian.PutUint32(b[12:], kind)
	return b
}

func (w *streamWriter) grains() {
	size := int(w.grain) * sectorBytes
	for i := 0; i*size < len(w.guest); i++ {
		data := w.guest[i*size : min(len(w.guest), (i+1)*size)]
		if len(bytes.TrimLeft(data, "\x00")) > 0 {
			w.table[i] = uint32(len(w.out) / sectorBytes)
			if !w.cutLast {
				data = append(bytes.Clone(data), make([]byte, size-len(data))...)
			}
			w.out = append(w.out, grainOf(int64(i)*w.grain, data)...)
			if !w.noPad || (i+1)*size < len(w.guest) {
				w.pad()
			}
			if w.unknown && i%7 == 3 {
				w.mark(markUnknown, 0)
			}
		}
		if !w.front && !w.unsized && i%tableEntries == tableEntries-1 {
			w.writeTable(i / tableEntries)
		}
	}
}

// grainOf is a grain with its marker, not padded.
func grainOf(lba int64, data []byte) []byte {
	var z bytes.Buffer
	zw, _ := zlib.NewWriterLevel(&z, zlib.BestSpeed)
	_, _ = zw.Write(data)
	_ = zw.Close()
	b := binary.LittleEndian.AppendUint64(nil, uint64(lba))
	b = binary.LittleEndian.AppendUint32(b, uint32(z.Len()))
	return append(b, z.Bytes()...)
}

func (w *streamWriter) words(words []uint32) {
	for _, n := range words {
		w.out = binary.LittleEndian.AppendUint32(w.out, n)
	}
	w.pad()
}

func (w *streamWriter) writeTable(i int) {
	w.mark(markTable, tableSectors)
	w.dir[i] = uint32(len(w.out) / sectorBytes)
	w.words(w.table[i*tableEntries:][:tableEntries])
}

func (w *streamWriter) closeFront() {
	if !w.noEnd {
		w.out = append(w.out, mark(0, markEnd)...)
	}
	end := w.out
	w.out = bytes.Clone(w.out[:w.head.gd*sectorBytes])
	w.words(w.dir)
	w.words(w.table)
	w.out = append(w.out, end[len(w.out):]...)
}

func (w *streamWriter) closeEnd() {
	w.out = append(w.out, make([]byte, w.fill*sectorBytes)...)
	if w.unsized {
		w.mark(markTable, 0)
		for i := range w.dir {
			w.dir[i] = uint32(len(w.out)/sectorBytes + i*tableSectors)
		}
		w.words(w.table)
	} else if n := len(w.dir) - 1; w.dir[n] == 0 {
		w.writeTable(n)
	}
	w.mark(markDirectory, w.dirSectors())
	foot := w.head
	foot.gd = uint64(len(w.out) / sectorBytes)
	foot.unclean = 0
	if w.spare {
		foot.rgd = foot.gd
	}
	w.words(w.dir)
	if w.inHeader {
		copy(w.out[56:], binary.LittleEndian.AppendUint64(nil, foot.gd))
	}
	w.mark(markFooter, 1)
	w.out = append(w.out, foot.bytes()...)
	w.mark(markEnd, 0)
}

const sparseText = `# Disk DescriptorFile
version=1
encoding="windows-1252"
CID=3f52d97a
parentCID=ffffffff
createType="monolithicSparse"

# Extent description
RW %d SPARSE "disk.vmdk"

ddb.adapterType = "lsilogic"
`

// The layout of sparsePack, in sectors.
const (
	sparseDir    = 4
	sparseGrains = 8
)

// sparsePack writes guest as a sparse image: header, descriptor, directory, grains of
// 64 KiB, and behind them the tables.
func sparsePack(guest []byte) []byte {
	const grain = 128 * sectorBytes
	sectors := int64(len(guest) / sectorBytes)
	n := (len(guest) + grain - 1) / grain
	tables := (n + tableEntries - 1) / tableEntries
	out := fields{version: 1, flags: flagNewlines, capacity: sectors, grain: 128, descAt: 1, descSize: 3,
		entries: tableEntries, gd: sparseDir, overHead: sparseGrains}.bytes()
	out = append(out, fmt.Sprintf(sparseText, sectors)...)
	out = append(out, make([]byte, sparseGrains*sectorBytes-len(out))...)
	entries := make([]byte, tables*tableBytes)
	for i := range n {
		data := guest[i*grain : min(len(guest), (i+1)*grain)]
		if len(bytes.TrimLeft(data, "\x00")) > 0 {
			binary.LittleEndian.PutUint32(entries[i*entryBytes:], uint32(len(out)/sectorBytes))
			out = append(out, data...)
		}
	}
	for i := range tables {
		binary.LittleEndian.PutUint32(out[sparseDir*sectorBytes+i*entryBytes:], uint32(len(out)/sectorBytes+i*tableSectors))
	}
	return append(out, entries...)
}
