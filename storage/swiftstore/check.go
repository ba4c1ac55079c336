package swiftstore

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"

	"github.com/gophercloud/gophercloud/v2"

	"vmimport/internal/fault"
)

// Check reports whether Swift can be reached, accepts the service's token, and lets
// the service read the accounts of others. It looks at the account of a project that
// does not exist, which changes nothing: Swift answers 404, or 204 if it makes
// accounts when something is first put into them.
func (s *Store) Check(ctx context.Context) error {
	id := make([]byte, 16)
	_, _ = rand.Read(id) // never fails
	a, err := s.account(ctx, hex.EncodeToString(id))
	if err != nil {
		return verdict(ctx, err)
	}
	answer, err := a.send(ctx, request{
		op: "look at account", method: http.MethodHead,
		// Swift ends its answer 204 with an empty chunk, which the next request on
		// the connection would take for an answer.
		header: map[string]string{"Connection": "close"},
	})
	if err != nil {
		return verdict(ctx, err)
	}
	discard(answer)
	seen := fmt.Errorf("look at account: status %d", answer.StatusCode)
	switch code := answer.StatusCode; {
	case code == http.StatusForbidden:
		return errRight.Because(seen)
	// Anything may answer 404; Swift gives each answer a number.
	case answer.Header.Get("X-Trans-Id") == "":
		return errNotSwift.Because(seen)
	case code/100 == 2, code == http.StatusNotFound, code == http.StatusGone:
		return nil
	}
	return errNotSwift.Because(seen)
}

// verdict tells an operator why there was no answer.
func verdict(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return err
	}
	if gophercloud.ResponseCodeIs(err, http.StatusUnauthorized) {
		return errToken.Because(err)
	}
	// What the identity service or the catalogue lacks is said there.
	if inner, ok := errors.AsType[*fault.Error](errors.Unwrap(fault.Of(err))); ok {
		return inner
	}
	return errUnreachable.Because(err)
}
