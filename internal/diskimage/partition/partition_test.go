package partition_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"vmimport/internal/diskimage/imagetest"
	"vmimport/internal/diskimage/partition"
)

const mib = 1 << 20

// read reads a disk that is wholly within reach.
func read(t *testing.T, d []byte) *partition.Table {
	t.Helper()
	table, err := partition.Read(bytes.NewReader(d), int64(len(d)), int64(len(d)))
	if err != nil {
		t.Fatal(err)
	}
	return table
}

// check compares what matters of a table, written as one line.
func check(t *testing.T, got *partition.Table, want string) {
	t.Helper()
	s := fmt.Sprintf("%s %v", got.Scheme, got.Boot)
	for _, p := range got.Partitions {
		s += fmt.Sprintf("; %d %d+%d %s", p.Number, p.Start, p.Size, p.TypeName)
		if p.Bootable {
			s += "*"
		}
	}
	if s != want {
		t.Errorf("got  %s\nwant %s", s, want)
	}
}

// warned checks that there is one warning, with the text, or none for "".
func warned(t *testing.T, got *partition.Table, text string) {
	t.Helper()
	if (text == "") != (len(got.Warnings) == 0) || len(got.Warnings) > 1 || text != "" && !strings.Contains(got.Warnings[0], text) {
		t.Errorf("warnings %q, want %q", got.Warnings, text)
	}
}

func TestMBR(t *testing.T) {
	t.Parallel()
	d := mbr(8*mib, slot{active: true, kind: 0x83, start: 2048, size: 4096}, slot{kind: 0xef, start: 6144, size: 1024}, slot{}, slot{kind: 0x99, start: 1, size: 1})
	table := read(t, d)
	check(t, table, "mbr [uefi]; 1 1048576+2097152 Linux*; 2 3145728+524288 EFI system; 4 512+512 ")
	warned(t, table, "")
	if p := table.Partitions[2]; p.Type != "0x99" {
		t.Errorf("type is %s", p.Type)
	}
	copy(d, "\xeb\x63\x90")
	check(t, read(t, d), "mbr [bios uefi]; 1 1048576+2097152 Linux*; 2 3145728+524288 EFI system; 4 512+512 ")
}

func TestNone(t *testing.T) {
	t.Parallel()
	noise := bytes.Repeat([]byte("no table of any kind "), 4000)
	fat := make([]byte, mib)
	copy(fat, "\xeb\x58\x90mkfs.fat")
	copy(fat[446:], "Remove disks or other media")
	copy(fat[510:], "\x55\xaa")
	for name, tt := range map[string]struct {
		disk []byte
		want string
	}{
		"nothing":                {nil, "none []"},
		"less than a sector":     {noise[:100], "none []"},
		"zeros":                  {make([]byte, mib), "none []"},
		"noise":                  {noise, "none []"},
		"a file system":          {fat, "none [bios]"},
		"an MBR without entries": {mbr(mib), "none []"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			table := read(t, tt.disk)
			check(t, table, tt.want)
			warned(t, table, "")
		})
	}
}

func TestISO9660(t *testing.T) {
	t.Parallel()
	d := mbr(mib, slot{kind: 0x17, start: 0, size: 2048})
	copy(d[32769:], "CD001")
	warned(t, read(t, d), "ISO 9660")
}

func TestLogical(t *testing.T) {
	t.Parallel()
	const ext = 2048 // where the extended partition starts
	base := func() []byte {
		return mbr(16*mib, slot{kind: 0x83, start: 63, size: 100}, slot{kind: 0x05, start: ext, size: 30000})
	}
	const front = "mbr []; 1 32256+51200 Linux; 2 1048576+15360000 extended"
	t.Run("chain", func(t *testing.T) {
		t.Parallel()
		d := base()
		record(d, ext, slot{kind: 0x82, start: 1, size: 7}, slot{kind: 0x05, start: 100, size: 100})
		record(d, ext+100, slot{}, slot{kind: 0x0f, start: 50, size: 100}) // holds nothing
		record(d, ext+50, slot{kind: 0x8e, start: 2, size: 8})             // a chain may go back
		table := read(t, d)
		check(t, table, front+fmt.Sprintf("; 5 %d+3584 Linux swap; 6 %d+4096 Linux LVM", (ext+1)*512, (ext+52)*512))
		warned(t, table, "")
	})
	t.Run("circle", func(t *testing.T) {
		t.Parallel()
		d := base()
		record(d, ext, slot{kind: 0x83, start: 1, size: 7}, slot{kind: 0x05, start: 100, size: 100})
		record(d, ext+100, slot{kind: 0x83, start: 1, size: 7}, slot{kind: 0x05, start: 0, size: 100})
		table := read(t, d)
		check(t, table, front+fmt.Sprintf("; 5 %d+3584 Linux; 6 %d+3584 Linux", (ext+1)*512, (ext+101)*512))
		warned(t, table, "circle")
	})
	t.Run("too many", func(t *testing.T) {
		t.Parallel()
		d := base()
		for i := range uint32(200) {
			record(d, ext+int64(i)*4, slot{kind: 0x83, start: 1, size: 2}, slot{kind: 0x05, start: (i + 1) * 4, size: 4})
		}
		table := read(t, d)
		if n := len(table.Partitions); n != 2+64 {
			t.Errorf("%d partitions", n)
		}
		warned(t, table, "more than 64")
	})
	t.Run("broken", func(t *testing.T) {
		t.Parallel()
		d := base()
		record(d, ext, slot{kind: 0x83, start: 1, size: 7}, slot{kind: 0x05, start: 100, size: 100})
		table := read(t, d)
		check(t, table, front+fmt.Sprintf("; 5 %d+3584 Linux", (ext+1)*512))
		warned(t, table, "broken before number 6")
	})
	t.Run("out of reach", func(t *testing.T) {
		t.Parallel()
		table, err := partition.Read(bytes.NewReader(base()), 0, mib)
		if err != nil {
			t.Fatal(err)
		}
		check(t, table, front)
		warned(t, table, "from number 5 on")
	})
}

func TestGPT(t *testing.T) {
	t.Parallel()
	for _, sector := range []int64{512, 4096} {
		parts := []part{
			{guid: efi, first: 64, last: 127},
			{},
			{guid: linux, first: 128, last: 1000, attributes: 1 << 2},
			{guid: [16]byte{1}, first: 1001, last: 1001},
		}
		d := gpt(8*mib, sector, parts...)
		want := fmt.Sprintf("gpt [uefi]; 1 %d+%d EFI system; 3 %d+%d Linux*; 4 %d+%d ",
			64*sector, 64*sector, 128*sector, 873*sector, 1001*sector, sector)
		table := read(t, d)
		check(t, table, want)
		warned(t, table, "")
		if table.SectorBytes != sector {
			t.Errorf("sectors of %d bytes", table.SectorBytes)
		}
		if p := table.Partitions[2]; p.Type != "00000001-0000-0000-0000-000000000000" {
			t.Errorf("type is %s", p.Type)
		}

		// The BIOS has two ways in.
		copy(d, "\xeb\x63\x90")
		check(t, read(t, d), strings.Replace(want, "[uefi]", "[bios uefi]", 1))
		check(t, read(t, gpt(8*mib, sector, part{guid: biosBoot, first: 64, last: 64})), fmt.Sprintf("gpt [bios]; 1 %d+%d BIOS boot", 64*sector, sector))

		// The end of the disk may be far away.
		front, err := partition.Read(bytes.NewReader(d[:mib]), int64(len(d)), mib)
		if err != nil {
			t.Fatal(err)
		}
		check(t, front, strings.Replace(want, "[uefi]", "[bios uefi]", 1))
		warned(t, front, "")
	}
}

func TestStrangeGPT(t *testing.T) {
	t.Parallel()
	const good = "gpt [uefi]; 1 32768+32768 EFI system"
	const fallback = "mbr []; 1 512+8388096 GPT protective"
	parts := []part{{guid: efi, first: 64, last: 127}}
	disk := func() []byte { return gpt(8*mib, 512, parts...) }
	for name, tt := range map[string]struct {
		disk func() []byte
		want string
		warn string
	}{
		"header damaged":   {func() []byte { return imagetest.Patched(disk(), 512+60, 1) }, good, "What is shown is its backup"},
		"entries damaged":  {func() []byte { return imagetest.Patched(disk(), 1024+60, 1) }, good, "What is shown is its backup"},
		"backup damaged":   {func() []byte { return imagetest.Patched(disk(), 8*mib-512+60, 1) }, good, "missing or damaged"},
		"backup's entries": {func() []byte { return imagetest.Patched(disk(), 8*mib-33*512, 1) }, good, "missing or damaged"},
		"grown":            {func() []byte { return append(disk(), make([]byte, mib)...) }, good, "which was grown"},
		"cut":              {func() []byte { return disk()[:7*mib] }, good, "which was cut"},
		"both damaged": {func() []byte {
			return imagetest.Patched(imagetest.Patched(disk(), 512+60, 1), 8*mib-512+60, 1)
		}, fallback, "missing or damaged"},
		"no MBR": {func() []byte { return imagetest.Patched(disk(), 510, 0, 0) }, "none []", "without its protective MBR"},
		"partition behind the end": {func() []byte {
			return gpt(8*mib, 512, part{guid: efi, first: 64, last: 1 << 40})
		}, "gpt [uefi]; 1 32768+562949953389056 EFI system", "Partition 1 ends behind"},
		"partition that overflows": {func() []byte {
			return gpt(8*mib, 512, part{guid: efi, first: 64, last: math.MaxUint64})
		}, "gpt []", "Partition 1 has no place"},
		"partition backwards": {func() []byte {
			return gpt(8*mib, 512, part{guid: efi, first: 64, last: 63})
		}, "gpt []", "Partition 1 has no place"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			table := read(t, tt.disk())
			check(t, table, tt.want)
			warned(t, table, tt.warn)
		})
	}
}

// Numbers that would make a naive reader allocate, divide by zero or run away. The
// checksums of the header are right.
func TestHostileGPT(t *testing.T) {
	t.Parallel()
	for name, patch := range map[string]func(h []byte){
		"entries far away":   func(h []byte) { binary.LittleEndian.PutUint64(h[72:], math.MaxUint64) },
		"entries behind":     func(h []byte) { binary.LittleEndian.PutUint64(h[72:], 1<<30) },
		"count":              func(h []byte) { binary.LittleEndian.PutUint32(h[80:], math.MaxUint32) },
		"size 0":             func(h []byte) { binary.LittleEndian.PutUint32(h[84:], 0) },
		"size of no power":   func(h []byte) { binary.LittleEndian.PutUint32(h[84:], 129) },
		"size huge":          func(h []byte) { binary.LittleEndian.PutUint32(h[84:], 1<<31) },
		"another header LBA": func(h []byte) { binary.LittleEndian.PutUint64(h[24:], 2) },
		"header length 0":    func(h []byte) { binary.LittleEndian.PutUint32(h[12:], 0) },
		"header length":      func(h []byte) { binary.LittleEndian.PutUint32(h[12:], math.MaxUint32) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := gpt(8*mib, 512, part{guid: efi, first: 64, last: 127})
			clear(d[8*mib-512:]) // no backup
			patch(d[512:])
			sign(d[512:1024])
			table := read(t, d)
			check(t, table, "mbr []; 1 512+8388096 GPT protective")
			warned(t, table, "missing or damaged")
		})
	}
}

func TestManyPartitions(t *testing.T) {
	t.Parallel()
	parts := make([]part, 300)
	for i := range parts {
		parts[i] = part{guid: linux, first: uint64(1000 + i), last: uint64(1000 + i)}
	}
	table := read(t, gpt(8*mib, 512, parts...))
	if n := len(table.Partitions); n != 128 {
		t.Errorf("%d partitions", n)
	}
	warned(t, table, "more than 128")
}

type failing struct {
	io.ReaderAt
	from int64
}

var errBroken = errors.New("broken")

func (f failing) ReadAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) > f.from {
		return 0, errBroken
	}
	return f.ReaderAt.ReadAt(p, off)
}

func TestReaderFails(t *testing.T) {
	t.Parallel()
	logical := mbr(8*mib, slot{kind: 0x05, start: 2048, size: 100})
	for name, tt := range map[string]struct {
		disk []byte
		from int64
	}{
		"front":          {make([]byte, mib), 100},
		"backup":         {gpt(8*mib, 512, part{guid: linux, first: 64, last: 64}), mib},
		"logical record": {logical, mib},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := partition.Read(failing{bytes.NewReader(tt.disk), tt.from}, int64(len(tt.disk)), int64(len(tt.disk)))
			if !errors.Is(err, errBroken) {
				t.Errorf("got %v", err)
			}
		})
	}
	// A disk that is shorter than it was said to be.
	if _, err := partition.Read(bytes.NewReader(make([]byte, 1000)), mib, mib); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("short disk: %v", err)
	}
}

// What partx(8) of util-linux makes of the same disks.
func TestPartx(t *testing.T) {
	t.Parallel()
	chained := mbr(16*mib, slot{kind: 0x83, start: 63, size: 100}, slot{}, slot{kind: 0x0f, start: 2048, size: 30000}, slot{active: true, kind: 0x07, start: 200, size: 1000})
	record(chained, 2048, slot{kind: 0x82, start: 1, size: 7}, slot{kind: 0x05, start: 100, size: 100})
	record(chained, 2148, slot{kind: 0x8e, start: 2, size: 8})
	gapped := gpt(8*mib, 512, part{guid: efi, first: 64, last: 127}, part{}, part{guid: biosBoot, first: 2048, last: 4095}, part{guid: linux, first: 4096, last: 8191})
	for name, d := range map[string][]byte{
		"mbr": append(imagetest.BootSector(2048, 4096), make([]byte, 8*mib)...), "logical": chained, "gpt": gapped,
		"gpt backup": imagetest.Patched(gapped, 512+60, 1), "zeros": make([]byte, mib),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var got []string
			for _, p := range read(t, d).Partitions {
				got = append(got, fmt.Sprintf("%d %d %d %s", p.Number, p.Start/512, p.Size/512, strings.ToLower(p.Type)))
			}
			if want := partx(t, d); !slices.Equal(got, want) {
				t.Errorf("got  %q\nwant %q", got, want)
			}
		})
	}
}

func partx(t *testing.T, d []byte) []string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, d, 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), "partx", "--raw", "--noheadings", "--output", "NR,START,SECTORS,TYPE", path).Output()
	if _, ok := errors.AsType[*exec.ExitError](err); err != nil && !ok {
		t.Fatal(err)
	}
	var lines []string
	for line := range strings.Lines(string(out)) { // none if it finds no table, which it fails for
		fields := strings.Fields(line)
		if strings.HasPrefix(fields[3], "0x") {
			fields[3] = fmt.Sprintf("0x%02s", fields[3][2:])
		}
		lines = append(lines, strings.Join(fields, " "))
	}
	return lines
}

func FuzzRead(f *testing.F) {
	logical := mbr(50<<10, slot{kind: 0x83, start: 63, size: 10}, slot{kind: 0x05, start: 70, size: 50})
	record(logical, 70, slot{kind: 0x82, start: 1, size: 7}, slot{kind: 0x05, start: 10, size: 10})
	record(logical, 80, slot{kind: 0x8e, start: 2, size: 8})
	f.Add(logical, int64(0))
	f.Add(gpt(40<<10, 512, part{guid: efi, first: 35, last: 40}, part{guid: linux, first: 41, last: 44}), int64(0))
	f.Add(gpt(48<<10, 4096, part{guid: efi, first: 6, last: 6}), int64(100))
	f.Add(imagetest.Patched(gpt(40<<10, 512, part{guid: biosBoot, first: 35, last: 40}), 512+60, 1), int64(0))
	f.Fuzz(func(t *testing.T, d []byte, short int64) {
		mend(d)
		size := int64(len(d))
		reach := size - min(max(0, short), size)
		// Nothing that is out of reach is read.
		r := failing{bytes.NewReader(d), reach}
		table, err := partition.Read(r, size, reach)
		if err != nil {
			t.Fatal(err)
		}
		if len(table.Partitions) > 128 || len(table.Warnings) > 200 {
			t.Errorf("%d partitions, %d warnings", len(table.Partitions), len(table.Warnings))
		}
		for _, p := range table.Partitions {
			if p.Start < 0 || p.Size <= 0 || p.Start+p.Size < 0 || p.Number < 1 || p.Type == "" {
				t.Errorf("partition %+v", p)
			}
		}
		if again, err := partition.Read(r, size, reach); err != nil || !reflect.DeepEqual(again, table) {
			t.Errorf("then %+v, %v\nafter %+v", again, err, table)
		}
		if _, err := partition.Read(r, 0, reach); err != nil {
			t.Error(err)
		}
	})
}

// mend makes the checksums of the GPTs right, which no fuzzer would find.
func mend(d []byte) {
	for _, sector := range []int{512, 4096} {
		for _, off := range []int{sector, len(d)/sector*sector - sector} {
			if off < 0 || off+sector > len(d) || !bytes.HasPrefix(d[off:], []byte("EFI PART")) {
				continue
			}
			h := d[off : off+sector]
			at := binary.LittleEndian.Uint64(h[72:])
			n := uint64(binary.LittleEndian.Uint32(h[80:])) * uint64(binary.LittleEndian.Uint32(h[84:]))
			if at < 1<<40 && n < 1<<40 && at*uint64(sector)+n <= uint64(len(d)) {
				signEntries(h, d[at*uint64(sector):][:n])
			}
			sign(h)
		}
	}
}
