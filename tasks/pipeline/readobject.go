package pipeline

import (
	"context"
	"errors"
	"fmt"
	"io"

	"vmimport/internal/fault"
	"vmimport/storage"
	"vmimport/tasks"
)

// ReadObject implements tasks.Preflight. It does not try again: its caller waits
// for an answer, and can ask again by itself.
func (p *Preflight) ReadObject(ctx context.Context, region string, o tasks.Object, limit int64) ([]byte, error) {
	r, ok := p.regions[region]
	if !ok {
		return nil, fmt.Errorf("region %s is not configured", region)
	}
	obj, err := r.Objects.Open(ctx, storage.Location(o))
	if err != nil {
		return nil, err
	}
	size := obj.Size()
	switch {
	case size > limit:
		return nil, tasks.ErrObjectTooLarge.Saw("%d bytes, at most %d are allowed", size, limit)
	case size == 0: // no range of it can be read
		return nil, nil
	}
	body, err := obj.ReadRange(ctx, 0, size)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	content := make([]byte, size)
	if _, err := io.ReadFull(body, content); err != nil {
		return nil, unread(err)
	}
	return content, nil
}

// unread gives a body's failure a kind. One that was cut short may come whole
// another time.
func unread(err error) error {
	cut := errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
	if cut && fault.KindOf(err) == fault.Internal {
		return storage.ErrUnavailable.Because(err)
	}
	return fmt.Errorf("read object: %w", err)
}
