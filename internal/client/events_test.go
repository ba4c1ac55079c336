package client_test

import (
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
	"vmimport/internal/client/clienttest"
	"vmimport/tasks"
)

// streamed is an answer that is a stream.
func streamed(body io.Reader) *http.Response {
	return &http.Response{
		StatusCode: 200, Body: io.NopCloser(body),
		Header: http.Header{"Content-Type": {"text/event-stream; charset=utf-8"}},
	}
}

func stateFrame(n int, state tasks.State) string {
	return fmt.Sprintf("event: state\nid: m-%d\ndata: {\"kind\":\"import\",\"id\":\"x\",\"state\":%q,\"progress\":%d}\n\n", n, state, n)
}

// journal is a service whose streams are cut.
func journal(frames []string, cut func(call int, rest string) string) transport {
	call := 0
	return func(r *http.Request) (*http.Response, error) {
		from := 0
		if after := r.Header.Get("Last-Event-ID"); after != "" {
			_, _ = fmt.Sscanf(after, "m-%d", &from)
		}
		call++
		if from == len(frames) {
			return response(204, ""), nil
		}
		return streamed(strings.NewReader(cut(call, "retry: 100\n\n"+strings.Join(frames[from:], "")))), nil
	}
}

func TestEventsAreTakenUp(t *testing.T) {
	frames := []string{
		stateFrame(1, tasks.Queued), stateFrame(2, tasks.Processing), ": beat\n\n" + stateFrame(3, tasks.Queued),
		"event: progress\ndata: {\"id\":\"x\"}\n\n" + stateFrame(4, tasks.Processing), stateFrame(5, tasks.Succeeded),
	}
	whole := len(strings.Join(frames, "")) + 20
	for at := 0; at < whole; at += 3 {
		synctest.Test(t, func(t *testing.T) {
			c := offline(t, journal(frames, func(call int, rest string) string {
				if call == 1 {
					return rest[:min(at, len(rest))]
				}
				return rest
			}))
			var marks []string
			for e, err := range c.EventsOf(t.Context(), tasks.KindImport, "x", nil) {
				if err != nil {
					t.Fatal(err)
				}
				if e.Type == client.EventState {
					marks = append(marks, e.Mark)
				} else if e.Mark != "" {
					t.Errorf("%s has a mark", e.Type)
				}
			}
			if want := []string{"m-1", "m-2", "m-3", "m-4", "m-5"}; !slices.Equal(marks, want) {
				t.Errorf("cut at %d: %v", at, marks)
			}
		})
	}
}

func TestEventsRequest(t *testing.T) {
	var asked []string
	c := offline(t, func(r *http.Request) (*http.Response, error) {
		asked = append(asked, r.URL.RequestURI(), r.Header.Get("Last-Event-ID"), r.Header.Get("Accept"), r.Header.Get("X-Auth-Token"))
		return response(403, `{"error_code":"40301","message":"No."}`), nil
	})
	for _, err := range c.Events(t.Context(), client.EventsOptions{Kind: tasks.KindExport, After: "m-7"}) {
		if !client.HasCode(err, "40301") {
			t.Error(err)
		}
	}
	for range c.EventsOf(t.Context(), tasks.KindExport, "a/b", nil) {
	}
	if want := []string{"/v1/events?kind=export", "m-7", "text/event-stream", clienttest.Token, "/v1/imageexport/a%2Fb/events", "", "text/event-stream", clienttest.Token}; !slices.Equal(asked, want) {
		t.Errorf("asked %q", asked)
	}
}

// A stream of which nothing is heard is left, and one that cannot be had is asked for again.
func TestEventsSurvive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		busy := response(503, "")
		busy.Header.Set("Retry-After", "30")
		var calls []time.Duration
		c := offline(t, func(r *http.Request) (*http.Response, error) {
			calls = append(calls, time.Since(began))
			switch len(calls) {
			case 1:
				near, far := io.Pipe()
				go func() {
					_, _ = io.WriteString(far, stateFrame(1, tasks.Queued))
					<-r.Context().Done()
					_ = far.CloseWithError(r.Context().Err())
				}()
				return streamed(near), nil
			case 2:
				return nil, io.ErrUnexpectedEOF
			case 3:
				return busy, nil
			}
			return streamed(strings.NewReader(stateFrame(2, tasks.Failed))), nil
		})
		troubles, states := 0, []tasks.State{}
		for e, err := range c.Events(t.Context(), client.EventsOptions{Trouble: func(error) { troubles++ }}) {
			if err != nil {
				t.Fatal(err)
			}
			if states = append(states, e.State); e.State == tasks.Failed {
				break
			}
		}
		if !slices.Equal(states, []tasks.State{tasks.Queued, tasks.Failed}) || troubles != 3 {
			t.Errorf("%v and %d troubles", states, troubles)
		}
		if calls[1] < 40*time.Second || calls[1] > 45*time.Second || calls[3]-calls[2] != 30*time.Second {
			t.Errorf("asked at %v", calls)
		}
	})
}

// TestEventsComeBackInTime: no service keeps its clients away for good.
func TestEventsComeBackInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		c := offline(t, func(r *http.Request) (*http.Response, error) {
			if r.Header.Get("Last-Event-ID") != "" {
				return response(204, ""), nil
			}
			return streamed(strings.NewReader("retry: 2147483647\n\n" + stateFrame(1, tasks.Queued))), nil
		})
		for _, err := range c.EventsOf(t.Context(), tasks.KindImport, "x", nil) {
			if err != nil {
				t.Fatal(err)
			}
		}
		if took := time.Since(began); took != 30*time.Second {
			t.Errorf("came back after %v", took)
		}
	})
}

func TestEventsGiveUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		down := errors.New("connection refused")
		c := offline(t, func(*http.Request) (*http.Response, error) { return nil, down })
		var last error
		for _, err := range c.Events(t.Context(), client.EventsOptions{}) {
			last = err
		}
		if took := time.Since(began); !errors.Is(last, down) || took < 2*time.Minute || took > 5*time.Minute {
			t.Errorf("ended after %v with %v", took, last)
		}
	})
}

func TestWatchByEvents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		looks := 0
		answers := []string{
			`{"import_status":"queued","name":"web01","vmimport":{"queue_position":2}}`, `{"import_status":"queued","name":"web01","vmimport":{"queue_position":1}}`,
			`{"import_status":"processing","name":"web01"}`, `{"import_status":"succeeded","progress":100,"id":"i"}`,
		}
		c := offline(t, func(r *http.Request) (*http.Response, error) {
			if !strings.HasSuffix(r.URL.Path, "/events") {
				looks++
				return response(200, answers[looks-1]), nil
			}
			return streamed(strings.NewReader("event: ready\ndata: {}\n\n" + stateFrame(1, tasks.Queued) + ": beat\n\n" + stateFrame(2, tasks.Processing) +
				"event: progress\ndata: {\"id\":\"x\",\"state\":\"processing\",\"stage\":\"copying\",\"progress\":40,\"done_bytes\":4,\"total_bytes\":10,\"attempt\":1}\n\n: beat\n\n" +
				stateFrame(3, tasks.Succeeded))), nil
		})
		var seen []string
		for imp, err := range c.Watch(t.Context(), "x", client.WatchOptions{}) {
			if err != nil {
				t.Fatal(err)
			}
			seen = append(seen, fmt.Sprintf("%s %d%% %d/%d #%d", imp.State, imp.Progress, imp.Extra.DoneBytes, imp.Extra.TotalBytes, imp.Extra.QueuePosition))
		}
		if want := []string{"queued 0% 0/0 #2", "queued 0% 0/0 #1", "processing 0% 0/0 #0", "processing 40% 4/10 #0", "succeeded 100% 0/0 #0"}; !slices.Equal(seen, want) {
			t.Errorf("saw %q", seen)
		}
		if looks != 4 {
			t.Errorf("%d looks", looks)
		}
	})
}

// Where events cannot be had, a watch looks again and again.
func TestWatchWithoutEvents(t *testing.T) {
	notEvents := response(200, `{}`)
	notEvents.Header.Set("Content-Type", "application/json")
	for name, answer := range map[string]*http.Response{
		"older service":    response(404, `{"error_code":"40400","message":"The path does not exist."}`),
		"another service":  response(405, ""),
		"something else":   notEvents,
		"too many streams": response(429, `{"error_code":"42901","message":"Too many event streams are open."}`),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				states := []tasks.State{tasks.Queued, tasks.Processing, tasks.Canceled}
				looks := 0
				c := offline(t, func(r *http.Request) (*http.Response, error) {
					if strings.HasSuffix(r.URL.Path, "/events") {
						return answer, nil
					}
					looks++
					return status(states[looks-1]), nil
				})
				var seen []tasks.State
				for imp, err := range c.Watch(t.Context(), "x", client.WatchOptions{}) {
					if err != nil {
						t.Fatal(err)
					}
					seen = append(seen, imp.State)
				}
				if !slices.Equal(seen, states) {
					t.Errorf("saw %v", seen)
				}
			})
		})
	}
}

func TestRetry(t *testing.T) {
	var asked []string
	c := offline(t, func(r *http.Request) (*http.Response, error) {
		if asked = append(asked, r.Method+" "+r.URL.Path); len(asked) < 3 {
			return response(202, ""), nil
		}
		return response(400, `{"error_code":"40038","message":"Only what has failed can be tried again."}`), nil
	})
	if err := errors.Join(c.Retry(t.Context(), "x"), c.RetryExport(t.Context(), "y")); err != nil {
		t.Error(err)
	}
	if err := c.Retry(t.Context(), "x"); !client.HasCode(err, client.CodeNotFailed) {
		t.Error(err)
	}
	if want := []string{"POST /v1/imageimport/x/retry", "POST /v1/imageexport/y/retry", "POST /v1/imageimport/x/retry"}; !slices.Equal(asked, want) {
		t.Errorf("asked %q", asked)
	}
}
