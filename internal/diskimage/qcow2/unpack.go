package qcow2

import (
	"encoding/binary"
	"errors"
	"io"
	"sync"

	"github.com/klauspost/compress/zstd"

	"vmimport/internal/diskimage"
	"vmimport/internal/inflate"
)

// zstdWindow is the window that RFC 8878, 3.1.1.1.2 recommends decoders to support. It
// is more than any cluster needs.
const zstdWindow = 8 << 20

var inflaters = sync.Pool{New: func() any { return new(inflate.Decoder) }}

// inflateCluster unpacks a cluster of compression type 0: a stream of deflate
// without the header of zlib. QEMU uses a window of 4 KiB, others need not.
func inflateCluster(dst, src []byte) error {
	d := inflaters.Get().(*inflate.Decoder)
	defer inflaters.Put(d)
	_, err := d.Inflate(dst, src)
	return err
}

var zstdDecoders = sync.Pool{New: func() any { return newZstdDecoder() }}

// newZstdDecoder returns a decoder for DecodeAll. It writes to what it is given
// and to nothing else, and has no goroutines, so it need not be closed.
func newZstdDecoder() *zstd.Decoder {
	d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
		zstd.WithDecoderMaxWindow(zstdWindow), zstd.WithDecoderMaxMemory(zstdWindow), zstd.WithDecodeAllCapLimit(true))
	if err != nil {
		panic(err) // an option that the library does not know
	}
	return d
}

var errZstdLength = errors.New("the frame does not hold one cluster")

// decodeCluster unpacks a cluster of compression type 1: one frame of Zstandard.
func decodeCluster(dst, src []byte) error {
	n, err := frameBytes(src)
	if err != nil {
		return err
	}
	d := zstdDecoders.Get().(*zstd.Decoder)
	defer zstdDecoders.Put(d)
	out, err := d.DecodeAll(src[:n], dst[:0:len(dst)])
	switch {
	case err != nil:
		return err
	case len(out) != len(dst) || &out[0] != &dst[0]:
		return errZstdLength
	}
	return nil
}

// frameBytes returns the length of the frame of Zstandard that src begins with
// (RFC 8878, 3.1.1). The entry of a compressed cluster tells how many sectors it
// takes, so behind the frame there is most often the beginning of another one.
func frameBytes(src []byte) (int, error) {
	var h zstd.Header
	if err := h.Decode(src); err != nil {
		return 0, err
	}
	if h.Skippable {
		return 0, errZstdLength
	}
	at := h.HeaderSize
	for last := false; !last; {
		if len(src)-at < 3 {
			return 0, io.ErrUnexpectedEOF
		}
		block := uint32(binary.LittleEndian.Uint16(src[at:])) | uint32(src[at+2])<<16
		last = block&1 != 0
		size := int(block >> 3)
		if block>>1&3 == 1 { // a run of one byte
			size = 1
		}
		at += 3 + size
	}
	if h.HasCheckSum {
		at += 4
	}
	if at > len(src) {
		return 0, io.ErrUnexpectedEOF
	}
	return at, nil
}

// Unpack implements diskimage.Map: dst is one cluster.
func (m *clusterMap) Unpack(dst, src []byte) error {
	unpack := inflateCluster
	if m.zstd {
		unpack = decodeCluster
	}
	if err := unpack(dst, src); err != nil {
		return diskimage.ErrCorrupt.Saw("a compressed cluster cannot be unpacked").Because(err)
	}
	return nil
}
