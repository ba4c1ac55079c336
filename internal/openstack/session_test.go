package openstack

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gophercloud/gophercloud/v2"

	"vmimport/internal/secret"
)

func TestTokenIsRenewedBeforeItsEnd(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct{ ahead, life, renewAt time.Duration }{
		"an hour":         {0, time.Hour, 55 * time.Minute},
		"a minute":        {0, time.Minute, 40 * time.Second},
		"our clock late":  {48 * time.Hour, time.Hour, 55 * time.Minute},
		"our clock early": {-48 * time.Hour, time.Hour, 55 * time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				k := newKeystone(t)
				k.ahead, k.life = tc.ahead, tc.life
				c := cloudOf(t, k)
				start := time.Now()
				token(t, c)
				time.Sleep(tc.renewAt - time.Second)
				if got := token(t, c); got != "token-1" {
					t.Errorf("%v: %s", time.Since(start), got)
				}
				time.Sleep(time.Second)
				if got := token(t, c); got != "token-1" { // which nobody has to wait to be replaced
					t.Errorf("%v: %s", time.Since(start), got)
				}
				synctest.Wait()
				if got := token(t, c); got != "token-2" {
					t.Errorf("%v: %s", time.Since(start), got)
				}
				k.wantAsked(2)

				time.Sleep(3 * tc.life) // nobody has called
				if got := token(t, c); got != "token-3" {
					t.Errorf("%v: %s", time.Since(start), got)
				}
				k.wantAsked(3)
			})
		})
	}
}

// What Keystone has given out is good for its time, whether Keystone is up or not.
func TestTokenOutlivesOutage(t *testing.T) {
	t.Parallel()
	for name, outage := range map[string]http.HandlerFunc{"down": status(503, ""), "hanging": hang, "wrong password": status(401, "")} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				k := newKeystone(t)
				c := cloudOf(t, k)
				token(t, c)
				k.set(outage)
				time.Sleep(55 * time.Minute)
				for range 10 * 5 * 60 { // ten times a second
					asked := time.Now()
					if got := token(t, c); got != "token-1" || time.Since(asked) != 0 {
						t.Fatalf("%s after %v", got, time.Since(asked))
					}
					time.Sleep(time.Second / 10)
				}
				if n := k.asked(); n < 5 || n > 301 {
					t.Errorf("Keystone was asked %d times in 5 minutes", n)
				}
				if _, err := c.ProjectID(t.Context()); err == nil {
					t.Error("a token was used after its end")
				}
				k.set(nil)
				time.Sleep(refusalStands)
				if got := token(t, c); got != "token-2" {
					t.Errorf("when Keystone is back: %s", got)
				}
				synctest.Wait()
			})
		})
	}
}

func TestManyCallersMakeOneRequest(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		odd  http.HandlerFunc
		want error
	}{
		"success": {nil, nil},
		"failure": {status(500, ""), ErrIdentity},
		"refusal": {status(401, ""), ErrCredentials},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				k := newKeystone(t)
				k.set(func(w http.ResponseWriter, r *http.Request) {
					time.Sleep(time.Second)
					if tc.odd != nil {
						tc.odd(w, r)
					} else {
						k.answer(w)
					}
				})
				c := cloudOf(t, k)
				var all sync.WaitGroup
				for range 100 {
					all.Go(func() {
						id, err := c.ProjectID(t.Context())
						wantFault(t, err, tc.want)
						if tc.want == nil && id != "own" {
							t.Errorf("project %q", id)
						}
					})
				}
				all.Wait()
				k.wantAsked(1)
			})
		})
	}
}

func TestWrongPasswordIsNotTriedAgainAtOnce(t *testing.T) {
	t.Parallel()
	for _, code := range []int{401, 403} {
		synctest.Test(t, func(t *testing.T) {
			k := newKeystone(t)
			k.set(status(code, ""))
			c := cloudOf(t, k)
			for range 20 { // half a second each
				_, err := c.ProjectID(t.Context())
				wantFault(t, err, ErrCredentials)
				_, _, err = c.Fresh(t.Context(), Image)
				wantFault(t, err, ErrCredentials)
				time.Sleep(time.Second / 2)
			}
			k.wantAsked(1)
			_, err := c.ProjectID(t.Context())
			wantFault(t, err, ErrCredentials)
			k.wantAsked(2)
			k.set(nil)
			time.Sleep(10 * time.Second)
			if got := token(t, c); got != "token-1" {
				t.Errorf("after the password was corrected: %s", got)
			}
		})
	}
}

func TestFailureIsTriedAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		k := newKeystone(t)
		k.set(status(503, ""))
		c := cloudOf(t, k)
		for range 10 {
			_, err := c.ProjectID(t.Context())
			wantFault(t, err, ErrIdentity)
		}
		k.wantAsked(1)
		k.set(nil)
		time.Sleep(time.Second)
		token(t, c)
		k.wantAsked(2)
	})
}

// Who gives up waiting gets their own reason, and leaves the token to the others.
func TestCallerLeaves(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		k := newKeystone(t)
		k.set(func(w http.ResponseWriter, _ *http.Request) {
			time.Sleep(10 * time.Second)
			k.answer(w)
		})
		c := cloudOf(t, k)
		start, why := time.Now(), errors.New("the import was cancelled")
		for _, call := range map[string]func(context.Context) error{
			"project": func(ctx context.Context) error { _, err := c.ProjectID(ctx); return err },
			"fresh":   func(ctx context.Context) error { _, _, err := c.Fresh(ctx, identity); return err },
			"call":    func(ctx context.Context) error { return c.Identity(ctx, nil) },
		} {
			ctx, cancel := context.WithCancelCause(t.Context())
			time.AfterFunc(time.Second, func() { cancel(why) })
			wantFault(t, call(ctx), why)
		}
		if spent := time.Since(start); spent != 3*time.Second {
			t.Errorf("left after %v", spent)
		}
		token(t, c)
		if spent := time.Since(start); spent != 10*time.Second {
			t.Errorf("token after %v", spent)
		}
		k.wantAsked(1)
	})
}

func TestHangingKeystone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		k := newKeystone(t)
		k.set(hang)
		c := cloudOf(t, k)
		start := time.Now()
		_, err := c.ProjectID(t.Context())
		wantFault(t, err, ErrIdentity)
		if spent := time.Since(start); spent != 30*time.Second {
			t.Errorf("gave up after %v", spent)
		}
	})
}

func TestFreshTokenIsAlwaysNew(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		k := newKeystone(t)
		c := cloudOf(t, k)
		token(t, c)
		for _, want := range []string{"token-2", "token-3"} {
			fresh, endpoint, err := c.Fresh(t.Context(), identity)
			if err != nil || fresh != want || endpoint != "http://keystone.invalid/v3/" {
				t.Errorf("%s for %s, %v; want %s", fresh, endpoint, err, want)
			}
			if got := token(t, c); got != want {
				t.Errorf("calls use %s, not %s", got, want)
			}
		}
		if fresh, _, err := c.Fresh(t.Context(), Image); fresh != "" || !errors.Is(err, ErrCatalogue) {
			t.Errorf("for a service that is not there: %q, %v", fresh, err)
		}

		// Nobody else waits for it.
		k.set(hang)
		var waiting sync.WaitGroup
		waiting.Go(func() {
			_, _, err := c.Fresh(t.Context(), identity)
			wantFault(t, err, ErrIdentity)
		})
		synctest.Wait()
		asked := time.Now()
		if got := token(t, c); got != "token-4" || time.Since(asked) != 0 {
			t.Errorf("%s after %v, while a new one is made", got, time.Since(asked))
		}
		waiting.Wait()
	})
}

// A service refuses a token that ends later, to callers by the dozen.
func TestRefusedTokenIsReplacedOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		k := newKeystone(t)
		c := cloudOf(t, k)
		var all sync.WaitGroup
		for range 100 {
			all.Go(func() {
				calls := 0
				err := c.Identity(t.Context(), func(s *gophercloud.ServiceClient) error {
					calls++
					if s.Token() == "token-1" {
						time.Sleep(time.Millisecond)
						return gophercloud.ErrUnexpectedResponseCode{Actual: http.StatusUnauthorized}
					}
					return nil
				})
				if err != nil || calls != 2 {
					t.Errorf("%d calls, %v", calls, err)
				}
			})
		}
		all.Wait()
		k.wantAsked(2)
	})
}

func TestNonsenseFromKeystone(t *testing.T) {
	t.Parallel()
	const times = `"issued_at":"2026-01-01T00:00:00.000000Z","expires_at":"2026-01-01T01:00:00.000000Z"`
	for name, tc := range map[string]struct {
		code        int
		token, body string
		want        error
	}{
		"good":                {201, "t", `{"token":{"project":{"id":"p"},` + times + `}}`, nil},
		"times without zone":  {201, "t", `{"token":{"project":{"id":"p"},"issued_at":"2026-01-01T00:00:00.000000Z","expires_at":"2026-01-01T01:00:00"}}`, nil},
		"another status":      {200, "t", `{"token":{"project":{"id":"p"},` + times + `}}`, ErrIdentity},
		"not Keystone":        {404, "", `404 page not found`, ErrIdentity},
		"no such credential":  {404, "", `{"error":{"code":404,"message":"Could not find Application Credential: 1.","title":"Not Found"}}`, ErrCredentials},
		"too many requests":   {429, "", `{}`, ErrIdentity},
		"no body":             {201, "t", ``, ErrIdentity},
		"no JSON":             {201, "t", `<html>`, ErrIdentity},
		"cut off":             {201, "t", `{"token":{"project":{"id":"p"},`, ErrIdentity},
		"null":                {201, "t", `null`, ErrIdentity},
		"a list":              {201, "t", `[]`, ErrIdentity},
		"empty":               {201, "t", `{}`, ErrIdentity},
		"no token":            {201, "", `{"token":{"project":{"id":"p"},` + times + `}}`, ErrIdentity},
		"no project":          {201, "t", `{"token":{"domain":{"id":"d"},` + times + `}}`, ErrIdentity},
		"project null":        {201, "t", `{"token":{"project":null,` + times + `}}`, ErrIdentity},
		"no times":            {201, "t", `{"token":{"project":{"id":"p"}}}`, ErrIdentity},
		"odd times":           {201, "t", `{"token":{"project":{"id":"p"},"issued_at":"now","expires_at":"later"}}`, ErrIdentity},
		"a number as time":    {201, "t", `{"token":{"project":{"id":"p"},"issued_at":1,"expires_at":2}}`, ErrIdentity},
		"ends as it begins":   {201, "t", `{"token":{"project":{"id":"p"},"issued_at":"2026-01-01T00:00:00Z","expires_at":"2026-01-01T00:00:00Z"}}`, ErrIdentity},
		"ends before":         {201, "t", `{"token":{"project":{"id":"p"},"issued_at":"2026-01-01T00:00:01Z","expires_at":"2026-01-01T00:00:00Z"}}`, ErrIdentity},
		"a longer catalogue":  {201, "t", `{"token":{"catalog":"` + strings.Repeat(" ", maxAnswerBytes) + `"}}`, ErrIdentity},
		"no list as catalog":  {201, "t", `{"token":{"project":{"id":"p"},"catalog":{},` + times + `}}`, ErrIdentity},
		"a null in catalogue": {201, "t", `{"token":{"project":{"id":"p"},"catalog":[null,{"endpoints":[null]}],` + times + `}}`, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			k := newKeystone(t)
			k.set(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("X-Subject-Token", tc.token)
				status(tc.code, tc.body)(w, r)
			})
			c := cloudOf(t, k)
			_, err := c.current(t.Context(), secret.Text{})
			wantFault(t, err, tc.want)
		})
	}
}
