package vmdk

import (
	"bytes"
	"compress/zlib"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"vmimport/internal/diskimage"
	"vmimport/internal/diskimage/imagetest"
)

// sevens is a grain that holds but one value, as zlib data.
func sevens() []byte {
	var z bytes.Buffer
	w := zlib.NewWriter(&z)
	_, _ = w.Write(bytes.Repeat([]byte{7}, GrainBytes))
	_ = w.Close()
	return z.Bytes()
}

// The largest disk, with data at its ends alone, in the middle and behind whole tables of zeros.
func TestStreamWriterLargestDisk(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "image")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w, err := NewStreamWriter(f, MaxStreamBytes)
	if err != nil {
		t.Fatal(err)
	}
	const grains = MaxStreamBytes / GrainBytes
	places := []int64{0, 511, 512, 12_345_678, grains - 1}
	for _, number := range places {
		if err := w.Put(number, sevens()); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.Finish(); err != nil {
		t.Fatal(err)
	}
	imagetest.QemuImg(t, "check", "-f", "vmdk", path)
	for _, number := range places {
		at := number * GrainBytes
		imagetest.QemuIO(t, path, "vmdk", "read -P 7 "+strconv.FormatInt(at, 10)+" 64k")
		if number == 12_345_678 {
			imagetest.QemuIO(t, path, "vmdk", "read -P 0 "+strconv.FormatInt(at-GrainBytes, 10)+" 64k")
		}
	}
	image := imagetest.Open(t, path)
	disk := mustOpen(t, image)
	if disk.Size != MaxStreamBytes {
		t.Fatalf("a disk of %d bytes", disk.Size)
	}
	parser := disk.Parser(diskimage.Position{})
	err = diskimage.Walk(image, parser, func(p diskimage.Piece) error {
		if p.Guest != places[0]*GrainBytes {
			t.Errorf("a grain at %d, want %d", p.Guest, places[0]*GrainBytes)
		}
		places = places[1:]
		return nil
	})
	if err != nil || len(places) > 0 {
		t.Fatalf("%v, %d grains have not come", err, len(places))
	}
}

// A state of the largest disk, with data in each of its tables, is short, and goes on.
func TestStreamWriterLongState(t *testing.T) {
	t.Parallel()
	counted := new(countingWriter)
	w, err := NewStreamWriter(counted, MaxStreamBytes)
	if err != nil {
		t.Fatal(err)
	}
	grain := bytes.Repeat([]byte{1}, MaxPackedGrainBytes)
	for number := int64(0); number < MaxStreamBytes/GrainBytes; number += tableEntries / 2 {
		if err := w.Put(number, grain); err != nil {
			t.Fatal(err)
		}
	}
	const number = MaxStreamBytes/GrainBytes - 1
	state, err := w.State(number)
	if err != nil || len(state) > 200<<10 {
		t.Fatalf("%d bytes of state, %v", len(state), err)
	}
	again, err := ResumeStreamWriter(io.Discard, MaxStreamBytes, number, int64(*counted), state)
	if err != nil {
		t.Fatal(err)
	}
	if again.at != w.at || again.table != w.table || len(again.places) != len(w.places) || again.places[100] != w.places[100] {
		t.Error("the writer that goes on is another")
	}
	if _, err := ResumeStreamWriter(io.Discard, MaxStreamBytes, number, int64(*counted)+sectorBytes, state); !errors.Is(err, ErrStreamState) {
		t.Errorf("another offset: %v", err)
	}
	if _, err := ResumeStreamWriter(io.Discard, MaxStreamBytes, number+2, int64(*counted), state); !errors.Is(err, ErrStreamState) {
		t.Errorf("a grain behind the end: %v", err)
	}
}

type countingWriter int64

func (c *countingWriter) Write(p []byte) (int, error) {
	*c += countingWriter(len(p))
	return len(p), nil
}

// What no table can name is not written.
func TestStreamWriterFull(t *testing.T) {
	t.Parallel()
	for _, left := range []int64{0, 1, 128, 129, 130} {
		counted := new(countingWriter)
		w, err := NewStreamWriter(counted, MaxStreamBytes)
		if err != nil {
			t.Fatal(err)
		}
		w.at = writerMaxSector - left
		err = w.Put(0, make([]byte, MaxPackedGrainBytes))
		if fits := left >= writerGrainSectors; fits && err != nil || !fits && (!errors.Is(err, diskimage.ErrTooLarge) || *counted != 0) {
			t.Errorf("with %d sectors left: %v, %d bytes were written", left, err, *counted)
		}
	}
}
