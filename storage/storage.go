// Package storage reads objects out of object stores.
//
// An adapter knows one vendor and does two things: it finds an object, and it
// reads a range of it. Everything that must be right whatever the vendor
// (order, hashes, retries, stalls, memory) is in Fetch, once.
package storage

import (
	"context"
	"io"
	"time"

	"vmimport/internal/fault"
)

// Location names an object. API says whose names these are: "swift", where
// Container belongs to Project, or "s3", where it is a bucket. Names are
// literal; an adapter encodes each of them exactly once.
type Location struct {
	API       string
	Project   string
	Container string
	Name      string
}

// Store is one object store.
type Store interface {
	// Open finds an object and pins its present version.
	//
	// It fails with ErrNoObject if there is none or Project has no right to
	// it; callers cannot tell these apart. Nothing is read yet, and there is
	// nothing to close.
	Open(ctx context.Context, loc Location) (Object, error)
}

// Object is one version of one stored object. It is safe for concurrent use.
// Implementations pass storagetest.Run.
type Object interface {
	// Size is the object's length in bytes.
	Size() int64

	// Version identifies the bytes: two objects with the same name and Version
	// are the same bytes. It is opaque, and at most 256 bytes long.
	Version() string

	// ReadRange opens the n > 0 bytes at off, which lie inside the object.
	//
	// The body gives exactly n bytes and then io.EOF, or fails: a body cut
	// short is io.ErrUnexpectedEOF, never a clean end. If the object was
	// replaced or removed since Open, ReadRange or the body's Read fails with
	// ErrChanged. Both obey ctx. The caller closes the body.
	ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error)
}

// Writable is a Store that objects can be put into: what an installation needs
// that has no object store of its own. Errors are faults, with these codes where
// they apply: object_not_found, container_not_found, object_name_invalid,
// object_name_conflict, object_store_full, and upload_incomplete when the bytes
// are not those announced.
type Writable interface {
	Store

	// Put stores what r gives, whole or not at all, and returns its MD5 in hex.
	// If r fails, its error is in the chain of Put's.
	Put(ctx context.Context, loc Location, r io.Reader, want Announced) (md5 string, err error)
	// Delete removes an object.
	Delete(loc Location) error
	// Stat describes an object.
	Stat(loc Location) (Entry, error)
	// MakeContainer makes a container, if there is none.
	MakeContainer(project, container string) error
	// List returns all objects of a container, sorted by the bytes of their names.
	List(ctx context.Context, project, container string) ([]Entry, error)
}

// Announced is what an uploader says in advance about the bytes to come.
type Announced struct {
	Size int64  // in bytes; negative: unknown
	MD5  string // hex; empty: unknown
}

// Entry describes a stored object. Version is as Object has it; a list may leave
// it empty.
type Entry struct {
	Name    string
	Size    int64 // bytes
	ModTime time.Time
	Version string
}

// Errors of a Store and an Object, to be tested with errors.Is. An ended ctx
// comes back as its cause; everything else that an adapter returns is
// ErrUnavailable, or of kind fault.Denied or fault.Invalid.
var (
	ErrNoObject = fault.New(fault.NotFound, "object_not_found",
		"The object does not exist or cannot be read.").
		Try("Check the container and object names, and that the upload has finished.")
	ErrChanged = fault.New(fault.Conflict, "object_changed",
		"The object was replaced or removed while it was read.").
		Try("Leave the object as it is until the import has ended, then ask for the import again.")
	ErrUnavailable = fault.New(fault.Unavailable, "object_store_unavailable",
		"The object store did not answer as it should.")
)
