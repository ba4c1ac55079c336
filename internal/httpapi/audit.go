package httpapi

import (
	"errors"
	"net/http"
	"time"

	"github.com/labstack/echo/v4"
	"github.com/rs/zerolog"

	"vmimport/internal/audit"
	"vmimport/internal/fault"
)

// audit notes an answered request that asked for something, or was refused for who sent it. That
// it cannot be noted is told, and is no reason to fail the request.
func (f *frontend) audit(c echo.Context, entry audit.Entry, err error, cut bool) {
	status := c.Response().Status
	// What the portal asks for, and with which token, is noted where the API answers it.
	if entry.Action == "" && f.dialect(c) != "portal" && (status == http.StatusUnauthorized || status == http.StatusForbidden) {
		entry.Action = audit.SignInRefused
	}
	if entry.Action == "" || f.opts.Audit == nil {
		return
	}
	if e, ok := errors.AsType[*fault.Error](err); ok && entry.Fault == "" {
		entry.Fault = e.Code
	}
	r := audit.Record{
		Time: time.Now().UTC(), RequestID: c.Response().Header().Get(echo.HeaderXRequestID), Remote: c.RealIP(),
		Dialect: f.dialect(c), Entry: entry, Outcome: audit.OutcomeOf(status), Status: status,
	}
	if cut {
		r.Outcome = audit.Failed
	}
	if err := f.opts.Audit.Add(r.Clean()); err != nil {
		f.metrics.unnoted.Inc()
		zerolog.Ctx(c.Request().Context()).Error().Err(err).Str("action", r.Action).Msg("request is missing in the audit log")
	}
}

// dialect says whose request it is.
func (f *frontend) dialect(c echo.Context) string {
	switch f.owners[c.Path()] {
	case nil:
		return "operations"
	case f.region.Dialect:
		return "fjcloud"
	case f.opts.Aliyun:
		return "aliyun"
	case f.opts.Objects:
		return "objects"
	}
	return "portal"
}
