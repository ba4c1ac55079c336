package fjcloud

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"math"
	"net/http"
	"os"
	"slices"
	"strconv"
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

// parse reads a request to register an import by a caller of project. It fills
// in what the request decides, and the rest is the caller's to add.
func (d *Dialect) parse(body []byte, project string) (*tasks.Spec, error) {
	m, err := decodeObject(body)
	if err != nil {
		return nil, err
	}
	var keep registered
	disk, locationErr := d.source(m, project, &keep)
	if errors.Is(locationErr, errExportedImage) {
		// Such a request has no name and no OS type, and must not be told so.
		return nil, locationErr
	}
	name, err := parseName(m)
	if err != nil {
		return nil, err
	}
	if locationErr != nil {
		return nil, locationErr
	}
	if keep.Checksum, err = parseChecksum(m); err != nil {
		return nil, err
	}
	disk.SHA1 = strings.ToLower(keep.Checksum)
	spec := &tasks.Spec{Name: name, Disks: []tasks.Disk{disk}}
	if spec.ImageID, err = parseID(m); err != nil {
		return nil, err
	}
	var ok bool
	if spec.MinRAMMiB, ok = m.number("min_ram"); !ok {
		return nil, errMinRAM
	}
	if spec.MinDiskGiB, ok = m.number("min_disk"); !ok {
		return nil, errMinDisk
	}
	if spec.OSType, err = d.parseOSType(m); err != nil {
		return nil, err
	}
	if err := parseConversion(m); err != nil {
		return nil, err
	}
	spec.Details, err = json.Marshal(keep)
	return spec, err
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

// source reads the members that say where the image is. It notes in keep what
// is shown again later.
func (d *Dialect) source(m members, project string, keep *registered) (disk tasks.Disk, err error) {
	location, given, ok := m.text("location")
	s3Location, s3Given, s3OK := m.text("s3_location")
	kind, err := d.parseDetails(m, keep)
	switch {
	case err != nil:
		return disk, err
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
	keep.Location, keep.S3Location = location, s3Location
	disk.Format, err = d.declaredFormat(disk.Object, kind)
	return disk, err
}

func (d *Dialect) parseDetails(m members, keep *registered) (kind string, err error) {
	raw, given := m.get("details")
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
	keep.Details = &details{}
	kind, given, ok := inner.text("image_from")
	switch {
	case !given:
		return fromVMware, nil
	case !ok || kind != fromVMware && kind != fromKVM:
		return "", errDetails.because("Its member 'image_from' must be 'vmware' or 'kvm'.")
	}
	keep.Details.ImageFrom = kind
	return kind, nil
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

// members are the members of a JSON object, undecoded.
type members map[string]json.RawMessage

// get returns a member. One that is null counts as absent.
func (m members) get(name string) (raw json.RawMessage, given bool) {
	raw, given = m[name]
	return raw, given && string(raw) != "null"
}

// text returns a member that should be a string; ok tells whether it is one.
func (m members) text(name string) (s string, given, ok bool) {
	raw, given := m.get(name)
	return s, given, given && json.Unmarshal(raw, &s) == nil
}

// number returns a member that should be a whole number from 0 to 2147483647,
// written as a number or as a string of decimal digits. An absent one is 0.
func (m members) number(name string) (n int64, ok bool) {
	raw, given := m.get(name)
	if !given {
		return 0, true
	}
	digits := string(raw)
	if s, _, isText := m.text(name); isText {
		digits = s
	}
	n, err := strconv.ParseInt(digits, 10, 64)
	return n, isDigits(digits) && err == nil && n <= math.MaxInt32
}

// maxDepth of a body. The documented one has a depth of 2.
const maxDepth = 32

// decodeObject splits a JSON object into its members. It refuses what readers
// understand in different ways: names given twice, half surrogate pairs, text
// that is not UTF-8, anything after the object. The names are compared exactly.
func decodeObject(body []byte) (members, error) {
	body = bytes.TrimSpace(body)
	if !utf8.Valid(body) || !json.Valid(body) || body[0] != '{' {
		return nil, errBody
	}
	if hasHalfSurrogate(body) {
		return nil, errBody.because("It holds half of a surrogate pair.")
	}
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.UseNumber() // floats have limits that JSON has not
	if err := checkMembers(dec); err != nil {
		return nil, err
	}
	var m members
	if err := json.Unmarshal(body, &m); err != nil {
		return nil, errBody
	}
	return m, nil
}

// checkMembers walks through valid JSON and looks for depth and for names that
// are given twice.
func checkMembers(dec *json.Decoder) error {
	type level struct {
		names  map[string]bool // nil in an array
		inside bool            // a name was read and its value follows
	}
	var stack []level
	for {
		token, err := dec.Token()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return errBody
		}
		if token == json.Delim('}') || token == json.Delim(']') {
			stack = stack[:len(stack)-1]
			continue
		}
		if n := len(stack); n > 0 && stack[n-1].names != nil {
			top := &stack[n-1]
			if !top.inside {
				name := token.(string)
				if top.names[name] {
					return errBody.because("A member is given twice.")
				}
				top.names[name], top.inside = true, true
				continue
			}
			top.inside = false
		}
		switch token {
		case json.Delim('{'):
			stack = append(stack, level{names: map[string]bool{}})
		case json.Delim('['):
			stack = append(stack, level{})
		}
		if len(stack) > maxDepth {
			return errBody.because("It is nested too deep.")
		}
	}
}

// hasHalfSurrogate looks for \u escapes, in valid JSON, that name half of a
// character. The decoder would put another character in their place.
func hasHalfSurrogate(body []byte) bool {
	high := false
	for i := 0; i < len(body); i++ {
		var unit uint64
		if body[i] == '\\' {
			i++
			if body[i] == 'u' {
				unit, _ = strconv.ParseUint(string(body[i+1:i+5]), 16, 16)
				i += 4
			}
		}
		low := unit >= 0xdc00 && unit <= 0xdfff
		if high != low {
			return true
		}
		high = unit >= 0xd800 && unit <= 0xdbff
	}
	return high
}
