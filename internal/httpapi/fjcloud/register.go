package fjcloud

import (
	"encoding/hex"
	"errors"
	"io"
	"maps"
	"net/http"
	"os"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"vmimport/tasks"
)

// details is the request's member of that name. Members of it that are not
// documented are dropped.
type details struct {
	ImageFrom string `json:"image_from,omitempty"`
}

// Hypervisors that an image may come from.
const (
	fromVMware = "vmware"
	fromKVM    = "kvm"
)

// osTypes says since which profile an os_type is offered: Classic values are
// offered in both.
var osTypes = map[string]Profile{
	"win2016SE_ja":        Classic,
	"win2019SE":           Gen3,
	"win2016SE_SQL2016SE": Classic,
	"win2019SE_SQL2019SE": Gen3,
	"rhel7":               Classic,
	"rhel8":               Gen3,
	"rocky":               Classic,
	"ubuntu":              Classic,
}

// legacyOSTypes were offered in older releases only.
var legacyOSTypes = []string{
	"win2008R2SE", "win2008R2EE", "win2012SE", "win2012R2SE", "win2016SE_en", "rhel6", "centos",
}

func (d *Dialect) offers(osType string) bool {
	if d.opts.LegacyOSTypes && slices.Contains(legacyOSTypes, osType) {
		return true
	}
	since, ok := osTypes[osType]
	return ok && (since == Classic || d.opts.Profile == Gen3)
}

// osTypes lists what the region offers.
func (d *Dialect) osTypes() []string {
	all := append(slices.Collect(maps.Keys(osTypes)), legacyOSTypes...)
	return slices.Sorted(slices.Values(slices.DeleteFunc(all, func(t string) bool { return !d.offers(t) })))
}

// readBody reads a body that the server has bounded in size and time.
func readBody(r io.Reader) ([]byte, error) {
	body, err := io.ReadAll(r)
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return nil, errBody.because("It is too long.")
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return nil, errBody.because("It did not arrive in time.")
	}
	if err != nil {
		return nil, errBody.because("It is cut short.")
	}
	return body, nil
}

// request is one to register an import: what is asked for, and what is shown of
// it later. What the caller and the metadata decide comes in after parsing.
type request struct {
	members
	spec  *tasks.Spec
	shown registered
	// metadata is the object that says what the request leaves open; nil unless
	// the image is an exported one.
	metadata *tasks.Object
	// dataDisk is an image of expansion storage: no server starts from it.
	dataDisk bool
	// keepsID is set when the image id is that of the exported image. If that is
	// taken, any other will do.
	keepsID bool
}

// parseImage reads a request to register the image of a server, by a caller of
// project.
func (d *Dialect) parseImage(body []byte, project string) (*request, error) {
	m, err := decodeObject(body)
	if err != nil {
		return nil, err
	}
	r := &request{members: m, spec: &tasks.Spec{}}
	if err := d.parseCommon(r, project); err != nil {
		return nil, err
	}
	var ok bool
	if r.spec.MinRAMMiB, ok = m.number("min_ram"); !ok {
		return nil, errMinRAM
	}
	if r.spec.MinDiskGiB, ok = m.number("min_disk"); !ok {
		return nil, errMinDisk
	}
	r.spec.OSType, err = d.parseOSType(m)
	if err != nil && !r.leavesOpen(err, errOSTypeMissing) {
		return nil, err
	}
	return r, parseConversion(m)
}

// parseDataDisk reads a request to register an image of expansion storage. What
// is about servers is ignored in it.
func (d *Dialect) parseDataDisk(body []byte, project string) (*request, error) {
	m, err := decodeObject(body)
	if err != nil {
		return nil, err
	}
	r := &request{members: m, spec: &tasks.Spec{}, dataDisk: true}
	return r, d.parseCommon(r, project)
}

// parseCommon reads the members that both kinds of request have.
func (d *Dialect) parseCommon(r *request, project string) (err error) {
	disk, sourceErr := d.source(r, project)
	r.spec.Name, err = parseName(r.members)
	switch {
	case err != nil && !r.leavesOpen(err, errNameMissing):
		return err
	case sourceErr != nil:
		return sourceErr
	}
	if r.shown.Checksum, err = parseChecksum(r.members); err != nil {
		return err
	}
	disk.SHA1 = strings.ToLower(r.shown.Checksum)
	r.spec.Disks = []tasks.Disk{disk}
	r.spec.ImageID, err = parseID(r.members)
	return err
}

// leavesOpen reports whether err says that a member is missing which metadata
// may have.
func (r *request) leavesOpen(err error, missing *problem) bool {
	return r.metadata != nil && !r.dataDisk && errors.Is(err, missing)
}

// maxNameLength is the limit of the image service, in characters.
const maxNameLength = 255

func parseName(m members) (string, error) {
	name, given, ok := m.text("name")
	switch {
	case !given:
		return "", errNameMissing
	case !ok:
		return "", errName.because("It must be a string.")
	case strings.TrimSpace(name) == "" || utf8.RuneCountInString(name) > maxNameLength:
		return "", errName.because("It must have 1 to 255 characters, and not only blanks.")
	case strings.ContainsFunc(name, unicode.IsControl):
		return "", errName.because("It must not hold control characters.")
	}
	return name, nil
}

// source reads the members that say where the image is and what it comes from,
// and finds out whether metadata belongs to it.
func (d *Dialect) source(r *request, project string) (disk tasks.Disk, err error) {
	accepted := exportedExtensions
	if !r.dataDisk {
		hypervisor, err := d.parseDetails(r)
		if err != nil {
			return disk, err
		}
		accepted = d.extensions(hypervisor)
	}
	location, given, ok := r.text("location")
	s3Location, s3Given, s3OK := r.text("s3_location")
	switch {
	case given && s3Given:
		return disk, errLocation.because("Only one of 'location' and 's3_location' can be given.")
	case s3Given && d.opts.Profile == Classic:
		return disk, errS3Location.because("It is not offered in this region.")
	case s3Given && !s3OK:
		return disk, errS3Location.because("It must be a string.")
	case s3Given:
		disk.Object, err = parseS3Location(s3Location, project)
	case !given:
		return disk, errLocationMissing
	case !ok:
		return disk, errLocation.because("It must be a string.")
	default:
		disk.Object, err = parseLocation(location, d.version, project)
	}
	if err != nil {
		return disk, err
	}
	r.shown.Location, r.shown.S3Location = location, s3Location
	ext, err := extensionOf(disk.Object, accepted)
	disk.Format = ext.format
	if ext.exported {
		r.metadata = new(metadataOf(disk.Object, ext))
	}
	return disk, err
}

// parseDetails returns the hypervisor that the image comes from.
func (d *Dialect) parseDetails(r *request) (string, error) {
	raw, given := r.get("details")
	if !given {
		return fromVMware, nil
	}
	if d.opts.Profile == Classic {
		return "", errDetails.because("It is not offered in this region.")
	}
	inner, err := decodeObject(raw)
	if err != nil {
		return "", errDetails.because("It must be an object.")
	}
	r.shown.Details = &details{}
	hypervisor, given, ok := inner.text("image_from")
	switch {
	case !given:
		return fromVMware, nil
	case !ok || hypervisor != fromVMware && hypervisor != fromKVM:
		return "", errDetails.because("Its member 'image_from' must be 'vmware' or 'kvm'.")
	}
	r.shown.Details.ImageFrom = hypervisor
	return hypervisor, nil
}

func parseChecksum(m members) (string, error) {
	sum, given, ok := m.text("checksum")
	if !given {
		return "", nil
	}
	if raw, err := hex.DecodeString(sum); !ok || err != nil || len(raw) != 20 {
		return "", errChecksum.because("It must be the SHA-1 of the image file, 40 hex digits.")
	}
	return sum, nil
}

// parseID brings the id to lower case: two spellings of one id must not become
// two images.
func parseID(m members) (string, error) {
	text, given, ok := m.text("id")
	if !given {
		return "", nil
	}
	id, canonical := canonicalUUID(text)
	if !ok || !canonical {
		return "", errID.because("It must be a UUID in its canonical form.")
	}
	return id, nil
}

func (d *Dialect) parseOSType(m members) (string, error) {
	osType, given, ok := m.text("os_type")
	switch {
	case !given:
		return "", errOSTypeMissing
	case !ok || !d.offers(osType):
		return "", errOSType.because("This region offers " + strings.Join(d.osTypes(), ", ") + ".")
	}
	return osType, nil
}

func parseConversion(m members) error {
	raw, given := m.get("conversion")
	if !given || string(raw) == "true" || string(raw) == `"true"` {
		return nil
	}
	return errConversion.because("Images are always converted; leave it out or send true.")
}
