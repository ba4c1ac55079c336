package inflate

import "math/bits"

// The tables are indexed by the next bits of the stream. A longer code has a second
// table behind the first, for the bits that follow.
//
// The second tables have room enough: one of 2^n entries holds a complete code with
// a longest word of n bits, thus at least n+1 words. For literals n is at most
// 15-11, so each of 286 symbols costs at most 16/5 entries; for distances at most
// 15-8, so each of 30 symbols costs at most 128/8.
const (
	litBits  = 11
	distBits = 8
	clenBits = 7 // the longest such code

	litSize  = 1<<litBits + 1024
	distSize = 1<<distBits + 512
	clenSize = 1 << clenBits

	maxLit  = 288 // symbols, with those of the fixed codes that may not occur
	maxDist = 32
	maxClen = 19

	maxCodeBits = 15
	maxDistBits = maxCodeBits + 13
)

// An entry of a table is a symbol, or points to a second table:
//
//	bits 0-5    bits to take: what is left of the code, and the extra bits
//	bits 8-11   bits of these that are left of the code; the size of a second table
//	bits 12-15  kind, 0 for literals and matches
//	bits 16-23  literal
//	bits 16-24  least length of a match
//	bits 25-29  mask of its extra bits
//	bits 16-30  least distance of a match; start of a second table; length of a code
//	bit  31     set for literals
type entry uint32

const (
	sizeMask entry = 63

	literalFlag entry = 1 << 31
	special     entry = 1 << 15 // one of the two below; without them, what may not occur
	subtable    entry = 1 << 14
	endOfBlock  entry = 1 << 13

	oneBit entry = 1<<8 | 1 // for each bit of the code
)

func (e entry) isLiteral() bool { return int32(e) < 0 }
func (e entry) literal() byte   { return byte(e >> 16) }

// length returns the length of the match whose code bits begin with.
func (e entry) length(bits uint64) int {
	return int(e>>16&0x1ff) + int(bits>>(e>>8&63)&uint64(e>>25))
}

// distance returns the distance of the match whose code bits begin with.
func (e entry) distance(bits uint64) int {
	return int(e>>16) + int(bits&(1<<(e&sizeMask)-1)>>(e>>8&63))
}

// sub returns the place in a second table.
func (e entry) sub(bits uint64) uint64 {
	return uint64(e>>16) + bits&(1<<(e>>8&15)-1)
}

// The entries of all symbols (RFC 1951, section 3.2.5), but for their codes.
var (
	litSymbols = func() (t [maxLit]entry) {
		for i := range entry(256) {
			t[i] = literalFlag | i<<16
		}
		t[256] = special | endOfBlock
		least := entry(3)
		for i := range entry(28) {
			extra := max(i/4, 1) - 1
			t[257+i] = least<<16 | (1<<extra-1)<<25 | extra
			least += 1 << extra
		}
		t[285] = maxMatch << 16
		t[286], t[287] = special, special
		return t
	}()

	distSymbols = func() (t [maxDist]entry) {
		least := entry(1)
		for i := range entry(30) {
			extra := max(i/2, 1) - 1
			t[i] = least<<16 | extra
			least += 1 << extra
		}
		t[30], t[31] = special, special
		return t
	}()

	clenSymbols = func() (t [maxClen]entry) {
		for i := range t {
			t[i] = entry(i) << 16
		}
		return t
	}()
)

// build makes the table of the Huffman code whose words have the lengths lens (RFC
// 1951, section 3.2.2), in bits, 0 for symbols without one. It refuses a code with
// too many words or too few, but as zlib does not one without words, nor one with a
// single word of one bit; what they leave open is not allowed to occur.
func build(table []entry, tableBits int, symbols []entry, lens []uint8) bool {
	var count, first [maxCodeBits + 1]int
	for _, n := range lens {
		count[n]++
	}
	room, words := 1, 0
	for n := 1; n <= maxCodeBits; n++ {
		first[n] = words
		words += count[n]
		if room = 2*room - count[n]; room < 0 {
			return false
		}
	}
	var buf [maxLit]uint16
	for sym, n := range lens {
		if n != 0 {
			buf[first[n]] = uint16(sym)
			first[n]++
		}
	}
	sorted := buf[:words]
	if room > 0 {
		if words > 1 || words != count[1] {
			return false
		}
		table[0], table[1] = special+oneBit, special+oneBit
		if words == 1 {
			table[0] = symbols[sorted[0]] + oneBit
		}
		for size := 2; size < 1<<tableBits; size *= 2 {
			copy(table[size:2*size], table[:size])
		}
		return true
	}

	// The table grows with the words: whenever they get longer it is doubled, since
	// the bit that is new may be anything for those before.
	word, size := uint(0), 1
	for n := 1; n <= tableBits; n++ {
		copy(table[size:2*size], table[:size])
		size *= 2
		for _, sym := range sorted[:count[n]] {
			table[word] = symbols[sym] + entry(n)*oneBit
			word = next(word, n)
		}
		sorted = sorted[count[n]:]
	}

	// Words that begin alike are neighbours, and share a second table.
	var second []entry
	prefix := ^uint(0)
	for n := tableBits + 1; len(sorted) > 0; n++ {
		for i, sym := range sorted[:count[n]] {
			if p := word & (1<<tableBits - 1); p != prefix {
				// As large as the longest word that still falls into it.
				b := n - tableBits
				for room := 1<<b - (count[n] - i); room > 0; {
					b++
					room = 2*room - count[tableBits+b]
				}
				prefix = p
				table[p] = special | subtable | entry(size)<<16 | entry(b)<<8 | entry(tableBits)
				second = table[size : size+1<<b]
				size += 1 << b
			}
			for j := int(word >> tableBits); j < len(second); j += 1 << (n - tableBits) {
				second[j] = symbols[sym] + entry(n-tableBits)*oneBit
			}
			word = next(word, n)
		}
		sorted = sorted[count[n]:]
	}
	return true
}

// next returns the word of n bits that follows word, or n ones. The first bit of a
// word is the lowest.
func next(word uint, n int) uint {
	bit := uint(1) << bits.Len(word^(1<<n-1)) >> 1
	return word&(bit-1) | bit
}
