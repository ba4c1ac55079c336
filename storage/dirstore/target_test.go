package dirstore_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"vmimport/storage"
	"vmimport/storage/dirstore"
	"vmimport/storage/storagetest"
)

func TestTargetConformance(t *testing.T) {
	t.Parallel()
	for name, layout := range map[string]string{"shared": "objects", "per project": "AUTH_{project}/objects"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			storagetest.RunTarget(t, func(t *testing.T) storagetest.TargetSubject {
				return targetSubject(t, filepath.Join(t.TempDir(), layout))
			})
		})
	}
}

func targetSubject(t *testing.T, root string) storagetest.TargetSubject {
	store := must(dirstore.New(root))(t)
	makeContainer := func(name string) {
		t.Helper()
		if err := store.MakeContainer("p1", name); err != nil {
			t.Fatal(err)
		}
	}
	makeContainer("images")
	dir := strings.Replace(root, "{project}", "p1", 1)
	return storagetest.TargetSubject{
		Target:        store,
		Another:       func(t *testing.T) storage.Target { return must(dirstore.New(root))(t) },
		Project:       "p1",
		Container:     "images",
		MakeContainer: makeContainer,
		Put: func(name string, content []byte) {
			t.Helper()
			if err := put(t, store, name, string(content)); err != nil {
				t.Fatal(err)
			}
		},
		Read: func(name string) ([]byte, bool) {
			b, err := os.ReadFile(filepath.Join(dir, "images", name))
			return b, err == nil
		},
		RemovePart: func(up storage.Upload, name string, number int) {
			t.Helper()
			records := must(filepath.Glob(filepath.Join(dir, up.Container, ".vmimport-upload-*"+up.ID, fmt.Sprintf("part-%04d-*", number))))(t)
			if len(records) != 1 || os.Remove(records[0]) != nil {
				t.Fatalf("part %d: %q", number, records)
			}
		},
		Leftovers: func() []string { return must(filepath.Glob(filepath.Join(dir, "*", ".vmimport-*")))(t) },
	}
}
