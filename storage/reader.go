package storage

import (
	"context"
	"io"
)

// NewReaderAt returns obj as an io.ReaderAt, for reading small parts of it during
// one call that ctx lives for. It reads as Fetch does: a request that fails or
// stalls is made again for the bytes that are missing, with the same errors in the
// end. Of opt only StallAfter, Attempts, Backoff, Stats and Throttle count. What it reads is taken from
// Throttle and waited for by others: who needs it may hold buffers. It is safe for concurrent use.
func NewReaderAt(ctx context.Context, obj Object, opt Options) io.ReaderAt {
	return &readerAt{ctx, &fetcher{obj: obj, opt: opt.withDefaults()}}
}

type readerAt struct {
	ctx context.Context
	f   *fetcher
}

// ReadAt implements io.ReaderAt.
func (r *readerAt) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off >= r.f.obj.Size() {
		return 0, io.EOF
	}
	n := min(int64(len(p)), r.f.obj.Size()-off)
	if n == 0 {
		return 0, nil
	}
	r.f.opt.Throttle.Take(n)
	if err := r.f.fill(r.ctx, &chunk{off: off, data: p[:n]}); err != nil {
		return 0, err
	}
	if n < int64(len(p)) {
		return int(n), io.EOF
	}
	return int(n), nil
}
