package storage

import (
	"context"
	"io"

	"vmimport/internal/fault"
)

// Target is a Store that large objects are written to, in parts that become one object in
// one step. Implementations pass storagetest.RunTarget.
//
// Nothing that is there is ever overwritten or removed, but what the same Upload wrote:
// stores keep with each object, or beside it, which upload it is of. All methods are safe
// for concurrent use. They do not try again; what may pass is ErrUnavailable or ErrFull.
type Target interface {
	Store

	// Vacant fails with ErrObjectExists if an object of one of the names is there, or parts
	// of one that are not this upload's, and with ErrNoContainer if the container is not there. What the
	// upload itself wrote does not count. It answers for the moment only.
	Vacant(ctx context.Context, up Upload, names ...string) error

	// PutPart stores a part of an object, whole or not at all. body has p.Size bytes whose MD5
	// is p.MD5, else it fails with ErrPart and nothing is stored. Parts are told apart by their
	// bytes, too: one of the same number and other bytes takes nothing away from the first, and
	// the list of Join decides which of them the object is made of. A read of body that is under
	// way is waited for, even when ctx ends.
	PutPart(ctx context.Context, up Upload, name string, p Part, body io.Reader) error

	// Join makes the object of parts, which are sorted, start at zero and leave no gaps.
	// It appears whole and durable, in one step. If the upload has joined the same parts before,
	// and that object is there, Join succeeds. Any other object of the name stays, and is
	// ErrObjectExists: also one that the upload itself has made of other parts. Once the object is
	// there, further parts that the upload has stored for the name are removed. ErrPart: a part is
	// not there as it was stored.
	Join(ctx context.Context, up Upload, name string, parts []Part) error

	// PutNew stores a small object in the same way: it succeeds if the upload's own object of
	// the same bytes is there, and replaces none.
	PutNew(ctx context.Context, up Upload, name string, content []byte) error

	// Discard removes all that the upload has written under the names: parts, and objects,
	// joined or not. What is of another origin is left alone. Removing nothing is success.
	Discard(ctx context.Context, up Upload, names ...string) error

	// Settle ends an upload whose objects stay, and removes what only the upload needed. From
	// then on they are the customer's, and not known as the upload's any more by stores
	// that cannot keep it with the object.
	Settle(ctx context.Context, up Upload, names ...string) error
}

// Upload is what one task writes, in one container of a project.
type Upload struct {
	ID        string // of the task, and nobody else's ever; letters, digits and dashes
	Project   string
	Container string
}

// At is the location of an object of the upload.
func (u Upload) At(name string) Location {
	return Location{API: "swift", Project: u.Project, Container: u.Container, Name: name}
}

// Part is a run of an object's bytes.
type Part struct {
	Number int    `json:"number"` // from 0, and below MaxParts
	Offset int64  `json:"offset"` // in the object
	Size   int64  `json:"size"`   // more than zero, at most MaxPartBytes
	MD5    string `json:"md5"`    // hex
}

// Bounds of a large object: what Swift allows by its own settings (max_manifest_segments,
// max_file_size).
const (
	MaxParts     = 1000
	MaxPartBytes = 5 << 30
)

// Errors of a Target, to be tested with errors.Is.
var (
	ErrNoContainer = fault.New(fault.NotFound, "container_not_found", "No such container.").
			Try("Make the container first.")
	ErrObjectExists = fault.New(fault.Conflict, "object_exists",
		"An object of that name, or parts of one, are already in the container.").
		Try("Remove it, or choose another container.")
	ErrPart = fault.New(fault.Unavailable, "part_damaged",
		"A part of the object did not arrive as it was sent, or is not there any more.")
	ErrFull = fault.New(fault.Unavailable, "object_store_full", "The object store is full.")
)
