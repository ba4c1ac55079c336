package fjcloud

import (
	"slices"
	"strings"
	"unicode"

	"vmimport/tasks"
)

// Name spaces of objects, as tasks.Object.API.
const (
	apiSwift = "swift"
	apiS3    = "s3"
)

// Lengths of names that the object store allows, in bytes.
const (
	maxContainerBytes = 256
	maxObjectBytes    = 1024
)

// parseLocation reads "/" version "/AUTH_" project "/" container "/" object.
//
// It is the path of the object, not a URL: nothing in it is percent-decoded.
// The project must be the caller's; nobody is told whether another's object
// exists.
func parseLocation(location, version, project string) (tasks.Object, error) {
	rest, reason := cutAccount(location, version, project)
	if reason != "" {
		return tasks.Object{}, errLocation.because(reason)
	}
	container, object, _ := strings.Cut(rest, "/")
	if reason := checkNames(container, object); reason != "" {
		return tasks.Object{}, errLocation.because(reason)
	}
	return tasks.Object{API: apiSwift, Project: project, Container: container, Name: object}, nil
}

// parseContainer reads "/" version "/AUTH_" project "/" container by the rules of
// parseLocation. One slash may follow.
func parseContainer(location, version, project string) (container string, err error) {
	rest, reason := cutAccount(location, version, project)
	if reason != "" {
		return "", errContainer.because(reason)
	}
	container = strings.TrimSuffix(rest, "/")
	switch {
	case container == "":
		return "", errContainer.because("It must name a container.")
	case strings.Contains(container, "/"):
		return "", errContainer.because("It must name a container, and nothing in it.")
	case len(container) > maxContainerBytes-len(partsSuffix):
		return "", errContainer.because("The name of the container is too long; parts go to one that has '" + partsSuffix + "' behind it.")
	}
	if reason := checkSegments(container); reason != "" {
		return "", errContainer.because(reason)
	}
	return container, nil
}

// partsSuffix is what the name of a container has behind it in that of the container
// that keeps the parts of its objects.
const partsSuffix = "_segments"

// cutAccount returns what follows "/" version "/AUTH_" project "/", or what is wrong
// with the beginning.
func cutAccount(location, version, project string) (rest, wrong string) {
	rest, ok := strings.CutPrefix(location, "/"+version+"/AUTH_")
	if !ok {
		return "", "It must begin with /" + version + "/AUTH_ and is a path, not a URL."
	}
	owner, rest, _ := strings.Cut(rest, "/")
	if owner != project {
		return "", "It must name the project of the token."
	}
	return rest, ""
}

// parseS3Location reads "/" bucket "/" object, by the rules of parseLocation.
func parseS3Location(location, project string) (tasks.Object, error) {
	rest, ok := strings.CutPrefix(location, "/")
	bucket, object, _ := strings.Cut(rest, "/")
	if !ok {
		return tasks.Object{}, errS3Location.because("It must begin with a slash.")
	}
	if reason := checkNames(bucket, object); reason != "" {
		return tasks.Object{}, errS3Location.because(reason)
	}
	return tasks.Object{API: apiS3, Project: project, Container: bucket, Name: object}, nil
}

// checkNames says what is wrong with a container and an object, or "".
func checkNames(container, object string) string {
	segments := append(strings.Split(object, "/"), container)
	switch {
	case slices.Contains(segments, ""):
		return "It must name a container and an object, and have no empty segments."
	case len(container) > maxContainerBytes, len(object) > maxObjectBytes:
		return "The name of the container or the object is too long."
	}
	return checkSegments(segments...)
}

// checkSegments says what is wrong with parts of a path, or "".
func checkSegments(segments ...string) string {
	all := strings.Join(segments, "")
	switch {
	case slices.Contains(segments, "."), slices.Contains(segments, ".."):
		return "It must not hold '.' or '..' as a segment."
	case strings.ContainsAny(all, "?#"):
		return "It must not hold '?' or '#'."
	case strings.ContainsFunc(all, unicode.IsControl):
		return "It must not hold control characters."
	}
	return ""
}

// extension is the end of an object's name, and what it declares.
type extension struct {
	suffix   string
	format   string // as tasks.Disk.Format
	exported bool   // by this cloud, with metadata beside it
}

// exportedExtensions are those of images that this cloud exported.
var exportedExtensions = []extension{
	{".img.gz", "raw.gz", true},
	{".qcow2.gz", "qcow2.gz", true},
}

// compressed is an extension behind another one, which says what is inside.
const compressed = ".gz"

// extensions lists what is accepted of a hypervisor's images: its own format,
// exported images, and what the operator allows besides. None of them ends with
// another.
func (d *Dialect) extensions(hypervisor string) []extension {
	own := ".vmdk"
	if hypervisor == fromKVM {
		own = ".qcow2"
	}
	list := slices.Concat([]extension{{suffix: own, format: Formats[own]}}, exportedExtensions)
	add := func(suffix, format string) {
		if !slices.ContainsFunc(list, func(e extension) bool { return e.suffix == suffix }) {
			list = append(list, extension{suffix: suffix, format: format})
		}
	}
	inside := []string{own}
	for _, suffix := range d.opts.Extensions {
		if suffix != compressed {
			add(suffix, Formats[suffix])
			inside = append(inside, suffix)
		}
	}
	if slices.Contains(d.opts.Extensions, compressed) {
		for _, suffix := range append(inside, ".raw") { // .img.gz is an exported image's
			add(suffix+compressed, Formats[suffix]+compressed)
		}
	}
	return list
}

// extensionOf finds the accepted extension that an object's name has. They are
// compared with regard to case, as object names are.
func extensionOf(o tasks.Object, accepted []extension) (extension, error) {
	var suffixes []string
	for _, ext := range accepted {
		if strings.HasSuffix(o.Name, ext.suffix) {
			return ext, nil
		}
		suffixes = append(suffixes, ext.suffix)
	}
	err := errLocation
	if o.API == apiS3 {
		err = errS3Location
	}
	return extension{}, err.because("The extension of the image file is not supported; expected is one of " + strings.Join(suffixes, ", ") + ".")
}
