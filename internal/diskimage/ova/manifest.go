package ova

import (
	"bytes"
	"regexp"
	"strings"

	"vmimport/internal/diskimage"
)

// manifestLine is one line of a manifest (DSP0243, "OVF package"). The blanks differ
// with the version of OpenSSL whose output each tool imitates, and names may have
// brackets themselves.
var manifestLine = regexp.MustCompile(`^(?i:(SHA1|SHA256|SHA512))\s*\((.+)\)\s*=\s*([0-9a-fA-F]+)$`)

var hexLength = map[string]int{"SHA1": 40, "SHA256": 64, "SHA512": 128}

// parseManifest returns the digests by the name of the member. Lines of another
// form, such as those of algorithms of no use any more, are passed over. If a
// member has several digests, the longest counts; two of the same algorithm that
// differ are ErrCorrupt.
func parseManifest(text []byte) (map[string]Digest, error) {
	digests := map[string]Digest{}
	number := 0
	for line := range bytes.Lines(text) {
		number++
		part := manifestLine.FindSubmatch(bytes.TrimSpace(line))
		if part == nil {
			continue
		}
		d := Digest{strings.ToUpper(string(part[1])), strings.ToLower(string(part[3]))}
		if len(d.Hex) != hexLength[d.Algorithm] {
			return nil, diskimage.ErrCorrupt.Saw("line %d of the manifest has a digest of %d digits", number, len(d.Hex))
		}
		name := strings.TrimPrefix(string(part[2]), "./")
		old := digests[name]
		if old.Algorithm == d.Algorithm && old != d {
			return nil, diskimage.ErrCorrupt.Saw("line %d of the manifest contradicts an earlier one", number)
		}
		if len(d.Hex) > len(old.Hex) {
			digests[name] = d
		}
	}
	return digests, nil
}
