// Package aliyunsig checks the signatures of Alibaba Cloud's clients: the older one over
// parameters (RPC, HMAC-SHA1), and the newer one over headers (ACS3-HMAC-SHA256).
//
// Parse reads a request as its signer saw it, which is after decoding, because clients
// differ in how they encode the same values. Verify proves who signed it, and that nobody
// has sent it before. What either refuses is a *Refusal, in the words of the vendor's API.
//
// What is not signed is not believed: parameters have one meaning only, and the headers
// that say anything about a request must be among the signed ones.
package aliyunsig

import (
	"cmp"
	"maps"
	"net/http"
	"strings"
	"time"

	"vmimport/internal/secret"
)

// Scheme is a way of signing.
type Scheme int

// The schemes. A request that is not signed at all counts as RPC.
const (
	RPC  Scheme = iota // HMAC-SHA1 over the parameters, among which the signature is
	ACS3               // HMAC-SHA256 over headers, query and the hash of the body
)

// Request is a request as its signer saw it. Nothing of it is proved before Verify.
type Request struct {
	Scheme Scheme
	Method string
	Host   string // as the client sent it, with the port
	// Params are the parameters of query and form, decoded; where both have one, the
	// form's value counts. With RPC the common parameters are among them.
	Params map[string]string
	// Action and Version are not empty after Verify.
	Action, Version string
	KeyID           string
	SecurityToken   secret.Text // zero: none was sent
	Nonce           string
	Time            time.Time // when it was signed

	signature string // as text: only the one canonical encoding of a MAC is right
	toSign    string
	altered   bool // the body is not the one whose hash was signed
}

// maxNonceBytes bounds what has to be hashed and compared for a nonce; the clients' own are
// some 40 bytes long.
const maxNonceBytes = 128

// Parse reads r, whose body is given, up to everything that can be told without knowing
// the key. The caller has bounded the size of both.
//
// The method is GET or POST and the path "/". A body is a form, or empty: any other is
// refused with either scheme, since no action takes one.
//
// Errors are of type *Refusal. The Request is never nil: with an error it has what could
// be read, at least the scheme and the good parameters, as the answer's form depends on them.
func Parse(r *http.Request, body []byte) (*Request, error) {
	q := &Request{Method: r.Method, Host: r.Host}
	if strings.HasPrefix(authorization(r.Header), acs3Prefix) {
		q.Scheme = ACS3
	}
	query, queryErr := decodeParams(r.URL.RawQuery)
	form, formErr := decodeForm(r.Header, body)
	q.Params = maps.Clone(query)
	maps.Copy(q.Params, form)
	q.Action, q.Version = q.Params["Action"], q.Params["Version"]

	switch {
	case r.Method != http.MethodGet && r.Method != http.MethodPost:
		return q, refuse(http.StatusForbidden, "UnsupportedHTTPMethod", "This http method is not supported.")
	case r.URL.Path != "/" && r.URL.Path != "":
		return q, refuse(http.StatusBadRequest, "InvalidParameter", "The path of every request is /.")
	case queryErr != nil || formErr != nil:
		return q, cmp.Or(queryErr, formErr)
	case len(q.Params) > maxParams:
		return q, errTooMany
	case q.Scheme == ACS3:
		return q, q.parseACS3(r, query, body)
	}
	return q, q.parseRPC()
}

// setNonceAndTime takes over what both schemes have.
func (q *Request) setNonceAndTime(nonceName, nonce, timestamp string) error {
	if len(nonce) > maxNonceBytes {
		return invalid(nonceName)
	}
	q.Nonce = nonce
	const form = "2006-01-02T15:04:05Z"
	t, err := time.Parse(form, timestamp)
	// time.Parse takes fractions of seconds, too.
	if err != nil || t.Format(form) != timestamp {
		return refuse(http.StatusBadRequest, "InvalidTimeStamp.Format", "Specified time stamp or date value is not well formatted.")
	}
	q.Time = t
	return nil
}
