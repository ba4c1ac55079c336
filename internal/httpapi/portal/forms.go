package portal

import (
	"errors"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/labstack/echo/v4"

	"vmimport/internal/client"
	"vmimport/tasks"
)

// Fields of the forms, by the names that the API has for them.
const (
	fieldDisk       = "disk" // "data" for an image of expansion storage
	fieldName       = "name"
	fieldFrom       = "image_from"
	fieldLocation   = "location"
	fieldS3Location = "s3_location"
	fieldChecksum   = "checksum"
	fieldID         = "id"
	fieldMinRAM     = "min_ram"
	fieldMinDisk    = "min_disk"
	fieldOSType     = "os_type"
	fieldImage      = "image_id"
	fieldContainer  = "storage_container"
	fieldForm       = "image_to"
)

// importFields and exportFields say which field an answer of the API is about.
var (
	importFields = map[string]string{
		"40001": fieldName, "40002": fieldName,
		"40003": fieldLocation, "40004": fieldLocation, "40014": fieldLocation, "40017": fieldLocation,
		"40006": fieldChecksum,
		"40007": fieldID, "40015": fieldID,
		"40008": fieldMinRAM, "40009": fieldMinDisk,
		"40010": fieldOSType, "40011": fieldOSType,
		"40013": fieldFrom,
	}
	exportFields = map[string]string{
		"40001": fieldImage, "40002": fieldImage, "40006": fieldImage, "40007": fieldImage,
		"40003": fieldContainer, "40004": fieldContainer, "40008": fieldContainer, "40009": fieldContainer,
		"40011": fieldForm,
	}
)

// formBody is what a form shows.
type formBody struct {
	Kind    tasks.Kind
	Path    string // to send it to, and of the list
	Project string // of the token; "" if it is not known
	Offers  Offers
	Values  map[string]string
	Errors  map[string]wrong // by field
	General *wrong           // about no field
	Ended   bool             // the token has ended meanwhile
}

// wrong is what is wrong with a field.
type wrong struct {
	Message  string
	Original string // what the API said, if Message is not that
}

// importForm shows the form for an import. Values in the query are filled in, so that
// a failed import can be asked for again without typing it anew.
func (p *Portal) importForm(c echo.Context, api *caller) error {
	return p.showForm(c, api, imports, formBody{Values: prefilled(c, fieldDisk, fieldName, fieldFrom, fieldLocation,
		fieldS3Location, fieldChecksum, fieldMinRAM, fieldMinDisk, fieldOSType)})
}

// exportForm shows the form for an export.
func (p *Portal) exportForm(c echo.Context, api *caller) error {
	return p.showForm(c, api, exports, formBody{Values: prefilled(c, fieldImage, fieldContainer, fieldForm)})
}

// prefilled takes the named values from the query.
func prefilled(c echo.Context, fields ...string) map[string]string {
	values := map[string]string{}
	for _, f := range fields {
		values[f] = c.QueryParam(f)
	}
	return values
}

// showForm shows a form that nothing was sent with yet.
func (p *Portal) showForm(c echo.Context, api *caller, k kind, body formBody) error {
	project, err := api.project()
	if err != nil {
		return err
	}
	body.Project = project
	return p.renderForm(c, http.StatusOK, k, body)
}

func (p *Portal) renderForm(c echo.Context, status int, k kind, body formBody) error {
	body.Kind, body.Path, body.Offers = k.Kind, k.path, p.opts.Offers
	return p.render(c, status, string(k.Kind), p.words(c).text("new."+string(k.Kind)), body)
}

// registerImport asks the API for an import.
func (p *Portal) registerImport(c echo.Context, api *caller) error {
	form, err := readForm(c)
	if err != nil {
		return err
	}
	values := trimmed(form)
	r, bad := registration(values)
	path := imports.api
	if r.Expansion {
		path = "/v1/expansionstorageimageimport"
	}
	return p.register(c, api, imports, path, r, values, bad)
}

// registerExport asks the API for an export.
func (p *Portal) registerExport(c echo.Context, api *caller) error {
	form, err := readForm(c)
	if err != nil {
		return err
	}
	values := trimmed(form)
	r := struct {
		ImageID   string                `json:"image_id,omitempty"`
		Container string                `json:"storage_container,omitempty"`
		Details   *client.ExportDetails `json:"details,omitempty"`
	}{ImageID: values[fieldImage], Container: values[fieldContainer]}
	if to := values[fieldForm]; to != "" {
		r.Details = &client.ExportDetails{ImageTo: to}
	}
	return p.register(c, api, exports, exports.api, r, values, nil)
}

// trimmed returns the first value of each field, without the blanks that come along
// with what is pasted. A name is kept as it is, since the image service keeps it so.
func trimmed(form url.Values) map[string]string {
	values := map[string]string{}
	for name := range form {
		values[name] = form.Get(name)
		if name != fieldName {
			values[name] = strings.TrimSpace(values[name])
		}
	}
	return values
}

// registration is the request that the form stands for. Numbers that are none cannot be
// sent; bad says which, by the code that the API has for them.
func registration(values map[string]string) (r client.Registration, bad map[string]string) {
	r = client.Registration{
		Expansion:  values[fieldDisk] == "data",
		Name:       values[fieldName],
		Location:   values[fieldLocation],
		S3Location: values[fieldS3Location],
		Checksum:   values[fieldChecksum],
		ID:         values[fieldID],
	}
	if r.Expansion {
		return r, nil
	}
	r.OSType = values[fieldOSType]
	if from := values[fieldFrom]; from != "" {
		r.Details = &client.Details{ImageFrom: from}
	}
	bad = map[string]string{}
	number := func(field, code string) (n int64) {
		text := values[field]
		if text == "" {
			return 0
		}
		n, err := strconv.ParseInt(text, 10, 32)
		if err != nil || n < 0 {
			bad[field] = code
		}
		return n
	}
	r.MinRAM, r.MinDisk = number(fieldMinRAM, "40008"), number(fieldMinDisk, "40009")
	return r, bad
}

// register sends a request, and leads to what came of it: the new task's page, or the
// form with what is wrong.
func (p *Portal) register(c echo.Context, api *caller, k kind, path string, in any, values, bad map[string]string) error {
	words, body := p.words(c), formBody{Values: values, Errors: map[string]wrong{}}
	if len(bad) > 0 {
		for field, code := range bad {
			message, _ := words.refusal(k, &apiError{Code: code, Message: words.text("check.number")})
			body.Errors[field] = wrong{Message: message}
		}
		body.Project, _ = api.project()
		return p.renderForm(c, http.StatusOK, k, body)
	}
	var out struct {
		ImportID tasks.ID `json:"import_id"`
		ExportID tasks.ID `json:"export_id"`
	}
	err := api.call(http.MethodPost, path, in, &out)
	said, refused := errors.AsType[*apiError](err)
	switch {
	case refused:
		return p.refuse(c, api, k, said, body)
	case err != nil:
		return err
	}
	return c.Redirect(http.StatusSeeOther, k.page(out.ImportID+out.ExportID))
}

// refuse shows the form again, with what was entered and what the API said of it. That
// is an answer of success as in showSignIn, unless the fault is the service's.
func (p *Portal) refuse(c echo.Context, api *caller, k kind, said *apiError, body formBody) error {
	fields := importFields
	if k == exports {
		fields = exportFields
	}
	field := fields[said.Code]
	if field == fieldLocation && body.Values[fieldS3Location] != "" && body.Values[fieldLocation] == "" {
		field = fieldS3Location
	}
	message, original := p.words(c).refusal(k, said)
	what := wrong{message, original}
	switch {
	case said.Status == http.StatusUnauthorized:
		body.Ended = true // what was typed must not be lost for that
	case said.Status == http.StatusBadRequest && field != "":
		body.Errors[field] = what
	default:
		body.General = &what
	}
	if !body.Ended {
		body.Project, _ = api.project()
	}
	if said.RetryAfter != "" {
		c.Response().Header().Set(echo.HeaderRetryAfter, said.RetryAfter)
	}
	return p.renderForm(c, shownStatus(said), k, body)
}

// shownStatus is that of a page which shows what the API said beside the rest.
func shownStatus(said *apiError) int {
	if said.Status >= http.StatusInternalServerError {
		return said.Status
	}
	return http.StatusOK
}
