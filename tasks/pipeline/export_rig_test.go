package pipeline

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"vmimport/imageapi"
	"vmimport/internal/diskimage"
	"vmimport/internal/diskimage/imagetest"
	"vmimport/storage"
	"vmimport/storage/dirstore"
	"vmimport/tasks"
)

// exportRig is a rig whose images are exported to a directory of objects.
type exportRig struct {
	*rig
	objects string // directory of the container
	target  *shaky
	source  *shakyImages
}

const container = "backup"

func newExportRig(t *testing.T) *exportRig {
	r := newRig(t)
	root := t.TempDir()
	store, err := dirstore.New(root)
	if err != nil {
		t.Fatal(err)
	}
	if err := store.MakeContainer("alpha", container); err != nil {
		t.Fatal(err)
	}
	return &exportRig{
		rig: r, objects: filepath.Join(root, container), target: &shaky{Target: store},
		source: &shakyImages{Images: r.images},
	}
}

func (r *exportRig) runner() *Runner {
	return New(r.claims, map[string]Region{region: {Objects: r.rig.objects, Images: r.source, Target: r.target}}, r.opt)
}

// image registers a disk as an image of that format.
func (r *exportRig) image(format string, content []byte) (imageID string) {
	r.t.Helper()
	r.edit = func(s *tasks.Spec) {
		s.TargetFormat, s.MinRAMMiB, s.MinDiskGiB, s.OSType = format, 2048, 1, "rocky"
		s.Properties = map[string]string{"hw_firmware_type": "uefi"}
	}
	spec := r.accept(content)
	if outcome := r.handle(spec); outcome != string(tasks.Succeeded) {
		r.t.Fatalf("import ended as %s: %+v", outcome, r.get(spec).Failure)
	}
	r.made = append(r.made, spec.ImageID)
	return spec.ImageID
}

func newExport(imageID string, form tasks.Form) *tasks.Spec {
	return &tasks.Spec{
		ID: tasks.ID(uuid.NewString()), Owner: tasks.Owner{Tenant: "d1", Project: "alpha"}, Dialect: "fjcloud", Region: region,
		ImageID: imageID, Export: &tasks.Export{Form: form, Container: container},
	}
}

// register asks for an export.
func (r *exportRig) register(spec *tasks.Spec) error {
	service := tasks.NewService(r.store, NewPreflight(r.runner().regions), tasks.Policy{}, time.Now)
	_, _, err := service.Register(r.t.Context(), spec)
	return err
}

// ask registers an export that is accepted.
func (r *exportRig) ask(imageID string, form tasks.Form) *tasks.Spec {
	r.t.Helper()
	spec := newExport(imageID, form)
	if err := r.register(spec); err != nil {
		r.t.Fatal(err)
	}
	return spec
}

func (r *exportRig) handle(spec *tasks.Spec) string {
	r.t.Helper()
	outcome, err := r.runner().Handle(r.t.Context(), spec.Ref())
	if err != nil {
		r.t.Fatalf("Handle: %v", err)
	}
	return outcome
}

// files lists all that is in the container and beside it.
func (r *exportRig) files() []string {
	r.t.Helper()
	files := []string{}
	root := filepath.Dir(r.objects)
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			rel, _ := filepath.Rel(root, path)
			files = append(files, strings.TrimPrefix(rel, container+"/"))
		}
		return err
	})
	if err != nil {
		r.t.Fatal(err)
	}
	slices.Sort(files)
	return files
}

// wantFiles checks that there are these files and no others, and that the export holds nothing.
func (r *exportRig) wantFiles(want ...string) {
	r.t.Helper()
	if got := r.files(); !slices.Equal(got, want) {
		r.t.Errorf("objects are %q, want %q", got, want)
	}
	r.wantClean(r.made...)
}

// wantNoFiles checks that the export has ended as that, and left nothing.
func (r *exportRig) wantNoFiles(spec *tasks.Spec, state tasks.State, code string) {
	r.t.Helper()
	task := r.get(spec)
	if task.State != state || task.Result != nil {
		r.t.Errorf("export is %s, result %+v; want %s", task.State, task.Result, state)
	}
	if code != "" && (task.Failure == nil || task.Failure.Code != code) {
		r.t.Errorf("failure %+v, want %s", task.Failure, code)
	}
	r.wantFiles()
}

func (r *exportRig) read(name string) []byte {
	r.t.Helper()
	b, err := os.ReadFile(filepath.Join(r.objects, name))
	if err != nil {
		r.t.Fatal(err)
	}
	return b
}

// wantExport checks an export that has succeeded against the disk.
func (r *exportRig) wantExport(spec *tasks.Spec, content []byte) {
	r.t.Helper()
	task := r.get(spec)
	if task.State != tasks.Succeeded || task.Progress != 100 || task.Result == nil {
		for _, a := range task.Attempts {
			r.t.Logf("attempt %d: %s, %+v", a.Epoch, a.Outcome, a.Cause)
		}
		r.t.Fatalf("export is %s at %d %%: %+v", task.State, task.Progress, task.Failure)
	}
	var names []string
	for _, o := range task.Result.Objects {
		names = append(names, o.Name)
		if b := r.read(o.Name); int64(len(b)) != o.Bytes || o.Digests["sha1"] != "" && o.Digests["sha1"] != sha1Hex(b) {
			r.t.Errorf("%s is not what the record says: %+v", o.Name, o)
		}
	}
	image := names[0]
	slices.Sort(names)
	r.wantFiles(names...)
	if got := r.decode(image); !bytes.Equal(got, content) {
		r.t.Errorf("%s: the disk differs from its source, %d and %d bytes", image, len(got), len(content))
	}
}

// decode returns the disk that is in an object.
func (r *exportRig) decode(name string) []byte {
	r.t.Helper()
	path := filepath.Join(r.objects, name)
	if strings.HasSuffix(name, ".gz") {
		z, err := gzip.NewReader(bytes.NewReader(r.read(name)))
		if err != nil {
			r.t.Fatal(err)
		}
		b, err := io.ReadAll(z)
		if err != nil {
			r.t.Fatal(err)
		}
		if strings.HasSuffix(name, ".img.gz") {
			return b
		}
		path = filepath.Join(r.t.TempDir(), "unpacked.qcow2")
		if err := os.WriteFile(path, b, 0o600); err != nil {
			r.t.Fatal(err)
		}
	}
	raw := filepath.Join(r.t.TempDir(), "disk.raw")
	imagetest.QemuImg(r.t, "convert", "-O", "raw", path, raw)
	b, err := os.ReadFile(raw)
	if err != nil {
		r.t.Fatal(err)
	}
	return b
}

// shaky is a target in whose steps a test may interfere. A hook that returns an error takes
// the step's place.
type shaky struct {
	storage.Target
	mu      sync.Mutex
	stored  []int // numbers of parts, in the order in which they came
	putPart func(ctx context.Context, p storage.Part) error
	join    func() error
	joined  func() error // instead of a success
	putNew  func(name string) error
	discard func() error
}

func (s *shaky) PutPart(ctx context.Context, up storage.Upload, name string, p storage.Part, body io.Reader) error {
	if s.putPart != nil {
		if err := s.putPart(ctx, p); err != nil {
			return err
		}
	}
	if err := s.Target.PutPart(ctx, up, name, p, body); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stored = append(s.stored, p.Number)
	return nil
}

func (s *shaky) Join(ctx context.Context, up storage.Upload, name string, parts []storage.Part) error {
	if s.join != nil {
		if err := s.join(); err != nil {
			return err
		}
	}
	err := s.Target.Join(ctx, up, name, parts)
	if err == nil && s.joined != nil {
		return s.joined()
	}
	return err
}

func (s *shaky) PutNew(ctx context.Context, up storage.Upload, name string, content []byte) error {
	if s.putNew != nil {
		if err := s.putNew(name); err != nil {
			return err
		}
	}
	return s.Target.PutNew(ctx, up, name, content)
}

func (s *shaky) Discard(ctx context.Context, up storage.Upload, names ...string) error {
	if s.discard != nil {
		if err := s.discard(); err != nil {
			return err
		}
	}
	return s.Target.Discard(ctx, up, names...)
}

// shakyImages is an image service whose files a test may exchange for worse ones.
type shakyImages struct {
	imageapi.Images
	wrap func(imageapi.File) imageapi.File
}

func (s *shakyImages) Open(ctx context.Context, id string) (imageapi.File, error) {
	f, err := s.Images.Open(ctx, id)
	if err == nil && s.wrap != nil {
		f = s.wrap(f)
	}
	return f, err
}

// exchanged is a file with other facts, or other bytes.
type exchanged struct {
	imageapi.File
	facts imageapi.Facts
	read  func(ctx context.Context, off, n int64) (io.ReadCloser, error)
}

func (f exchanged) Facts() imageapi.Facts { return f.facts }

func (f exchanged) ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	if f.read != nil {
		return f.read(ctx, off, n)
	}
	return f.File.ReadRange(ctx, off, n)
}

// withFacts changes the facts of all images.
func withFacts(change func(*imageapi.Facts)) func(imageapi.File) imageapi.File {
	return func(f imageapi.File) imageapi.File {
		facts := f.Facts()
		change(&facts)
		return exchanged{File: f, facts: facts}
	}
}

// checkpointOf returns what the record has for the next attempt.
func (r *exportRig) checkpointOf(spec *tasks.Spec) (cp exportCheckpoint, ok bool) {
	saved, err := r.redis.Client().HGet(r.t.Context(), "vmimport:{d1}:import:"+string(spec.ID), "checkpoint").Bytes()
	return cp, err == nil && json.Unmarshal(saved, &cp) == nil
}

// wantVirtualSize checks what our own reader makes of an object.
func (r *exportRig) wantVirtualSize(name string, open func(*diskimage.File) (*diskimage.Disk, error), want int64) {
	r.t.Helper()
	b := r.read(name)
	d, err := open(diskimage.NewFile(bytes.NewReader(b), int64(len(b))))
	if err != nil || d.Size != want {
		r.t.Errorf("%s is read as %+v, %v", name, d, err)
	}
}
