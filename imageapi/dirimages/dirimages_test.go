package dirimages_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"vmimport/imageapi"
	"vmimport/imageapi/dirimages"
	"vmimport/internal/fault"
)

const (
	imageID  = "6f0b1c2d-3e4f-4a6b-8c8d-9e0f1a2b3c4d"
	importID = "0d9c7b5a-1111-4222-8333-444455556666"
)

func spec(importID string, attempt int64) imageapi.Spec {
	return imageapi.Spec{ImageID: imageID, ImportID: importID, Attempt: attempt, Format: "raw", Owner: "project"}
}

// begin begins, writes b as disk 1 and closes the disk.
func begin(t *testing.T, images *dirimages.Images, spec imageapi.Spec, b []byte) imageapi.Upload {
	t.Helper()
	u, err := images.Begin(t.Context(), spec)
	if err != nil {
		t.Fatalf("Begin: %v", err)
	}
	t.Cleanup(func() { u.Close() })
	w, _, err := u.Disk(t.Context(), imageapi.DiskSpec{Number: 1, Size: int64(len(b))})
	if err != nil {
		t.Fatalf("Disk: %v", err)
	}
	if _, err := w.WriteAt(b, 0); err != nil {
		t.Fatalf("WriteAt: %v", err)
	}
	if err := w.Close(); err != nil {
		t.Fatalf("Close: %v", err)
	}
	return u
}

func publish(t *testing.T, u imageapi.Upload, facts ...imageapi.DiskFacts) {
	t.Helper()
	if err := u.Publish(t.Context(), facts); err != nil {
		t.Fatalf("Publish: %v", err)
	}
	if err := u.Close(); err != nil {
		t.Fatalf("Close: %v", err)
	}
}

func TestRecord(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	now := time.Date(2026, 5, 6, 7, 8, 9, 10, time.FixedZone("JST", 9*3600))
	images, err := dirimages.New(root, dirimages.Options{Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	defer images.Close()

	u := begin(t, images, imageapi.Spec{
		ImageID: imageID, ImportID: importID, Attempt: 3,
		Name: "web <01>", Owner: "6f0b1c2d", Format: "qcow2", MinRAM: 512, MinDisk: 20, OSType: "centos",
		CreatedAt:  time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
		Properties: map[string]string{"vmimport_request_id": "req-1", "status": "killed", "vmimport_import_id": "another"},
	}, make([]byte, 1000))
	publish(t, u, imageapi.DiskFacts{VirtualSize: 4096, Properties: map[string]string{"sha1": "da39a3ee", "format": "raw"}})

	var got map[string]any
	b, err := os.ReadFile(filepath.Join(root, imageID, "image.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &got); err != nil {
		t.Fatal(err)
	}
	want := map[string]any{
		"id": imageID, "name": "web <01>", "status": "active", "visibility": "private",
		"owner": "6f0b1c2d", "protected": false, "os_hidden": false,
		"disk_format": "qcow2", "container_format": "bare",
		"size": 1000.0, "virtual_size": 4096.0, "min_ram": 512.0, "min_disk": 20.0, "os_type": "centos",
		"created_at": "2026-01-02T03:04:05Z", "updated_at": "2026-05-05T22:08:09Z",
		"self": "/v2/images/" + imageID, "file": "/v2/images/" + imageID + "/file", "schema": "/v2/schemas/image",
		"vmimport_import_id": importID, "vmimport_request_id": "req-1",
		"vmimport_disk_1_sha1": "da39a3ee", "vmimport_disk_1_format": "raw", "vmimport_disk_1_virtual_size": "4096",
	}
	tags, _ := got["tags"].([]any)
	if tags == nil || len(tags) != 0 {
		t.Errorf("tags = %v, want an empty list", got["tags"])
	}
	delete(got, "tags")
	if !maps.Equal(got, want) {
		t.Errorf("record:\n%s\nwant:\n%v", b, want)
	}
	if entries := names(t, filepath.Join(root, imageID)); !slices.Equal(entries, []string{"disk-1.qcow2", "image.json"}) {
		t.Errorf("the image has %q", entries)
	}
}

func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return list
}

func TestZerosTakeNoSpace(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	images := open(t, root)
	b := make([]byte, 64<<20)
	copy(b[10<<20+4095:], "xy") // the last byte of a block, and the first of the next
	copy(b[40<<20:], "z")
	publish(t, begin(t, images, spec(importID, 1), b), imageapi.DiskFacts{VirtualSize: int64(len(b))})

	fi, err := os.Stat(filepath.Join(root, imageID, "disk-1.raw"))
	if err != nil {
		t.Fatal(err)
	}
	if fi.Size() != int64(len(b)) {
		t.Errorf("size %d", fi.Size())
	}
	if used := fi.Sys().(*syscall.Stat_t).Blocks * 512; used > 128<<10 {
		t.Errorf("3 blocks of data take %d bytes", used)
	}
	if !bytes.Equal(readDisk(t, root, imageID, 1), b) {
		t.Error("the disk differs")
	}
}

func TestBadRequests(t *testing.T) {
	t.Parallel()
	images := open(t, t.TempDir())
	for _, id := range []string{"", ".", "..", ".staging", ".x", "-x", "a/b", "../x", "/etc", "a\x00", "a\n", "ä", strings.Repeat("a", 129)} {
		if _, err := images.Begin(t.Context(), imageapi.Spec{ImageID: id, ImportID: importID, Attempt: 1, Format: "raw"}); fault.KindOf(err) != fault.Invalid {
			t.Errorf("image id %q: Begin: %v", id, err)
		}
		if _, err := images.Begin(t.Context(), imageapi.Spec{ImageID: imageID, ImportID: id, Attempt: 1, Format: "raw"}); fault.KindOf(err) != fault.Invalid {
			t.Errorf("import id %q: Begin: %v", id, err)
		}
		if err := images.Remove(t.Context(), id, imageID); fault.KindOf(err) != fault.Invalid {
			t.Errorf("import id %q: Remove: %v", id, err)
		}
		if err := images.Remove(t.Context(), importID, id); fault.KindOf(err) != fault.Invalid {
			t.Errorf("image id %q: Remove: %v", id, err)
		}
	}
	if _, err := images.Begin(t.Context(), imageapi.Spec{ImageID: imageID, ImportID: importID, Attempt: 1, Format: "raw/x"}); fault.KindOf(err) != fault.Invalid {
		t.Errorf("format: Begin: %v", err)
	}
	if _, err := images.Begin(t.Context(), spec(importID, 0)); err == nil {
		t.Error("Begin of attempt 0 succeeds")
	}

	u := begin(t, images, spec(importID, 1), make([]byte, 512))
	for _, d := range []struct{ n, size, resume int64 }{{0, 512, 0}, {65, 512, 0}, {2, 0, 0}, {2, -1, 0}, {2, 512, -1}, {1, 512, 0}} {
		if _, _, err := u.Disk(t.Context(), imageapi.DiskSpec{Number: int(d.n), Size: d.size, Resume: d.resume}); err == nil {
			t.Errorf("Disk(%d, %d, %d) succeeds", d.n, d.size, d.resume)
		}
	}
	for i, off := range []int64{-1, 511, 512, 1 << 62} {
		w, _, err := u.Disk(t.Context(), imageapi.DiskSpec{Number: 10 + i, Size: 512})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.WriteAt([]byte("xx"), off); err == nil {
			t.Errorf("WriteAt(%d) succeeds", off)
		}
		if err := w.Close(); err == nil {
			t.Errorf("Close succeeds after a write at %d", off)
		}
	}
	u.Close()
	if _, _, err := u.Disk(t.Context(), imageapi.DiskSpec{Number: 2, Size: 512}); err == nil {
		t.Error("Disk after Close succeeds")
	}
	if err := u.Publish(t.Context(), make([]imageapi.DiskFacts, 1)); err == nil {
		t.Error("Publish after Close succeeds")
	}
}

// A file or directory of an operator's is no image, and is not touched.
func TestStrangersInTheDirectory(t *testing.T) {
	t.Parallel()
	for name, place := range map[string]func(path string) error{
		"file":            func(p string) error { return os.WriteFile(p, []byte("mine"), 0o600) },
		"directory":       func(p string) error { return os.MkdirAll(filepath.Join(p, "mine"), 0o700) },
		"link to outside": func(p string) error { return os.Symlink(os.TempDir(), p) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			root := t.TempDir()
			images := open(t, root)
			u := begin(t, images, spec(importID, 1), make([]byte, 512))
			stranger := filepath.Join(root, imageID)
			if err := place(stranger); err != nil {
				t.Fatal(err)
			}
			if img, err := images.Get(t.Context(), imageID); err == nil {
				t.Errorf("Get = %v", img)
			}
			if err := u.Publish(t.Context(), make([]imageapi.DiskFacts, 1)); err == nil {
				t.Error("Publish succeeds")
			}
			u.Close()
			_ = images.Remove(t.Context(), importID, imageID)
			if _, err := os.Lstat(stranger); err != nil {
				t.Errorf("it is gone: %v", err)
			}
		})
	}
}

// An empty directory of the image's name is what a Remove leaves that was
// killed before its last step.
func TestPublishOverEmptyDirectory(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	images := open(t, root)
	if err := os.Mkdir(filepath.Join(root, imageID), 0o700); err != nil {
		t.Fatal(err)
	}
	publish(t, begin(t, images, spec(importID, 1), make([]byte, 512)), imageapi.DiskFacts{VirtualSize: 512})
	if _, err := images.Get(t.Context(), imageID); err != nil {
		t.Errorf("Get: %v", err)
	}
}

// Remove was killed after each of its steps; the next one ends the work, and
// only if it is of the same import.
func TestRemoveInterrupted(t *testing.T) {
	steps := []func(dir string) error{
		func(dir string) error {
			return os.Rename(filepath.Join(dir, "image.json"), filepath.Join(dir, ".removed.json"))
		},
		func(dir string) error { return os.Remove(filepath.Join(dir, "disk-1.raw")) },
		func(dir string) error { return os.Remove(filepath.Join(dir, ".removed.json")) },
		func(dir string) error { return os.Remove(dir) },
	}
	for done := range len(steps) + 1 {
		t.Run(string(rune('0'+done)), func(t *testing.T) {
			t.Parallel()
			root := t.TempDir()
			images := open(t, root)
			publish(t, begin(t, images, spec(importID, 1), []byte("disk")), imageapi.DiskFacts{VirtualSize: 512})
			dir := filepath.Join(root, imageID)
			for _, step := range steps[:done] {
				if err := step(dir); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := images.Get(t.Context(), imageID); (err == nil) != (done == 0) {
				t.Errorf("Get after %d steps: %v", done, err)
			}
			if err := images.Remove(t.Context(), "another", imageID); err != nil {
				t.Errorf("Remove by another import: %v", err)
			}
			if _, err := os.Stat(dir); err != nil && done < 3 {
				t.Errorf("another import has removed it: %v", err)
			}
			if err := images.Remove(t.Context(), importID, imageID); err != nil {
				t.Errorf("Remove: %v", err)
			}
			if left := names(t, root); !slices.Equal(left, []string{".staging"}) {
				t.Errorf("left: %q", left)
			}
		})
	}
}

// A worker was killed in Publish, before the rename. The next attempt begins
// with what is there, whatever it is.
func TestPublishInterrupted(t *testing.T) {
	b := bytes.Repeat([]byte("data"), 4096)
	for name, damage := range map[string]func(dir string) error{
		"record written":  func(dir string) error { return os.WriteFile(filepath.Join(dir, "image.json"), []byte("{}"), 0o600) },
		"record half":     func(dir string) error { return os.WriteFile(filepath.Join(dir, ".new"), []byte(`{"id`), 0o600) },
		"draft removed":   func(dir string) error { return os.Remove(filepath.Join(dir, ".draft.json")) },
		"draft empty":     func(dir string) error { return os.Truncate(filepath.Join(dir, ".draft.json"), 0) },
		"disk removed":    func(dir string) error { return os.Remove(filepath.Join(dir, "disk-1.raw")) },
		"disk cut":        func(dir string) error { return os.Truncate(filepath.Join(dir, "disk-1.raw"), 100) },
		"disk and record": func(dir string) error { return os.RemoveAll(dir) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			root := t.TempDir()
			images := open(t, root)
			begin(t, images, spec(importID, 1), b).Close()
			if err := damage(filepath.Join(root, ".staging", importID, "1")); err != nil {
				t.Fatal(err)
			}
			u, err := images.Begin(t.Context(), spec(importID, 2))
			if err != nil {
				t.Fatalf("Begin: %v", err)
			}
			defer u.Close()
			const reached = 8192
			w, ok, err := u.Disk(t.Context(), imageapi.DiskSpec{Number: 1, Size: int64(len(b)), Resume: reached})
			if err != nil {
				t.Fatalf("Disk: %v", err)
			}
			from := 0
			if ok {
				from = reached
			}
			if _, err := w.WriteAt(b[from:], int64(from)); err != nil {
				t.Fatalf("WriteAt: %v", err)
			}
			if err := w.Close(); err != nil {
				t.Fatalf("Close: %v", err)
			}
			publish(t, u, imageapi.DiskFacts{VirtualSize: int64(len(b))})
			if !bytes.Equal(readDisk(t, root, imageID, 1), b) {
				t.Error("the disk differs")
			}
			if left := leftovers(t, root); len(left) > 0 {
				t.Errorf("left: %q", left)
			}
		})
	}
}

// What an attempt left in one target format is of no use in another, and is
// not published with it.
func TestOtherFormatStartsAnew(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	images := open(t, root)
	begin(t, images, spec(importID, 1), make([]byte, 8192)).Close()

	qcow2 := spec(importID, 2)
	qcow2.Format = "qcow2"
	u, err := images.Begin(t.Context(), qcow2)
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	w, ok, err := u.Disk(t.Context(), imageapi.DiskSpec{Number: 1, Size: 8192, Resume: 4096})
	if err != nil || ok {
		t.Fatalf("Disk: ok %v, %v", ok, err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	publish(t, u, imageapi.DiskFacts{VirtualSize: 8192})
	if entries := names(t, filepath.Join(root, imageID)); !slices.Equal(entries, []string{"disk-1.qcow2", "image.json"}) {
		t.Errorf("the image has %q", entries)
	}
}

func TestSweep(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	images := open(t, root)
	publish(t, begin(t, images, spec("done", 1), []byte("disk")), imageapi.DiskFacts{VirtualSize: 512})
	other := func(importID, imageID string) imageapi.Spec {
		s := spec(importID, 1)
		s.ImageID = imageID
		return s
	}
	dead := begin(t, images, other("dead", "image-2"), []byte("disk"))
	begin(t, images, other("gone", "image-3"), []byte("disk")).Close()
	live := begin(t, images, other("live", "image-4"), []byte("disk"))
	if err := os.WriteFile(filepath.Join(root, ".staging", ".note"), nil, 0o600); err != nil {
		t.Fatal(err)
	}

	var asked []string
	removed, err := images.Sweep(t.Context(), func(id string) (bool, error) {
		asked = append(asked, id)
		return id == "live", nil
	})
	if err != nil || removed != 2 {
		t.Errorf("Sweep = %d, %v; want 2", removed, err)
	}
	slices.Sort(asked)
	if !slices.Equal(asked, []string{"dead", "gone", "live"}) {
		t.Errorf("asked about %q", asked)
	}
	if left := names(t, filepath.Join(root, ".staging")); !slices.Equal(left, []string{".note", "live"}) {
		t.Errorf("left: %q", left)
	}
	if err := dead.Publish(t.Context(), make([]imageapi.DiskFacts, 1)); !errors.Is(err, imageapi.ErrShutOut) {
		t.Errorf("Publish of a swept import: %v", err)
	}
	publish(t, live, imageapi.DiskFacts{VirtualSize: 512})
	if _, err := images.Get(t.Context(), imageID); err != nil {
		t.Errorf("a published image was swept: %v", err)
	}

	store := errors.New("the store is down")
	begin(t, images, other("gone", "image-3"), []byte("disk")).Close()
	if removed, err := images.Sweep(t.Context(), func(string) (bool, error) { return false, store }); removed != 0 || !errors.Is(err, store) {
		t.Errorf("Sweep = %d, %v", removed, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if removed, err := images.Sweep(ctx, func(string) (bool, error) { return false, nil }); removed != 0 || !errors.Is(err, context.Canceled) {
		t.Errorf("Sweep = %d, %v", removed, err)
	}
}

// Attempts begin, write and publish all at once, each with bytes of its own.
// Whatever comes of it is whole and of an attempt that was told so.
func TestAttemptsRace(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	const attempts = 8
	for round := range 20 {
		id := fmt.Sprintf("image-%d", round)
		errs := make([]error, attempts+1)
		var wg sync.WaitGroup
		for n := 1; n <= attempts; n++ {
			images := open(t, root)
			wg.Go(func() {
				s := spec(fmt.Sprintf("import-%d", round), int64(n))
				s.ImageID = id
				errs[n] = copyImage(t.Context(), images, s, bytes.Repeat([]byte{byte(n)}, 20_000))
			})
		}
		wg.Wait()
		for n, err := range errs {
			if err != nil && !errors.Is(err, imageapi.ErrShutOut) {
				t.Errorf("attempt %d: %v", n, err)
			}
		}
		if errs[attempts] != nil {
			t.Errorf("the last attempt: %v", errs[attempts])
		}
		b := readDisk(t, root, id, 1)
		if n := int(b[0]); n == 0 || errs[n] != nil || !bytes.Equal(b, bytes.Repeat(b[:1], 20_000)) {
			t.Errorf("round %d: the image is not whole, or of attempt %d, which failed: %v", round, n, errs[n])
		}
	}
	// An attempt that is shut out may put a file into its directory just when that is
	// being removed. That is for the sweep.
	if _, err := open(t, root).Sweep(t.Context(), func(string) (bool, error) { return false, nil }); err != nil {
		t.Errorf("Sweep: %v", err)
	}
	if left := leftovers(t, root); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
}

// copyImage makes an image of one disk as a worker does, in small chunks.
func copyImage(ctx context.Context, images *dirimages.Images, spec imageapi.Spec, b []byte) error {
	u, err := images.Begin(ctx, spec)
	if err != nil {
		return err
	}
	defer u.Close()
	w, _, err := u.Disk(ctx, imageapi.DiskSpec{Number: 1, Size: int64(len(b))})
	if err != nil {
		return err
	}
	for at := 0; at < len(b); at += 4096 {
		if _, err := w.WriteAt(b[at:min(at+4096, len(b))], int64(at)); err != nil {
			return err
		}
	}
	if err := w.Close(); err != nil {
		return err
	}
	return u.Publish(ctx, []imageapi.DiskFacts{{VirtualSize: int64(len(b))}})
}

// An attempt that two workers believe to have goes to the first.
func TestSameAttemptTwice(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	images := open(t, root)
	b := []byte("disk")
	first := begin(t, images, spec(importID, 1), b)
	if _, err := images.Begin(t.Context(), spec(importID, 1)); !errors.Is(err, imageapi.ErrShutOut) {
		t.Errorf("second Begin: %v", err)
	}
	first.Close()
	second := begin(t, images, spec(importID, 1), b)
	publish(t, second, imageapi.DiskFacts{VirtualSize: 512})
	if !bytes.Equal(readDisk(t, root, imageID, 1), b) {
		t.Error("the disk differs")
	}
}

func TestNewFailsOnAFile(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := dirimages.New(path, dirimages.Options{}); err == nil {
		t.Error("New on a file succeeds")
	}
}

// Errors that a customer may see name no path.
func TestMessagesHaveNoPaths(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	images := open(t, root)
	if err := os.Symlink("/nonexistent", filepath.Join(root, imageID)); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(root, "broken"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "broken", "image.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{imageID, "broken"} {
		_, err := images.Get(t.Context(), id)
		f := fault.Of(err)
		if f == nil || f.Kind != fault.Unavailable || f.Code != "image_store_failed" || f.Message != "The image store failed." || f.Evidence != "" {
			t.Errorf("Get(%s): %v", id, err)
		}
	}
}
