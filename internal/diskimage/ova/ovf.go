package ova

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"strings"

	"vmimport/internal/diskimage"
	"vmimport/internal/fault"
)

// Bounds of a descriptor besides its length. The extensions of VirtualBox nest
// twelve deep; the descriptor of an appliance of many machines has some thousand
// elements, and each takes much more memory than it has bytes.
const (
	maxDepth    = 64
	maxElements = 20_000
)

// envelope is what we read of an OVF descriptor (DSP0243; schema DSP8023). Names
// are written with the short namespaces of vocabulary. All values are kept as
// text, so that a strange one does no harm where it does not matter.
type envelope struct {
	XMLName xml.Name `xml:"ovf Envelope"`
	Files   []*file  `xml:"ovf References>File"`
	Disks   []*disk  `xml:"ovf DiskSection>Disk"`
	collection
}

// collection is a VirtualSystemCollection, or the envelope.
type collection struct {
	Systems     []*system     `xml:"ovf VirtualSystem"`
	Collections []*collection `xml:"ovf VirtualSystemCollection"`
}

type file struct {
	ID          string `xml:"ovf id,attr"`
	Href        string `xml:"ovf href,attr"`
	Compression string `xml:"ovf compression,attr"`
	ChunkSize   string `xml:"ovf chunkSize,attr"`
}

type disk struct {
	ID        string `xml:"ovf diskId,attr"`
	FileRef   string `xml:"ovf fileRef,attr"`
	ParentRef string `xml:"ovf parentRef,attr"` // oVirt writes an empty one
	Capacity  string `xml:"ovf capacity,attr"`
	Units     string `xml:"ovf capacityAllocationUnits,attr"`
	Boot      string `xml:"ovf boot,attr"` // oVirt's

	number int  // in the descriptor, from 0
	shared bool // FileRef is that of an earlier disk, too
}

type system struct {
	ID       string      `xml:"ovf id,attr"`
	Name     string      `xml:"ovf Name"`
	Hardware []*hardware `xml:"ovf VirtualHardwareSection"`
	// VirtualBox's own description has its namespace at the root alone.
	Machine struct {
		Firmware struct {
			Type string `xml:"ovf type,attr"`
		} `xml:"ovf Hardware>Firmware"`
	} `xml:"vbox Machine"`
}

type hardware struct {
	Items        []*item `xml:"ovf Item"`
	StorageItems []*item `xml:"ovf StorageItem"` // since OVF 2.0
	Config       []struct {
		Key   string `xml:"vmw key,attr"`
		Value string `xml:"vmw value,attr"`
	} `xml:"vmw Config"`
}

// item is a device: CIM_ResourceAllocationSettingData, or its child for storage.
type item struct {
	InstanceID      string   `xml:"cim InstanceID"`
	Address         string   `xml:"cim Address"`
	Parent          string   `xml:"cim Parent"`
	AddressOnParent string   `xml:"cim AddressOnParent"`
	HostResource    []string `xml:"cim HostResource"`
}

// parseEnvelope reads a descriptor and checks that what refers to each other does
// so without ambiguity.
func parseEnvelope(text []byte) (*envelope, error) {
	d := xml.NewDecoder(bytes.NewReader(bytes.TrimPrefix(text, []byte("\ufeff"))))
	d.CharsetReader = charset
	env := &envelope{}
	if err := xml.NewTokenDecoder(&vocabulary{d: d}).Decode(env); err != nil {
		if f, ok := errors.AsType[*fault.Error](err); ok {
			return nil, f
		}
		line, _ := d.InputPos()
		return nil, diskimage.ErrCorrupt.Saw("the OVF descriptor is invalid at line %d", line)
	}
	return env, env.check()
}

func (env *envelope) check() error {
	ids := map[string]bool{}
	for i, f := range env.Files {
		if ids[f.ID] {
			return diskimage.ErrCorrupt.Saw("file %d of the descriptor has the id of an earlier one", i)
		}
		ids[f.ID] = true
	}
	ids, used := map[string]bool{}, map[string]bool{}
	for i, d := range env.Disks {
		if ids[d.ID] {
			return diskimage.ErrCorrupt.Saw("disk %d of the descriptor has the id of an earlier one", i)
		}
		d.number, d.shared = i, used[d.FileRef]
		ids[d.ID], used[d.FileRef] = true, true
	}
	return nil
}

// charset is asked about encodings other than UTF-8. US-ASCII is a part of it, and
// what Python writes if not told otherwise.
func charset(label string, r io.Reader) (io.Reader, error) {
	if strings.EqualFold(label, "us-ascii") || strings.EqualFold(label, "ascii") {
		return r, nil
	}
	return nil, diskimage.ErrUnsupported.Saw("an OVF descriptor that is not in UTF-8")
}

// vocabulary gives namespaces short names, so that the versions of OVF and of CIM
// are alike. It also bounds the depth, and refuses what no descriptor needs.
type vocabulary struct {
	d        *xml.Decoder
	depth    int
	elements int
}

const encryption = "http://www.w3.org/2001/04/xmlenc#"

// Token implements xml.TokenReader.
func (v *vocabulary) Token() (xml.Token, error) {
	token, err := v.d.Token()
	if err != nil {
		return nil, err
	}
	switch t := token.(type) {
	case xml.Directive:
		return nil, diskimage.ErrCorrupt.Saw("a document type declaration in the OVF descriptor")
	case xml.EndElement:
		v.depth--
		t.Name.Space = short(t.Name.Space)
		return t, nil
	case xml.StartElement:
		if v.depth++; v.depth > maxDepth {
			return nil, diskimage.ErrCorrupt.Saw("elements more than %d deep in the OVF descriptor", maxDepth)
		}
		if v.elements++; v.elements > maxElements {
			return nil, diskimage.ErrUnsupported.Saw("more than %d elements in the OVF descriptor", maxElements)
		}
		if t.Name.Space == encryption || t.Name.Local == "EncryptionSection" {
			return nil, diskimage.ErrEncrypted
		}
		t.Name.Space = short(t.Name.Space)
		attrs := t.Attr[:0]
		for _, a := range t.Attr {
			if a.Name.Space == "xmlns" || a.Name.Local == "xmlns" {
				continue
			}
			a.Name.Space = short(a.Name.Space)
			attrs = append(attrs, a)
		}
		t.Attr = attrs
		return t, nil
	}
	return token, nil
}

// short names a namespace. A name without one counts as OVF's: some tools write
// attributes, and some whole descriptors, like that. oVirt writes OVF's with a
// slash behind it.
func short(space string) string {
	space = strings.TrimSuffix(space, "/")
	switch {
	case space == "", space == "http://schemas.dmtf.org/ovf/envelope/1", space == "http://schemas.dmtf.org/ovf/envelope/2":
		return "ovf"
	case strings.HasPrefix(space, "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/"):
		return "cim"
	case space == "http://www.vmware.com/schema/ovf":
		return "vmw"
	case space == "http://www.virtualbox.org/ovf/machine":
		return "vbox"
	}
	return "other"
}
