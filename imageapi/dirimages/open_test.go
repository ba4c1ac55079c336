package dirimages_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"vmimport/imageapi"
	"vmimport/internal/fault"
	"vmimport/storage"
)

var _ storage.Object = imageapi.File(nil)

// stocked returns an image of those bytes, and its directory.
func stocked(t *testing.T, b []byte) (imageapi.Images, string) {
	t.Helper()
	root := t.TempDir()
	images := open(t, root)
	publish(t, begin(t, images, spec(importID, 1), b), imageapi.DiskFacts{VirtualSize: int64(len(b))})
	return images, filepath.Join(root, imageID)
}

func openFile(t *testing.T, images imageapi.Images) imageapi.File {
	t.Helper()
	f, err := images.Open(t.Context(), imageID)
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	return f
}

func readRange(ctx context.Context, f imageapi.File, off, n int64) ([]byte, error) {
	body, err := f.ReadRange(ctx, off, n)
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(body)
	return b, errors.Join(err, body.Close())
}

// edit changes the record of an image.
func edit(t *testing.T, dir string, change map[string]any) {
	t.Helper()
	name := filepath.Join(dir, "image.json")
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	var record map[string]any
	if err := json.Unmarshal(b, &record); err != nil {
		t.Fatal(err)
	}
	maps.Copy(record, change)
	if b, err = json.Marshal(record); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// A file is ErrGone whatever becomes of it, but not if only its names or rights change.
func TestOpenPinned(t *testing.T) {
	t.Parallel()
	const size = 300_000
	old, other := bytes.Repeat([]byte("old!"), size/4), bytes.Repeat([]byte("new!"), size/4)
	for name, tt := range map[string]struct {
		change func(dir, disk string) error
		gone   bool
	}{
		"nothing":         {func(string, string) error { return nil }, false},
		"another link":    {func(dir, disk string) error { return os.Link(disk, dir+".link") }, false},
		"other rights":    {func(_, disk string) error { return os.Chmod(disk, 0o600) }, false},
		"another record":  {func(dir, _ string) error { return os.Remove(filepath.Join(dir, "image.json")) }, false},
		"file removed":    {func(_, disk string) error { return os.Remove(disk) }, true},
		"removed":         {func(dir, _ string) error { return os.RemoveAll(dir) }, true},
		"renamed":         {func(dir, _ string) error { return os.Rename(dir, dir+".old") }, true},
		"in its place":    {func(_, disk string) error { return replace(disk, other) }, true},
		"the same again":  {func(_, disk string) error { return replace(disk, old) }, true},
		"overwritten":     {func(_, disk string) error { return os.WriteFile(disk, other, 0o600) }, true},
		"shorter":         {func(_, disk string) error { return os.Truncate(disk, size-1) }, true},
		"empty":           {func(_, disk string) error { return os.Truncate(disk, 0) }, true},
		"longer":          {func(_, disk string) error { return os.Truncate(disk, size+1) }, true},
		"a file for it":   {func(dir, _ string) error { return errors.Join(os.RemoveAll(dir), os.WriteFile(dir, old, 0o600)) }, true},
		"a directory":     {func(_, disk string) error { return errors.Join(os.Remove(disk), os.Mkdir(disk, 0o700)) }, true},
		"of another time": {func(_, disk string) error { return os.Chtimes(disk, time.Time{}, time.Unix(1, 0)) }, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			images, dir := stocked(t, old)
			f := openFile(t, images)
			body, err := f.ReadRange(t.Context(), 0, size)
			if err != nil {
				t.Fatal(err)
			}
			defer body.Close()
			head := make([]byte, 1000)
			if _, err := io.ReadFull(body, head); err != nil {
				t.Fatal(err)
			}
			if err := tt.change(dir, filepath.Join(dir, "disk-1.raw")); err != nil {
				t.Fatal(err)
			}
			got, err := readRange(t.Context(), f, 0, 500)
			if tt.gone != errors.Is(err, imageapi.ErrGone) || err == nil && !bytes.Equal(got, old[:500]) {
				t.Errorf("a range: %.10q, %v", got, err)
			}
			// What was opened before may come to its end, with the old bytes.
			rest, err := io.ReadAll(body)
			if err != nil && !errors.Is(err, imageapi.ErrGone) || err == nil && !bytes.Equal(append(head, rest...), old) {
				t.Errorf("the rest of a range: %d bytes, %v", len(rest), err)
			}
		})
	}
}

// replace puts another file in the place of one.
func replace(name string, b []byte) error {
	if err := os.WriteFile(name+".new", b, 0o600); err != nil {
		return err
	}
	return os.Rename(name+".new", name)
}

// What is in the directory of an image may have been put there by anybody who can.
func TestOpenOddImages(t *testing.T) {
	t.Parallel()
	write := func(name, text string) func(*testing.T, string) {
		return func(t *testing.T, dir string) {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	record := func(name string, value any) func(*testing.T, string) {
		return func(t *testing.T, dir string) { edit(t, dir, map[string]any{name: value}) }
	}
	remove := func(name string) func(*testing.T, string) {
		return func(t *testing.T, dir string) {
			if err := os.Remove(filepath.Join(dir, name)); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, tt := range map[string]struct {
		change func(*testing.T, string)
		code   string
	}{
		"as it is":            {func(*testing.T, string) {}, ""},
		"a second disk":       {write("disk-2.raw", "x"), "image_has_several_disks"},
		"without a record":    {remove("image.json"), "image_not_found"},
		"without a disk":      {remove("disk-1.raw"), "image_not_found"},
		"of another format":   {record("disk_format", "qcow2"), "image_not_found"},
		"of a format outside": {record("disk_format", "raw/../../../image"), "image_not_found"},
		"no JSON":             {write("image.json", "{"), "image_store_failed"},
		"an odd member":       {record("min_disk", "much"), "image_store_failed"},
		"too long a record":   {record("p", strings.Repeat("p", imageapi.MaxRecordBytes)), "image_record_too_large"},
		"far too long":        {record("p", strings.Repeat("p", 2<<20)), "image_store_failed"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			images, dir := stocked(t, []byte("disk"))
			tt.change(t, dir)
			f, err := images.Open(t.Context(), imageID)
			if fault.CodeOf(err) != tt.code || (f == nil) != (err != nil) {
				t.Errorf("Open = %v, %v; want %q", f, err, tt.code)
			}
		})
	}
}

// A disk that is a link is followed within its image, and not out of it.
func TestOpenLinks(t *testing.T) {
	t.Parallel()
	images, dir := stocked(t, []byte("disk"))
	secret := filepath.Join(t.TempDir(), "secret")
	disk := filepath.Join(dir, "disk-1.raw")
	if err := errors.Join(os.WriteFile(secret, []byte("secret"), 0o600), os.Remove(disk), os.Symlink(secret, disk)); err != nil {
		t.Fatal(err)
	}
	if f, err := images.Open(t.Context(), imageID); err == nil {
		t.Errorf("Open followed a link out of the directory to %d bytes", f.Size())
	}
}

// What is known of the file's hash is what its record says, and a QCOW2 is a file as any.
func TestOpenFacts(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	images := open(t, root)
	s := spec(importID, 1)
	s.Format, s.WellKnown = "qcow2", map[string]string{"hw_firmware_type": "uefi"}
	publish(t, begin(t, images, s, []byte("disk")), imageapi.DiskFacts{VirtualSize: 1 << 30, Properties: map[string]string{"sha256": "of the source"}})
	if f := openFile(t, images).Facts(); f.Hash != "" || f.HashName != "" || f.Format != "qcow2" || f.Owner != "project" || !bytes.Contains(f.Record, []byte(`"hw_firmware_type":"uefi"`)) {
		t.Errorf("got %+v with record %s", f, f.Record)
	}
	sum := strings.Repeat("0f", 32)
	edit(t, filepath.Join(root, imageID), map[string]any{"os_hash_algo": "sha256", "os_hash_value": sum})
	f := openFile(t, images)
	if got := f.Facts(); got.Hash != sum || got.HashName != "sha256" {
		t.Errorf("got %+v", got)
	}
	if got, err := readRange(t.Context(), f, 0, 4); err != nil || string(got) != "disk" || f.Size() != 4 {
		t.Errorf("%q, %v", got, err)
	}
}

// All that an export does.
func TestOpenFetch(t *testing.T) {
	t.Parallel()
	b := bytes.Repeat([]byte("0123456789"), 300_001)
	images, _ := stocked(t, b)
	f := openFile(t, images)
	got := make([]byte, len(b))
	if _, err := storage.Fetch(t.Context(), f, storage.Options{Pool: storage.NewPool(4<<20, 64<<10)}, func(off int64, p []byte) error {
		copy(got[off:], p)
		return nil
	}); err != nil || !bytes.Equal(got, b) {
		t.Errorf("%v", err)
	}
	if err := images.Remove(t.Context(), importID, imageID); err != nil {
		t.Fatal(err)
	}
	_, err := storage.Fetch(t.Context(), f, storage.Options{Pool: storage.NewPool(4<<20, 64<<10)})
	if !errors.Is(err, imageapi.ErrGone) {
		t.Errorf("of a removed image: %v", err)
	}
}
