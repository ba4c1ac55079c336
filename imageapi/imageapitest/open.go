package imageapitest

import (
	"bytes"
	"context"
	"crypto/md5"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"testing/iotest"

	"github.com/google/uuid"

	"vmimport/imageapi"
	"vmimport/internal/fault"
)

// open opens the file of the image.
func (s *suite) open() imageapi.File {
	s.Helper()
	f, err := s.Images.Open(s.Context(), s.image1)
	if err != nil {
		s.Fatalf("Open: %v", err)
	}
	return f
}

// opened publishes an image and opens its file.
func (s *suite) opened(b []byte) imageapi.File {
	s.Helper()
	s.make(s.import1, 1, b)
	return s.open()
}

// read reads a range to its end.
func read(ctx context.Context, f imageapi.File, off, n int64) ([]byte, error) {
	body, err := f.ReadRange(ctx, off, n)
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(body)
	return b, errors.Join(err, body.Close())
}

func (s *suite) body(f imageapi.File, off, n int64) io.ReadCloser {
	s.Helper()
	body, err := f.ReadRange(s.Context(), off, n)
	if err != nil {
		s.Fatalf("ReadRange(%d, %d): %v", off, n, err)
	}
	s.Cleanup(func() { body.Close() })
	return body
}

func (s *suite) fileFacts() {
	b := content(1)
	f := s.opened(b)
	if f.Size() != size {
		s.Errorf("Size() = %d, want %d", f.Size(), size)
	}
	got := f.Facts()
	want := imageapi.Facts{
		ImageID: s.image1, Name: "web01", Owner: "project", Format: "raw", ContainerFormat: "bare",
		MinRAM: 512, MinDisk: 1, OSType: "centos", HashName: got.HashName, Streams: s.FrontOnly, Record: got.Record,
	}
	want.Hash = map[string]string{
		"": "", "md5": fmt.Sprintf("%x", md5.Sum(b)), "sha256": fmt.Sprintf("%x", sha256.Sum256(b)), "sha512": fmt.Sprintf("%x", sha512.Sum512(b)),
	}[got.HashName]
	if g, w := fmt.Sprintf("%+v", got), fmt.Sprintf("%+v", want); g != w {
		s.Errorf("got\n%s, want\n%s", g, w)
	}

	var record map[string]any
	if err := json.Unmarshal(got.Record, &record); err != nil || len(got.Record) > imageapi.MaxRecordBytes {
		s.Fatalf("record of %d bytes: %v", len(got.Record), err)
	}
	for name, value := range map[string]any{
		"id": s.image1, "name": "web01", "owner": "project", "status": "active", "disk_format": "raw", "container_format": "bare",
		"min_ram": 512.0, "min_disk": 1.0, "os_type": "centos", "size": float64(size),
	} {
		if record[name] != value {
			s.Errorf("record: %s is %v, want %v", name, record[name], value)
		}
	}
	for name := range record {
		if name == "self" || name == "file" || name == "schema" || strings.HasPrefix(name, "vmimport_") {
			s.Errorf("record: it has the member %s", name)
		}
	}
}

func (s *suite) ranges() {
	b := content(1)
	f := s.opened(b)
	edges := []int64{0, 1, 2, size / 2, size - 2, size - 1, size}
	for _, off := range edges {
		for _, n := range edges {
			if n == 0 || off+n > size {
				continue
			}
			got, err := read(s.Context(), f, off, n)
			if err != nil || !bytes.Equal(got, b[off:off+n]) {
				s.Errorf("range %d+%d: %d bytes, %v", off, n, len(got), err)
			}
			// Readers that know n never see io.EOF.
			if _, err := io.ReadFull(s.body(f, off, n), got); err != nil || !bytes.Equal(got, b[off:off+n]) {
				s.Errorf("range %d+%d, read full: %v", off, n, err)
			}
		}
	}
	for _, r := range [][2]int64{{-1, 1}, {0, 0}, {0, -1}, {0, size + 1}, {size, 1}, {1, size}, {1, 1<<63 - 1}} {
		if body, err := f.ReadRange(s.Context(), r[0], r[1]); err == nil {
			body.Close()
			s.Errorf("range %d+%d of %d bytes was opened", r[0], r[1], size)
		}
	}
}

// reader checks a range against all that io.Reader promises.
func (s *suite) reader() {
	b := content(1)
	if err := iotest.TestReader(s.body(s.opened(b), 7, 4000), b[7:4007]); err != nil {
		s.Error(err)
	}
}

func (s *suite) oneByte() {
	u := s.begin(s.Images, s.spec(s.import1, 1))
	w, _, err := u.Disk(s.Context(), imageapi.DiskSpec{Number: 1, Size: 1})
	if err != nil {
		s.Fatalf("Disk: %v", err)
	}
	s.write(w, []byte{7}, 0, 1)
	s.closeDisk(w)
	s.publish(u, 1)
	f := s.open()
	if got, err := read(s.Context(), f, 0, 1); err != nil || !bytes.Equal(got, []byte{7}) || f.Size() != 1 {
		s.Errorf("%d bytes: %v, %v", f.Size(), got, err)
	}
}

// concurrent reads a file as an export does: pieces side by side, until all is there.
func (s *suite) concurrent() {
	b := content(1)
	f := s.opened(b)
	const piece = 100_003
	pieces := rand.New(rand.NewPCG(1, 2)).Perm((size + piece - 1) / piece)
	next := make(chan int64, len(pieces))
	for _, i := range pieces {
		next <- int64(i) * piece
	}
	close(next)
	got := make([]byte, size)
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for off := range next {
				p, err := read(s.Context(), f, off, min(piece, size-off))
				if copy(got[off:], p); err != nil {
					s.Errorf("range at %d: %v", off, err)
				}
			}
		})
	}
	wg.Wait()
	if !s.Failed() && !bytes.Equal(got, b) {
		s.Error(difference(got, b))
	}
}

func (s *suite) version() {
	one := s.opened(content(1))
	two, err := s.Another(s.T).Open(s.Context(), s.image1)
	if err != nil {
		s.Fatalf("Open: %v", err)
	}
	if v := one.Version(); v == "" || len(v) > 256 || v != two.Version() {
		s.Errorf("two files of one image have the versions %q and %q", v, two.Version())
	}
	s.image1 = uuid.NewString()
	s.make(s.import2, 1, content(2))
	if v := s.open().Version(); v == one.Version() {
		s.Errorf("files of two images have the version %q", v)
	}
}

func (s *suite) wantNoFile(id string) {
	s.Helper()
	for _, in := range []imageapi.Images{s.Images, s.Another(s.T)} {
		if f, err := in.Open(s.Context(), id); !errors.Is(err, imageapi.ErrNoImage) || fault.KindOf(err) != fault.NotFound || f != nil {
			s.Errorf("Open(%q) = %v, %v; want ErrNoImage", id, f, err)
		}
	}
}

func (s *suite) noFile() {
	for _, id := range []string{
		s.image1, "", ".", "..", "/", "x", "../" + s.image1, s.image1 + "/x", s.image1 + "/../" + s.image1, s.image1 + "?", "%2e%2e",
		".staging", "a\x00b", "a\r\nb: c", strings.Repeat("a", 10_000), strings.Repeat("/", 36), "{" + s.image1 + "}", "urn:uuid:" + s.image1,
	} {
		s.wantNoFile(id)
	}
	s.make(s.import1, 1, content(1))
	s.remove(s.import1)
	s.wantNoFile(s.image1)
}

func (s *suite) noFileYet() {
	u := s.begin(s.Images, s.spec(s.import1, 1))
	s.wantNoFile(s.image1)
	s.fill(u, 1, content(1))
	s.wantNoFile(s.image1)
	s.closeUpload(u)
	s.wantNoFile(s.image1)
	s.remove(s.import1) // a service may keep the id, as something that is no image
	s.wantNoFile(s.image1)
}

func (s *suite) severalFiles() {
	if s.Streams {
		return // an image has one
	}
	u := s.begin(s.Images, s.spec(s.import1, 1))
	s.fill(u, 1, content(1))
	s.fill(u, 2, content(2))
	s.publish(u, 2)
	f, err := s.Images.Open(s.Context(), s.image1)
	s.wantError(fmt.Sprintf("Open of two disks (%v)", f), err, imageapi.ErrSeveralDisks)
}

func (s *suite) wantGone(f imageapi.File) {
	s.Helper()
	for range 2 {
		for _, n := range []int64{500, size} {
			if got, err := read(s.Context(), f, 0, n); !errors.Is(err, imageapi.ErrGone) {
				s.Fatalf("a file that is gone: %d bytes, %v; want ErrGone", len(got), err)
			}
		}
	}
}

func (s *suite) deletedBefore() {
	f := s.opened(content(1))
	s.remove(s.import1)
	s.wantGone(f)
	if s.Streams {
		return // its id is spent
	}
	s.make(s.import2, 1, content(2))
	s.wantGone(f)
}

func (s *suite) deletedWhile() {
	b := content(1)
	f := s.opened(b)
	body := s.body(f, 0, size)
	got := make([]byte, size)
	if _, err := io.ReadFull(body, got[:1000]); err != nil {
		s.Fatal(err)
	}
	s.remove(s.import1)
	if !s.Streams {
		s.make(s.import2, 1, content(2))
	}
	switch _, err := io.ReadFull(body, got[1000:]); {
	case errors.Is(err, imageapi.ErrGone), errors.Is(err, io.ErrUnexpectedEOF):
	case err != nil:
		s.Errorf("%v; want the old bytes or an error that says what happened", err)
	case !bytes.Equal(got, b):
		s.Errorf("other bytes: %s", difference(got, b))
	}
	s.wantGone(f)
}

func (s *suite) canceledRange() {
	b := content(1)
	f := s.opened(b)
	left := errors.New("the user left")
	ctx, cancel := context.WithCancelCause(s.Context())
	body, err := f.ReadRange(ctx, 0, size)
	if err != nil {
		s.Fatal(err)
	}
	defer body.Close()
	if _, err := io.ReadFull(body, make([]byte, 100)); err != nil {
		s.Fatal(err)
	}
	cancel(left)
	for range 2 {
		if n, err := body.Read(make([]byte, 100)); n != 0 || !errors.Is(err, left) {
			s.Errorf("Read after cancel: %d, %v", n, err)
		}
	}
	if _, err := read(ctx, f, 0, 100); !errors.Is(err, left) {
		s.Errorf("ReadRange after cancel: %v", err)
	}
	if _, err := s.Images.Open(ctx, s.image1); !errors.Is(err, left) {
		s.Errorf("Open after cancel: %v", err)
	}
	if got, err := read(s.Context(), f, 0, 100); err != nil || !bytes.Equal(got, b[:100]) {
		s.Errorf("the file is lost after a cancel: %d bytes, %v", len(got), err)
	}
}

// closedEarly: a range may be closed at any point, and costs nothing then.
func (s *suite) closedEarly() {
	b := content(1)
	f := s.opened(b)
	for i := range 20 {
		body := s.body(f, int64(i), size/2)
		if _, err := io.ReadFull(body, make([]byte, i)); err != nil {
			s.Fatal(err)
		}
		if err := body.Close(); err != nil {
			s.Fatalf("Close after %d bytes: %v", i, err)
		}
	}
	if got, err := read(s.Context(), f, 5, 1000); err != nil || !bytes.Equal(got, b[5:1005]) {
		s.Errorf("afterwards: %d bytes, %v", len(got), err)
	}
}
