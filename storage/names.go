package storage

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// MaxNameBytes is the longest object name; S3 and Swift agree on it.
const MaxNameBytes = 1024

// Valid reports whether loc's names mean the same to every store and to all
// that stands before it. Refused are control characters and bytes that are no
// UTF-8, names longer than a store takes, the segments "." and "..", and names
// of nothing but slashes: a proxy or server that tidies paths would turn them
// into another bucket, or the bucket itself, read with the service's rights and
// not the customer's. Adapters answer ErrNoObject for what is not valid,
// without asking the store.
func (loc Location) Valid() bool {
	return (loc.API == "swift" || loc.API == "s3") &&
		(loc.Project == "" || validSegment(loc.Project)) &&
		validSegment(loc.Container) &&
		strings.Trim(loc.Name, "/") != "" && len(loc.Name) <= MaxNameBytes && validText(loc.Name) && !hasDots(loc.Name)
}

// validSegment reports whether s can be one whole segment of a path.
func validSegment(s string) bool {
	return s != "" && len(s) <= 256 && !strings.Contains(s, "/") && validText(s) && !hasDots(s)
}

func validText(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, unicode.IsControl)
}

func hasDots(path string) bool {
	for segment := range strings.SplitSeq(path, "/") {
		if segment == "." || segment == ".." {
			return true
		}
	}
	return false
}
