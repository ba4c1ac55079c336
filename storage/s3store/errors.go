package s3store

import (
	"context"
	"fmt"
	"net/http"

	"github.com/minio/minio-go/v7"

	"vmimport/internal/fault"
	"vmimport/storage"
)

// errArchived is an object that must be brought back from a cold tier first.
var errArchived = fault.New(fault.Denied, "object_archived",
	"The object is in an archive tier and cannot be read.").
	Try("Restore the object, then ask for the import again.")

// errNotReadable is an object that could be read when the import began.
var errNotReadable = fault.New(fault.Denied, "object_not_readable",
	"The right to read the object was withdrawn, or the object was removed.").
	Try("Let the service read the object, then ask for the import again.")

// translate gives the client's error its meaning. missing is what the absence of
// the object means: ErrNoObject, or ErrChanged once it was seen.
func translate(ctx context.Context, op string, err error, missing *fault.Error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("%s: %w", op, context.Cause(ctx))
	}
	answer := minio.ToErrorResponse(err)
	err = fmt.Errorf("%s: %w", op, err)
	switch answer.Code {
	case minio.InvalidBucketName, minio.XMinioInvalidObjectName, "KeyTooLongError":
		return missing.Because(err)
	case "XAdminUserNotFound": // versitygw of an unknown access key, with status 404
		return storage.ErrUnavailable.Because(err)
	case "InvalidObjectState":
		return errArchived.Because(err)
	case minio.AccessDenied:
		// A store that does not let the service list a bucket says this of
		// objects that are missing, too.
		if missing == storage.ErrNoObject {
			return missing.Because(err)
		}
		return errNotReadable.Because(err)
	}
	switch answer.StatusCode {
	case http.StatusNotFound:
		return missing.Because(err)
	case http.StatusPreconditionFailed, http.StatusRequestedRangeNotSatisfiable:
		return storage.ErrChanged.Because(err)
	default:
		// 5xx, throttling, redirects, no connection, and all refusals of the
		// service's key or clock: nothing that a customer could mend.
		return storage.ErrUnavailable.Because(err)
	}
}
