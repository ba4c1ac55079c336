package guestorder_test

import (
	"context"
	"errors"
	"io"
	"slices"
	"testing"
	"testing/synctest"
	"unsafe"

	"vmimport/internal/diskimage"
	"vmimport/internal/diskimage/guestorder"
	"vmimport/storage"
	"vmimport/storage/storagetest"
)

// packedDisk has four units that are packed, and one behind them that is plain and far
// away in the file.
func packedDisk() (storage.Object, *diskimage.Disk) {
	const unit, far = 1024, 100 << 10
	var extents []diskimage.Extent
	for i := range int64(4) {
		extents = append(extents, packed(i*unit, unit, i*2, 2))
	}
	file := append(slices.Repeat([]byte{'p', 7}, 4), make([]byte, far+unit)...)
	return disk(5*unit, file, append(extents, plain(4*unit, far, unit))...)
}

// Bodies that keep bytes wait for each other; others do not.
func TestFewBodiesKeepBytes(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		src, d := packedDisk()
		o := newObject(t, src, d)
		open := func(ctx context.Context, off, n int64) io.ReadCloser {
			body, err := o.ReadRange(ctx, off, n)
			if err != nil {
				t.Fatal(err)
			}
			return body
		}
		var first []io.ReadCloser
		for range guestorder.MaxRooms {
			body := open(t.Context(), 0, d.Size)
			defer body.Close()
			if _, err := io.ReadFull(body, make([]byte, 10)); err != nil {
				t.Fatal(err)
			}
			first = append(first, body)
		}

		boom := errors.New("boom")
		ctx, cancel := context.WithCancelCause(t.Context())
		read := make(chan error)
		for _, ctx := range []context.Context{ctx, t.Context(), t.Context()} {
			body := open(ctx, 1024, 1024)
			defer body.Close()
			go func() {
				_, err := io.ReadAll(body)
				read <- err
			}()
		}
		if _, err := readRange(t.Context(), o, 4*1024, 1024); err != nil {
			t.Errorf("a plain range: %v", err)
		}
		synctest.Wait()
		select {
		case err := <-read:
			t.Fatalf("a body more did not wait: %v", err)
		default:
		}
		cancel(boom)
		if err := <-read; !errors.Is(err, boom) {
			t.Errorf("a body that waited when its context ended: %v", err)
		}
		first[0].Close()
		for range 2 {
			if err := <-read; err != nil {
				t.Errorf("a body that waited: %v", err)
			}
		}
		// Plain bytes need no room, nor does who has come to them.
		if _, err := io.CopyN(io.Discard, first[1], 4*1024-10+1); err != nil {
			t.Fatal(err)
		}
		if n := o.Rooms(); n != 2 {
			t.Errorf("%d rooms, want 2", n)
		}
	})
}

// A room comes back from a source that panics, and from a map that does.
func TestRoomsOfPanics(t *testing.T) {
	t.Parallel()
	src, d := packedDisk()
	for range guestorder.MaxRooms + 1 {
		_, err := readRange(t.Context(), newObject(t, src, &diskimage.Disk{Size: d.Size, Map: mine{d.Map}}), 0, d.Size)
		if err == nil {
			t.Error("a map that panics was read")
		}
	}
	o := newObject(t, brittle{storagetest.Object(make([]byte, 4096))}, d)
	for range guestorder.MaxRooms + 1 {
		if _, err := readRange(t.Context(), o, 0, d.Size); err == nil {
			t.Error("a source that panics was read")
		}
	}
}

// mine is a map whose units blow up.
type mine struct{ diskimage.Map }

func (mine) Unpack([]byte, []byte) error { panic("boom") }

// brittle is an object whose ranges do.
type brittle struct{ storage.Object }

func (brittle) ReadRange(context.Context, int64, int64) (io.ReadCloser, error) { panic("boom") }

func TestExtentBytes(t *testing.T) {
	t.Parallel()
	if n := unsafe.Sizeof(diskimage.Extent{}); n > 40 {
		t.Errorf("an extent has %d bytes: MaxBytes counts 40", n)
	}
}
