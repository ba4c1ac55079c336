package imageapitest

import (
	"bytes"
	"context"
	"errors"

	"vmimport/imageapi"
)

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
