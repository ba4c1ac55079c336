package tasks

import (
	"encoding/json"
	"fmt"
	"time"

	"vmimport/internal/fault"
)

// ID names an import. Its form is the dialect's choice: a UUID for FJcloud.
type ID string

// Tenant is the customer that owns a record: the domain of an OpenStack user,
// the account of an access key. All records of a tenant lie together, so that
// rules across them (names, quotas, lists) are decided in one step.
type Tenant string

// Ref is the address of a record, and all that a queue message holds.
type Ref struct {
	Tenant Tenant `json:"tenant"`
	ID     ID     `json:"id"`
}

// Epoch numbers the claims on one import. A worker holds the epoch that its
// claim returned; a write under an older one changes nothing.
type Epoch int64

// Held is a claim: the right to write one record under one epoch.
type Held struct {
	Ref
	Epoch Epoch
	// Claim tells the claim from another under the same epoch: where a store has lost the last
	// it was told, it counts them anew. Empty: any claim under the epoch.
	Claim string
}

// Owner is who asked for an import.
type Owner struct {
	Tenant  Tenant `json:"tenant"`
	Project string `json:"project"`
	User    string `json:"user,omitempty"`
}

// Object names a source object. API is "swift" or "s3", the name space that the
// request used; Container is the bucket for the latter.
type Object struct {
	API       string `json:"api"`
	Project   string `json:"project"`
	Container string `json:"container"`
	Name      string `json:"name"`
}

// Disk is one source object that becomes one disk of the image. The first disk
// of an import is the system disk.
type Disk struct {
	Object Object `json:"object"`
	// Format is what the request or the object's name declares; the bytes
	// must agree. It is empty if nothing was declared.
	Format string `json:"format,omitempty"`
	// SHA1 is the declared hash of the object as stored, 40 lower-case hex
	// digits, or empty if none was given.
	SHA1 string `json:"sha1,omitempty"`
	// Bytes is the object's length when the import was accepted.
	Bytes int64 `json:"bytes"`
	// Version pins the object as it was when the import was accepted.
	Version string `json:"version"`
	// Detected is the format that was found then, in the words of Format, and
	// VirtualBytes the size of the disk in it: 0 if only all of the object tells that.
	Detected     string `json:"detected,omitempty"`
	VirtualBytes int64  `json:"virtual_bytes,omitempty"`
	// MaxBytes is the most that the disk may have, 0 for what the region allows.
	MaxBytes int64 `json:"max_bytes,omitempty"`
}

// Kind is what a task does.
type Kind string

// The kinds. A Scope without one is about imports.
const (
	KindImport Kind = "import" // objects become an image
	KindExport Kind = "export" // an image becomes objects
)

// Form is what an image is exported as.
type Form string

// The forms, with what is written of an image called web01.
const (
	// FormCloud is for another region of the cloud: the file as it is stored, packed, as
	// web01.img.gz or web01.qcow2.gz, and web01.json, of which an import makes the same image.
	FormCloud Form = "cloud"
	// FormVMDK is for VMware: web01.vmdk, stream-optimised, with web01.ovf and web01.mf.
	FormVMDK Form = "vmdk"
	// FormQCOW2 is for KVM: web01.qcow2.
	FormQCOW2 Form = "qcow2"
)

// Export is what an export writes, and of what. All but the first two are filled in when
// the image is looked at, before the export is accepted.
type Export struct {
	Form      Form   `json:"form"`
	Container string `json:"container"` // of the owner's project, of API "swift"

	// The image's file as it was then.
	Format       string          `json:"format"` // "raw" or "qcow2"
	Bytes        int64           `json:"bytes"`
	VirtualBytes int64           `json:"virtual_bytes"` // of the disk
	Version      string          `json:"version"`
	Metadata     json.RawMessage `json:"metadata,omitempty"` // the image as its service shows it, a JSON object
}

// Unpacks reports whether the disk is read in the order of the guest, and not the file as
// it is.
func (e *Export) Unpacks() bool { return e.Form == FormVMDK && e.Format == "qcow2" }

// TotalBytes is how many bytes have to be read.
func (e *Export) TotalBytes() int64 {
	if e.Unpacks() {
		return e.VirtualBytes
	}
	return e.Bytes
}

// Spec is what was asked for. It never changes after Create, but for ImageID.
type Spec struct {
	ID      ID     `json:"id"`
	Owner   Owner  `json:"owner"`
	Dialect string `json:"dialect"`
	Region  string `json:"region"`

	// Name and ImageID are the image's: the one to be made, or the one to be exported, whose
	// name is filled in when it is looked at.
	Name    string `json:"name"`
	ImageID string `json:"image_id"`
	// ImageIDGiven says that the customer asked for ImageID. Otherwise any will do,
	// and the import may get another: see Claims.Reassign.
	ImageIDGiven bool   `json:"image_id_given,omitempty"`
	MinRAMMiB    int64  `json:"min_ram_mib,omitempty"`
	MinDiskGiB   int64  `json:"min_disk_gib,omitempty"`
	OSType       string `json:"os_type,omitempty"`
	TargetFormat string `json:"target_format"`
	Disks        []Disk `json:"disks"`
	// Properties are for the image service to keep with the image, by the names that Glance
	// has for what they say, such as hw_firmware_type.
	Properties map[string]string `json:"properties,omitempty"`

	// Export is set for an export, which has no Disks.
	Export *Export `json:"export,omitempty"`

	// Details is the dialect's own, kept for its answers and read by no one else.
	Details json.RawMessage `json:"details,omitempty"`

	// ClientToken makes Create idempotent within tenant and region; Fingerprint
	// is a digest of the request that used it. Both empty: no token.
	ClientToken string `json:"client_token,omitempty"`
	Fingerprint string `json:"fingerprint,omitempty"`
	// UniqueName reserves Name within tenant and region until the import fails,
	// is canceled, or its record is purged, or its image deleted.
	UniqueName bool `json:"unique_name,omitempty"`
	// ListsImage says that the record stands for the image too: it is listed by phase,
	// counts against the quota of images, and is kept until the image is deleted.
	ListsImage bool `json:"lists_image,omitempty"`

	RequestID string `json:"request_id,omitempty"`
	// Trace is the trace that the request belongs to, as a traceparent (W3C Trace
	// Context, section 3.2); empty: none.
	Trace       string    `json:"trace,omitempty"`
	RequestedAt time.Time `json:"requested_at"`
}

// Ref returns the address of the import's record.
func (s *Spec) Ref() Ref { return Ref{Tenant: s.Owner.Tenant, ID: s.ID} }

// Kind returns what the task does.
func (s *Spec) Kind() Kind {
	if s.Export != nil {
		return KindExport
	}
	return KindImport
}

// TotalBytes is how many bytes have to be read: of all source objects together, or of the
// image.
func (s *Spec) TotalBytes() int64 {
	if s.Export != nil {
		return s.Export.TotalBytes()
	}
	var n int64
	for _, d := range s.Disks {
		n += d.Bytes
	}
	return n
}

// Task is a record as it stood when it was read.
type Task struct {
	Spec
	State State
	Epoch Epoch // of the last claim; 0 if there was none

	// Progress is in percent. It never falls, and is 100 exactly when State is
	// Succeeded.
	Progress int
	Stage    Stage
	Counters
	Worker string // of the last claim

	UpdatedAt  time.Time
	StartedAt  time.Time // first claim
	ClaimedAt  time.Time // last claim
	FinishedAt time.Time // final state
	DeletedAt  time.Time // when the image's deletion was accepted, if Spec.ListsImage
	// Removed is set once nothing of a deleted image is left.
	Removed bool

	// KeptUntil is until when the checkpoint of a Failed task is kept, with what it stands
	// for; zero: nothing is.
	KeptUntil time.Time
	// Retried counts the accepted Retries.
	Retried int

	// Publishing is set by the step that excludes a later cancel.
	Publishing bool
	// Setbacks counts attempts that failed for a passing reason, Crashes those
	// whose claim ran out, both since the import last got further than ever
	// before. Draining counts as neither.
	Setbacks int
	Crashes  int
	// Furthest is how many bytes of the whole import the furthest checkpoint ever
	// stood for.
	Furthest int64
	Attempts []Attempt // finished attempts, oldest first, the last MaxAttemptsKept; List leaves them out

	// NotBefore is when a Queued import may be dispatched again.
	NotBefore time.Time
	// Verdict is set once it is decided that the import fails, which it does when
	// nothing of it is left.
	Verdict *Failure
	Failure *Failure // set when Failed
	Result  *Result  // set from the publishing step on
}

// Counters are a worker's running figures about the present attempt.
type Counters struct {
	Disk           int   `json:"disk"` // being worked on, from 1
	DoneBytes      int64 `json:"done_bytes"`
	BytesPerSecond int64 `json:"bytes_per_second"`
	Retries        int64 `json:"retries"` // range requests repeated
	Stalls         int64 `json:"stalls"`  // range requests replaced since no byte came
}

// MaxAttemptsKept bounds the attempts that a record remembers.
const MaxAttemptsKept = 20

// Attempt is one ended run of a worker on an import.
type Attempt struct {
	Epoch     Epoch     `json:"epoch"`
	Worker    string    `json:"worker"`
	StartedAt time.Time `json:"started_at"`
	EndedAt   time.Time `json:"ended_at"`
	// Outcome is the final state that the attempt brought about, or one of the
	// constants below.
	Outcome   string   `json:"outcome"`
	Cause     *Failure `json:"cause,omitempty"`
	FromBytes int64    `json:"from_bytes"` // where the attempt began to read
	DoneBytes int64    `json:"done_bytes"`
}

// Outcomes of an attempt that name no state.
const (
	OutcomeDrained = "drained" // the worker was told to stop; costs nothing
	OutcomeLost    = "lost"    // the claim ran out; the worker is taken for dead
	OutcomeRemoved = "removed" // a deleted image was removed
	OutcomeRetry   = "retry"   // a passing failure; another attempt follows
	// OutcomeLeftovers: the import has failed for good, or was canceled, or its image
	// was deleted, but what it made could not be removed yet. Another attempt does
	// that and no more.
	OutcomeLeftovers = "leftovers"
)

// Failure says why, in words for the customer and a code for programs.
type Failure struct {
	Code     string `json:"code"`
	Message  string `json:"message"`
	Evidence string `json:"evidence,omitempty"`
	Remedy   string `json:"remedy,omitempty"`
	// Disk is the one that it is about, from 1; 0: about none of them alone.
	Disk int `json:"disk,omitempty"`
}

// DiskError says which disk of an import an error is about.
type DiskError struct {
	Number int // from 1
	Err    error
}

func (e *DiskError) Error() string { return fmt.Sprintf("disk %d: %v", e.Number, e.Err) }

// Unwrap returns what is wrong with the disk.
func (e *DiskError) Unwrap() error { return e.Err }

// Fault returns f as the error that it was made of.
func (f *Failure) Fault() *fault.Error {
	return &fault.Error{Kind: fault.Invalid, Code: f.Code, Message: f.Message, Evidence: f.Evidence, Remedy: f.Remedy}
}

// Result is what a task made.
type Result struct {
	Disks   []DiskResult   `json:"disks,omitempty"`   // of an import, one for each of Spec.Disks
	Objects []ObjectResult `json:"objects,omitempty"` // of an export, the image first
}

// ObjectResult is one object that an export wrote.
type ObjectResult struct {
	Name    string            `json:"name"`
	Bytes   int64             `json:"bytes"`
	Digests map[string]string `json:"digests,omitempty"` // of its bytes, hex by algorithm
}

// DiskResult is one finished object, with the disks that it holds.
type DiskResult struct {
	Format       string            `json:"format"` // of the source, as detected
	ObjectBytes  int64             `json:"object_bytes"`
	VirtualSizes []int64           `json:"virtual_sizes"` // of its disks, in bytes; more than one for an archive
	Digests      map[string]string `json:"digests"`       // of the object as stored, hex by algorithm
}
