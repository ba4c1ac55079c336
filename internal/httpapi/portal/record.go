package portal

import (
	"net/url"
	"strconv"
	"strings"
	"time"

	"vmimport/internal/client"
	"vmimport/tasks"
)

// record is the status of an import or an export as the API shows it. The kinds call
// some things by different names; settle brings these together.
type record struct {
	Kind  tasks.Kind  `json:"-"`
	ID    tasks.ID    `json:"-"`
	Page  string      `json:"-"`
	State tasks.State `json:"-"`

	ImportState tasks.State `json:"import_status"`
	ExportState tasks.State `json:"export_status"`
	Progress    int         `json:"progress"`
	ImportName  string      `json:"name"`
	ExportName  string      `json:"image_name"`
	ImportImage string      `json:"id"`
	ExportImage string      `json:"image_id"`

	Location   string `json:"location"`
	S3Location string `json:"s3_location"`
	Container  string `json:"storage_container"`
	Checksum   string `json:"checksum"`
	MinRAM     int64  `json:"min_ram"`
	MinDisk    int64  `json:"min_disk"`
	OSType     string `json:"os_type"`
	Details    struct {
		ImageFrom string `json:"image_from"`
		ImageTo   string `json:"image_to"`
	} `json:"details"`
	Billing      *client.Billing `json:"billing_info"`
	ErrorMessage string          `json:"error_message"`
	Extra        run             `json:"vmimport"`
}

// run is what this service adds to the status of any task.
type run struct {
	client.Run
	Digests      map[string]string       `json:"digests"`
	SourceFormat string                  `json:"source_format"`
	VirtualSize  int64                   `json:"virtual_size"`
	Disks        int                     `json:"disks"`
	Objects      []client.ExportedObject `json:"objects"`
}

func (r *record) settle(k kind, id tasks.ID) {
	r.Kind, r.ID, r.Page = k.Kind, id, k.page(id)
	r.State = r.ImportState
	if k == exports {
		r.State = r.ExportState
	}
}

// Name is the image's, or its id if it has none.
func (r *record) Name() string {
	for _, name := range []string{r.ImportName, r.ExportName, r.Image()} {
		if strings.TrimSpace(name) != "" {
			return name
		}
	}
	return string(r.ID)
}

// Image is the image's id.
func (r *record) Image() string { return r.ImportImage + r.ExportImage }

// Source is where an import's image is.
func (r *record) Source() string { return r.Location + r.S3Location }

// Moves reports whether the task goes on, so that its bar may.
func (r *record) Moves() bool { return !r.State.Final() }

// Copies reports whether bytes are being read, of which there is a rate.
func (r *record) Copies() bool {
	return r.State == tasks.Processing && r.Extra.Stage == tasks.StageCopying && r.Extra.TotalBytes > 0
}

// Stalled reports whether the object store sends nothing: requests have gone
// unanswered, and no byte comes.
func (r *record) Stalled() bool {
	return r.Copies() && r.Extra.BytesPerSecond == 0 && r.Extra.Stalls > 0
}

// Left is about how long it still reads; 0 if nothing tells.
func (r *record) Left() time.Duration {
	if !r.Copies() || r.Extra.BytesPerSecond <= 0 || r.Extra.DoneBytes >= r.Extra.TotalBytes {
		return 0
	}
	seconds := (r.Extra.TotalBytes - r.Extra.DoneBytes) / r.Extra.BytesPerSecond
	if seconds > int64(longest/time.Second) {
		return 0
	}
	return max(time.Duration(seconds)*time.Second, time.Second)
}

// longest is the longest time left that is worth saying.
const longest = 30 * 24 * time.Hour

// Resumes reports whether a retry goes on where the failed attempt stopped.
func (r *record) Resumes(now time.Time) bool { return r.Extra.KeptUntil.After(now) }

// Again is the address of a form with the values of this task. An
// import without an operating system is one of a data disk.
func (r *record) Again() string {
	values, path := url.Values{}, imports.path
	set := func(field, value string) {
		if value != "" && value != "0" {
			values.Set(field, value)
		}
	}
	if r.Kind == exports.Kind {
		path = exports.path
		set(fieldImage, r.ExportImage)
		set(fieldContainer, r.Container)
		set(fieldForm, r.Details.ImageTo)
	} else {
		set(fieldName, r.ImportName)
		set(fieldLocation, r.Location)
		set(fieldS3Location, r.S3Location)
		set(fieldChecksum, r.Checksum)
		set(fieldFrom, r.Details.ImageFrom)
		set(fieldOSType, r.OSType)
		set(fieldMinRAM, strconv.FormatInt(r.MinRAM, 10))
		set(fieldMinDisk, strconv.FormatInt(r.MinDisk, 10))
		if r.OSType == "" && r.Billing == nil {
			set(fieldDisk, "data")
		}
	}
	return path + "/new?" + values.Encode()
}

// failure is why something failed, as the API says it in English.
type failure struct {
	Code, Message, Evidence, Remedy string
}

// Failure returns why the task has failed; nil if it has not.
func (r *record) Failure() *failure {
	if r.State != tasks.Failed {
		return nil
	}
	x := &r.Extra
	message := strings.TrimSuffix(r.ErrorMessage, " "+x.Remedy)
	if x.Evidence != "" {
		if m, ok := strings.CutSuffix(message, " ("+x.Evidence+")."); ok {
			message = m + "."
		}
	}
	return &failure{x.FailureCode, message, x.Evidence, x.Remedy}
}

// setback returns why an attempt did not succeed; nil if nothing is said of it.
func setback(a client.Attempt) *failure {
	if a.FailureCode == "" {
		return nil
	}
	return &failure{a.FailureCode, a.Message, a.Evidence, a.Remedy}
}
