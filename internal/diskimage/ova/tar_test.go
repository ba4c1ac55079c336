package ova_test

import (
	"archive/tar"
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	"vmimport/internal/diskimage"
	"vmimport/internal/diskimage/imagetest"
	"vmimport/internal/fault"
)

// entry is a member to write. A header, if given, is used as it is but for the size.
type entry struct {
	name   string
	data   string
	header *tar.Header
}

// archive writes a tar without its end.
func archive(t testing.TB, format tar.Format, entries ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		h := &tar.Header{Typeflag: tar.TypeReg, Name: e.name, Mode: 0o644, Format: format}
		if e.header != nil {
			h = e.header
		}
		if h.Size == 0 {
			h.Size = int64(len(e.data))
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatalf("%s: %v", e.name, err)
		}
		if _, err := io.WriteString(w, e.data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func closed(b []byte) []byte { return append(slices.Clip(b), make([]byte, 1024)...) }

func TestRefusedArchives(t *testing.T) {
	t.Parallel()
	descriptor := entry{name: "x.ovf", data: oneDisk(`href="a"`, `fileRef="f"`)}
	a := entry{name: "a", data: "disk"}
	with := func(e ...entry) []byte {
		return closed(archive(t, tar.FormatPAX, append([]entry{descriptor, a}, e...)...))
	}
	header := func(h tar.Header) []byte {
		h.Name = cmp.Or(h.Name, "b")
		return with(entry{header: &h})
	}
	many := make([]entry, 63)
	for i := range many {
		many[i].name = fmt.Sprint("b", i)
	}
	good := with()
	gnu := closed(archive(t, tar.FormatGNU, descriptor, a))
	second := len(archive(t, tar.FormatPAX, descriptor)) // where the header of the disk is
	disk := func(b []byte) []byte { return fixed(b, second) }
	for name, c := range map[string]struct {
		image []byte
		want  *fault.Error
	}{
		"nothing":                 {nil, diskimage.ErrUnsupported},
		"only the end":            {make([]byte, 10240), diskimage.ErrUnsupported},
		"no descriptor":           {closed(archive(t, tar.FormatPAX, a)), diskimage.ErrUnsupported},
		"two descriptors":         {with(entry{name: "y.OVF"}), diskimage.ErrUnsupported},
		"another file":            {with(entry{name: "y"}), nil},
		"descriptor over 1 MiB":   {closed(archive(t, tar.FormatPAX, entry{name: "x.ovf", data: descriptor.data + strings.Repeat(" ", 1<<20)}, a)), diskimage.ErrUnsupported},
		"two manifests":           {with(entry{name: "x.mf"}, entry{name: "y.mf"}), diskimage.ErrUnsupported},
		"manifest over 64 KiB":    {with(entry{name: "x.mf", data: strings.Repeat("\n", 64<<10+1)}), diskimage.ErrUnsupported},
		"manifest contradicts":    {with(entry{name: "x.mf", data: sha("a", "disk") + sha("a", "disc")}), diskimage.ErrCorrupt},
		"manifest short digest":   {with(entry{name: "x.mf", data: "SHA1(a)= abcd"}), diskimage.ErrCorrupt},
		"65 members":              {with(many...), diskimage.ErrUnsupported},
		"64 members":              {with(many[:62]...), nil},
		"directory":               {header(tar.Header{Typeflag: tar.TypeDir, Name: "b/"}), diskimage.ErrUnsupported},
		"symbolic link":           {header(tar.Header{Typeflag: tar.TypeSymlink, Linkname: "/etc/secret"}), diskimage.ErrUnsupported},
		"hard link":               {header(tar.Header{Typeflag: tar.TypeLink, Linkname: "a"}), diskimage.ErrUnsupported},
		"device":                  {header(tar.Header{Typeflag: tar.TypeBlock}), diskimage.ErrUnsupported},
		"fifo":                    {header(tar.Header{Typeflag: tar.TypeFifo}), diskimage.ErrUnsupported},
		"global pax header":       {header(tar.Header{Typeflag: tar.TypeXGlobalHeader, PAXRecords: map[string]string{"path": "a"}}), diskimage.ErrUnsupported},
		"absolute name":           {with(entry{name: "/b"}), diskimage.ErrCorrupt},
		"absolute name by pax":    {with(entry{name: "/" + strings.Repeat("b", 200)}), diskimage.ErrCorrupt},
		"parent directory":        {with(entry{name: "../b"}), diskimage.ErrCorrupt},
		"parent within":           {with(entry{name: "c/../b"}), diskimage.ErrCorrupt},
		"dots in a name":          {with(entry{name: "b..c"}), nil},
		"backslash":               {with(entry{name: `..\b`}), diskimage.ErrCorrupt},
		"control character":       {with(entry{name: "b\n"}), diskimage.ErrCorrupt},
		"bidi control":            {with(entry{name: "b\u202e"}), diskimage.ErrCorrupt},
		"name not in UTF-8":       {closed(archive(t, tar.FormatGNU, descriptor, a, entry{name: "b\xff"})), diskimage.ErrCorrupt},
		"long name":               {with(entry{name: strings.Repeat("b", 256)}), diskimage.ErrCorrupt},
		"longest name":            {with(entry{name: strings.Repeat("b", 255)}), nil},
		"long name by GNU":        {closed(archive(t, tar.FormatGNU, descriptor, a, entry{name: strings.Repeat("b", 256)})), diskimage.ErrCorrupt},
		"name of GNU":             {closed(archive(t, tar.FormatGNU, descriptor, a, entry{name: strings.Repeat("b", 200)})), nil},
		"duplicate":               {with(a), diskimage.ErrCorrupt},
		"duplicate in disguise":   {with(entry{name: "./a"}), diskimage.ErrCorrupt},
		"huge pax header":         {with(entry{header: &tar.Header{Name: "b", Typeflag: tar.TypeReg, PAXRecords: map[string]string{"X.y": strings.Repeat("x", 300<<10)}}}), diskimage.ErrUnsupported},
		"many pax headers":        {closed(append(archive(t, tar.FormatPAX, descriptor, a), bytes.Repeat(paxHeader("X.y", "z"), 1000)...)), diskimage.ErrUnsupported},
		"sparse, GNU":             {fixed(imagetest.Patched(gnu, second+156, 'S'), second), diskimage.ErrUnsupported},
		"contiguous":              {disk(imagetest.Patched(good, second+156, '7')), diskimage.ErrUnsupported},
		"wrong checksum":          {imagetest.Patched(good, second, 'b'), diskimage.ErrCorrupt},
		"size beyond the file":    {disk(imagetest.Patched(good, second+124, []byte("00000777777")...)), diskimage.ErrTruncated},
		"absurd size":             {disk(imagetest.Patched(good, second+124, 0x80, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff)), diskimage.ErrTruncated},
		"negative size":           {disk(imagetest.Patched(good, second+124, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff)), diskimage.ErrCorrupt},
		"size by pax":             {closed(slices.Concat(good[:second], paxHeader("size", "99999999"), good[second:len(good)-1024])), diskimage.ErrTruncated},
		"sparse by pax 1.0":       {closed(slices.Concat(good[:second], paxHeader("GNU.sparse.major", "1", "GNU.sparse.minor", "0", "GNU.sparse.realsize", "4", "GNU.sparse.name", "a"), disk(imagetest.Patched(good, second+124, []byte("00000001000")...))[second:second+512], []byte("1\n0\n4\n"), make([]byte, 506))), diskimage.ErrUnsupported},
		"sparse by pax 0.1":       {closed(slices.Concat(good[:second], paxHeader("GNU.sparse.size", "10995116277760", "GNU.sparse.numblocks", "1", "GNU.sparse.map", "0,4"), good[second:len(good)-1024])), diskimage.ErrUnsupported},
		"an unknown sparse":       {closed(slices.Concat(good[:second], paxHeader("GNU.sparse.new", "1"), good[second:len(good)-1024])), diskimage.ErrUnsupported},
		"no end":                  {good[:len(good)-1024], nil},
		"half an end":             {good[:len(good)-512], nil},
		"padding to a record":     {append(slices.Clone(good), make([]byte, 10240-len(good)%10240)...), nil},
		"padding over 1 MiB":      {append(slices.Clone(good), make([]byte, 1<<20+1)...), diskimage.ErrTrailing},
		"data behind the end":     {append(slices.Clone(good), 'x'), diskimage.ErrTrailing},
		"data far behind the end": {append(slices.Clone(good), append(make([]byte, 9000), 'x')...), diskimage.ErrTrailing},
		"another archive behind":  {append(slices.Clone(good), good...), diskimage.ErrTrailing},
		"data in half an end":     {append(slices.Clone(good[:len(good)-512]), bytes.Repeat([]byte{1}, 512)...), diskimage.ErrCorrupt},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := open(c.image)
			if c.want != nil {
				refused(t, err, c.want)
			} else if err != nil {
				t.Fatal(err)
			} else {
				checkDisks(t, c.image, got, "disk")
			}
		})
	}
}

// fixed corrects the checksum of the header at off.
func fixed(b []byte, off int) []byte {
	h := b[off:][:512]
	copy(h[148:], "        ")
	sum := 0
	for _, c := range h {
		sum += int(c)
	}
	copy(h[148:], fmt.Sprintf("%06o\x00 ", sum))
	return b
}

// paxHeader is an extended header with records as they are, which archive/tar
// refuses to write.
func paxHeader(keysAndValues ...string) []byte {
	records := ""
	for pair := range slices.Chunk(keysAndValues, 2) {
		record := fmt.Sprintf(" %s=%s\n", pair[0], pair[1])
		n := len(record)
		for n != len(record)+len(fmt.Sprint(n)) { // the length counts its own digits
			n = len(record) + len(fmt.Sprint(n))
		}
		records += fmt.Sprint(n) + record
	}
	h := make([]byte, 1024)
	copy(h, "PaxHeaders/x")
	copy(h[100:], "0000644\x000000000\x000000000\x00")
	copy(h[124:], fmt.Sprintf("%011o\x0000000000000\x00", len(records)))
	h[156] = 'x'
	copy(h[257:], "ustar\x0000")
	copy(h[512:], records)
	return fixed(h, 0)
}

func TestTruncatedAnywhere(t *testing.T) {
	t.Parallel()
	descriptor := oneDisk(`href="a"`, `fileRef="f"`)
	whole := archive(t, tar.FormatPAX, entry{name: "x.ovf", data: descriptor}, entry{name: strings.Repeat("b", 120), data: disk2}, entry{name: "a", data: disk1})
	whole = whole[:len(whole)-512+len(disk1)] // the last padding may be missing
	for n := range whole {
		_, err := open(whole[:n])
		if n == 0 {
			refused(t, err, diskimage.ErrUnsupported)
		} else if !errors.Is(err, diskimage.ErrTruncated) {
			t.Fatalf("cut to %d of %d bytes: %v", n, len(whole), err)
		}
	}
	if _, err := open(whole); err != nil {
		t.Fatal(err)
	}
}
