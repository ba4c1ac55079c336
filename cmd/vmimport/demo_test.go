package main

import (
	"compress/gzip"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"vmimport/internal/diskimage/imagetest"
)

// The demo takes any format, whatever the file is called, and qemu-img agrees with it.
func TestDemoFormats(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	guest := imagetest.Guests(t)[1].Path
	packed := func(name, format, options string, args ...string) string {
		path := filepath.Join(dir, name)
		if err := os.Rename(imagetest.Convert(t, guest, format, options, args...), path); err != nil {
			t.Fatal(err)
		}
		return path
	}
	const size = 12<<20 + 512
	for _, tt := range []struct {
		path, format, says string
	}{
		{packed("disk.qcow2", "qcow2", "", "-c"), "qcow2", "disk.qcow2: qcow2 (version 3, zlib), virtual size %d bytes\n"},
		{packed("cloud.img", "qcow2", ""), "qcow2", "cloud.img: qcow2 (version 3, zlib), virtual size %d bytes\n"},
		{packed("disk.vmdk", "vmdk", "subformat=streamOptimized"), "vmdk", "disk.vmdk: vmdk (streamOptimized), virtual size %d bytes\n"},
		{packed("disk", "vhdx", ""), "vhdx", "disk: vhdx (dynamic), virtual size %d bytes\n"},
		{inGzip(t, packed("disk.vhd", "vpc", "subformat=fixed,force_size=on")), "vpc", "disk.vhd.gz: vhd in gzip\n"},
		{inGzip(t, packed("exported.qcow2", "qcow2", "")), "qcow2", "exported.qcow2.gz: qcow2 in gzip, virtual size %d bytes\n"},
	} {
		if strings.Contains(tt.says, "%d") {
			tt.says = fmt.Sprintf(tt.says, size)
		}
		data := filepath.Join(t.TempDir(), "data")
		demo, temp := vmimport(t, "demo", "--image", tt.path, "--data", data)
		code, stdout, stderr := run(t, demo)
		done := fmt.Sprintf("the registered image, of %d bytes, equals the source, byte for byte\n", size)
		if code != 0 || !strings.Contains(stderr, tt.says) || !strings.Contains(stderr, done) {
			t.Fatalf("%s: %d %s, want %q", tt.path, code, stderr, tt.says)
		}
		image := strings.TrimSuffix(tt.path, ".gz")
		imagetest.QemuImg(t, "compare", "-f", tt.format, "-F", "raw", image, strings.TrimSuffix(stdout, "\n"))
		empty(t, temp)
	}
}

// inGzip packs the file at path, and returns the path of what came of it.
func inGzip(t *testing.T, path string) string {
	t.Helper()
	in, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := os.Create(path + ".gz")
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	z := gzip.NewWriter(out)
	if _, err := io.Copy(z, in); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return path + ".gz"
}
