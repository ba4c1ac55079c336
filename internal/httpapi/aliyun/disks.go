package aliyun

import (
	"cmp"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"vmimport/storage"
)

const (
	// mapping is what the parameters of disks begin with; the number of the disk and
	// the name of the field follow.
	mapping = "DiskDeviceMapping"

	maxDisks      = 17   // one for the system, 16 for data
	maxObjectName = 1023 // bytes
	gibibyte      = int64(1) << 30
)

// bucketName and deviceName are the forms of these. A device's name has no effect: the
// number of the disk decides.
var (
	bucketName = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{1,61}[a-z0-9]$`)
	deviceName = regexp.MustCompile(`^/dev/x?vd[a-z]$`)
)

// sizes bounds disk i, counted from 0.
func (r *Region) sizes(i int) Sizes {
	if i == 0 {
		return r.SystemDisk
	}
	return r.DataDisk
}

// accepts reports whether images of a format can be imported, in whatever casing.
func (r *Region) accepts(format string) bool {
	return slices.ContainsFunc(r.Formats, func(f string) bool { return strings.EqualFold(f, format) })
}

// countDisks returns how many disks a request has, which are those of which any field is
// sent. It refuses one without a source, and numbers that are not 1, 2, 3 and so on. That
// there are too many is told before what the last of them lacks.
func countDisks(p params) (int, error) {
	numbers, malformed := p.numbers(mapping)
	if malformed != "" {
		return 0, errParameter.because("%.64q has no number from 1 to %d.", malformed, maxDisks)
	}
	if len(numbers) == 0 || numbers[0] != 1 {
		return 0, missing(numbered(mapping, 1) + "OSSBucket")
	}
	last := numbers[len(numbers)-1]
	if last > maxDisks {
		return 0, errParameter.because("An image has at most %d disks.", maxDisks)
	}
	for _, n := range numbers {
		for _, field := range []string{"OSSBucket", "OSSObject"} {
			if name := numbered(mapping, n) + field; p[name] == "" {
				return 0, missing(name)
			}
		}
	}
	if last > len(numbers) {
		return 0, errParameter.because("The numbers of the disks have a gap.")
	}
	return last, nil
}

// parseDisk reads the parameters of disk i, counted from 0, which has a source.
func parseDisk(p params, i int, region *Region) (d disk, err error) {
	field := func(name string) string { return p[numbered(mapping, i+1)+name] }
	// Kept in the customer's spelling, in which Terraform wants it back.
	if d.Format = field("Format"); d.Format != "" {
		if !region.accepts(d.Format) {
			return d, errImageFormat.hint("Disk %d: the region imports %s.", i+1, strings.Join(region.Formats, ", "))
		}
	}
	d.Bucket, d.Object = field("OSSBucket"), field("OSSObject")
	switch {
	case !bucketName.MatchString(d.Bucket):
		return d, errBucketName.hint("Disk %d: a bucket's name has 3 to 63 lower-case letters, digits and hyphens.", i+1)
	case !validObjectName(d.Object):
		return d, errObjectName.hint("Disk %d: an object's name has up to %d bytes, and neither control characters, nor a slash at its front, nor '.' or '..' between slashes.", i+1, maxObjectName)
	}
	// The latter is its older name, which some clients still send.
	if size := cmp.Or(field("DiskImageSize"), field("DiskImSize")); size != "" {
		var ok bool
		if d.GiB, ok = parseSize(size, region.sizes(i)); !ok {
			return d, errImageSize.hint("Disk %d: the size is a whole number of GiB from %d to %d.", i+1, region.sizes(i).Min, region.sizes(i).Max)
		}
	}
	if device := field("Device"); device != "" && !deviceName.MatchString(device) {
		return d, errDevice.hint("Disk %d: leave the device out.", i+1)
	}
	d.Device = "/dev/xvd" + string(rune('a'+i))
	return d, nil
}

// parseSize reads a number of GiB, of nothing but digits.
func parseSize(s string, bounds Sizes) (gib int64, ok bool) {
	n, err := strconv.ParseInt(s, 10, 64)
	digits := strings.Trim(s, "0123456789") == ""
	return n, err == nil && digits && n >= bounds.Min && n <= bounds.Max
}

// validObjectName reports whether s can be the key of an object, and one that every
// object store here takes and every answer can hold.
func validObjectName(s string) bool {
	place := storage.Location{API: "s3", Container: "any", Name: s}
	return len(s) <= maxObjectName && !strings.HasPrefix(s, "/") && !strings.HasPrefix(s, `\`) && isText(s) && place.Valid()
}
