package storagetest

import (
	"bytes"
	"context"
	"io"
	"strconv"
	"sync"
	"testing/iotest"

	"vmimport/storage"
)

// Memory is a Store whose objects lie in memory. It is safe for concurrent use.
type Memory struct {
	mu      sync.Mutex
	objects map[storage.Location]*memoryObject
	version int
}

// NewMemory returns an empty store.
func NewMemory() *Memory {
	return &Memory{objects: make(map[storage.Location]*memoryObject)}
}

// Put stores content under loc. If there was an object, this replaces it, and
// whoever still reads it gets storage.ErrChanged.
func (m *Memory) Put(loc storage.Location, content []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.version++
	m.objects[loc] = &memoryObject{
		store: m, loc: loc, content: bytes.Clone(content), version: strconv.Itoa(m.version),
	}
}

// Remove deletes the object under loc, if there is one.
func (m *Memory) Remove(loc storage.Location) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.objects, loc)
}

// Open implements storage.Store.
func (m *Memory) Open(ctx context.Context, loc storage.Location) (storage.Object, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if o, ok := m.objects[loc]; ok {
		return o, nil
	}
	return nil, storage.ErrNoObject
}

// Object returns an object with the given content, which nobody replaces.
func Object(content []byte) storage.Object {
	m := NewMemory()
	m.Put(storage.Location{}, content)
	return m.objects[storage.Location{}]
}

type memoryObject struct {
	store   *Memory
	loc     storage.Location
	content []byte
	version string
}

func (o *memoryObject) Size() int64     { return int64(len(o.content)) }
func (o *memoryObject) Version() string { return o.version }

func (o *memoryObject) ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	if err := o.check(ctx); err != nil {
		return nil, err
	}
	return io.NopCloser(&memoryBody{ctx, o, o.content[off : off+n]}), nil
}

// check fails if the object is no longer the one in the store.
func (o *memoryObject) check(ctx context.Context) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	o.store.mu.Lock()
	defer o.store.mu.Unlock()
	if o.store.objects[o.loc] != o {
		return storage.ErrChanged
	}
	return nil
}

type memoryBody struct {
	ctx  context.Context
	obj  *memoryObject
	rest []byte
}

func (b *memoryBody) Read(p []byte) (int, error) {
	if len(b.rest) == 0 {
		return 0, io.EOF
	}
	if err := b.obj.check(b.ctx); err != nil {
		return 0, err
	}
	n := copy(p, b.rest)
	b.rest = b.rest[n:]
	return n, nil
}

// Fault is a way in which a range request goes wrong.
type Fault int

// The faults. Those of the body strike when the byte named
// is due; what comes before it is right.
const (
	FailOpen  Fault = iota // ReadRange fails
	StallOpen              // ReadRange blocks until its context ends
	FailBody               // the body fails
	StallBody              // the body blocks until its context ends
	CutBody                // the body ends, as if complete
	LongBody               // the body goes on past its end
)

// Break returns an object that behaves as obj does, but the first requests, so
// many times, for a range with the byte at go wrong; a negative number is for
// ever. err is what FailOpen and FailBody fail with. Break may be nested, LongBody innermost: bytes after a cut would be
// another object's.
func Break(obj storage.Object, how Fault, at int64, times int, err error) storage.Object {
	return &broken{Object: obj, how: how, at: at, times: times, err: err}
}

type broken struct {
	storage.Object
	how Fault
	at  int64
	err error

	mu    sync.Mutex
	times int // left
}

func (b *broken) ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	if b.at < off || b.at >= off+n || !b.strikes() {
		return b.Object.ReadRange(ctx, off, n)
	}
	switch b.how {
	case FailOpen:
		return nil, b.err
	case StallOpen:
		<-ctx.Done()
		return nil, context.Cause(ctx)
	}
	body, err := b.Object.ReadRange(ctx, off, n)
	if err != nil {
		return nil, err
	}
	good := io.LimitReader(body, b.at-off)
	return struct {
		io.Reader
		io.Closer
	}{io.MultiReader(good, b.spoil(ctx, body)), body}, nil
}

// spoil returns what comes instead of the rest of body.
func (b *broken) spoil(ctx context.Context, body io.Reader) io.Reader {
	switch b.how {
	case FailBody:
		return iotest.ErrReader(b.err)
	case StallBody:
		return stalled{ctx}
	case LongBody:
		return io.MultiReader(body, bytes.NewReader([]byte("more")))
	default: // CutBody
		return bytes.NewReader(nil)
	}
}

// strikes uses up one of the times.
func (b *broken) strikes() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.times == 0 {
		return false
	}
	b.times--
	return true
}

type stalled struct{ ctx context.Context }

func (s stalled) Read([]byte) (int, error) {
	<-s.ctx.Done()
	return 0, context.Cause(s.ctx)
}
