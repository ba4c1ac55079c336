package servers_test

import (
	"fmt"
	"testing"
	"time"

	"vmimport/internal/servers"
	"vmimport/internal/servers/serverstest"
)

func TestImageLimit(t *testing.T) {
	t.Parallel()
	recent := func(b *bench, n int) {
		stopped(b)
		for i := range n {
			id := fmt.Sprint("recent", i)
			b.AddImage(serverstest.Image{ID: id, Status: "active", Created: time.Now().Add(-time.Duration(10*(i+1)) * time.Minute),
				Properties: map[string]string{"vmimport_server": "another", "vmimport_image": id}})
		}
	}
	for name, tt := range map[string]struct {
		prepare func(*bench)
		waits   time.Duration
	}{
		"three": {func(b *bench) { recent(b, 3) }, 0},
		"four":  {func(b *bench) { recent(b, 4) }, 20 * time.Minute},
		"five":  {func(b *bench) { recent(b, 5) }, 20 * time.Minute},
		"four, of which others have made one": {func(b *bench) {
			recent(b, 4)
			b.AddImage(serverstest.Image{ID: "recent1", Status: "active", Created: time.Now(), Properties: map[string]string{"vmimport_server": "another", "vmimport_image": "x"}})
		}, 0},
		"told by the cloud": {func(b *bench) { stopped(b); b.Reply(upload, 1, 429, serverstest.AdminPass, "Retry-After", "1800") }, 30 * time.Minute},
		"told by a date": {func(b *bench) {
			stopped(b)
			b.Reply(upload, 1, 413, "", "Retry-After", time.Now().Add(30*time.Minute).UTC().Format("Mon, 02 Jan 2006 15:04:05 GMT"))
		}, 30 * time.Minute},
		"told without a time": {func(b *bench) { stopped(b); b.Reply(upload, 1, 429, "") }, time.Minute},
		"made by others": {func(b *bench) {
			stopped(b)
			b.Limit = 1
			b.AddImage(serverstest.Image{ID: "recent0", Status: "active", Created: time.Now().Add(-15 * time.Minute)})
		}, 45 * time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			inTime(t, func(b *bench) {
				tt.prepare(b)
				began := time.Now()
				if tt.waits > 0 {
					_, err := b.c.Image(b.ctx, server, servers.ImageOptions{NoWait: true}, b.report)
					b.wants(err, servers.ErrImageLimit, "--no-wait")
					tt.prepare(b)
				}
				b.image(servers.ImageOptions{})
				took := time.Since(began)
				if over := took - tt.waits; over < b.SavingFor || over > b.SavingFor+2*servers.LastWait {
					t.Errorf("took %v", took)
				}
				for _, s := range b.states {
					if s.Phase == servers.Waiting && s.Until.Sub(began.Add(tt.waits)).Abs() > 5*time.Second {
						t.Errorf("waits until %v", s.Until.Sub(began))
					}
				}
			})
		})
	}
}

// Whoever waits for an hour may find another server than the one that was there.
func TestServerIsStartedMeanwhile(t *testing.T) {
	t.Parallel()
	inTime(t, func(b *bench) {
		stopped(b)
		b.Reply(upload, 1, 429, "", "Retry-After", "600")
		time.AfterFunc(time.Minute, func() { b.AddServer(serverstest.Server{ID: server, Name: "web01", Volumes: []string{volume}}) })
		_, err := b.c.Image(b.ctx, server, servers.ImageOptions{}, b.report)
		b.wants(err, servers.ErrRunning)
		b.wantCalls(upload, 1)
	})
}
