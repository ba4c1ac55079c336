package client

import (
	"context"
	"fmt"
	"iter"
	"net/http"
	"time"

	"vmimport/tasks"
)

// ExportRequest is what to export, and where to. The service checks it.
type ExportRequest struct {
	ImageID          string
	StorageContainer string // see Profile.ContainerLocation
	// ImageTo is what the image is for: "cloud" (as if empty), "vmware" or "kvm".
	ImageTo string
}

// ExportDetails says what an image is exported for: see ExportRequest.
type ExportDetails struct {
	ImageTo string `json:"image_to,omitempty"`
}

// exportBody is an ExportRequest as it is sent.
type exportBody struct {
	ImageID          string         `json:"image_id"`
	StorageContainer string         `json:"storage_container"`
	Details          *ExportDetails `json:"details,omitempty"`
}

// Export asks for an export. As Register does, it leaves a request alone of which
// nobody knows whether it was accepted: see ErrUncertain. A container that is missing
// is created, if the Client knows where the project's containers are.
func (c *Client) Export(ctx context.Context, r ExportRequest) (tasks.ID, error) {
	body := exportBody{ImageID: r.ImageID, StorageContainer: r.StorageContainer}
	if r.ImageTo != "" {
		body.Details = &ExportDetails{r.ImageTo}
	}
	id, err := c.begin(ctx, tasks.KindExport, exportsPath, body)
	_, to, ok := ParseLocation(r.StorageContainer)
	if c.objects == "" || !ok || !HasCode(err, CodeNoContainer) {
		return id, err
	}
	// Asked for only now, for the reason that Upload has.
	if cerr := c.createContainer(ctx, to.Container); cerr != nil {
		return "", fmt.Errorf("%w; %w", err, cerr)
	}
	return c.begin(ctx, tasks.KindExport, exportsPath, body)
}

// Export is the answer of the status call for exports.
type Export struct {
	ExportID         tasks.ID       `json:"export_id"`
	State            tasks.State    `json:"export_status"`
	Progress         int            `json:"progress"` // percent; 100 exactly when Succeeded
	ImageID          string         `json:"image_id,omitempty"`
	ImageName        string         `json:"image_name,omitempty"`
	StorageContainer string         `json:"storage_container,omitempty"`
	Details          *ExportDetails `json:"details,omitempty"`
	RequestTime      string         `json:"request_time,omitempty"`  // as the service writes times
	ErrorMessage     string         `json:"error_message,omitempty"` // see Summary.Reason
	// Extra is what this service adds to the API; all zero elsewhere.
	Extra ExportExtra `json:"vmimport,omitzero"`
}

// ExportExtra are the additions of this service to the status body of exports.
type ExportExtra struct {
	Run
	SourceFormat string `json:"source_format,omitempty"` // what the image is stored as
	VirtualSize  int64  `json:"virtual_size,omitempty"`  // of the disk, in bytes
	// When the export has succeeded: the SHA-1 of the image's file, for an import of it,
	// if it is known; and what is in the container, the image first.
	Checksum string           `json:"checksum,omitempty"`
	Objects  []ExportedObject `json:"objects,omitempty"`
}

// ExportedObject is one object that an export wrote. The hashes are in hex, empty if
// they are not known.
type ExportedObject struct {
	Name   string `json:"name"`
	Bytes  int64  `json:"bytes"`
	SHA1   string `json:"sha1,omitempty"`
	SHA256 string `json:"sha256,omitempty"`
}

// ImageTo returns what the image is exported for, as in ExportRequest but never empty.
func (e *Export) ImageTo() string {
	if e.Details == nil || e.Details.ImageTo == "" {
		return "cloud"
	}
	return e.Details.ImageTo
}

// Summary returns what an export has in common with an import.
func (e *Export) Summary() Summary {
	return Summary{tasks.KindExport, e.ExportID, e.State, e.Progress, e.ErrorMessage, e.Extra.Run}
}

const exportsPath = "/v1/imageexport"

// ExportStatus returns an export as it stands.
func (c *Client) ExportStatus(ctx context.Context, id tasks.ID) (*Export, error) {
	e := &Export{}
	err := c.call(ctx, "get status", http.MethodGet, taskPath(exportsPath, id)+"/status", nil, e)
	if err != nil {
		return nil, err
	}
	e.ExportID = id
	return e, nil
}

// WatchExport yields an export as Watch does an import.
func (c *Client) WatchExport(ctx context.Context, id tasks.ID, opt WatchOptions) iter.Seq2[*Export, error] {
	return watch(ctx, opt, c.follow(ctx, eventsPath(tasks.KindExport, id), "", opt.Trouble),
		func() (*Export, error) { return c.ExportStatus(ctx, id) })
}

// at returns e as an event tells.
func (e *Export) at(ev *Event) *Export {
	now := *e
	now.Extra.Run.at(ev, &now.State, &now.Progress)
	return &now
}

// RetryExport asks for a failed export to be tried again, as Retry does for an import.
func (c *Client) RetryExport(ctx context.Context, id tasks.ID) error {
	return c.call(ctx, "retry export", http.MethodPost, taskPath(exportsPath, id)+"/retry", nil, nil)
}

// CancelExport asks for an export to stop, as Cancel does for an import. A second
// request fails with CodeExportCancelRequested.
func (c *Client) CancelExport(ctx context.Context, id tasks.ID) error {
	return c.call(ctx, "cancel export", http.MethodPost, taskPath(exportsPath, id)+"/cancel", nil, nil)
}

// ExportEntry is one line of a list of exports.
type ExportEntry struct {
	ExportID    tasks.ID    `json:"export_id"`
	State       tasks.State `json:"export_status"`
	ImageID     string      `json:"image_id"`
	RequestTime string      `json:"request_time,omitempty"` // as the service writes times
}

// Identity returns the export's id.
func (e ExportEntry) Identity() tasks.ID { return e.ExportID }

// mostExports is the most that the API lists at once.
const mostExports = 200

// ListExports yields the visible exports, as List does imports.
func (c *Client) ListExports(ctx context.Context) iter.Seq2[ExportEntry, error] {
	return pages(mostExports, func(window string) ([]ExportEntry, error) {
		var page struct {
			Exports []ExportEntry `json:"exports"`
		}
		err := c.call(ctx, "list exports", http.MethodGet, exportsPath+window, nil, &page)
		return page.Exports, err
	})
}

// ExportObserver is told how an export goes on, as an Observer is of a Push.
type ExportObserver struct {
	Registered func(tasks.ID)
	Changed    func(*Export)
	Trouble    func(error)
}

// WaitForExport watches an export until it has ended, as WaitFor does an import.
func (c *Client) WaitForExport(ctx context.Context, id tasks.ID, interval time.Duration, obs ExportObserver) (*Export, error) {
	return toEnd(c.WatchExport(ctx, id, WatchOptions{Interval: interval, Trouble: obs.Trouble}), obs.Changed)
}
