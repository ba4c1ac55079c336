package encode_test

import (
	"io"
	"math/rand/v2"
	"slices"
	"testing"

	"vmimport/internal/diskimage"
	"vmimport/internal/diskimage/decode"
	"vmimport/internal/diskimage/formats"
	"vmimport/internal/diskimage/imagetest"
)

// memory is a disk that grows.
type memory struct{ data []byte }

func (m *memory) WriteAt(p []byte, off int64) (int, error) {
	if grow := off + int64(len(p)) - int64(len(m.data)); grow > 0 {
		m.data = append(m.data, make([]byte, grow)...)
	}
	return copy(m.data[off:], p), nil
}

// TestImportsRead has each file go the way back: what an export wrote, an import takes.
func TestImportsRead(t *testing.T) {
	t.Parallel()
	disk := mixed(rand.New(rand.NewPCG(8, 8)), 5*mib+512)
	copy(disk, imagetest.BootSector(1, 100))
	for _, form := range allForms {
		t.Run(string(form), func(t *testing.T) {
			t.Parallel()
			file := run{form: form, pieces: mib, cuts: []int64{2 * mib}, resume: true}.encoded(t, disk)
			src, err := formats.Open(imagetest.Of(file), diskimage.Declared{}, formats.Limits{})
			if err != nil {
				t.Fatal(err)
			}
			d, err := decode.New(t.Context(), src, decode.Options{})
			if err != nil {
				t.Fatal(err)
			}
			defer d.Close()
			var out memory
			if err := d.Begin([]io.WriterAt{&out}, 0, nil); err != nil {
				t.Fatal(err)
			}
			off := int64(0)
			for p := range slices.Chunk(file, 100*kib) {
				if err := d.Take(off, p); err != nil {
					t.Fatal(err)
				}
				off += int64(len(p))
			}
			sizes, err := d.Finish()
			if err != nil || sizes[0] != int64(len(disk)) {
				t.Fatalf("disks of %d bytes, %v", sizes, err)
			}
			out.data = append(out.data, make([]byte, len(disk)-len(out.data))...)
			same(t, "the imported disk", out.data, disk)
		})
	}
}
