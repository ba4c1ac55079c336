package qcow2_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"vmimport/internal/diskimage/imagetest"
	"vmimport/internal/diskimage/qcow2"
)

// Disks of all sizes of clusters, with data at their ends alone and around the edge of a
// table. The writer is replaced after each of its clusters.
func TestStreamWriterLargeDisks(t *testing.T) {
	t.Parallel()
	for _, size := range []int64{512 << 30, 512<<30 + 512, 3 << 40, qcow2.MaxWriteBytes} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "image")
			f, err := os.Create(path)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			head, cluster := qcow2.StreamHeadBytes(size), qcow2.ClusterBytes(size)
			if _, err := f.Seek(head, io.SeekStart); err != nil {
				t.Fatal(err)
			}
			w, err := qcow2.NewStreamWriter(f, size)
			if err != nil {
				t.Fatal(err)
			}
			data := bytes.Repeat([]byte{7}, int(cluster))
			places := []int64{0, cluster/8 - 1, cluster / 8, (size - 1) / cluster}
			for _, number := range places {
				if err := w.Put(number, data); err != nil {
					t.Fatal(err)
				}
				w = streamAgain(t, w, f, size, number+1)
			}
			front, err := w.Finish()
			if err != nil || int64(len(front)) != head {
				t.Fatalf("a head of %d bytes, want %d, %v", len(front), head, err)
			}
			if _, err := f.WriteAt(front, 0); err != nil {
				t.Fatal(err)
			}
			if _, allocated := writerCheckPath(t, path); allocated != int64(len(places)) {
				t.Errorf("%d clusters are allocated, want %d", allocated, len(places))
			}
			for _, number := range places {
				n := min(cluster, size-number*cluster)
				imagetest.QemuIO(t, path, "qcow2", fmt.Sprintf("read -P 7 %d %d", number*cluster, n))
			}
			imagetest.QemuIO(t, path, "qcow2", fmt.Sprintf("read -P 0 %d %d", cluster, cluster))
			if disk, err := qcow2.Open(imagetest.Open(t, path)); err != nil || disk.Size != size {
				t.Errorf("our reader: %v", err)
			}
		})
	}
}

// streamAgain returns a writer that goes on with a cluster of the disk where w is.
func streamAgain(t *testing.T, w *qcow2.StreamWriter, f *os.File, size, number int64) *qcow2.StreamWriter {
	t.Helper()
	state, err := w.State(number)
	if err != nil || len(state) > 35<<10 {
		t.Fatalf("%d bytes of state, %v", len(state), err)
	}
	offset, err := f.Seek(0, io.SeekCurrent)
	if err != nil {
		t.Fatal(err)
	}
	for _, wrong := range []int64{offset - qcow2.ClusterBytes(size), offset + 1} {
		if _, err := qcow2.ResumeStreamWriter(f, size, number, wrong, state); !errors.Is(err, qcow2.ErrStreamState) {
			t.Errorf("the state of %d, at %d: %v", offset, wrong, err)
		}
	}
	again, err := qcow2.ResumeStreamWriter(f, size, number, offset, state)
	if err != nil {
		t.Fatal(err)
	}
	return again
}
