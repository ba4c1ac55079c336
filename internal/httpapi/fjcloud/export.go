package fjcloud

import (
	"encoding/json"
	"fmt"
	"net/http"

	"github.com/labstack/echo/v4"

	"vmimport/internal/auth"
	"vmimport/tasks"
)

// exportsPath is where all calls about exports begin.
const exportsPath = "/v1/imageexport"

func exportStatusPath(id tasks.ID) string { return exportsPath + "/" + string(id) + "/status" }

// forms are what an image can be exported as, by the words of details.image_to. That
// member is ours; the API's own is not published.
var forms = map[string]tasks.Form{
	"cloud":  tasks.FormCloud,
	"vmware": tasks.FormVMDK,
	"kvm":    tasks.FormQCOW2,
}

// exportDetails is the request's member 'details'. Members of it that are not documented
// are dropped.
type exportDetails struct {
	ImageTo string `json:"image_to,omitempty"`
}

// exportRequest is one to register an export: what is asked for, and what is shown of
// it later.
type exportRequest struct {
	imageID   string
	container string
	form      tasks.Form
	shown     exported
}

// parseExport reads a request to export an image, by a caller of project.
func (d *Dialect) parseExport(body []byte, project string) (*exportRequest, error) {
	m, err := decodeObject(body)
	if err != nil {
		return nil, err
	}
	r := &exportRequest{}
	imageID, given, _ := m.text("image_id")
	if !given {
		return nil, errImageIDMissing
	}
	var ok bool
	if r.imageID, ok = canonicalUUID(imageID); !ok {
		return nil, errImageID.because("It must be a UUID in its canonical form.")
	}
	container, given, ok := m.text("storage_container")
	switch {
	case !given:
		return nil, errContainerMissing
	case !ok:
		return nil, errContainer.because("It must be a string.")
	}
	if r.container, err = parseContainer(container, d.version, project); err != nil {
		return nil, err
	}
	r.shown.StorageContainer = container
	r.form, r.shown.Details, err = parseExportDetails(m)
	return r, err
}

// parseExportDetails returns the form that is asked for, and the details as they are shown.
func parseExportDetails(m members) (tasks.Form, *exportDetails, error) {
	raw, given := m.get("details")
	if !given {
		return tasks.FormCloud, nil, nil
	}
	inner, err := decodeObject(raw)
	if err != nil {
		return "", nil, errExportDetails.because("It must be an object.")
	}
	word, given, _ := inner.text("image_to")
	if !given {
		return tasks.FormCloud, &exportDetails{}, nil
	}
	form := forms[word]
	if form == "" {
		return "", nil, errExportDetails.because("Its member 'image_to' must be 'cloud', 'vmware' or 'kvm'.")
	}
	return form, &exportDetails{word}, nil
}

func (d *Dialect) registerExport(c echo.Context, who *auth.Identity) error {
	body, err := readBody(c.Request().Body)
	if err != nil {
		return err
	}
	r, err := d.parseExport(body, who.ProjectID)
	if err != nil {
		return err
	}
	shown, err := json.Marshal(r.shown)
	if err != nil {
		return fmt.Errorf("encode details of export: %w", err)
	}
	id := tasks.ID(d.opts.NewID())
	begins(c, tasks.KindExport, id)
	task, _, err := d.service.Register(c.Request().Context(), &tasks.Spec{
		ID:        id,
		Owner:     ownerOf(who),
		Dialect:   Name,
		Region:    d.region,
		ImageID:   r.imageID,
		Export:    &tasks.Export{Form: r.form, Container: r.container},
		Details:   shown,
		RequestID: c.Response().Header().Get(echo.HeaderXRequestID),
		Trace:     traceparent(c.Request().Context()),
	})
	if err != nil {
		return fmt.Errorf("register export: %w", err)
	}
	c.Response().Header().Set(echo.HeaderLocation, exportStatusPath(task.ID))
	return c.JSON(http.StatusCreated, exportBody{task.ID})
}

func (d *Dialect) exportStatus(c echo.Context, who *auth.Identity) error {
	task, err := d.find(c, d.visible(who, tasks.KindExport))
	if err != nil {
		return err
	}
	body, err := newExportStatusBody(task, d.position(c, task))
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, body)
}

func (d *Dialect) listExports(c echo.Context, who *auth.Identity) error {
	exports, err := d.listed(c, d.visible(who, tasks.KindExport), exportList)
	if err != nil {
		return err
	}
	body := exportListBody{Exports: []exportListEntry{}}
	for _, e := range exports {
		body.Exports = append(body.Exports, exportListEntry{e.ID, e.State, exportStatusPath(e.ID), e.ImageID, e.RequestedAt.UTC(), newListedBody(e)})
	}
	return c.JSON(http.StatusOK, body)
}

func (d *Dialect) cancelExport(c echo.Context, who *auth.Identity) error {
	return d.cancelIn(c, d.owned(who, tasks.KindExport))
}

func (d *Dialect) retryExport(c echo.Context, who *auth.Identity) error {
	return d.retryIn(c, d.owned(who, tasks.KindExport))
}
