package dirimages

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
	root := filepath.Join(dir, "images")
	if err := os.Mkdir(root, 0o700); err != nil {
		t.Fatal(err)
	}
	for path, code := range map[string]string{
		root:                        "",
		filepath.Join(root, "a/b"):  "", // could be made
		file:                        "image_directory_unusable",
		filepath.Join(file, "x"):    "image_directory_unusable",
		"/proc/self/no/such/images": "image_directory_unusable", // where nobody can make anything
	} {
		if err := Check(t.Context(), path); fault.CodeOf(err) != code {
			t.Errorf("%s: %v, want %q", path, err, code)
		}
	}
	for _, dir := range []string{dir, root} {
		for _, e := range must(os.ReadDir(dir)) {
			if e.Name() != "file" && e.Name() != "images" {
				t.Errorf("Check left %s", e.Name())
			}
		}
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
