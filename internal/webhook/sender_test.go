package webhook

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"vmimport/tasks"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestEventsAreDelivered(t *testing.T) {
	bubble(t, func(t *testing.T) {
		l, in := newLedger(), &inbox{}
		l.add("d1", named("old"))
		time.Sleep(time.Second)
		p := begin(t, l, "a", in)
		l.add("d1", tasks.Change{ID: "1", Kind: tasks.KindExport, Region: "jp-east-3", Project: "alpha", Dialect: "fjcloud", Name: "web01",
			State: tasks.Failed, Progress: 37, Epoch: 2, Failure: &tasks.Failure{Code: "checksum_mismatch", Message: "It differs.", Disk: 1}})
		synctest.Wait()
		l.add("d2", named("later"))
		synctest.Wait()
		want(t, in, "web01", "later")
		got := in.all()[0].event
		text, err := json.Marshal(got)
		if err != nil {
			t.Fatal(err)
		}
		const form = `{"id":"%s","type":"state","tenant":"d1","dialect":"fjcloud","region":"jp-east-3","project":"alpha","kind":"export",` +
			`"task_id":"1","name":"web01","state":"failed","progress":37,"attempt":2,"at":"%s",` +
			`"failure":{"code":"checksum_mismatch","message":"It differs.","disk":1}}`
		if want := fmt.Sprintf(form, got.ID, time.Now().UTC().Format(time.RFC3339Nano)); string(text) != want {
			t.Errorf("sent %s\nwant %s", text, want)
		}
		if p.tally.count(Delivered) != 2 || p.tally.lag() != 0 {
			t.Errorf("counted %v, lag %v", p.tally.tried, p.tally.lag())
		}
	})
}

func TestOnlyWhatTheReceiverWants(t *testing.T) {
	bubble(t, func(t *testing.T) {
		l, in := newLedger(), &inbox{}
		p := begin(t, l, "a", in, func(r *Receiver) {
			r.Tenants, r.Dialects, r.States = []tasks.Tenant{"d1"}, []string{"aliyun"}, []tasks.State{tasks.Succeeded, tasks.Failed}
		})
		for _, c := range []struct {
			tenant  tasks.Tenant
			dialect string
			state   tasks.State
		}{
			{"d1", "aliyun", tasks.Queued}, {"d1", "aliyun", tasks.Succeeded}, {"d1", "fjcloud", tasks.Succeeded},
			{"d2", "aliyun", tasks.Succeeded}, {"d1", "aliyun", tasks.Failed}, {"d1", "aliyun", tasks.Queued},
		} {
			change := named(fmt.Sprintf("%s/%s/%s", c.tenant, c.dialect, c.state))
			change.Dialect, change.State = c.dialect, c.state
			l.add(c.tenant, change)
		}
		synctest.Wait()
		want(t, in, "d1/aliyun/succeeded", "d1/aliyun/failed")
		if at, latest := l.at("d1"); at.Mark != latest {
			t.Errorf("the cursor stays at %s of %s", at.Mark, latest)
		}
		p.stop()
	})
}

func TestLostHintsAreMadeUpFor(t *testing.T) {
	bubble(t, func(t *testing.T) {
		l, in := newLedger(), &inbox{}
		l.deaf = true
		begin(t, l, "a", in)
		l.add("d1", named("a"))
		l.add("new", named("b"))
		synctest.Wait()
		want(t, in)
		time.Sleep(usual.look + time.Second)
		synctest.Wait()
		if got := in.names(); len(got) != 2 {
			t.Errorf("delivered %v", got)
		}
	})
}

// TestOrder: a failing event holds up those of its tenant, and no others.
func TestOrder(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const each = 3 * batch / 2
		l, in := newLedger(), &inbox{}
		in.answer = func(n int, e event, _ *http.Request) (*http.Response, error) {
			if n%7 == 0 {
				return status(http.StatusInternalServerError), nil
			}
			return status(http.StatusNoContent), nil
		}
		p := begin(t, l, "a", in)
		tenants := []tasks.Tenant{"d1", "d2", "d3", "d4", "d5", "d6", "d7", "d8", "d9"}
		for i := range each {
			for _, tenant := range tenants {
				l.add(tenant, named(fmt.Sprint(i)))
			}
		}
		time.Sleep(time.Hour)
		p.stop()
		next, seen := map[tasks.Tenant]int{}, map[string]bool{}
		for _, d := range in.all() {
			if seen[d.ID] {
				continue // once more, after a failure
			}
			seen[d.ID] = true
			if d.Name != fmt.Sprint(next[d.Tenant]) {
				t.Fatalf("%s got %s after %d", d.Tenant, d.Name, next[d.Tenant]-1)
			}
			next[d.Tenant]++
		}
		for _, tenant := range tenants {
			if next[tenant] != each {
				t.Errorf("%s got %d of %d", tenant, next[tenant], each)
			}
		}
		if got := p.tally.count(Delivered); got != each*len(tenants) {
			t.Errorf("%d were delivered", got)
		}
	})
}

func TestGivenUpAfterADay(t *testing.T) {
	bubble(t, func(t *testing.T) {
		l, in := newLedger(), &inbox{}
		in.answer = func(_ int, e event, _ *http.Request) (*http.Response, error) {
			if e.Name == "poison" {
				return nil, errors.New("connection reset")
			}
			return status(http.StatusAccepted), nil
		}
		p := begin(t, l, "a", in)
		l.add("d1", named("poison"))
		l.add("d1", named("next"))
		l.add("d2", named("other"))
		time.Sleep(12 * time.Hour)
		if lag := p.tally.lag(); lag < 12*time.Hour || lag > 12*time.Hour+time.Second {
			t.Errorf("lag %v", lag)
		}
		time.Sleep(13 * time.Hour)
		p.stop()
		if p.tally.count(GivenUp) != 1 || p.tally.count(Delivered) != 2 || p.tally.lag() != 0 {
			t.Errorf("counted %v, lag %v", p.tally.tried, p.tally.lag())
		}
		if !strings.Contains(p.log.String(), "webhook given up") {
			t.Error("nothing in the log")
		}
		var last time.Time
		tries := 0
		for _, d := range in.all() {
			if d.Name != "poison" {
				continue
			}
			if tries++; tries > 1 {
				pause, most := d.At.Sub(last), min(2*time.Second<<(tries-2), 10*time.Minute)
				if tries > 20 {
					most = 10 * time.Minute
				}
				if pause < most/2 || pause > most+time.Millisecond {
					t.Fatalf("try %d came after %v, not %v to %v", tries, pause, most/2, most)
				}
			}
			last = d.At
		}
		if tries < 24*6 || tries > 24*12+20 {
			t.Errorf("%d tries", tries)
		}
	})
}

func TestAnswers(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name  string
		first *http.Response
		tries int           // until the event is given up; 0: it is not
		wait  time.Duration // at least, before the second try
	}{
		{name: "redirect", first: status(http.StatusTemporaryRedirect, "Location", "https://elsewhere.example.test/")},
		{name: "not modified", first: status(http.StatusNotModified)},
		{name: "bad request", first: status(http.StatusBadRequest), tries: 5},
		{name: "unauthorized", first: status(http.StatusUnauthorized), tries: 5},
		{name: "not found", first: status(http.StatusNotFound), tries: 5},
		{name: "gone", first: status(http.StatusGone), tries: 5},
		{name: "not found, with advice", first: status(http.StatusNotFound, "Retry-After", "500"), tries: 5},
		{name: "timeout", first: status(http.StatusRequestTimeout)},
		{name: "conflict", first: status(http.StatusConflict)},
		{name: "too early", first: status(http.StatusTooEarly)},
		{name: "too many", first: status(http.StatusTooManyRequests, "Retry-After", "90"), wait: 90 * time.Second},
		{name: "unavailable", first: status(http.StatusServiceUnavailable, "Retry-After", "Sat, 01 Jan 2000 00:03:00 GMT"), wait: 3 * time.Minute},
		{name: "for too long", first: status(http.StatusServiceUnavailable, "Retry-After", "4294967"), wait: 10 * time.Minute},
		{name: "no number", first: status(http.StatusServiceUnavailable, "Retry-After", "soon"), wait: time.Second},
		{name: "broken", first: status(http.StatusBadGateway)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				l, in := newLedger(), &inbox{}
				in.answer = func(n int, _ event, _ *http.Request) (*http.Response, error) {
					again := *tc.first
					again.Body = io.NopCloser(strings.NewReader(""))
					if n > 1 && tc.wait > 0 {
						return status(http.StatusOK), nil
					}
					return &again, nil
				}
				p := begin(t, l, "a", in)
				l.add("d1", named("a"))
				time.Sleep(15 * time.Minute)
				p.stop()
				got := in.all()
				switch {
				case tc.tries > 0 && (len(got) != tc.tries || p.tally.count(GivenUp) != 1):
					t.Errorf("%d tries, given up %d times", len(got), p.tally.count(GivenUp))
				case tc.tries == 0 && (len(got) < 2 || p.tally.count(GivenUp) != 0):
					t.Errorf("%d tries, given up %d times", len(got), p.tally.count(GivenUp))
				case tc.wait > 0 && (got[1].At.Sub(got[0].At) < tc.wait || got[1].At.Sub(got[0].At) > tc.wait+time.Second+time.Millisecond):
					t.Errorf("again after %v", got[1].At.Sub(got[0].At))
				}
			})
		})
	}
}

// TestRefusalsAreCountedByThemselves: what could not be reached for an hour is not given up
// when it answers once with an error of its gateway.
func TestRefusalsAreCountedByThemselves(t *testing.T) {
	bubble(t, func(t *testing.T) {
		l, in := newLedger(), &inbox{}
		in.answer = func(n int, _ event, _ *http.Request) (*http.Response, error) {
			switch {
			case n < 12:
				return nil, errors.New("connection refused")
			case n < 14:
				return status(http.StatusNotFound), nil
			}
			return status(http.StatusOK), nil
		}
		p := begin(t, l, "a", in)
		l.add("d1", named("a"))
		time.Sleep(3 * time.Hour)
		if p.tally.count(Delivered) != 1 || p.tally.count(GivenUp) != 0 {
			t.Errorf("counted %v", p.tally.tried)
		}
	})
}

func hang(_ int, _ event, r *http.Request) (*http.Response, error) {
	<-r.Context().Done()
	return nil, r.Context().Err()
}

func TestHangingReceiverHoldsUpNobody(t *testing.T) {
	bubble(t, func(t *testing.T) {
		l, stuck, in := newLedger(), &inbox{answer: hang}, &inbox{}
		p := begin(t, l, "a", stuck)
		begin(t, l, "a", in, func(r *Receiver) { r.ID = "billing" })
		for i := range 20 {
			l.add(tasks.Tenant(fmt.Sprint("d", i)), named("a"))
		}
		synctest.Wait()
		if got := len(in.all()); got != 20 {
			t.Errorf("the other receiver got %d", got)
		}
		if got := len(stuck.all()); got != parallel {
			t.Errorf("%d deliveries at a time", got)
		}
		time.Sleep(usual.deliver - time.Millisecond)
		if got := p.tally.count(Failed); got != 0 {
			t.Errorf("%d deliveries have ended", got)
		}
		time.Sleep(2 * time.Millisecond)
		synctest.Wait()
		if got := p.tally.count(Failed); got != parallel {
			t.Errorf("%d deliveries have ended in time", got)
		}
	})
}

// TestStopInTheMiddle: a delivery that is broken off leaves its cursor, and the next process
// begins at once.
func TestStopInTheMiddle(t *testing.T) {
	bubble(t, func(t *testing.T) {
		l, stuck, in := newLedger(), &inbox{answer: hang}, &inbox{}
		first := begin(t, l, "a", stuck)
		second := begin(t, l, "b", in)
		l.add("d1", named("x"))
		synctest.Wait()
		before := time.Now()
		first.stop()
		if took := time.Since(before); took != 0 {
			t.Errorf("it took %v to stop", took)
		}
		if at, _ := l.at("d1"); at != (tasks.Cursor{}) || first.tally.lag() != 0 {
			t.Errorf("left at %+v", at)
		}
		time.Sleep(usual.renew + time.Millisecond)
		synctest.Wait()
		want(t, in, "x")
		if a, b := stuck.all()[0].ID, in.all()[0].ID; a != b {
			t.Errorf("ids %s and %s", a, b)
		}
		second.stop()
	})
}

// TestKilledProcess: one that does not resign is replaced when its lead has run out.
func TestKilledProcess(t *testing.T) {
	bubble(t, func(t *testing.T) {
		l, in, other := newLedger(), &inbox{}, &inbox{}
		dead := false
		l.away = func(who string) bool { return who == "a" && dead }
		first := begin(t, l, "a", in)
		begin(t, l, "b", other)
		l.add("d1", named("before"))
		synctest.Wait()
		l.mu.Lock()
		dead = true
		l.mu.Unlock()
		first.stop()
		l.add("d1", named("after"))
		time.Sleep(usual.leadFor + usual.renew)
		synctest.Wait()
		want(t, in, "before")
		want(t, other, "after")
	})
}

// TestLeadIsLostInTime: who cannot renew the lead stops to send.
func TestLeadIsLostInTime(t *testing.T) {
	bubble(t, func(t *testing.T) {
		l, in, other := newLedger(), &inbox{}, &inbox{}
		cut := false
		l.away = func(who string) bool { return who == "a" && cut }
		first := begin(t, l, "a", in)
		begin(t, l, "b", other)
		l.mu.Lock()
		cut = true
		l.mu.Unlock()
		time.Sleep(usual.leadFor + 2*usual.renew)
		if got := l.leader("portal"); got != "b" {
			t.Errorf("%s leads", got)
		}
		l.add("d1", named("x"))
		synctest.Wait()
		want(t, in)
		want(t, other, "x")
		l.mu.Lock()
		cut = false
		l.mu.Unlock()
		time.Sleep(time.Minute)
		if got := l.leader("portal"); got != "b" {
			t.Errorf("%s leads after that", got)
		}
		first.stop()
	})
}

// TestLeadEndsBeforeTheNextBegins: who hears nothing from the store any more has broken off its
// deliveries when another makes them, however long the store keeps it waiting.
func TestLeadEndsBeforeTheNextBegins(t *testing.T) {
	for _, cutAfter := range []time.Duration{0, usual.renew - time.Millisecond, usual.renew + time.Millisecond} {
		t.Run(cutAfter.String(), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				l, in, other := newLedger(), &inbox{}, &inbox{}
				var cut atomic.Bool
				l.mute = func(who string) bool { return who == "a" && cut.Load() }
				var left time.Time
				in.answer = func(_ int, _ event, r *http.Request) (*http.Response, error) {
					<-r.Context().Done()
					left = time.Now()
					return nil, r.Context().Err()
				}
				first := begin(t, l, "a", in)
				begin(t, l, "b", other)
				time.Sleep(cutAfter)
				cut.Store(true)
				time.Sleep(usual.renew)
				l.add("d1", named("x"))
				time.Sleep(time.Minute)
				first.stop()
				want(t, in, "x")
				want(t, other, "x")
				if got := other.all(); len(got) == 1 && left.After(got[0].At) {
					t.Errorf("the old one sent for another %v", left.Sub(got[0].At))
				}
			})
		})
	}
}

// TestCrashBeforeTheCursorMoves: then the event comes twice, with the same id.
func TestCrashBeforeTheCursorMoves(t *testing.T) {
	bubble(t, func(t *testing.T) {
		l, in := newLedger(), &inbox{}
		failures := 0
		l.moved = func(tasks.Cursor) error {
			if failures++; failures == 1 {
				return errAway
			}
			return nil
		}
		p := begin(t, l, "a", in)
		l.add("d1", named("x"))
		l.add("d1", named("y"))
		time.Sleep(time.Minute)
		p.stop()
		want(t, in, "x", "x", "y")
		if got := in.all(); got[0].ID != got[1].ID || got[1].ID == got[2].ID {
			t.Error("ids are not those of events")
		}
	})
}

// TestRivalMovesTheCursor: who is not the only one to send does not move it back.
func TestRivalMovesTheCursor(t *testing.T) {
	bubble(t, func(t *testing.T) {
		l, in := newLedger(), &inbox{}
		in.answer = func(n int, _ event, _ *http.Request) (*http.Response, error) {
			if n == 1 {
				l.mu.Lock()
				l.cursors["portal d1"] = tasks.Cursor{Mark: l.latest("d1")}
				l.mu.Unlock()
			}
			return status(http.StatusOK), nil
		}
		l.deaf = true
		p := begin(t, l, "a", in)
		l.add("d1", named("x"))
		l.add("d1", named("y"))
		time.Sleep(time.Minute)
		want(t, in, "x")
		if at, latest := l.at("d1"); at.Mark != latest {
			t.Errorf("the cursor is at %s of %s", at.Mark, latest)
		}
		if p.tally.lag() != 0 {
			t.Errorf("lag %v", p.tally.lag())
		}
	})
}

// TestReset: what the journal has dropped is told of once, and then what it has kept.
func TestReset(t *testing.T) {
	bubble(t, func(t *testing.T) {
		l, in := newLedger(), &inbox{}
		var down atomic.Bool
		down.Store(true)
		in.answer = func(int, event, *http.Request) (*http.Response, error) {
			if down.Load() {
				return nil, errors.New("connection refused")
			}
			return status(http.StatusOK), nil
		}
		l.add("d1", named("old"))
		time.Sleep(time.Second)
		p := begin(t, l, "a", in)
		for i := range 10 {
			l.add("d1", named(fmt.Sprint(i)))
		}
		time.Sleep(time.Minute)
		l.trim("d1", 3)
		time.Sleep(time.Hour)
		down.Store(false)
		before := len(in.all())
		time.Sleep(time.Hour)
		p.stop()
		in.got = in.got[before:]
		want(t, in, "reset", "7", "8", "9")
		reset := in.all()[0]
		if reset.Tenant != "d1" || reset.State != "" {
			t.Errorf("reset is %+v", reset)
		}
	})
}

func TestStoreAway(t *testing.T) {
	bubble(t, func(t *testing.T) {
		l, in := newLedger(), &inbox{}
		away := true
		l.away = func(string) bool { return away }
		p := begin(t, l, "a", in)
		time.Sleep(time.Minute)
		l.mu.Lock()
		away = false
		l.mu.Unlock()
		time.Sleep(usual.renew)
		l.add("d1", named("x"))
		synctest.Wait()
		want(t, in, "x")
		p.stop()
		if !strings.Contains(p.log.String(), "do not reach the store") {
			t.Error("nothing in the log")
		}
	})
}
