// Package inflate decodes DEFLATE data (RFC 1951), bare or in zlib wrapping
// (RFC 1950), whose whole input and whole output are in memory and whose output
// has a known size, as the compressed clusters and grains of disk images do. This
// makes it more than twice as fast as a decoder that reads a stream.
//
// It accepts what zlib accepts, and takes neither memory nor time out of
// proportion to what it is given, whatever the data.
package inflate

import (
	"encoding/binary"
	"errors"
)

// What is wrong with data that is refused.
var (
	ErrCorrupt  = errors.New("inflate: invalid data")
	ErrShort    = errors.New("inflate: data ends early")
	ErrLength   = errors.New("inflate: data unpacks to another length")
	ErrChecksum = errors.New("inflate: wrong checksum")
)

// A Decoder holds the tables of decoding, about 17 KiB, for use again and again.
// The zero value is ready. It may not be used by several goroutines at a time.
type Decoder struct {
	lit   [litSize]entry  // literals, lengths of matches, and the end of the block
	dist  [distSize]entry // distances of matches
	clen  [clenSize]entry // lengths of the words of these two codes
	lens  [maxLit + maxDist]uint8
	fixed bool // lit and dist hold the fixed codes
}

// Inflate decodes the one DEFLATE stream at the front of src, which must fill dst
// exactly, and returns how many bytes of src it took; src may go on behind it.
//
// It fails with ErrCorrupt if the stream breaks RFC 1951, ErrShort if src ends
// before the stream does, and ErrLength if the stream holds less than dst, or more.
// What dst then holds is undefined.
func (d *Decoder) Inflate(dst, src []byte) (used int, err error) {
	// The capacities are cut so that no slip could reach beyond the lengths.
	s := stream{src: src[:len(src):len(src)], dst: dst[:len(dst):len(dst)]}
	for final := false; !final; {
		if !s.need(3) {
			return 0, ErrShort
		}
		final = s.take(1) == 1
		switch s.take(2) { // RFC 1951, section 3.2.3
		case 0:
			err = s.stored()
		case 1:
			d.fixedCodes()
			err = d.block(&s)
		case 2:
			if err = d.readCodes(&s); err == nil {
				err = d.block(&s)
			}
		default:
			err = ErrCorrupt
		}
		if err != nil {
			return 0, err
		}
	}
	if s.out != len(dst) {
		return 0, ErrLength
	}
	return s.pos(), nil
}

// stream is the state of decoding one stream.
type stream struct {
	src, dst []byte
	in, out  int // bytes of src read and of dst written

	// Bits read but not used yet, the next one lowest, and their number. Above them
	// bits may already hold the first ones of src[in].
	bits uint64
	n    uint
}

// refill reads until there are at least 56 bits, or all that src has left. Bits
// behind the end of src are zeros.
func (s *stream) refill() {
	if len(s.src)-s.in >= 8 {
		s.bits, s.n, s.in = refill(s.bits, s.n, s.src, s.in)
		return
	}
	for s.n < 56 && s.in < len(s.src) {
		s.bits |= uint64(s.src[s.in]) << (s.n & 63)
		s.n += 8
		s.in++
	}
}

// refill reads as many whole bytes from src[in:] as have room in bits, without a
// branch: it ORs in 8 bytes, and counts those that fit; what is left of the next
// one is ORed in again later. Of n only the low 6 bits count. At most 7 bytes are
// read, and 56 to 63 bits there afterwards.
func refill(bits uint64, n uint, src []byte, in int) (uint64, uint, int) {
	bits |= binary.LittleEndian.Uint64(src[in:in+8]) << (n & 63)
	return bits, n | 56, in + int(^n>>3&7)
}

// need reports whether n bits can be had.
func (s *stream) need(n uint) bool {
	if s.n < n {
		s.refill()
	}
	return s.n >= n
}

// take returns the next n bits, which must be there.
func (s *stream) take(n uint) uint {
	v := s.bits & (1<<(n&63) - 1)
	s.bits >>= n & 63
	s.n -= n
	return uint(v)
}

// pos returns how many bytes of src are used, the last one maybe in part.
func (s *stream) pos() int {
	return s.in - int(s.n/8)
}

// stored copies a block without compression (RFC 1951, section 3.2.4).
func (s *stream) stored() error {
	src := s.src[s.pos():]
	if len(src) < 4 {
		return ErrShort
	}
	n := binary.LittleEndian.Uint16(src)
	if n != ^binary.LittleEndian.Uint16(src[2:]) {
		return ErrCorrupt
	}
	src = src[4:]
	if int(n) > len(s.dst)-s.out {
		return ErrLength
	}
	if int(n) > len(src) {
		return ErrShort
	}
	s.out += copy(s.dst[s.out:], src[:n])
	s.in, s.bits, s.n = len(s.src)-len(src)+int(n), 0, 0
	return nil
}
