package ova_test

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"vmimport/internal/diskimage"
	"vmimport/internal/diskimage/imagetest"
	"vmimport/internal/diskimage/ova"
	"vmimport/internal/fault"
)

const disk1 = "the first disk"

// disk2 is longer than a block of the archive.
var disk2 = "the second disk" + strings.Repeat("0123456789", 60)

func withDisks(descriptor string) []entry {
	return []entry{{name: "web.ovf", data: descriptor}, {name: "web-disk1.vmdk", data: disk1}, {name: "web-disk2.vmdk", data: disk2}}
}

func open(b []byte) (*ova.Archive, error) { return ova.Open(imagetest.Of(b)) }

func TestDescriptors(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		descriptor     string
		want           ova.Archive // but for the disks
		cap1, cap2     int64
		warningsInText []string
	}{
		"vSphere":      {byVSphere, ova.Archive{Name: "Web & more", Firmware: "efi"}, 16 << 30, 12 << 20, nil},
		"VirtualBox 2": {byVirtualBox2, ova.Archive{Name: "Web", Firmware: "efi"}, 16 << 30, 12 << 20, nil},
		"VirtualBox 1": {strings.NewReplacer("envelope/2", "envelope/1", "StorageItem>", "Item>", "sasd", "rasd", ` type="EFI"`, ` type="BIOS"`).Replace(byVirtualBox2), ova.Archive{Name: "Web", Firmware: "bios"}, 16 << 30, 12 << 20, nil},
		"oVirt":        {byOVirt, ova.Archive{Name: "web"}, 16 << 30, 1 << 30, nil},
		"script":       {byScript, ova.Archive{Name: "web"}, 16 << 30, 12 << 20, []string{"2 virtual machines", "left out (1)"}},
	} {
		for _, format := range []tar.Format{tar.FormatUSTAR, tar.FormatGNU, tar.FormatPAX} {
			t.Run(fmt.Sprint(name, " ", format), func(t *testing.T) {
				t.Parallel()
				image := closed(archive(t, format, withDisks(c.descriptor)...))
				a, err := open(image)
				if err != nil {
					t.Fatal(err)
				}
				if a.Name != c.want.Name || a.Firmware != c.want.Firmware {
					t.Errorf("got %q with firmware %q", a.Name, a.Firmware)
				}
				if len(a.Warnings) != len(c.warningsInText) {
					t.Errorf("warnings: %q", a.Warnings)
				}
				for i, text := range c.warningsInText {
					if !strings.Contains(a.Warnings[i], text) {
						t.Errorf("warning %q has no %q", a.Warnings[i], text)
					}
				}
				checkDisks(t, image, a, disk1, disk2)
				if got := []int64{a.Disks[0].Capacity, a.Disks[1].Capacity}; got[0] != c.cap1 || got[1] != c.cap2 {
					t.Errorf("capacities %d", got)
				}
			})
		}
	}
}

func checkDisks(t *testing.T, image []byte, a *ova.Archive, want ...string) {
	t.Helper()
	if len(a.Disks) != len(want) {
		t.Fatalf("%d disks, want %d", len(a.Disks), len(want))
	}
	for i, m := range a.Disks {
		if got := string(image[m.Offset:][:m.Size]); got != want[i] {
			t.Errorf("disk %d, %s, is %q", i, m.Name, got)
		}
	}
}

func TestOrder(t *testing.T) {
	t.Parallel()
	bus := func(id, address string) string {
		return "<Item><r:InstanceID>" + id + "</r:InstanceID><r:Address>" + address + "</r:Address></Item>"
	}
	on := func(resource, parent, unit string) string {
		return "<Item><r:HostResource>" + resource + "</r:HostResource><r:Parent> " + parent + " </r:Parent><r:AddressOnParent>" + unit + "</r:AddressOnParent></Item>"
	}
	for name, c := range map[string]struct{ items, want string }{
		"no hardware":               {"", "abc"},
		"hardware without disks":    {bus("1", "0"), "abc"},
		"by unit, not as text":      {bus("1", "0") + on("ovf:/disk/a", "1", "10") + on("ovf:/disk/b", "1", "9") + on("ovf:/disk/c", "1", "0"), "cba"},
		"by controller":             {bus("1", "1") + bus("2", "0") + on("ovf:/disk/a", "1", "0") + on("ovf:/disk/b", "2", "7") + on("ovf:/disk/c", "2", "3"), "cba"},
		"equal addresses":           {bus("2", "0") + bus("1", "0") + on("ovf:/disk/c", "1", "0") + on("ovf:/disk/b", "2", "1") + on("ovf:/disk/a", "2", "0"), "abc"},
		"controllers without":       {bus("2", "") + bus("1", "0000:00:1f.2") + on("ovf:/disk/c", "1", "0") + on("ovf:/disk/b", "2", "1"), "bca"},
		"no controllers":            {on("ovf:/disk/c", "", "") + on("ovf:/disk/a", "", ""), "cab"},
		"attached first":            {bus("1", "0") + on("/disk/c", "1", "0"), "cab"},
		"unknown parent last":       {bus("1", "0") + on("ovf:disk/c", "9", "0") + on("ovf://disk/b", "1", "5"), "bca"},
		"file with the disk's name": {bus("1", "0") + on("ovf:/file/c", "1", "0") + on("ovf:/disk/b", "1", "1"), "bac"},
		"twice":                     {bus("1", "0") + bus("2", "1") + on("ovf:/disk/c", "2", "0") + on("ovf:/disk/b", "1", "1") + on("ovf:/disk/c", "1", "0"), "cba"},
		"neither disk nor path":     {bus("1", "0") + on("c", "1", "0") + on("ovf:/disk/b", "1", "1"), "bac"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a, err := open(closed(archive(t, tar.FormatUSTAR, entry{name: "x.ovf", data: `<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:r="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData">
<References><File id="1" href="a"/><File id="2" href="b"/><File id="3" href="c"/></References>
<DiskSection><Disk diskId="a" fileRef="1"/><Disk diskId="b" fileRef="2"/><Disk diskId="c" fileRef="3"/></DiskSection>
<VirtualSystem><VirtualHardwareSection>` + c.items + `</VirtualHardwareSection><VirtualHardwareSection>` + on("ovf:/disk/c", "", "0") + `</VirtualHardwareSection></VirtualSystem></Envelope>`},
				entry{name: "a"}, entry{name: "b"}, entry{name: "c"})))
			if err != nil {
				t.Fatal(err)
			}
			got := ""
			for _, m := range a.Disks {
				got += m.Name
			}
			if got != c.want {
				t.Errorf("got %s, want %s", got, c.want)
			}
		})
	}
}

// oneDisk is a descriptor of one disk, whose attributes and file's attributes are
// to be given.
func oneDisk(file, disk string) string {
	return `<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1"><References><File id="f" ` + file + `/></References><DiskSection><Disk diskId="d" ` + disk + `/></DiskSection></Envelope>`
}

func TestCapacity(t *testing.T) {
	t.Parallel()
	for attrs, want := range map[string]int64{
		``:                   0,
		`capacity="512"`:     512,
		`capacity=" 512 "`:   512,
		`capacity="-1"`:      0,
		`capacity="${size}"`: 0,
		`capacity="1e3"`:     0,
		`capacity="9" capacityAllocationUnits="byte"`:             9,
		`capacity="9" capacityAllocationUnits="byte * 2^30"`:      9 << 30,
		`capacity="9" capacityAllocationUnits="byte*10^9"`:        9e9,
		`capacity="9" capacityAllocationUnits="TeraBytes"`:        9 << 40,
		`capacity="9" capacityAllocationUnits="bushel"`:           0,
		`capacity="9" capacityAllocationUnits="byte * 3^30"`:      0,
		`capacity="8" capacityAllocationUnits="byte * 2^60"`:      0,
		`capacity="7" capacityAllocationUnits="byte * 2^60"`:      7 << 60,
		`capacity="0" capacityAllocationUnits="byte * 2^99"`:      0,
		`capacity="9223372036854775808"`:                          0,
		`capacity="9223372036854775807"`:                          9223372036854775807,
		`capacity="9" capacityAllocationUnits="byte * 10^999999"`: 0,
	} {
		a, err := open(closed(archive(t, tar.FormatUSTAR, entry{name: "x.ovf", data: oneDisk(`href="a"`, `fileRef="f" `+attrs)}, entry{name: "a"})))
		if err != nil || a.Disks[0].Capacity != want {
			t.Errorf("%s: %v, %v, want %d", attrs, a, err, want)
		}
	}
}

func TestRefusedDescriptors(t *testing.T) {
	t.Parallel()
	const ns = `xmlns="http://schemas.dmtf.org/ovf/envelope/1"`
	file := func(attrs string) string { return oneDisk(attrs, `fileRef="f"`) }
	good := file(`href="a"`)
	replaced := func(from, to string) string {
		if !strings.Contains(good, from) {
			t.Fatalf("no %s in the descriptor", from)
		}
		return strings.Replace(good, from, to, 1)
	}
	for name, c := range map[string]struct {
		descriptor string
		want       *fault.Error
	}{
		"empty":                   {"", diskimage.ErrCorrupt},
		"no XML":                  {"QFI\xfb", diskimage.ErrCorrupt},
		"other root":              {`<domain/>`, diskimage.ErrCorrupt},
		"other namespace":         {replaced("ovf/envelope/1", "ovf/envelope/9"), diskimage.ErrCorrupt},
		"cut":                     {good[:len(good)-5], diskimage.ErrCorrupt},
		"tags crossed":            {replaced("</References>", "</DiskSection>"), diskimage.ErrCorrupt},
		"document type":           {"<!DOCTYPE Envelope>" + good, diskimage.ErrCorrupt},
		"entity bomb":             {`<!DOCTYPE e [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]>` + replaced("<References>", "&b;<References>"), diskimage.ErrCorrupt},
		"external entity":         {`<!DOCTYPE e [<!ENTITY a SYSTEM "file:///etc/passwd">]>` + replaced(`href="a"`, `href="&a;"`), diskimage.ErrCorrupt},
		"unknown entity":          {replaced(`href="a"`, `href="&a;"`), diskimage.ErrCorrupt},
		"not UTF-8":               {replaced(`href="a"`, "href=\"\xff\""), diskimage.ErrCorrupt},
		"other encoding":          {`<?xml version="1.0" encoding="UTF-16"?>` + good, diskimage.ErrUnsupported},
		"too deep":                {`<Envelope ` + ns + `>` + strings.Repeat("<a>", 100) + strings.Repeat("</a>", 100) + `</Envelope>`, diskimage.ErrCorrupt},
		"too deep collections":    {`<Envelope ` + ns + `>` + strings.Repeat("<VirtualSystemCollection>", 100) + strings.Repeat("</VirtualSystemCollection>", 100) + `</Envelope>`, diskimage.ErrCorrupt},
		"encrypted as a whole":    {`<xenc:EncryptedData xmlns:xenc="http://www.w3.org/2001/04/xmlenc#"/>`, diskimage.ErrEncrypted},
		"encrypted files":         {replaced("<References>", "<EncryptionSection/><References>"), diskimage.ErrEncrypted},
		"no disks":                {`<Envelope ` + ns + `/>`, diskimage.ErrUnsupported},
		"only empty disks":        {oneDisk(`href="a"`, ``), diskimage.ErrUnsupported},
		"unknown file":            {oneDisk(`href="a"`, `fileRef="g"`), diskimage.ErrCorrupt},
		"same disk id":            {replaced("</DiskSection>", `<Disk diskId="d"/></DiskSection>`), diskimage.ErrCorrupt},
		"same file id":            {replaced("</References>", `<File id="f" href="b"/></References>`), diskimage.ErrCorrupt},
		"same file of two disks":  {replaced("</DiskSection>", `<Disk diskId="e" fileRef="f"/></DiskSection>`), diskimage.ErrUnsupported},
		"parent":                  {oneDisk(`href="a"`, `fileRef="f" parentRef="e"`), diskimage.ErrDifferencing},
		"compressed":              {file(`href="a" compression="gzip"`), diskimage.ErrUnsupported},
		"chunks":                  {file(`href="a" chunkSize="1000"`), diskimage.ErrSplit},
		"not in the archive":      {file(`href="b"`), diskimage.ErrSplit},
		"other case":              {file(`href="A"`), diskimage.ErrSplit},
		"no href":                 {file(``), diskimage.ErrSplit},
		"URL":                     {file(`href="http://127.0.0.1/a"`), diskimage.ErrSplit},
		"file URL":                {file(`href="file:a"`), diskimage.ErrSplit},
		"absolute":                {file(`href="/a"`), diskimage.ErrSplit},
		"parent directory":        {file(`href="../a"`), diskimage.ErrSplit},
		"encoded slash":           {file(`href="..%2fa"`), diskimage.ErrSplit},
		"path to a real member":   {file(`href="dir/a"`), diskimage.ErrSplit},
		"backslash":               {file(`href="dir\a"`), diskimage.ErrSplit},
		"encoded control":         {file(`href="a%00"`), diskimage.ErrSplit},
		"invalid encoding":        {file(`href="a%"`), diskimage.ErrSplit},
		"the descriptor of a URL": {file(`href="https:a"`), diskimage.ErrSplit},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := open(closed(archive(t, tar.FormatPAX, entry{name: "x.ovf", data: c.descriptor}, entry{name: "a"}, entry{name: "dir/a"})))
			refused(t, err, c.want)
		})
	}
}

func refused(t *testing.T, err error, want *fault.Error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("got %v, want %s", err, want.Code)
	}
	for _, leak := range []string{"passwd", "127.0.0.1", "secret", "archive/tar", "xml:"} {
		if strings.Contains(err.Error(), leak) {
			t.Errorf("the error tells %q: %v", leak, err)
		}
	}
}

func sha(name, data string) string {
	return fmt.Sprintf("SHA256(%s)= %x\n", name, sha256.Sum256([]byte(data)))
}

func TestErrorOfTheReader(t *testing.T) {
	t.Parallel()
	image := closed(archive(t, tar.FormatPAX, append(withDisks(byVSphere), entry{name: "web.mf", data: sha("web-disk1.vmdk", disk1)})...))
	broken := errors.New("connection reset")
	reads := 0
	for ; ; reads++ {
		r := &flaky{r: bytes.NewReader(image), left: reads, err: broken}
		_, err := ova.Open(diskimage.NewFile(r, int64(len(image))))
		if err == nil {
			break
		}
		if _, isFault := errors.AsType[*fault.Error](err); !errors.Is(err, broken) || isFault {
			t.Fatalf("read %d fails: %v", reads, err)
		}
	}
	if reads < 3 {
		t.Errorf("only %d reads", reads)
	}
}

type flaky struct {
	r     io.ReaderAt
	left  int // reads that work
	err   error
	calls int
	bytes int
}

func (f *flaky) ReadAt(p []byte, off int64) (int, error) {
	if f.left == 0 {
		return 0, f.err
	}
	f.left--
	f.calls++
	f.bytes += len(p)
	return f.r.ReadAt(p, off)
}

// TestOfRealImages packs two disks by qemu-img the way that ovftool would, and
// counts what finding them costs.
func TestOfRealImages(t *testing.T) {
	t.Parallel()
	guests := imagetest.Guests(t)
	var packed [2]string
	for i, g := range guests[3:5] {
		b, err := os.ReadFile(imagetest.Convert(t, g.Path, "vmdk", "subformat=streamOptimized"))
		if err != nil {
			t.Fatal(err)
		}
		packed[i] = string(b)
	}
	image := closed(archive(t, tar.FormatGNU,
		entry{name: "web.ovf", data: byVSphere},
		entry{name: "web.mf", data: sha("web.ovf", byVSphere) + sha("web-disk1.vmdk", packed[0]) + "SHA1 (web-disk2.vmdk) = " + strings.Repeat("AB", 20) + "\r\n"},
		entry{name: "web.cert", data: "SHA1(web.mf)= ..."},
		entry{name: "web-disk1.vmdk", data: packed[0]},
		entry{name: "web-disk2.vmdk", data: packed[1]},
		entry{name: "web.nvram", data: "nvram"},
	))
	r := &flaky{r: bytes.NewReader(image), left: -1}
	a, err := ova.Open(diskimage.NewFile(r, int64(len(image))))
	if err != nil {
		t.Fatal(err)
	}
	checkDisks(t, image, a, packed[0], packed[1])
	digests := []ova.Digest{
		{Algorithm: "SHA256", Hex: fmt.Sprintf("%x", sha256.Sum256([]byte(packed[0])))},
		{Algorithm: "SHA1", Hex: strings.Repeat("ab", 20)},
	}
	for i, m := range a.Disks {
		if m.Digest != digests[i] {
			t.Errorf("%s has digest %v, want %v", m.Name, m.Digest, digests[i])
		}
		path := filepath.Join(t.TempDir(), "disk.vmdk")
		if err := os.WriteFile(path, image[m.Offset:][:m.Size], 0o600); err != nil {
			t.Fatal(err)
		}
		imagetest.QemuImg(t, "compare", "-f", "vmdk", "-F", "raw", path, guests[3+i].Path)
	}
	if r.calls > 10 || r.bytes > 64<<10 {
		t.Errorf("%d reads of %d bytes to find the disks", r.calls, r.bytes)
	}
}

func TestAllocation(t *testing.T) { // not parallel: it counts allocations
	fill := func(unit string, n int) string { return strings.Repeat(unit, n/len(unit)) }
	const room = 1<<20 - 400
	envelope := func(inner string) string {
		return `<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:r="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/C">` + inner + `</Envelope>`
	}
	for name, descriptor := range map[string]string{
		"files":      envelope("<References>" + fill("<File/>", room) + "</References>"),
		"disks":      envelope("<DiskSection>" + fill("<Disk/>", room) + "</DiskSection>"),
		"systems":    envelope(fill("<VirtualSystem/>", room)),
		"elements":   envelope(fill("<a/>", room)),
		"attributes": envelope("<a " + fill("b='' ", room) + "/>"),
		"resources":  envelope("<VirtualSystem><VirtualHardwareSection><Item>" + fill("<r:HostResource/>", room) + "</Item></VirtualHardwareSection></VirtualSystem>"),
		"nesting":    envelope(fill(strings.Repeat("<a>", 60)+strings.Repeat("</a>", 60), room)),
		"namespaces": envelope(fill(`<a xmlns='b'/>`, room)),
		"text":       envelope(fill("x", room)),
	} {
		image := closed(archive(t, tar.FormatUSTAR, entry{name: "x.ovf", data: descriptor}))
		imagetest.Bounded(t, 64<<20, func() {
			if _, err := open(image); fault.KindOf(err) != fault.Invalid {
				t.Errorf("%s: %v", name, err)
			}
		})
	}
	image := closed(archive(t, tar.FormatPAX, entry{name: "x.ovf", header: &tar.Header{Name: "b", Typeflag: tar.TypeReg, PAXRecords: map[string]string{"X.y": strings.Repeat("x", 1000<<10)}}}))
	imagetest.Bounded(t, 4<<20, func() {
		_, err := open(image)
		refused(t, err, diskimage.ErrUnsupported)
	})
}

func TestManifest(t *testing.T) {
	t.Parallel()
	one, two, five := strings.Repeat("1a", 20), strings.Repeat("2b", 32), strings.Repeat("3c", 64)
	for text, want := range map[string]ova.Digest{
		"":                                  {},
		"SHA1(a)= " + one:                   {Algorithm: "SHA1", Hex: one},
		"SHA1(b)= " + one:                   {},
		"SHA256(a)=" + two + "\n":           {Algorithm: "SHA256", Hex: two},
		"sha512 (./a) = " + five + "  \r\n": {Algorithm: "SHA512", Hex: five},
		"SHA1(x (1).ovf)= " + one + "\n\nSHA256(a)= " + strings.ToUpper(two): {Algorithm: "SHA256", Hex: two},
		"SHA1(a)= " + one + "\nSHA256(a)= " + two:                            {Algorithm: "SHA256", Hex: two},
		"SHA256(a)= " + two + "\nSHA1(a)= " + one:                            {Algorithm: "SHA256", Hex: two},
		"SHA1(a)= " + one + "\nSHA1(a)= " + one:                              {Algorithm: "SHA1", Hex: one},
		"MD5(a)= 0123456789abcdef0123456789abcdef":                           {},
		"SHA1(a)= no digest":                                                 {},
		"-----BEGIN CERTIFICATE-----":                                        {},
	} {
		a, err := open(closed(archive(t, tar.FormatUSTAR, entry{name: "x.ovf", data: oneDisk(`href="a"`, `fileRef="f"`)}, entry{name: "x.mf", data: text}, entry{name: "a"})))
		if err != nil || a.Disks[0].Digest != want {
			t.Errorf("%q: %v, %v", text, a, err)
		}
	}
}
