package encode_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"

	"vmimport/internal/diskimage"
	"vmimport/internal/diskimage/encode"
	"vmimport/internal/diskimage/imagetest"
)

// TestBytesOfVersion is for whoever changes what encoders write, or the library that compresses:
// Version has to rise with it, since a file that one began is not for another to go on with.
func TestBytesOfVersion(t *testing.T) {
	t.Parallel()
	disk := mixed(rand.New(rand.NewPCG(9, 9)), 3*mib+512)
	want := map[encode.Form]string{
		encode.Gzip:  "eb53b7a4e008a53d",
		encode.VMDK:  "ee4fcfbfccd7b26d",
		encode.QCOW2: "7c7e83f381e550ef",
	}
	for form, sum := range want {
		file := run{form: form, workers: 2, pieces: mib}.encoded(t, disk)
		if got := fmt.Sprintf("%.8x", sha256.Sum256(file)); encode.Version != 1 || got != sum {
			t.Errorf("version %d of %s has the hash %s, version 1 had %s", encode.Version, form, got, sum)
		}
	}
}

// TestEmptyFiles encodes no bytes at all, which is a file and no disk.
func TestEmptyFiles(t *testing.T) {
	t.Parallel()
	if file := (run{form: encode.Copy}).encoded(t, nil); len(file) > 0 {
		t.Errorf("%d bytes copied", len(file))
	}
	file := run{form: encode.Gzip, cuts: []int64{0, 0}, resume: true}.encoded(t, nil)
	same(t, "an empty member", file, []byte("\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"+string(file[10:len(file)-8])+"\x00\x00\x00\x00\x00\x00\x00\x00"))
	same(t, "its content", decoded(t, encode.Gzip, file), nil)
	for _, form := range []encode.Form{encode.VMDK, encode.QCOW2} {
		if _, err := encode.New(t.Context(), io.Discard, encode.Options{Form: form}); !errors.Is(err, diskimage.ErrEmptyDisk) {
			t.Errorf("%s: %v", form, err)
		}
	}
}

func TestSizesThatNoFormHas(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		form encode.Form
		size int64
		want error // nil: any
	}{
		{encode.VMDK, 2<<40 + 512, diskimage.ErrTooLarge},
		{encode.VMDK, 65 << 40, diskimage.ErrTooLarge},
		{encode.VMDK, 511, nil},
		{encode.VMDK, -512, diskimage.ErrEmptyDisk},
		{encode.QCOW2, 16<<40 + 512, diskimage.ErrTooLarge},
		{encode.QCOW2, 1<<63 - 1, diskimage.ErrTooLarge},
		{encode.QCOW2, 1000, nil},
		{encode.Copy, -1, diskimage.ErrEmptyDisk},
		{encode.Gzip, -1, diskimage.ErrEmptyDisk},
		{"tape", 512, nil},
	} {
		e, err := encode.New(t.Context(), io.Discard, encode.Options{Form: tt.form, Size: tt.size})
		if err == nil || e != nil || tt.want != nil && !errors.Is(err, tt.want) {
			t.Errorf("%s of %d bytes: %v, want %v", tt.form, tt.size, err, tt.want)
		}
	}
}

func TestStatesOfOthers(t *testing.T) {
	t.Parallel()
	const size = 70 * mib
	for _, tt := range []struct {
		name       string
		form       encode.Form
		at, offset int64
		state      []byte
	}{
		{"copy with a state", encode.Copy, 5, 5, []byte{1}},
		{"copy of other bytes", encode.Copy, 5, 4, nil},
		{"a negative place", encode.Copy, -5, -5, nil},
		{"a place behind the end", encode.Copy, size + 1, size + 1, nil},
		{"a state of the start", encode.VMDK, 0, 0, []byte{0}},
		{"gzip with a state", encode.Gzip, 5, 5, []byte{1}},
		{"gzip without a file", encode.Gzip, 5, 0, nil},
		{"within a grain", encode.VMDK, 512, 64 * kib, []byte{0}},
		{"no state", encode.VMDK, 64 * kib, 64 * kib, nil},
		{"a grain too many", encode.VMDK, 64 * kib, 64 * kib, []byte{0, 0}},
		{"a grain without room", encode.VMDK, 64 * kib, 64 * kib, []byte{1}},
		{"a long grain", encode.VMDK, 64 * kib, 64*kib + 130*512, []byte{130, 1}},
		{"a long table", encode.VMDK, 32 * mib, 1 << 30, []byte{0xff, 0xff, 0xff, 0x7f}},
		{"a part of a sector", encode.VMDK, 64 * kib, 64*kib + 512 + 1, []byte{1}},
		{"a varint without end", encode.VMDK, 64 * kib, 64 * kib, []byte{128}},
		{"within a cluster", encode.QCOW2, 512, 256 * kib, []byte{1}},
		{"another cluster", encode.QCOW2, 64 * kib, 256 * kib, []byte{2}},
		{"a cluster without room", encode.QCOW2, 64 * kib, 192 * kib, []byte{1}},
		{"no bitmap", encode.QCOW2, 64 * kib, 192 * kib, nil},
		{"a long bitmap", encode.QCOW2, 64 * kib, 192 * kib, []byte{0, 0}},
	} {
		opt := encode.Options{Form: tt.form, Size: size, State: tt.state, At: tt.at, Offset: tt.offset}
		if _, err := encode.New(t.Context(), io.Discard, opt); !errors.Is(err, encode.ErrState) {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
}

// TestEnds ends encoders at any time and in any way: none has goroutines left, and each says
// why it failed for as long as it is asked.
func TestEnds(t *testing.T) {
	t.Parallel()
	disk := mixed(rand.New(rand.NewPCG(5, 5)), 5*mib)
	boom := errors.New("boom")
	for _, form := range allForms {
		for _, tt := range []struct {
			name string
			end  func(e encode.Encoder, cancel context.CancelCauseFunc) error // the failure of the first call
			want error                                                        // nil: any
		}{
			{"closed", func(e encode.Encoder, _ context.CancelCauseFunc) error {
				e.Close()
				_, err := e.Write(disk[:1])
				return err
			}, nil},
			{"canceled before Write", func(e encode.Encoder, cancel context.CancelCauseFunc) error {
				cancel(boom)
				_, err := e.Write(disk[:1])
				return err
			}, boom},
			{"canceled before Cut", func(e encode.Encoder, cancel context.CancelCauseFunc) error {
				cancel(boom)
				_, _, err := e.Cut()
				return err
			}, boom},
			{"too short", func(e encode.Encoder, _ context.CancelCauseFunc) error {
				_, err := e.Finish()
				return err
			}, nil},
			{"too long", func(e encode.Encoder, _ context.CancelCauseFunc) error {
				_, err := e.Write(make([]byte, len(disk)))
				return err
			}, nil},
		} {
			t.Run(fmt.Sprintf("%s/%s", form, tt.name), func(t *testing.T) {
				t.Parallel()
				ctx, cancel := context.WithCancelCause(t.Context())
				defer cancel(nil)
				e, err := encode.New(ctx, io.Discard, encode.Options{Form: form, Size: int64(len(disk)), Workers: 2})
				if err != nil {
					t.Fatal(err)
				}
				defer e.Close()
				if _, err := e.Write(disk[:3*mib+1]); err != nil {
					t.Fatal(err)
				}
				first := tt.end(e, cancel)
				if first == nil || tt.want != nil && !errors.Is(first, tt.want) {
					t.Fatalf("%v, want %v", first, tt.want)
				}
				_, err = e.Write(nil)
				_, ok, cut := e.Cut()
				_, finish := e.Finish()
				for _, err := range []error{err, cut, finish} {
					if !errors.Is(err, first) || ok {
						t.Errorf("%v after %v", err, first)
					}
				}
				e.Close()
				e.Close()
			})
		}
	}
}

func TestFinishedIsFinished(t *testing.T) {
	t.Parallel()
	for _, form := range allForms {
		e, err := encode.New(t.Context(), io.Discard, encode.Options{Form: form, Size: 512})
		if err != nil {
			t.Fatal(err)
		}
		defer e.Close()
		if _, err := e.Write(make([]byte, 512)); err != nil {
			t.Fatal(err)
		}
		if _, err := e.Finish(); err != nil {
			t.Fatal(err)
		}
		if _, err := e.Finish(); err == nil {
			t.Errorf("%s: finished twice", form)
		}
	}
}

// full is a Writer that takes so many bytes and then fails.
type full struct{ left int }

var errFull = errors.New("no space left")

func (f *full) Write(p []byte) (int, error) {
	n := min(len(p), f.left)
	f.left -= n
	if n < len(p) {
		return n, errFull
	}
	return n, nil
}

// TestFailingSink has the sink fail at each of its writes.
func TestFailingSink(t *testing.T) {
	t.Parallel()
	disk := mixed(rand.New(rand.NewPCG(6, 6)), 2*mib)
	for _, form := range allForms {
		length := len(run{form: form, pieces: mib}.encoded(t, disk)) - int(encode.HeadBytes(form, int64(len(disk))))
		for room := 0; room < length; room += 1 + length/10 {
			e, err := encode.New(t.Context(), &full{room}, encode.Options{Form: form, Size: int64(len(disk)), Workers: 2})
			if err != nil {
				t.Fatal(err)
			}
			_, err = e.Write(disk)
			if err == nil {
				_, err = e.Finish()
			}
			if !errors.Is(err, errFull) {
				t.Errorf("%s with room for %d of %d bytes: %v", form, room, length, err)
			}
			e.Close()
		}
	}
}

// TestCanceledWhileWaiting cancels from within the first write of many.
func TestCanceledWhileWaiting(t *testing.T) {
	t.Parallel()
	boom := errors.New("boom")
	for _, form := range []encode.Form{encode.Gzip, encode.VMDK} {
		ctx, cancel := context.WithCancelCause(t.Context())
		var out bytes.Buffer
		stop := writerFunc(func(p []byte) (int, error) {
			cancel(boom)
			return out.Write(p)
		})
		disk := bytes.Repeat([]byte("x"), 9*mib)
		e, err := encode.New(ctx, stop, encode.Options{Form: form, Size: int64(len(disk)), Workers: 1})
		if err != nil {
			t.Fatal(err)
		}
		if n, err := e.Write(disk); !errors.Is(err, boom) || n == len(disk) {
			t.Errorf("%s: %d bytes, %v", form, n, err)
		}
		e.Close()
	}
}

type writerFunc func(p []byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// TestStatesTakeLittle is not parallel: it looks at what the process allocates.
func TestStatesTakeLittle(t *testing.T) {
	for _, form := range []encode.Form{encode.VMDK, encode.QCOW2} {
		opt := encode.Options{Form: form, Size: 2 << 40, Workers: 1, State: bytes.Repeat([]byte{1}, 1<<20), At: 1 << 40, Offset: 1 << 30}
		imagetest.Bounded(t, 2<<20, func() {
			if _, err := encode.New(t.Context(), io.Discard, opt); !errors.Is(err, encode.ErrState) {
				t.Errorf("%s: %v", form, err)
			}
		})
	}
}
