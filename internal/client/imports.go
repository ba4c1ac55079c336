package client

import (
	"context"
	"encoding/json"
	"iter"
	"net/http"

	"vmimport/tasks"
)

// Registration is the body of a register call. The service checks it; zero
// members are not sent. For an image that was exported from the cloud the
// location is enough: its metadata has the rest.
type Registration struct {
	// Expansion asks for an image of expansion storage, a data disk: then MinRAM,
	// MinDisk, OSType and Details mean nothing, and Name must be given.
	Expansion  bool     `json:"-"`
	Name       string   `json:"name,omitempty"`
	Location   string   `json:"location,omitempty"`    // see Profile.Location
	S3Location string   `json:"s3_location,omitempty"` // "/" bucket "/" object; exactly one of the two
	Checksum   string   `json:"checksum,omitempty"`    // SHA-1 of the object as stored, hex
	ID         string   `json:"id,omitempty"`          // the image's; generated if empty
	MinRAM     int64    `json:"min_ram,omitempty"`     // MB
	MinDisk    int64    `json:"min_disk,omitempty"`    // GB
	OSType     string   `json:"os_type,omitempty"`
	Details    *Details `json:"details,omitempty"`
}

// Details says where the image comes from: "vmware" (as if absent) or "kvm".
type Details struct {
	ImageFrom string `json:"image_from"`
}

// Billing is what an exported image is billed by.
type Billing struct {
	OSType      string `json:"os_type"`
	BaseImageID string `json:"base_image_id"`
}

// Register asks for an import. It is not repeated by itself, since the API has
// no token that would make a repetition harmless: see ErrUncertain.
func (c *Client) Register(ctx context.Context, r Registration) (tasks.ID, error) {
	path := importsPath
	if r.Expansion {
		path = "/v1/expansionstorageimageimport"
	}
	return c.begin(ctx, tasks.KindImport, path, r)
}

// Import is the answer of the status call, with the import's id.
type Import struct {
	ImportID        tasks.ID    `json:"import_id"`
	State           tasks.State `json:"import_status"`
	Progress        int         `json:"progress"` // percent; 100 exactly when Succeeded
	Name            string      `json:"name,omitempty"`
	ID              string      `json:"id,omitempty"` // the image's
	Location        string      `json:"location,omitempty"`
	S3Location      string      `json:"s3_location,omitempty"`
	Checksum        string      `json:"checksum,omitempty"`
	DiskFormat      string      `json:"disk_format,omitempty"`
	ContainerFormat string      `json:"container_format,omitempty"`
	// MinRAM is in MB, MinDisk in GB. A manual of the original service shows
	// them as strings; json.Number reads either and writes a number.
	MinRAM       json.Number `json:"min_ram"`
	MinDisk      json.Number `json:"min_disk"`
	OSType       string      `json:"os_type,omitempty"`
	Conversion   bool        `json:"conversion,omitempty"`
	Details      *Details    `json:"details,omitempty"`
	BillingInfo  *Billing    `json:"billing_info,omitempty"`  // in place of OSType, of exported images
	ErrorMessage string      `json:"error_message,omitempty"` // see Summary.Reason
	// Extra is what this service adds to the API; all zero elsewhere.
	Extra Extra `json:"vmimport,omitzero"`
}

// Summary returns what an import has in common with an export.
func (imp *Import) Summary() Summary {
	return Summary{tasks.KindImport, imp.ImportID, imp.State, imp.Progress, imp.ErrorMessage, imp.Extra.Run}
}

// Extra are the additions of this service to the status body.
type Extra struct {
	Run
	Digests map[string]string `json:"digests,omitempty"` // of the object as stored, hex by algorithm
	// What the object was found to be, when the import has succeeded.
	SourceFormat string `json:"source_format,omitempty"` // such as "qcow2" or "raw.gz"
	VirtualSize  int64  `json:"virtual_size,omitempty"`  // of the system disk, in bytes
	Disks        int    `json:"disks,omitempty"`         // of the image, if more than one
}

const importsPath = "/v1/imageimport"

// Status returns an import as it stands.
func (c *Client) Status(ctx context.Context, id tasks.ID) (*Import, error) {
	imp := &Import{}
	err := c.call(ctx, "get status", http.MethodGet, taskPath(importsPath, id)+"/status", nil, imp)
	if err != nil {
		return nil, err
	}
	imp.ImportID = id
	return imp, nil
}

// Watch yields an import as it stands, now and again, until its state is final. It follows the
// events of the service if that has any, and else looks again and again.
// An error is yielded once and ends it; so does the end of ctx, with its cause.
//
// A service that is away or overloaded is asked again for some minutes, not
// before the time that it names in Retry-After. Leaving a Watch does nothing to
// the import.
func (c *Client) Watch(ctx context.Context, id tasks.ID, opt WatchOptions) iter.Seq2[*Import, error] {
	return watch(ctx, opt, c.follow(ctx, eventsPath(tasks.KindImport, id), "", opt.Trouble),
		func() (*Import, error) { return c.Status(ctx, id) })
}

// at returns imp as an event tells.
func (imp *Import) at(e *Event) *Import {
	now := *imp
	now.Extra.Run.at(e, &now.State, &now.Progress)
	return &now
}

// Retry asks for a failed import to be tried again. It keeps its id, and goes on from where it
// was if that is kept (Run.KeptUntil). One that has not failed is refused with CodeNotFailed.
func (c *Client) Retry(ctx context.Context, id tasks.ID) error {
	return c.call(ctx, "retry import", http.MethodPost, taskPath(importsPath, id)+"/retry", nil, nil)
}

// Cancel asks for an import to stop. It returns when the request was accepted;
// the import then ends as tasks.Canceled, which Watch shows. A second request
// fails with CodeCancelRequested, one after the end with CodeFinished.
func (c *Client) Cancel(ctx context.Context, id tasks.ID) error {
	return c.call(ctx, "cancel import", http.MethodPost, taskPath(importsPath, id)+"/cancel", nil, nil)
}

// Entry is one line of a list. The API shows no more.
type Entry struct {
	ImportID tasks.ID    `json:"import_id"`
	State    tasks.State `json:"import_status"`
}

// Identity returns the import's id.
func (e Entry) Identity() tasks.ID { return e.ImportID }

// mostImports is the most that the API lists at once.
const mostImports = 100

// List yields the visible imports, newest first, page by page as they are asked
// for. An error is yielded once and ends it.
//
// Imports that are registered meanwhile push the others towards the end; those
// seen twice for that reason are yielded once, and the new ones not at all.
func (c *Client) List(ctx context.Context) iter.Seq2[Entry, error] {
	return pages(mostImports, func(window string) ([]Entry, error) {
		var page struct {
			Imports []Entry `json:"imports"`
		}
		err := c.call(ctx, "list imports", http.MethodGet, importsPath+window, nil, &page)
		return page.Imports, err
	})
}
