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
	rest, ok := strings.CutPrefix(location, "/"+version+"/AUTH_")
	if !ok {
		return tasks.Object{}, errLocation.because("It must begin with /" + version + "/AUTH_ and is a path, not a URL.")
	}
	owner, rest, _ := strings.Cut(rest, "/")
	container, object, _ := strings.Cut(rest, "/")
	if owner != project {
		return tasks.Object{}, errLocation.because("It must name the project of the token.")
	}
	if reason := checkNames(container, object); reason != "" {
		return tasks.Object{}, errLocation.because(reason)
	}
	return tasks.Object{API: apiSwift, Project: project, Container: container, Name: object}, nil
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
	case slices.Contains(segments, "."), slices.Contains(segments, ".."):
		return "It must not hold '.' or '..' as a segment."
	case strings.ContainsAny(container+object, "?#"):
		return "It must not hold '?' or '#'."
	case strings.ContainsFunc(container+object, unicode.IsControl):
		return "It must not hold control characters."
	case len(container) > maxContainerBytes, len(object) > maxObjectBytes:
		return "The name of the container or the object is too long."
	}
	return ""
}

// errExportedImage refuses images that this cloud exported itself: what they
// are is told by a metadata object, which is not read yet.
var errExportedImage = errExported.because("Images exported from this cloud are not supported yet.")

// exportedExtensions are those of images that this cloud exported.
var exportedExtensions = []string{".img.gz", ".qcow2.gz"}

// declaredFormat returns what the extension of the object's name says about
// it. Extensions are compared with regard to case, as object names are.
func (d *Dialect) declaredFormat(o tasks.Object, kind string) (string, error) {
	own := ".vmdk"
	if kind == fromKVM {
		own = ".qcow2"
	}
	// An extension of two parts says more than its last part.
	if slices.ContainsFunc(exportedExtensions, func(ext string) bool { return strings.HasSuffix(o.Name, ext) }) {
		return "", errExportedImage
	}
	accepted := append([]string{own}, d.opts.Extensions...)
	for _, ext := range accepted {
		if strings.HasSuffix(o.Name, ext) {
			return Formats[ext], nil
		}
	}
	err := errLocation
	if o.API == apiS3 {
		err = errS3Location
	}
	return "", err.because("The extension of the image file is not supported; expected is one of " + strings.Join(accepted, ", ") + ".")
}
