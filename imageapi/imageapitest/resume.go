package imageapitest

import "vmimport/imageapi"

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
