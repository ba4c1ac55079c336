package diskimage

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"testing"

	"vmimport/internal/fault"
)

// disk returns a raw disk of n bytes with the given strings at their offsets.
func disk(n int, at map[int]string) []byte {
	b := make([]byte, n)
	for off, s := range at {
		copy(b[off:], s)
	}
	return b
}

const mbr = "\x55\xaa" // at 510

// vhdFooter returns a fixed VHD's footer with a good checksum.
func vhdFooter() string {
	b := disk(512, map[int]string{0: "conectix", 60: "\x00\x00\x00\x02"})
	var sum uint32
	for _, c := range b {
		sum += uint32(c)
	}
	binary.BigEndian.PutUint32(b[64:], ^sum)
	return string(b)
}

const koly = "koly\x00\x00\x00\x04\x00\x00\x02\x00"

// samples are the smallest files of each format, by the byte. The fuzzer starts
// from them, too.
var samples = []struct {
	name string
	data []byte
	want Format
}{
	{"zeros", disk(4096, nil), Raw},
	{"one sector", disk(512, nil), Raw},
	{"no whole sectors", disk(1000, nil), Raw},
	{"mbr", disk(4096, map[int]string{0: "\xeb\x63\x90", 510: mbr}), Raw},
	{"gpt", disk(4096, map[int]string{510: mbr, 512: "EFI PART"}), Raw},
	{"iso 9660", disk(64<<10, map[int]string{32769: "CD001"}), Raw},
	{"iso hybrid", disk(64<<10, map[int]string{510: mbr, 32769: "CD001"}), Raw},
	{"signature not at its place", disk(4096, map[int]string{1: "QFI\xfb", 512: "KDMV"}), Raw},
	{"cookie of a footer without its checksum", disk(4096, map[int]string{3584: "conectix"}), Raw},
	{"footer with a bad checksum", disk(4096, map[int]string{3584: vhdFooter()[:500] + "x"}), Raw},
	{"footer not at the end", disk(4096, map[int]string{1024: vhdFooter()}), Raw},
	{"koly without version and length", disk(4096, map[int]string{3584: "koly"}), Raw},
	{"gzip with reserved flags", disk(512, map[int]string{0: "\x1f\x8b\x08\x80"}), Raw},
	{"bzip2 without a block", disk(512, map[int]string{0: "BZh9 is a word"}), Raw},
	{"a comment and nothing else", disk(512, map[int]string{0: "# comment"}), Raw},
	{"a comment and another version", disk(512, map[int]string{0: "# comment\nversion=4\n"}), Raw},
	{"shell script", disk(512, map[int]string{0: "#!/bin/sh\nexit 0\n"}), Raw},

	{"qcow2 version 2", disk(512, map[int]string{0: "QFI\xfb\x00\x00\x00\x02"}), QCOW2},
	{"qcow2 version 3", disk(512, map[int]string{0: "QFI\xfb\x00\x00\x00\x03"}), QCOW2},
	{"qcow2 of the future", disk(512, map[int]string{0: "QFI\xfb\x00\x00\x00\x09"}), QCOW2},
	{"qcow", disk(512, map[int]string{0: "QFI\xfb\x00\x00\x00\x01"}), QCOW},
	{"qcow2 magic and nothing else", []byte("QFI\xfb"), QCOW2},
	{"qcow2 with a boot signature", disk(4096, map[int]string{0: "QFI\xfb\x00\x00\x00\x03", 510: mbr}), QCOW2},
	{"vmdk", disk(512, map[int]string{0: "KDMV\x01\x00\x00\x00"}), VMDK},
	{"vmdk of esx", disk(512, map[int]string{0: "COWD"}), COWD},
	{"vmdk snapshot", disk(512, map[int]string{0: "\xbe\xba\xfe\xca\x00\x00\x00\x00"}), SESparse},
	{"descriptor", []byte("# Disk DescriptorFile\nversion=1\n"), VMDKText},
	{"descriptor in other case", disk(512, map[int]string{0: "# disk descriptorfile\r\n"}), VMDKText},
	{"descriptor as qemu sees it", disk(512, map[int]string{0: "# x\n  \nversion=2\n"}), VMDKText},
	{"descriptor with crlf", disk(512, map[int]string{0: "# x\r\n \r\nversion=3\r\n"}), VMDKText},
	{"descriptor without a comment", disk(512, map[int]string{0: "version=1\n"}), VMDKText},
	{"descriptor behind long comments", disk(8192, map[int]string{0: "#" + strings.Repeat("x", 5000) + "\nversion=1\n"}), VMDKText},
	{"descriptor in boot code", disk(4096, map[int]string{0: "#\nversion=1\nRW 8 FLAT \"/etc/passwd\" 0\n", 446: "\x80", 510: mbr}), VMDKText},
	{"vhd dynamic", disk(4096, map[int]string{0: vhdFooter(), 3584: vhdFooter()}), VHD},
	{"vhd dynamic cut short", disk(4096, map[int]string{0: "conectix"}), VHD},
	{"vhd fixed", disk(4096, map[int]string{510: mbr, 3584: vhdFooter()}), VHD},
	{"vhd fixed of old", disk(4095, map[int]string{3584: vhdFooter()[:511]}), VHD},
	{"vhdx", disk(512, map[int]string{0: "vhdxfile"}), VHDX},
	{"vdi", disk(512, map[int]string{0: "<<< Oracle VM VirtualBox Disk Image >>>\n", 64: "\x7f\x10\xda\xbe"}), VDI},
	{"qed", disk(512, map[int]string{0: "QED\x00"}), QED},
	{"luks", disk(512, map[int]string{0: "LUKS\xba\xbe\x00\x01"}), LUKS},
	{"parallels", disk(512, map[int]string{0: "WithoutFreeSpace"}), Parallels},
	{"parallels 2", disk(512, map[int]string{0: "WithouFreSpacExt"}), Parallels},
	{"dmg", disk(4096, map[int]string{3584: koly}), DMG},
	{"bochs", disk(512, map[int]string{0: "Bochs Virtual HD Image"}), Bochs},
	{"cloop", disk(512, map[int]string{0: "#!/bin/sh\n#V2.0 Format\nmodprobe cloop"}), Cloop},
	{"ova", disk(1024, map[int]string{0: "Web 01.OVF\x00", 257: "ustar"}), OVA},
	{"tar", disk(1024, map[int]string{0: "disk.raw\x00", 257: "ustar  \x00"}), Tar},
	{"gzip", []byte("\x1f\x8b\x08\x00"), Gzip},
	{"xz", []byte("\xfd7zXZ\x00"), XZ},
	{"zstd", []byte("\x28\xb5\x2f\xfd"), Zstd},
	{"pzstd", []byte("\x50\x2a\x4d\x18\x04\x00\x00\x00"), Zstd},
	{"bzip2", []byte("BZh91AY&SY"), Bzip2},
	{"bzip2 of nothing", []byte("BZh9\x17\x72\x45\x38\x50\x90\x00\x00\x00\x00"), Bzip2},
	{"zip", []byte("PK\x03\x04"), Zip},
	{"zip of nothing", []byte("PK\x05\x06"), Zip},
	{"zip in parts", []byte("PK\x07\x08"), Zip},
	{"7z", []byte("7z\xbc\xaf\x27\x1c"), SevenZip},
}

func TestDetect(t *testing.T) {
	for _, tt := range samples {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, err := Detect(bytes.NewReader(tt.data), int64(len(tt.data)))
			if err != nil || got != tt.want {
				t.Errorf("Detect = %q, %v; want %q", got, err, tt.want)
			}
		})
	}
}

func TestEveryFormatHasASample(t *testing.T) {
	t.Parallel()
	missing := make(map[Format]bool, len(formats))
	for f := range formats {
		missing[f] = true
	}
	for _, s := range samples {
		delete(missing, s.want)
	}
	if len(missing) > 0 {
		t.Errorf("no sample of %v", missing)
	}
}

func TestDetectRefuses(t *testing.T) {
	for _, tt := range []struct {
		name     string
		data     []byte
		code     string
		evidence string
	}{
		{"nothing", nil, "object_empty", ""},
		{"one byte", []byte{0}, "object_too_small", "1 bytes, and a disk has at least 512"},
		{"a byte less than a sector", disk(511, nil), "object_too_small", "511 bytes, and a disk has at least 512"},
		{"page of a browser", []byte("<!DOCTYPE HTML><title>404</title>"), "not_a_disk_image", "markup at offset 0"},
		{"page with a byte order mark", []byte("\ufeff\r\n  <HTML><body>"), "not_a_disk_image", "markup at offset 0"},
		{"error of an object store", disk(512, map[int]string{0: `<?xml version="1.0"?><Error><Code>NoSuchKey`}), "not_a_disk_image", "markup at offset 0"},
		{"error without a prologue", []byte("<Error><Code>AccessDenied</Code></Error>"), "not_a_disk_image", "markup at offset 0"},
		{"qcow2 in a fixed vhd", disk(4096, map[int]string{0: "QFI\xfb\x00\x00\x00\x03", 3584: vhdFooter()}), "format_ambiguous", "qcow2 at offset 0, vhd at offset 3584"},
		{"vmdk and vdi", disk(512, map[int]string{0: "KDMV", 64: "\x7f\x10\xda\xbe"}), "format_ambiguous", "vmdk at offset 0, vdi at offset 64"},
		{"gzip and tar", disk(512, map[int]string{0: "\x1f\x8b\x08", 257: "ustar"}), "format_ambiguous", "tar at offset 257, gzip at offset 0"},
		{"qcow2 and dmg", disk(1024, map[int]string{0: "QFI\xfb", 512: koly}), "format_ambiguous", "qcow2 at offset 0, dmg at offset 512"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			f, err := Detect(bytes.NewReader(tt.data), int64(len(tt.data)))
			got := fault.Of(err)
			if f != "" || got == nil || got.Kind != fault.Invalid || got.Code != tt.code || got.Evidence != tt.evidence {
				t.Fatalf("Detect = %q, %v; want %s (%s)", f, err, tt.code, tt.evidence)
			}
			if got.Remedy == "" {
				t.Error("there is no remedy")
			}
		})
	}
}

// Signatures must not turn up in what customers' disks are full of.
func TestRandomDisksAreRaw(t *testing.T) {
	t.Parallel()
	b := make([]byte, 1024)
	for seed := range uint64(20_000) {
		random := rand.NewChaCha8([32]byte(binary.LittleEndian.AppendUint64(make([]byte, 24), seed)))
		random.Read(b)
		if f, err := Detect(bytes.NewReader(b), int64(len(b))); f != Raw {
			t.Fatalf("seed %d: Detect = %q, %v", seed, f, err)
		}
	}
}

var errStore = fault.New(fault.Unavailable, "store_failed", "The store failed.")

type failing struct{ from int64 }

func (f failing) ReadAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) > f.from {
		return 0, errStore
	}
	return len(p), nil
}

func TestReadErrorsKeepTheirKind(t *testing.T) {
	t.Parallel()
	const size = 1 << 20
	for _, from := range []int64{0, headBytes} {
		if _, err := Detect(failing{from}, size); !errors.Is(err, errStore) {
			t.Errorf("reads fail from %d: Detect: %v", from, err)
		}
	}
	if _, err := Detect(bytes.NewReader(disk(600, nil)), 1000); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("shorter than promised: Detect: %v", err)
	}
}

func TestCheck(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		declared, detected Format
		ok                 bool
	}{
		{"", Raw, true},
		{"", QCOW2, true},
		{Raw, Raw, true},
		{VMDK, VMDK, true},
		{VMDK, VMDKText, true},
		{VMDK, COWD, true},
		{QCOW2, QCOW, true},
		{OVA, Tar, true},
		{Raw, VHD, false},
		{Raw, VMDKText, false},
		{VMDK, Raw, false},
		{VHD, VHDX, false},
		{"pdf\x1b[2J", Raw, false},
	} {
		t.Run(fmt.Sprintf("%q is %s", tt.declared, tt.detected), func(t *testing.T) {
			t.Parallel()
			err := Check(tt.declared, tt.detected)
			if tt.ok != (err == nil) {
				t.Fatalf("Check: %v", err)
			}
			if err != nil && fault.CodeOf(err) != "format_mismatch" {
				t.Errorf("Check: %v", err)
			}
			if err != nil && strings.Contains(err.Error(), "pdf") {
				t.Errorf("a customer's text is repeated: %v", err)
			}
		})
	}
}

func TestRefuse(t *testing.T) {
	t.Parallel()
	for f, traits := range formats {
		e := fault.Of(Refuse(f))
		if e == nil || e.Kind != fault.Invalid || e.Code != "format_unsupported" || e.Remedy != traits.remedy {
			t.Errorf("Refuse(%s) = %v", f, e)
		}
	}
	want := "The object is a QED image, which cannot be imported."
	if got := fault.Of(Refuse(QED)).Message; got != want {
		t.Errorf("message %q, want %q", got, want)
	}
}

func TestDeclared(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		declared string
		found    Format
		code     string
	}{
		{"", Raw, ""},
		{"", Gzip, ""},
		{"qcow2", QCOW2, ""},
		{"qcow2.gz", Gzip, ""},
		{"qcow2.gz", QCOW2, "format_mismatch"},
		{"qcow2", Gzip, "format_mismatch"},
		{"raw", VHD, "format_mismatch"},
		{"ova", Tar, ""},
	} {
		d := ParseDeclared(tt.declared)
		if d.String() != tt.declared {
			t.Errorf("%q is written as %q", tt.declared, d)
		}
		if err := d.Check(tt.found); fault.CodeOf(err) != tt.code {
			t.Errorf("declared %q, found %s: %v, want %q", tt.declared, tt.found, err, tt.code)
		}
	}
}

func TestVirtualSize(t *testing.T) {
	t.Parallel()
	for size, want := range map[int64]int64{512: 512, 513: 1024, 1023: 1024, 1024: 1024, 1<<40 + 1: 1<<40 + 512} {
		if got := VirtualSize(size); got != want {
			t.Errorf("VirtualSize(%d) = %d, want %d", size, got, want)
		}
	}
}

// bounded fails the test for reads outside of the object, and counts the rest.
type bounded struct {
	t    *testing.T
	data []byte
	read int
}

func (b *bounded) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off+int64(len(p)) > int64(len(b.data)) {
		b.t.Fatalf("read of %d bytes at %d of %d", len(p), off, len(b.data))
	}
	b.read += len(p)
	return copy(p, b.data[off:]), nil
}

func FuzzDetect(f *testing.F) {
	for _, s := range samples {
		f.Add(s.data)
	}
	f.Add([]byte("<html>"))
	f.Fuzz(func(t *testing.T, data []byte) {
		r := &bounded{t: t, data: data}
		got, err := Detect(r, int64(len(data)))
		if r.read > headBytes+SectorBytes {
			t.Errorf("read %d bytes to decide", r.read)
		}
		if err != nil {
			if got != "" || fault.KindOf(err) != fault.Invalid {
				t.Fatalf("Detect = %q, %v", got, err)
			}
			return
		}
		if again, _ := Detect(r, int64(len(data))); again != got {
			t.Fatalf("%q, then %q", got, again)
		}
		if _, known := formats[got]; !known {
			t.Fatalf("format %q is none of ours", got)
		}
		if got == Raw {
			requireHarmless(t, data)
		}
	})
}

// requireHarmless is a second opinion on raw data, in the plainest words: no
// tool that guesses would take it for a format that can name other files.
func requireHarmless(t *testing.T, data []byte) {
	t.Helper()
	if len(data) < SectorBytes {
		t.Fatalf("a raw disk of %d bytes", len(data))
	}
	for _, magic := range []string{"QFI\xfb", "KDMV", "COWD", "conectix", "vhdxfile", "QED\x00", "# Disk DescriptorFile", "version=1\n"} {
		if strings.HasPrefix(string(data), magic) {
			t.Fatalf("raw data begins with %q", magic)
		}
	}
	if binary.LittleEndian.Uint32(data[64:]) == 0xbeda107f {
		t.Fatal("raw data with the signature of a VDI")
	}
}
