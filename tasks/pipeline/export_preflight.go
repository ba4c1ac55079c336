package pipeline

import (
	"context"
	"io"
	"slices"
	"strings"

	"vmimport/imageapi"
	"vmimport/internal/diskimage/encode"
	"vmimport/internal/fault"
	"vmimport/storage"
	"vmimport/tasks"
)

// Refusals of exports.
var (
	errNoExports = fault.New(fault.Invalid, "exports_not_offered", "This region offers no exports.")
	errFormat    = fault.New(fault.Invalid, "image_format_unsupported", "Only raw and QCOW2 images can be exported.").
			Try("Convert the image, and register the result.")
	errNoData = fault.New(fault.Invalid, "image_without_data", "The image is empty.")
	errNoName = fault.New(fault.Invalid, "image_name_unusable", "The image's name cannot be the name of an object.").
			Try("Give the image a name without slashes and control characters.")
	errNoRanges = fault.New(fault.Invalid, "image_ranges_unsupported",
		"The image service cannot read parts of this image, which this form needs.").
		Try("Export it with image_to 'cloud' or 'kvm'.")
	errTooLong = fault.New(fault.Invalid, "image_too_large", "The image is too large for one object.")
)

// checkExport looks at the image and at the place that it goes to.
func (p *Preflight) checkExport(ctx context.Context, region Region, spec *tasks.Spec) error {
	if region.Target == nil {
		return errNoExports
	}
	// Whose it is comes first: of images of others nothing is told.
	img, err := region.Images.Get(ctx, spec.ImageID)
	if err != nil {
		return err
	}
	if img.Owner != spec.Owner.Project {
		return imageapi.ErrNoImage
	}
	f, err := region.Images.Open(ctx, spec.ImageID)
	if err != nil {
		return err
	}
	facts := f.Facts()
	switch {
	case facts.Owner != spec.Owner.Project:
		return imageapi.ErrNoImage
	case !slices.Contains([]string{targetRaw, targetQCOW2}, facts.Format) || facts.ContainerFormat != "bare":
		return errFormat.Saw("disk format %q, container format %q", facts.Format, facts.ContainerFormat)
	case f.Size() == 0:
		return errNoData
	}
	disk, err := openDisk(ctx, f, facts.Format, preflightReads)
	if err != nil {
		return err
	}
	spec.Name, spec.MinRAMMiB, spec.MinDiskGiB, spec.OSType = facts.Name, facts.MinRAM, facts.MinDisk, facts.OSType
	e := spec.Export
	e.Format, e.Bytes, e.VirtualBytes, e.Version, e.Metadata = facts.Format, f.Size(), disk.Size, f.Version(), facts.Record
	if facts.Streams && e.Unpacks() {
		return errNoRanges
	}
	if err := fits(ctx, e); err != nil {
		return err
	}
	up := uploadOf(spec)
	image, beside := objectsOf(spec.Name, e)
	names := append(beside, image)
	for _, name := range names {
		if spec.Name == "" || strings.Contains(name, "/") || !up.At(name).Valid() {
			return errNoName
		}
	}
	// That these can be made is better known before the image was read.
	if _, err := besideOf(spec, &tasks.ObjectResult{Name: image}); err != nil {
		return err
	}
	return region.Target.Vacant(ctx, up, names...)
}

// fits asks the encoder whether it can hold the disk, and whether the largest part is one that a
// store takes.
func fits(ctx context.Context, e *tasks.Export) error {
	opt := encodingOf(e)
	opt.Workers = 1 // it has nothing to do
	enc, err := encode.New(ctx, io.Discard, opt)
	if err != nil {
		return err
	}
	enc.Close()
	// A worker's own settings may make the parts a little longer.
	if n := encode.Bound(opt.Form, opt.Size, spanOf(e, storage.Options{})+defaultSpan); n > storage.MaxPartBytes {
		return errTooLong.Saw("%d bytes", opt.Size)
	}
	return nil
}
