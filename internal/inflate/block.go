package inflate

import "encoding/binary"

// In one iteration fast reads and writes less than this, its copies rounded up.
const (
	inMargin  = 16
	outMargin = 2 + maxMatch + 16

	maxMatch = 258
)

// block decodes a block whose codes are in d, to its end.
func (d *Decoder) block(s *stream) error {
	end, err := d.fast(s)
	if end || err != nil {
		return err
	}
	for {
		e, bits, ok := s.decode(d.lit[:], litBits)
		switch {
		case !ok:
			return ErrShort
		case e.isLiteral():
			if s.out == len(s.dst) {
				return ErrLength
			}
			s.dst[s.out] = e.literal()
			s.out++
			continue
		case e&endOfBlock != 0:
			return nil
		case e&special != 0:
			return ErrCorrupt
		}
		length := e.length(bits)
		if e, bits, ok = s.decode(d.dist[:], distBits); !ok {
			return ErrShort
		}
		if e&special != 0 || e.distance(bits) > s.out {
			return ErrCorrupt
		}
		if length > len(s.dst)-s.out {
			return ErrLength
		}
		// Each round doubles what there is to copy from.
		from, end := s.out-e.distance(bits), s.out+length
		for s.out < end {
			s.out += copy(s.dst[s.out:end], s.dst[from:s.out])
		}
	}
}

// decode takes the next symbol with its extra bits. It returns its entry in table
// and the bits, for entry.length and entry.distance; not ok if src ends before.
func (s *stream) decode(table []entry, tableBits uint) (e entry, bits uint64, ok bool) {
	s.refill()
	e = table[s.bits&(1<<tableBits-1)]
	if e&subtable != 0 {
		if s.n < tableBits {
			return 0, 0, false
		}
		s.take(tableBits)
		e = table[e.sub(s.bits)]
	}
	// The zeros behind the end of src can only have led to a symbol that is too long.
	if uint(e&sizeMask) > s.n {
		return 0, 0, false
	}
	bits = s.bits
	s.take(uint(e & sizeMask))
	return e, bits, true
}

// fast decodes as much of a block as it can without fear of the ends of src and
// dst, and reports whether that was all of it.
//
// An iteration decodes up to two literals, and a third one or a match. It begins
// with at least 56 bits and with the entry that they begin with, which was looked
// up before the refill and the copying of the match before, so as not to wait for
// them. Of n only the low 6 bits count, so an entry is subtracted from it whole.
func (d *Decoder) fast(s *stream) (end bool, err error) {
	src, dst, in, out := s.src, s.dst, s.in, s.out
	inEnd, outEnd := len(src)-inMargin, len(dst)-outMargin
	if in > inEnd || out > outEnd {
		return false, nil
	}
	bits, n, in := refill(s.bits, s.n, src, in)
	e := d.lit[bits&(1<<litBits-1)]
	for in <= inEnd && out <= outEnd {
		if e.isLiteral() {
			dst[out] = e.literal()
			out++
			bits >>= e & sizeMask
			n -= uint(e)
			e = d.lit[bits&(1<<litBits-1)]
			if e.isLiteral() {
				dst[out] = e.literal()
				out++
				bits >>= e & sizeMask
				n -= uint(e)
				e = d.lit[bits&(1<<litBits-1)]
			}
		}
		if e&special != 0 {
			if e&subtable != 0 {
				bits >>= litBits
				n -= litBits
				e = d.lit[e.sub(bits)]
			}
			if e&special != 0 {
				end = e&endOfBlock != 0
				if !end {
					err = ErrCorrupt
				}
				bits >>= e & sizeMask
				n -= uint(e)
				break
			}
		}
		saved := bits
		bits >>= e & sizeMask
		n -= uint(e)
		if e.isLiteral() {
			dst[out] = e.literal()
			out++
			e = d.lit[bits&(1<<litBits-1)]
			bits, n, in = refill(bits, n, src, in)
			continue
		}
		length := e.length(saved)

		// A distance takes up to 28 bits, and the next entry is to be looked up
		// before the next refill.
		if n&63 < maxDistBits+litBits {
			bits, n, in = refill(bits, n, src, in)
		}
		e = d.dist[bits&(1<<distBits-1)]
		if e&special != 0 {
			if e&subtable != 0 {
				bits >>= distBits
				n -= distBits
				e = d.dist[e.sub(bits)]
			}
			if e&special != 0 {
				err = ErrCorrupt
				break
			}
		}
		distance := e.distance(bits)
		bits >>= e & sizeMask
		n -= uint(e)
		e = d.lit[bits&(1<<litBits-1)]
		bits, n, in = refill(bits, n, src, in)

		if distance > out {
			err = ErrCorrupt
			break
		}
		from, to := out-distance, out
		out += length
		if distance < 16 {
			copyNear(dst, to, out, distance)
			continue
		}
		*(*[16]byte)(dst[to : to+16]) = *(*[16]byte)(dst[from : from+16])
		for to+16 < out {
			to, from = to+16, from+16
			*(*[16]byte)(dst[to : to+16]) = *(*[16]byte)(dst[from : from+16])
		}
	}
	s.bits, s.n, s.in, s.out = bits, n&63, in, out
	return end, err
}

// copyNear fills dst[to:end], and up to 7 bytes behind, from a distance below 16.
func copyNear(dst []byte, to, end, distance int) {
	from := to - distance
	v := binary.LittleEndian.Uint64(dst[from : from+8])
	if distance >= 8 {
		for {
			binary.LittleEndian.PutUint64(dst[to:to+8], v)
			if to, from = to+8, from+8; to >= end {
				return
			}
			v = binary.LittleEndian.Uint64(dst[from : from+8])
		}
	}
	// Repeat the pattern all over v, and write as many whole ones as it holds.
	size := 8 * uint(distance)
	v &= 1<<size - 1
	if v == 0 {
		clear(dst[to:end]) // what disks hold most of
		return
	}
	v |= v << size
	v |= v << (2 * size)
	v |= v << (4 * size)
	for step := 8 / distance * distance; to < end; to += step {
		binary.LittleEndian.PutUint64(dst[to:to+8], v)
	}
}
