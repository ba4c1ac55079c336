package client

import (
	"context"
	"io"
	"time"

	"vmimport/tasks"
)

// Job is one file on its way to an image.
type Job struct {
	File io.ReaderAt
	Size int64
	To   Object
	// Request is what to register; Push fills in the Checksum. Its Location
	// must name To.
	Request Registration
	// Interval is as in WatchOptions.
	Interval time.Duration
}

// Observer is told how a Push goes on. Nil members are left out; calls never
// overlap.
type Observer struct {
	Uploading  func(Transfer)
	Uploaded   func(sha1 string)
	Registered func(tasks.ID)
	Changed    func(*Import) // each look at the import; the last one is final
	Trouble    func(error)   // a look failed; another follows
}

// Push uploads a file, asks for its import with the SHA-1 of what was sent, and
// watches until the import has ended, in whatever state. It returns the last
// that it saw, nil if it did not come to that, and an error if the end was not
// seen. When ctx ends the import, once registered, goes on without Push.
func (c *Client) Push(ctx context.Context, job Job, obs Observer) (*Import, error) {
	sum, err := c.Upload(ctx, job.To, job.File, job.Size, obs.Uploading)
	if err != nil {
		return nil, err
	}
	tell(obs.Uploaded, sum)
	job.Request.Checksum = sum
	id, err := c.Register(ctx, job.Request)
	if err != nil {
		return nil, err
	}
	tell(obs.Registered, id)
	return c.WaitFor(ctx, id, job.Interval, obs)
}

// WaitFor is the last part of Push: it watches an import until it has ended.
func (c *Client) WaitFor(ctx context.Context, id tasks.ID, interval time.Duration, obs Observer) (*Import, error) {
	return toEnd(c.Watch(ctx, id, WatchOptions{Interval: interval, Trouble: obs.Trouble}), obs.Changed)
}
