package openstack

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"github.com/gophercloud/gophercloud/v2"

	"vmimport/internal/fault"
)

// What keeps the service from acting in its cloud. None of it is a customer's to
// mend, so all are Unavailable; the remedies are for the operator.
var (
	ErrIdentity = fault.New(fault.Unavailable, "identity_unavailable",
		"The cloud's identity service did not answer as it should.").
		Try("Start Keystone, or correct keystone.url.")
	ErrCredentials = fault.New(fault.Unavailable, "identity_refused",
		"The cloud's identity service does not know the import service.").
		Try("Correct the service's user, password, project and domain, or its application credential.")
	ErrCatalogue = fault.New(fault.Unavailable, "endpoint_unknown",
		"The cloud does not say where one of its services is.").
		Try("Correct keystone.region and keystone.interface, or the catalogue.")
)

// identityFault gives meaning to what came of asking for a token.
func identityFault(err error) error {
	f := ErrIdentity
	status := StatusOf(err)
	if status == http.StatusUnauthorized || status == http.StatusForbidden || Unknown(err) {
		f = ErrCredentials
	}
	return f.Because(fmt.Errorf("get token: %w", Cause(err)))
}

// Unknown reports whether Keystone said that it does not know what it was asked
// about, such as a token or an application credential, rather than something before
// it that it does not know Keystone.
func Unknown(err error) bool {
	status, text := Answer(err)
	if status != http.StatusNotFound {
		return false
	}
	var body struct {
		Error struct {
			Code int `json:"code"`
		} `json:"error"`
	}
	return json.Unmarshal(text, &body) == nil && body.Error.Code == http.StatusNotFound
}

// Answer returns status and body of the answer that made err, 0 if there was none. The
// body is not for logs: see Cause.
func Answer(err error) (status int, body []byte) {
	if e, ok := errors.AsType[gophercloud.ErrUnexpectedResponseCode](err); ok {
		return e.Actual, e.Body
	}
	return 0, nil
}

// StatusOf returns the status of the answer that made err, 0 if there was none.
func StatusOf(err error) int {
	status, _ := Answer(err)
	return status
}

// Cause returns what may be logged of a client's error: all of it, but for an answer
// that was not expected only its status. Its body may hold what was sent: Keystone
// repeats tokens that it does not find, and requests that it does not understand.
func Cause(err error) error {
	if e, ok := errors.AsType[gophercloud.ErrUnexpectedResponseCode](err); ok {
		return fmt.Errorf("%s: status %d", e.Method, e.Actual)
	}
	return err
}
