package storage

import (
	"context"
	"sync"
)

// Pool is the buffer memory of one worker, shared by all its imports. It is
// safe for concurrent use.
//
// A buffer is allocated when it is first needed and then kept for reuse, so a
// worker never holds more than the pool's total and, once warm, its data path
// allocates nothing. Fetch takes buffers in the order of the object's chunks;
// that is why any number of them can share a pool of any size without
// deadlock. Other users must keep to the same rule: whoever holds a buffer can
// finish with it without getting another. Of a pool that is not tiny a
// Fetch takes no more than half, so that an import which is stuck leaves enough
// to the others.
type Pool struct {
	chunk  int64
	tokens chan struct{} // one for each buffer that may be taken

	mu   sync.Mutex
	free [][]byte
}

// NewPool returns a pool of total bytes in buffers of chunk bytes each. It has
// at least one buffer, even if total is less than chunk.
func NewPool(total, chunk int64) *Pool {
	n := max(1, total/chunk)
	p := &Pool{chunk: chunk, tokens: make(chan struct{}, n)}
	for range n {
		p.tokens <- struct{}{}
	}
	return p
}

// most is how many requests a Fetch may have in flight: those that it begins
// with, and more as long as its buffers are no more than half of the pool.
func (p *Pool) most() int { return max(firstWindow, cap(p.tokens)/2-spare) }

// ChunkSize is the length of each buffer in bytes.
func (p *Pool) ChunkSize() int64 { return p.chunk }

// InUse is the number of buffers that were taken and not given back.
func (p *Pool) InUse() int { return cap(p.tokens) - len(p.tokens) }

// Get returns a buffer of ChunkSize bytes, whose contents are left over from
// earlier use. If all are taken it waits; who waits longest is served first.
// It fails only with the cause of ctx.
func (p *Pool) Get(ctx context.Context) ([]byte, error) {
	// The runtime queues the goroutines that wait on a channel, and a send
	// goes to the first of them: newcomers cannot overtake.
	select {
	case <-p.tokens:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if last := len(p.free) - 1; last >= 0 {
		buf := p.free[last]
		p.free = p.free[:last]
		return buf, nil
	}
	return make([]byte, p.chunk), nil
}

// Put gives back a buffer that Get returned. The caller must not touch it again.
func (p *Pool) Put(buf []byte) {
	p.mu.Lock()
	p.free = append(p.free, buf[:p.chunk])
	p.mu.Unlock()
	select {
	case p.tokens <- struct{}{}:
	default:
		panic("storage: Pool.Put without Get")
	}
}
