package aliyun

import (
	"cmp"
	"encoding/json"
	"maps"
	"slices"
	"strconv"
	"strings"

	"vmimport/tasks"
)

// params are the parameters of a request. One with an empty value counts as not sent.
type params map[string]string

// oneOf finds a value among those of a parameter, in the casing that they have here.
// Without a value it is the first.
func oneOf(value string, all ...string) (string, bool) {
	if value == "" {
		return all[0], true
	}
	for _, one := range all {
		if strings.EqualFold(value, one) {
			return one, true
		}
	}
	return "", false
}

// choice returns which of the values a parameter has, or the first one if it is left out.
// Casing does not matter in any of them, for clients differ in it.
func (p params) choice(name string, refusal *problem, values ...string) (string, error) {
	value, ok := oneOf(p[name], values...)
	if !ok {
		return "", refusal.hint("%s can be %s.", name, strings.Join(values, ", "))
	}
	return value, nil
}

// numbers returns the N of all parameters that are called prefix.N or prefix.N.something
// and have a value, in order. malformed is the name of one whose N is no number from 1 on.
func (p params) numbers(prefix string) (n []int, malformed string) {
	seen := map[int]bool{}
	for name, value := range p {
		rest, ok := strings.CutPrefix(name, prefix+".")
		if !ok || value == "" {
			continue
		}
		digits, _, _ := strings.Cut(rest, ".")
		i, err := strconv.Atoi(digits)
		if err != nil || i < 1 || strconv.Itoa(i) != digits {
			return nil, name
		}
		seen[i] = true
	}
	return slices.Sorted(maps.Keys(seen)), ""
}

// numbered is what the names of a numbered structure begin with: Tag.1.
func numbered(prefix string, n int) string { return prefix + "." + strconv.Itoa(n) + "." }

// keyAndValue returns the Key and Value of a numbered structure. Their names were once
// written in lower case: Tag.1.key.
func (p params) keyAndValue(prefix string, n int) (key, value string) {
	of := numbered(prefix, n)
	return cmp.Or(p[of+"Key"], p[of+"key"]), cmp.Or(p[of+"Value"], p[of+"value"])
}

// number reads a whole number from 1 to most, all digits; without one it is def.
func (p params) number(name string, def, most int) (n int, ok bool) {
	text := p[name]
	if text == "" {
		return def, true
	}
	u, err := strconv.ParseUint(text, 10, 32)
	return int(u), err == nil && u >= 1 && u <= uint64(most)
}

// flag reads a boolean; without one it is false.
func (p params) flag(name string) (set, ok bool) {
	word, ok := oneOf(p[name], "false", "true")
	return word == "true", ok
}

// maxList is how many ids a request may list.
const maxList = 100

// list reads words that are separated by commas, or a JSON array of strings. ok is false
// for more than maxList, or what is neither.
func (p params) list(name string) (words []string, ok bool) {
	text := strings.TrimSpace(p[name])
	switch {
	case text == "":
		return nil, true
	case strings.HasPrefix(text, "["):
		if err := json.Unmarshal([]byte(text), &words); err != nil {
			return nil, false
		}
	default:
		words = strings.SplitN(text, ",", maxList+2)
	}
	for i := range words {
		words[i] = strings.TrimSpace(words[i])
	}
	return words, len(words) <= maxList
}

// A page is a part of a list.
type page struct {
	PageNumber, PageSize int
}

// maxPage is the largest number that clients can have in 32 bits.
const maxPage = 1<<31 - 1

// page reads PageNumber and PageSize.
func (p params) page() (page, bool) {
	number, okNumber := p.number("PageNumber", 1, maxPage)
	size, okSize := p.number("PageSize", 10, maxList)
	return page{number, size}, okNumber && okSize
}

// of returns the query for the part of what q selects.
func (p page) of(q tasks.Query) tasks.Query {
	q.Start, q.Limit = (p.PageNumber-1)*p.PageSize, p.PageSize
	return q
}
