package aliyunsig

import (
	"cmp"
	"maps"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"unicode/utf8"
)

// maxParams is far beyond the largest import, which has some 200.
const maxParams = 1000

var errTooMany = refuse(http.StatusBadRequest, "InvalidParameter", "A request has at most %d parameters.", maxParams)

// decodeParams reads parameters of the form name=value&name=value, in which a value may be
// missing and pairs may be empty. Other than net/url it takes ";" for a character like any
// other, and refuses what clients could mean in two ways: a name that comes twice, no name,
// bad escapes, and what is not UTF-8.
//
// It reads on after a fault, and returns the first one with all pairs that are good.
func decodeParams(encoded string) (params map[string]string, err error) {
	params = map[string]string{}
	for pair := range strings.SplitSeq(encoded, "&") {
		if pair == "" {
			continue
		}
		rawName, rawValue, _ := strings.Cut(pair, "=")
		name, fault := decode(rawName)
		value := ""
		if fault == nil {
			value, fault = decode(rawValue)
		}
		_, twice := params[name]
		switch {
		case len(params) == maxParams:
			return params, cmp.Or[error](err, errTooMany)
		case fault == nil && name == "":
			fault = refuse(http.StatusBadRequest, "InvalidParameter", "A parameter has no name.")
		case fault == nil && twice:
			fault = refuse(http.StatusBadRequest, "InvalidParameter", "The parameter %.64q was sent twice.", name)
		case fault == nil:
			params[name] = value
		}
		if err == nil && fault != nil {
			err = fault
		}
	}
	return params, err
}

// decode undoes percent-encoding, and takes + for a space.
func decode(s string) (string, *Refusal) {
	d, err := url.QueryUnescape(s)
	if err != nil || !utf8.ValidString(d) {
		return "", refuse(http.StatusBadRequest, "InvalidParameter", "A parameter is not percent-encoded UTF-8.")
	}
	return d, nil
}

// decodeForm reads the parameters in a body.
func decodeForm(h http.Header, body []byte) (map[string]string, error) {
	if len(body) == 0 {
		return nil, nil
	}
	types := h.Values("Content-Type")
	if len(types) == 1 {
		// What follows the type may be malformed; there is one charset anyway.
		if t, _, _ := mime.ParseMediaType(types[0]); t == "application/x-www-form-urlencoded" {
			return decodeParams(string(body))
		}
	}
	return nil, refuse(http.StatusBadRequest, "InvalidParameter", "A body must be of the type application/x-www-form-urlencoded.")
}

// canonical returns params as they are signed.
func canonical(params map[string]string) string {
	var b strings.Builder
	for i, name := range slices.Sorted(maps.Keys(params)) {
		if i > 0 {
			b.WriteByte('&')
		}
		b.WriteString(encode(name))
		b.WriteByte('=')
		b.WriteString(encode(params[name]))
	}
	return b.String()
}

// encode leaves as they are what RFC 3986 calls unreserved; url.QueryEscape differs from
// that in the space only.
func encode(s string) string { return strings.ReplaceAll(url.QueryEscape(s), "+", "%20") }
