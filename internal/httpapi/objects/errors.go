package objects

import (
	"errors"
	"net/http"
	"strconv"

	"github.com/labstack/echo/v4"

	"vmimport/internal/fault"
)

// problem is an answer that reports an error, with the status that Swift uses.
type problem struct {
	status  int
	message string
}

func (p *problem) Error() string { return p.message }

var (
	errForeign  = &problem{http.StatusForbidden, "The path names another project than the token's."}
	errName     = &problem{http.StatusBadRequest, "The path holds a name that cannot be stored."}
	errLimit    = &problem{http.StatusPreconditionFailed, "Query parameter 'limit' has invalid value."}
	errManifest = &problem{http.StatusNotImplemented, "Large objects in parts and copies are not offered; upload the object in one request."}
	errTimeout  = &problem{http.StatusRequestTimeout, "No byte of the object arrived for too long."}
	errCutShort = &problem{http.StatusBadRequest, "The object was cut short."}
	errETag     = &problem{http.StatusUnprocessableEntity, "The object is not the one that the Etag header announced."}
	errInternal = &problem{http.StatusInternalServerError, "Internal server error."}
)

// statuses of faults, by code and else by kind.
var (
	statusOfCode = map[string]int{
		"not_authenticated": http.StatusUnauthorized,
		"object_store_full": http.StatusInsufficientStorage,
	}
	statusOfKind = map[fault.Kind]int{
		fault.Invalid:     http.StatusBadRequest,
		fault.NotFound:    http.StatusNotFound,
		fault.Denied:      http.StatusForbidden,
		fault.Conflict:    http.StatusConflict,
		fault.Unavailable: http.StatusServiceUnavailable,
		fault.Canceled:    http.StatusServiceUnavailable, // the client has left
	}
)

func problemOf(err error) *problem {
	if p, ok := errors.AsType[*problem](err); ok {
		return p
	}
	if e, ok := errors.AsType[*echo.HTTPError](err); ok && e.Code < http.StatusInternalServerError {
		return &problem{e.Code, http.StatusText(e.Code) + "."}
	}
	f := fault.Of(err)
	status, ok := statusOfCode[f.Code]
	if !ok {
		status, ok = statusOfKind[f.Kind]
	}
	if !ok {
		return errInternal
	}
	return &problem{status, f.Sentences()}
}

// WriteError answers with the problem that err is. Swift's clients look at the
// status; the body is that of the import API, for ours.
func (a *API) WriteError(c echo.Context, err error) error {
	p := problemOf(err)
	h := c.Response().Header()
	h.Del("X-Container-Object-Count")
	h.Del("X-Container-Bytes-Used")
	h.Del(echo.HeaderContentType)
	if p.status == http.StatusServiceUnavailable {
		h.Set(echo.HeaderRetryAfter, "10")
	}
	if p.status == http.StatusUnauthorized {
		h.Set(echo.HeaderWWWAuthenticate, "Keystone")
	}
	return c.JSON(p.status, map[string]string{
		"error_code": strconv.Itoa(p.status) + "00", "message": p.message, "error_message": p.message,
	})
}
