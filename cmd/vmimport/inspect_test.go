package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"vmimport/internal/cli"
	"vmimport/internal/diskimage/imagetest"
)

// An object is the same to inspect as the file that it was, and is read by ranges
// of the service's own object API.
func TestInspectLocation(t *testing.T) {
	t.Parallel()
	s := startStandalone(t, t.TempDir())
	disk := make([]byte, 3<<20)
	copy(disk, imagetest.BootSector(2048, 4096))
	raw := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(raw, disk, 0o600); err != nil {
		t.Fatal(err)
	}
	look := func(name string) map[string]any {
		code, stdout, stderr := s.client("inspect", name, "--json")
		var report map[string]any
		if err := json.Unmarshal([]byte(stdout), &report); err != nil || code != cli.ExitOK || stderr != "" {
			t.Fatalf("inspect %s: %d %s%v", name, code, stderr, err)
		}
		return report
	}
	for _, format := range []string{"qcow2", "vmdk"} {
		file := imagetest.Convert(t, raw, format, "")
		code, stdout, stderr := s.client("upload", file, "--object", "my disks/100%."+format, "--json", "--quiet")
		var stored struct{ Location string }
		lines := strings.Split(strings.TrimSpace(stdout), "\n")
		if err := json.Unmarshal([]byte(lines[len(lines)-1]), &stored); code != 0 || err != nil {
			t.Fatalf("upload: %d %s %v", code, stderr, err)
		}
		want, got := look(file), look(stored.Location)
		if got["location"] != stored.Location || got["file"] != nil {
			t.Errorf("the report is on %v, %v", got["location"], got["file"])
		}
		delete(want, "file")
		delete(got, "location")
		if !reflect.DeepEqual(got, want) {
			t.Errorf("object %v\nfile   %v", got, want)
		}
		code, _, stderr = s.client("inspect", stored.Location+".missing")
		if code != cli.ExitError || !strings.Contains(stderr, "HTTP 404") {
			t.Errorf("a missing object: %d %s", code, stderr)
		}
	}
}
