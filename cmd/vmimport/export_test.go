package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"vmimport/internal/client"
)

// last runs a command that ends well, and returns its last JSON document.
func last[T any](s *standalone, args ...string) *T {
	s.t.Helper()
	code, stdout, stderr := s.client(append(args, "--json")...)
	if code != 0 {
		s.t.Fatalf("%q: %d %s%s", args, code, stdout, stderr)
	}
	lines := strings.Split(strings.TrimSpace(stdout), "\n")
	doc := new(T)
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), doc); err != nil {
		s.t.Fatalf("%q: %s: %v", args, stdout, err)
	}
	return doc
}

// An image is exported in each form, and each can be imported again.
func TestStandaloneExport(t *testing.T) {
	t.Parallel()
	s := startStandalone(t, t.TempDir())
	disk := make([]byte, 5<<20) // with holes, and in places what does not compress
	random := rand.NewChaCha8([32]byte{1})
	for _, at := range []int{0, 2 << 20, len(disk) - 70<<10} {
		_, _ = random.Read(disk[at : at+70<<10]) // never fails
	}
	path := filepath.Join(t.TempDir(), "web01.raw")
	if err := os.WriteFile(path, disk, 0o600); err != nil {
		t.Fatal(err)
	}
	original := last[client.Import](s, "push", path, "--os-type", "ubuntu", "--min-ram", "512", "--min-disk", "1")

	for _, tt := range []struct {
		purpose string
		objects string
		args    []string // for the import of what must be told again
	}{
		{"cloud", "web01.img.gz web01.json", nil},
		{"vmware", "web01.vmdk web01.ovf web01.mf", []string{"--os-type", "ubuntu"}},
		{"kvm", "web01.qcow2", []string{"--os-type", "ubuntu"}},
	} {
		container := "backup for " + tt.purpose // which has to be made
		e := last[client.Export](s, "export", original.ID, "--to", container, "--for", tt.purpose, "--wait")
		var names []string
		for _, o := range e.Extra.Objects {
			names = append(names, o.Name)
		}
		if got := strings.Join(names, " "); got != tt.objects || e.ImageID != original.ID || e.ImageName != "web01" || e.Extra.VirtualSize != int64(len(disk)) {
			t.Errorf("exported as %+v", e)
			continue
		}
		args := append([]string{"import", "--container", container, "--object", names[0], "--wait"}, tt.args...)
		if e.Extra.Checksum != "" {
			args = append(args, "--checksum", e.Extra.Checksum)
		}
		imp := last[client.Import](s, args...)
		if imp.ID == original.ID || imp.Name != "web01" {
			t.Errorf("imported for %s as %+v", tt.purpose, imp)
		}
		if got, err := os.ReadFile(filepath.Join(s.data, "images", imp.ID, "disk-1.raw")); err != nil || !bytes.Equal(got, disk) {
			t.Errorf("the disk that was exported for %s: %d bytes, not equal: %v", tt.purpose, len(got), err)
		}
		billing := cmp.Or(imp.BillingInfo, &client.Billing{})
		if tt.purpose == "cloud" && (imp.MinRAM != "512" || imp.MinDisk != "1" || cmp.Or(imp.OSType, billing.OSType) != "ubuntu" || e.Extra.Checksum == "") {
			t.Errorf("imported as %+v with %+v", imp, billing)
		}
	}

	code, _, stderr := s.client("export", original.ID, "--to", "backup for cloud")
	if code != 1 || !strings.Contains(stderr, "code 40009") {
		t.Errorf("a second export: %d %s", code, stderr)
	}
	code, stdout, _ := s.client("export", "list", "--long")
	if n := strings.Count(stdout, "succeeded"); code != 0 || n != 3 {
		t.Errorf("list: %d %s", code, stdout)
	}
}
