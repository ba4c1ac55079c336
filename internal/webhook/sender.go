package webhook

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"vmimport/tasks"
)

// Outcome is what came of one delivery.
type Outcome string

// The outcomes.
const (
	Delivered Outcome = "delivered"
	Failed    Outcome = "failed"   // and will be tried again
	GivenUp   Outcome = "given_up" // and will not
)

// Observer is told what happens, for metrics. Its methods must not block.
type Observer interface {
	// Tried is called after every delivery.
	Tried(receiver string, outcome Outcome)
	// Lagging tells since when the oldest event waits that the receiver has not got; zero: none
	// does, or another process sends to it.
	Lagging(receiver string, since time.Time)
}

// Options set up a Sender.
type Options struct {
	// Who names this process, as no other is named.
	Who     string
	Observe Observer
	Log     zerolog.Logger
}

// Sender sends events to receivers. Of several with the same receivers, in as many
// processes, one sends to each receiver at a time.
type Sender struct {
	journal  tasks.Journal
	couriers []*courier
	log      zerolog.Logger
}

// timing is when what is done.
type timing struct {
	leadFor   time.Duration // how long the lead lasts by itself
	renew     time.Duration // time between renewals of the lead, and tries to get it
	look      time.Duration // time between looks at all tenants, for hints that were lost
	deliver   time.Duration // the most that one delivery takes
	firstWait time.Duration // the least before a failed delivery is made again
	lastWait  time.Duration // the most
	giveUp    time.Duration // how long an event is tried
	storeWait time.Duration // the pause after an error of the store
}

var usual = timing{
	leadFor: 6 * time.Second, renew: 2 * time.Second, look: 30 * time.Second,
	deliver: 10 * time.Second, firstWait: time.Second, lastWait: 10 * time.Minute, giveUp: 24 * time.Hour,
	storeWait: 5 * time.Second,
}

// New returns a Sender. It contacts nobody.
func New(journal tasks.Journal, outbox tasks.Outbox, receivers []Receiver, o Options) (*Sender, error) {
	s := &Sender{journal: journal, log: o.Log}
	for _, r := range receivers {
		e, err := newEndpoint(&r)
		if err != nil {
			return nil, fmt.Errorf("webhook %s: %w", r.ID, err)
		}
		s.couriers = append(s.couriers, &courier{
			Receiver: r, endpoint: e, journal: journal, outbox: outbox, who: o.Who, observe: o.Observe,
			log: o.Log.With().Str("receiver", r.ID).Logger(), timing: usual,
			hinted: map[tasks.Tenant]bool{}, wake: make(chan struct{}, 1),
		})
	}
	return s, nil
}

// Run sends until ctx ends. Deliveries under way are broken off, and made again by whoever
// comes next.
func (s *Sender) Run(ctx context.Context) error {
	var all sync.WaitGroup
	for _, c := range s.couriers {
		all.Go(func() { c.run(ctx) })
	}
	if len(s.couriers) > 0 {
		all.Go(func() { s.follow(ctx) })
	}
	all.Wait()
	return nil
}

// follow hands on hints. While it is deaf, couriers look by themselves.
func (s *Sender) follow(ctx context.Context) {
	for ctx.Err() == nil {
		err := s.journal.Follow(ctx, func(t tasks.Tenant) {
			for _, c := range s.couriers {
				c.hint(t)
			}
		})
		if ctx.Err() == nil {
			s.log.Warn().Err(err).Msg("webhooks lost the hints of the journal")
			pause(ctx, usual.storeWait)
		}
	}
}

// pause waits, but not beyond the end of ctx.
func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}
