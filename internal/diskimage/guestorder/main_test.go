package guestorder_test

import (
	"bytes"
	"context"
	"io"
	"iter"
	"sync/atomic"
	"testing"

	"go.uber.org/goleak"

	"vmimport/internal/diskimage"
	"vmimport/internal/diskimage/guestorder"
	"vmimport/internal/diskimage/imagetest"
	"vmimport/internal/diskimage/qcow2"
	"vmimport/storage"
	"vmimport/storage/storagetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	_ guestorder.Source = storage.Object(nil)
	_ storage.Object    = (*guestorder.Object)(nil)
)

// counted counts what is read of an object, and that all bodies are closed.
type counted struct {
	storage.Object
	requests, bytes, open atomic.Int64
}

func (c *counted) ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	c.requests.Add(1)
	c.bytes.Add(n)
	body, err := c.Object.ReadRange(ctx, off, n)
	if err != nil {
		return nil, err
	}
	c.open.Add(1)
	return &countedBody{ReadCloser: body, count: c}, nil
}

type countedBody struct {
	io.ReadCloser
	count *counted
}

func (b *countedBody) Close() error {
	b.count.open.Add(-1)
	return b.ReadCloser.Close()
}

// openDamaged is openQCOW2 of an image that may be refused.
func openDamaged(file []byte) (*diskimage.Disk, error) { return qcow2.Open(imagetest.Of(file)) }

// openQCOW2 returns the disk in the bytes of a QCOW2 image.
func openQCOW2(t testing.TB, file []byte) *diskimage.Disk {
	t.Helper()
	d, err := qcow2.Open(imagetest.Of(file))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// newObject makes an Object, and in the end sees whether its bodies gave all back.
func newObject(t testing.TB, src guestorder.Source, d *diskimage.Disk) *guestorder.Object {
	t.Helper()
	o, err := guestorder.New(src, d)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if n := o.Rooms(); n != guestorder.MaxRooms {
			t.Errorf("%d rooms are left of %d, with all bodies closed", n, guestorder.MaxRooms)
		}
	})
	return o
}

// readRange reads a range as callers do that know its length.
func readRange(ctx context.Context, o *guestorder.Object, off, n int64) ([]byte, error) {
	body, err := o.ReadRange(ctx, off, n)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	return io.ReadAll(body)
}

// fetch reads all of an object in chunks of that many bytes.
func fetch(t testing.TB, o storage.Object, chunk int64) ([]byte, error) {
	t.Helper()
	got := make([]byte, 0, o.Size())
	_, err := storage.Fetch(t.Context(), o, storage.Options{Pool: storage.NewPool(40*chunk, chunk), Backoff: storage.Backoff{Base: 1, Max: 1}},
		func(_ int64, p []byte) error {
			got = append(got, p...)
			return nil
		})
	return got, err
}

// table is a map made of a list of extents. Packed ones are stored as a mark and a byte
// that the unit consists of.
type table struct {
	extents []diskimage.Extent
	err     error // yielded behind them
	walks   *atomic.Int64
}

func (t table) Extents(from int64) iter.Seq2[diskimage.Extent, error] {
	return func(yield func(diskimage.Extent, error) bool) {
		if t.walks != nil {
			t.walks.Add(1)
		}
		for _, e := range t.extents {
			if e.Guest+e.Length > from && !yield(e, nil) {
				return
			}
		}
		if t.err != nil {
			yield(diskimage.Extent{}, t.err)
		}
	}
}

func (table) Unpack(dst, src []byte) error {
	if src[0] != 'p' {
		return diskimage.ErrCorrupt
	}
	copy(dst, bytes.Repeat(src[1:2], len(dst)))
	return nil
}

// disk is a disk of n bytes with these extents, and a file of that many bytes.
func disk(n int64, file []byte, extents ...diskimage.Extent) (storage.Object, *diskimage.Disk) {
	return storagetest.Object(file), &diskimage.Disk{Format: diskimage.QCOW2, Size: n, Map: table{extents: extents}}
}

func plain(guest, file, n int64) diskimage.Extent {
	return diskimage.Extent{Guest: guest, Length: n, File: file, Stored: n}
}

func packed(guest, n, file, stored int64) diskimage.Extent {
	return diskimage.Extent{Guest: guest, Length: n, File: file, Stored: stored, Packed: true}
}
