package fjcloud

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"vmimport/internal/fault"
	"vmimport/tasks"
)

// maxMetadataBytes is far above the length of an image record.
const maxMetadataBytes = 64 << 10

// metadataOf names the object that an export puts beside an image.
func metadataOf(image tasks.Object, ext extension) tasks.Object {
	image.Name = strings.TrimSuffix(image.Name, ext.suffix) + ".json"
	return image
}

// complete reads the metadata of an exported image and takes from it what the
// request leaves open.
func (d *Dialect) complete(ctx context.Context, r *request) error {
	content, err := d.service.ReadObject(ctx, d.region, *r.metadata, maxMetadataBytes)
	switch fault.KindOf(err) {
	case "":
	case fault.Invalid, fault.NotFound, fault.Denied, fault.Conflict:
		if errors.Is(err, tasks.ErrObjectTooLarge) {
			return errExported.because("It is larger than 64 KiB.")
		}
		return errExported.because("It is an object in the same container, named like the image file with '.json' in place of both " +
			"extensions, and does not exist or cannot be read. Check the names of both objects, and that both uploads have finished.")
	default:
		return fmt.Errorf("read metadata: %w", err)
	}
	md, err := parseMetadata(content)
	if err != nil {
		return err
	}
	return r.take(md)
}

// metadata is what the metadata of an exported image says of interest here. What
// is absent is zero.
type metadata struct {
	id, name, osType, baseImageID string
	minRAMMiB, minDiskGiB         int64
	properties                    map[string]string // of startProperties
}

// startProperties are the properties, by their names in Glance, that decide whether a
// server starts from an image: its firmware, and the devices that its system knows. See
// ImageMetaProps in Nova. Others stay behind: they choose hosts, name things of the old
// cloud, or have no say in this.
var startProperties = []string{
	"architecture",
	"hw_boot_menu",
	"hw_disk_bus",
	"hw_firmware_type",
	"hw_machine_type",
	"hw_qemu_guest_agent",
	"hw_rng_model",
	"hw_scsi_model",
	"hw_tpm_model",
	"hw_tpm_version",
	"hw_vif_model",
	"hw_video_model",
	"os_distro",
	"os_secure_boot",
	"os_version",
}

// parseMetadata reads the record of an image, as the image service shows it.
// Formats in it are passed over: what the image file is, its bytes say.
//
// The rules of the members are those of a request, but for os_type: an exported
// image has whatever the original had, offered or not. Properties are strings in Glance,
// whatever they say.
func parseMetadata(content []byte) (*metadata, error) {
	m, err := decodeObject(content)
	if err != nil {
		return nil, errExported.because("It is not a JSON object.")
	}
	md, ok := &metadata{}, false
	if md.id, err = parseID(m); err != nil {
		return nil, unusable("id")
	}
	if md.name, err = parseName(m); err != nil && !errors.Is(err, errNameMissing) {
		return nil, unusable("name")
	}
	if md.minRAMMiB, ok = m.number("min_ram"); !ok {
		return nil, unusable("min_ram")
	}
	if md.minDiskGiB, ok = m.number("min_disk"); !ok {
		return nil, unusable("min_disk")
	}
	if md.osType, ok = m.label("os_type"); !ok {
		return nil, unusable("os_type")
	}
	if md.baseImageID, ok = m.label("base_image_id"); !ok {
		return nil, unusable("base_image_id")
	}
	md.properties = map[string]string{}
	for _, name := range startProperties {
		value, ok := m.label(name)
		if !ok {
			return nil, unusable(name)
		}
		if value != "" {
			md.properties[name] = value
		}
	}
	return md, nil
}

func unusable(member string) error {
	return errExported.because("Its member '" + member + "' has an invalid value.")
}

// maxLabelLength is that of a property in the image service, in characters.
const maxLabelLength = 255

// label returns a member that should be a short, printable string. An absent one
// is empty.
func (m members) label(name string) (s string, ok bool) {
	s, given, ok := m.text(name)
	printable := !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) })
	return s, !given || ok && printable && utf8.RuneCountInString(s) <= maxLabelLength
}

// take fills in what the request leaves open, and adds what no request says. For a data
// disk that is the id.
func (r *request) take(md *metadata) error {
	spec := r.spec
	if spec.ImageID == "" {
		spec.ImageID, r.keepsID = md.id, md.id != ""
	}
	if r.dataDisk {
		return nil
	}
	spec.Name = cmp.Or(spec.Name, md.name)
	if spec.Name == "" {
		return errExported.because("It has no member 'name', and the request gives none.")
	}
	if _, given := r.get("min_ram"); !given {
		spec.MinRAMMiB = md.minRAMMiB
	}
	if _, given := r.get("min_disk"); !given {
		spec.MinDiskGiB = md.minDiskGiB
	}
	spec.OSType = cmp.Or(spec.OSType, md.osType)
	spec.Properties = md.properties
	r.shown.BillingInfo = &billingInfo{OSType: spec.OSType, BaseImageID: md.baseImageID}
	return nil
}
