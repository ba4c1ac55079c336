package client_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"vmimport/internal/client"
	"vmimport/tasks"
)

func status(state tasks.State) *http.Response {
	return response(200, fmt.Sprintf(`{"import_status":%q}`, state))
}

// eventless is a service without events that answers as f does.
func eventless(f transport) transport {
	return func(r *http.Request) (*http.Response, error) {
		if strings.HasSuffix(r.URL.Path, "/events") {
			return response(404, `{"error_code":"40400","message":"The path does not exist."}`), nil
		}
		return f(r)
	}
}

func TestWatchSlowsDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		var looks []time.Duration
		c := offline(t, eventless(func(*http.Request) (*http.Response, error) {
			looks = append(looks, time.Since(began))
			if len(looks) == 20 {
				return status(tasks.Succeeded), nil
			}
			return status(tasks.Processing), nil
		}))
		for _, err := range c.Watch(t.Context(), "x", client.WatchOptions{}) {
			if err != nil {
				t.Fatal(err)
			}
		}
		if first := looks[1] - looks[0]; first != 250*time.Millisecond {
			t.Errorf("the second look came after %v", first)
		}
		for i := 2; i < len(looks); i++ {
			wait, before := looks[i]-looks[i-1], looks[i-1]-looks[i-2]
			if wait < before || wait > 2*time.Second {
				t.Errorf("look %d came after %v, the one before after %v", i, wait, before)
			}
		}
		if last := looks[19] - looks[18]; last != 2*time.Second {
			t.Errorf("the last look came after %v", last)
		}
	})
}

func TestWatchSurvives(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		busy := response(503, "")
		busy.Header.Set("Retry-After", "30")
		answers := []struct {
			resp *http.Response
			err  error
		}{
			{resp: status(tasks.Queued)},
			{err: io.ErrUnexpectedEOF},
			{resp: response(502, "<html>")},
			{resp: busy},
			{resp: status(tasks.Failed)},
		}
		var looks []time.Duration
		c := offline(t, eventless(func(*http.Request) (*http.Response, error) {
			a := answers[len(looks)]
			looks = append(looks, time.Since(began))
			return a.resp, a.err
		}))
		troubles := 0
		var states []tasks.State
		for imp, err := range c.Watch(t.Context(), "x", client.WatchOptions{Trouble: func(error) { troubles++ }}) {
			if err != nil {
				t.Fatal(err)
			}
			states = append(states, imp.State)
		}
		if want := []tasks.State{tasks.Queued, tasks.Failed}; !slices.Equal(states, want) || troubles != 3 {
			t.Errorf("saw %v and %d troubles", states, troubles)
		}
		if waited := looks[4] - looks[3]; waited != 30*time.Second {
			t.Errorf("Retry-After of 30 s was taken as %v", waited)
		}
	})
}

func TestWatchGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		down := errors.New("connection refused")
		c := offline(t, eventless(func(*http.Request) (*http.Response, error) { return nil, down }))
		var last error
		for _, err := range c.Watch(t.Context(), "x", client.WatchOptions{}) {
			last = err
		}
		if took := time.Since(began); !errors.Is(last, down) || took < 2*time.Minute || took > 5*time.Minute {
			t.Errorf("ended after %v with %v", took, last)
		}
	})
}

func TestWatchEnds(t *testing.T) {
	t.Run("at a lasting error", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			c := offline(t, eventless(func(*http.Request) (*http.Response, error) {
				return response(404, `{"error_code":"40401","message":"Invalid import_id."}`), nil
			}))
			n := 0
			for _, err := range c.Watch(t.Context(), "x", client.WatchOptions{}) {
				if n++; !client.HasCode(err, client.CodeUnknownImport) {
					t.Errorf("got %v", err)
				}
			}
			if n != 1 {
				t.Errorf("%d results", n)
			}
		})
	})
	t.Run("with its context", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			leave := errors.New("the user left")
			c := offline(t, eventless(func(*http.Request) (*http.Response, error) { return status(tasks.Processing), nil }))
			var last error
			for _, err := range c.Watch(ctx, "x", client.WatchOptions{}) {
				last = err
				time.AfterFunc(time.Millisecond, func() { cancel(leave) }) // while Watch waits
			}
			if !errors.Is(last, leave) {
				t.Errorf("got %v", last)
			}
		})
	})
	t.Run("with its consumer", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			looks := 0
			c := offline(t, eventless(func(*http.Request) (*http.Response, error) { looks++; return status(tasks.Processing), nil }))
			for range c.Watch(t.Context(), "x", client.WatchOptions{}) {
				break
			}
			if looks != 1 {
				t.Errorf("looked %d times", looks)
			}
		})
	})
}
