package inflate

// fixedCodes makes the tables of the fixed codes (RFC 1951, section 3.2.6), unless
// they are there from a block before.
func (d *Decoder) fixedCodes() {
	if d.fixed {
		return
	}
	lit, dist := d.lens[:maxLit], d.lens[maxLit:]
	for i := range lit {
		switch {
		case i < 144:
			lit[i] = 8
		case i < 256:
			lit[i] = 9
		case i < 280:
			lit[i] = 7
		default:
			lit[i] = 8
		}
	}
	for i := range dist {
		dist[i] = 5
	}
	build(d.lit[:], litBits, litSymbols[:], lit)
	build(d.dist[:], distBits, distSymbols[:], dist)
	d.fixed = true
}

// clenOrder is the order in which the lengths of the code of code lengths are stored.
var clenOrder = [maxClen]uint8{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15}

// readCodes reads the codes of a block, and makes their tables (RFC 1951, section
// 3.2.7).
func (d *Decoder) readCodes(s *stream) error {
	if !s.need(14) {
		return ErrShort
	}
	nlit, ndist, nclen := s.take(5)+257, s.take(5)+1, s.take(4)+4
	if nlit > 286 || ndist > 30 {
		return ErrCorrupt
	}
	d.fixed = false
	var clens [maxClen]uint8
	for _, sym := range clenOrder[:nclen] {
		if !s.need(3) {
			return ErrShort
		}
		clens[sym] = uint8(s.take(3))
	}
	if !build(d.clen[:], clenBits, clenSymbols[:], clens[:]) {
		return ErrCorrupt
	}
	lens := d.lens[:nlit+ndist]
	if err := d.readLens(s, lens); err != nil {
		return err
	}
	if lens[256] == 0 || // no word for the end of the block
		!build(d.lit[:], litBits, litSymbols[:], lens[:nlit]) ||
		!build(d.dist[:], distBits, distSymbols[:], lens[nlit:]) {
		return ErrCorrupt
	}
	return nil
}

// readLens reads the lengths of the words of both codes, which may be repeated.
func (d *Decoder) readLens(s *stream, lens []uint8) error {
	for i := 0; i < len(lens); {
		e, _, ok := s.decode(d.clen[:], clenBits)
		if !ok {
			return ErrShort
		}
		if e&special != 0 {
			return ErrCorrupt
		}
		var value uint8
		var least, extra uint
		switch sym := uint8(e >> 16); sym {
		case 16:
			if i == 0 {
				return ErrCorrupt
			}
			value, least, extra = lens[i-1], 3, 2
		case 17:
			least, extra = 3, 3
		case 18:
			least, extra = 11, 7
		default:
			lens[i] = sym
			i++
			continue
		}
		if s.n < extra { // decode left more, unless src ends here
			return ErrShort
		}
		run := int(least + s.take(extra))
		if run > len(lens)-i {
			return ErrCorrupt
		}
		for range run {
			lens[i] = value
			i++
		}
	}
	return nil
}
