package decode

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/klauspost/compress/gzip"

	"vmimport/internal/diskimage"
	"vmimport/internal/diskimage/formats"
	"vmimport/internal/diskimage/imagetest"
)

// sink keeps a small disk, and checks of a larger one where it is written.
type sink struct {
	t     *testing.T
	limit int64
	data  []byte
	wrote int64
}

func (s *sink) WriteAt(p []byte, off int64) (int, error) {
	if off < 0 || off+int64(len(p)) > s.limit {
		s.t.Fatalf("a write of %d bytes at %d, behind %d", len(p), off, s.limit)
	}
	if s.wrote += int64(len(p)); s.wrote > s.limit {
		s.t.Fatalf("%d bytes were written to a disk of %d", s.wrote, s.limit)
	}
	if off < int64(len(s.data)) {
		copy(s.data[off:], p)
	}
	return len(p), nil
}

// FuzzDecode decodes whatever it is given, at once and in two attempts, and wants the
// same verdict and the same disk both times.
func FuzzDecode(f *testing.F) {
	dir := f.TempDir()
	guest := filepath.Join(dir, "guest")
	disk := make([]byte, 300<<10)
	copy(disk, imagetest.BootSector(1, 100))
	copy(disk[70<<10:], bytes.Repeat([]byte("some text "), 500))
	copy(disk[len(disk)-9:], "the end..")
	if err := os.WriteFile(guest, disk, 0o600); err != nil {
		f.Fatal(err)
	}
	for _, v := range [][]string{
		{"raw", ""},
		{"qcow2", "cluster_size=4k"},
		{"qcow2", "cluster_size=4k", "-c"},
		{"qcow2", "cluster_size=16k,extended_l2=on"},
		{"qcow2", "cluster_size=4k,compression_type=zstd", "-c"},
		{"vmdk", "subformat=streamOptimized"},
		{"vmdk", "subformat=monolithicSparse"},
		{"vpc", "subformat=fixed,force_size=on"},
	} {
		image, err := os.ReadFile(imagetest.Convert(f, guest, v[0], v[1], v[2:]...))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(image, 1000)
		var packed bytes.Buffer
		z := gzip.NewWriter(&packed)
		if _, err := z.Write(image); err != nil {
			f.Fatal(err)
		}
		if err := z.Close(); err != nil {
			f.Fatal(err)
		}
		f.Add(packed.Bytes(), 1000)
	}
	const maxDisk = 8 << 20
	limits := formats.Limits{MaxDisk: maxDisk}
	f.Fuzz(func(t *testing.T, object []byte, stop int) {
		if len(object) == 0 {
			return
		}
		whole, err := outcome(t, object, limits, len(object))
		parts, again := outcome(t, object, limits, int(uint(stop)%uint(len(object))))
		if (err == nil) != (again == nil) {
			t.Fatalf("%v at once, %v in two attempts", err, again)
		}
		if err == nil && whole != parts {
			t.Fatalf("%s at once, %s in two attempts", whole, parts)
		}
	})
}

// outcome decodes an object, by two decoders if the first is to stop before its end,
// and sums up what became of it.
func outcome(t *testing.T, object []byte, limits formats.Limits, stop int) (string, error) {
	t.Helper()
	var sinks []*sink
	at, marks := 0, []diskimage.Position(nil)
	for {
		src, err := formats.Open(imagetest.Of(object), diskimage.Declared{}, limits)
		if err != nil {
			return "", err
		}
		if src.Format == diskimage.Gzip {
			stop = len(object) // there is no going on
		}
		d, err := New(t.Context(), src, Options{Limits: limits, Spool: func(n int64) (Spool, error) { return &memory{limit: n}, nil }})
		if err != nil {
			return "", err
		}
		defer d.Close()
		var outs []io.WriterAt
		for i := range src.Disks {
			if len(sinks) <= i {
				size := src.Disks[i].Size
				if size == 0 {
					size = diskimage.VirtualSize(src.Content(i, limits))
				}
				sinks = append(sinks, &sink{t: t, limit: size, data: make([]byte, min(size, limits.MaxDisk))})
			}
			sinks[i].wrote = 0
			outs = append(outs, sinks[i])
		}
		if err := d.Begin(outs, int64(at), marks); err != nil {
			return "", err
		}
		for at < stop {
			n := min(777, stop-at)
			if err := d.Take(int64(at), object[at:at+n]); err != nil {
				return "", err
			}
			at += n
		}
		if at < len(object) {
			marks, stop = d.Mark(), len(object)
			continue
		}
		sizes, err := d.Finish()
		if err != nil {
			return "", err
		}
		sum := fmt.Sprint(sizes)
		for i, s := range sinks {
			if sizes[i] > s.limit || sizes[i] <= 0 || sizes[i]%diskimage.SectorBytes != 0 {
				t.Fatalf("disk %d has %d bytes of %d", i, sizes[i], s.limit)
			}
			sum += fmt.Sprintf(" %x", sha256.Sum256(s.data))
		}
		return sum, nil
	}
}

// memory is a Spool.
type memory struct {
	limit int64
	data  []byte
}

func (m *memory) WriteAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) > m.limit {
		return 0, io.ErrShortWrite
	}
	if grow := off + int64(len(p)) - int64(len(m.data)); grow > 0 {
		m.data = append(m.data, make([]byte, grow)...)
	}
	return copy(m.data[off:], p), nil
}

func (m *memory) ReadAt(p []byte, off int64) (int, error) {
	return bytes.NewReader(m.data).ReadAt(p, off)
}

func (m *memory) Close() error { return nil }
