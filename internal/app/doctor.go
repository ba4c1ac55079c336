package app

import (
	"context"
	"fmt"
	"time"

	"vmimport/internal/config"
)

// Finding is one thing that Diagnose looked at.
type Finding struct {
	Check   string `json:"check"`
	OK      bool   `json:"ok"`
	Message string `json:"message,omitempty"` // what was found
	Remedy  string `json:"remedy,omitempty"`  // if not OK
}

// diagnoseTimeout bounds each check.
const diagnoseTimeout = 10 * time.Second

// maxSkew is how far clocks may be apart before claims are misjudged.
const maxSkew = 2 * time.Second

// checker is what stores and image services do for Diagnose: look whether they
// could be used, and change nothing that lasts.
type checker interface {
	Check(ctx context.Context) error
}

// Diagnose checks everything that cfg makes the service depend on.
func Diagnose(ctx context.Context, cfg *config.Config) []Finding {
	p, err := open(cfg)
	if err != nil {
		return []Finding{{Check: "configuration", Message: err.Error(), Remedy: "Correct the configuration."}}
	}
	defer p.Close()
	findings := []Finding{{Check: "configuration", OK: true}}
	look := func(check, remedy string, do func(ctx context.Context) (string, error)) bool {
		ctx, cancel := context.WithTimeout(ctx, diagnoseTimeout)
		defer cancel()
		message, err := do(ctx)
		f := Finding{Check: check, OK: err == nil, Message: message}
		if err != nil {
			f.Message, f.Remedy = err.Error(), remedy
		}
		findings = append(findings, f)
		return err == nil
	}
	if look("redis", "Start Redis, or correct redis.url.", p.diagnoseRedis) {
		look("redis durability", "Set Redis as said, or set redis.require_durable to false and live with the loss.", p.diagnoseDurability)
		look("clock", "Synchronise the clocks of this machine and of Redis's.", p.diagnoseClock)
	}
	for _, rc := range cfg.Regions {
		region := p.regions[rc.ID]
		for _, part := range []struct {
			name string
			c    any
		}{{"objects", region.Objects}, {"images", region.Images}} {
			if c, ok := part.c.(checker); ok {
				look(fmt.Sprintf("region %s: %s", rc.ID, part.name), "Correct the region's "+part.name+", or start what it names.",
					func(ctx context.Context) (string, error) { return "", c.Check(ctx) })
			}
		}
	}
	return findings
}

func (p *parts) diagnoseRedis(ctx context.Context) (string, error) {
	return "", p.rdb.Ping(ctx).Err()
}

func (p *parts) diagnoseDurability(ctx context.Context) (string, error) {
	problems, err := p.store.Durability(ctx)
	if err == nil && len(problems) > 0 {
		err = fmt.Errorf("%v", problems)
	}
	return "", err
}

func (p *parts) diagnoseClock(ctx context.Context) (string, error) {
	before := time.Now()
	there, err := p.rdb.Time(ctx).Result()
	if err != nil {
		return "", err
	}
	// The answer was made at some time between asking and now.
	half := time.Since(before) / 2
	skew := there.Sub(before.Add(half)).Abs()
	if skew-half > maxSkew {
		return "", fmt.Errorf("this machine's clock and that of Redis differ by %s", skew.Round(time.Millisecond))
	}
	return "differs by " + skew.Round(time.Millisecond).String(), nil
}
