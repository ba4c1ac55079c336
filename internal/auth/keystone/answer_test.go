package keystone

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"
	"time"

	"vmimport/internal/auth"
	"vmimport/internal/fault"
	"vmimport/internal/openstack"
)

const times = `"issued_at":"2026-01-01T00:00:00.000000Z","expires_at":"2126-01-01T01:00:00.000000Z"`

func TestIdentityOfToken(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		body string
		want auth.Identity
	}{
		"project": {aliceUntil(time.Now().Add(time.Hour)),
			auth.Identity{UserID: "alice", ProjectID: "alpha", DomainID: "d1", Roles: []string{"member", "reader"}}},
		"user of another domain": {`{"token":{"user":{"id":"u","domain":{"id":"d2"}},"project":{"id":"p","domain":{"id":"d1"}},"roles":[{"name":"member"}],` + times + `}}`,
			auth.Identity{UserID: "u", ProjectID: "p", DomainID: "d1", Roles: []string{"member"}}},
		"no roles": {`{"token":{"user":{"id":"u"},"project":{"id":"p","domain":{"id":"d1"}},` + times + `}}`,
			auth.Identity{UserID: "u", ProjectID: "p", DomainID: "d1"}},
		"domain": {`{"token":{"user":{"id":"u","domain":{"id":"d1"}},"domain":{"id":"d1","name":"contract"},"roles":[{"name":"admin"}],` + times + `}}`,
			auth.Identity{UserID: "u", Roles: []string{"admin"}}},
		"system": {`{"token":{"user":{"id":"u"},"system":{"all":true},"roles":[{"name":"admin"}],` + times + `}}`,
			auth.Identity{UserID: "u", Roles: []string{"admin"}}},
		"unscoped": {`{"token":{"user":{"id":"u","domain":{"id":"d1"}},` + times + `}}`,
			auth.Identity{UserID: "u"}},
		"nulls": {`{"token":{"user":{"id":"u","domain":null},"project":null,"domain":null,"roles":null,"is_domain":null,` + times + `}}`,
			auth.Identity{UserID: "u"}},
		"project that stands for a domain": {`{"token":{"user":{"id":"u"},"is_domain":true,"project":{"id":"d1","domain":{"id":null,"name":null}},` + times + `}}`,
			auth.Identity{UserID: "u"}},
		"and has itself as domain": {`{"token":{"user":{"id":"u"},"is_domain":true,"project":{"id":"d1","domain":{"id":"d1"}},` + times + `}}`,
			auth.Identity{UserID: "u"}},
		"project without domain": {`{"token":{"user":{"id":"u"},"project":{"id":"p","domain":null},` + times + `}}`,
			auth.Identity{UserID: "u"}},
		"domain without project": {`{"token":{"user":{"id":"u"},"project":{"domain":{"id":"d"}},` + times + `}}`,
			auth.Identity{UserID: "u"}},
		"end without zone": {`{"token":{"user":{"id":"u"},"expires_at":"2126-01-01T01:00:00"}}`,
			auth.Identity{UserID: "u"}},
		"expired by our clock": {`{"token":{"user":{"id":"u"},"expires_at":"2016-01-01T01:00:00.000000Z"}}`,
			auth.Identity{UserID: "u"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a, _ := served(t, say(200, tc.body))
			who, err := a.Authenticate(t.Context(), "their-token")
			if err != nil || !reflect.DeepEqual(who, &tc.want) {
				t.Errorf("got %+v, %v; want %+v", who, err, tc.want)
			}
		})
	}
}

func TestAnswersThatLetNobodyIn(t *testing.T) {
	t.Parallel()
	alice := aliceUntil(time.Now().Add(time.Hour))
	for name, tc := range map[string]struct {
		status      int
		body        string
		want        error
		made, asked int // if not 1
	}{
		"unknown":         {status: 404, body: notFound, want: auth.ErrNoIdentity},
		"not Keystone":    {status: 404, body: "404 page not found", want: openstack.ErrIdentity},
		"nor this":        {status: 404, body: `{"error":"not found"}`, want: openstack.ErrIdentity},
		"empty 404":       {status: 404, want: openstack.ErrIdentity},
		"may not ask":     {status: 403, body: "their-token", want: ErrCannotValidate},
		"not authentic":   {status: 401, body: "own-token", want: openstack.ErrIdentity, made: 2, asked: 2},
		"no content":      {status: 204, want: openstack.ErrIdentity},
		"other success":   {status: 203, body: alice, want: openstack.ErrIdentity},
		"created":         {status: 201, body: alice, want: openstack.ErrIdentity},
		"choices":         {status: 300, body: alice, want: openstack.ErrIdentity},
		"redirect":        {status: 302, body: alice, want: openstack.ErrIdentity},
		"bad request":     {status: 400, body: "their-token", want: openstack.ErrIdentity},
		"slow down":       {status: 429, want: openstack.ErrIdentity},
		"broken":          {status: 500, body: "their-token own-token-1 pass-word", want: openstack.ErrIdentity},
		"bad gateway":     {status: 502, body: alice, want: openstack.ErrIdentity},
		"down":            {status: 503, body: alice, want: openstack.ErrIdentity},
		"cut connection":  {status: 0, want: openstack.ErrIdentity},
		"no body":         {status: 200, want: openstack.ErrIdentity},
		"HTML":            {status: 200, body: "<html>", want: openstack.ErrIdentity},
		"cut JSON":        {status: 200, body: alice[:len(alice)-1], want: openstack.ErrIdentity},
		"more than JSON":  {status: 200, body: alice + "}", want: openstack.ErrIdentity},
		"twice":           {status: 200, body: alice + alice, want: openstack.ErrIdentity},
		"null":            {status: 200, body: "null", want: openstack.ErrIdentity},
		"null token":      {status: 200, body: `{"token":null}`, want: openstack.ErrIdentity},
		"list":            {status: 200, body: `[]`, want: openstack.ErrIdentity},
		"empty":           {status: 200, body: `{}`, want: openstack.ErrIdentity},
		"error as answer": {status: 200, body: notFound, want: openstack.ErrIdentity},
		"no user":         {status: 200, body: `{"token":{"project":{"id":"p","domain":{"id":"d"}},` + times + `}}`, want: openstack.ErrIdentity},
		"user without id": {status: 200, body: `{"token":{"user":{"id":""},` + times + `}}`, want: openstack.ErrIdentity},
		"number as id":    {status: 200, body: `{"token":{"user":{"id":1},` + times + `}}`, want: openstack.ErrIdentity},
		"project by name": {status: 200, body: `{"token":{"user":{"id":"u"},"project":"p",` + times + `}}`, want: openstack.ErrIdentity},
		"roles by name":   {status: 200, body: `{"token":{"user":{"id":"u"},"roles":["admin"],` + times + `}}`, want: openstack.ErrIdentity},
		"no end":          {status: 200, body: `{"token":{"user":{"id":"u"}}}`, want: openstack.ErrIdentity},
		"odd end":         {status: 200, body: `{"token":{"user":{"id":"u"},"expires_at":"their-token"}}`, want: openstack.ErrIdentity},
		"too long":        {status: 200, body: strings.Repeat(" ", maxAnswerBytes) + alice, want: openstack.ErrIdentity},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a, k := served(t, say(tc.status, tc.body))
			who, err := a.Authenticate(t.Context(), "their-token")
			wantFault(t, err, tc.want)
			if who != nil || tc.want != auth.ErrNoIdentity && fault.KindOf(err) != fault.Unavailable {
				t.Errorf("got %v, %v", who, err)
			}
			// net/http itself tries again when a connection that was in use is cut.
			if made, asked := k.counts(); tc.status != 0 && (made != max(tc.made, 1) || asked != max(tc.asked, 1)) {
				t.Errorf("%d tokens, %d questions", made, asked)
			}
		})
	}
}

// Keystone and its proxies may not mix up tokens that come at the same time.
func TestAnswerAboutAnotherToken(t *testing.T) {
	t.Parallel()
	for _, other := range []string{"", "alices-token", "their-token,their-token"} {
		a, _ := served(t, func(w http.ResponseWriter, _ *http.Request, _ int) {
			w.Header().Set("X-Subject-Token", other)
			fmt.Fprint(w, aliceUntil(time.Now().Add(time.Hour)))
		})
		_, err := a.Authenticate(t.Context(), "their-token")
		wantFault(t, err, openstack.ErrIdentity)
	}
}

func TestOwnTokenIsRenewed(t *testing.T) {
	t.Parallel()
	a, k := served(t, func(w http.ResponseWriter, r *http.Request, asked int) {
		if r.Header.Get("X-Auth-Token") == "own-token-1" {
			say(401, "")(w, r, asked)
			return
		}
		say(200, aliceUntil(time.Now().Add(time.Hour)))(w, r, asked)
	})
	if who, err := a.Authenticate(t.Context(), "their-token"); err != nil || who.UserID != "alice" {
		t.Errorf("got %v, %v", who, err)
	}
	if made, asked := k.counts(); made != 2 || asked != 2 {
		t.Errorf("%d tokens, %d questions", made, asked)
	}
}

// That the service itself is not known says nothing about who asks.
func TestServiceIsNotKnown(t *testing.T) {
	t.Parallel()
	for status, want := range map[int]error{401: openstack.ErrCredentials, 403: openstack.ErrCredentials, 404: openstack.ErrCredentials, 500: openstack.ErrIdentity} {
		a, k := served(t, nil)
		k.refusal = status
		_, err := a.Authenticate(t.Context(), "their-token")
		wantFault(t, err, want)
		wantFault(t, a.Check(t.Context()), want)
	}
}

func TestNoKeystone(t *testing.T) {
	t.Parallel()
	gone := httptest.NewServer(nil)
	gone.Close()
	a := at(t, gone.URL)
	_, err := a.Authenticate(t.Context(), "their-token")
	wantFault(t, err, openstack.ErrIdentity)
	wantFault(t, a.Check(t.Context()), openstack.ErrIdentity)
}

func TestCheck(t *testing.T) {
	t.Parallel()
	own := func(roles string) string {
		return `{"token":{"user":{"id":"vmimport"},"project":{"id":"service","domain":{"id":"default"}},"roles":[` + roles + `],` + times + `}}`
	}
	for name, tc := range map[string]struct {
		status int
		body   string
		want   error
	}{
		"admin":       {200, own(`{"name":"member"},{"name":"admin"}`), nil},
		"service":     {200, own(`{"name":"Service"}`), nil},
		"member":      {200, own(`{"name":"member"},{"name":"ResellerAdmin"}`), ErrCannotValidate},
		"no role":     {200, own(``), ErrCannotValidate},
		"may not ask": {403, "", ErrCannotValidate},
		"unknown":     {404, notFound, openstack.ErrIdentity},
		"no Keystone": {404, "", openstack.ErrIdentity},
		"down":        {503, "", openstack.ErrIdentity},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a, _ := served(t, func(w http.ResponseWriter, r *http.Request, asked int) {
				if own, subject := r.Header.Get("X-Auth-Token"), r.Header.Get("X-Subject-Token"); own != subject {
					t.Errorf("asked with %s about %s", own, subject)
				}
				say(tc.status, tc.body)(w, r, asked)
			})
			err := a.Check(t.Context())
			wantFault(t, err, tc.want)
			if err != nil && fault.KindOf(err) != fault.Unavailable {
				t.Errorf("kind of %v", err)
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(aliceUntil(time.Unix(0, 0))))
	f.Add([]byte(`{"token":{"user":{"id":"u"},"is_domain":true,"project":{"id":"p","domain":null},` + times + `}}`))
	f.Add([]byte(`{"token":{"user":null,"roles":[null,{}],"expires_at":"2026-01-01T00:00:00"}}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		said, err := parse(body)
		if err != nil {
			return
		}
		if w := said.who; w.UserID == "" || (w.ProjectID == "") != (w.DomainID == "") {
			t.Errorf("accepted %+v", said)
		}
	})
}
