package dirstore

import (
	"os"
	"path/filepath"
	"testing"

	"vmimport/internal/fault"
)

func TestCheck(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for root, code := range map[string]string{
		dir:                                   "",
		filepath.Join(dir, "{project}"):       "",
		filepath.Join(dir, "p-{project}/x"):   "",
		filepath.Join(dir, "missing"):         "object_directory_missing",
		filepath.Join(dir, "no/p-{project}"):  "object_directory_missing",
		file:                                  "object_directory_is_none",
		filepath.Join(file, "below"):          "object_directory_is_none",
		filepath.Join(file, "below{project}"): "object_directory_is_none",
	} {
		s, err := New(root)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Check(t.Context()); fault.CodeOf(err) != code {
			t.Errorf("%s: %v, want %q", root, err, code)
		}
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("something was made: %v, %v", entries, err)
	}
}
