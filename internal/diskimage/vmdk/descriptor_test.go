package vmdk

import (
	"errors"
	"strings"
	"testing"

	"vmimport/internal/diskimage"
)

// sound is a text that the tests change.
const sound = `# Disk DescriptorFile
version=1
CID=3f52d97a
parentCID=ffffffff
createType="monolithicSparse"
# Extent description
RW 614400 SPARSE "disk.vmdk"
ddb.adapterType = "lsilogic"
`

func TestDescriptors(t *testing.T) {
	t.Parallel()
	extent := `RW 614400 SPARSE "disk.vmdk"`
	swap := func(old, with string) string {
		if !strings.Contains(sound, old) {
			t.Fatalf("no %q in the text", old)
		}
		return strings.Replace(sound, old, with, 1)
	}
	for _, c := range []struct {
		name, text string
		want       error
	}{
		{"sound", sound, nil},
		{"line ends of Windows", strings.ReplaceAll(sound, "\n", "\r\n"), nil},
		{"indented", strings.ReplaceAll(sound, "\n", "\n\t   "), nil},
		{"blanks at the ends", strings.ReplaceAll(sound, "\n", " \t\n"), nil},
		{"blanks around the sign", strings.ReplaceAll(sound, "=", " = "), nil},
		{"no last line end", strings.TrimSpace(sound), nil},
		{"no first comment", swap("# Disk DescriptorFile\n", ""), nil},
		{"zeros behind", sound + "\x00\x00RW 1 FLAT \"x\" 0\n", nil},
		{"the case of words", swap(`createType="monolithicSparse"`, `CREATETYPE="MonolithicSPARSE"`), nil},
		{"the case of an extent", swap("SPARSE", "sparse"), nil},
		{"RDONLY", swap("RW", "RDONLY"), nil},
		{"no quotes", swap(`"monolithicSparse"`, "monolithicSparse"), nil},
		{"no name", swap("disk.vmdk", ""), nil}, // FreeBSD
		{"a name with blanks and dots", swap("disk.vmdk", "Ubuntu 24.04 (1) =#.vmdk"), nil},
		{"a name in UTF-8", swap("disk.vmdk", "仮想ディスク.vmdk"), nil},
		{"a name in Shift JIS", swap("disk.vmdk", "\x95\x5c\x8e\xa6.vmdk"), nil}, // its second byte is a backslash
		{"a name in GBK", sound + "encoding=\"GBK\"\nddb.comment = \"\xd0\xe9\"\n", nil},
		{"other keys", sound + "isNativeSnapshot=\"no\"\nddb.uuid.parent=\"00000000-0000-0000-0000-000000000000\"\nddb.encoding = \"UTF-8\"\n", nil},
		{"a type in a comment", sound + "# createType=\"vmfs\"\n#RW 1 FLAT \"/etc/passwd\" 0\n", nil},
		{"changed blocks", sound + "changeTrackPath=\"/etc/passwd\"\n", nil},

		{"empty", "", diskimage.ErrCorrupt},
		{"no type", swap("createType", "ddb.createType"), diskimage.ErrCorrupt},
		{"a type in a comment alone", swap("createType", "# createType"), diskimage.ErrCorrupt},
		{"two types", sound + "createType=\"monolithicSparse\"\n", diskimage.ErrCorrupt},
		{"an unknown type", swap("monolithicSparse", "custom"), diskimage.ErrUnsupported},
		{"a flat type", swap("monolithicSparse", "monolithicFlat"), diskimage.ErrSplit},
		{"a type of ESXi", swap("monolithicSparse", "VMFS"), diskimage.ErrSplit},
		{"a device", swap("monolithicSparse", "fullDevice"), diskimage.ErrSplit},

		{"no parentCID", swap("parentCID", "ddb.parentCID"), diskimage.ErrCorrupt},
		{"a parent", swap("ffffffff", "3f52d97b"), diskimage.ErrDifferencing},
		{"a second parentCID", sound + "parentCID=3f52d97b\n", diskimage.ErrDifferencing},
		{"a parent's name", sound + "parentFileNameHint=\"\"\n", diskimage.ErrDifferencing},
		{"a parent's UUID", sound + "ddb.uuid.parent=\"4405b9d5-698b-46fa-b146-3529dd0aa368\"\n", diskimage.ErrDifferencing},

		{"no extent", swap(extent, ""), diskimage.ErrCorrupt},
		{"two extents", sound + extent + "\n", diskimage.ErrSplit},
		{"a flat extent", swap(extent, `RW 614400 FLAT "/etc/passwd" 0`), diskimage.ErrSplit},
		{"a second flat extent", sound + "\trw\t1\tFLAT \"/etc/passwd\" 0\n", diskimage.ErrSplit},
		{"a zero extent", swap(extent, "RW 614400 ZERO"), diskimage.ErrSplit},
		{"no access", swap("RW", "NOACCESS"), diskimage.ErrUnsupported},
		{"a path", swap("disk.vmdk", "/etc/disk.vmdk"), diskimage.ErrSplit},
		{"a path of Windows", swap("disk.vmdk", `..\disk.vmdk`), diskimage.ErrSplit},
		{"a path of Windows in Shift JIS", swap("disk.vmdk", "\x95\x5c\\disk.vmdk"), diskimage.ErrSplit},
		{"a path behind UTF-8", swap("disk.vmdk", `é\disk.vmdk`), diskimage.ErrSplit},
		{"a protocol", swap("disk.vmdk", "nbd:x"), diskimage.ErrSplit},
		{"an extent with an offset", swap(extent, extent+" 0"), diskimage.ErrCorrupt},
		{"an open quote", swap(extent, extent[:len(extent)-1]), diskimage.ErrCorrupt},
		{"a name without quotes", swap(`"disk.vmdk"`, "disk.vmdk"), diskimage.ErrCorrupt},
		{"a name next to the kind", swap("SPARSE ", "SPARSE"), diskimage.ErrCorrupt},
		{"no size", swap("614400", "#SECTORS#"), diskimage.ErrCorrupt},
		{"a negative size", swap("614400", "-1"), diskimage.ErrCorrupt},
		{"an endless size", swap("614400", "18446744073709551616"), diskimage.ErrCorrupt},

		{"a line of nothing", sound + "hello\n", diskimage.ErrCorrupt},
		{"a line without a key", sound + "= 1\n", diskimage.ErrCorrupt},
		{"a key of two words", sound + "ddb adapterType = 2\n", diskimage.ErrCorrupt},
		{"an extent behind a blank of Unicode", sound + "RW\u00a01 FLAT \"x\" = 0\n", diskimage.ErrCorrupt},
		{"a line end of old", swap("\nCID", "\rRW 1 FLAT \"x\"\rCID"), diskimage.ErrCorrupt},
		{"another version", swap("version=1", "version=5"), diskimage.ErrUnknownFeature},

		{"Workstation's keys", sound + "encryption.keySafe = \"vmware:key/list/(pair/(phrase/x))\"\n", diskimage.ErrEncrypted},
		{"Workstation's data", sound + "encryption.data = \"xyz\"\n", diskimage.ErrEncrypted},
		{"vSphere's keys", sound + "encryptionKeys=\"vmware:key/list/(x)\"\n", diskimage.ErrEncrypted},
		{"vSphere's filter", sound + "ddb.iofilters = \"vmwarevmcrypt\"\n", diskimage.ErrEncrypted},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			d, err := parseDescriptor([]byte(c.text))
			if !errors.Is(err, c.want) {
				t.Fatalf("got %v, want %v", err, c.want)
			}
			if err == nil && (d.createType != monolithicSparse || d.sectors != 614400) {
				t.Errorf("got %+v", d)
			}
			if d.tracked != strings.Contains(c.text, "changeTrackPath") {
				t.Errorf("a file of changed blocks: %t", d.tracked)
			}
		})
	}
}

func TestSizesAgree(t *testing.T) {
	t.Parallel()
	h := header{flags: flagNewlines, grain: 128}
	for _, c := range []struct {
		capacity, sectors uint64
		want              int64
		err               error
	}{
		{1024, 1024, 1024, nil},
		{1000, 1000, 1000, nil},
		{1024, 1000, 1000, nil}, // VirtualBox
		{1024, 896, 0, diskimage.ErrCorrupt},
		{1000, 1024, 0, diskimage.ErrCorrupt},
		{1024, 0, 0, diskimage.ErrCorrupt},
		{0, 1<<64 - 1, 0, diskimage.ErrCorrupt},
		{0, 0, 0, diskimage.ErrEmptyDisk},
		{1 << 60, 1 << 60, 0, diskimage.ErrTooLarge},
		{1<<64 - 128, 1<<64 - 129, 0, diskimage.ErrTooLarge},
	} {
		d := descriptor{createType: monolithicSparse, sectors: c.sectors}
		h.capacity = c.capacity
		size, err := d.size(h)
		if !errors.Is(err, c.err) || err == nil && size != c.want*sectorBytes {
			t.Errorf("%d and %d sectors: %d bytes, %v", c.capacity, c.sectors, size, err)
		}
	}
}
