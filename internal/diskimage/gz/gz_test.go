package gz_test

import (
	"bytes"
	stdgzip "compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"testing"
	"testing/iotest"

	"github.com/klauspost/compress/gzip"

	"vmimport/internal/diskimage"
	"vmimport/internal/diskimage/gz"
	"vmimport/internal/diskimage/imagetest"
	"vmimport/internal/fault"
)

const noLimit = math.MaxInt64

// pack is one member.
func pack(t testing.TB, data []byte, level int) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := stdgzip.NewWriterLevel(&b, level)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// text packs to about a third.
func text(n int) []byte {
	rng := rand.New(rand.NewPCG(1, 2))
	words := make([][]byte, 500)
	for i := range words {
		for range 2 + rng.IntN(9) {
			words[i] = append(words[i], 'a'+byte(rng.IntN(26)))
		}
		words[i] = append(words[i], ' ')
	}
	b := make([]byte, 0, n+16)
	for len(b) < n {
		b = append(b, words[rng.IntN(len(words))]...)
	}
	return b[:n]
}

func read(packed []byte) ([]byte, error) {
	return io.ReadAll(gz.NewReader(bytes.NewReader(packed), noLimit))
}

func TestContent(t *testing.T) {
	t.Parallel()
	plain := text(300_000)
	small := pack(t, plain[:5000], 6)
	full := bytes.Repeat([]byte{'x'}, 65535) // the longest extra field, and a name that just fits
	for name, c := range map[string]struct {
		packed, want []byte
	}{
		"one member":        {pack(t, plain, 6), plain},
		"stored":            {pack(t, plain, 0), plain},
		"fixed codes":       {pack(t, plain[:20], 9), plain[:20]},
		"empty":             {pack(t, nil, 6), nil},
		"members":           {slices.Concat(small, pack(t, nil, 6), small, pack(t, plain, 1)), slices.Concat(plain[:5000], plain[:5000], plain)},
		"padding":           {append(slices.Clone(small), make([]byte, 200_000)...), plain[:5000]},
		"one zero":          {append(slices.Clone(small), 0), plain[:5000]},
		"all fields":        {withHeader(small, 0x1e, full, "disk.raw", "a comment"), plain[:5000]},
		"all fields, twice": {bytes.Repeat(withHeader(small, 0x1f, full, string(full), string(full)), 2), bytes.Repeat(plain[:5000], 2)},
		"text flag":         {withHeader(small, 0x01, nil, "", ""), plain[:5000]},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, r := range []io.Reader{bytes.NewReader(c.packed), iotest.OneByteReader(bytes.NewReader(c.packed)), iotest.DataErrReader(bytes.NewReader(c.packed))} {
				z := gz.NewReader(r, int64(len(c.want)))
				got, err := io.ReadAll(z)
				if err != nil || !bytes.Equal(got, c.want) {
					t.Fatalf("got %d bytes and %v, want %d", len(got), err, len(c.want))
				}
				if n, err := z.Read(make([]byte, 1)); n != 0 || err != io.EOF {
					t.Fatalf("behind the end: %d, %v", n, err)
				}
			}
		})
	}
}

// withHeader gives a member that has none of them the fields that flags name.
func withHeader(member []byte, flags byte, extra []byte, name, comment string) []byte {
	b := slices.Clone(member[:10])
	b[3] = flags
	if flags&4 != 0 {
		b = binary.LittleEndian.AppendUint16(b, uint16(len(extra)))
		b = append(b, extra...)
	}
	if flags&8 != 0 {
		b = append(b, name+"\x00"...)
	}
	if flags&16 != 0 {
		b = append(b, comment+"\x00"...)
	}
	if flags&2 != 0 {
		b = binary.LittleEndian.AppendUint16(b, uint16(crc32.ChecksumIEEE(b)))
	}
	return append(b, member[10:]...)
}

func TestRefused(t *testing.T) {
	t.Parallel()
	member := pack(t, text(3000), 6)
	at := func(off int, b ...byte) []byte { return imagetest.Patched(member, off, b...) }
	end := len(member)
	long := string(bytes.Repeat([]byte{'x'}, 64<<10))
	headerCRC := withHeader(member, 0x02, nil, "", "")
	for name, c := range map[string]struct {
		packed []byte
		want   *fault.Error
	}{
		"nothing":                 {nil, diskimage.ErrTruncated},
		"half a magic":            {[]byte{0x1f}, diskimage.ErrTruncated},
		"no magic":                {[]byte("MZ"), diskimage.ErrCorrupt},
		"zeros only":              {make([]byte, 512), diskimage.ErrCorrupt},
		"other method":            {at(2, 7), diskimage.ErrCorrupt},
		"reserved flag 5":         {at(3, 0x20), diskimage.ErrCorrupt},
		"reserved flag 7":         {at(3, 0x80), diskimage.ErrCorrupt},
		"header CRC":              {imagetest.Patched(headerCRC, 4, 1), diskimage.ErrCorrupt},
		"name without end":        {withHeader(member, 0x08, nil, long, ""), diskimage.ErrCorrupt},
		"comment without end":     {withHeader(member, 0x10, nil, "", long), diskimage.ErrCorrupt},
		"reserved block type":     {at(10, 0x07), diskimage.ErrCorrupt},
		"stored length":           {at(10, 0x01, 5, 0, 5, 0), diskimage.ErrCorrupt},
		"wrong CRC":               {at(end-8, member[end-8]^1), diskimage.ErrCorrupt},
		"wrong length":            {at(end-4, member[end-4]^1), diskimage.ErrCorrupt},
		"trailing byte":           {append(slices.Clone(member), 1), diskimage.ErrTrailing},
		"trailing text":           {append(slices.Clone(member), "signature"...), diskimage.ErrTrailing},
		"data behind the padding": {slices.Concat(member, make([]byte, 200_000), []byte{1}), diskimage.ErrTrailing},
		"member behind padding":   {slices.Concat(member, make([]byte, 512), member), diskimage.ErrTrailing},
		"second member corrupt":   {slices.Concat(member, at(2, 7)), diskimage.ErrCorrupt},
		"second member cut":       {slices.Concat(member, member[:9]), diskimage.ErrTruncated},
		"second magic cut":        {slices.Concat(member, member[:1]), diskimage.ErrTruncated},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			z := gz.NewReader(bytes.NewReader(c.packed), noLimit)
			_, err := io.ReadAll(z)
			if !errors.Is(err, c.want) {
				t.Fatalf("got %v, want %s", err, c.want.Code)
			}
			if n, again := z.Read(make([]byte, 1)); n != 0 || !errors.Is(again, c.want) {
				t.Fatalf("the next read: %d, %v", n, again)
			}
		})
	}
}

func TestTruncatedAnywhere(t *testing.T) {
	t.Parallel()
	packed := withHeader(pack(t, text(2000), 6), 0x1e, []byte("extra"), "name", "comment")
	for n := range packed {
		if _, err := read(packed[:n]); !errors.Is(err, diskimage.ErrTruncated) {
			t.Fatalf("cut to %d of %d bytes: %v", n, len(packed), err)
		}
	}
}

func TestLimit(t *testing.T) {
	t.Parallel()
	plain := make([]byte, 100_000)
	bomb := pack(t, plain, 9)
	two := slices.Concat(bomb, bomb)
	for _, c := range []struct {
		packed []byte
		limit  int64
		want   int
		err    *fault.Error
	}{
		{bomb, 100_000, 100_000, nil},
		{bomb, 99_999, 99_999, diskimage.ErrBomb},
		{bomb, 1, 1, diskimage.ErrBomb},
		{bomb, 0, 0, diskimage.ErrBomb},
		{pack(t, nil, 6), 0, 0, nil},
		{two, 200_000, 200_000, nil},
		{two, 100_000, 100_000, diskimage.ErrBomb},
		{slices.Concat(bomb, pack(t, nil, 6)), 100_000, 100_000, nil},
		// The checks go on behind the limit.
		{append(slices.Clone(bomb), 1), 100_000, 100_000, diskimage.ErrTrailing},
		{bomb[:len(bomb)-1], 100_000, 100_000, diskimage.ErrTruncated},
	} {
		got, err := io.ReadAll(gz.NewReader(bytes.NewReader(c.packed), c.limit))
		if len(got) != c.want || (c.err == nil) != (err == nil) || c.err != nil && !errors.Is(err, c.err) {
			t.Errorf("limit %d: %d bytes, %v", c.limit, len(got), err)
		}
	}
}

func TestErrorOfTheSource(t *testing.T) {
	t.Parallel()
	packed := pack(t, text(200_000), 1)
	// The second and the third are a cut connection, and no truncated or whole file.
	for _, broken := range []error{errors.New("connection reset"), io.ErrUnexpectedEOF, fmt.Errorf("read body: %w", io.EOF)} {
		for _, n := range []int{0, 1, 5, 40_000, len(packed) - 1, len(packed)} {
			for _, with := range []func(io.Reader) io.Reader{func(r io.Reader) io.Reader { return r }, iotest.DataErrReader} {
				r := with(io.MultiReader(bytes.NewReader(packed[:n]), iotest.ErrReader(broken)))
				_, err := io.ReadAll(gz.NewReader(r, noLimit))
				if _, isFault := errors.AsType[*fault.Error](err); !errors.Is(err, broken) || isFault {
					t.Errorf("source that fails after %d bytes: %v", n, err)
				}
				if _, err := gz.Head(diskimage.NewFile(failAt{broken}, 1000), 10); !errors.Is(err, broken) {
					t.Errorf("head: %v", err)
				}
			}
		}
	}
}

type failAt struct{ err error }

func (f failAt) ReadAt(p []byte, _ int64) (int, error) { return 0, f.err }

func TestManyMembersAreCheap(t *testing.T) { // not parallel: it counts allocations
	block := pack(t, text(100), 6)
	packed := bytes.Repeat(block, 20_000)
	imagetest.Bounded(t, 1<<20, func() {
		n, err := io.Copy(io.Discard, onlyReader{gz.NewReader(bytes.NewReader(packed), noLimit)})
		if n != 100*20_000 || err != nil {
			t.Fatalf("%d bytes, %v", n, err)
		}
	})
}

type onlyReader struct{ io.Reader }

func TestLikeGzip(t *testing.T) {
	t.Parallel()
	for _, g := range imagetest.Guests(t) {
		t.Run(g.Name, func(t *testing.T) {
			t.Parallel()
			want, err := os.ReadFile(g.Path)
			if err != nil {
				t.Fatal(err)
			}
			packed, err := exec.CommandContext(t.Context(), "gzip", "-c", g.Path).Output()
			if err != nil {
				t.Fatal(err)
			}
			got, err := read(packed)
			if err != nil || !bytes.Equal(got, want) {
				t.Fatalf("%d bytes and %v, want %d", len(got), err, len(want))
			}
			head, err := gz.Head(imagetest.Of(packed), 64<<10)
			if err != nil || !bytes.Equal(head, want[:64<<10]) {
				t.Fatalf("head: %d bytes, %v", len(head), err)
			}
		})
	}
}

func TestHead(t *testing.T) {
	t.Parallel()
	plain := make([]byte, 3<<20)
	rand.NewChaCha8([32]byte{1}).Read(plain)
	stored := pack(t, plain, 0)
	small := pack(t, plain[:1000], 6)
	empty := pack(t, nil, 6)
	late := slices.Concat(bytes.Repeat(empty, 3<<20/len(empty)), small)
	for name, c := range map[string]struct {
		packed []byte
		n      int
		want   []byte
		err    *fault.Error
		reads  int64 // bytes of the file, at most
	}{
		"some":                   {stored, 512, plain[:512], nil, 64 << 10},
		"much":                   {stored, 300_000, plain[:300_000], nil, 384 << 10},
		"never more than 1 MiB":  {stored, 2 << 20, plain[:1<<20], nil, 1<<20 + 128<<10},
		"nothing":                {stored, 0, nil, nil, 0},
		"less than asked for":    {small, 5000, plain[:1000], nil, 64 << 10},
		"two members":            {slices.Concat(small, empty, small), 1500, slices.Concat(plain[:1000], plain[:500]), nil, 64 << 10},
		"cut behind the head":    {stored[:600], 512, plain[:512], nil, 64 << 10},
		"cut within the head":    {stored[:400], 512, nil, diskimage.ErrTruncated, 64 << 10},
		"no gzip file":           {plain, 512, nil, diskimage.ErrCorrupt, 64 << 10},
		"trailing data":          {append(slices.Clone(small), 1), 5000, nil, diskimage.ErrTrailing, 64 << 10},
		"content too far behind": {late, 512, nil, diskimage.ErrCorrupt, 2 << 20},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := &counting{r: bytes.NewReader(c.packed)}
			got, err := gz.Head(diskimage.NewFile(r, int64(len(c.packed))), c.n)
			if c.err != nil {
				if !errors.Is(err, c.err) {
					t.Fatalf("got %v, want %s", err, c.err.Code)
				}
			} else if err != nil || !bytes.Equal(got, c.want) {
				t.Fatalf("%d bytes and %v, want %d", len(got), err, len(c.want))
			}
			if r.n > c.reads {
				t.Errorf("read %d bytes, want at most %d", r.n, c.reads)
			}
		})
	}
}

type counting struct {
	r io.ReaderAt
	n int64
}

func (c *counting) ReadAt(p []byte, off int64) (int, error) {
	n, err := c.r.ReadAt(p, off)
	c.n += int64(n)
	return n, err
}

func TestMaxContent(t *testing.T) {
	t.Parallel()
	for size, want := range map[int64]int64{0: 0, 1: 1032, 1 << 40: 1032 << 40, math.MaxInt64 / 1032: math.MaxInt64 / 1032 * 1032, math.MaxInt64/1032 + 1: math.MaxInt64, math.MaxInt64: math.MaxInt64} {
		if got := gz.MaxContent(size); got != want {
			t.Errorf("MaxContent(%d) = %d, want %d", size, got, want)
		}
	}
	// The bound is not only safe but near.
	const n = 16 << 20
	packed := int64(len(pack(t, make([]byte, n), 9)))
	if got := gz.MaxContent(packed); got < n || got > n+n/50 {
		t.Errorf("%d zeros packed to %d bytes, which could hold %d", n, packed, got)
	}
}

// BenchmarkReader compares Reader with the library's own reader of gzip.
func BenchmarkReader(b *testing.B) {
	plain := text(64 << 20)
	packed := pack(b, plain, 6)
	var blocks []byte // like bgzip
	for chunk := range slices.Chunk(plain, 65280) {
		blocks = append(blocks, pack(b, chunk, 6)...)
	}
	for name, open := range map[string]func([]byte) io.Reader{
		"ours": func(p []byte) io.Reader { return gz.NewReader(bytes.NewReader(p), noLimit) },
		"library": func(p []byte) io.Reader {
			r, err := gzip.NewReader(onlyReader{bytes.NewReader(p)})
			if err != nil {
				b.Fatal(err)
			}
			return r
		},
	} {
		for kind, p := range map[string][]byte{"one": packed, "bgzip": blocks} {
			b.Run(kind+"/"+name, func(b *testing.B) {
				b.SetBytes(int64(len(plain)))
				buf := make([]byte, 256<<10)
				for b.Loop() {
					if n, err := io.CopyBuffer(onlyWriter{io.Discard}, onlyReader{open(p)}, buf); n != int64(len(plain)) || err != nil {
						b.Fatal(n, err)
					}
				}
			})
		}
	}
}

type onlyWriter struct{ io.Writer }

// FuzzGzip compares Reader with the standard library. It accepts no padding and
// only short names, but reserved flags.
func FuzzGzip(f *testing.F) {
	member := pack(f, text(3000), 6)
	for _, seed := range [][]byte{
		member,
		pack(f, text(500), 0),
		pack(f, make([]byte, 100_000), 9),
		slices.Concat(member, pack(f, nil, 6), member),
		append(slices.Clone(member), make([]byte, 600)...),
		withHeader(member, 0x1f, []byte("extra"), "name", "comment"),
		member[:len(member)/2],
	} {
		f.Add(seed, int64(1<<20))
		f.Add(seed, int64(100))
	}
	f.Fuzz(func(t *testing.T, packed []byte, limit int64) {
		limit = min(max(limit, 0), 1<<20)
		got, err := io.ReadAll(gz.NewReader(bytes.NewReader(packed), limit))
		again, errAgain := io.ReadAll(gz.NewReader(iotest.HalfReader(bytes.NewReader(packed)), limit))
		if !bytes.Equal(got, again) || fault.CodeOf(err) != fault.CodeOf(errAgain) {
			t.Fatalf("%d bytes and %v, then %d and %v", len(got), err, len(again), errAgain)
		}
		if int64(len(got)) > limit || int64(len(got)) > gz.MaxContent(int64(len(packed))) {
			t.Fatalf("%d bytes come out of %d, limit %d", len(got), len(packed), limit)
		}
		if err != nil && fault.KindOf(err) != fault.Invalid {
			t.Fatalf("not a fault of the file: %v", err)
		}
		want, stdErr := standard(packed, limit+1)
		if _, strictErr := strict(packed, limit+1); stdErr == nil {
			stdErr = strictErr
		}
		switch {
		case stdErr == nil && int64(len(want)) > limit:
			if !errors.Is(err, diskimage.ErrBomb) {
				t.Fatalf("more than %d bytes: %v", limit, err)
			}
		case stdErr == nil && len(packed) > 0:
			if err != nil || !bytes.Equal(got, want) {
				t.Fatalf("%d bytes and %v, the standard library has %d", len(got), err, len(want))
			}
		case err == nil && !bytes.HasPrefix(got, want):
			t.Fatalf("%d bytes, the standard library has %d others", len(got), len(want))
		}
		if head, headErr := gz.Head(imagetest.Of(packed), 100); err == nil && (headErr != nil || !bytes.Equal(head, got[:min(len(got), 100)])) {
			t.Fatalf("head: %d bytes, %v", len(head), headErr)
		}
	})
}

// strict is the library that Reader takes its DEFLATE from; it knows of reserved
// flags.
func strict(packed []byte, limit int64) ([]byte, error) {
	r, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		return nil, err
	}
	return io.ReadAll(io.LimitReader(r, limit))
}

func standard(packed []byte, limit int64) ([]byte, error) {
	r, err := stdgzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		return nil, err
	}
	return io.ReadAll(io.LimitReader(r, limit))
}
