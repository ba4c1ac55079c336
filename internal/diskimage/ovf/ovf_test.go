package ovf_test

import (
	"archive/tar"
	"bytes"
	"encoding/xml"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"vmimport/internal/diskimage/imagetest"
	"vmimport/internal/diskimage/ova"
	"vmimport/internal/diskimage/ovf"
)

var update = flag.Bool("update", false, "write the golden files anew")

func web() ovf.Machine {
	return ovf.Machine{
		Name: "web 01 <ウェブ> & \"co\"", DiskFile: "web 01 <ウェブ> & \"co\".vmdk", DiskFileBytes: 1536, DiskBytes: 40 << 30,
		MinRAMMiB: 4096, CPUs: 2, OSType: "win2016SE_ja", Firmware: "uefi",
	}
}

func TestGolden(t *testing.T) {
	t.Parallel()
	for name, m := range map[string]ovf.Machine{
		"full":    web(),
		"minimal": {Name: "db", DiskFile: "db.vmdk", DiskBytes: 512},
	} {
		got, err := ovf.Descriptor(m)
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join("testdata", name+".ovf")
		if *update {
			if err := os.WriteFile(path, got, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s: got\n%s", name, got)
		}
	}
}

// envelope is what the tests look at of a descriptor.
type envelope struct {
	XMLName xml.Name `xml:"http://schemas.dmtf.org/ovf/envelope/1 Envelope"`
	File    struct {
		Href string `xml:"href,attr"`
		ID   string `xml:"id,attr"`
		Size int64  `xml:"size,attr"`
	} `xml:"References>File"`
	Disk struct {
		Capacity int64  `xml:"capacity,attr"`
		Units    string `xml:"capacityAllocationUnits,attr"`
		FileRef  string `xml:"fileRef,attr"`
		Format   string `xml:"format,attr"`
	} `xml:"DiskSection>Disk"`
	System struct {
		ID   string `xml:"http://schemas.dmtf.org/ovf/envelope/1 id,attr"`
		Name string
		OS   struct {
			ID   int    `xml:"id,attr"`
			Type string `xml:"http://www.vmware.com/schema/ovf osType,attr"`
		} `xml:"OperatingSystemSection"`
		Hardware struct {
			Identifier string `xml:"System>VirtualSystemIdentifier"`
			Items      []struct {
				InstanceID      int
				ResourceType    int
				ResourceSubType string
				VirtualQuantity int64
				HostResource    string
				Parent          int
			} `xml:"Item"`
			Config []struct {
				Key   string `xml:"key,attr"`
				Value string `xml:"value,attr"`
			}
		} `xml:"VirtualHardwareSection"`
	} `xml:"VirtualSystem"`
}

// describe returns the descriptor of a machine, and what is in it.
func describe(t testing.TB, m ovf.Machine) ([]byte, *envelope) {
	t.Helper()
	text, err := ovf.Descriptor(m)
	if err != nil {
		t.Fatal(err)
	}
	again, err := ovf.Descriptor(m)
	if err != nil || !bytes.Equal(again, text) {
		t.Fatalf("the same machine has another descriptor, %v", err)
	}
	env := &envelope{}
	if err := xml.Unmarshal(text, env); err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	return text, env
}

func TestDescriptor(t *testing.T) {
	t.Parallel()
	m := web()
	_, env := describe(t, m)
	if f := env.File; f.Size != m.DiskFileBytes || f.ID != env.Disk.FileRef {
		t.Errorf("file %+v of disk %+v", f, env.Disk)
	}
	if d := env.Disk; d.Capacity != m.DiskBytes || d.Units != "byte" || !strings.HasSuffix(d.Format, "vmdk.html#streamOptimized") {
		t.Errorf("disk %+v", d)
	}
	if s := env.System; s.Name != m.Name || s.ID != m.Name || s.Hardware.Identifier != m.Name {
		t.Errorf("names %q, %q and %q", s.Name, s.ID, s.Hardware.Identifier)
	}
	quantities := map[int]int64{}
	for i, it := range env.System.Hardware.Items {
		quantities[it.ResourceType] = it.VirtualQuantity
		if it.InstanceID != i+1 {
			t.Errorf("item %d has the id %d", i, it.InstanceID)
		}
		if it.ResourceType == 17 && (it.HostResource != "ovf:/disk/vmdisk1" || env.System.Hardware.Items[it.Parent-1].ResourceType != 6) {
			t.Errorf("disk drive %+v", it)
		}
	}
	if quantities[3] != 2 || quantities[4] != 4096 || len(quantities) != 5 {
		t.Errorf("quantities %v", quantities)
	}
}

func TestDefaults(t *testing.T) {
	t.Parallel()
	_, env := describe(t, ovf.Machine{Name: "a", DiskFile: "a.vmdk", DiskBytes: 512})
	items := env.System.Hardware.Items
	if items[0].VirtualQuantity != 1 || items[1].VirtualQuantity != ovf.DefaultRAMMiB || len(env.System.Hardware.Config) != 0 {
		t.Errorf("%+v", env.System.Hardware)
	}
}

func TestGuests(t *testing.T) {
	t.Parallel()
	for osType, want := range map[string]struct {
		id                        int
		vmware, controller, lanOn string
	}{
		"win2016SE_ja":        {117, "windows9Server64Guest", "lsilogicsas", "E1000e"},
		"win2019SE_SQL2019SE": {117, "windows9Server64Guest", "lsilogicsas", "E1000e"},
		"win2012R2SE":         {116, "windows8Server64Guest", "lsilogicsas", "E1000e"},
		"win2008R2EE":         {103, "windows7Server64Guest", "lsilogicsas", "E1000"},
		"rhel7":               {80, "rhel7_64Guest", "VirtualSCSI", "VmxNet3"},
		"rhel8":               {80, "rhel8_64Guest", "VirtualSCSI", "VmxNet3"},
		"rocky":               {101, "other4xLinux64Guest", "VirtualSCSI", "VmxNet3"},
		"ubuntu":              {94, "ubuntu64Guest", "VirtualSCSI", "VmxNet3"},
		"":                    {102, "otherGuest64", "lsilogic", "E1000"},
		"<templeos>":          {102, "otherGuest64", "lsilogic", "E1000"},
	} {
		_, env := describe(t, ovf.Machine{Name: "a", DiskFile: "a.vmdk", DiskBytes: 512, OSType: osType})
		if os := env.System.OS; os.ID != want.id || os.Type != want.vmware {
			t.Errorf("%s: %+v", osType, os)
		}
		items := env.System.Hardware.Items
		if items[2].ResourceSubType != want.controller || items[4].ResourceSubType != want.lanOn {
			t.Errorf("%s: %q and %q", osType, items[2].ResourceSubType, items[4].ResourceSubType)
		}
	}
}

func TestRefused(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*ovf.Machine){
		"no name":         func(m *ovf.Machine) { m.Name = "" },
		"no file":         func(m *ovf.Machine) { m.DiskFile = "" },
		"path":            func(m *ovf.Machine) { m.DiskFile = "a/b.vmdk" },
		"parent":          func(m *ovf.Machine) { m.DiskFile = ".." },
		"no disk":         func(m *ovf.Machine) { m.DiskBytes = 0 },
		"negative file":   func(m *ovf.Machine) { m.DiskFileBytes = -1 },
		"negative memory": func(m *ovf.Machine) { m.MinRAMMiB = -1 },
		"negative CPUs":   func(m *ovf.Machine) { m.CPUs = -1 },
		"firmware":        func(m *ovf.Machine) { m.Firmware = "coreboot" },
	} {
		m := web()
		change(&m)
		if text, err := ovf.Descriptor(m); err == nil {
			t.Errorf("%s: %s", name, text)
		}
	}
}

// names are file names that have something to be escaped.
var names = []string{
	"plain.vmdk", "with blank.vmdk", "100%20.vmdk", "a&b<c>d.vmdk", "\"double\" and 'single'.vmdk", "]]>.vmdk", "<!--.vmdk",
	"ウェブサーバー（本番）.vmdk", "a+b=c;d,e@f$g!h*i(j).vmdk", "#fragment?query.vmdk", "ü\u0308.vmdk", "{{.Name}}.vmdk", "😀.vmdk", ".hidden",
}

// An OVA of the three files is one that our own reader takes: descriptor, manifest and
// archive agree on names and sizes.
func TestReadBack(t *testing.T) {
	t.Parallel()
	vmdk := strings.Repeat("disk", 300)
	for _, name := range names {
		for firmware, read := range map[string]string{"": "", "bios": "bios", "uefi": "efi"} {
			m := ovf.Machine{Name: strings.TrimSuffix(name, ".vmdk"), DiskFile: name, DiskFileBytes: int64(len(vmdk)), DiskBytes: 3 << 30, Firmware: firmware}
			text, _ := describe(t, m)
			sum := strings.Repeat("0123456789abcdef", 4)
			manifest := ovf.Manifest(ovf.File{Name: "machine.ovf", SHA256: strings.Repeat("f", 64)}, ovf.File{Name: name, SHA256: sum})
			a, err := ova.Open(imagetest.Of(archive(t, "machine.ovf", string(text), "machine.mf", string(manifest), name, vmdk)))
			if err != nil {
				t.Errorf("%q: %v", name, err)
				continue
			}
			if a.Name != m.Name || a.Firmware != read || len(a.Warnings) != 0 || len(a.Disks) != 1 {
				t.Errorf("%q: %+v", name, a)
				continue
			}
			if d := a.Disks[0]; d.Name != name || d.Size != int64(len(vmdk)) || d.Capacity != m.DiskBytes || d.Digest != (ova.Digest{Algorithm: "SHA256", Hex: sum}) {
				t.Errorf("%q: %+v", name, d)
			}
		}
	}
}

// archive is a tar of members, each a name and its content.
func archive(t *testing.T, members ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for i := 0; i < len(members); i += 2 {
		h := &tar.Header{Typeflag: tar.TypeReg, Name: members[i], Mode: 0o644, Size: int64(len(members[i+1])), Format: tar.FormatPAX}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(members[i+1])); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestManifest(t *testing.T) {
	t.Parallel()
	got := string(ovf.Manifest(
		ovf.File{Name: "サーバー (1).vmdk", SHA256: strings.Repeat("a", 64)},
		ovf.File{Name: "x)= 0\nSHA256(y", SHA256: strings.Repeat("b", 64)}))
	want := "SHA256(サーバー (1).vmdk)= " + strings.Repeat("a", 64) + "\n" +
		"SHA256(x)= 0\ufffdSHA256(y)= " + strings.Repeat("b", 64) + "\n"
	if got != want {
		t.Errorf("got\n%s", got)
	}
	if len(ovf.Manifest()) != 0 {
		t.Error("a manifest of nothing")
	}
}

// Whatever the names are, the descriptor is XML of the same shape, and the names come out of
// it: that of the machine but for what XML cannot hold, that of the file byte by byte.
func FuzzNames(f *testing.F) {
	for _, name := range names {
		f.Add(name, name)
	}
	f.Add("a:b", "a:b.vmdk") // not a URL
	f.Add("\x00\t\r\n\x7f\u0085\ufffe", "\x00\n\xff.vmdk")
	f.Fuzz(func(t *testing.T, name, file string) {
		m := web()
		m.Name, m.DiskFile = name, file
		text, err := ovf.Descriptor(m)
		if err != nil {
			return
		}
		var env envelope
		if err := xml.Unmarshal(text, &env); err != nil {
			t.Fatalf("%v in\n%s", err, text)
		}
		if got := unescaped(env.File.Href); got != file || strings.ContainsAny(env.File.Href, ":/+ ") {
			t.Errorf("file %q became %q", file, env.File.Href)
		}
		if got, want := env.System.Name, shown(name); got != want || env.System.ID != want {
			t.Errorf("name %q became %q and %q, want %q", name, got, env.System.ID, want)
		}
		if len(env.System.Hardware.Items) != 5 {
			t.Errorf("%d items", len(env.System.Hardware.Items))
		}
	})
}

// unescaped decodes a URI's segment, independently of net/url.
func unescaped(s string) string {
	var b []byte
	for i := 0; i < len(s); i++ {
		if s[i] == '%' {
			const digits = "0123456789ABCDEF"
			b = append(b, byte(strings.IndexByte(digits, s[i+1])<<4|strings.IndexByte(digits, s[i+2])))
			i += 2
			continue
		}
		b = append(b, s[i])
	}
	return string(b)
}

// shown is a name as far as XML can hold it.
func shown(name string) string {
	var b strings.Builder
	for _, r := range name {
		if unicode.IsControl(r) || r == 0xfffe || r == 0xffff {
			r = utf8.RuneError
		}
		b.WriteRune(r)
	}
	return b.String()
}
