package pipeline

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"

	"vmimport/internal/diskimage/encode"
	"vmimport/internal/diskimage/ovf"
	"vmimport/internal/diskimage/qcow2"
	"vmimport/storage"
	"vmimport/tasks"
)

// uploadOf is how an export is known to the store.
func uploadOf(spec *tasks.Spec) storage.Upload {
	return storage.Upload{ID: string(spec.ID), Project: spec.Owner.Project, Container: spec.Export.Container}
}

// objectsOf names the object of an image that is exported, and those beside it.
func objectsOf(name string, e *tasks.Export) (image string, beside []string) {
	switch e.Form {
	case tasks.FormVMDK:
		return name + ".vmdk", []string{name + ".ovf", name + ".mf"}
	case tasks.FormQCOW2:
		return name + ".qcow2", nil
	}
	if e.Format == targetQCOW2 {
		return name + ".qcow2.gz", []string{name + ".json"}
	}
	return name + ".img.gz", []string{name + ".json"}
}

// encodingOf returns how the image's file becomes the object's. Size is that of the disk where
// the form is one of disks, else that of the file.
func encodingOf(e *tasks.Export) encode.Options {
	switch {
	case e.Form == tasks.FormVMDK:
		return encode.Options{Form: encode.VMDK, Size: e.VirtualBytes}
	case e.Form == tasks.FormCloud:
		return encode.Options{Form: encode.Gzip, Size: e.Bytes}
	case e.Format == targetQCOW2:
		return encode.Options{Form: encode.Copy, Size: e.Bytes}
	}
	return encode.Options{Form: encode.QCOW2, Size: e.VirtualBytes}
}

// file is a small object beside an image.
type file struct {
	name, what string
	content    []byte
}

// besideOf makes the small objects beside the one of the image.
func besideOf(spec *tasks.Spec, image *tasks.ObjectResult) ([]file, error) {
	switch spec.Export.Form {
	case tasks.FormCloud:
		return []file{{spec.Name + ".json", "metadata", spec.Export.Metadata}}, nil
	case tasks.FormVMDK:
		descriptor, err := ovf.Descriptor(ovf.Machine{
			Name: spec.Name, DiskFile: image.Name, DiskFileBytes: image.Bytes, DiskBytes: spec.Export.VirtualBytes,
			MinRAMMiB: max(0, spec.MinRAMMiB), OSType: spec.OSType, Firmware: firmwareOf(spec.Export.Metadata),
		})
		if err != nil {
			return nil, fmt.Errorf("write descriptor: %w", err)
		}
		sum := sha256.Sum256(descriptor)
		manifest := ovf.Manifest(
			ovf.File{Name: spec.Name + ".ovf", SHA256: hex.EncodeToString(sum[:])},
			ovf.File{Name: image.Name, SHA256: image.Digests["sha256"]},
		)
		return []file{{spec.Name + ".ovf", "descriptor", descriptor}, {spec.Name + ".mf", "manifest", manifest}}, nil
	}
	return nil, nil
}

// firmwareOf returns what a guest starts with, as the image says it: "bios" or "uefi", or "" for
// whatever else it says.
func firmwareOf(metadata json.RawMessage) string {
	var m struct {
		Firmware string `json:"hw_firmware_type"`
	}
	_ = json.Unmarshal(metadata, &m) // one of another type says nothing
	if m.Firmware != "bios" && m.Firmware != "uefi" {
		return ""
	}
	return m.Firmware
}

// spanOf is how many bytes of the image become a part: as much as a worker may have to do
// again, or more, so that there are few enough of them. It is a multiple of the chunk, at whose
// ends a Fetch can be gone on with, and of the unit in which an encoder can be cut.
func spanOf(e *tasks.Export, opt storage.Options) int64 {
	const most = storage.MaxParts * 9 / 10 // some are for tables
	want := max(cmp.Or(opt.MarkEvery, defaultSpan), (e.TotalBytes()+most-1)/most)
	unit := int64(cutUnit)
	if enc := encodingOf(e); enc.Form == encode.QCOW2 {
		unit = qcow2.ClusterBytes(enc.Size)
	}
	step := unit
	if opt.Pool != nil {
		step = multiple(opt.Pool.ChunkSize(), unit)
	}
	return (want + step - 1) / step * step
}

// cutUnit is where all encoders can be cut but that of QCOW2, which may have larger clusters.
const cutUnit = 64 << 10

// defaultSpan is that of storage.Options.MarkEvery.
const defaultSpan = 64 << 20

// multiple is the least common one.
func multiple(a, b int64) int64 {
	x, y := a, b
	for y != 0 {
		x, y = y, x%y
	}
	return a / x * b
}
