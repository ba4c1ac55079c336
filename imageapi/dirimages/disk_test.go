package dirimages

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"vmimport/imageapi"
	"vmimport/internal/fault"
)

// /dev/full is a disk without space left that every machine has.
func TestFullStore(t *testing.T) {
	t.Parallel()
	f, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	d := &disk{file: f, size: 1 << 20, current: func() error { return nil }}
	p := make([]byte, 16384)
	p[8192] = 1
	n, err := d.WriteAt(p, 0)
	if n != 8192 || !errors.Is(err, imageapi.ErrFull) || !errors.Is(err, unix.ENOSPC) {
		t.Errorf("WriteAt = %d, %v; want 8192 and ErrFull", n, err)
	}
	if err := d.Sync(); !errors.Is(err, imageapi.ErrFull) {
		t.Errorf("Sync: %v", err)
	}
	for range 2 {
		if err := d.Close(); err == nil {
			t.Error("Close succeeds after a lost write")
		}
	}
	if d.complete() {
		t.Error("the disk counts as complete")
	}
}

func TestFailure(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		cause error
		code  string
	}{
		{unix.ENOSPC, "image_store_full"},
		{unix.EDQUOT, "image_store_full"},
		{unix.EIO, "image_store_failed"},
		{unix.EROFS, "image_store_failed"},
		{unix.EACCES, "image_store_failed"},
	} {
		cause := &fs.PathError{Op: "write", Path: "/srv/images/x", Err: tt.cause}
		got := fault.Of(failure("write disk", cause))
		if got.Kind != fault.Unavailable || got.Code != tt.code || !errors.Is(got, tt.cause) {
			t.Errorf("%v: %v", tt.cause, got)
		}
		if bytes.Contains([]byte(got.Message+got.Evidence), []byte("/")) {
			t.Errorf("%v: the message has a path: %v", tt.cause, got)
		}
	}
}

func TestDataRuns(t *testing.T) {
	t.Parallel()
	const B = blockBytes
	type run struct{ from, to int }
	for _, tt := range []struct {
		off  int64
		n    int
		ones []int // places that are not zero
		want []run
	}{
		{0, 0, nil, nil},
		{0, 4 * B, nil, nil},
		{0, B, []int{0}, []run{{0, B}}},
		{0, 4 * B, []int{B - 1, B}, []run{{0, 2 * B}}},
		{0, 4 * B, []int{0, 3 * B}, []run{{0, B}, {3 * B, 4 * B}}},
		{100, 3 * B, []int{B - 101}, []run{{0, B - 100}}},
		{100, 3 * B, []int{B - 100}, []run{{B - 100, 2*B - 100}}},
		{B - 1, 2, []int{0}, []run{{0, 1}}},
		{B - 1, 2, []int{1}, []run{{1, 2}}},
		{1 << 40, B + 7, []int{B + 6}, []run{{B, B + 7}}},
	} {
		p := make([]byte, tt.n)
		for _, i := range tt.ones {
			p[i] = 1
		}
		var got []run
		for from, to := range dataRuns(p, tt.off) {
			got = append(got, run{from, to})
		}
		if fmt.Sprint(got) != fmt.Sprint(tt.want) {
			t.Errorf("%d bytes at %d with data at %v: %v, want %v", tt.n, tt.off, tt.ones, got, tt.want)
		}
	}
}

func FuzzDataRuns(f *testing.F) {
	f.Add([]byte{0, 1, 0}, int64(4095), uint16(1))
	f.Add([]byte{1, 0, 0, 0, 1}, int64(0), uint16(4096))
	f.Fuzz(func(t *testing.T, pattern []byte, off int64, stretch uint16) {
		off &= 1<<50 - 1
		var p []byte
		for _, c := range pattern[:min(len(pattern), 8)] {
			p = append(p, bytes.Repeat([]byte{c}, int(stretch))...)
		}
		got := make([]byte, len(p))
		last := -1
		for from, to := range dataRuns(p, off) {
			if from <= last || to <= from || to > len(p) {
				t.Fatalf("run [%d, %d) after %d", from, to, last)
			}
			copy(got[from:to], p[from:to])
			last = to
		}
		if !bytes.Equal(got, p) {
			t.Fatal("the runs leave data out")
		}
	})
}

func BenchmarkDataRuns(b *testing.B) {
	for name, fill := range map[string]byte{"zeros": 0, "data": 1} {
		b.Run(name, func(b *testing.B) {
			p := bytes.Repeat([]byte{fill}, 8<<20)
			b.SetBytes(int64(len(p)))
			for b.Loop() {
				for range dataRuns(p, 0) {
				}
			}
		})
	}
}
