package encode_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"vmimport/internal/diskimage/encode"
	"vmimport/internal/diskimage/imagetest"
)

// TestQemuReads has qemu-img check and compare images of disks as guests leave them, and of
// some that end at the edges of grains, clusters and tables.
func TestQemuReads(t *testing.T) {
	t.Parallel()
	guests := imagetest.Guests(t)
	dir := t.TempDir()
	for i, size := range []int64{512, 64*kib + 512, 32 * mib, 33*mib + 512} {
		path := filepath.Join(dir, fmt.Sprint(size))
		disk := mixed(rand.New(rand.NewPCG(uint64(i), 3)), size)
		if err := os.WriteFile(path, disk, 0o600); err != nil {
			t.Fatal(err)
		}
		guests = append(guests, imagetest.Guest{Name: fmt.Sprint(size), Path: path})
	}
	for _, form := range []encode.Form{encode.VMDK, encode.QCOW2} {
		for _, g := range guests {
			t.Run(fmt.Sprintf("%s/%s", form, g.Name), func(t *testing.T) {
				t.Parallel()
				disk, err := os.ReadFile(g.Path)
				if err != nil {
					t.Fatal(err)
				}
				path := filepath.Join(t.TempDir(), "image")
				file := run{form: form, pieces: mib}.encoded(t, disk)
				if err := os.WriteFile(path, file, 0o600); err != nil {
					t.Fatal(err)
				}
				qemuChecks(t, form, path, int64(len(disk)))
				imagetest.QemuImg(t, "compare", "-f", "raw", "-F", string(form), g.Path, path)
			})
		}
	}
}

// qemuChecks has qemu-img look for errors and leaks, and at the size of the disk.
func qemuChecks(t testing.TB, form encode.Form, path string, size int64) {
	t.Helper()
	var report struct {
		Errors  int64 `json:"check-errors"`
		Corrupt int64 `json:"corruptions"`
		Leaks   int64 `json:"leaks"`
	}
	out := imagetest.QemuImg(t, "check", "-f", string(form), "--output=json", path)
	if err := json.Unmarshal(out, &report); err != nil {
		t.Fatal(err)
	}
	if report.Errors != 0 || report.Corrupt != 0 || report.Leaks != 0 {
		t.Fatalf("qemu-img check: %s", out)
	}
	var info struct {
		Size     int64 `json:"virtual-size"`
		Specific struct {
			Data struct {
				CreateType string `json:"create-type"`
				Compat     string `json:"compat"`
			} `json:"data"`
		} `json:"format-specific"`
	}
	out = imagetest.QemuImg(t, "info", "-f", string(form), "--output=json", path)
	if err := json.Unmarshal(out, &info); err != nil {
		t.Fatal(err)
	}
	data := info.Specific.Data
	if info.Size != size || form == encode.VMDK && data.CreateType != "streamOptimized" || form == encode.QCOW2 && data.Compat != "1.1" {
		t.Fatalf("qemu-img info: %s", out)
	}
}

// TestGunzipReads unpacks with the program that most will use.
func TestGunzipReads(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(4, 4))
	for _, size := range []int64{0, 1, mib, 3*mib + 5} {
		disk := mixed(rng, size)
		file := run{form: encode.Gzip, pieces: 100 * kib, cuts: []int64{size / 3, size / 2}, resume: true}.encoded(t, disk)
		cmd := exec.CommandContext(t.Context(), "gunzip", "-c")
		cmd.Stdin = bytes.NewReader(file)
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("gunzip of %d bytes: %v", size, err)
		}
		same(t, "what gunzip unpacks", out, disk)
		same(t, "what we unpack", decoded(t, encode.Gzip, file), disk)
	}
}
