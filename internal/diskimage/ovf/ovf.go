// Package ovf writes what lies beside the disk of an exported virtual machine: its descriptor in
// the Open Virtualization Format 1.1 (DMTF DSP0243), and the manifest.
//
// Descriptors are for VMware's products, and hold what these need to make the machine. The same
// Machine always gives the same bytes. Names are a stranger's choice, and come out whole
// and harmless: escaped for XML, and for the URI that a reference to a file is.
package ovf

import (
	"bytes"
	_ "embed"
	"encoding/xml"
	"errors"
	"fmt"
	"strings"
	"text/template"
	"unicode"
	"unicode/utf8"
)

// Machine is what a descriptor is made of.
type Machine struct {
	// Name is shown to people. Control characters in it, which XML cannot hold, become
	// U+FFFD.
	Name string
	// DiskFile is the name of the disk's file, beside the descriptor: a stream-optimised
	// VMDK. It is any name that has no slash.
	DiskFile      string
	DiskFileBytes int64 // length of the file
	DiskBytes     int64 // size of the disk, as the guest sees it
	MinRAMMiB     int64 // memory; 0: DefaultRAMMiB
	CPUs          int   // 0: one
	// OSType is what the guest was registered as, in the words of the REST API, such as
	// "rhel8"; other words, and none, stand for any system of 64 bits.
	OSType string
	// Firmware is "bios" or "uefi"; empty: VMware's choice for such a guest.
	Firmware string
}

// DefaultRAMMiB is the memory of a machine whose image does not ask for any: what all systems
// of the REST API start with.
const DefaultRAMMiB = 2048

//go:embed descriptor.xml
var descriptor string

var descriptorTemplate = template.Must(template.New("descriptor").Parse(descriptor))

// Descriptor returns the OVF descriptor of a machine with one disk and one network adapter. It
// fails for values that no machine has.
func Descriptor(m Machine) ([]byte, error) {
	if err := m.check(); err != nil {
		return nil, fmt.Errorf("describe the machine: %w", err)
	}
	if m.MinRAMMiB == 0 {
		m.MinRAMMiB = DefaultRAMMiB
	}
	if m.CPUs == 0 {
		m.CPUs = 1
	}
	var firmware string
	switch m.Firmware {
	case "bios":
		firmware = "bios"
	case "uefi":
		firmware = "efi"
	}
	var b bytes.Buffer
	err := descriptorTemplate.Execute(&b, struct {
		Machine
		Name, Href, Firmware string // made ready for their places
		Guest                guest
	}{m, escaped(m.Name), escaped(href(m.DiskFile)), firmware, guestOf(m.OSType)})
	if err != nil {
		return nil, fmt.Errorf("describe the machine: %w", err)
	}
	return b.Bytes(), nil
}

func (m Machine) check() error {
	switch {
	case m.Name == "":
		return errors.New("it has no name")
	case m.DiskFile == "" || m.DiskFile == "." || m.DiskFile == ".." || strings.Contains(m.DiskFile, "/"):
		return fmt.Errorf("%q is not the name of a file", m.DiskFile)
	case m.DiskBytes <= 0 || m.DiskFileBytes < 0:
		return fmt.Errorf("a disk of %d bytes in a file of %d", m.DiskBytes, m.DiskFileBytes)
	case m.MinRAMMiB < 0 || m.CPUs < 0:
		return fmt.Errorf("%d MiB of memory and %d processors", m.MinRAMMiB, m.CPUs)
	case m.Firmware != "" && m.Firmware != "bios" && m.Firmware != "uefi":
		return fmt.Errorf("unknown firmware %q", m.Firmware)
	}
	return nil
}

// printed replaces what neither XML nor a line of text can hold.
func printed(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return utf8.RuneError
		}
		return r
	}, s)
}

// escaped makes s a text or an attribute's value in XML.
func escaped(s string) string {
	var b strings.Builder
	_ = xml.EscapeText(&b, []byte(printed(s))) // a Builder does not fail
	return b.String()
}

// href is the reference to a file that lies beside the descriptor: a relative URI of one
// segment (RFC 3986). All but the unreserved characters is encoded: a colon would make a scheme of
// what is before it, and some readers take a plus sign for a blank.
func href(name string) string {
	var b strings.Builder
	for _, c := range []byte(name) {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', strings.IndexByte("-._~", c) >= 0:
			b.WriteByte(c)
		default:
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}

// File is a line of a manifest.
type File struct {
	Name   string
	SHA256 string // of its content, in hex
}

// Manifest returns the manifest of the files, in their order (DSP0243, "OVF package"). Names
// stand there as they are, but for control characters, which become U+FFFD: a line break
// would begin a line of the name's choice.
func Manifest(files ...File) []byte {
	var b bytes.Buffer
	for _, f := range files {
		fmt.Fprintf(&b, "SHA256(%s)= %s\n", printed(f.Name), f.SHA256)
	}
	return b.Bytes()
}
