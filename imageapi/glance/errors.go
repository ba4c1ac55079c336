package glance

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"

	"vmimport/imageapi"
	"vmimport/internal/fault"
	"vmimport/internal/openstack"
)

// What keeps Glance from taking an image, besides the errors of every image service.
var (
	errUnavailable = fault.New(fault.Unavailable, "image_service_unavailable",
		"The image service did not answer as it should.")
	errForbidden = fault.New(fault.Unavailable, "image_service_forbids",
		"The image service does not let the import service do its work.").
		Try("Give the service's user the role admin in its project, or a policy that lets it create images and change their owner.")
	errBusy = fault.New(fault.Unavailable, "image_service_busy",
		"The image service still holds an earlier upload of the image.").
		Try("If this lasts, the image service was stopped during an upload: ask for the import again with another id.")
	errRefused = fault.New(fault.Invalid, "image_refused",
		"The image service refuses an image like this.")
	errTooLarge = fault.New(fault.Invalid, "image_too_large",
		"The image is larger than the image service allows.").
		Try("Import a smaller disk, or ask the operator to raise the limit.")
	errName = fault.New(fault.Invalid, "image_name_refused",
		"The image service does not take this name.").
		Try("Take one of at most 255 characters, none of them beyond U+FFFF, such as emoji.")
	errAltered = fault.New(fault.Unavailable, "image_altered",
		"What the image service has stored is not what was sent to it.")
	errIncomplete = fault.New(fault.Internal, "disk_incomplete", "A disk was not written to its end.")
	errClosed     = fault.New(fault.Internal, "upload_closed", "The upload was closed before.")
)

// errMoved: the image is not as it was seen. Who gets this looks again.
var errMoved = errors.New("the image is not as it was seen")

// statusError is an answer that is no success.
type statusError struct {
	op     string
	status int
	body   []byte // the beginning of it
}

func (e *statusError) Error() string {
	return fmt.Sprintf("%s: the image service answers %d: %q", e.op, e.status, e.body)
}

// statusOf returns the status of the answer that err is about, 0 if there was none.
func statusOf(err error) int {
	if e, ok := errors.AsType[*statusError](err); ok {
		return e.status
	}
	return 0
}

// excerptBytes is enough of an answer to know what it is about.
const excerptBytes = 1 << 10

// excerpt reads the beginning of an answer that is no success.
func excerpt(body io.Reader) []byte {
	b, _ := io.ReadAll(io.LimitReader(body, excerptBytes)) // what there is of it
	return b
}

// answered gives meaning to the status of an answer. 404, 409 and 410 are for the
// caller to understand, who knows what they are about.
func answered(op string, status int, body []byte) error {
	body = body[:min(len(body), excerptBytes)]
	err := &statusError{op, status, bytes.Clone(bytes.TrimSpace(body))}
	switch {
	case status == http.StatusForbidden:
		return errForbidden.Because(err)
	case status == http.StatusBadRequest, status == http.StatusUnsupportedMediaType:
		return errRefused.Because(err)
	case status == http.StatusRequestEntityTooLarge && bytes.Contains(body, []byte("too large")):
		return errTooLarge.Because(err)
	case status == http.StatusRequestEntityTooLarge: // the disk, or a quota
		return imageapi.ErrFull.Because(err)
	}
	return errUnavailable.Because(err)
}

// failure gives meaning to what came of a call.
func failure(ctx context.Context, op string, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("%s: %w", op, context.Cause(ctx))
	}
	if fault.KindOf(err) != fault.Internal {
		return fmt.Errorf("%s: %w", op, err) // of the cloud itself
	}
	if status, body := openstack.Answer(err); status != 0 {
		return answered(op, status, body)
	}
	return errUnavailable.Because(fmt.Errorf("%s: %w", op, openstack.Cause(err)))
}
