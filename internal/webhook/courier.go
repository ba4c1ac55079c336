package webhook

import (
	"context"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"vmimport/tasks"
)

// courier sends to one receiver. What each does is no concern of the others, so that a
// receiver that hangs holds up nobody else.
type courier struct {
	Receiver
	endpoint *endpoint
	journal  tasks.Journal
	outbox   tasks.Outbox
	who      string
	observe  Observer
	log      zerolog.Logger
	timing   timing

	mu     sync.Mutex
	hinted map[tasks.Tenant]bool // since the last time that somebody looked
	leads  bool
	wake   chan struct{}
}

// parallel is how many tenants' events are sent to a receiver at a time.
const parallel = 4

// hint tells that there may be something to send. It does not block.
func (c *courier) hint(t tasks.Tenant) {
	if !c.wantsOf(t) {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.leads { // so that nobody would take the hints
		return
	}
	c.hinted[t] = true
	select {
	case c.wake <- struct{}{}:
	default: // it wakes up already
	}
}

// hints returns and forgets what was hinted at.
func (c *courier) hints() []tasks.Tenant {
	c.mu.Lock()
	defer c.mu.Unlock()
	tenants := make([]tasks.Tenant, 0, len(c.hinted))
	for t := range c.hinted {
		tenants = append(tenants, t)
	}
	clear(c.hinted)
	return tenants
}

// listen says whether hints are of use.
func (c *courier) listen(leads bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.leads = leads
	clear(c.hinted)
}

// run waits for the lead and sends while it has it, until ctx ends.
func (c *courier) run(ctx context.Context) {
	for ctx.Err() == nil {
		began := time.Now()
		if leads, err := c.lead(ctx); leads {
			c.whileLeading(ctx, began)
		} else if err != nil && ctx.Err() == nil {
			c.log.Warn().Err(err).Msg("webhooks do not reach the store")
		}
		pause(ctx, c.timing.renew)
	}
}

// lead takes or renews the lead.
func (c *courier) lead(ctx context.Context) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, c.timing.leadFor/2)
	defer cancel()
	return c.outbox.LeadReceiver(ctx, c.ID, c.who, c.timing.leadFor)
}

// whileLeading sends until ctx ends or the lead, which was asked for at a time, is lost, and
// gives the lead back.
func (c *courier) whileLeading(parent context.Context, asked time.Time) {
	ctx, cancel := context.WithCancel(parent)
	var keeper sync.WaitGroup
	keeper.Go(func() {
		defer cancel()
		c.keepLead(ctx, asked)
	})
	c.log.Info().Msg("webhooks are sent by this process")
	c.listen(true)
	c.send(ctx)
	c.listen(false)
	cancel()
	keeper.Wait()
	c.observe.Lagging(c.ID, time.Time{})
	ctx, cancel = context.WithTimeout(context.WithoutCancel(parent), time.Second)
	defer cancel()
	if err := c.outbox.ResignReceiver(ctx, c.ID, c.who); err != nil {
		// Another takes the lead when it runs out.
		c.log.Warn().Err(err).Msg("webhooks did not give back the lead")
	}
}

// keepLead renews the lead, which was asked for at a time, until it is lost or ctx ends. It counts
// from before the store did, and waits for no answer beyond the end: who sends after that may
// send what another has already sent, and out of order.
func (c *courier) keepLead(ctx context.Context, asked time.Time) {
	for end := asked.Add(c.timing.leadFor); time.Now().Before(end); {
		pause(ctx, min(c.timing.renew, time.Until(end)))
		asked = time.Now()
		inTime, cancel := context.WithDeadline(ctx, end)
		leads, err := c.lead(inTime)
		cancel()
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			c.log.Warn().Err(err).Msg("webhooks did not renew the lead")
		case !leads:
			c.log.Warn().Msg("webhooks are sent by another process")
			return
		default:
			end = asked.Add(c.timing.leadFor)
		}
	}
}

// send visits tenants that have something for the receiver, a few at a time, until ctx ends.
func (c *courier) send(ctx context.Context) {
	var visits sync.WaitGroup
	defer visits.Wait()
	ended := make(chan outcome)
	start := func(t tasks.Tenant) {
		visits.Go(func() {
			o := c.visit(ctx, t)
			select {
			case ended <- o:
			case <-ctx.Done():
			}
		})
	}
	look := time.NewTicker(c.timing.look)
	defer look.Stop()
	next := time.NewTimer(0)
	defer next.Stop()
	b := newBoard()
	c.look(ctx, b)
	for {
		for now := time.Now(); b.busy < parallel; {
			t, ok := b.take(now)
			if !ok {
				break
			}
			start(t)
		}
		c.observe.Lagging(c.ID, b.oldest())
		if _, e := b.first(); e != nil && b.busy < parallel {
			next.Reset(time.Until(e.due))
		}
		select {
		case <-ctx.Done():
			return
		case o := <-ended:
			b.done(o, time.Now())
		case <-c.wake:
			for _, t := range c.hints() {
				b.add(t, time.Now())
			}
		case <-look.C:
			c.look(ctx, b)
		case <-next.C:
		}
	}
}

// look finds what nobody hinted at.
func (c *courier) look(ctx context.Context, b *board) {
	tenants, err := c.outbox.Behind(ctx, c.ID)
	if err != nil {
		if ctx.Err() == nil {
			c.log.Warn().Err(err).Msg("webhooks do not know who has events")
		}
		return
	}
	now := time.Now()
	for _, t := range tenants {
		if c.wantsOf(t) {
			b.add(t, now)
		}
	}
}
