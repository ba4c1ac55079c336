// Package imageapitest is the conformance suite for image services: what
// imageapi.Images promises, as tests.
package imageapitest

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/google/uuid"

	"vmimport/imageapi"
)

// Service is an image service under test, with what the suite needs to look
// behind the contract.
type Service struct {
	Images imageapi.Images

	// Another opens a second client of the same service, as another worker has.
	Another func(t *testing.T) imageapi.Images

	// ReadDisk returns the guest bytes of disk n of a published image.
	ReadDisk func(t *testing.T, imageID string, n int) []byte

	// Leftovers lists whatever the service holds under an image id besides a published
	// image.
	Leftovers func(t *testing.T, imageID string) []string

	// Streams is set for services whose Upload.Streams is true. Their images have one
	// disk.
	Streams bool

	// FrontOnly is set for services whose Facts.Streams is true.
	FrontOnly bool
}

// Run runs the suite. Each test opens a fresh, empty service.
func Run(t *testing.T, open func(t *testing.T) Service) {
	for _, tt := range []struct {
		name string
		test func(s *suite)
	}{
		{"nothing is visible before Publish", (*suite).invisible},
		{"Publish makes the whole image visible", (*suite).whole},
		{"several disks", (*suite).severalDisks},
		{"parts never written are zeros", (*suite).holes},
		{"writes in any order", (*suite).anyOrder},
		{"Sync beside WriteAt", (*suite).syncBeside},
		{"a disk that is not closed is not published", (*suite).unclosed},
		{"a disk that is missing is not published", (*suite).missingDisk},
		{"an unknown image", (*suite).unknown},
		{"the id of another import's image", (*suite).taken},
		{"two imports publish one id", (*suite).race},
		{"publishing twice", (*suite).twice},
		{"the next attempt finds the image published", (*suite).again},
		{"a later attempt shuts out an earlier one", (*suite).shutOut},
		{"an earlier attempt cannot begin any more", (*suite).tooLate},
		{"a later attempt after Close", (*suite).afterClose},
		{"Remove of an upload", (*suite).removeUpload},
		{"Remove of a published image", (*suite).removePublished},
		{"Remove of another's image", (*suite).removeOther},
		{"Remove of nothing", (*suite).removeNothing},
		{"Remove shuts out an upload", (*suite).removeShutsOut},
		{"after Remove the id is free", (*suite).removeFrees},
		{"an attempt goes on where another stopped", (*suite).resume},
		{"an attempt goes on where nothing is in order", (*suite).resumeScattered},
		{"a disk whose size is known at its end", (*suite).resize},
		{"an offset that was never reached", (*suite).resumeUnknown},
		{"a disk of another size", (*suite).resumeOtherSize},
		{"an offset of a file that is not here any more", (*suite).resumeStale},
		{"a canceled context", (*suite).canceled},
		{"what is known of a file", (*suite).fileFacts},
		{"ranges of a file", (*suite).ranges},
		{"a range is a reader", (*suite).reader},
		{"a file of one byte", (*suite).oneByte},
		{"a file read by many", (*suite).concurrent},
		{"the version of a file", (*suite).version},
		{"the file of no image", (*suite).noFile},
		{"the file of an image that is not whole", (*suite).noFileYet},
		{"the file of several disks", (*suite).severalFiles},
		{"an image deleted before its file is read", (*suite).deletedBefore},
		{"an image deleted while its file is read", (*suite).deletedWhile},
		{"a canceled range", (*suite).canceledRange},
		{"ranges closed early", (*suite).closedEarly},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			tt.test(&suite{T: t, Service: open(t), image1: uuid.NewString(), import1: uuid.NewString(), import2: uuid.NewString()})
		})
	}
}

// size of a disk: no multiple of a block or chunk.
const size = 3<<20 + 1536

type suite struct {
	*testing.T
	Service

	// Ids as the service gives them out; each test has its own.
	image1, import1, import2 string
}

func (s *suite) spec(importID string, attempt int64) imageapi.Spec {
	return imageapi.Spec{
		ImageID: s.image1, KeepID: true, ImportID: importID, Attempt: attempt,
		Name: "web01", Owner: "project", Format: "raw",
		MinRAM: 512, MinDisk: 1, OSType: "centos",
		CreatedAt:  time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
		Properties: map[string]string{"vmimport_test": "yes"},
	}
}

// facts of n disks.
func facts(n int) []imageapi.DiskFacts {
	f := make([]imageapi.DiskFacts, n)
	for i := range f {
		f[i] = imageapi.DiskFacts{VirtualSize: size, Properties: map[string]string{"format": "raw"}}
	}
	return f
}

// content returns the bytes of a disk: data, a hole, data, and a hole at the end.
func content(seed uint64) []byte {
	b := make([]byte, size)
	random := rand.NewChaCha8([32]byte{byte(seed)})
	random.Read(b[:1<<20])
	random.Read(b[1<<20+100_000 : 2<<20])
	return b
}

func (s *suite) begin(in imageapi.Images, spec imageapi.Spec) imageapi.Upload {
	s.Helper()
	u, err := in.Begin(s.Context(), spec)
	if err != nil {
		s.Fatalf("Begin: %v", err)
	}
	s.Cleanup(func() { u.Close() })
	return u
}

func (s *suite) disk(u imageapi.Upload, n int) imageapi.DiskWriter {
	s.Helper()
	w, ok, err := u.Disk(s.Context(), imageapi.DiskSpec{Number: n, Size: size})
	if err != nil || ok {
		s.Fatalf("Disk(%d) from the start: ok %v, %v", n, ok, err)
	}
	return w
}

// write stores b[from:to] in chunks.
func (s *suite) write(w imageapi.DiskWriter, b []byte, from, to int) {
	s.Helper()
	for from < to {
		end := min(from+300_000, to)
		if n, err := w.WriteAt(b[from:end], int64(from)); err != nil || n != end-from {
			s.Fatalf("WriteAt(%d bytes, %d) = %d, %v", end-from, from, n, err)
		}
		from = end
	}
}

func (s *suite) sync(w imageapi.DiskWriter) {
	s.Helper()
	if err := w.Sync(); err != nil {
		s.Fatalf("Sync: %v", err)
	}
}

func (s *suite) closeDisk(w imageapi.DiskWriter) {
	s.Helper()
	if err := w.Close(); err != nil {
		s.Fatalf("Close of the disk: %v", err)
	}
}

func (s *suite) closeUpload(u imageapi.Upload) {
	s.Helper()
	if err := u.Close(); err != nil {
		s.Fatalf("Close of the upload: %v", err)
	}
}

// fill writes all of disk n.
func (s *suite) fill(u imageapi.Upload, n int, b []byte) {
	s.Helper()
	w := s.disk(u, n)
	s.write(w, b, 0, len(b))
	s.closeDisk(w)
}

func (s *suite) publish(u imageapi.Upload, disks int) {
	s.Helper()
	if err := u.Publish(s.Context(), facts(disks)); err != nil {
		s.Fatalf("Publish: %v", err)
	}
}

// make publishes an image in one go.
func (s *suite) make(importID string, attempt int64, b []byte) {
	s.Helper()
	u := s.begin(s.Images, s.spec(importID, attempt))
	s.fill(u, 1, b)
	s.publish(u, 1)
	s.closeUpload(u)
}

func (s *suite) wantNoImage() {
	s.Helper()
	for _, in := range []imageapi.Images{s.Images, s.Another(s.T)} {
		if img, err := in.Get(s.Context(), s.image1); !errors.Is(err, imageapi.ErrNoImage) {
			s.Fatalf("Get = %v, %v; want ErrNoImage", img, err)
		}
	}
}

// wantImage checks the published image and its disks.
func (s *suite) wantImage(importID string, disks ...[]byte) {
	s.Helper()
	want := imageapi.Image{ImageID: s.image1, ImportID: importID, Owner: "project"}
	for _, in := range []imageapi.Images{s.Images, s.Another(s.T)} {
		if img, err := in.Get(s.Context(), s.image1); err != nil || *img != want {
			s.Fatalf("Get = %v, %v; want %v", img, err, want)
		}
	}
	for i, b := range disks {
		if got := s.ReadDisk(s.T, s.image1, i+1); !bytes.Equal(got, b) {
			s.Fatalf("disk %d: %s", i+1, difference(got, b))
		}
	}
}

func difference(got, want []byte) string {
	for i := range min(len(got), len(want)) {
		if got[i] != want[i] {
			return fmt.Sprintf("byte %d is %#x, want %#x", i, got[i], want[i])
		}
	}
	return fmt.Sprintf("%d bytes, want %d", len(got), len(want))
}

func (s *suite) wantError(what string, err, want error) {
	s.Helper()
	if !errors.Is(err, want) {
		s.Fatalf("%s: %v; want %v", what, err, want)
	}
}

func (s *suite) wantNoLeftovers() {
	s.Helper()
	if left := s.Leftovers(s.T, s.image1); len(left) > 0 {
		s.Fatalf("left over: %q", left)
	}
}
