package diskimage

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// qemuImg runs qemu-img. It is a part of the test suite: where it is missing,
// the tests fail.
func qemuImg(t *testing.T, args ...string) []byte {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "qemu-img", args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("qemu-img %q: %v\n%s", args, err, &stderr)
	}
	return out
}

func detectFile(t *testing.T, path string) (Format, error) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return Detect(f, fi.Size())
}

// Every format that qemu-img 7.2 writes is detected as itself, with and without
// a bootable disk inside.
func TestFilesOfQemuImg(t *testing.T) {
	guest := make([]byte, 3<<20)
	copy(guest, "\xeb\x63\x90")
	copy(guest[510:], mbr)
	copy(guest[1<<20:], "data")

	for _, tt := range []struct {
		name string
		args []string // of create and convert, behind the format
		file string   // what to look at, if not the image itself
		want Format
	}{
		{name: "raw", want: Raw},
		{name: "qcow2", want: QCOW2},
		{name: "qcow2", args: []string{"-o", "compat=0.10"}, want: QCOW2},
		{name: "qcow2", args: []string{"-o", "extended_l2=on,cluster_size=128k"}, want: QCOW2},
		{name: "qcow", want: QCOW},
		{name: "vmdk", args: []string{"-o", "subformat=monolithicSparse"}, want: VMDK},
		{name: "vmdk", args: []string{"-o", "subformat=streamOptimized"}, want: VMDK},
		{name: "vmdk", args: []string{"-o", "subformat=twoGbMaxExtentSparse"}, want: VMDKText},
		{name: "vmdk", args: []string{"-o", "subformat=twoGbMaxExtentSparse"}, file: "image-s001.vmdk", want: VMDK},
		{name: "vmdk", args: []string{"-o", "subformat=monolithicFlat"}, want: VMDKText},
		{name: "vmdk", args: []string{"-o", "subformat=monolithicFlat"}, file: "image-flat.vmdk", want: Raw},
		{name: "vmdk", args: []string{"-o", "subformat=twoGbMaxExtentFlat"}, want: VMDKText},
		{name: "vmdk", args: []string{"-o", "subformat=twoGbMaxExtentFlat"}, file: "image-f001.vmdk", want: Raw},
		{name: "vpc", args: []string{"-o", "subformat=dynamic"}, want: VHD},
		{name: "vpc", args: []string{"-o", "subformat=fixed"}, want: VHD},
		{name: "vpc", args: []string{"-o", "subformat=fixed,force_size=on"}, want: VHD},
		{name: "vhdx", args: []string{"-o", "subformat=dynamic"}, want: VHDX},
		{name: "vhdx", args: []string{"-o", "subformat=fixed"}, want: VHDX},
		{name: "vdi", want: VDI},
		{name: "vdi", args: []string{"-o", "static=on"}, want: VDI},
		{name: "qed", want: QED},
		{name: "parallels", want: Parallels},
		{name: "luks", args: []string{"--object", "secret,id=key,data=passphrase", "-o", "key-secret=key,iter-time=10"}, want: LUKS},
	} {
		name := tt.name
		for _, a := range tt.args {
			name += " " + a
		}
		for _, from := range []string{"create", "convert"} {
			t.Run(from+" "+name+" "+tt.file, func(t *testing.T) {
				t.Parallel()
				dir := t.TempDir()
				image := filepath.Join(dir, "image."+tt.name)
				switch from {
				case "create":
					qemuImg(t, append(append([]string{"create", "-q", "-f", tt.name}, tt.args...), image, "3M")...)
				case "convert":
					source := filepath.Join(dir, "guest")
					if err := os.WriteFile(source, guest, 0o600); err != nil {
						t.Fatal(err)
					}
					qemuImg(t, append(append([]string{"convert", "-f", "raw", "-O", tt.name}, tt.args...), source, image)...)
				}
				if tt.file != "" {
					image = filepath.Join(dir, tt.file)
				}
				if got, err := detectFile(t, image); err != nil || got != tt.want {
					t.Errorf("Detect = %q, %v; want %q", got, err, tt.want)
				}
			})
		}
	}
}

// What qemu would guess to be an image is never raw to us: a later reader that
// lets qemu guess must not find more in a disk than we did.
func TestQemuGuessesNoMoreThanWe(t *testing.T) {
	for _, tt := range samples {
		if tt.want != Raw {
			continue
		}
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "disk")
			if err := os.WriteFile(path, tt.data, 0o600); err != nil {
				t.Fatal(err)
			}
			var info struct {
				Format string `json:"format"`
			}
			if err := json.Unmarshal(qemuImg(t, "info", "--output=json", path), &info); err != nil {
				t.Fatal(err)
			}
			if info.Format != "raw" {
				t.Errorf("qemu guesses %q", info.Format)
			}
		})
	}
}
