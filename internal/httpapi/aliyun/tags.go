package aliyun

import (
	"strings"
	"unicode/utf8"
)

const (
	maxTags = 20
	maxTag  = 128 // characters, of a key as well as of a value
)

// parseTags reads Tag.N.Key and Tag.N.Value. The numbers may have gaps; the tags come in
// the order of their numbers.
func parseTags(p params) ([]tag, error) {
	numbers, malformed := p.numbers("Tag")
	if malformed != "" {
		return nil, errParameter.because("%.64q has no number from 1 to %d.", malformed, maxTags)
	}
	var tags []tag
	seen := map[string]bool{}
	for _, n := range numbers {
		var t tag
		t.Key, t.Value = p.keyAndValue("Tag", n)
		folded := strings.ToLower(t.Key)
		switch {
		case n > maxTags:
			return nil, errParameter.because("An image has at most %d tags.", maxTags)
		case t.Key == "" || strings.HasPrefix(t.Key, "aliyun") || !validTagPart(t.Key):
			return nil, errTagKey.hint("Tag %d: a key has 1 to %d characters, does not begin with aliyun or acs:, and holds no URL.", n, maxTag)
		case !validTagPart(t.Value):
			return nil, errTagValue.hint("Tag %d: a value has up to %d characters, does not begin with acs:, and holds no URL.", n, maxTag)
		case seen[folded]:
			return nil, errTagDuplicated.hint("Tag %d: keys that differ in case only are the same.", n)
		}
		seen[folded] = true
		tags = append(tags, t)
	}
	return tags, nil
}

// validTagPart reports whether s has the form that keys and values share.
func validTagPart(s string) bool {
	return utf8.RuneCountInString(s) <= maxTag && isText(s) && !strings.HasPrefix(s, "acs:") &&
		!strings.Contains(s, "http://") && !strings.Contains(s, "https://")
}
