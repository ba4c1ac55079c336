package objects

import (
	"sync"

	"vmimport/storage"
)

// maxDigests bounds the memory of digests, at well under 1 KiB each.
const maxDigests = 4096

// digests remembers the MD5 of objects as they were uploaded. Swift shows it as
// the ETag, and clients compare it with what they download; a store of plain
// files has no place for it, and to compute it anew can take minutes. An object
// whose MD5 is not known is shown without.
//
// The zero value is ready for use.
type digests struct {
	mu      sync.Mutex
	known   map[storage.Location]digest
	uploads map[storage.Location]*upload
}

type digest struct{ version, md5 string }

// upload counts the uploads under way to one location.
type upload struct {
	n       int
	overlap bool // two were under way at once
}

// begin announces an upload. The caller calls finish at its end, with the MD5
// and with the version that the store shows after it, or with empty strings.
// Nothing is remembered of uploads that overlap: which of them the store shows
// is not known.
func (d *digests) begin(loc storage.Location) (finish func(md5, version string)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.uploads == nil {
		d.uploads, d.known = map[storage.Location]*upload{}, map[storage.Location]digest{}
	}
	u := d.uploads[loc]
	if u == nil {
		u = &upload{}
		d.uploads[loc] = u
	}
	u.n++
	u.overlap = u.overlap || u.n > 1
	return func(md5, version string) {
		d.mu.Lock()
		defer d.mu.Unlock()
		if u.n--; u.n == 0 {
			delete(d.uploads, loc)
		}
		if md5 == "" || u.overlap {
			return
		}
		if len(d.known) >= maxDigests {
			clear(d.known)
		}
		d.known[loc] = digest{version, md5}
	}
}

// of returns the MD5 of one version of an object, or "".
func (d *digests) of(loc storage.Location, version string) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	if known := d.known[loc]; known.version == version {
		return known.md5
	}
	return ""
}
