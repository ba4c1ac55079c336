package fjcloud

import (
	"cmp"
	"context"
	"errors"
	"net/http"
	"strings"

	"github.com/labstack/echo/v4"

	"vmimport/internal/fault"
)

// problem is an answer that reports an error. The code is the status and two
// more digits, and is what clients decide by.
type problem struct {
	status  int
	code    string
	message string // "": the fault's own words
}

func (p *problem) Error() string { return p.code + ": " + p.message }

// because returns a copy of p that also says what is wrong, in a sentence.
func (p *problem) because(reason string) *problem {
	c := *p
	c.message += " " + reason
	return &c
}

func bad(code, message string) *problem {
	return &problem{http.StatusBadRequest, code, message}
}

func missing(code, member string) *problem {
	return bad(code, "Required parameter '"+member+"' is not specified.")
}

func invalid(code, member string) *problem {
	return bad(code, "Parameter '"+member+"' has invalid value.")
}

// Problems that the dialect finds by itself. Those of exports are in exporterrors.go.
var (
	errNameMissing     = missing("40001", "name")
	errName            = invalid("40002", "name")
	errLocationMissing = missing("40003", "location")
	errLocation        = invalid("40004", "location")
	errS3Location      = invalid("40004", "s3_location")
	errNoProject       = bad("40005", "Project id does not exist. Use a token that is scoped to a project.")
	errChecksum        = invalid("40006", "checksum")
	errID              = invalid("40007", "id")
	errMinRAM          = invalid("40008", "min_ram")
	errMinDisk         = invalid("40009", "min_disk")
	errOSTypeMissing   = missing("40010", "os_type")
	errOSType          = invalid("40011", "os_type")
	errConversion      = invalid("40012", "conversion")
	errDetails         = invalid("40013", "details")
	errBody            = bad("40016", "The request body is not a JSON object.")
	errExported        = bad("40017", "The metadata of an exported image cannot be used.")
	errStart           = bad("40035", "Query parameter 'start' has invalid value.")
	errLimit           = bad("40036", "Query parameter 'limit' has invalid value.")
	errKind            = bad("40040", "Query parameter 'kind' has invalid value. It can be 'import' or 'export'.")
	errNoRole          = &problem{http.StatusForbidden, "40301", "You cannot execute this API."}
	errMethod          = &problem{http.StatusMethodNotAllowed, "40501", "The method is not allowed."}
	errInternal        = &problem{http.StatusInternalServerError, "50001", "Internal server error."}
	errUnavailable     = &problem{http.StatusServiceUnavailable, "50301", "The service is temporarily unavailable. Try again later."}
)

// errTooManyStreams has the words of the fault.
var errTooManyStreams = &problem{http.StatusTooManyRequests, "42901", ""}

// answers say how faults are answered: by the code, which may end in a star, else by
// the kind. The first row that fits is taken.
type answers []struct {
	code string
	kind fault.Kind
	problem
}

// importAnswers are those of the calls about imports.
var importAnswers = answers{
	{code: "not_authenticated", problem: problem{http.StatusUnauthorized, "40101", ""}},
	{code: "import_not_found", problem: problem{http.StatusNotFound, "40401", "Invalid import_id."}},
	{code: "import_finished", problem: problem{http.StatusNotFound, "40402", ""}},
	{code: "cancel_requested", problem: *bad("40037", "")},
	{code: "not_failed", problem: *bad("40038", "")},
	{code: "cleaning_up", problem: *bad("40039", "")},
	{code: "too_many_streams", problem: *errTooManyStreams},
	{code: "object_not_found", problem: *bad("40014", "")},
	{code: "image_id_in_use", problem: *bad("40015", "")},
	{code: "image_name_refused", problem: *bad("40002", "")},
	{code: "too_many_imports", problem: problem{http.StatusForbidden, "40302", ""}},
	{code: "format_*", problem: *bad("40004", "")},

	{kind: fault.Unavailable, problem: *errUnavailable},
	{kind: fault.Canceled, problem: *errUnavailable}, // the client has left
	{kind: fault.Exhausted, problem: problem{http.StatusForbidden, "40302", ""}},
	// What is left comes from looking at the object before an import is
	// accepted, and the statuses of that call are few.
	{kind: fault.NotFound, problem: *bad("40014", "")},
	{kind: fault.Denied, problem: *bad("40014", "")},
	{kind: fault.Conflict, problem: *bad("40014", "")},
	{kind: fault.Invalid, problem: *bad("40004", "")},
}

// to finds the answer to any error.
func (a answers) to(err error) *problem {
	if p, ok := errors.AsType[*problem](err); ok {
		return p
	}
	if e, ok := errors.AsType[*echo.HTTPError](err); ok {
		if e.Code == http.StatusMethodNotAllowed {
			return errMethod
		}
		return errInternal
	}
	f := fault.Of(err)
	if f.Kind == fault.Internal && errors.Is(err, context.DeadlineExceeded) {
		return errUnavailable
	}
	for _, row := range a {
		prefix, open := strings.CutSuffix(row.code, "*")
		if row.kind == f.Kind || row.code != "" && (f.Code == row.code || open && strings.HasPrefix(f.Code, prefix)) {
			p := row.problem
			p.message = cmp.Or(p.message, f.Sentences())
			return &p
		}
	}
	return errInternal
}

// answersAt returns the answers of the calls at a path.
func answersAt(path string) answers {
	if strings.HasPrefix(path, exportsPath) {
		return exportAnswers
	}
	return importAnswers
}

// retryAfter is when to come back, in seconds: about what a failover takes.
const retryAfter = "10"

// WriteError answers with the problem that err is.
func (d *Dialect) WriteError(c echo.Context, err error) error {
	p := answersAt(c.Path()).to(err)
	switch h := c.Response().Header(); p.status {
	case http.StatusUnauthorized:
		h.Set(echo.HeaderWWWAuthenticate, "Keystone")
	case http.StatusServiceUnavailable, http.StatusTooManyRequests:
		h.Set(echo.HeaderRetryAfter, retryAfter)
	}
	// The call that is documented best says message, its sister for exports
	// error_message. Clients of both kinds exist.
	return c.JSON(p.status, errorBody{p.code, p.message, p.message})
}
