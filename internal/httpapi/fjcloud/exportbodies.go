package fjcloud

import (
	"encoding/json"
	"fmt"
	"time"

	"vmimport/tasks"
)

type exportBody struct {
	ExportID tasks.ID `json:"export_id"`
}

type exportListBody struct {
	Exports []exportListEntry `json:"exports"`
}

type exportListEntry struct {
	ExportID     tasks.ID    `json:"export_id"`
	ExportStatus tasks.State `json:"export_status"`
	Status       string      `json:"status"` // a path, despite its name
	ImageID      string      `json:"image_id"`
	RequestTime  time.Time   `json:"request_time"`
	VMImport     listedBody  `json:"vmimport"`
}

// exported is what a record keeps for this dialect: the members that are shown as they
// were sent.
type exported struct {
	StorageContainer string         `json:"storage_container"`
	Details          *exportDetails `json:"details,omitempty"`
}

type exportStatusBody struct {
	ExportID     tasks.ID    `json:"export_id"`
	ExportStatus tasks.State `json:"export_status"`
	Progress     int         `json:"progress"`
	ImageID      string      `json:"image_id"`
	ImageName    string      `json:"image_name"`
	exported
	RequestTime  time.Time `json:"request_time"`
	ErrorMessage string    `json:"error_message,omitempty"`

	// VMImport holds what is ours, as in an import's status.
	VMImport exportExtraBody `json:"vmimport"`
}

type exportExtraBody struct {
	runBody
	SourceFormat string       `json:"source_format"`
	VirtualSize  int64        `json:"virtual_size"` // bytes
	Checksum     string       `json:"checksum,omitempty"`
	Objects      []objectBody `json:"objects,omitempty"`
}

// objectBody is one object that an export wrote.
type objectBody struct {
	Name   string `json:"name"`
	Bytes  int64  `json:"bytes"`
	SHA1   string `json:"sha1,omitempty"`
	SHA256 string `json:"sha256,omitempty"`
}

func newExportStatusBody(t *tasks.Task, pos *tasks.Position) (*exportStatusBody, error) {
	b := &exportStatusBody{
		ExportID:     t.ID,
		ExportStatus: t.State,
		Progress:     t.Progress,
		ImageID:      t.ImageID,
		ImageName:    t.Name,
		RequestTime:  t.RequestedAt.UTC(),
		ErrorMessage: errorMessage(t),
		VMImport: exportExtraBody{
			runBody:      newRunBody(t, pos),
			SourceFormat: t.Export.Format,
			VirtualSize:  t.Export.VirtualBytes,
		},
	}
	if err := json.Unmarshal(t.Details, &b.exported); err != nil {
		return nil, fmt.Errorf("read details of export: %w", err)
	}
	if t.Result != nil && t.State == tasks.Succeeded {
		b.VMImport.show(t.Result.Objects)
	}
	return b, nil
}

// show shows what an export wrote, the image first: its SHA-1 is what an import of it
// takes as its checksum.
func (b *exportExtraBody) show(objects []tasks.ObjectResult) {
	for _, o := range objects {
		b.Objects = append(b.Objects, objectBody{o.Name, o.Bytes, o.Digests["sha1"], o.Digests["sha256"]})
	}
	if len(b.Objects) > 0 {
		b.Checksum = b.Objects[0].SHA1
	}
}
