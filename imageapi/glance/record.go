package glance

import (
	"maps"
	"strconv"
	"time"

	"github.com/gophercloud/gophercloud/v2/openstack/image/v2/images"

	"vmimport/imageapi"
)

// States of an image in Glance. See the status transitions in its documentation of
// images.
const (
	queued = "queued" // known, and without data
	saving = "saving" // data is being sent, or Glance stopped while it was
	active = "active"
)

// Properties by which an image is known for one of ours. Those of an image that was
// handed over are its owner's to change; they are believed only while the service
// owns the image.
const (
	propImport  = "vmimport_import_id"
	propAttempt = "vmimport_attempt" // there until the image is handed over
	propKeepID  = "vmimport_keep_id" // the id must not be spent
	propParked  = "vmimport_parked"  // an id that waits for the next who asks for it
	propOSType  = "os_type"
	propNone    = "vmimport_none" // no image has it
	propPrefix  = "vmimport_"
)

const yes = "true"

// record is an image as Glance shows it.
type record struct {
	ID        string    `json:"id"`
	Name      string    `json:"name"`
	Status    string    `json:"status"`
	Owner     string    `json:"owner"`
	Size      int64     `json:"size"`
	HashAlgo  string    `json:"os_hash_algo"`
	HashValue string    `json:"os_hash_value"`
	CreatedAt time.Time `json:"created_at"`
	Protected bool      `json:"protected"`

	Import  string `json:"vmimport_import_id"`
	Attempt string `json:"vmimport_attempt"`
	KeepID  string `json:"vmimport_keep_id"`
	Parked  string `json:"vmimport_parked"`
	Region  string `json:"vmimport_region"`

	properties map[string]any // with all of the above
	seen       time.Time      // when
}

// attempt is the number of the attempt that has the image.
func (r *record) attempt() int64 {
	n, _ := strconv.ParseInt(r.Attempt, 10, 64) // an unreadable number was not written by us
	return n
}

// unpublished reports whether the image is one that an import is making, or has
// left. own is the service's project.
func (r *record) unpublished(own string) bool { return r.Owner == own && r.Attempt != "" }

// isOf reports whether the image is that of spec's import, being made or published.
func (r *record) isOf(spec imageapi.Spec, own string) bool {
	return r.Import == spec.ImportID && (r.unpublished(own) || r.Owner == spec.Owner)
}

// gone reports whether the image is being deleted. It has lost its properties by then.
func (r *record) gone() bool { return r.Status == "deleted" || r.Status == "pending_delete" }

// parked reports whether the image only keeps an id free.
func (r *record) parked(own string) bool {
	return r.Owner == own && r.Parked == yes && r.Status == queued
}

// creation is the request to make an image that spec describes. It belongs to the
// service until it is handed over.
func creation(spec imageapi.Spec) images.CreateOpts {
	return images.CreateOpts{
		ID:              spec.ImageID,
		Name:            spec.Name,
		Visibility:      new(images.ImageVisibilityPrivate),
		ContainerFormat: "bare",
		DiskFormat:      spec.Format,
		MinDisk:         int(spec.MinDisk),
		MinRAM:          int(spec.MinRAM),
		Properties:      properties(spec),
	}
}

// properties are those of an image that is being made.
func properties(spec imageapi.Spec) map[string]string {
	p := map[string]string{}
	maps.Copy(p, spec.WellKnown)
	p[propImport], p[propAttempt] = spec.ImportID, strconv.FormatInt(spec.Attempt, 10)
	if spec.OSType != "" {
		p[propOSType] = spec.OSType
	}
	if spec.KeepID {
		p[propKeepID] = yes
	}
	for name, value := range spec.Properties {
		p[prefixed(name)] = value
	}
	return p
}

// prefixed keeps our facts apart from properties that mean something to Glance and
// Nova.
func prefixed(name string) string {
	if len(name) > len(propPrefix) && name[:len(propPrefix)] == propPrefix {
		return name
	}
	return propPrefix + name
}

// takingUp makes an attempt the one that has the image, unless nobody has it any more.
func takingUp(spec imageapi.Spec) images.UpdateOpts {
	return images.UpdateOpts{
		images.UpdateImageProperty{Op: images.RemoveOp, Name: propAttempt},
		add(propAttempt, strconv.FormatInt(spec.Attempt, 10)),
	}
}

// takeover makes an image that was parked the one that spec describes.
func takeover(r *record, spec imageapi.Spec) images.UpdateOpts {
	patch := images.UpdateOpts{
		set("name", spec.Name),
		set("disk_format", spec.Format),
		images.ReplaceImageHidden{NewHidden: false},
		images.ReplaceImageMinDisk{NewMinDisk: int(spec.MinDisk)},
		images.ReplaceImageMinRam{NewMinRam: int(spec.MinRAM)},
	}
	for name, value := range properties(spec) {
		patch = append(patch, add(name, value))
	}
	return append(patch, remove(r, propParked)...)
}

// parking makes an image one that only keeps its id, out of everybody's sight.
func parking(r *record) images.UpdateOpts {
	patch := images.UpdateOpts{
		set("name", ""),
		images.ReplaceImageHidden{NewHidden: true},
		images.ReplaceImageMinDisk{},
		images.ReplaceImageMinRam{},
		add(propParked, yes),
	}
	names := []string{propOSType}
	for name := range r.properties {
		if name != propParked && prefixed(name) == name {
			names = append(names, name)
		}
	}
	return append(patch, remove(r, names...)...)
}

// handover gives an image to its owner, with what is known of it.
func handover(r *record, spec imageapi.Spec, facts imageapi.DiskFacts) images.UpdateOpts {
	patch := images.UpdateOpts{set("owner", spec.Owner)}
	for name, value := range facts.Properties {
		patch = append(patch, add(prefixed(name), value))
	}
	return append(patch, remove(r, propAttempt, propKeepID)...)
}

func set(name, value string) images.Patch {
	return images.UpdateImageProperty{Op: images.ReplaceOp, Name: name, Value: value}
}

// add sets a property, whether it is there or not.
func add(name, value string) images.Patch {
	return images.UpdateImageProperty{Op: images.AddOp, Name: name, Value: value}
}

// remove removes those properties that r has: Glance refuses to remove others.
func remove(r *record, names ...string) []images.Patch {
	var patch []images.Patch
	for _, name := range names {
		if _, ok := r.properties[name]; ok {
			patch = append(patch, images.UpdateImageProperty{Op: images.RemoveOp, Name: name})
		}
	}
	return patch
}
