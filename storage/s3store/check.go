package s3store

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"

	"github.com/minio/minio-go/v7"

	"vmimport/internal/fault"
)

// What can be wrong with a store, as Check tells it.
var (
	errKey = fault.New(fault.Denied, "s3_key_refused", "The object store does not accept the service's key.").
		Try("Correct access_key and the secret key; if they are right, region.")
	errRegion = fault.New(fault.Denied, "s3_region_refused", "The object store has another region.").
			Try("Set region to that of the store.")
	errClock = fault.New(fault.Denied, "s3_clock_refused", "The object store takes this machine's clock for wrong.").
			Try("Synchronise the clocks of this machine and of the store's.")
	errTLS = fault.New(fault.Unavailable, "s3_tls_failed", "No secure connection to the object store can be made.").
		Try("Correct endpoint or ca_file, or the store's certificate.")
	errUnreachable = fault.New(fault.Unavailable, "s3_unreachable", "The object store does not answer.").
			Try("Start the object store, or correct endpoint.")
	errNotS3 = fault.New(fault.Unavailable, "s3_answer_wrong", "What answers at the endpoint is no object store, or is out of order.").
			Try("Correct endpoint, or look into the object store's log.")
)

// Check reports whether the store can be reached and accepts the key. It asks
// for the list of buckets, which any key may ask for: a store that knows the key
// and refuses that list has answered the question.
//
// What it cannot tell is whether the key may read the customers' buckets, and a
// wrong key from a store that says AccessDenied to one.
func (s *Store) Check(ctx context.Context) error {
	_, err := s.client.ListBuckets(ctx)
	if err == nil {
		return nil
	}
	found := verdict(err)
	if found == nil {
		return nil
	}
	return found.Because(fmt.Errorf("list buckets: %w", err))
}

// verdict says what a failed list of buckets means; nil: nothing bad.
func verdict(err error) *fault.Error {
	answer, ok := errors.AsType[minio.ErrorResponse](err)
	if !ok {
		return unanswered(err)
	}
	switch answer.Code {
	case "InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "ExpiredToken", "AuthFailure",
		"XAdminUserNotFound": // versitygw's word for an unknown key
		return errKey
	case "AuthorizationHeaderMalformed", "InvalidRegion":
		return errRegion
	case "RequestTimeTooSkewed", "RequestExpired":
		return errClock
	case minio.AccessDenied:
		return nil
	}
	if answer.StatusCode == http.StatusUnauthorized {
		return errKey
	}
	return errNotS3
}

// unanswered tells why there was no answer that could be read.
func unanswered(err error) *fault.Error {
	_, certificate := errors.AsType[*tls.CertificateVerificationError](err)
	_, record := errors.AsType[tls.RecordHeaderError](err)
	network, _ := errors.AsType[*net.OpError](err)
	alert := network != nil && network.Op == "remote error" // so says crypto/tls of an alert from the other side
	switch {
	case certificate, record, alert, errors.Is(err, http.ErrSchemeMismatch):
		return errTLS
	}
	if _, unsent := errors.AsType[*url.Error](err); !unsent {
		return errNotS3
	}
	return errUnreachable
}
