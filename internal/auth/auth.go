// Package auth says who is asking. Authenticators for tokens and for signed
// requests all yield an Identity, so that dialects do not care who signed.
package auth

import (
	"context"

	"vmimport/internal/fault"
)

// Identity is an authenticated caller.
type Identity struct {
	UserID    string
	ProjectID string // empty: the token is not scoped to a project
	DomainID  string // of the project
	Roles     []string
}

// TokenAuthenticator checks bearer tokens. It is safe for concurrent use.
type TokenAuthenticator interface {
	// Authenticate returns who token belongs to, or ErrNoIdentity if it is
	// unknown, expired or revoked. Any other error is of kind
	// fault.Unavailable and must not open the door.
	Authenticate(ctx context.Context, token string) (*Identity, error)
}

// ErrNoIdentity is returned for credentials that prove nothing.
var ErrNoIdentity = fault.New(fault.Denied, "not_authenticated", "The token is missing, invalid or expired.").
	Try("Get a token that is scoped to a project, and send it as X-Auth-Token.")
