package ram

import (
	"strings"
	"unicode/utf8"
)

// wildcard reports whether the whole of text matches pattern, in which * is any
// run of characters and ? is any one. It takes at most the product of both
// lengths: only the last * need ever try again, as what an earlier one could
// still give up, the last can take.
func wildcard(pattern, text string) bool {
	p, t := 0, 0
	star, resume := -1, 0 // the last *, and where in text what follows it is tried
	for t < len(text) {
		switch {
		case p < len(pattern) && pattern[p] == '*':
			star, resume = p, t
			p++
		case p < len(pattern) && pattern[p] == '?':
			p, t = p+1, t+runeLen(text[t:])
		case p < len(pattern) && pattern[p] == text[t]:
			p, t = p+1, t+1
		case star >= 0:
			resume += runeLen(text[resume:])
			p, t = star+1, resume
		default:
			return false
		}
	}
	return strings.Trim(pattern[p:], "*") == ""
}

func runeLen(s string) int {
	_, n := utf8.DecodeRuneInString(s)
	return n
}
