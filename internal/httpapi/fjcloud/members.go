package fjcloud

import (
	"bytes"
	"encoding/json"
	"io"
	"math"
	"strconv"
	"unicode/utf8"
)

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
