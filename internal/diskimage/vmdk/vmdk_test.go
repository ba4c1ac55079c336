package vmdk

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"vmimport/internal/diskimage"
	"vmimport/internal/diskimage/imagetest"
)

func TestImagesOfQEMU(t *testing.T) {
	t.Parallel()
	guests := imagetest.Guests(t)
	for _, c := range []struct{ options, variant string }{
		{"", monolithicSparse},
		{"adapter_type=lsilogic,hwversion=7", monolithicSparse},
		{"adapter_type=legacyESX", monolithicSparse},
		{"compat6=on,adapter_type=buslogic", monolithicSparse},
		{"zeroed_grain=on,toolsversion=10304", monolithicSparse},
		{"subformat=streamOptimized", streamOptimized},
		{"subformat=streamOptimized,adapter_type=lsilogic,compat6=on", streamOptimized},
	} {
		for _, g := range guests {
			t.Run(c.options+"/"+g.Name, func(t *testing.T) {
				t.Parallel()
				path := imagetest.Convert(t, g.Path, "vmdk", c.options)
				f := imagetest.Open(t, path)
				d := mustOpen(t, f)
				if d.Variant != c.variant || d.Format != diskimage.VMDK || len(d.Warnings) > 0 {
					t.Errorf("opened as %s %s with warnings %q", d.Format, d.Variant, d.Warnings)
				}
				imagetest.Equal(t, d, f, g.Path)
				if d.Parser != nil {
					testAsStream(t, f, g.Path)
				}
			})
		}
	}
}

// testAsStream opens an image by its front alone.
func testAsStream(t *testing.T, f *diskimage.File, guest string) {
	t.Helper()
	front, err := f.Read("the front", 0, min(f.Size(), FrontBytes))
	if err != nil {
		t.Fatal(err)
	}
	d, err := OpenStream(front)
	if err != nil {
		t.Fatalf("open by the front: %v", err)
	}
	imagetest.Equal(t, d, f, guest)
}

func mustOpen(t testing.TB, f *diskimage.File) *diskimage.Disk {
	t.Helper()
	d, err := Open(f)
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	return d
}

// TestOutOfOrder has QEMU allocate grains in an order that is not the disk's, with
// zeros that have an entry of their own.
func TestOutOfOrder(t *testing.T) {
	t.Parallel()
	for _, options := range []string{"zeroed_grain=off", "zeroed_grain=on"} {
		path := filepath.Join(t.TempDir(), "image.vmdk")
		imagetest.QemuImg(t, "create", "-q", "-f", "vmdk", "-o", options, path, "150M")
		var commands []string
		rng := rand.New(rand.NewPCG(1, 2))
		for i := range 60 {
			at := rng.IntN(149 << 20)
			commands = append(commands, fmt.Sprintf("write -P %d %d %d", i+1, at&^511, 512+rng.IntN(400)*512))
			if i%9 == 0 {
				commands = append(commands, fmt.Sprintf("write -z %d 256k", at&^(64<<10-1)))
			}
		}
		imagetest.QemuIO(t, path, "vmdk", commands...)
		raw := filepath.Join(t.TempDir(), "raw")
		imagetest.QemuImg(t, "convert", "-f", "vmdk", "-O", "raw", path, raw)
		f := imagetest.Open(t, path)
		d := mustOpen(t, f)
		imagetest.Equal(t, d, f, raw)
		testFrom(t, d)
	}
}

// testFrom checks that extents from any place on are those of all that end behind it.
func testFrom(t *testing.T, d *diskimage.Disk) {
	t.Helper()
	all := extents(t, d, 0)
	for from := int64(0); from < d.Size+1<<20; from += 777 << 10 {
		got := extents(t, d, from)
		i := slices.IndexFunc(all, func(e diskimage.Extent) bool { return e.Guest+e.Length > from })
		if i < 0 {
			if len(got) > 0 {
				t.Fatalf("from %d: %v, want none", from, got)
			}
			continue
		}
		if len(got) != len(all)-i || !slices.Equal(got[1:], all[i+1:]) || got[0].Guest+got[0].Length != all[i].Guest+all[i].Length {
			t.Fatalf("from %d: %d extents, want the last %d of all", from, len(got), len(all)-i)
		}
	}
}

func extents(t testing.TB, d *diskimage.Disk, from int64) []diskimage.Extent {
	t.Helper()
	var all []diskimage.Extent
	for e, err := range d.Map.Extents(from) {
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, e)
	}
	return all
}

// dialects are how programs write stream-optimised images, as far as they differ.
var dialects = map[string]dialect{
	"vmware":             {},
	"vmware version 1":   {version: 1},
	"vsphere":            {unknown: true, descSectors: 3},
	"virtualbox":         {spare: true, unclean: 1, descriptor: virtualBoxText},
	"xen orchestra":      {unsized: true, overHead: 21, spare: true},
	"xen orchestra full": {unsized: true, overHead: 21, spare: true, fill: 1000},
	"vmdktool":           {inHeader: true, descSectors: 2},
	"open-vmdk":          {front: true, cutLast: true},
	"front, no end":      {front: true, noEnd: true},
	"front, no padding":  {front: true, noEnd: true, noPad: true},
	"small grains":       {grain: 8},
	"large grains":       {grain: 2048, front: true},
}

const virtualBoxText = "# Disk DescriptorFile\n" +
	"version=1\nCID=9b2f2b79\nparentCID=ffffffff\ncreateType=\"streamOptimized\"\n\n# Extent description\n" +
	"RDONLY %d SPARSE \"Machine 1-disk001.vmdk\"\n\n# The disk Data Base \n#DDB\n\nddb.virtualHWVersion = \"4\"\n" +
	"ddb.adapterType=\"ide\"\nddb.geometry.cylinders=\"16383\"\nddb.geometry.biosCylinders=\"1024\"\n" +
	"ddb.uuid.image=\"4405b9d5-698b-46fa-b146-3529dd0aa368\"\nddb.uuid.parent=\"00000000-0000-0000-0000-000000000000\"\n" +
	"ddb.uuid.modification=\"00000000-0000-0000-0000-000000000000\"\nddb.comment=\"\"\n"

func TestDialects(t *testing.T) {
	t.Parallel()
	guests := imagetest.Guests(t)
	for name, dialect := range dialects {
		for _, g := range guests {
			if g.Name != "sparse" && g.Name != "empty" { // the layout matters here, not the data
				continue
			}
			t.Run(name+"/"+g.Name, func(t *testing.T) {
				t.Parallel()
				guest, err := os.ReadFile(g.Path)
				if err != nil {
					t.Fatal(err)
				}
				path := filepath.Join(t.TempDir(), "image.vmdk")
				if err := os.WriteFile(path, pack(guest, dialect), 0o600); err != nil {
					t.Fatal(err)
				}
				raw := path + ".raw"
				imagetest.QemuImg(t, "convert", "-f", "vmdk", "-O", "raw", path, raw)
				if theirs, err := os.ReadFile(raw); err != nil || !bytes.Equal(theirs, guest) {
					t.Fatalf("QEMU reads another disk from what the test has written: %v", err)
				}
				f := imagetest.Open(t, path)
				imagetest.Equal(t, mustOpen(t, f), f, g.Path)
				testAsStream(t, f, g.Path)
			})
		}
	}
}

// TestWholeGrains has the header count whole grains, which only the descriptor knows
// better.
func TestWholeGrains(t *testing.T) {
	t.Parallel()
	guest := make([]byte, 3<<20+5*sectorBytes)
	copy(guest[len(guest)-3:], "end")
	for _, front := range []bool{false, true} {
		f := imagetest.Of(pack(guest, dialect{capacity: 49 * 128, front: front, noEnd: true}))
		d := mustOpen(t, f)
		got, err := imagetest.Read(d, f)
		if err != nil || !bytes.Equal(got, guest) {
			t.Errorf("read a disk of %d bytes (%v), want %d", d.Size, err, len(guest))
		}
	}
}

// TestParserGoesOn has a new parser for each step, which goes on where the last one
// stopped, and sees no byte more than it asks for.
func TestParserGoesOn(t *testing.T) {
	t.Parallel()
	guest := guestBytes()
	for name, dialect := range dialects {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			image := pack(guest, dialect)
			d := mustOpen(t, imagetest.Of(image))
			got, err := readSlowly(d, image)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, guest) {
				t.Error("the disk differs")
			}
		})
	}
}

// readSlowly reads a disk with a new parser for each step.
func readSlowly(d *diskimage.Disk, image []byte) ([]byte, error) {
	out := make([]byte, d.Size)
	var at diskimage.Position
	for {
		p := d.Parser(at)
		if at.Offset > int64(len(image)) {
			return out, diskimage.ErrTruncated
		}
		step, err := stepBy(p, image[at.Offset:])
		if err != nil {
			return out, err
		}
		if step.Used == 0 {
			return out, p.End(image[at.Offset:])
		}
		if step.Piece.Length > 0 {
			if err := p.Unpack(out[step.Piece.Guest:][:step.Piece.Length], step.Piece.Data); err != nil {
				return out, err
			}
		}
		if at, err = throughJSON(p.Position()); err != nil {
			return out, err
		}
	}
}

func throughJSON(at diskimage.Position) (back diskimage.Position, err error) {
	b, err := json.Marshal(at)
	if err != nil {
		return back, err
	}
	return back, json.Unmarshal(b, &back)
}

// stepBy shows a parser as much as it needs. The zero Step is the end of b.
func stepBy(p diskimage.Parser, b []byte) (diskimage.Step, error) {
	seen := 0
	for {
		step, err := p.Next(b[:seen])
		switch {
		case err != nil || step.Need == 0:
			return step, err
		case step.Need <= seen || step.Need > diskimage.MaxPackedBytes:
			return step, fmt.Errorf("needs %d bytes after %d", step.Need, seen)
		case step.Need > len(b):
			return diskimage.Step{}, nil
		}
		seen = step.Need
	}
}

// guestBytes is a small disk of several tables of 4 KiB grains, some of them empty.
func guestBytes() []byte {
	guest := make([]byte, 2<<20+300<<10+3*sectorBytes)
	rng := rand.NewChaCha8([32]byte{1})
	for _, at := range []int{0, 300 << 10, 1 << 20, 2<<20 - 700, len(guest) - 2000} {
		_, _ = rng.Read(guest[at : at+2000])
	}
	return guest
}

func TestDisksOfSeveralFiles(t *testing.T) {
	t.Parallel()
	guest := imagetest.Guests(t)[0].Path
	for _, kind := range []string{"monolithicFlat", "twoGbMaxExtentSparse", "twoGbMaxExtentFlat"} {
		path := imagetest.Convert(t, guest, "vmdk", "subformat="+kind)
		_, err := Open(imagetest.Open(t, path))
		if !errors.Is(err, diskimage.ErrSplit) || !strings.Contains(fmt.Sprint(err), "without the data") {
			t.Errorf("%s: %v", kind, err)
		}
	}
	path := imagetest.Convert(t, guest, "vmdk", "subformat=twoGbMaxExtentSparse")
	part := strings.TrimSuffix(path, ".vmdk") + "-s001.vmdk"
	if _, err := Open(imagetest.Open(t, part)); !errors.Is(err, diskimage.ErrSplit) {
		t.Errorf("one extent of several: %v", err)
	}
}

func TestFilesWithoutTheHeader(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		file string
		want error
	}{
		{"", diskimage.ErrCorrupt},
		{strings.Repeat("\x00", 4096), diskimage.ErrCorrupt},
		{"COWD\x01\x00\x00\x00", diskimage.ErrUnsupported},
		{"\xbe\xba\xfe\xca\x00\x00\x00\x00\x01", diskimage.ErrUnsupported},
		{"KDMV", diskimage.ErrTruncated},
		{fmt.Sprintf(vmwareText, 100), diskimage.ErrSplit},
		{fmt.Sprintf(vmwareText, 100) + "encryptionKeys = \"vmware:key/list/(a)\"\n", diskimage.ErrEncrypted},
		{"# Disk DescriptorFile\nparentCID=12345678\n", diskimage.ErrDifferencing},
	} {
		if _, err := Open(imagetest.Of([]byte(c.file))); !errors.Is(err, c.want) {
			t.Errorf("%.20q: %v, want %v", c.file, err, c.want)
		}
	}
}

// TestLargeDisk walks a disk of nearly 4 TiB whose tables are all there.
func TestLargeDisk(t *testing.T) {
	path := filepath.Join(t.TempDir(), "image.vmdk")
	imagetest.QemuImg(t, "create", "-q", "-f", "vmdk", path, "4000G")
	const at = 3900 << 30
	imagetest.QemuIO(t, path, "vmdk", fmt.Sprintf("write -P 7 %d 1M", int64(at)))
	f := imagetest.Open(t, path)
	begin := time.Now()
	imagetest.Bounded(t, 3*diskimage.MaxTableBytes, func() {
		d := mustOpen(t, f)
		all := extents(t, d, 0)
		if len(all) != 1 || all[0].Guest != at || all[0].Length != 1<<20 {
			t.Errorf("extents %v", all)
		}
		if there := extents(t, d, at+5); !slices.Equal(there, all) {
			t.Errorf("from the extent on: %v", there)
		}
	})
	t.Logf("walked 4000 GiB in %v", time.Since(begin))
}

func TestPeekSize(t *testing.T) {
	t.Parallel()
	image := pack(make([]byte, 1<<20), dialect{})
	for n, want := range map[int]int64{0: 0, 511: 0, 512: 1 << 20, len(image): 1 << 20} {
		if size, ok := PeekSize(image[:n]); size != want || ok != (want > 0) {
			t.Errorf("%d bytes: %d, %t", n, size, ok)
		}
	}
	if size, ok := PeekSize(imagetest.Patched(image, 12, 0, 0, 0, 0)); ok {
		t.Errorf("an empty disk has %d bytes", size)
	}
}

func TestOnlyStreamsAreStreams(t *testing.T) {
	t.Parallel()
	f := imagetest.Open(t, imagetest.Convert(t, imagetest.Guests(t)[0].Path, "vmdk", ""))
	front, err := f.Read("the front", 0, min(f.Size(), FrontBytes))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := OpenStream(front); !errors.Is(err, diskimage.ErrUnsupported) {
		t.Errorf("open a sparse image as a stream: %v", err)
	}
}

// TestIsStream has streams that are none of ours, too.
func TestIsStream(t *testing.T) {
	t.Parallel()
	stream, sparse := pack(guestBytes(), dialect{}), sparseImage()
	for _, c := range []struct {
		name string
		head []byte
		want bool
	}{
		{"stream", stream, true},
		{"the header of a stream", stream[:headerBytes], true},
		{"version 4", imagetest.Patched(stream, 4, 4), true},
		{"unknown flags", imagetest.Patched(stream, 8, 1, 0, 0xff, 0xff), true},
		{"another compression", imagetest.Patched(stream, 77, 9), true},
		{"sparse", sparse, false},
		{"a sparse image of version 4", imagetest.Patched(sparse, 4, 4), false},
		{"less than the header", stream[:headerBytes-1], false},
		{"nothing", nil, false},
		{"no header", imagetest.Patched(stream, 0, 'k'), false},
	} {
		if got := IsStream(c.head); got != c.want {
			t.Errorf("%s: %t, want %t", c.name, got, c.want)
		}
	}
}

// broken fails where it is not left alone.
type broken struct {
	io.ReaderAt
	from, to int64
}

var errBroken = errors.New("the store is away")

func (b broken) ReadAt(p []byte, off int64) (int, error) {
	if off < b.to && off+int64(len(p)) > b.from {
		return 0, errBroken
	}
	return b.ReaderAt.ReadAt(p, off)
}

func TestReaderFails(t *testing.T) {
	t.Parallel()
	sparse, stream := sparseImage(), pack(guestBytes(), dialect{})
	distant := append(bytes.Clone(sparse), make([]byte, FrontBytes+sectorBytes-len(sparse)%sectorBytes)...)
	copy(distant[56:], le64(FrontBytes/sectorBytes))
	far := pack(guestBytes(), dialect{fill: 2 * FrontBytes / sectorBytes})
	for _, c := range []struct {
		name     string
		image    []byte
		from, to int64
	}{
		{"front", sparse, 0, 1},
		{"directory", distant, FrontBytes, FrontBytes + 1},
		{"tables", sparse, int64(len(sparse)) - 1, int64(len(sparse))},
		{"footer", stream, int64(len(stream)) - 1, int64(len(stream))},
		{"grains", far, FrontBytes, FrontBytes + 1},
	} {
		f := diskimage.NewFile(broken{bytes.NewReader(c.image), c.from, c.to}, int64(len(c.image)))
		d, err := Open(f)
		if err == nil {
			_, err = imagetest.Read(d, f)
		}
		if !errors.Is(err, errBroken) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

// sparseImage is small, and ends with its tables.
func sparseImage() []byte {
	guest := make([]byte, 3<<20+512)
	copy(guest[70<<10:], "some data")
	copy(guest[len(guest)-9:], "more data")
	return sparsePack(guest)
}

func BenchmarkExtents(b *testing.B) {
	path := filepath.Join(b.TempDir(), "image.vmdk")
	imagetest.QemuImg(b, "create", "-q", "-f", "vmdk", path, "1T")
	d := mustOpen(b, imagetest.Open(b, path))
	for b.Loop() {
		extents(b, d, 0)
	}
}

func BenchmarkParser(b *testing.B) {
	image := pack(bytes.Repeat([]byte("some text that packs well "), 1<<20), dialect{})
	f := imagetest.Of(image)
	d := mustOpen(b, f)
	grain := make([]byte, 64<<10)
	b.SetBytes(d.Size)
	for b.Loop() {
		p := d.Parser(diskimage.Position{})
		err := diskimage.Walk(f, p, func(piece diskimage.Piece) error { return p.Unpack(grain[:piece.Length], piece.Data) })
		if err != nil {
			b.Fatal(err)
		}
	}
}
