package glance

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"
)

// Sizes of a body's buffer.
const (
	// bufferBytes is what may wait between the worker and Glance.
	bufferBytes = 4 << 20
	// reserveBytes is what is kept back for when the source falls silent.
	reserveBytes = 1 << 20
	// trickleBytes is what is given of the reserve, once in each Options.KeepAlive. So
	// the reserve lasts for half an hour.
	trickleBytes = 1 << 10
)

// body is the body of an upload, between one goroutine that writes it and the HTTP
// client that reads it.
//
// A front end of Glance cuts off a body that falls silent for some seconds, and all
// of it would have to be sent again. So some of it is kept back while it comes, and
// given away in small pieces when nothing comes. The last byte is given when the end
// is known, and not before: Glance takes an image for whole when it has as many bytes
// as were announced.
type body struct {
	keepAlive time.Duration

	mu     sync.Mutex
	ring   []byte
	start  int   // of what waits, in ring
	length int   // of what waits
	whole  bool  // nothing more will come, and all may be given
	err    error // why the body was given up

	changed chan struct{} // closed and replaced whenever one of those has changed
}

func newBody(keepAlive time.Duration) *body {
	return &body{keepAlive: keepAlive, ring: make([]byte, bufferBytes), changed: make(chan struct{})}
}

// signal wakes whoever waits. b.mu is held.
func (b *body) signal() {
	close(b.changed)
	b.changed = make(chan struct{})
}

var errNoBody = errors.New("the upload has ended")

// write waits until p has room, and returns when it was taken or the body was given up.
func (b *body) write(ctx context.Context, p []byte) error {
	for len(p) > 0 {
		b.mu.Lock()
		n, err, changed := b.put(p), b.err, b.changed
		b.mu.Unlock()
		if err != nil {
			return err
		}
		if p = p[n:]; n > 0 {
			continue
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// put stores as much of p as fits.
func (b *body) put(p []byte) int {
	if b.err != nil {
		return 0
	}
	total := 0
	for len(p) > 0 && b.length < len(b.ring) {
		end := (b.start + b.length) % len(b.ring)
		n := copy(b.ring[end:min(len(b.ring), end+len(b.ring)-b.length)], p)
		b.length += n
		total += n
		p = p[n:]
	}
	if total > 0 {
		b.signal()
	}
	return total
}

// take moves up to n bytes into p.
func (b *body) take(p []byte, n int) int {
	total := 0
	for n = min(n, len(p)); total < n; {
		k := copy(p[total:n], b.ring[b.start:min(len(b.ring), b.start+b.length)])
		b.start = (b.start + k) % len(b.ring)
		b.length -= k
		total += k
	}
	if total > 0 {
		b.signal()
	}
	return total
}

// end says that nothing more will come.
func (b *body) end() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.whole = true
	b.signal()
}

// sent reports whether the reader was given all, and that it was all.
func (b *body) sent() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.whole && b.length == 0
}

// giveUp makes all that is under way, and all that follows, fail with err.
func (b *body) giveUp(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err == nil {
		b.err = err
		b.signal()
	}
}

// Read implements io.Reader for the HTTP client.
func (b *body) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	silence := time.NewTimer(b.keepAlive)
	defer silence.Stop()
	quiet := false
	for {
		b.mu.Lock()
		n, err := b.give(p, quiet)
		changed := b.changed
		b.mu.Unlock()
		if n > 0 || err != nil {
			return n, err
		}
		select {
		case <-changed:
		case <-silence.C:
			quiet = true
		}
	}
}

// give moves to p what may be given now.
func (b *body) give(p []byte, quiet bool) (int, error) {
	switch {
	case b.err != nil:
		return 0, b.err
	case b.whole && b.length == 0:
		return 0, io.EOF
	case b.whole:
		return b.take(p, b.length), nil
	case b.length > reserveBytes:
		return b.take(p, b.length-reserveBytes), nil
	case quiet && b.length > 1:
		return b.take(p, min(trickleBytes, b.length-1)), nil
	}
	return 0, nil
}

// Close implements io.Closer for the HTTP client, which has read all that it wants.
func (b *body) Close() error {
	b.giveUp(errNoBody)
	return nil
}
