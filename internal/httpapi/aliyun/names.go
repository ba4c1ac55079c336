package aliyun

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// Limits in characters.
const (
	minName        = 2
	maxName        = 128
	maxDescription = 256
	maxClientToken = 64
)

// validName reports whether s can be the name of an image.
func validName(s string) bool {
	n := utf8.RuneCountInString(s)
	first, _ := utf8.DecodeRuneInString(s)
	return n >= minName && n <= maxName && isLetter(first) &&
		!strings.ContainsFunc(s, func(r rune) bool { return !isLetter(r) && !strings.ContainsRune("0123456789:_-.", r) }) &&
		!strings.HasPrefix(s, "aliyun") && !strings.HasPrefix(s, "acs:")
}

// isLetter reports whether r counts as a letter in a name: an ASCII letter, a Han
// character, or kana, half-width ones too. Symbols of these scripts, such as encircled
// ones, are none. The sound and iteration marks count, of which Unicode has some in no
// script; the combining ones do not, for a name must not be spelled in two ways.
func isLetter(r rune) bool {
	switch {
	case r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z':
		return true
	case strings.ContainsRune("ー〇ｰﾞﾟ", r):
		return true
	}
	return unicode.IsLetter(r) && unicode.In(r, unicode.Han, unicode.Hiragana, unicode.Katakana)
}

// validDescription reports whether s can describe an image.
func validDescription(s string) bool {
	return utf8.RuneCountInString(s) <= maxDescription && isText(s) &&
		!strings.HasPrefix(s, "http://") && !strings.HasPrefix(s, "https://")
}

// validToken reports whether s can be a client token.
func validToken(s string) bool {
	return len(s) <= maxClientToken && !strings.ContainsFunc(s, func(r rune) bool { return r > unicode.MaxASCII })
}

// isText reports whether answers in XML can hold s.
func isText(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool {
		return r < ' ' && r != '\t' && r != '\n' && r != '\r' || r == '\uFFFE' || r == '\uFFFF'
	})
}
