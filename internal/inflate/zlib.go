package inflate

import "encoding/binary"

// Zlib decodes the one zlib stream (RFC 1950) at the front of src, like Inflate, and
// checks its checksum.
//
// Beside what Inflate fails with, it fails with ErrCorrupt if the header is invalid
// or asks for a preset dictionary, and ErrChecksum if the data does not match.
func (d *Decoder) Zlib(dst, src []byte) (used int, err error) {
	n, err := d.ZlibUnchecked(dst, src)
	if err != nil {
		return 0, err
	}
	if binary.BigEndian.Uint32(src[n-4:]) != checksum(dst) {
		return 0, ErrChecksum
	}
	return n, nil
}

// ZlibUnchecked is Zlib without looking at the checksum, which takes a fifth of the
// time: for data that is known to be what its maker wrote.
func (d *Decoder) ZlibUnchecked(dst, src []byte) (used int, err error) {
	if len(src) < 2 {
		return 0, ErrShort
	}
	const (
		deflate    = 8      // CM
		maxWindow  = 7      // CINFO, 32 KiB
		dictionary = 1 << 5 // FDICT
	)
	if src[0]&15 != deflate || src[0]>>4 > maxWindow || src[1]&dictionary != 0 ||
		binary.BigEndian.Uint16(src)%31 != 0 {
		return 0, ErrCorrupt
	}
	n, err := d.Inflate(dst, src[2:])
	if err != nil {
		return 0, err
	}
	n += 2
	if len(src)-n < 4 {
		return 0, ErrShort
	}
	return n + 4, nil
}

// checksum returns the Adler-32 of p (RFC 1950, section 8.2): a is 1 and the sum of
// the bytes, b the sum of all that a has been, both modulo 65521. It takes 8 bytes
// at a time in a register, and is more than twice as fast as hash/adler32.
func checksum(p []byte) uint32 {
	const (
		mod  = 65521
		span = 16 * 8  // the most that 16-bit lanes can sum up
		most = 1 << 16 // bytes between two divisions
	)
	a, b := uint64(1), uint64(0)
	for len(p) > 0 {
		q := p[:min(len(p), most)]
		p = p[len(q):]
		for ; len(q) >= span; q = q[span:] {
			sum, weighted := sums((*[span]byte)(q))
			b += span*a + weighted
			a += sum
		}
		for _, c := range q {
			a += uint64(c)
			b += a
		}
		a, b = a%mod, b%mod
	}
	return uint32(b<<16 | a)
}

// sums returns the sum of the bytes of p, and that of each times its distance from
// the end, 128 to 1.
func sums(p *[128]byte) (sum, weighted uint64) {
	const lanes = 0x00ff00ff00ff00ff // every second byte of a word, as 16 bits
	var even, odd, before uint64     // sums of the words, and of the sums before each word
	for i := 0; i < len(p); i += 8 {
		w := binary.LittleEndian.Uint64(p[i : i+8])
		before += even + odd
		even += w & lanes
		odd += w >> 8 & lanes
	}
	// A multiplication adds up the lanes, or one to four times each, in the top one.
	const (
		once    = 0x0001_0001_0001_0001
		falling = 0x0004_0003_0002_0001
	)
	sum = even*once>>48 + odd*once>>48
	// The bytes of a word count 8, 7 to 1, and once more 8 for each word behind.
	weighted = 2*(even*falling>>48) + 2*(odd*falling>>48) - odd*once>>48
	before = before&0x0000ffff_0000ffff + before>>16&0x0000ffff_0000ffff
	return sum, weighted + 8*(before&0xffffffff+before>>32)
}
