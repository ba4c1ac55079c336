package swiftstore

import (
	"fmt"
	"math"
	"strconv"

	"vmimport/storage"
)

// What a large object may be made of. Swift itself allows manifests of 8 MiB, with
// 1,000 parts unless configured otherwise, and ten levels of them.
const (
	maxManifestBytes = 8 << 20 // of all manifests of one object
	maxManifests     = 64
	maxDepth         = 3
	maxParts         = 10_000
)

// part is a run of bytes of one stored object, or of a manifest.
type part struct {
	at    place
	etag  string
	stamp string // known only if the part is the whole object
	size  int64  // of the stored object
	off   int64  // of the run in it
	n     int64  // length of the run

	data []byte // bytes that lay in the manifest itself; then only off and n count
}

// total adds up the lengths of parts.
func total(parts []part) (int64, error) {
	sum := int64(0)
	for _, p := range parts {
		if p.n > math.MaxInt64-sum {
			return 0, errUnsupported.Saw("more bytes than there can be")
		}
		sum += p.n
	}
	return sum, nil
}

// cut returns what makes up the n bytes at off of what parts make up together.
func cut(parts []part, off, n int64) []part {
	var run []part
	for i := range parts {
		if n <= 0 {
			break
		}
		if off >= parts[i].n {
			off -= parts[i].n
			continue
		}
		p := parts[i]
		p.off, p.n = p.off+off, min(p.n-off, n)
		off, n = 0, n-p.n
		run = append(run, p)
	}
	return run
}

// seconds reads one of Swift's timestamps.
func seconds(stamp string) (float64, bool) {
	f, err := strconv.ParseFloat(stamp, 64)
	return f, err == nil
}

// whole reports whether p is all of an object that is not made of parts.
func (p part) whole() bool { return p.stamp != "" }

// missing is what a reader gets for a part that is not there any more.
func (p part) missing() error {
	if p.whole() {
		return storage.ErrChanged
	}
	return storage.ErrChanged.Saw("a part of the large object is missing or was replaced").
		Because(fmt.Errorf("read object: part %q", p.at.path()))
}
