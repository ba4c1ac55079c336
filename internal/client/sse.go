package client

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"strconv"
	"strings"
	"time"
)

// maxFrame is far above what the service sends in one event.
const maxFrame = 1 << 20

var errFrameTooLong = errors.New("an event is too long")

// frame is a part of a stream up to an empty line, as WHATWG HTML, section 9.2, reads it.
type frame struct {
	event string
	data  []byte
	id    string // of the last event, this one included
}

// frameReader reads frames.
type frameReader struct {
	lines *bufio.Reader
	begun bool
	cr    bool          // the last line ended in a CR, to which a LF would belong
	id    string        // of the last whole frame that had one
	retry time.Duration // that the service asked for; 0: it did not
}

func newFrameReader(r io.Reader, id string) *frameReader {
	return &frameReader{lines: bufio.NewReaderSize(r, 4<<10), id: id}
}

// next returns the next frame; one without data says only that the stream is alive. What is cut
// short is dropped.
func (r *frameReader) next() (frame, error) {
	f, size := frame{id: r.id}, 0
	for {
		line, err := r.line()
		if err != nil {
			return frame{}, err
		}
		if size += len(line); size > maxFrame {
			return frame{}, errFrameTooLong
		}
		if len(line) == 0 {
			r.id = f.id
			f.data = bytes.TrimSuffix(f.data, []byte("\n"))
			return f, nil
		}
		r.field(&f, line)
	}
}

// field reads one line of a frame.
func (r *frameReader) field(f *frame, line []byte) {
	name, value, _ := bytes.Cut(line, []byte(":"))
	value = bytes.TrimPrefix(value, []byte(" "))
	switch string(name) {
	case "event":
		f.event = string(value)
	case "data":
		f.data = append(append(f.data, value...), '\n')
	case "id":
		if !bytes.ContainsRune(value, 0) {
			f.id = string(value)
		}
	case "retry":
		ms, err := strconv.ParseUint(string(value), 10, 31)
		if err == nil && !strings.HasPrefix(string(value), "+") {
			r.retry = time.Duration(ms) * time.Millisecond
		}
	}
}

// line returns a line without its end: a LF, a CR, or both.
func (r *frameReader) line() ([]byte, error) {
	var line []byte
	for {
		b, err := r.lines.ReadByte()
		if err != nil {
			return nil, err
		}
		after := r.cr
		r.cr = b == '\r'
		switch {
		case b == '\n' && after:
			continue // the rest of the end of the last line
		case b == '\n' || b == '\r':
			if !r.begun {
				r.begun = true
				line = bytes.TrimPrefix(line, []byte("\ufeff"))
			}
			return line, nil
		case len(line) == maxFrame:
			return nil, errFrameTooLong
		}
		line = append(line, b)
	}
}
