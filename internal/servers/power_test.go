package servers_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"vmimport/internal/servers"
	"vmimport/internal/servers/serverstest"
)

const show = "GET /compute/.*/servers/[^/]*$"

func TestStopAndStart(t *testing.T) {
	t.Parallel()
	inTime(t, func(b *bench) {
		began := time.Now()
		s, err := b.c.Stop(b.ctx, server, b.report)
		b.wants(err, nil)
		if !s.Stopped() || s.Name != "web01" {
			t.Errorf("got %+v", s)
		}
		b.secretless(s)
		if took := time.Since(began); took < b.PowerTakes || took > b.PowerTakes+servers.LastWait {
			t.Errorf("took %v", took)
		}
		var seen []string
		for _, s := range b.states {
			seen = append(seen, string(s.Phase)+" "+s.Status+" "+s.Task)
		}
		if got := strings.Join(seen, ","); !strings.HasPrefix(got, "stopping ACTIVE ,stopping ACTIVE powering-off,") || !strings.HasSuffix(got, ",stopping SHUTOFF ") {
			t.Errorf("got %s", got)
		}
		s, err = b.c.Start(b.ctx, server, b.report)
		b.wants(err, nil)
		if s.Status != servers.Active {
			t.Errorf("got %+v", s)
		}
		b.wantCalls(action, 2)
	})
}

func TestStopTwice(t *testing.T) {
	t.Parallel()
	stopped := serverstest.Server{ID: server, Name: "web01", Status: "SHUTOFF"}
	for name, tt := range map[string]struct {
		prepare func(*bench)
		actions int
	}{
		"it is stopped":       {func(b *bench) { b.AddServer(stopped) }, 0},
		"it is being stopped": {func(b *bench) { b.wants(ended(b, "stop", time.Second), context.DeadlineExceeded) }, 1},
		"it stops just now":   {func(b *bench) { b.On(action, 1, func() { b.AddServer(stopped) }) }, 1},
	} {
		t.Run(name, func(t *testing.T) {
			inTime(t, func(b *bench) {
				tt.prepare(b)
				s, err := b.c.Stop(b.ctx, server, b.report)
				b.wants(err, nil)
				if s == nil || !s.Stopped() {
					t.Errorf("got %+v", s)
				}
				b.wantCalls(action, tt.actions)
			})
		})
	}
}

// ended starts something and leaves it after a while.
func ended(b *bench, what string, after time.Duration) error {
	ctx, cancel := context.WithTimeout(b.ctx, after)
	defer cancel()
	var err error
	switch what {
	case "stop":
		_, err = b.c.Stop(ctx, server, b.report)
	case "image":
		_, err = b.c.Image(ctx, server, servers.ImageOptions{}, b.report)
	}
	return err
}

func TestStopFails(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		prepare func(*bench)
		want    error
		says    []string
		within  time.Duration
	}{
		"locked": {func(b *bench) { b.AddServer(serverstest.Server{ID: server, Locked: true}) }, servers.ErrServerLocked, []string{"is locked", "Unlock it"}, 0},
		"busy": {func(b *bench) { b.AddServer(serverstest.Server{ID: server, Task: "image_uploading"}) }, servers.ErrServerBusy,
			[]string{`"image_uploading"`, "Wait until"}, 0},
		"paused":  {func(b *bench) { b.AddServer(serverstest.Server{ID: server, Status: "PAUSED"}) }, servers.ErrServerState, []string{`"PAUSED"`, "vm_state paused"}, 0},
		"unknown": {func(b *bench) { b.AddServer(serverstest.Server{ID: server, Project: "p9"}) }, servers.ErrServerUnknown, nil, 0},
		"gone meanwhile": {func(b *bench) {
			b.On(action, 1, func() { b.AddServer(serverstest.Server{ID: server, Project: "p9"}) })
		}, servers.ErrServerUnknown, nil, time.Minute},
		"error": {func(b *bench) { b.AddServer(serverstest.Server{ID: server, Status: "ERROR"}) }, servers.ErrServerError, nil, 0},
		"error meanwhile": {func(b *bench) {
			b.On(show, 3, func() {})
			b.On(show, 1, func() { b.AddServer(serverstest.Server{ID: server, Status: "ERROR"}) })
		}, servers.ErrServerError, nil, time.Minute},
		"lost after 202": {func(b *bench) { b.AddServer(serverstest.Server{ID: server, Stuck: true}) }, servers.ErrPowerLost,
			[]string{"ACTIVE and at rest"}, 3 * time.Minute},
		"very slow":      {func(b *bench) { b.PowerTakes = time.Hour }, servers.ErrPowerTimeout, []string{"within 15m0s", "go on waiting"}, 15 * time.Minute},
		"down for good":  {func(b *bench) { b.Reply(show, 1000, 503, serverstest.AdminPass) }, servers.ErrPowerTimeout, []string{"503"}, 15 * time.Minute},
		"refused":        {func(b *bench) { b.Reply(action, 1, 403, serverstest.Fault(403, "forbidden", serverstest.AdminPass)) }, servers.ErrDenied, nil, 0},
		"token ends":     {func(b *bench) { b.On(action, 1, b.RenewToken) }, servers.ErrToken, []string{"new token"}, time.Minute},
		"another answer": {func(b *bench) { b.Reply(action, 1, 400, serverstest.AdminPass) }, servers.ErrRefused, nil, 0},
	} {
		t.Run(name, func(t *testing.T) {
			inTime(t, func(b *bench) {
				tt.prepare(b)
				began := time.Now()
				_, err := b.c.Stop(b.ctx, server, b.report)
				b.wants(err, tt.want, tt.says...)
				if took := time.Since(began); took > tt.within {
					t.Errorf("took %v", took)
				}
			})
		})
	}
}

func TestStopSurvives(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		trouble func(*bench)
		says    string
		actions int
		atLeast time.Duration
	}{
		"an outage":               {func(b *bench) { b.Reply(show, 5, 503, serverstest.AdminPass) }, "status 503", 1, 10 * time.Second},
		"lost looks":              {func(b *bench) { b.Lose(show, 5, false) }, "the connection failed", 1, 10 * time.Second},
		"too many requests":       {func(b *bench) { b.Reply(show, 1, 429, "", "Retry-After", "120") }, "status 429", 1, 2 * time.Minute},
		"an older too many":       {func(b *bench) { b.Reply(show, 1, 413, "", "Retry-After", "120") }, "status 413", 1, 2 * time.Minute},
		"an unheard request":      {func(b *bench) { b.Lose(action, 1, false) }, "POST compute", 2, 0},
		"an unanswered request":   {func(b *bench) { b.Lose(action, 1, true) }, "POST compute", 1, 0},
		"a refusal by the proxy":  {func(b *bench) { b.Reply(action, 2, 504, "<html>") }, "status 504", 3, 0},
		"a look that takes long":  {func(b *bench) { b.On(show, 1, func() { time.Sleep(time.Minute) }) }, "it took too long", 1, time.Minute},
		"an answer of other form": {func(b *bench) { b.Reply(show, 1, 200, "<html>") }, "form", 1, 0},
	} {
		t.Run(name, func(t *testing.T) {
			inTime(t, func(b *bench) {
				tt.trouble(b)
				began := time.Now()
				s, err := b.c.Stop(b.ctx, server, b.report)
				b.wants(err, nil)
				if s == nil || !s.Stopped() {
					t.Errorf("got %+v", s)
				}
				if said := b.troubles(); !strings.Contains(said, tt.says) || strings.Contains(said, serverstest.AdminPass) {
					t.Errorf("troubles are %q", said)
				}
				b.wantCalls(action, tt.actions)
				if took := time.Since(began); took < tt.atLeast {
					t.Errorf("took %v", took)
				}
			})
		})
	}
}

func TestStopIsLeft(t *testing.T) {
	t.Parallel()
	inTime(t, func(b *bench) {
		ctx, cancel := context.WithCancelCause(b.ctx)
		cause := errors.New("interrupted")
		b.On(show, 1, func() {})
		b.On(show, 1, func() { cancel(cause) })
		_, err := b.c.Stop(ctx, server, b.report)
		b.wants(err, cause)
		if s := b.Server(server); s.Task != "powering-off" {
			t.Errorf("the server is at %q", s.Task)
		}
	})
}

func TestLooksSlowDown(t *testing.T) {
	t.Parallel()
	inTime(t, func(b *bench) {
		b.PowerTakes = 10 * time.Minute
		_, err := b.c.Stop(b.ctx, server, b.report)
		b.wants(err, nil)
		if n := b.Calls(show); n < 60 || n > 70 {
			t.Errorf("%d looks in ten minutes", n)
		}
	})
}

// An image is there a moment before the server is at rest.
func TestStartAfterAnImage(t *testing.T) {
	t.Parallel()
	inTime(t, func(b *bench) {
		b.AddServer(serverstest.Server{ID: server, Status: "SHUTOFF", Task: "image_uploading"})
		time.AfterFunc(5*time.Second, func() { b.AddServer(serverstest.Server{ID: server, Status: "SHUTOFF"}) })
		s, err := b.c.Start(b.ctx, server, b.report)
		b.wants(err, nil)
		if s == nil || s.Status != servers.Active {
			t.Errorf("got %+v", s)
		}
		b.wantCalls(action, 1)
	})
}
