package imageapitest

import (
	"errors"
	"math/rand/v2"

	"vmimport/imageapi"
)

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
