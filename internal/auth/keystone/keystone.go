// Package keystone authenticates callers by asking OpenStack's identity service
// whose their tokens are.
//
// Keystone's word is the only one that lets anybody in, and it is never older than a
// minute: so a token that is revoked is refused within that. When Keystone cannot be
// asked, nobody is let in but those it knew a moment ago. It is asked once for all who
// come with a token, and about a bounded number of tokens at a time.
//
// Tokens are not kept, only their digests.
package keystone

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"vmimport/internal/auth"
	"vmimport/internal/fault"
	"vmimport/internal/openstack"
)

// MaxCacheFor bounds Options.CacheFor, and so for how long a token is taken that has
// been revoked.
const MaxCacheFor = time.Minute

// Options set up an Authenticator.
type Options struct {
	// CacheFor is how long Keystone is not asked again about a token that it knew,
	// at most MaxCacheFor; zero is 30 s.
	CacheFor time.Duration
}

// What keeps callers from being known, besides a cloud that does not answer
// (openstack.ErrIdentity and its kin). None of it is their fault.
var (
	ErrCannotValidate = fault.New(fault.Unavailable, "identity_forbidden",
		"The import service may not ask the cloud's identity service about tokens.").
		Try("Give the service's user the role admin or service in its project.")
	ErrBusy = fault.New(fault.Unavailable, "identity_busy",
		"Too many tokens are being checked at the same time.").
		Try("Try again in a moment.")
)

const (
	// Tokens that Keystone did not know. Long enough to take the weight out of a
	// client that repeats itself, short enough for a Keystone that learns of a
	// token, or of a key, a little later than the one that issued it.
	badStands = 5 * time.Second

	maxGood    = 10_000
	maxBad     = 1_000
	maxLookups = 64 // under way at a time

	// Keystone answers in milliseconds, or is down.
	patience = 10 * time.Second
)

// Authenticator implements auth.TokenAuthenticator.
type Authenticator struct {
	cloud    *openstack.Cloud
	cacheFor time.Duration
	validate func(ctx context.Context, token string) (*answer, error)

	mu       sync.Mutex // guards what follows
	good     cache
	bad      cache // apart, so that strangers cannot push out those who are known
	underWay map[digest]*lookup
}

var _ auth.TokenAuthenticator = (*Authenticator)(nil)

// digest stands for a token.
type digest [sha256.Size]byte

// lookup is one question to Keystone, shared by all who have it meanwhile. Nobody
// owns it: who gives up waiting leaves it to the others.
type lookup struct {
	done chan struct{} // closed when the rest is set
	who  *auth.Identity
	err  error
}

// New returns an authenticator for the tokens of cloud. It makes no request.
func New(cloud *openstack.Cloud, o Options) (*Authenticator, error) {
	if o.CacheFor < 0 || o.CacheFor > MaxCacheFor {
		return nil, fmt.Errorf("keystone: tokens may be cached for %v at most, not %v", MaxCacheFor, o.CacheFor)
	}
	a := &Authenticator{
		cloud:    cloud,
		cacheFor: cmp.Or(o.CacheFor, 30*time.Second),
		good:     newCache(maxGood),
		bad:      newCache(maxBad),
		underWay: map[digest]*lookup{},
	}
	a.validate = a.ask
	return a, nil
}

// Authenticate implements auth.TokenAuthenticator. A token that is not scoped to a
// project belongs to an identity without ProjectID and DomainID.
func (a *Authenticator) Authenticate(ctx context.Context, token string) (*auth.Identity, error) {
	if !plain(token) {
		return nil, auth.ErrNoIdentity
	}
	l, err := a.lookUp(ctx, token)
	if err != nil {
		return nil, err
	}
	select {
	case <-l.done:
	case <-ctx.Done():
		return nil, openstack.ErrIdentity.Because(fmt.Errorf("validate token: %w", context.Cause(ctx)))
	}
	if l.err != nil {
		return nil, l.err
	}
	who := *l.who
	who.Roles = slices.Clone(who.Roles)
	return &who, nil
}

// plain reports whether token consists of characters that tokens are made of. Others
// cannot be sent in a header, which must not look as if Keystone were down.
func plain(token string) bool {
	for _, c := range []byte(token) {
		if c <= ' ' || c > '~' {
			return false
		}
	}
	return token != ""
}

// lookUp returns the lookup of token: one that is over, if the token is known, or one
// under way.
func (a *Authenticator) lookUp(ctx context.Context, token string) (*lookup, error) {
	key := digest(sha256.Sum256([]byte(token)))
	a.mu.Lock()
	defer a.mu.Unlock()
	now := time.Now()
	for _, l := range []*lookup{a.good.get(key, now), a.bad.get(key, now), a.underWay[key]} {
		if l != nil {
			return l, nil
		}
	}
	if len(a.underWay) >= maxLookups {
		return nil, ErrBusy
	}
	l := &lookup{done: make(chan struct{})}
	a.underWay[key] = l
	go a.run(context.WithoutCancel(ctx), l, key, token)
	return l, nil
}

// run asks Keystone, and remembers what it says.
func (a *Authenticator) run(ctx context.Context, l *lookup, key digest, token string) {
	ctx, cancel := context.WithTimeoutCause(ctx, patience, fmt.Errorf("no answer within %v", patience))
	defer cancel()
	// The answer is about some moment after this one.
	began := time.Now()
	said, err := a.validate(ctx, token)

	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.underWay, key)
	defer close(l.done)
	if err != nil {
		l.err = err
		if errors.Is(err, auth.ErrNoIdentity) {
			a.bad.put(key, l, began.Add(badStands))
		}
		return
	}
	l.who = &said.who
	// If our clock is wrong a token is cached for too short a time, or for no
	// longer than one that has been revoked.
	until := began.Add(a.cacheFor)
	if said.expires.Before(until) {
		until = said.expires
	}
	a.good.put(key, l, until)
}

// Check reports whether callers can be authenticated: whether Keystone answers, and
// the service may ask about tokens of others. Everybody may ask about their own, so
// the latter is told by the service's roles, as Keystone's own rules have them.
func (a *Authenticator) Check(ctx context.Context) error {
	said, err := a.ask(ctx, "")
	if errors.Is(err, auth.ErrNoIdentity) {
		return openstack.ErrIdentity.Because(errors.New("validate token: Keystone does not know the service's own, perhaps for the access rules of an application credential"))
	}
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(said.who.Roles, validates) {
		return ErrCannotValidate.Because(fmt.Errorf("the service has the roles %q", said.who.Roles))
	}
	return nil
}
