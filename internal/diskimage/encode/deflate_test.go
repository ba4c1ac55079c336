package encode

import (
	"bytes"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/klauspost/compress/flate"

	"vmimport/internal/diskimage/vmdk"
)

// TestDeflaterForgets compresses units with one deflater and with a new one for each: where
// a unit is compressed must not show in the file.
func TestDeflaterForgets(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(1, 2))
	used := newDeflater()
	words := bytes.Repeat([]byte("words that come again, "), 100_000)
	for i := range 40 {
		src := make([]byte, rng.IntN(1<<(1+rng.IntN(21))))
		_, _ = rand.NewChaCha8([32]byte{byte(i)}).Read(src)
		for at := 0; at < len(src); at += 1 + rng.IntN(9000) {
			copy(src[at:min(len(src), at+rng.IntN(9000))], words[rng.IntN(1000):])
		}
		packed := used.deflate(nil, src)
		if !bytes.Equal(packed, newDeflater().deflate(nil, src)) {
			t.Fatalf("unit %d of %d bytes is compressed in two ways", i, len(src))
		}
		if most := maxDeflated(int64(len(src))); int64(len(packed)) > most {
			t.Fatalf("%d bytes became %d, at most %d were promised", len(src), len(packed), most)
		}
	}
}

// TestStore stores around the edges of blocks.
func TestStore(t *testing.T) {
	t.Parallel()
	noise := make([]byte, 3*storedBytes)
	_, _ = rand.NewChaCha8([32]byte{}).Read(noise)
	for _, n := range []int{0, 1, storedBytes - 1, storedBytes, storedBytes + 1, 2 * storedBytes, len(noise)} {
		packed := store([]byte("front"), noise[:n])[len("front"):]
		if int64(len(packed)) != maxDeflated(int64(n)) {
			t.Errorf("%d bytes are stored as %d, not %d", n, len(packed), maxDeflated(int64(n)))
		}
		got, err := io.ReadAll(flate.NewReader(bytes.NewReader(packed)))
		if err != nil || !bytes.Equal(got, noise[:n]) {
			t.Errorf("%d bytes came back as %d, %v", n, len(got), err)
		}
	}
}

func TestGrainsFit(t *testing.T) {
	t.Parallel()
	if n := maxZlib(vmdk.GrainBytes); n > vmdk.MaxPackedGrainBytes {
		t.Errorf("a grain may take %d bytes, with room for %d", n, vmdk.MaxPackedGrainBytes)
	}
}

func TestMembersOfZeros(t *testing.T) {
	t.Parallel()
	unit := make([]byte, gzipUnit)
	if d := newDeflater(); !bytes.Equal(d.sparseMember(nil, unit), d.member(nil, unit)) {
		t.Error("the copied member is another")
	}
}

func TestZeros(t *testing.T) {
	t.Parallel()
	b := make([]byte, 3*len(zeroPage)+77)
	for n := range len(b) {
		if n%7 == 0 && !zeros(b[:n]) {
			t.Fatalf("%d zeros are not zeros", n)
		}
	}
	for i := range b {
		b[i] = 1
		if zeros(b) || !zeros(b[:i]) {
			t.Fatalf("byte %d was not seen, or too early", i)
		}
		b[i] = 0
	}
}
