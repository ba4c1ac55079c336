package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

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

// ErrUncertain says that a request was sent and no answer came, so that the
// import may or may not have been accepted.
var ErrUncertain = errors.New("no answer came, the import may have been accepted")

// Register asks for an import. It is not repeated by itself, since the API has
// no token that would make a repetition harmless: see ErrUncertain.
func (c *Client) Register(ctx context.Context, r Registration) (tasks.ID, error) {
	const op = "register import"
	var out struct {
		ImportID tasks.ID `json:"import_id"`
	}
	path := "/v1/imageimport"
	if r.Expansion {
		path = "/v1/expansionstorageimageimport"
	}
	err := c.call(ctx, op, http.MethodPost, path, r, &out)
	if _, answered := errors.AsType[*Error](err); err != nil && !answered && !neverSent(err) {
		return "", fmt.Errorf("%w: %w", ErrUncertain, err)
	}
	if err == nil && out.ImportID == "" {
		return "", &Error{Op: op, Status: http.StatusOK, Message: "The answer has no import_id; check the endpoint."}
	}
	return out.ImportID, err
}

// neverSent reports whether no connection was made, so that no one can have
// acted on the request.
func neverSent(err error) bool {
	op, ok := errors.AsType[*net.OpError](err)
	return ok && op.Op == "dial"
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
	ErrorMessage string      `json:"error_message,omitempty"` // see Reason
	// Extra is what this service adds to the API; all zero elsewhere.
	Extra Extra `json:"vmimport,omitzero"`
}

// Reason is why a failed import failed: the ErrorMessage without the remedy,
// with which this service ends it for clients that know no Extra.
func (imp *Import) Reason() string {
	return strings.TrimSuffix(imp.ErrorMessage, " "+imp.Extra.Remedy)
}

// Extra are the additions of this service to the status body.
type Extra struct {
	Stage          tasks.Stage       `json:"stage,omitempty"`
	DoneBytes      int64             `json:"done_bytes,omitempty"` // of all, those from a checkpoint included
	TotalBytes     int64             `json:"total_bytes,omitempty"`
	BytesPerSecond int64             `json:"bytes_per_second,omitempty"`
	Attempt        int64             `json:"attempt,omitempty"` // from 1; 0 before the first
	Retries        int64             `json:"retries,omitempty"` // range requests repeated
	Stalls         int64             `json:"stalls,omitempty"`  // range requests replaced since no byte came
	FailureCode    string            `json:"failure_code,omitempty"`
	Remedy         string            `json:"remedy,omitempty"`
	RequestedAt    time.Time         `json:"requested_at,omitzero"`
	FinishedAt     time.Time         `json:"finished_at,omitzero"`
	Digests        map[string]string `json:"digests,omitempty"` // of the object as stored, hex by algorithm
	// What the object was found to be, when the import has succeeded.
	SourceFormat string `json:"source_format,omitempty"` // such as "qcow2" or "raw.gz"
	VirtualSize  int64  `json:"virtual_size,omitempty"`  // of the system disk, in bytes
	Disks        int    `json:"disks,omitempty"`         // of the image, if more than one
}

// Status returns an import as it stands.
func (c *Client) Status(ctx context.Context, id tasks.ID) (*Import, error) {
	imp := &Import{}
	if err := c.call(ctx, "get status", http.MethodGet, importPath(id)+"/status", nil, imp); err != nil {
		return nil, err
	}
	imp.ImportID = id
	return imp, nil
}

// Cancel asks for an import to stop. It returns when the request was accepted;
// the import then ends as tasks.Canceled, which Watch shows. A second request
// fails with CodeCancelRequested, one after the end with CodeFinished.
func (c *Client) Cancel(ctx context.Context, id tasks.ID) error {
	return c.call(ctx, "cancel import", http.MethodPost, importPath(id)+"/cancel", nil, nil)
}

func importPath(id tasks.ID) string { return "/v1/imageimport/" + url.PathEscape(string(id)) }

// Entry is one line of a list. The API shows no more.
type Entry struct {
	ImportID tasks.ID    `json:"import_id"`
	State    tasks.State `json:"import_status"`
}

// pageSize is the most that the API lists at once.
const pageSize = 100

// List yields the visible imports, newest first, page by page as they are asked
// for. An error is yielded once and ends it.
//
// Imports that are registered meanwhile push the others towards the end; those
// seen twice for that reason are yielded once, and the new ones not at all.
func (c *Client) List(ctx context.Context) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		seen := map[tasks.ID]bool{}
		for start := 0; ; start += pageSize {
			var page struct {
				Imports []Entry `json:"imports"`
			}
			path := fmt.Sprintf("/v1/imageimport?start=%d&limit=%d", start, pageSize)
			if err := c.call(ctx, "list imports", http.MethodGet, path, nil, &page); err != nil {
				yield(Entry{}, err)
				return
			}
			for _, e := range page.Imports {
				if !seen[e.ImportID] && !yield(e, nil) {
					return
				}
				seen[e.ImportID] = true
			}
			if len(page.Imports) < pageSize {
				return
			}
		}
	}
}
