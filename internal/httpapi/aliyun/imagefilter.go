package aliyun

import (
	"slices"
	"strings"

	"vmimport/tasks"
)

// An imageFilter is what DescribeImages asks for beyond what a list in the store is of.
// Empty fields ask for nothing.
type imageFilter struct {
	name                 *pattern
	osType, architecture string
	resourceGroup        string
	tags                 []tag // with an empty value: any
	created              []span
}

// imagesQuery reads what DescribeImages is to list; nil is nothing.
func (cl *call) imagesQuery() (q *tasks.Query, err error) {
	p := cl.params
	q = &tasks.Query{Images: true}
	ids, ok := p.list("ImageId")
	if !ok {
		return nil, errImagesParameter.because("ImageId are at most %d, separated by commas.", maxList)
	}
	if ids != nil {
		q.IDs = selected(ids, taskOfImage)
	}
	if q.Phases, err = p.imageStates(); err != nil {
		return nil, err
	}
	mine, err := p.mine()
	if err != nil {
		return nil, err
	}
	filter, err := p.imageFilter()
	if err != nil {
		return nil, err
	}
	switch {
	case !mine || len(q.Phases) == 0:
		return nil, nil
	case len(q.Phases) == len(phases):
		q.Phases = nil // which has a list of its own
	}
	if filter.name != nil && filter.name.exact {
		q.Name, filter.name = filter.name.head, nil // which the store knows the place of
	}
	if !filter.empty() {
		q.Match = filter.match
	}
	return q, nil
}

// imageStates reads Status: the states that images are to be in, as phases.
func (p params) imageStates() ([]tasks.Phase, error) {
	status := p["Status"]
	switch {
	case status == "":
		return phasesOfImages("Available"), nil
	case strings.EqualFold(status, "ALL"):
		return phases, nil
	}
	var of []tasks.Phase
	for word := range strings.SplitSeq(status, ",") {
		// Images are never in the last two states.
		state, ok := oneOf(strings.TrimSpace(word), "Available", "Waiting", "Creating", "CreateFailed", "UnAvailable", "Deprecated")
		if !ok || strings.TrimSpace(word) == "" {
			return nil, errImagesParameter.because("Status is a list of states, separated by commas, or ALL alone.")
		}
		of = append(of, phasesOfImages(state)...)
	}
	slices.Sort(of)
	return slices.Compact(of), nil
}

// mine reads the parameters that tell imported images from those of other kinds, of which
// there are none here.
func (p params) mine() (bool, error) {
	owner, ok := oneOf(p["ImageOwnerAlias"], "self", "system", "others", "marketplace")
	if !ok {
		return false, errImageOwner
	}
	usage, ok := oneOf(p["Usage"], "none", "instance")
	if !ok {
		return false, errUsage
	}
	return owner == "self" && usage == "none", nil
}

// imageFilter reads all other filters.
func (p params) imageFilter() (f imageFilter, err error) {
	if name := p["ImageName"]; name != "" {
		f.name = newPattern(name)
	}
	var ok bool
	if f.osType, ok = oneOf(p["OSType"], "", "linux", "windows"); !ok {
		return f, errOSTypeUnknown
	}
	if f.architecture, ok = oneOf(p["Architecture"], "", "x86_64", "i386", "arm64"); !ok {
		return f, errArchitectureUnknown
	}
	f.resourceGroup = p["ResourceGroupId"]
	if f.tags, err = p.tagFilters(); err != nil {
		return f, err
	}
	f.created, err = p.timeFilters()
	return f, err
}

// tagFilters reads Tag.N.Key and Tag.N.Value.
func (p params) tagFilters() (tags []tag, err error) {
	numbers, malformed := p.numbers("Tag")
	switch {
	case malformed != "":
		return nil, errImagesParameter.because("Tags are numbered from 1.")
	case len(numbers) > maxTags:
		return nil, errTagCount
	}
	for _, n := range numbers {
		var t tag
		t.Key, t.Value = p.keyAndValue("Tag", n)
		if t.Key == "" {
			return nil, errTagMismatch
		}
		tags = append(tags, t)
	}
	return tags, nil
}

// timeFilters reads Filter.N.Key and Filter.N.Value.
func (p params) timeFilters() (spans []span, err error) {
	numbers, malformed := p.numbers("Filter")
	if malformed != "" {
		return nil, errImagesParameter.because("Filters are numbered from 1.")
	}
	for _, n := range numbers {
		key, value := p.keyAndValue("Filter", n)
		from, until, ok := parseTime(value)
		var s span
		switch key {
		case "CreationStartTime":
			s.from = from
		case "CreationEndTime":
			s.until = until
		default:
			return nil, errFilterKey
		}
		if !ok {
			return nil, errImagesParameter.because("The value of a filter is a time of the form 2006-01-02T15:04Z, in UTC.")
		}
		spans = append(spans, s)
	}
	return spans, nil
}

func (f *imageFilter) empty() bool {
	return f.name == nil && f.osType == "" && f.architecture == "" && f.resourceGroup == "" && f.tags == nil && f.created == nil
}

// match reports whether the filter wants the image of an import. One whose details nobody
// can read is wanted, so that it comes to light.
func (f *imageFilter) match(imp *tasks.Task) bool {
	if f.name != nil && !f.name.match(imp.Name) || f.osType != "" && f.osType != imp.OSType {
		return false
	}
	if slices.ContainsFunc(f.created, func(s span) bool { return !s.holds(imp.RequestedAt) }) {
		return false
	}
	if f.architecture == "" && f.resourceGroup == "" && f.tags == nil {
		return true // without decoding the details
	}
	more, err := detailsOf(imp)
	if err != nil {
		return true
	}
	return (f.architecture == "" || f.architecture == more.Architecture) &&
		(f.resourceGroup == "" || f.resourceGroup == more.ResourceGroupID) &&
		!slices.ContainsFunc(f.tags, func(want tag) bool { return !more.has(want) })
}

// has reports whether the image has a tag; one without a value stands for any value.
func (d *details) has(want tag) bool {
	return slices.ContainsFunc(d.Tags, func(t tag) bool { return t.Key == want.Key && (want.Value == "" || t.Value == want.Value) })
}

// A pattern is a text in which an asterisk stands for any text.
type pattern struct {
	head   string
	middle []string // found in this order, one after the other
	tail   string
	exact  bool // there is no asterisk: head is all
	least  int  // bytes that a match has
}

func newPattern(text string) *pattern {
	parts := strings.Split(text, "*")
	last := len(parts) - 1
	p := &pattern{head: parts[0], exact: last == 0, least: len(text) - last}
	if last > 0 {
		p.tail = parts[last]
		p.middle = slices.DeleteFunc(parts[1:last], func(s string) bool { return s == "" })
	}
	return p
}

// match looks for the first place of each part, which leaves the most to the next one;
// so it takes no longer than the text is long, times the pattern's parts.
func (p *pattern) match(text string) bool {
	if p.exact || len(text) < p.least {
		return text == p.head && p.exact
	}
	text, okHead := strings.CutPrefix(text, p.head)
	text, okTail := strings.CutSuffix(text, p.tail)
	for _, part := range p.middle {
		_, rest, ok := strings.Cut(text, part)
		if !ok {
			return false
		}
		text = rest
	}
	return okHead && okTail
}
