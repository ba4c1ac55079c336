package ova

import (
	"fmt"
	"math"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// systems are all virtual machines of the descriptor.
func (c *collection) systems() []*system {
	all := slices.Clone(c.Systems)
	for _, inner := range c.Collections {
		all = append(all, inner.systems()...)
	}
	return all
}

// first is the first virtual machine, whose disks come first, or an empty one.
func (env *envelope) first() *system {
	if all := env.systems(); len(all) > 0 {
		return all[0]
	}
	return &system{}
}

func (env *envelope) name() string {
	s := env.first()
	for _, name := range []string{s.Name, s.ID} {
		if name = strings.TrimSpace(name); name != "" && len(name) <= maxNameBytes && printable(name) {
			return name
		}
	}
	return ""
}

// firmware looks where VMware and where VirtualBox write it, which has "EFI32" and
// the like, too. OVF itself does not know of firmware.
func (env *envelope) firmware() string {
	s := env.first()
	kinds := []string{s.Machine.Firmware.Type}
	for _, h := range s.Hardware {
		for _, c := range h.Config {
			if c.Key == "firmware" {
				kinds = append(kinds, c.Value)
			}
		}
	}
	for _, kind := range kinds {
		switch kind = strings.ToLower(kind); {
		case strings.HasPrefix(kind, "efi"):
			return "efi"
		case kind == "bios":
			return "bios"
		}
	}
	return ""
}

func (env *envelope) warnings() []string {
	var w []string
	if n := len(env.systems()); n > 1 {
		w = append(w, fmt.Sprintf("The archive holds %d virtual machines; the disks of the first one come first.", n))
	}
	empty := 0
	for _, d := range env.Disks {
		if d.FileRef == "" {
			empty++
		}
	}
	if empty > 0 {
		w = append(w, fmt.Sprintf("The virtual machine has empty disks that the archive holds no data for; they are left out (%d).", empty))
	}
	return w
}

// rank says where a disk is attached: the smaller, the earlier a machine looks for
// its system there. It is compared from the left: 0 if the disk is marked to be
// booted from, else 1; the number of the virtual machine; the address of the
// controller, for there is an IDE 0, a SCSI 0 and so on; the controller's place
// among the devices; the disk's address on the controller, and its own place.
type rank [6]int

// none is the rank of what is not there: behind all that is.
const none = math.MaxInt

// disksInOrder returns the disks with data, the system disk first.
func (env *envelope) disksInOrder() []*disk {
	ranks := map[string]rank{}
	for i, s := range env.systems() {
		if len(s.Hardware) > 0 { // several are alternatives for different hypervisors
			s.Hardware[0].rankDisks(i, ranks)
		}
	}
	rankOf := func(d *disk) rank {
		r, attached := ranks[d.ID]
		if !attached {
			r = rank{1, none, none, none, none, none}
		}
		if strings.EqualFold(d.Boot, "true") {
			r[0] = 0
		}
		return r
	}
	disks := slices.DeleteFunc(slices.Clone(env.Disks), func(d *disk) bool { return d.FileRef == "" })
	slices.SortStableFunc(disks, func(a, b *disk) int {
		ra, rb := rankOf(a), rankOf(b)
		return slices.Compare(ra[:], rb[:])
	})
	return disks
}

// rankDisks ranks what the devices of the n-th machine refer to. The reference
// tells a disk from other devices, whatever the device's type: exporters do not
// agree on types.
func (h *hardware) rankDisks(n int, ranks map[string]rank) {
	items := slices.Concat(h.Items, h.StorageItems)
	type bus struct{ address, place int }
	buses := map[string]bus{}
	for i, it := range items {
		id := strings.TrimSpace(it.InstanceID)
		if _, known := buses[id]; !known && id != "" {
			buses[id] = bus{number(it.Address, 0), i}
		}
	}
	for i, it := range items {
		on, ok := buses[strings.TrimSpace(it.Parent)]
		if !ok {
			on = bus{none, none}
		}
		r := rank{1, n, on.address, on.place, number(it.AddressOnParent, none), i}
		for _, resource := range it.HostResource {
			id, ok := diskID(resource)
			if !ok {
				continue
			}
			if old, known := ranks[id]; !known || slices.Compare(r[:], old[:]) < 0 {
				ranks[id] = r
			}
		}
	}
}

// number parses an address, which need not be one: PCI addresses have colons.
func number(s string, otherwise int) int {
	n, err := strconv.ParseUint(strings.TrimSpace(s), 10, 31)
	if err != nil {
		return otherwise
	}
	return int(n)
}

// diskID is the disk that a HostResource names. What DSP0243 has is "ovf:/disk/ID";
// there are "/disk/ID" (VirtualBox), "ovf://disk/ID", "ovf:disk/ID", and oVirt's
// "IMAGE/ID". A reference to a file, "ovf:/file/ID", is a CD.
func diskID(resource string) (string, bool) {
	resource = strings.TrimSpace(resource)
	i := strings.LastIndexByte(resource, '/')
	if i < 0 || strings.HasSuffix(resource[:i], "file") {
		return "", false
	}
	return resource[i+1:], true
}

// file returns the reference with an id.
func (env *envelope) file(id string) (*file, bool) {
	for _, f := range env.Files {
		if f.ID == id {
			return f, true
		}
	}
	return nil, false
}

var scheme = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9+.-]*:`)

// names are those that the file may have in the archive. An href is a relative URI
// (DSP0243, "File references"), in which a blank is "%20", but many tools write the
// name as it is.
func (f *file) names() []string {
	href := strings.TrimPrefix(f.Href, "./")
	if decoded, err := url.PathUnescape(href); err == nil && decoded != href {
		return []string{href, decoded}
	}
	return []string{href}
}

// sibling reports whether name is neither URL nor path: the files of an archive
// lie side by side.
func sibling(name string) bool {
	return plain(name) && !strings.Contains(name, "/") && !scheme.MatchString(name)
}

// byteUnit is a programmatic unit of bytes (DSP0004, annex C) without its blanks.
var byteUnit = regexp.MustCompile(`^bytes?(?:\*(2|10)\^(\d{1,2}))?$`)

// oldUnits are those of OVF before 1.1, and of tools that stayed with it.
var oldUnits = map[string]string{
	"":          "byte",
	"kilobytes": "byte*2^10", "kb": "byte*2^10",
	"megabytes": "byte*2^20", "mb": "byte*2^20",
	"gigabytes": "byte*2^30", "gb": "byte*2^30",
	"terabytes": "byte*2^40", "tb": "byte*2^40",
}

// capacity is the size of the disk in bytes, or 0 if the descriptor does not say in
// a way that is understood. It may refer to a property that is set when the
// machine is made, "${size}".
func (d *disk) capacity() int64 {
	units := strings.ToLower(strings.ReplaceAll(d.Units, " ", ""))
	if modern, ok := oldUnits[units]; ok {
		units = modern
	}
	size, err := strconv.ParseInt(strings.TrimSpace(d.Capacity), 10, 64)
	part := byteUnit.FindStringSubmatch(units)
	if err != nil || size < 0 || part == nil {
		return 0
	}
	base, exponent := int64(number(part[1], 1)), number(part[2], 0)
	for range exponent {
		if size > math.MaxInt64/base {
			return 0
		}
		size *= base
	}
	return size
}
