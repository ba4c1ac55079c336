package devstack

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"vmimport/internal/diskimage/imagetest"
)

// What a demo shows is worth something only if a wrong disk does not pass.
func TestEqual(t *testing.T) {
	t.Parallel()
	_, guest := guests(t)
	disk := contents(t, guest)
	hole := 5 << 20
	if slices.Max(disk[hole:hole+4096]) != 0 {
		t.Fatal("the guest has data where none was expected")
	}
	// A raw source need not end with a sector. What its last one lacks are zeros.
	odd := filepath.Join(t.TempDir(), "odd.raw")
	if err := os.WriteFile(odd, disk[:len(disk)-100], 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, from string
		pack       packer
	}{
		{"disk.raw", guest, plain}, {"odd.raw", odd, plain}, {"disk.qcow2", guest, qemu("qcow2", "", "-c")}, {"odd.vmdk", odd, qemu("vmdk", "subformat=streamOptimized")},
		{"disk.vhd.gz", guest, zipped(qemu("vpc", "subformat=fixed,force_size=on"))},
	} {
		packed := contents(t, tt.from)
		want := append(packed, make([]byte, len(disk)-len(packed))...)
		path := filepath.Join(t.TempDir(), tt.name)
		if err := os.WriteFile(path, tt.pack(t, tt.from), 0o600); err != nil {
			t.Fatal(err)
		}
		src, err := openSource(path)
		if err != nil {
			t.Fatal(err)
		}
		defer src.close()
		compare := func(ctx context.Context, image []byte) error {
			dir := t.TempDir()
			if err := os.WriteFile(diskPath(dir, 0), image, 0o600); err != nil {
				t.Fatal(err)
			}
			return src.equal(ctx, dir, dir)
		}
		if err := compare(t.Context(), want); err != nil {
			t.Errorf("%s: %v", tt.name, err)
		}
		for what, image := range map[string][]byte{
			"first byte":        imagetest.Patched(want, 0, ^want[0]),
			"a byte in a hole":  imagetest.Patched(want, hole, 1),
			"last byte":         imagetest.Patched(want, len(want)-1, ^want[len(want)-1]),
			"a sector too few":  want[:len(want)-512],
			"a sector too many": append(slices.Clone(want), make([]byte, 512)...),
			"empty":             nil,
		} {
			if err := compare(t.Context(), image); err == nil || !strings.Contains(err.Error(), "the registered image") {
				t.Errorf("%s, %s: %v", tt.name, what, err)
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := compare(ctx, want); !errors.Is(err, context.Canceled) {
			t.Errorf("%s, canceled: %v", tt.name, err)
		}
	}
}

// The name counts where it is true, else the contents do.
func TestDeclared(t *testing.T) {
	t.Parallel()
	guest, _ := guests(t)
	disk, qcow2, fixed := contents(t, guest), qemu("qcow2", "")(t, guest), qemu("vpc", "subformat=fixed,force_size=on")(t, guest)
	for _, tt := range []struct {
		name     string
		content  []byte
		declared string
	}{
		{"disk.raw", disk, "raw"}, {"disk.img", disk, "raw"}, {"disk", disk, "raw"}, {"disk.qcow2", disk, "raw"}, {"disk.raw.gz", disk, "raw"}, {"disk.gz", disk, "raw"},
		{"disk.qcow2", qcow2, "qcow2"}, {"disk.img", qcow2, "qcow2"}, {"DISK.QCOW2", qcow2, "qcow2"}, {"disk.vmdk.gz", qcow2, "qcow2"},
		{"disk.qcow2.gz", gzipped(t, qcow2, 1), "qcow2.gz"}, {"disk", gzipped(t, qcow2, 1), "qcow2.gz"}, {"disk.img.gz", gzipped(t, disk, 1), "raw.gz"},
		{"disk.vhd.gz", gzipped(t, fixed, 1), "vhd.gz"}, {"vm.ova", archived(t, guest), "ova"}, {"vm.tar", archived(t, guest), "ova"},
		// The service refuses these, by the name if that says anything.
		{"disk.qcow2", qcow2[:50], "qcow2"}, {"empty", nil, "raw"}, {"disk.xz", []byte("\xfd7zXZ\x00\x00\x04 and so on"), "raw"},
	} {
		path := filepath.Join(t.TempDir(), tt.name)
		if err := os.WriteFile(path, tt.content, 0o600); err != nil {
			t.Fatal(err)
		}
		src, err := openSource(path)
		if err != nil {
			t.Fatal(err)
		}
		src.close()
		if got := src.declared.String(); got != tt.declared {
			t.Errorf("%s: declared as %s, want %s", tt.name, got, tt.declared)
		}
	}
}
