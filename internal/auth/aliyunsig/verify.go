package aliyunsig

import (
	"context"
	"crypto/hmac"
	"crypto/sha1" // what version 1.0 of the RPC signature is made of
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"hash"
	"net/http"
	"time"

	"vmimport/internal/secret"
)

// Window is how far a request's time may be from ours, either way.
const Window = 15 * time.Minute

// nonceTTL is how long nonces are remembered. A request signed in advance can come for
// twice the window; the rest is for servers whose clocks differ.
const nonceTTL = 2*Window + time.Minute

// maxEcho bounds in bytes how much of a string to sign is sent back. It is far above what a
// large import has; beyond it the client could only not compare the rest.
const maxEcho = 64 << 10

// Key is an access key as the accounts have it.
type Key struct {
	Secret   secret.Text // zero: nothing is signed with this key
	Disabled bool
	// SecurityToken has to come with every request of a temporary key. It is zero for a
	// permanent one, with which no token may come.
	SecurityToken secret.Text
	// Expires is when a temporary key ends; without it, it has ended. It means nothing for
	// a permanent one.
	Expires time.Time
}

// Nonces remembers what has been used.
type Nonces interface {
	// Use reports whether nonce is new for the key, and remembers it for at least ttl.
	// Of any number of calls at the same time one is told so. An error, of kind
	// fault.Unavailable, says nothing about the nonce.
	Use(ctx context.Context, keyID, nonce string, ttl time.Duration) (bool, error)
}

// Verifier verifies requests. It is safe for concurrent use.
type Verifier struct {
	keys   func(keyID string) (Key, bool)
	nonces Nonces
	now    func() time.Time
}

// New returns a verifier for what keys returns, which is asked once for each request. All
// servers that know the same keys must share their nonces.
func New(keys func(keyID string) (Key, bool), nonces Nonces, now func() time.Time) *Verifier {
	return &Verifier{keys, nonces, now}
}

// Verify reports whether q, which Parse returned without an error, was signed with its key,
// lately, and is seen for the first time. It checks the time, the key, the security token,
// the signature and the nonce, in this order; so only who has the key uses a nonce up. Only
// then it is a matter whether there are an Action and a Version.
//
// Nonces take room until they are forgotten. So proved, if it is not nil, is asked between
// the signature and the nonce whether the holder of the key may go on.
//
// Errors are of type *Refusal, but for those of proved, and those of Nonces, which are wrapped.
func (v *Verifier) Verify(ctx context.Context, q *Request, proved func() error) error {
	now := v.now()
	if now.Sub(q.Time).Abs() > Window {
		return refuse(http.StatusBadRequest, "InvalidTimeStamp.Expired", "Specified time stamp or date value is expired.")
	}
	key, known := v.keys(q.KeyID)
	switch {
	case !known || key.Secret.IsZero():
		return refuse(http.StatusNotFound, "InvalidAccessKeyId.NotFound", "Specified access key is not found.")
	case key.Disabled:
		return refuse(http.StatusForbidden, "Forbidden.AccessKeyDisabled", "The Access Key is disabled.")
	case !same(q.SecurityToken.Reveal(), key.SecurityToken.Reveal()):
		return refuse(http.StatusBadRequest, "InvalidSecurityToken.Malformed", "The specified security token does not belong to the access key.")
	case !key.SecurityToken.IsZero() && !now.Before(key.Expires):
		return refuse(http.StatusBadRequest, "InvalidSecurityToken.Expired", "The specified security token is expired.")
	case !same(q.signature, q.sign(key.Secret)):
		return q.mismatch("Specified signature is not matched with our calculation.")
	case q.altered:
		return q.mismatch("The body is not the one that x-acs-content-sha256 is of.")
	}
	if proved != nil {
		if err := proved(); err != nil {
			return err
		}
	}
	fresh, err := v.nonces.Use(ctx, q.KeyID, q.Nonce, nonceTTL)
	switch {
	case err != nil:
		return fmt.Errorf("use nonce: %w", err)
	case !fresh:
		return refuse(http.StatusBadRequest, "SignatureNonceUsed", "Specified signature nonce was used already.")
	case q.Action == "":
		return missing("Action")
	case q.Version == "":
		return missing("Version")
	}
	return nil
}

// sign returns the signature that q should have.
func (q *Request) sign(key secret.Text) string {
	if q.Scheme == ACS3 {
		return hex.EncodeToString(mac(sha256.New, key.Reveal(), q.toSign))
	}
	return base64.StdEncoding.EncodeToString(mac(sha1.New, key.Reveal()+"&", q.toSign))
}

// mismatch ends in the words by which clients find our string to sign, to tell a wrong
// secret from a fault in how they sign.
func (q *Request) mismatch(what string) *Refusal {
	echo := q.toSign[:min(len(q.toSign), maxEcho)]
	return refuse(http.StatusBadRequest, "SignatureDoesNotMatch", "%s server string to sign is:%s", what, echo)
}

func mac(h func() hash.Hash, key, text string) []byte {
	m := hmac.New(h, []byte(key))
	m.Write([]byte(text)) // never fails
	return m.Sum(nil)
}

// same takes as long for a guess that is nearly right as for any other.
func same(a, b string) bool { return subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1 }
