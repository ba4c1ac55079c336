// Package inspect says what a disk image is, and whether an import would take it,
// without reading the data in it: by headers, tables, and the sectors of each disk
// that tell how it is divided and how it boots.
//
// An image that is accepted may still turn out to be damaged where it was not looked
// at: in compressed data, and in everything that is read from front to back.
package inspect

import (
	"context"
	"errors"

	"vmimport/internal/diskimage"
	"vmimport/internal/diskimage/decode"
	"vmimport/internal/diskimage/formats"
	"vmimport/internal/diskimage/partition"
	"vmimport/internal/fault"
)

// Options say what is known besides. The zero value knows nothing.
type Options struct {
	// Declared is what the image is said to be; something else is refused.
	Declared diskimage.Declared
	// Limits are those of the disks that an import would take.
	Limits formats.Limits
}

// Report is what was found. Its members are a part of the command line's interface.
type Report struct {
	Importable bool `json:"importable"`
	// Refusal is why not. What is known of the image besides stays in the report.
	Refusal *Refusal `json:"refusal,omitempty"`
	// Format is what the whole is, in the form of diskimage.Declared; empty if it
	// is nothing that is known.
	Format   string `json:"format,omitempty"`
	FileSize int64  `json:"file_size"`         // in bytes
	Wrapper  string `json:"wrapper,omitempty"` // around the disks, such as "gzip" and "ova"
	// Disks are in the order of an import, the system disk first.
	Disks    []Disk   `json:"disks"`
	Warnings []string `json:"warnings"` // of the whole
}

// Refusal is what the fault of an import would tell.
type Refusal struct {
	Code     string `json:"code"`
	Message  string `json:"message"`
	Evidence string `json:"evidence,omitempty"`
	Remedy   string `json:"remedy,omitempty"`
}

// Ways in which an image is read, as Disk.Reads.
const (
	AnyOrder     = "any order"           // its tables say where everything is
	FrontToBack  = "front to back"       // and in no other way
	NeedsScratch = "needs scratch space" // it has to be unpacked first
)

// Disk is one disk of an image.
type Disk struct {
	Member      string `json:"member,omitempty"` // its name in an archive; the customer's
	Format      string `json:"format"`
	Variant     string `json:"variant,omitempty"`
	VirtualSize *int64 `json:"virtual_size"` // in bytes; nil if only the end of the file tells
	Reads       string `json:"reads"`
	// PartitionTable is empty if it was not looked at, and so are Partitions and
	// Boot.
	PartitionTable partition.Scheme      `json:"partition_table,omitempty"`
	Partitions     []partition.Partition `json:"partitions"`
	Boot           []partition.Firmware  `json:"boot"`
	Warnings       []string              `json:"warnings"`
}

// Inspect looks at the image behind f. It fails only with what f's reader returned, or
// when ctx is over: an image that would not be imported is a Report.
func Inspect(ctx context.Context, f *diskimage.File, opt Options) (*Report, error) {
	r := &Report{FileSize: f.Size(), Disks: []Disk{}, Warnings: []string{}}
	err := r.look(ctx, f, opt)
	if e, ok := errors.AsType[*fault.Error](err); ok && e.Kind == fault.Invalid {
		r.Refusal = &Refusal{Code: e.Code, Message: e.Message, Evidence: e.Evidence, Remedy: e.Remedy}
		return r, nil
	}
	if err != nil {
		return nil, err
	}
	r.Importable = true
	return r, nil
}

// look fills the report in as far as it gets.
func (r *Report) look(ctx context.Context, f *diskimage.File, opt Options) error {
	found, err := diskimage.Detect(f, f.Size())
	if err != nil {
		return err
	}
	r.Format = string(found)
	if found.Wraps() {
		r.Wrapper = string(found)
	}
	m := newMeter(f)
	src, err := formats.Open(diskimage.NewFile(m, f.Size()), opt.Declared, opt.Limits)
	if err != nil {
		return err
	}
	r.Format = src.String()
	r.Warnings = append(r.Warnings, src.Warnings...)
	for i := range src.Disks {
		r.Disks = append(r.Disks, describe(&src.Disks[i]))
	}
	// What an import does before its first byte: it reads all tables.
	d, err := decode.New(ctx, src, decode.Options{Limits: opt.Limits})
	if err != nil {
		return err
	}
	d.Close()
	for i := range src.Disks {
		if err := r.Disks[i].lookInside(&src.Disks[i], src.File(i), m); err != nil {
			return err
		}
		if i == 0 {
			r.Disks[i].warnAboutBoot()
		}
	}
	return nil
}

// describe says what a disk's header does.
func describe(d *formats.Disk) Disk {
	out := Disk{
		Member: d.Member, Format: string(d.Format), Variant: d.Variant, Reads: AnyOrder,
		Partitions: []partition.Partition{}, Boot: []partition.Firmware{},
		Warnings: append([]string{}, d.Warnings...),
	}
	switch {
	case d.Parser != nil, d.Gzip && d.Format == diskimage.Raw:
		out.Reads = FrontToBack
	case d.Gzip:
		out.Reads = NeedsScratch
	}
	if d.Size > 0 {
		size := d.Size
		out.VirtualSize = &size
	}
	return out
}

// warnAboutBoot is about the disk that a server would start from.
func (d *Disk) warnAboutBoot() {
	switch {
	case d.PartitionTable == "":
	case len(d.Boot) == 0:
		d.warn("Nothing to start from was found, neither boot code nor an EFI system partition. A data disk needs none.")
	case len(d.Boot) == 1 && d.Boot[0] == partition.UEFI:
		d.warn("The disk boots by UEFI only; some clouds boot by BIOS only.")
	}
}

func (d *Disk) warn(sentence string) { d.Warnings = append(d.Warnings, sentence) }
