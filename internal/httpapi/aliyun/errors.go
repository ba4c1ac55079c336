package aliyun

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"path"

	"github.com/labstack/echo/v4"

	"vmimport/internal/auth/aliyunsig"
	"vmimport/internal/fault"
	"vmimport/tasks"
)

// problem is an error as it goes over the wire.
type problem struct {
	status    int
	code      string
	message   string // never empty
	recommend string // a hint; may be empty
}

func (p *problem) Error() string { return p.code + ": " + p.message }

// because returns p with a sentence that says what exactly is wrong.
func (p *problem) because(format string, args ...any) *problem {
	q := *p
	q.message += " " + fmt.Sprintf(format, args...)
	return &q
}

func bad(code, message string) *problem {
	return &problem{status: http.StatusBadRequest, code: code, message: message}
}

func forbidden(code, message string) *problem {
	return &problem{status: http.StatusForbidden, code: code, message: message}
}

func notFound(code, message string) *problem {
	return &problem{status: http.StatusNotFound, code: code, message: message}
}

// missing is the refusal of a request that lacks a parameter.
func missing(name string) *problem {
	return bad("MissingParameter", `An input parameter "`+name+`" that is mandatory for processing the request is not supplied.`)
}

// What every action may answer with. The spelling is the vendor's.
var (
	errKeyUnknown   = notFound("InvalidAccessKeyId.NotFound", "Specified access key is not found.")
	errAction       = forbidden("InvalidAction", "The specified action is not valid.")
	errVersion      = bad("InvalidParameter", "The specified parameter \"Version\" is not valid.")
	errParameter    = bad("InvalidParameter", "The specified parameter is not valid.")
	errFormat       = bad("InvalidParameter.Format", "The specified parameter \"Format\" is not valid.")
	errMethod       = forbidden("UnsupportedHTTPMethod", "This http method is not supported.")
	errMayNot       = forbidden("Forbidden.RAM", "User not authorized to operate on the specified resource, or this API doesn't support RAM.")
	errMayNotImport = bad("Forbbiden", "User not authorized to operate on the specified resource")
	errThrottled    = bad("Throttling.User", "Request was denied due to user flow control.")
	errInternal     = &problem{http.StatusInternalServerError, "InternalError", "The request processing has failed due to some unknown error.", ""}
	errUnavailable  = &problem{http.StatusServiceUnavailable, "ServiceUnavailable", "The request has failed due to a temporary failure of the server.", ""}

	errImportRegion = bad("RegionId.NotFound", "The specified region is not found.")
	errTaskRegion   = bad("InvalidRegionId.NotFound", "The specified RegionId does not exist.")
	errRegion       = notFound("InvalidRegionId.NotFound", "The specified RegionId does not exist.")
)

// What the actions on tasks, images and regions may answer with.
var (
	errTaskUnknown = bad("InvalidTaskId.NotFound", `The specified "TaskId" is not found.`)
	errTaskStatus  = forbidden("InvalidTaskId.IncorrectTaskStatus", "The specified task status is invalid.")

	errImageUnknown        = notFound("InvalidImageId.NotFound", "The specified ImageId does not exist.")
	errImagesParameter     = bad("InvalidParamter", "The specified parameter is not valid.") // sic
	errImageOwner          = bad("InvalidImageOwnerAlias.ValueNotSupported", "The specified ImageOwnerAlias is not supported.")
	errOSTypeUnknown       = notFound("InvalidOSType", "The specified OSType does not exist.")
	errArchitectureUnknown = notFound("InvalidArchitecture", "The specified Architecture does not exist.")
	errUsage               = notFound("InvalidUsage", "The specified Usage does not exist.")
	errFilterKey           = notFound("InvalidFilterKey.NotFound", "The specified filter key does not exist.")
	errTagCount            = bad("InvalidTagCount", "The specified tags are too many.")
	errTagMismatch         = bad("InvalidTag.Mismatch", "A tag has a value, but no key.")

	errLanguage     = notFound("InvalidAcceptLanguage.NotFound", "The specified AcceptLanguage does not exist.")
	errResourceType = notFound("InvalidResourceType.NotFound", "The specified ResourceType does not exist.")
)

// problemOf finds the answer for any error.
func problemOf(err error) *problem {
	if p, ok := errors.AsType[*problem](err); ok {
		return p
	}
	if r, ok := errors.AsType[*aliyunsig.Refusal](err); ok {
		return &problem{status: r.Status, code: r.Code, message: r.Message}
	}
	if e, ok := errors.AsType[*echo.HTTPError](err); ok && e.Code == http.StatusMethodNotAllowed {
		return errMethod
	}
	f := fault.Of(err)
	switch {
	case f.Kind == fault.Unavailable, f.Kind == fault.Canceled, // the client has left
		f.Kind == fault.Internal && errors.Is(err, context.DeadlineExceeded):
		return errUnavailable
	case f.Kind == fault.Internal:
		return errInternal
	}
	p := problemOfFailure(f)
	switch {
	case p.code != errImportFailed.code: // nothing has been accepted that could have failed
		if d, ok := errors.AsType[*tasks.DiskError](err); ok {
			return p.ofDisk(d.Number)
		}
		return p
	case f.Kind == fault.Invalid: // a client's mistake must not look like ours, or it is sent again
		return errParameter.hint("%s", f.Sentences())
	}
	return errInternal
}

// problemsOfFaults says how a fault of the service is answered, by its code, which may
// hold a star. The first row that fits is taken.
var problemsOfFaults = []struct {
	code    string
	problem *problem
}{
	{tasks.ErrNameInUse.Code, errNameDuplicated},
	{"image_name_refused", errName},
	{tasks.ErrTokenMismatch.Code, errTokenMismatch},
	{tasks.ErrTooManyImages.Code, errImageQuota},
	{tasks.ErrTooManyImports.Code, errImageQuota},
	{tasks.ErrTooManyDisks.Code, errSnapshotQuota},
	{tasks.ErrImageImporting.Code, errImporting},
	{tasks.ErrImageRemoving.Code, errImageStatus},

	{"disk_too_large", errImageSize},
	{"object_not_found", errObjectUnknown},
	{"object_changed", errObjectUnknown},
	{"object_empty", errObjectSize},
	{"object_name_*", errObjectName},
	// A failure does not keep the kind of its fault; these were fault.Denied.
	{"object_not_readable", errNotAuthorized},
	{"object_archived", errNotAuthorized},
	{"s3_*_refused", errNotAuthorized},
	{"swift_right_missing", errNotAuthorized},
	{"swift_token_refused", errNotAuthorized},

	// What lies before an image that is wrong: the image service, and its rules.
	{"image_has_one_disk", errParameter},
	{"image_service_*", errImportFailed},
	{"image_store_*", errImportFailed},
	{"image_directory_*", errImportFailed},
	{"image_id_*", errImportFailed},
	{"image_altered", errImportFailed},
	{"image_refused", errImportFailed},
	{"image_too_large", errImportFailed},

	{"format_*", errImageFormat},
	{"image_*", errImageFormat},
	{"disk_empty", errImageFormat},
	{"disk_looks_like_image", errImageFormat},
	{"object_too_small", errImageFormat},
	{"not_a_disk_image", errImageFormat},
}

// problemOfFailure finds the code for what the service says of an import, before it is
// accepted or after. What the service says more exactly goes with it as a hint: the
// message is part of what the vendor documents.
func problemOfFailure(f *fault.Error) *problem {
	if f.Kind == fault.Denied {
		return errNotAuthorized.hint("%s", f.Sentences())
	}
	for _, row := range problemsOfFaults {
		if matched, _ := path.Match(row.code, f.Code); matched {
			return row.problem.hint("%s", f.Sentences())
		}
	}
	return errImportFailed
}
