// Package imageapitest is the conformance suite for image services: what
// imageapi.Images promises, as tests.
package imageapitest

import (
	"bytes"
	"context"
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

func (s *suite) invisible() {
	s.wantNoImage()
	u := s.begin(s.Images, s.spec(s.import1, 1))
	s.wantNoImage()
	w := s.disk(u, 1)
	b := content(1)
	s.write(w, b, 0, len(b))
	s.sync(w)
	s.wantNoImage()
	s.closeDisk(w)
	s.wantNoImage()
	s.closeUpload(u)
	s.wantNoImage()
}

func (s *suite) whole() {
	b := content(1)
	s.make(s.import1, 1, b)
	s.wantImage(s.import1, b)
	s.wantNoLeftovers()
}

func (s *suite) severalDisks() {
	u := s.begin(s.Images, s.spec(s.import1, 1))
	if s.Streams {
		s.fill(u, 1, content(1))
		_, _, err := u.Disk(s.Context(), imageapi.DiskSpec{Number: 2, Size: size})
		s.wantError("Disk(2)", err, imageapi.ErrOneDisk)
		return
	}
	disks := [][]byte{content(1), content(2), content(3)}
	for i, b := range disks {
		s.fill(u, i+1, b)
	}
	s.wantNoImage()
	s.publish(u, len(disks))
	s.wantImage(s.import1, disks...)
}

func (s *suite) holes() {
	u := s.begin(s.Images, s.spec(s.import1, 1))
	b := make([]byte, size)
	copy(b[1<<20:], content(1)[:4096])
	w := s.disk(u, 1)
	s.write(w, b, 1<<20, 1<<20+4096)
	s.closeDisk(w)
	disks := [][]byte{b}
	if !s.Streams {
		s.fill(u, 2, make([]byte, size))
		s.closeDisk(s.disk(u, 3))
		disks = append(disks, make([]byte, size), make([]byte, size))
	}
	s.publish(u, len(disks))
	s.wantImage(s.import1, disks...)
}

func (s *suite) anyOrder() {
	u := s.begin(s.Images, s.spec(s.import1, 1))
	b := content(1)
	w := s.disk(u, 1)
	if u.Streams() != s.Streams {
		s.Fatalf("Streams() = %v", u.Streams())
	}
	if s.Streams {
		s.write(w, b, 4096, 8192)
		if _, err := w.WriteAt(b[:512], 0); err == nil {
			s.Error("a write before another was taken by a service that streams")
		}
		return
	}
	const piece = 70_001
	pieces := (size + piece - 1) / piece
	for _, i := range rand.New(rand.NewPCG(1, 2)).Perm(pieces) {
		s.write(w, b, i*piece, min((i+1)*piece, size))
	}
	s.closeDisk(w)
	s.publish(u, 1)
	s.wantImage(s.import1, b)
}

func (s *suite) syncBeside() {
	u := s.begin(s.Images, s.spec(s.import1, 1))
	b := content(1)
	w := s.disk(u, 1)
	synced := make(chan error, 1)
	go func() {
		for range 10 {
			if err := w.Sync(); err != nil {
				synced <- err
				return
			}
		}
		synced <- nil
	}()
	s.write(w, b, 0, len(b))
	if err := <-synced; err != nil {
		s.Fatalf("Sync: %v", err)
	}
	s.closeDisk(w)
	s.publish(u, 1)
	s.wantImage(s.import1, b)
}

func (s *suite) unclosed() {
	u := s.begin(s.Images, s.spec(s.import1, 1))
	b := content(1)
	s.write(s.disk(u, 1), b, 0, len(b))
	if err := u.Publish(s.Context(), facts(1)); err == nil {
		s.Fatal("Publish of a disk that is not closed succeeds")
	}
	s.closeUpload(u)
	s.wantNoImage()
}

func (s *suite) missingDisk() {
	u := s.begin(s.Images, s.spec(s.import1, 1))
	s.fill(u, 1, content(1))
	for _, n := range []int{0, 2} {
		if err := u.Publish(s.Context(), facts(n)); err == nil {
			s.Fatalf("Publish of %d disks succeeds, and one was written", n)
		}
	}
	s.wantNoImage()
}

func (s *suite) unknown() {
	for _, id := range []string{s.image1, "", ".", "..", "../" + s.image1, s.image1 + "/x", "a\x00b"} {
		if img, err := s.Images.Get(s.Context(), id); !errors.Is(err, imageapi.ErrNoImage) {
			s.Errorf("Get(%q) = %v, %v; want ErrNoImage", id, img, err)
		}
	}
}

func (s *suite) taken() {
	b := content(1)
	s.make(s.import1, 1, b)
	_, err := s.Images.Begin(s.Context(), s.spec(s.import2, 1))
	s.wantError("Begin", err, imageapi.ErrTaken)
	s.wantImage(s.import1, b)
	s.wantNoLeftovers()
}

func (s *suite) race() {
	b := content(1)
	first := s.begin(s.Images, s.spec(s.import1, 1))
	second, err := s.Another(s.T).Begin(s.Context(), s.spec(s.import2, 1))
	if err != nil {
		s.wantError("second Begin", err, imageapi.ErrTaken)
		s.fill(first, 1, b)
		s.publish(first, 1)
		s.wantImage(s.import1, b)
		return
	}
	s.fill(first, 1, b)
	s.fill(second, 1, content(2))
	s.publish(first, 1)
	s.wantError("second Publish", second.Publish(s.Context(), facts(1)), imageapi.ErrTaken)
	s.closeUpload(second)
	if err := s.Images.Remove(s.Context(), s.import2, s.image1); err != nil {
		s.Fatalf("Remove: %v", err)
	}
	s.wantImage(s.import1, b)
	s.wantNoLeftovers()
}

func (s *suite) twice() {
	b := content(1)
	u := s.begin(s.Images, s.spec(s.import1, 1))
	s.fill(u, 1, b)
	s.publish(u, 1)
	s.publish(u, 1)
	for range 2 {
		s.closeUpload(u)
	}
	s.wantImage(s.import1, b)
	s.wantNoLeftovers()
}

func (s *suite) again() {
	b := content(1)
	s.make(s.import1, 1, b)
	s.make(s.import1, 2, content(2))
	s.wantImage(s.import1, b)
	s.wantNoLeftovers()
}

// scribble writes what must not be seen, as a worker does that does not know
// yet that it was shut out. It may be told so, and nothing else.
func (s *suite) scribble(u imageapi.Upload, w imageapi.DiskWriter) {
	s.Helper()
	if s.Streams {
		s.wantError("Publish", u.Publish(s.Context(), facts(1)), imageapi.ErrShutOut)
		return
	}
	junk := bytes.Repeat([]byte("junk"), size/4)
	_, err := w.WriteAt(junk, 0)
	for _, err := range []error{err, w.Sync(), w.Close()} {
		if err != nil {
			s.wantError("a write after a later Begin", err, imageapi.ErrShutOut)
		}
	}
	s.wantError("Publish", u.Publish(s.Context(), facts(1)), imageapi.ErrShutOut)
	if w, _, err := u.Disk(s.Context(), imageapi.DiskSpec{Number: 2, Size: size}); err != nil {
		s.wantError("Disk after a later Begin", err, imageapi.ErrShutOut)
	} else if _, err := w.WriteAt(junk, 0); err != nil {
		s.wantError("a write after a later Begin", err, imageapi.ErrShutOut)
	}
}

// shutOutStream: what is being sent can be shut out only with its id, and only where
// the id does not matter.
func (s *suite) shutOutStream() {
	spec := s.spec(s.import1, 1)
	spec.KeepID = false
	old := s.begin(s.Images, spec)
	w := s.disk(old, 1)
	s.write(w, content(2), 0, size)
	s.closeDisk(w)
	spec.Attempt = 2
	_, err := s.Another(s.T).Begin(s.Context(), spec)
	s.wantError("Begin beside an upload", err, imageapi.ErrSpent)
	s.scribble(old, w)
	s.wantNoImage()
	s.wantNoLeftovers()

	_, err = s.Images.Begin(s.Context(), spec)
	s.wantError("Begin of a spent id", err, imageapi.ErrSpent)
	s.wantNoLeftovers()
}

func (s *suite) shutOut() {
	if s.Streams {
		s.shutOutStream()
		return
	}
	b := content(1)
	old := s.begin(s.Images, s.spec(s.import1, 1))
	oldDisk := s.disk(old, 1)
	s.write(oldDisk, content(2), 0, 1<<20)
	s.sync(oldDisk)

	u := s.begin(s.Another(s.T), s.spec(s.import1, 2))
	w := s.disk(u, 1)
	s.write(w, b, 0, 1<<20)
	s.scribble(old, oldDisk)
	s.wantNoImage()
	s.write(w, b, 1<<20, size)
	s.closeDisk(w)
	s.publish(u, 1)
	s.wantImage(s.import1, b)
	s.closeUpload(old)
	s.closeUpload(u)
	s.wantImage(s.import1, b)

	// The same once more, when the image is there.
	late := s.begin(s.Images, s.spec(s.import1, 3))
	s.fill(late, 1, content(3))
	s.begin(s.Images, s.spec(s.import1, 4))
	s.wantError("Publish", late.Publish(s.Context(), facts(1)), imageapi.ErrShutOut)
	s.wantImage(s.import1, b)
}

func (s *suite) tooLate() {
	b := content(1)
	u := s.begin(s.Images, s.spec(s.import1, 5))
	s.fill(u, 1, b)
	if old, err := s.Images.Begin(s.Context(), s.spec(s.import1, 4)); err == nil {
		s.fill(old, 1, content(2))
		s.wantError("Publish", old.Publish(s.Context(), facts(1)), imageapi.ErrShutOut)
		s.closeUpload(old)
	} else {
		s.wantError("Begin of an earlier attempt", err, imageapi.ErrShutOut)
	}
	s.publish(u, 1)
	s.wantImage(s.import1, b)
}

func (s *suite) afterClose() {
	b := content(1)
	old := s.begin(s.Images, s.spec(s.import1, 1))
	w := s.disk(old, 1)
	s.write(w, content(2), 0, size)
	s.closeUpload(old)
	u := s.begin(s.Images, s.spec(s.import1, 2))
	if _, err := w.WriteAt([]byte("junk"), 0); err == nil {
		s.Error("WriteAt after Close succeeds")
	}
	s.fill(u, 1, b)
	s.publish(u, 1)
	s.wantImage(s.import1, b)
}

func (s *suite) remove(importID string) {
	s.Helper()
	if err := s.Images.Remove(s.Context(), importID, s.image1); err != nil {
		s.Fatalf("Remove: %v", err)
	}
}

func (s *suite) removeUpload() {
	u := s.begin(s.Images, s.spec(s.import1, 1))
	s.fill(u, 1, content(1))
	if !s.Streams {
		s.disk(u, 2)
	}
	s.closeUpload(u)
	s.remove(s.import1)
	s.wantNoImage()
	s.wantNoLeftovers()
}

func (s *suite) removePublished() {
	s.make(s.import1, 1, content(1))
	s.begin(s.Images, s.spec(s.import1, 2))
	s.remove(s.import1)
	s.wantNoImage()
	s.wantNoLeftovers()
}

func (s *suite) removeOther() {
	b := content(1)
	u := s.begin(s.Images, s.spec(s.import1, 1))
	s.fill(u, 1, b)
	s.remove(s.import2)
	s.publish(u, 1)
	s.remove(s.import2)
	s.wantImage(s.import1, b)
}

func (s *suite) removeNothing() {
	s.remove(s.import1)
	s.wantNoImage()
	s.wantNoLeftovers()
}

func (s *suite) removeShutsOut() {
	u := s.begin(s.Images, s.spec(s.import1, 1))
	w := s.disk(u, 1)
	s.write(w, content(1), 0, 1<<20)
	if s.Streams { // which looks no sooner than with the end
		s.write(w, content(1), 1<<20, size)
		s.closeDisk(w)
	}
	if err := s.Another(s.T).Remove(s.Context(), s.import1, s.image1); err != nil {
		s.Fatalf("Remove: %v", err)
	}
	s.scribble(u, w)
	s.wantNoImage()
	s.closeUpload(u)
	s.wantNoImage()
	s.wantNoLeftovers()
}

func (s *suite) removeFrees() {
	u := s.begin(s.Images, s.spec(s.import1, 1))
	s.fill(u, 1, content(1))
	if !s.Streams { // where an image that was published spends its id
		s.publish(u, 1)
	}
	s.closeUpload(u)
	s.remove(s.import1)
	s.wantNoImage()
	s.wantNoLeftovers()
	b := content(2)
	s.make(s.import2, 1, b)
	s.remove(s.import1)
	s.wantImage(s.import2, b)
}

// resumeAt asks for disk 1 from offset on. For services that keep nothing it
// is never there.
func (s *suite) resumeAt(u imageapi.Upload, offset int64, want bool) imageapi.DiskWriter {
	s.Helper()
	w, ok, err := u.Disk(s.Context(), imageapi.DiskSpec{Number: 1, Size: size, Resume: offset})
	if err != nil {
		s.Fatalf("Disk from %d: %v", offset, err)
	}
	if ok != (want && !s.Streams) {
		s.Fatalf("Disk from %d: ok %v", offset, ok)
	}
	return w
}

// resume goes through three attempts; each has written more than it synced, and all
// of that is written again.
func (s *suite) resume() {
	b := content(1)
	reached := 0
	for i, stop := range []int{512, 1<<20 + 50_000, 2 << 20} {
		u := s.begin(s.Images, s.spec(s.import1, int64(i+1)))
		w := s.resumeAt(u, int64(reached), reached > 0)
		if s.Streams {
			reached = 0
		}
		s.write(w, b, reached, stop)
		s.sync(w)
		s.write(w, b, stop, stop+1<<19)
		s.closeUpload(u)
		s.wantNoImage()
		reached = stop
	}
	u := s.begin(s.Another(s.T), s.spec(s.import1, 9))
	w := s.resumeAt(u, int64(reached), true)
	if s.Streams {
		reached = 0
	}
	s.write(w, b, reached, size)
	s.closeDisk(w)
	s.publish(u, 1)
	s.wantImage(s.import1, b)
	s.closeUpload(u)
	s.wantNoLeftovers()
}

// resumeScattered: what is written need not be where the number says.
func (s *suite) resumeScattered() {
	b := content(1)
	u := s.begin(s.Images, s.spec(s.import1, 1))
	w := s.disk(u, 1)
	s.write(w, b, 2<<20, size)
	s.sync(w)
	s.closeUpload(u)

	u = s.begin(s.Another(s.T), s.spec(s.import1, 2))
	w = s.resumeAt(u, 1000, true)
	s.write(w, b, 0, 2<<20)
	if s.Streams {
		s.write(w, b, 2<<20, size)
	}
	s.closeDisk(w)
	s.publish(u, 1)
	s.wantImage(s.import1, b)
}

func (s *suite) resize() {
	b := content(1)
	u := s.begin(s.Images, s.spec(s.import1, 1))
	w, _, err := u.Disk(s.Context(), imageapi.DiskSpec{Number: 1, Size: 1 << 40, AtMost: true})
	if err != nil {
		s.Fatalf("Disk: %v", err)
	}
	s.write(w, b, 0, size)
	if err := w.Resize(1<<40 + 1); err == nil {
		s.Error("Resize beyond the bound was taken")
	}
	s.closeUpload(u)

	u = s.begin(s.Images, s.spec(s.import1, 2))
	if w, _, err = u.Disk(s.Context(), imageapi.DiskSpec{Number: 1, Size: 1 << 40, AtMost: true}); err != nil {
		s.Fatalf("Disk: %v", err)
	}
	s.write(w, b, 0, size)
	if err := w.Resize(size); err != nil {
		s.Fatalf("Resize: %v", err)
	}
	s.closeDisk(w)
	s.publish(u, 1)
	s.wantImage(s.import1, b)
}

func (s *suite) resumeUnknown() {
	u := s.begin(s.Images, s.spec(s.import1, 1))
	s.resumeAt(u, 1<<20, false)
	s.closeUpload(u)
}

func (s *suite) resumeOtherSize() {
	u := s.begin(s.Images, s.spec(s.import1, 1))
	w, _, err := u.Disk(s.Context(), imageapi.DiskSpec{Number: 1, Size: size + 512})
	if err != nil {
		s.Fatalf("Disk: %v", err)
	}
	s.write(w, content(2), 0, size)
	s.sync(w)
	s.closeUpload(u)

	u = s.begin(s.Images, s.spec(s.import1, 2))
	w = s.resumeAt(u, 1<<20, false)
	s.closeDisk(w)
	s.publish(u, 1)
	s.wantImage(s.import1, make([]byte, size))
}

// resumeStale: the second attempt cannot have the file of the first, which is
// still being written, and dies before it has written as much. The third knows
// the offset of the first only, and must not find it in the second's file.
func (s *suite) resumeStale() {
	if s.Streams {
		return // nothing can be resumed, and nobody can begin beside a writer
	}
	b := content(1)
	const reached = 2 << 20
	first := s.begin(s.Images, s.spec(s.import1, 1))
	w := s.disk(first, 1)
	s.write(w, b, 0, reached)
	s.sync(w)

	second := s.begin(s.Images, s.spec(s.import1, 2))
	w = s.resumeAt(second, reached, false)
	s.write(w, b, 0, 4096)
	s.sync(w)
	s.closeUpload(second)
	s.closeUpload(first)

	third := s.begin(s.Images, s.spec(s.import1, 3))
	w = s.resumeAt(third, reached, false)
	s.write(w, b, 0, size)
	s.closeDisk(w)
	s.publish(third, 1)
	s.wantImage(s.import1, b)
}

func (s *suite) canceled() {
	ctx, cancel := context.WithCancel(s.Context())
	cancel()
	if _, err := s.Images.Get(ctx, s.image1); !errors.Is(err, context.Canceled) {
		s.Errorf("Get: %v", err)
	}
	if _, err := s.Images.Begin(ctx, s.spec(s.import1, 1)); !errors.Is(err, context.Canceled) {
		s.Errorf("Begin: %v", err)
	}
	u := s.begin(s.Images, s.spec(s.import1, 1))
	s.fill(u, 1, content(1))
	if err := u.Publish(ctx, facts(1)); !errors.Is(err, context.Canceled) {
		s.Errorf("Publish: %v", err)
	}
	s.wantNoImage()
	s.remove(s.import1)
	s.wantNoLeftovers()
}
