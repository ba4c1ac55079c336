package openstack

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/gophercloud/gophercloud/v2"
	"github.com/gophercloud/gophercloud/v2/openstack/identity/v3/tokens"

	"vmimport/internal/secret"
)

// session is one token with what came along with it. It never changes.
type session struct {
	token     secret.Text
	renewAt   time.Time // by this machine's clock
	endsAt    time.Time // likewise
	projectID string
	catalogue []tokens.CatalogEntry
}

// attempt is one try to get a session, shared by all who want one meanwhile. Nobody
// owns it: who gives up waiting leaves it to the others.
type attempt struct {
	done    chan struct{} // closed when it is over
	session *session
	err     error
	stands  time.Time // how long a failure is not tried again; zero while under way
}

const (
	// Asking again and again with a wrong password could get the service's user
	// locked out.
	refusalStands = 10 * time.Second
	// All who want a token from a Keystone that is down need not find out each by
	// themselves.
	failureStands = time.Second
)

// current returns a session that is another than the one whose token was refused.
// Near its end it is renewed, which nobody waits for while it lasts: so an identity
// service that is down for a moment keeps no service from being used.
func (c *Cloud) current(ctx context.Context, refused secret.Text) (*session, error) {
	c.mu.Lock()
	s, now := c.session, time.Now()
	lasts := s != nil && s.token != refused && now.Before(s.endsAt)
	if lasts && now.Before(s.renewAt) {
		c.mu.Unlock()
		return s, nil
	}
	a := c.begin(ctx)
	c.mu.Unlock()
	if lasts {
		return s, nil
	}
	return a.wait(ctx)
}

// renewed returns a session that is no older than an attempt takes.
func (c *Cloud) renewed(ctx context.Context) (*session, error) {
	c.mu.Lock()
	a := c.begin(ctx)
	c.mu.Unlock()
	return a.wait(ctx)
}

// begin returns the attempt that is under way, or failed just now, else a new one.
// c.mu is held.
func (c *Cloud) begin(ctx context.Context) *attempt {
	if a := c.attempt; a != nil && (a.stands.IsZero() || time.Now().Before(a.stands)) {
		return a
	}
	a := &attempt{done: make(chan struct{})}
	c.attempt = a
	go func() {
		s, err := c.authenticate(context.WithoutCancel(ctx))
		c.mu.Lock()
		defer c.mu.Unlock()
		a.session, a.err = s, err
		switch {
		case err == nil:
			c.session, c.attempt = s, nil
		case errors.Is(err, ErrCredentials):
			a.stands = time.Now().Add(refusalStands)
		default:
			a.stands = time.Now().Add(failureStands)
		}
		close(a.done)
	}()
	return a
}

func (a *attempt) wait(ctx context.Context) (*session, error) {
	select {
	case <-a.done:
		return a.session, a.err
	case <-ctx.Done():
		return nil, fmt.Errorf("get token: %w", context.Cause(ctx))
	}
}

// authenticate gets a token, within AnswerTimeout.
func (c *Cloud) authenticate(ctx context.Context) (*session, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, c.opt.AnswerTimeout, fmt.Errorf("no answer within %v", c.opt.AnswerTimeout))
	defer cancel()
	// The time that passes here must not make the token look younger than it is.
	began := time.Now()
	request, err := c.opt.tokenRequest()
	if err != nil {
		return nil, ErrCredentials.Because(fmt.Errorf("get token: %w", err))
	}
	client := c.service(secret.Text{}, strings.TrimRight(c.opt.AuthURL, "/")+"/")
	resp, err := client.Post(ctx, client.ServiceURL("auth", "tokens"), request, nil,
		&gophercloud.RequestOpts{OkCodes: []int{http.StatusCreated}, KeepResponseBody: true})
	if err != nil {
		return nil, identityFault(err)
	}
	defer resp.Body.Close()
	s, err := newSession(resp, began)
	if err != nil {
		return nil, ErrIdentity.Because(fmt.Errorf("read token: %w", err))
	}
	return s, nil
}

// tokenRequest tells Keystone who the service is.
func (o *Options) tokenRequest() (map[string]any, error) {
	domain := cmp.Or(o.UserDomain, "Default")
	auth := gophercloud.AuthOptions{
		Username:   o.Username,
		DomainName: domain,
		Password:   o.Password.Reveal(),
		Scope:      &gophercloud.AuthScope{ProjectName: o.Project, DomainName: cmp.Or(o.ProjectDomain, domain)},
	}
	if o.ApplicationCredentialID != "" {
		auth = gophercloud.AuthOptions{
			ApplicationCredentialID:     o.ApplicationCredentialID,
			ApplicationCredentialSecret: o.ApplicationCredentialSecret.Reveal(),
		}
	}
	scope, err := auth.ToTokenV3ScopeMap()
	if err != nil {
		return nil, err
	}
	return auth.ToTokenV3CreateMap(scope)
}

// maxAnswerBytes is far above the catalogue of any cloud.
const maxAnswerBytes = 8 << 20

// newSession reads the answer to a request that was made at the given time.
func newSession(resp *http.Response, began time.Time) (*session, error) {
	var answer struct {
		Token struct {
			IssuedAt  string                `json:"issued_at"`
			ExpiresAt string                `json:"expires_at"`
			Project   tokens.Project        `json:"project"`
			Catalog   []tokens.CatalogEntry `json:"catalog"`
		} `json:"token"`
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswerBytes))
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(body, &answer); err != nil {
		return nil, err
	}
	issued, err := ParseTime(answer.Token.IssuedAt)
	if err != nil {
		return nil, err
	}
	expires, err := ParseTime(answer.Token.ExpiresAt)
	if err != nil {
		return nil, err
	}
	// Both times are of the other side's clock, so that ours may be wrong.
	life := expires.Sub(issued)
	token := secret.New(resp.Header.Get("X-Subject-Token"))
	switch {
	case token.IsZero():
		return nil, errors.New("the answer has no token")
	case answer.Token.Project.ID == "":
		return nil, errors.New("the token is not for a project")
	case life <= 0:
		return nil, errors.New("the token ends before it begins")
	}
	return &session{
		token:     token,
		renewAt:   began.Add(life - spare(life)),
		endsAt:    began.Add(life),
		projectID: answer.Token.Project.ID,
		catalogue: answer.Token.Catalog,
	}, nil
}

// spare is how long before its end a token is replaced: long enough for what is
// begun with it to be looked at, and much shorter than its life.
func spare(life time.Duration) time.Duration { return min(life/3, 5*time.Minute) }

// ParseTime reads a time of Keystone's. It is in UTC, and mostly says so; that of a
// token that ends with its application credential has no zone.
func ParseTime(s string) (time.Time, error) {
	if t, err := time.Parse(time.RFC3339, s); err == nil {
		return t, nil
	}
	t, err := time.Parse("2006-01-02T15:04:05", s)
	if err != nil {
		return time.Time{}, errors.New("a time of the token is missing or in no known form")
	}
	return t, nil
}
