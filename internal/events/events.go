// Package events tells those who watch a tenant's tasks what happens to them, as it happens.
//
// A Stream is one cursor in the tenant's journal. It takes what follows from the tail that
// the tenant's feed keeps in memory, and what is older from the journal itself. Both are the
// same list in the same order, so that going from one to the other neither leaves a change
// out nor tells it twice. Nothing waits in a Stream: one that is not read stands still, and
// costs nothing more.
//
// There is one feed for each tenant that is watched, however many watch. It asks the journal
// once a second, and at once when the store hints at something. Progress is read from the
// records with the same rhythm; of progress a Stream tells the newest alone.
package events

import (
	"cmp"
	"context"
	"sync"
	"time"

	"vmimport/internal/fault"
	"vmimport/tasks"
)

const (
	pollEvery   = time.Second
	settle      = 20 * time.Millisecond // hints come in bursts
	followAgain = time.Second           // after a Follow that failed
)

// Origin is the mark of a Stream that began with an empty journal.
const Origin = "origin"

// Errors of streams.
var (
	ErrTooManyStreams = fault.New(fault.Exhausted, "too_many_streams", "Too many event streams are open.").Try("Close some of them, or try again later.")
	// ErrClosed is the failure of a Stream whose Hub was closed.
	ErrClosed = fault.New(fault.Unavailable, "streams_closed", "The service is about to stop.")
)

// Options bound a Hub. Zero members have the default.
type Options struct {
	PerTenant int // streams of a tenant at a time; 0: no bound
	Total     int // streams of all; 0: 5000
	// Trouble is told of each failure to read the journal in the background; streams only
	// stand still meanwhile. It must not block. nil: nobody is told.
	Trouble func(error)
}

// Hub hands out the Streams of a process. It is safe for concurrent use.
type Hub struct {
	journal tasks.Journal
	opts    Options
	ctx     context.Context // ends with Close
	stop    context.CancelFunc
	work    sync.WaitGroup
	follow  sync.Once

	mu    sync.Mutex
	feeds map[tasks.Tenant]*feed
	open  int
}

// New returns a Hub. Nothing runs until somebody subscribes.
func New(journal tasks.Journal, opts Options) *Hub {
	opts.Total = cmp.Or(opts.Total, 5000)
	if opts.Trouble == nil {
		opts.Trouble = func(error) {}
	}
	h := &Hub{journal: journal, opts: opts, feeds: map[tasks.Tenant]*feed{}}
	h.ctx, h.stop = context.WithCancel(context.Background())
	return h
}

// Close ends all streams, and returns when nothing of the Hub runs any more.
func (h *Hub) Close() {
	h.mu.Lock()
	h.stop()
	h.mu.Unlock()
	h.work.Wait()
}

// Open returns how many streams are open.
func (h *Hub) Open() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.open
}

// Filter selects what a Stream tells. Empty members select all.
type Filter struct {
	Region, Dialect, Project string
	Kind                     tasks.Kind
	ID                       tasks.ID
}

func (f Filter) selects(s subject) bool {
	fits := func(want, is string) bool { return want == "" || want == is }
	return fits(f.Region, s.region) && fits(f.Dialect, s.dialect) && fits(f.Project, s.project) &&
		fits(string(f.Kind), string(s.kind)) && fits(string(f.ID), string(s.id))
}

// subject is what a Filter looks at.
type subject struct {
	region, dialect, project string
	kind                     tasks.Kind
	id                       tasks.ID
}

// Subscribe opens a Stream of what follows the mark after, or with "" of what happens from
// now on. ErrTooManyStreams: the tenant, or the process, has as many as it may.
func (h *Hub) Subscribe(ctx context.Context, tenant tasks.Tenant, f Filter, after string) (*Stream, error) {
	feed, err := h.join(tenant)
	if err != nil {
		return nil, err
	}
	s := &Stream{hub: h, feed: feed, filter: f, mark: after}
	if after == Origin {
		s.mark = ""
	}
	if after == "" {
		if s.mark, err = h.journal.Latest(ctx, tenant); err != nil {
			s.Close()
			return nil, err
		}
	}
	return s, nil
}

// join counts a stream of the tenant, whose first one begins a feed.
func (h *Hub) join(tenant tasks.Tenant) (*feed, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.ctx.Err() != nil {
		return nil, ErrClosed
	}
	f := h.feeds[tenant]
	if h.open >= h.opts.Total || f != nil && h.opts.PerTenant > 0 && f.streams >= h.opts.PerTenant {
		return nil, ErrTooManyStreams
	}
	if f == nil {
		f = newFeed(h, tenant)
		h.feeds[tenant] = f
		h.work.Go(f.run)
		h.follow.Do(func() { h.work.Go(h.hear) })
	}
	f.streams++
	h.open++
	return f, nil
}

// leave undoes join. A feed ends with its last stream.
func (h *Hub) leave(f *feed) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.open--
	if f.streams--; f.streams == 0 {
		delete(h.feeds, f.tenant)
		f.stop()
	}
}

// hear wakes feeds when the store hints that their journal has grown.
func (h *Hub) hear() {
	for h.ctx.Err() == nil {
		err := h.journal.Follow(h.ctx, func(tenant tasks.Tenant) {
			h.mu.Lock()
			defer h.mu.Unlock()
			if f := h.feeds[tenant]; f != nil {
				f.wake()
			}
		})
		if err != nil && h.ctx.Err() == nil {
			h.opts.Trouble(err)
		}
		select {
		case <-h.ctx.Done():
		case <-time.After(followAgain):
		}
	}
}
