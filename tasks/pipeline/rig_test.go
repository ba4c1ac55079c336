package pipeline

import (
	"bytes"
	"context"
	"crypto/sha1"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/rs/zerolog"
	"go.uber.org/goleak"

	"vmimport/imageapi"
	"vmimport/imageapi/dirimages"
	"vmimport/internal/fault"
	"vmimport/internal/scratch"
	"vmimport/internal/testenv"
	"vmimport/storage"
	"vmimport/storage/storagetest"
	"vmimport/tasks"
	"vmimport/tasks/redisstore"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	region    = "jp-east-3"
	chunk     = 64 << 10
	markEvery = 256 << 10
	diskSize  = 2<<20 + 512
)

// rig is a Runner between a real Redis, objects in memory and a directory of
// images, with places to make things go wrong.
type rig struct {
	t       *testing.T
	redis   *testenv.Redis
	store   *redisstore.Store
	claims  tasks.Claims // what the Runner uses; store unless a test wraps it
	memory  *storagetest.Memory
	objects *tampered
	images  imageapi.Images
	dir     string   // of the images
	made    []string // ids of images that should be there
	pool    *storage.Pool
	scratch string // directory
	target  string // format of the disks that are stored
	maxDisk int64
	givenID bool // customers ask for their image ids
	edit    func(*tasks.Spec)
	opt     Options
}

// tampered is a Store whose objects a test may exchange for worse ones.
type tampered struct {
	storage.Store
	wrap atomic.Pointer[func(storage.Object) storage.Object]
}

func (s *tampered) Open(ctx context.Context, loc storage.Location) (storage.Object, error) {
	obj, err := s.Store.Open(ctx, loc)
	if w := s.wrap.Load(); w != nil && err == nil {
		obj = (*w)(obj)
	}
	return obj, err
}

func (s *tampered) with(wrap func(storage.Object) storage.Object) { s.wrap.Store(&wrap) }

func newRig(t *testing.T) *rig {
	t.Helper()
	t.Parallel()
	return newLoneRig(t)
}

// newLoneRig returns a rig for a test beside which no other of the package runs.
func newLoneRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{t: t, redis: testenv.StartRedis(t), memory: storagetest.NewMemory(), dir: t.TempDir()}
	r.store = redisstore.New(r.redis.Client(), redisstore.Options{Retention: 24 * time.Hour})
	r.claims = r.store
	r.objects = &tampered{Store: r.memory}
	images, err := dirimages.New(r.dir, dirimages.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = images.Close() })
	r.images = images
	r.pool = storage.NewPool(8*chunk, chunk)
	r.target, r.scratch = "raw", t.TempDir()
	spool, err := scratch.Open(r.scratch)
	if err != nil {
		t.Fatal(err)
	}
	r.opt = Options{
		Worker: "w1", BeatEvery: 10 * time.Millisecond,
		Fetch: storage.Options{
			Pool: r.pool, MarkEvery: markEvery, Attempts: 2,
			Backoff: storage.Backoff{Base: time.Millisecond, Max: time.Millisecond},
		},
		Backoff: func(int) time.Duration { return 0 },
		Spool:   func(n int64) (Spool, error) { return spool.Reserve(n) },
		Log:     zerolog.Nop(),
	}
	return r
}

func (r *rig) runner() *Runner {
	return New(r.claims, map[string]Region{region: {Objects: r.objects, Images: r.images, MaxDisk: r.maxDisk}}, r.opt)
}

// disk returns reproducible contents with a hole in the middle.
func disk(seed byte, size int) []byte {
	b := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(b)
	clear(b[size/3 : size/2])
	return b
}

func sha1Hex(b []byte) string {
	sum := sha1.Sum(b)
	return hex.EncodeToString(sum[:])
}

// accept puts disks into the object store and registers their import.
func (r *rig) accept(disks ...[]byte) *tasks.Spec {
	r.t.Helper()
	spec := &tasks.Spec{
		ID: tasks.ID(uuid.NewString()), Owner: tasks.Owner{Tenant: "d1", Project: "alpha"}, Dialect: "fjcloud", Region: region,
		Name: "web01", ImageID: uuid.NewString(), ImageIDGiven: r.givenID, TargetFormat: "raw",
	}
	for i, b := range disks {
		object := tasks.Object{API: "swift", Project: "alpha", Container: string(spec.ID), Name: fmt.Sprint("disk", i, ".raw")}
		r.memory.Put(storage.Location(object), b)
		spec.Disks = append(spec.Disks, tasks.Disk{Object: object, Format: "raw", SHA1: sha1Hex(b)})
	}
	if r.edit != nil {
		r.edit(spec)
	}
	service := tasks.NewService(r.store, NewPreflight(r.runner().regions), tasks.Policy{}, time.Now)
	if _, _, err := service.Register(r.t.Context(), spec); err != nil {
		r.t.Fatal(err)
	}
	return spec
}

func (r *rig) handle(spec *tasks.Spec) string {
	r.t.Helper()
	outcome, err := r.runner().Handle(r.t.Context(), spec.Ref())
	if err != nil {
		r.t.Fatalf("Handle: %v", err)
	}
	return outcome
}

// scopeOf is where a task of tenant d1 is found.
func scopeOf(spec *tasks.Spec) tasks.Scope {
	return tasks.Scope{Region: region, Tenant: "d1", Kind: spec.Kind()}
}

func (r *rig) get(spec *tasks.Spec) *tasks.Task {
	r.t.Helper()
	task, err := r.store.Get(r.t.Context(), scopeOf(spec), spec.ID)
	if err != nil {
		r.t.Fatal(err)
	}
	return task
}

func (r *rig) cancel(spec *tasks.Spec) {
	r.t.Helper()
	if _, err := r.store.Cancel(context.WithoutCancel(r.t.Context()), scopeOf(spec), spec.ID); err != nil {
		r.t.Error(err)
	}
}

// cancelOnce does not mind that the import was canceled before.
func (r *rig) cancelOnce(spec *tasks.Spec) {
	_, err := r.store.Cancel(r.t.Context(), scopeOf(spec), spec.ID)
	if err != nil && !errors.Is(err, tasks.ErrCancelRequested) {
		r.t.Error(err)
	}
}

// expire does what the dispatcher does when a worker has died.
func (r *rig) expire(spec *tasks.Spec) {
	r.t.Helper()
	task := r.get(spec)
	held := tasks.Held{Ref: spec.Ref(), Epoch: task.Epoch}
	// An hour from now all claims have run out; the import is due before that.
	attempt := tasks.Attempt{Epoch: task.Epoch, Outcome: tasks.OutcomeLost}
	if err := r.store.Expire(r.t.Context(), held, attempt, -2*time.Hour, time.Now().Add(time.Hour)); err != nil {
		r.t.Fatal(err)
	}
}

// wantImage checks that the import succeeded with exactly these disks.
func (r *rig) wantImage(spec *tasks.Spec, disks ...[]byte) {
	r.t.Helper()
	task := r.get(spec)
	if task.State != tasks.Succeeded || task.Progress != 100 || task.Result == nil || len(task.Result.Disks) != len(disks) {
		for _, a := range task.Attempts {
			r.t.Logf("attempt %d: %s, %+v", a.Epoch, a.Outcome, a.Cause)
		}
		r.t.Fatalf("import is %s at %d %%, failure %+v, result %+v", task.State, task.Progress, task.Failure, task.Result)
	}
	for i, want := range disks {
		got, err := os.ReadFile(filepath.Join(r.dir, spec.ImageID, fmt.Sprintf("disk-%d.raw", i+1)))
		if err != nil {
			r.t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			r.t.Errorf("disk %d differs from its source", i+1)
		}
		if sum := task.Result.Disks[i].Digests["sha1"]; sum != sha1Hex(want) {
			r.t.Errorf("disk %d has SHA-1 %s in the record", i+1, sum)
		}
	}
	r.made = append(r.made, spec.ImageID)
	r.wantClean(r.made...)
}

// wantNothing checks that the import ended in a state and left nothing.
func (r *rig) wantNothing(spec *tasks.Spec, state tasks.State, code string) {
	r.t.Helper()
	task := r.get(spec)
	if task.State != state || task.Progress > 99 || task.Result != nil {
		r.t.Errorf("import is %s at %d %%, result %+v; want %s", task.State, task.Progress, task.Result, state)
	}
	if code != "" && (task.Failure == nil || task.Failure.Code != code || task.Failure.Message == "") {
		r.t.Errorf("failure %+v, want %s", task.Failure, code)
	}
	r.wantClean()
}

// wantClean checks that there is nothing but the given images, that no buffer is
// out and that no claim is left.
func (r *rig) wantClean(images ...string) {
	r.t.Helper()
	var left []string
	err := filepath.WalkDir(r.dir, func(path string, d fs.DirEntry, err error) error {
		rel, _ := filepath.Rel(r.dir, path)
		top := strings.Split(rel, string(filepath.Separator))[0]
		if err == nil && !d.IsDir() && !slices.Contains(images, top) {
			left = append(left, rel)
		}
		return err
	})
	if err != nil || len(left) > 0 {
		r.t.Errorf("left in the image store: %v, %v", left, err)
	}
	if spools, err := os.ReadDir(r.scratch); err != nil || len(spools) > 0 {
		r.t.Errorf("left in the scratch directory: %v, %v", spools, err)
	}
	if n := r.pool.InUse(); n != 0 {
		r.t.Errorf("%d buffers are still out", n)
	}
	if loads, err := r.store.Survey(r.t.Context(), []tasks.Tenant{"d1"}, time.Now(), time.Now()); err != nil || loads["d1"].Running > 0 {
		r.t.Errorf("claims left: %+v, %v", loads, err)
	}
}

// until waits for a condition of the record.
func (r *rig) until(spec *tasks.Spec, what string, ok func(*tasks.Task) bool) {
	r.t.Helper()
	r.wait(what, func() bool { return ok(r.get(spec)) })
}

// wait waits for anything.
func (r *rig) wait(what string, ok func() bool) {
	r.t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(30 * time.Second)
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			r.t.Fatalf("waited 30 s for: %s", what)
		}
	}
}

// untilSaved waits for a checkpoint of the second disk at or past an offset.
func (r *rig) untilSaved(spec *tasks.Spec, offset int64) {
	r.t.Helper()
	rdb := r.redis.Client()
	r.until(spec, "a checkpoint", func(*tasks.Task) bool {
		saved, err := rdb.HGet(r.t.Context(), "vmimport:{d1}:import:"+string(spec.ID), "checkpoint").Bytes()
		var cp checkpoint
		return err == nil && json.Unmarshal(saved, &cp) == nil && len(cp.Done) == 1 && cp.Mark != nil && cp.Mark.Offset >= offset
	})
}

// stallAt lets everything up to at through, and then nothing.
func stallAt(at int64) func(storage.Object) storage.Object {
	return func(o storage.Object) storage.Object {
		return storagetest.Break(o, storagetest.StallBody, at, -1, nil)
	}
}

// counter is an Observer of what is read.
type counter struct {
	nobody
	received atomic.Int64
}

func (c *counter) Moved(_ tasks.Kind, _ string, bytes, _, _ int64) { c.received.Add(bytes) }

// replacing calls do when the second half of the object is read.
type replacing struct {
	storage.Object
	do func(ctx context.Context)
}

func (o replacing) ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	if off > diskSize/2 && n > 512 {
		o.do(ctx)
	}
	return o.Object.ReadRange(ctx, off, n)
}

// meddling runs a hook before or instead of a step.
type meddling struct {
	tasks.Claims
	beginPublish func()
	succeed      func() error
}

func (m *meddling) BeginPublish(ctx context.Context, h tasks.Held, res *tasks.Result) error {
	if m.beginPublish != nil {
		m.beginPublish()
	}
	return m.Claims.BeginPublish(ctx, h, res)
}

func (m *meddling) Succeed(ctx context.Context, h tasks.Held, a tasks.Attempt) error {
	if m.succeed != nil {
		return m.succeed()
	}
	return m.Claims.Succeed(ctx, h, a)
}

// stuck is an image service that cannot remove.
type stuck struct {
	imageapi.Images
	times int
}

func (s *stuck) Remove(ctx context.Context, importID, imageID string) error {
	if s.times--; s.times >= 0 {
		return fault.New(fault.Unavailable, "image_service_unavailable", "The image service does not answer.")
	}
	return s.Images.Remove(ctx, importID, imageID)
}

// gate is an object whose second half cannot be copied, once fail has returned.
type gate struct {
	storage.Object
	fail func() error
}

func (g gate) ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	if off >= diskSize/2 && n == chunk { // less is an inspection
		return nil, g.fail()
	}
	return g.Object.ReadRange(ctx, off, n)
}

// deaf is a worker's store that does not answer its beats any more.
type deaf struct {
	tasks.Claims
	cut atomic.Bool
}

func (d *deaf) Beat(ctx context.Context, h tasks.Held, p tasks.Progress, lease time.Duration) (tasks.Pulse, error) {
	if d.cut.Load() {
		return tasks.Pulse{}, fault.New(fault.Unavailable, "store_unavailable", "The record store is not available.")
	}
	return d.Claims.Beat(ctx, h, p, lease)
}
