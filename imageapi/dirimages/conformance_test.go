package dirimages_test

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"vmimport/imageapi"
	"vmimport/imageapi/dirimages"
	"vmimport/imageapi/imageapitest"
)

func open(t *testing.T, root string) *dirimages.Images {
	t.Helper()
	images, err := dirimages.New(root, dirimages.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { images.Close() })
	return images
}

func TestConformance(t *testing.T) {
	imageapitest.Run(t, func(t *testing.T) imageapitest.Service {
		root := t.TempDir()
		return imageapitest.Service{
			Images:    open(t, root),
			Another:   func(t *testing.T) imageapi.Images { return open(t, root) },
			ReadDisk:  func(t *testing.T, imageID string, n int) []byte { return readDisk(t, root, imageID, n) },
			Leftovers: func(t *testing.T, _ string) []string { return leftovers(t, root) },
		}
	})
}

func readDisk(t *testing.T, root, imageID string, n int) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root, imageID, fmt.Sprintf("disk-%d.raw", n)))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// leftovers lists what is in the staging directory, and what in an image is
// neither its record nor a disk.
func leftovers(t *testing.T, root string) []string {
	t.Helper()
	var left []string
	err := fs.WalkDir(os.DirFS(root), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		ok, _ := filepath.Match("*/disk-[1-9].raw", name)
		if !ok && name != "." && name != ".staging" && filepath.Base(name) != "image.json" && (!d.IsDir() || name[0] == '.') {
			left = append(left, name)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return left
}
