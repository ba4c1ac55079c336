package fjcloud

import (
	"net/http"

	"vmimport/internal/fault"
)

// Problems that the dialect finds by itself in calls about exports. Up to 40005 and
// with 40010 and 40013 the codes are the API's own; what is between was not published.
var (
	errImageIDMissing   = missing("40001", "image_id")
	errImageID          = invalid("40002", "image_id")
	errContainerMissing = missing("40003", "storage_container")
	errContainer        = invalid("40004", "storage_container")
	errExportDetails    = invalid("40011", "details")
	errExportStart      = bad("40013", "Query parameter 'start' has invalid value.")
	errExportLimit      = bad("40014", "Query parameter 'limit' has invalid value.")
)

// errForeignImage is for an image that is not there, and for one of another project:
// nobody is told which.
var errForeignImage = bad("40006", "The image does not exist, or is not one of the project. Check its id and the project of the token.")

// exportAnswers are those of the calls about exports. The words of faults that both
// kinds of task have are about imports.
var exportAnswers = answers{
	{code: "not_authenticated", problem: problem{http.StatusUnauthorized, "40101", ""}},
	{code: "import_not_found", problem: problem{http.StatusNotFound, "40401", "Invalid export_id."}},
	{code: "import_finished", problem: problem{http.StatusNotFound, "40402", "The export has already finished."}},
	{code: "cancel_requested", problem: *bad("40010", "A cancel of this export was already accepted.")},
	{code: "not_failed", problem: *bad("40038", "")},
	{code: "cleaning_up", problem: *bad("40039", "")},
	{code: "too_many_streams", problem: *errTooManyStreams},
	{code: "too_many_imports", problem: problem{http.StatusForbidden, "40302",
		"Too many imports and exports are unfinished. Wait until some have finished, or cancel them."}},
	{code: "image_not_found", problem: *errForeignImage},
	{code: "image_not_owned", problem: *errForeignImage},
	{code: "image_not_active", problem: *bad("40007", "")},
	{code: "exports_not_offered", problem: *bad("40012", "")},

	{kind: fault.Unavailable, problem: *errUnavailable},
	{kind: fault.Canceled, problem: *errUnavailable}, // the client has left
	{kind: fault.Exhausted, problem: problem{http.StatusForbidden, "40302", ""}},
	// What is left comes from looking at the image and the container before an export
	// is accepted.
	{kind: fault.NotFound, problem: *bad("40008", "")}, // the container
	{kind: fault.Denied, problem: *bad("40008", "")},
	{kind: fault.Conflict, problem: *bad("40009", "")}, // an object, or another export
	{kind: fault.Invalid, problem: *bad("40007", "")},  // the image
}
