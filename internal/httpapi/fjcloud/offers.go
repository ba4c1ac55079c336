package fjcloud

// Offers is what a region offers to those who fill in forms.
type Offers struct {
	Profile Profile
	// LocationVersion is what a location begins with, "v1" or "v2".
	LocationVersion string
	S3Locations     bool     // an image may also be named as /bucket/object
	OSTypes         []string // values of os_type, sorted
	// Hypervisors are what images may come from; the first is what counts if nothing is
	// said. With one alone there is nothing to say: details are not offered.
	Hypervisors []Hypervisor
	// ExportedExtensions are those of images that were exported from this cloud, whose
	// metadata has what a request leaves open. Data disks have no other.
	ExportedExtensions []string
	CancelImports      bool // exports can be canceled in every region
	ExportForms        []string
}

// Hypervisor is a value of details.image_from, and what the objects of such images may
// end with, among them the ExportedExtensions.
type Hypervisor struct {
	Name       string
	Extensions []string
}

// Offers returns what the region offers.
func (d *Dialect) Offers() Offers {
	suffixes := func(list []extension) []string {
		names := make([]string, len(list))
		for i, e := range list {
			names[i] = e.suffix
		}
		return names
	}
	gen3 := d.opts.Profile == Gen3
	o := Offers{
		Profile: d.opts.Profile, LocationVersion: d.version, S3Locations: gen3, CancelImports: gen3,
		OSTypes: d.osTypes(), ExportedExtensions: suffixes(exportedExtensions), ExportForms: []string{"cloud", "vmware", "kvm"},
		Hypervisors: []Hypervisor{{fromVMware, suffixes(d.extensions(fromVMware))}},
	}
	if gen3 {
		o.Hypervisors = append(o.Hypervisors, Hypervisor{fromKVM, suffixes(d.extensions(fromKVM))})
	}
	return o
}
