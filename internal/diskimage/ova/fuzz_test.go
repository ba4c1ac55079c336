package ova_test

import (
	"archive/tar"
	"bytes"
	"reflect"
	"slices"
	"strings"
	"testing"

	"vmimport/internal/diskimage"
	"vmimport/internal/diskimage/ova"
	"vmimport/internal/fault"
)

// hold checks what Open promises of any image, and returns what it returned.
func hold(t *testing.T, image []byte) (*ova.Archive, error) {
	t.Helper()
	r := &flaky{r: bytes.NewReader(image), left: -1}
	a, err := ova.Open(diskimage.NewFile(r, int64(len(image))))
	if again, errAgain := open(image); !reflect.DeepEqual(a, again) || fault.CodeOf(err) != fault.CodeOf(errAgain) {
		t.Fatalf("%v and %v, then %v and %v", a, err, again, errAgain)
	}
	// All headers, each by a read of its own in the worst case, a descriptor, a
	// manifest, and what follows the archive.
	if limit := 65*3*4<<10 + 1<<20 + 64<<10 + 1<<20; r.bytes > limit {
		t.Fatalf("%d bytes read", r.bytes)
	}
	if err != nil {
		if fault.KindOf(err) != fault.Invalid {
			t.Fatalf("not a fault of the file: %v", err)
		}
		return nil, err
	}
	if len(a.Disks) == 0 || len(a.Disks) > 64 || !slices.Contains([]string{"", "efi", "bios"}, a.Firmware) || !harmless(a.Name) {
		t.Fatalf("impossible: %+v", a)
	}
	for i, m := range a.Disks {
		if m.Offset < 512 || m.Size < 0 || m.Offset > int64(len(image)) || m.Size > int64(len(image))-m.Offset || m.Capacity < 0 {
			t.Fatalf("impossible: %+v", m)
		}
		if m.Name == "" || !harmless(m.Name) || strings.ContainsAny(m.Name, `/\`) {
			t.Fatalf("disk %d has the name %q", i, m.Name)
		}
		if want := map[string]int{"": 0, "SHA1": 40, "SHA256": 64, "SHA512": 128}[m.Digest.Algorithm]; len(m.Digest.Hex) != want || strings.Trim(m.Digest.Hex, "0123456789abcdef") != "" {
			t.Fatalf("disk %d has the digest %v", i, m.Digest)
		}
		for _, o := range a.Disks[:i] {
			if m.Name == o.Name || m.Offset < o.Offset+o.Size && o.Offset < m.Offset+m.Size {
				t.Fatalf("two disks share bytes: %+v and %+v", o, m)
			}
		}
	}
	return a, nil
}

func harmless(s string) bool {
	return len(s) <= 255 && !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f || r == 0x202e })
}

// FuzzOVA mutates whole archives. The checksums of headers are made right, or
// little else than they would be tested.
func FuzzOVA(f *testing.F) {
	small := withDisks(byScript)
	long := entry{name: strings.Repeat("n", 150), data: "x"}
	manifest := entry{name: "web.mf", data: sha("web-disk1.vmdk", disk1) + sha("web-disk2.vmdk", disk2)}
	for _, format := range []tar.Format{tar.FormatUSTAR, tar.FormatGNU, tar.FormatPAX} {
		f.Add(closed(archive(f, format, small...)))
		f.Add(closed(archive(f, format, append(slices.Clone(small), manifest)...)))
		if format != tar.FormatUSTAR {
			f.Add(closed(archive(f, format, append(slices.Clone(small), long)...)))
		}
	}
	f.Add(append(paxHeader("GNU.sparse.major", "1", "GNU.sparse.minor", "0"), closed(archive(f, tar.FormatUSTAR, small...))...))
	f.Add(append(paxHeader("path", "../x", "size", "10"), closed(archive(f, tar.FormatUSTAR, small...))...))
	f.Fuzz(func(t *testing.T, image []byte) {
		image = slices.Clone(image)
		for off := 0; off+512 <= len(image); off += 512 {
			if string(image[off+257:][:5]) == "ustar" {
				fixed(image, off)
			}
		}
		hold(t, image)
	})
}

// FuzzOVF mutates descriptors, in an archive of the disks that most of them name.
func FuzzOVF(f *testing.F) {
	for _, d := range []string{byVSphere, byVirtualBox2, byOVirt, byScript, oneDisk(`href="web-disk1.vmdk"`, `fileRef="f"`)} {
		f.Add(d)
	}
	f.Fuzz(func(t *testing.T, descriptor string) {
		image := closed(archive(t, tar.FormatUSTAR, withDisks(descriptor)...))
		a, err := hold(t, image)
		if err != nil {
			return
		}
		for _, m := range a.Disks {
			if got := string(image[m.Offset:][:m.Size]); got != disk1 && got != disk2 && got != descriptor {
				t.Fatalf("%s is %q", m.Name, got)
			}
		}
	})
}

// FuzzManifest mutates manifests.
func FuzzManifest(f *testing.F) {
	f.Add(sha("web-disk1.vmdk", disk1) + sha("web-disk2.vmdk", disk2))
	f.Add("SHA1 (web-disk1.vmdk) = " + strings.Repeat("AB", 20) + "\r\nsha512(./web-disk2.vmdk)=" + strings.Repeat("0", 128))
	f.Add("MD5(web (1).ovf)= 0123\n\nSHA1(a)(b)= " + strings.Repeat("1", 40))
	f.Fuzz(func(t *testing.T, manifest string) {
		a, err := hold(t, closed(archive(t, tar.FormatUSTAR, append(withDisks(byScript), entry{name: "web.mf", data: manifest})...)))
		if err != nil && len(manifest) <= 64<<10 && fault.CodeOf(err) != diskimage.ErrCorrupt.Code {
			t.Fatal(err)
		}
		for i := 0; err == nil && i < len(a.Disks); i++ {
			if d := a.Disks[i].Digest; !strings.Contains(strings.ToLower(manifest), d.Hex) {
				t.Fatalf("digest %v is not in the manifest", d)
			}
		}
	})
}
