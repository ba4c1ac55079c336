package inflate

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"slices"
	"testing"
)

// bitWriter writes streams by hand.
type bitWriter struct {
	bytes []byte
	n     int // bits used of the last byte, 0 for all
}

// bits writes the low n bits of v, the lowest first, as DEFLATE does with numbers.
func (w *bitWriter) bits(v uint, n int) *bitWriter {
	for i := range n {
		if w.n == 0 {
			w.bytes = append(w.bytes, 0)
		}
		w.bytes[len(w.bytes)-1] |= byte(v>>i&1) << w.n
		w.n = (w.n + 1) % 8
	}
	return w
}

// word writes a word of a Huffman code, the highest of its n bits first.
func (w *bitWriter) word(v uint, n int) *bitWriter {
	for i := n - 1; i >= 0; i-- {
		w.bits(v>>i&1, 1)
	}
	return w
}

func (w *bitWriter) align() *bitWriter {
	w.n = 0
	return w
}

// lens are lengths of words by symbol; the highest symbol tells how many are written.
type lens map[int]uint8

func (l lens) list() []uint8 {
	var list []uint8
	for sym, n := range l {
		list = append(list, make([]uint8, max(0, sym+1-len(list)))...)
		list[sym] = n
	}
	return list
}

// dynamic writes the type of a block with codes of its own, and these.
func (w *bitWriter) dynamic(lit, dist lens) *bitWriter {
	l, d := lit.list(), dist.list()
	w.bits(2, 2).bits(uint(len(l)-257), 5).bits(uint(len(d)-1), 5)
	return w.lengths(append(l, d...))
}

// lengths writes lengths of words with a code that has words of 4 bits for all of
// them, and no repetitions.
func (w *bitWriter) lengths(list []uint8) *bitWriter {
	w.bits(maxClen-4, 4)
	for _, sym := range clenOrder {
		if sym < 16 {
			w.bits(4, 3)
		} else {
			w.bits(0, 3)
		}
	}
	for _, n := range list {
		w.word(uint(n), 4)
	}
	return w
}

// Codes to use in the cases below. The first has the words 0 for 'a', 10 for the end
// of the block, and 11 for a match of 3 bytes; the second, of which the words grow to
// 15 bits, 0 for 'a', 10 for 'b', and so on, 15 ones for the end of the block.
var (
	short = lens{'a': 1, 256: 2, 257: 2}
	long  = func() lens {
		l := lens{256: 15}
		for i := range uint8(15) {
			l['a'+int(i)] = i + 1
		}
		return l
	}()
)

func TestRFC(t *testing.T) {
	t.Parallel()
	final := func() *bitWriter { return new(bitWriter).bits(1, 1) }
	fixed := func() *bitWriter { return final().bits(1, 2).word(0x30+'a', 8) } // and an a
	end := func(w *bitWriter) *bitWriter { return w.word(0, 7) }               // of a fixed block
	clens := func(list ...uint) *bitWriter {                                   // 16, 17, 18, 0, 8, 7, ...
		w := final().bits(2, 2).bits(0, 5).bits(0, 5).bits(maxClen-4, 4)
		for i := range maxClen {
			if i < len(list) {
				w.bits(list[i], 3)
			} else {
				w.bits(0, 3)
			}
		}
		return w
	}
	for _, tt := range []struct {
		name string
		w    *bitWriter
		want string
		err  error
	}{
		{"nothing", &bitWriter{}, "", ErrShort},
		{"reserved type", final().bits(3, 2), "", ErrCorrupt},

		{"stored, empty", final().bits(0, 2).align().bits(0, 16).bits(0xffff, 16), "", nil},
		{"stored", final().bits(0, 2).align().bits(2, 16).bits(0xfffd, 16).bits('o', 8).bits('k', 8), "ok", nil},
		{"stored, padding not zero", final().bits(0, 2).bits(31, 5).bits(1, 16).bits(0xfffe, 16).bits('o', 8), "o", nil},
		{"stored, wrong complement", final().bits(0, 2).align().bits(2, 16).bits(0xfffc, 16).bits('o', 8).bits('k', 8), "", ErrCorrupt},
		{"stored, no length", final().bits(0, 2).align().bits(2, 16).bits(0xfd, 8), "", ErrShort},
		{"stored, cut", final().bits(0, 2).align().bits(2, 16).bits(0xfffd, 16).bits('o', 8), "ok", ErrShort},
		{"stored behind fixed", end(new(bitWriter).bits(0, 1).bits(1, 2)).bits(1, 1).bits(0, 2).align().bits(1, 16).bits(0xfffe, 16).bits('o', 8), "o", nil},

		{"fixed, empty", end(final().bits(1, 2)), "", nil},
		{"fixed", end(fixed().word(0x190+255-144, 9)), "a\xff", nil},
		{"fixed, length 3, distance 1", end(fixed().word(1, 7).word(0, 5)), "aaaa", nil},
		{"fixed, length 258 of two kinds", end(fixed().word(0xc5, 8).word(0, 5).word(0xc4, 8).bits(31, 5).word(0, 5)), string(bytes.Repeat([]byte{'a'}, 517)), nil},
		{"fixed, length 130 of 115 and 15", end(fixed().word(0xc0, 8).bits(15, 4).word(0, 5)), string(bytes.Repeat([]byte{'a'}, 131)), nil},
		{"fixed, distance 2", end(fixed().word(0x30+'b', 8).word(2, 7).word(1, 5)), "abab" + "ab", nil},
		{"fixed, distance beyond the start", end(fixed().word(1, 7).word(1, 5)), "aaaa", ErrCorrupt},
		{"fixed, largest distance beyond the start", end(fixed().word(1, 7).word(29, 5).bits(8191, 13)), "aaaa", ErrCorrupt},
		{"fixed, match first", end(final().bits(1, 2).word(1, 7).word(0, 5)), "aaa", ErrCorrupt},
		{"fixed, symbol 286", end(fixed().word(0xc6, 8).word(0, 5)), "aaaa", ErrCorrupt},
		{"fixed, symbol 287", end(fixed().word(0xc7, 8).word(0, 5)), "aaaa", ErrCorrupt},
		{"fixed, distance 30", end(fixed().word(1, 7).word(30, 5).bits(0, 13)), "aaaa", ErrCorrupt},
		{"fixed, distance 31", end(fixed().word(1, 7).word(31, 5).bits(0, 13)), "aaaa", ErrCorrupt},
		{"fixed, no end", fixed().word(0x30, 8), "a\x00", ErrShort},

		{"codes", final().dynamic(short, lens{0: 1}).word(0, 1).word(3, 2).word(0, 1).word(2, 2), "aaaa", nil},
		{"codes, then fixed", end(new(bitWriter).bits(0, 1).dynamic(short, lens{0: 1}).word(0, 1).word(2, 2).bits(1, 1).bits(1, 2).word(0x30+'b', 8)), "ab", nil},
		{"words of 15 bits", final().dynamic(long, lens{0: 0}).word(0, 1).word(1<<15-2, 15).word(1<<12-2, 12).word(1<<15-1, 15), "aol", nil},
		{"distances of 15 bits", final().dynamic(short, lens{0: 15, 1: 15, 2: 1, 3: 2, 4: 3, 5: 4, 6: 5, 7: 6, 8: 7, 9: 8, 10: 9, 11: 10, 12: 11, 13: 12, 14: 13, 15: 14}).
			word(0, 1).word(3, 2).word(1<<15-2, 15).word(2, 2), "aaaa", nil},
		{"286 and 30 lengths", final().dynamic(lens{'a': 1, 256: 2, 285: 2}, lens{0: 1, 29: 1}).word(0, 1).word(2, 2), "a", nil},
		{"287 lengths", final().dynamic(lens{'a': 1, 256: 2, 286: 2}, lens{0: 1}).word(0, 1).word(2, 2), "a", ErrCorrupt},
		{"31 distances", final().dynamic(short, lens{0: 1, 30: 1}).word(0, 1).word(2, 2), "a", ErrCorrupt},

		{"only the end", final().dynamic(lens{256: 1}, lens{0: 0}).word(0, 1), "", nil},
		{"only the end, other bit", final().dynamic(lens{256: 1}, lens{0: 0}).word(1, 1).bits(0, 16), "", ErrCorrupt},
		{"only the end, of two bits", final().dynamic(lens{256: 2}, lens{0: 0}).word(0, 2), "", ErrCorrupt},
		{"no word", final().dynamic(lens{256: 0}, lens{0: 0}).bits(0, 16), "", ErrCorrupt},
		{"no end", final().dynamic(lens{'a': 1, 'b': 1, 256: 0}, lens{0: 0}).word(0, 1), "a", ErrCorrupt},
		{"one word too many", final().dynamic(lens{'a': 1, 'b': 1, 256: 15}, lens{0: 0}).word(0, 1), "a", ErrCorrupt},
		{"one word too few", final().dynamic(lens{'a': 1, 256: 2}, lens{0: 0}).word(0, 1).word(2, 2), "a", ErrCorrupt},
		{"one long word too few", final().dynamic(func() lens { l := long.list(); l['a'+14] = 0; return lensOf(l) }(), lens{0: 0}).word(0, 1).word(1<<15-2, 15), "a", ErrCorrupt},

		{"no distance, not used", final().dynamic(short, lens{0: 0}).word(0, 1).word(2, 2), "a", nil},
		{"no distance, used", final().dynamic(short, lens{0: 0}).word(0, 1).word(3, 2).word(0, 1).word(2, 2), "aaaa", ErrCorrupt},
		{"one distance, other bit", final().dynamic(short, lens{0: 1}).word(0, 1).word(3, 2).word(1, 1).word(2, 2), "aaaa", ErrCorrupt},
		{"one distance of two bits", final().dynamic(short, lens{0: 2}).word(0, 1).word(2, 2), "a", ErrCorrupt},
		{"distances, one too many", final().dynamic(short, lens{0: 1, 1: 1, 2: 1}).word(0, 1).word(2, 2), "a", ErrCorrupt},
		{"distances, one too few", final().dynamic(short, lens{0: 1, 1: 2}).word(0, 1).word(2, 2), "a", ErrCorrupt},

		{"lengths, no word", clens().bits(0, 64), "", ErrCorrupt},
		{"lengths, one word of one bit", clens(0, 0, 1).bits(0, 300), "", ErrCorrupt},
		{"lengths, one word of two bits", clens(0, 0, 2).bits(0, 64), "", ErrCorrupt},
		{"lengths, one too many", clens(1, 1, 1).bits(0, 64), "", ErrCorrupt},
		{"lengths, one too few", clens(0, 1, 2).bits(0, 64), "", ErrCorrupt},
		{"lengths, repetition first", clens(1, 0, 1).bits(0, 64), "", ErrCorrupt},
		{"lengths, repetition too long", clens(0, 0, 1, 1).word(1, 1).bits(127, 7).word(1, 1).bits(110, 7), "", ErrCorrupt},
		{"lengths, cut", clens(0, 0, 1, 1).word(1, 1).bits(127, 4), "", ErrShort},
		{"header, cut", final().bits(2, 2).bits(0, 5), "", ErrShort},
		{"lengths of lengths, cut", final().bits(2, 2).bits(0, 5).bits(0, 5).bits(15, 4).bits(0, 10), "", ErrShort},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			src := tt.w.bytes
			// Also where the careful loop is not needed.
			for _, behind := range []int{0, 300} {
				if behind > 0 && errors.Is(tt.err, ErrShort) {
					continue
				}
				src := append(slices.Clone(src), make([]byte, behind)...)
				dst := make([]byte, len(tt.want))
				var d Decoder
				used, err := d.Inflate(dst, src)
				if !errors.Is(err, tt.err) {
					t.Fatalf("got %v, want %v", err, tt.err)
				}
				if err == nil && (used != len(tt.w.bytes) || string(dst) != tt.want) {
					t.Errorf("took %d of %d bytes, got %q", used, len(tt.w.bytes), dst)
				}
			}
			if _, _, err := oracle(src, unit); (err == nil) != (tt.err == nil) {
				t.Errorf("compress/flate: %v", err)
			}
		})
	}
}

// TestFastErrors has what the cases above refuse far from the ends of src and dst.
func TestFastErrors(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		bad  func(w *bitWriter)
	}{
		{"symbol 286", func(w *bitWriter) { w.word(0xc6, 8) }},
		{"symbol 287", func(w *bitWriter) { w.word(0xc7, 8) }},
		{"distance 30", func(w *bitWriter) { w.word(1, 7).word(30, 5) }},
		{"distance 31", func(w *bitWriter) { w.word(1, 7).word(31, 5) }},
		{"distance beyond the start", func(w *bitWriter) { w.word(1, 7).word(29, 5).bits(8191, 13) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			for at := range 10 {
				w := new(bitWriter).bits(1, 1).bits(1, 2)
				for range at {
					w.word(0x30+'a', 8)
				}
				tt.bad(w)
				src := append(w.bytes, make([]byte, 100)...)
				var d Decoder
				if _, err := d.Inflate(make([]byte, 1000), src); !errors.Is(err, ErrCorrupt) {
					t.Errorf("behind %d literals: %v", at, err)
				}
				if _, _, err := oracle(src, unit); err == nil {
					t.Error("accepted by compress/flate")
				}
			}
		})
	}
}

// TestTables makes tables of complete codes of all shapes, and looks up every word
// with every kind of bits behind it.
func TestTables(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(1, 1))
	for range 300 {
		for _, tt := range []struct {
			bits, size, symbols, words int
			entries                    []entry
		}{
			{litBits, litSize, 286, 286, litSymbols[:]},
			{distBits, distSize, 30, 30, distSymbols[:]},
			{clenBits, clenSize, maxClen, maxClen, clenSymbols[:]},
		} {
			longest := maxCodeBits
			if tt.size == clenSize {
				longest = clenBits
			}
			list := completeCode(r, tt.symbols, 2+r.IntN(tt.words-1), longest)
			table := make([]entry, tt.size)
			if !build(table, tt.bits, tt.entries, list) {
				t.Fatalf("code refused: %v", list)
			}
			word := uint(0)
			for n := 1; n <= longest; n++ {
				word <<= 1
				for sym, size := range list {
					if int(size) != n {
						continue
					}
					w := new(bitWriter).word(word, n)
					s := stream{src: append(w.bits(r.Uint(), 64).bytes, make([]byte, 8)...)}
					word++
					e, _, ok := s.decode(table, uint(tt.bits))
					if !ok || e>>12 != tt.entries[sym]>>12 {
						t.Fatalf("word %d of %d bits: got %08x, want symbol %d: %v", word, n, e, sym, list)
					}
				}
			}
		}
	}
}

// completeCode returns lengths for words out of symbols, which make a code that is
// complete, by splitting one word after the other.
func completeCode(r *rand.Rand, symbols, words, longest int) []uint8 {
	leaves := []uint8{1, 1}
	for len(leaves) < words {
		// Mostly split one of the last ones, for long words.
		i := max(r.IntN(len(leaves)), r.IntN(len(leaves)))
		if int(leaves[i]) < longest {
			leaves[i]++
			leaves = append(leaves, leaves[i])
		}
	}
	list := make([]uint8, symbols)
	for i, sym := range r.Perm(symbols)[:words] {
		list[sym] = leaves[i]
	}
	return list
}

func lensOf(list []uint8) lens {
	l := make(lens)
	for sym, n := range list {
		l[sym] = n
	}
	return l
}
