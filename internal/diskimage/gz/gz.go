// Package gz reads gzip files (RFC 1952) that come from strangers.
//
// The content of a file is that of all its members, one after the other. It is
// checked all the way: the header of each member, its checksum and its length,
// and that nothing but zeros follows the last one. What comes out is bounded by a
// number of the caller's and never by one of the file's: the length in a trailer
// is modulo 2^32, and says nothing.
package gz

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math"

	"github.com/klauspost/compress/flate"

	"vmimport/internal/diskimage"
)

// pieceBytes is how much is read at a time, and the bound of each field of a
// header, for a field is looked at as a whole. An extra field is always shorter:
// its length has 16 bits.
const pieceBytes = 64 << 10

// A member's header and trailer (RFC 1952, 2.3 and 2.3.1).
const (
	magic        = "\x1f\x8b"
	deflate      = 8
	headerBytes  = 10
	trailerBytes = 8

	flagHeaderCRC = 1 << 1
	flagExtra     = 1 << 2
	flagName      = 1 << 3
	flagComment   = 1 << 4
	flagsReserved = 0xe0
)

// Reader is the content of a gzip file. Its bytes are those of a whole and valid
// file only when Read has returned io.EOF.
type Reader struct {
	src   *source
	buf   *bufio.Reader
	limit int64

	inflate inflater // of the member at hand; nil before the first
	inside  bool     // of a member's compressed data
	crc     uint32   // of what the member has given
	size    uint32   // and its length, modulo 2^32
	total   int64    // what all members have given
	err     error    // what ended the content
}

type inflater interface {
	io.Reader
	flate.Resetter
}

// NewReader returns the content of the gzip file that r reads, which is bounded
// by limit bytes. It reads ahead of what it returns.
//
// Reading fails with diskimage.ErrBomb if there is more than limit bytes of
// content, after exactly that many; with ErrTruncated if the file ends within a
// member, or is empty; with ErrCorrupt if a member is damaged; and with
// ErrTrailing if anything but zeros follows the last member. An error of r is
// returned wrapped.
func NewReader(r io.Reader, limit int64) *Reader {
	src := &source{r: r}
	return &Reader{src: src, buf: bufio.NewReaderSize(src, pieceBytes), limit: limit}
}

// Read implements io.Reader.
func (z *Reader) Read(p []byte) (int, error) {
	if z.err != nil || len(p) == 0 {
		return 0, z.err
	}
	// One byte more than the limit tells a file that ends there from one that
	// goes on.
	room := z.limit - z.total
	var over [1]byte
	into := p
	switch {
	case room <= 0:
		into = over[:]
	case int64(len(p)) > room:
		into = p[:room]
	}
	n, err := z.read(into)
	if n > 0 && room <= 0 {
		n, err = 0, diskimage.ErrBomb.Saw("more than %d bytes of content", z.limit)
	}
	z.total += int64(n)
	z.err = err
	return n, err
}

// read is Read without the limit. It goes on to the next member with content.
func (z *Reader) read(p []byte) (int, error) {
	for {
		if !z.inside {
			if err := z.nextMember(); err != nil {
				return 0, err
			}
		}
		n, err := z.inflate.Read(p)
		z.crc = crc32.Update(z.crc, crc32.IEEETable, p[:n])
		z.size += uint32(n)
		if err == io.EOF { // the inflater's own; one that is wrapped is the source's
			err = z.trailer()
			z.inside = false
		} else if err != nil {
			err = z.failed(err, "the compressed data of a member")
		}
		if n > 0 || err != nil {
			return n, err
		}
	}
}

// nextMember reads up to the compressed data of the next member. At the end of the
// file it returns io.EOF.
func (z *Reader) nextMember() error {
	first := z.inflate == nil
	head, err := z.buf.Peek(len(magic))
	switch {
	case string(head) == magic:
	case z.src.err != nil:
		return z.src.err
	case len(head) == 0 && !first:
		return io.EOF
	case len(head) < len(magic) && string(head) == magic[:len(head)]:
		return z.failed(err, "the header of a member")
	case first:
		return diskimage.ErrCorrupt.Saw("no gzip header at offset 0")
	default:
		return z.padding()
	}
	if err := z.header(); err != nil {
		return err
	}
	z.crc, z.size, z.inside = 0, 0, true
	if first {
		z.inflate = flate.NewReader(z.buf).(inflater)
		return nil
	}
	return z.inflate.Reset(z.buf, nil)
}

// header checks and skips a member's header. Nothing in it is of use here: names,
// comments and times are between the sender and gunzip.
func (z *Reader) header() error {
	fixed, err := z.buf.Peek(headerBytes)
	if err != nil {
		return z.failed(err, "the header of a member")
	}
	method, flags := fixed[2], fixed[3]
	if method != deflate || flags&flagsReserved != 0 {
		return diskimage.ErrCorrupt.Saw("a member with method %d and flags %#x", method, flags)
	}
	crc := z.skip(0, headerBytes)

	if flags&flagExtra != 0 {
		length, err := z.buf.Peek(2)
		if err != nil {
			return z.failed(err, "the extra field of a member")
		}
		n := int(binary.LittleEndian.Uint16(length))
		crc = z.skip(crc, 2)
		if _, err := z.buf.Peek(n); err != nil {
			return z.failed(err, "the extra field of a member")
		}
		crc = z.skip(crc, n)
	}
	for _, flag := range []byte{flagName, flagComment} {
		if flags&flag == 0 {
			continue
		}
		text, err := z.buf.ReadSlice(0)
		if errors.Is(err, bufio.ErrBufferFull) {
			return diskimage.ErrCorrupt.Saw("a name or comment of more than %d bytes", pieceBytes)
		}
		if err != nil {
			return z.failed(err, "the name or comment of a member")
		}
		crc = crc32.Update(crc, crc32.IEEETable, text)
	}
	if flags&flagHeaderCRC != 0 {
		sum, err := z.buf.Peek(2)
		if err != nil {
			return z.failed(err, "the header of a member")
		}
		if got, want := uint16(crc), binary.LittleEndian.Uint16(sum); got != want {
			return diskimage.ErrCorrupt.Saw("a header with CRC %04x, not %04x", got, want)
		}
		z.skip(0, 2)
	}
	return nil
}

// skip consumes n bytes that were peeked at, and returns the CRC that they carry
// on.
func (z *Reader) skip(crc uint32, n int) uint32 {
	b, _ := z.buf.Peek(n)
	crc = crc32.Update(crc, crc32.IEEETable, b)
	_, _ = z.buf.Discard(n)
	return crc
}

func (z *Reader) trailer() error {
	b, err := z.buf.Peek(trailerBytes)
	if err != nil {
		return z.failed(err, "the trailer of a member")
	}
	crc, size := binary.LittleEndian.Uint32(b), binary.LittleEndian.Uint32(b[4:])
	if crc != z.crc || size != z.size {
		return diskimage.ErrCorrupt.Saw("a member with CRC %08x and %d bytes modulo 2^32, not %08x and %d", z.crc, z.size, crc, size)
	}
	z.skip(0, trailerBytes)
	return nil
}

// padding reads to the end of the file, behind the last member. Zeros are what
// tapes and block devices leave there, and gzip(1) takes them too.
func (z *Reader) padding() error {
	for {
		_, err := z.buf.Peek(1)
		b, _ := z.buf.Peek(z.buf.Buffered())
		for _, c := range b {
			if c != 0 {
				return diskimage.ErrTrailing.Saw("data behind the last gzip member")
			}
		}
		_, _ = z.buf.Discard(len(b))
		switch {
		case z.src.err != nil:
			return z.src.err
		case errors.Is(err, io.EOF):
			return io.EOF
		case err != nil:
			return z.failed(err, "the end of the file")
		}
	}
}

// failed says what an error of the buffer or of the inflater means. What the
// file's own reader returned goes before what they made of it.
func (z *Reader) failed(err error, what string) error {
	_, corrupt := errors.AsType[flate.CorruptInputError](err)
	_, internal := errors.AsType[flate.InternalError](err)
	switch {
	case z.src.err != nil:
		return z.src.err
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return diskimage.ErrTruncated.Saw("the file ends within %s", what)
	case corrupt, internal:
		return diskimage.ErrCorrupt.Saw("invalid DEFLATE data behind %d bytes of content", z.total)
	default:
		return fmt.Errorf("read %s: %w", what, err)
	}
}

// source keeps the error of the file's reader, which may be one that bufio and
// flate use themselves to say that data is missing.
type source struct {
	r   io.Reader
	err error
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && err != io.EOF { // a wrapped io.EOF is no end, but a cut connection
		s.err = fmt.Errorf("read compressed data: %w", err)
	}
	return n, err
}

// Bounds of Head.
const (
	maxHead       = 1 << 20
	maxHeadPacked = 2 << 20
)

// Head returns the first n bytes of the content of the gzip file f, at most 1 MiB;
// fewer only if the content ends before. It reads no further than it has to, 64 KiB
// at a time, and at most 2 MiB: a file that hides its content behind more
// of headers and empty members is ErrCorrupt. Other errors are those of Reader.
func Head(f *diskimage.File, n int) ([]byte, error) {
	n = min(n, maxHead)
	var front io.Reader = io.NewSectionReader(f, 0, min(f.Size(), maxHeadPacked))
	if f.Size() > maxHeadPacked {
		front = io.MultiReader(front, failing{diskimage.ErrCorrupt.Saw("the first %d bytes have less than %d bytes of content", maxHeadPacked, n)})
	}
	return io.ReadAll(io.LimitReader(NewReader(front, int64(n)), int64(n)))
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

// maxRatio is what DEFLATE can do at best: a match of 258 bytes, the longest,
// takes two bits if each of the two codes has one bit (RFC 1951, 3.2.5 and 3.2.7;
// "Maximum Compression Factor" in zlib's technical details).
const maxRatio = 258 * 8 / 2

// MaxContent is the most bytes of content that a gzip file of size bytes can hold.
func MaxContent(size int64) int64 {
	if size > math.MaxInt64/maxRatio {
		return math.MaxInt64
	}
	return maxRatio * size
}
