package storagetest

import (
	"context"
	"io"
	"math/rand/v2"
	"sync"
	"time"

	"vmimport/storage"
)

// pattern is what paced objects repeat. Its length is a prime, so that no two
// chunks or blocks of an object start alike.
var pattern = sync.OnceValue(func() []byte {
	p := make([]byte, 1<<20+7)
	_, _ = rand.NewChaCha8([32]byte{}).Read(p) // never fails
	return p
})

// pieceBytes is the most that a paced body gives at once: small against a
// chunk, so that bytes come evenly, and large against the cost of a timer.
const pieceBytes = 256 << 10

// Paced returns an object of size bytes that is as far away as one likes: each
// request waits for latency, and each body then gives bytesPerSecond, 0 for no
// limit. Its bytes look random, are always the same, and cost little more than
// a copy.
func Paced(size int64, latency time.Duration, bytesPerSecond int64) storage.Object {
	return &paced{size, latency, bytesPerSecond}
}

type paced struct {
	size    int64
	latency time.Duration
	rate    int64
}

func (o *paced) Size() int64     { return o.size }
func (o *paced) Version() string { return "paced" }

func (o *paced) ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	if err := sleep(ctx, o.latency); err != nil {
		return nil, err
	}
	return &pacedBody{ctx: ctx, obj: o, off: off, rest: n, began: time.Now()}, nil
}

type pacedBody struct {
	ctx       context.Context
	obj       *paced
	off, rest int64
	given     int64
	began     time.Time
}

func (b *pacedBody) Read(p []byte) (int, error) {
	if b.rest == 0 {
		return 0, io.EOF
	}
	p = p[:min(int64(len(p)), b.rest, pieceBytes)]
	if b.obj.rate > 0 {
		due := time.Duration(float64(b.given+int64(len(p))) / float64(b.obj.rate) * float64(time.Second))
		if err := sleep(b.ctx, due-time.Since(b.began)); err != nil {
			return 0, err
		}
	} else if b.ctx.Err() != nil {
		return 0, context.Cause(b.ctx)
	}
	for into, off := p, b.off; len(into) > 0; {
		n := copy(into, pattern()[off%int64(len(pattern())):])
		into, off = into[n:], off+int64(n)
	}
	n := int64(len(p))
	b.off, b.rest, b.given = b.off+n, b.rest-n, b.given+n
	return len(p), nil
}

func (b *pacedBody) Close() error { return nil }

// sleep waits for d, or fails with the cause of ctx.
func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return context.Cause(ctx)
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
