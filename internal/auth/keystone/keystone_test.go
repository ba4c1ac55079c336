package keystone

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"vmimport/internal/auth"
	"vmimport/internal/fault"
	"vmimport/internal/openstack"
)

func TestCacheForIsBounded(t *testing.T) {
	t.Parallel()
	for _, d := range []time.Duration{-1, MaxCacheFor + 1} {
		if _, err := New(nil, Options{CacheFor: d}); err == nil {
			t.Errorf("%v was accepted", d)
		}
	}
	for d, want := range map[time.Duration]time.Duration{0: 30 * time.Second, 1: 1, MaxCacheFor: MaxCacheFor} {
		if a, err := New(nil, Options{CacheFor: d}); err != nil || a.cacheFor != want {
			t.Errorf("%v: %v", d, err)
		}
	}
}

// What cannot be sent must not look as if Keystone were down.
func TestOddTokensAreNotSent(t *testing.T) {
	t.Parallel()
	a, k := served(t, say(404, notFound))
	for _, token := range []string{"", " ", "a b", " a", "a\n", "a\r\nX-Auth-Token: b", "\x00", "\x7f", "tökén", "\xff", "a\u00a0", "\t"} {
		if who, err := a.Authenticate(t.Context(), token); who != nil || !errors.Is(err, auth.ErrNoIdentity) {
			t.Errorf("token %q: %v, %v", token, who, err)
		}
	}
	if made, asked := k.counts(); made+asked != 0 {
		t.Errorf("%d tokens, %d questions", made, asked)
	}
	for _, token := range []string{"gAAAAA-_", strings.Repeat("a", 16<<10), `!"#$%&'()*+,-./0:;<=>?@A[\]^_` + "`{|}~"} {
		if _, err := a.Authenticate(t.Context(), token); !errors.Is(err, auth.ErrNoIdentity) {
			t.Errorf("token %q: %v", token, err)
		}
	}
	if _, asked := k.counts(); asked != 3 {
		t.Errorf("%d questions", asked)
	}
}

// stub is what is known of tokens, without a cloud.
type stub struct {
	mu    sync.Mutex
	asked map[string]int
	say   func(ctx context.Context, token string) (*answer, error)
}

func (s *stub) validate(ctx context.Context, token string) (*answer, error) {
	s.mu.Lock()
	s.asked[token]++
	s.mu.Unlock()
	return s.say(ctx, token)
}

func (s *stub) total() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, asked := range s.asked {
		n += asked
	}
	return n
}

func stubbed(t testing.TB, say func(context.Context, string) (*answer, error)) (*Authenticator, *stub) {
	t.Helper()
	a, err := New(nil, Options{})
	if err != nil {
		t.Fatal(err)
	}
	s := &stub{asked: map[string]int{}, say: say}
	a.validate = s.validate
	return a, s
}

// known is the answer for a token of a user with its name, for an hour.
func known(_ context.Context, token string) (*answer, error) {
	return &answer{auth.Identity{UserID: token, ProjectID: "p", DomainID: "d", Roles: []string{"member"}}, time.Now().Add(time.Hour)}, nil
}

func unknownToken(context.Context, string) (*answer, error) { return nil, auth.ErrNoIdentity }

func TestHowLongAnswersStand(t *testing.T) {
	t.Parallel()
	expires := func(in time.Duration) func(context.Context, string) (*answer, error) {
		return func(_ context.Context, token string) (*answer, error) {
			return &answer{auth.Identity{UserID: token}, time.Now().Add(in)}, nil
		}
	}
	failing := func(context.Context, string) (*answer, error) { return nil, openstack.ErrIdentity }
	slow := func(ctx context.Context, token string) (*answer, error) {
		time.Sleep(4 * time.Second)
		return known(ctx, token)
	}
	for name, tc := range map[string]struct {
		say   func(context.Context, string) (*answer, error)
		want  error
		stand time.Duration // after the answer
	}{
		"known":           {known, nil, 30 * time.Second},
		"known, slowly":   {slow, nil, 26 * time.Second}, // it may have been revoked meanwhile
		"about to end":    {expires(3 * time.Second), nil, 3 * time.Second},
		"our clock ahead": {expires(-time.Hour), nil, 0},
		"unknown":         {unknownToken, auth.ErrNoIdentity, 5 * time.Second},
		"may not ask":     {func(context.Context, string) (*answer, error) { return nil, ErrCannotValidate }, ErrCannotValidate, 0},
		"failure":         {failing, openstack.ErrIdentity, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				a, s := stubbed(t, tc.say)
				want := func(asked int) {
					t.Helper()
					_, err := a.Authenticate(t.Context(), "x")
					wantFault(t, err, tc.want)
					if s.total() != asked {
						t.Errorf("%d questions, want %d", s.total(), asked)
					}
				}
				want(1)
				if tc.stand > 0 {
					want(1)
					time.Sleep(tc.stand - time.Nanosecond)
					want(1)
					time.Sleep(time.Nanosecond)
				}
				want(2)
			})
		})
	}
}

func TestRevokedTokenIsRefusedWithinCacheFor(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		revoked := false
		a, _ := stubbed(t, func(ctx context.Context, token string) (*answer, error) {
			if revoked {
				return unknownToken(ctx, token)
			}
			return known(ctx, token)
		})
		for range 100 { // being used keeps it no longer
			if _, err := a.Authenticate(t.Context(), "x"); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second)
		}
		revoked = true
		for range 30 {
			_, _ = a.Authenticate(t.Context(), "x")
			time.Sleep(time.Second)
		}
		_, err := a.Authenticate(t.Context(), "x")
		wantFault(t, err, auth.ErrNoIdentity)
	})
}

func TestOneQuestionForAll(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		say  func(context.Context, string) (*answer, error)
		want error
	}{
		"known":   {known, nil},
		"unknown": {unknownToken, auth.ErrNoIdentity},
		"failure": {func(context.Context, string) (*answer, error) { return nil, openstack.ErrIdentity }, openstack.ErrIdentity},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				a, s := stubbed(t, func(ctx context.Context, token string) (*answer, error) {
					time.Sleep(time.Second)
					return tc.say(ctx, token)
				})
				var all sync.WaitGroup
				for range 200 {
					all.Go(func() {
						who, err := a.Authenticate(t.Context(), "x")
						wantFault(t, err, tc.want)
						if tc.want == nil {
							who.Roles[0] = "admin" // must be nobody else's
						}
					})
				}
				all.Wait()
				if s.total() != 1 {
					t.Errorf("%d questions", s.total())
				}
				if tc.want == nil {
					if who, err := a.Authenticate(t.Context(), "x"); err != nil || !slices.Equal(who.Roles, []string{"member"}) {
						t.Errorf("got %+v, %v", who, err)
					}
				}
			})
		})
	}
}

func TestWhoLeavesTakesNothingAlong(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a, s := stubbed(t, func(ctx context.Context, token string) (*answer, error) {
			select {
			case <-time.After(5 * time.Second):
				return known(ctx, token)
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		})
		start, why := time.Now(), errors.New("the client has left")
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(time.Second, func() { cancel(why) })
		who, err := a.Authenticate(ctx, "x")
		if who != nil || !errors.Is(err, why) || fault.KindOf(err) != fault.Unavailable || time.Since(start) != time.Second {
			t.Errorf("%v, %v after %v", who, err, time.Since(start))
		}
		if who, err := a.Authenticate(t.Context(), "x"); err != nil || who.UserID != "x" || time.Since(start) != 5*time.Second {
			t.Errorf("%v, %v after %v", who, err, time.Since(start))
		}
		if s.total() != 1 {
			t.Errorf("%d questions", s.total())
		}
	})
}

func TestHangingKeystoneIsBounded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a, s := stubbed(t, func(ctx context.Context, _ string) (*answer, error) {
			<-ctx.Done()
			return nil, openstack.ErrIdentity.Because(context.Cause(ctx))
		})
		start := time.Now()
		var all sync.WaitGroup
		for i := range maxLookups {
			for range 2 { // the second is no question more
				all.Go(func() {
					_, err := a.Authenticate(t.Context(), fmt.Sprint(i))
					wantFault(t, err, openstack.ErrIdentity)
				})
			}
		}
		synctest.Wait()
		_, err := a.Authenticate(t.Context(), "one-more")
		wantFault(t, err, ErrBusy)
		if time.Since(start) != 0 || s.total() != maxLookups {
			t.Errorf("%d questions under way after %v", s.total(), time.Since(start))
		}
		all.Wait()
		if time.Since(start) != patience {
			t.Errorf("gave up after %v", time.Since(start))
		}
		a.validate = known
		if _, err := a.Authenticate(t.Context(), "one-more"); err != nil {
			t.Errorf("when Keystone is back: %v", err)
		}
	})
}

// Who makes tokens up pushes out nobody, and memory stays bounded.
func TestFloodOfTokens(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a, s := stubbed(t, func(ctx context.Context, token string) (*answer, error) {
			if strings.HasPrefix(token, "bad") {
				return unknownToken(ctx, token)
			}
			return known(ctx, token)
		})
		_, _ = a.Authenticate(t.Context(), "alice")
		for i := range 3 * maxBad {
			_, err := a.Authenticate(t.Context(), fmt.Sprint("bad", i))
			wantFault(t, err, auth.ErrNoIdentity)
		}
		if _, err := a.Authenticate(t.Context(), "alice"); err != nil || s.asked["alice"] != 1 {
			t.Errorf("%v after %d questions", err, s.asked["alice"])
		}
		for i := range maxGood + 10 {
			_, _ = a.Authenticate(t.Context(), fmt.Sprint("good", i))
		}
		if good, bad := len(a.good.byKey), len(a.bad.byKey); good != maxGood || bad != maxBad || a.good.byAge.Len() != good || a.bad.byAge.Len() != bad {
			t.Errorf("%d good and %d bad tokens are kept", good, bad)
		}
		for token, asked := range map[string]int{"good10009": 1, "good5000": 1, "good9": 2, "alice": 2} { // the oldest have gone
			_, _ = a.Authenticate(t.Context(), token)
			if s.asked[token] != asked {
				t.Errorf("%s: %d questions", token, s.asked[token])
			}
		}
		if len(a.underWay) != 0 {
			t.Errorf("%d questions never ended", len(a.underWay))
		}
	})
}

// Whatever Keystone says in whatever order: a token is taken only if Keystone has
// said so, about this token, no longer ago than CacheFor.
func TestNoSequenceOfAnswersLetsAnybodyIn(t *testing.T) {
	t.Parallel()
	failures := []error{openstack.ErrIdentity, openstack.ErrCredentials, ErrCannotValidate, auth.ErrNoIdentity, auth.ErrNoIdentity}
	for seed := range uint64(50) {
		synctest.Test(t, func(t *testing.T) {
			random := rand.New(rand.NewPCG(seed, 1))
			said := map[string]time.Time{} // when a token was last known
			a, _ := stubbed(t, func(ctx context.Context, token string) (*answer, error) {
				began := time.Now()
				time.Sleep(time.Duration(random.IntN(8000)) * time.Millisecond)
				if token == "bad" || random.IntN(2) == 0 {
					return nil, failures[random.IntN(len(failures))]
				}
				said[token] = began
				who, err := known(ctx, token)
				who.expires = began.Add(time.Duration(random.IntN(60)-10) * time.Second)
				return who, err
			})
			for range 500 {
				token := []string{"bad", "a", "b"}[random.IntN(3)]
				who, err := a.Authenticate(t.Context(), token)
				switch {
				case err != nil && who != nil, err == nil && who.UserID != token:
					t.Fatalf("%s: %v, %v", token, who, err)
				case err == nil && (token == "bad" || said[token].IsZero() || time.Since(said[token]) > 30*time.Second):
					t.Fatalf("%s was let in, %v after it was known", token, time.Since(said[token]))
				case err != nil && !errors.Is(err, auth.ErrNoIdentity) && fault.KindOf(err) != fault.Unavailable:
					t.Fatalf("%s: %v", token, err)
				}
				time.Sleep(time.Duration(random.IntN(4000)) * time.Millisecond)
			}
		})
	}
}

// The same over HTTP, with all that may be in an answer.
func TestNoAnswerLetsAnybodyIn(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex // a request whose connection was cut can still be in its handler at the next
	random := rand.New(rand.NewPCG(1, 2))
	alice := aliceUntil(time.Now().Add(time.Hour))
	statuses := []int{200, 200, 201, 204, 300, 302, 400, 401, 401, 403, 404, 404, 413, 429, 500, 502, 503, 0}
	a, _ := served(t, func(w http.ResponseWriter, r *http.Request, asked int) {
		mu.Lock()
		body := []string{"", "null", notFound, alice, alice[:len(alice)/2], `{"token":{}}`}[random.IntN(6)]
		status := statuses[random.IntN(len(statuses))]
		mu.Unlock()
		if status == http.StatusOK && body == alice {
			r.Header.Set("X-Subject-Token", "alices-token") // the only good answer is about another one
		}
		say(status, body)(w, r, asked)
	})
	for i := range 500 {
		who, err := a.Authenticate(t.Context(), fmt.Sprint("their-token-", i))
		if who != nil || !errors.Is(err, auth.ErrNoIdentity) && fault.KindOf(err) != fault.Unavailable {
			t.Fatalf("%+v, %v", who, err)
		}
	}
}
