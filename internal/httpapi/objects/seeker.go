package objects

import (
	"context"
	"errors"
	"io"

	"vmimport/storage"
)

// seeker makes one version of an object look like a file, for
// http.ServeContent: a seek is free, and the first read after it opens a range
// up to the object's end.
type seeker struct {
	ctx    context.Context // of the one request it lives for
	object storage.Object
	at     int64
	body   io.ReadCloser // at offset at; nil after a seek
	err    error         // the first that is not io.EOF
}

func (s *seeker) Read(p []byte) (n int, err error) {
	if s.at >= s.object.Size() {
		return 0, io.EOF
	}
	if s.body == nil {
		s.body, s.err = s.object.ReadRange(s.ctx, s.at, s.object.Size()-s.at)
		if s.err != nil {
			return 0, s.err
		}
	}
	n, err = s.body.Read(p)
	s.at += int64(n)
	if err != nil && err != io.EOF {
		s.err = err
	}
	return n, err
}

func (s *seeker) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += s.at
	case io.SeekEnd:
		offset += s.object.Size()
	}
	if offset < 0 {
		return 0, errors.New("seek before the start")
	}
	if offset != s.at {
		s.Close()
		s.at = offset
	}
	return offset, nil
}

// Close lets go of the open range. The seeker can be used again.
func (s *seeker) Close() {
	if s.body != nil {
		_ = s.body.Close() // only read from
		s.body = nil
	}
}
