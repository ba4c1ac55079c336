// Package imageapi writes disk images into image services.
//
// Nothing becomes visible before Publish, and what Publish makes visible is
// whole. An image carries the id of the import that made it, so that a later
// attempt recognises its own work, and nobody removes another's.
package imageapi

import (
	"context"
	"encoding/json"
	"io"
	"time"

	"vmimport/internal/fault"
)

// Spec describes the image to make.
type Spec struct {
	ImageID string
	// KeepID says that the image must have this id and no other. The id must then be
	// free for another import if this one comes to nothing.
	KeepID    bool
	ImportID  string // who makes it; part of the image for ever
	Attempt   int64  // rises with each attempt; a higher one shuts lower ones out
	Name      string
	Owner     string // project
	Format    string // of the disks as stored: "raw" or "qcow2"
	MinRAM    int64  // MiB
	MinDisk   int64  // GiB
	Disks     int    // how many there will be, for Accepts; 0: not known
	OSType    string
	CreatedAt time.Time
	// Properties are further facts of ours to keep with the image.
	Properties map[string]string
	// WellKnown are properties that mean something to a cloud, by the names that Glance
	// has for them, such as hw_firmware_type.
	WellKnown map[string]string
}

// DiskFacts is what is known of a disk once it is complete.
type DiskFacts struct {
	VirtualSize int64
	Properties  map[string]string // such as the source's format and hashes
}

// Image is a published image.
type Image struct {
	ImageID  string
	ImportID string
	Owner    string
}

// File is the file of an image, which has one disk. It is a storage.Object by its methods,
// and safe for concurrent use.
type File interface {
	// Facts are those of the image when it was opened.
	Facts() Facts

	// Size is the file's length in bytes.
	Size() int64

	// Version identifies the bytes: two Files of one image with the same Version have the
	// same. It is opaque, and at most 256 bytes long.
	Version() string

	// ReadRange opens the n > 0 bytes at off, which lie in the file. It costs the service all
	// bytes before them if Facts has Streams, and may take as long. The body gives exactly
	// n bytes and then io.EOF, or fails; one cut short fails with io.ErrUnexpectedEOF. If
	// the image was deleted since Open, ReadRange or Read fails with ErrGone. Both obey ctx. The
	// caller closes the body.
	ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error)
}

// Facts are what a service knows of an image. What it does not know is zero.
type Facts struct {
	ImageID         string
	Name            string
	Owner           string // project
	Format          string // of the disk, in Glance's words, such as "raw" or "vmdk"
	ContainerFormat string // of what is around it, likewise; "bare": nothing
	MinRAM          int64  // MiB
	MinDisk         int64  // GiB
	OSType          string

	// HashName and Hash are a hash of the file: "md5", "sha256" or "sha512", and hex.
	HashName, Hash string

	// Streams says that the file can only be read from its front: a range of it costs all
	// bytes before the range, too.
	Streams bool

	// Record is the image in the shape of "Show image" of the Image service API v2, a JSON
	// object of at most MaxRecordBytes. It holds none of the service's own properties.
	Record json.RawMessage
}

// MaxRecordBytes bounds Facts.Record.
const MaxRecordBytes = 64 << 10

// Images is one image service. Implementations pass imageapitest.Run.
type Images interface {
	// Get returns the published image of that id, else ErrNoImage.
	Get(ctx context.Context, imageID string) (*Image, error)

	// Open returns the file of a published image, whoever made it and owns it, else
	// ErrNoImage. ErrNotReady: its data is not there yet, or is being removed.
	// ErrSeveralDisks: it has more than one file. Nothing has to be closed.
	Open(ctx context.Context, imageID string) (File, error)

	// Accepts fails if the service is known to refuse an image like spec. It does not
	// ask the service.
	Accepts(spec Spec) error

	// Begin starts the image, or takes up what an earlier attempt of the same
	// import left. It shuts earlier attempts out: from then on they cannot
	// publish, and what they still write goes nowhere.
	//
	// ErrTaken: the id belongs to an image of another import.
	// ErrSpent: the service does not give out the id, or not any more; nothing of the
	// import is left under it.
	Begin(ctx context.Context, spec Spec) (Upload, error)

	// Remove deletes all that an import made, published or not, by whichever
	// attempt. An image of another import is left alone. Removing nothing is
	// success.
	Remove(ctx context.Context, importID, imageID string) error
}

// Upload is an image being written by one attempt. One goroutine uses it,
// except where a method says otherwise.
type Upload interface {
	// Disk opens a disk. ok tells whether what an earlier attempt wrote is here, as
	// DiskSpec.Resume has it. ctx is also for what the DiskWriter does.
	//
	// ErrOneDisk: the service's images have no more.
	Disk(ctx context.Context, d DiskSpec) (w DiskWriter, ok bool, err error)

	// Streams reports whether each disk has to be written from its front to its end,
	// in one attempt: nothing is kept of one that was not published.
	Streams() bool

	// Publish makes the image visible, whole and durable, in one step. If an
	// earlier attempt of the import has published it, that image stays as it
	// is, and Publish succeeds.
	// ErrShutOut: a later attempt has begun. ErrTaken as for Begin.
	Publish(ctx context.Context, disks []DiskFacts) error

	// Close lets go of the upload and keeps what was written for a later
	// attempt. It may be called more than once, and after Publish.
	Close() error
}

// DiskSpec describes the file of one disk, in the image's format.
type DiskSpec struct {
	Number int   // from 1
	Size   int64 // in bytes
	// AtMost says that Size is only a bound. What the size is, Resize will say.
	AtMost bool

	// Resume > 0 asks to go on from an earlier attempt's Sync. It is a number that
	// rises from Sync to Sync: how much of its source the caller had dealt with. The
	// disk can be gone on with if all that was written before that Sync is still here
	// and durable; what was written after it may be here or not. Otherwise the disk is
	// empty, and the service takes it that the caller has no other number of earlier
	// attempts.
	Resume int64
}

// DiskWriter takes the file of one disk. What is never written reads as zeros, and
// costs no space where the service can do without.
type DiskWriter interface {
	// WriteAt stores p at off. Calls may come in any order (but see Streams), from
	// one goroutine at a time. No byte is written twice in one attempt. After a
	// resume any may be written again that an earlier attempt wrote, with the same
	// value.
	WriteAt(p []byte, off int64) (int, error)

	// Resize makes the file size bytes long, which is no more than Disk was told
	// and no less than what was written. It is called before Close, at most once, by
	// those who opened the disk with a bound. The earlier it is called, the better for
	// services that want to know the size before the first byte.
	Resize(size int64) error

	// Sync makes durable what WriteAt took before the call. It may run
	// beside WriteAt, in another goroutine.
	Sync() error

	// Close ends the disk and makes all of it durable, where the service can do that
	// before Publish. A disk that is not closed without error must not be published.
	Close() error
}

// Errors of an image service, to be tested with errors.Is. Everything else is
// of kind fault.Unavailable, fault.Denied or fault.Invalid.
var (
	ErrNoImage = fault.New(fault.NotFound, "image_not_found", "No such image.")
	ErrTaken   = fault.New(fault.Conflict, "image_id_in_use",
		"The image id is already used by another image.").
		Try("Ask for the import again with another id, or without one.")
	ErrSpent = fault.New(fault.Conflict, "image_id_spent",
		"The image service does not give out this image id any more, since an image once had it.").
		Try("Ask for the import again with another id, or without one.")
	ErrOneDisk = fault.New(fault.Invalid, "image_has_one_disk",
		"An image can have only one disk here, and the image file holds several.").
		Try("Import each disk by itself.")
	ErrNotReady     = fault.New(fault.Conflict, "image_not_active", "The image is not active.").Try("Wait until its status is 'active', and ask again.")
	ErrSeveralDisks = fault.New(fault.Invalid, "image_has_several_disks", "The image has several disks, and only images of one can be exported.")
	ErrGone         = fault.New(fault.Invalid, "image_deleted", "The image was deleted while it was read.").
			Try("Keep an image until its export has ended.")
	ErrShutOut = fault.New(fault.Fenced, "shut_out", "A later attempt of the import has begun.")
	ErrFull    = fault.New(fault.Unavailable, "image_store_full", "The image store is full.")
)
