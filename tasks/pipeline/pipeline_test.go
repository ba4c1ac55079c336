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
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/rs/zerolog"
	"go.uber.org/goleak"

	"vmimport/imageapi"
	"vmimport/imageapi/dirimages"
	"vmimport/internal/fault"
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
	r.opt = Options{
		Worker: "w1", BeatEvery: 10 * time.Millisecond,
		Fetch: storage.Options{
			Pool: r.pool, MarkEvery: markEvery, Attempts: 2,
			Backoff: storage.Backoff{Base: time.Millisecond, Max: time.Millisecond},
		},
		Backoff: func(int) time.Duration { return 0 },
		Log:     zerolog.Nop(),
	}
	return r
}

func (r *rig) runner() *Runner {
	return New(r.claims, map[string]Region{region: {Objects: r.objects, Images: r.images}}, r.opt)
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
		Name: "web01", ImageID: uuid.NewString(), TargetFormat: "raw",
	}
	for i, b := range disks {
		object := tasks.Object{API: "swift", Project: "alpha", Container: string(spec.ID), Name: fmt.Sprint("disk", i, ".raw")}
		r.memory.Put(storage.Location(object), b)
		spec.Disks = append(spec.Disks, tasks.Disk{Object: object, Format: "raw", SHA1: sha1Hex(b)})
	}
	service := tasks.NewService(r.store, NewPreflight(r.runner().regions, nil), tasks.Limits{}, time.Now)
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

func (r *rig) get(spec *tasks.Spec) *tasks.Import {
	r.t.Helper()
	imp, err := r.store.Get(r.t.Context(), tasks.Scope{Region: region, Tenant: "d1"}, spec.ID)
	if err != nil {
		r.t.Fatal(err)
	}
	return imp
}

func (r *rig) cancel(spec *tasks.Spec) {
	r.t.Helper()
	if _, err := r.store.Cancel(r.t.Context(), tasks.Scope{Region: region, Tenant: "d1"}, spec.ID); err != nil {
		r.t.Error(err)
	}
}

// cancelOnce does not mind that the import was canceled before.
func (r *rig) cancelOnce(spec *tasks.Spec) {
	_, err := r.store.Cancel(r.t.Context(), tasks.Scope{Region: region, Tenant: "d1"}, spec.ID)
	if err != nil && !errors.Is(err, tasks.ErrCancelRequested) {
		r.t.Error(err)
	}
}

// expire does what the dispatcher does when a worker has died.
func (r *rig) expire(spec *tasks.Spec) {
	r.t.Helper()
	imp := r.get(spec)
	held := tasks.Held{Ref: spec.Ref(), Epoch: imp.Epoch}
	// An hour from now all claims have run out; the import is due before that.
	attempt := tasks.Attempt{Epoch: imp.Epoch, Outcome: tasks.OutcomeLost}
	if err := r.store.Expire(r.t.Context(), held, attempt, -2*time.Hour, time.Now().Add(time.Hour)); err != nil {
		r.t.Fatal(err)
	}
}

// wantImage checks that the import succeeded with exactly these disks.
func (r *rig) wantImage(spec *tasks.Spec, disks ...[]byte) {
	r.t.Helper()
	imp := r.get(spec)
	if imp.State != tasks.Succeeded || imp.Progress != 100 || imp.Result == nil || len(imp.Result.Disks) != len(disks) {
		for _, a := range imp.Attempts {
			r.t.Logf("attempt %d: %s, %+v", a.Epoch, a.Outcome, a.Cause)
		}
		r.t.Fatalf("import is %s at %d %%, failure %+v, result %+v", imp.State, imp.Progress, imp.Failure, imp.Result)
	}
	for i, want := range disks {
		got, err := os.ReadFile(filepath.Join(r.dir, spec.ImageID, fmt.Sprintf("disk-%d.raw", i+1)))
		if err != nil {
			r.t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			r.t.Errorf("disk %d differs from its source", i+1)
		}
		if sum := imp.Result.Disks[i].Digests["sha1"]; sum != sha1Hex(want) {
			r.t.Errorf("disk %d has SHA-1 %s in the record", i+1, sum)
		}
	}
	r.made = append(r.made, spec.ImageID)
	r.wantClean(r.made...)
}

// wantNothing checks that the import ended in a state and left nothing.
func (r *rig) wantNothing(spec *tasks.Spec, state tasks.State, code string) {
	r.t.Helper()
	imp := r.get(spec)
	if imp.State != state || imp.Progress > 99 || imp.Result != nil {
		r.t.Errorf("import is %s at %d %%, result %+v; want %s", imp.State, imp.Progress, imp.Result, state)
	}
	if code != "" && (imp.Failure == nil || imp.Failure.Code != code || imp.Failure.Message == "") {
		r.t.Errorf("failure %+v, want %s", imp.Failure, code)
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
	if n := r.pool.InUse(); n != 0 {
		r.t.Errorf("%d buffers are still out", n)
	}
	if loads, err := r.store.Survey(r.t.Context(), []tasks.Tenant{"d1"}, time.Now(), time.Now()); err != nil || loads["d1"].Running > 0 {
		r.t.Errorf("claims left: %+v, %v", loads, err)
	}
}

// until waits for a condition of the record.
func (r *rig) until(spec *tasks.Spec, what string, ok func(*tasks.Import) bool) {
	r.t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(30 * time.Second)
	for !ok(r.get(spec)) {
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
	r.until(spec, "a checkpoint", func(*tasks.Import) bool {
		saved, err := rdb.HGet(r.t.Context(), "vmimport:{d1}:import:"+string(spec.ID), "checkpoint").Bytes()
		var cp checkpoint
		return err == nil && json.Unmarshal(saved, &cp) == nil && len(cp.Done) == 1 && cp.Mark != nil && cp.Mark.Offset >= offset
	})
}

func TestImport(t *testing.T) {
	r := newRig(t)
	for _, size := range []int{512, 513, chunk - 1, chunk, chunk + 1, diskSize} {
		b := disk(1, size)
		spec := r.accept(b)
		if got := r.handle(spec); got != "succeeded" {
			t.Errorf("size %d: outcome %q", size, got)
		}
		padded := append(slices.Clone(b), make([]byte, (512-size%512)%512)...)
		imp := r.get(spec)
		if imp.State != tasks.Succeeded || imp.Result.Disks[0].Digests["sha1"] != sha1Hex(b) || len(imp.Attempts) != 1 {
			t.Errorf("size %d: %+v", size, imp)
		}
		got, err := os.ReadFile(filepath.Join(r.dir, spec.ImageID, "disk-1.raw"))
		if err != nil || !bytes.Equal(got, padded) {
			t.Errorf("size %d: image differs, %v", size, err)
		}
	}
	if got := r.handle(&tasks.Spec{ID: "unknown", Owner: tasks.Owner{Tenant: "d1"}}); got != "" {
		t.Errorf("unknown import: outcome %q", got)
	}
}

func TestSeveralDisks(t *testing.T) {
	r := newRig(t)
	a, b, c := disk(1, diskSize), disk(2, 512), disk(3, 1<<20)
	spec := r.accept(a, b, c)
	r.handle(spec)
	r.wantImage(spec, a, b, c)
}

func TestWrongChecksum(t *testing.T) {
	r := newRig(t)
	spec := r.accept(disk(1, diskSize))
	r.objects.with(func(o storage.Object) storage.Object { return flipped{o} })
	r.handle(spec)
	r.wantNothing(spec, tasks.Failed, "checksum_mismatch")
	if f := r.get(spec).Failure; !strings.Contains(f.Evidence, spec.Disks[0].SHA1) || f.Remedy == "" {
		t.Errorf("failure %+v", f)
	}
}

// flipped is an object with one wrong bit.
type flipped struct{ storage.Object }

func (f flipped) ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	body, err := f.Object.ReadRange(ctx, off, n)
	if err != nil || off > diskSize/2 || off+n <= diskSize/2 {
		return body, err
	}
	return &flippedBody{body, diskSize/2 - off}, nil
}

type flippedBody struct {
	io.ReadCloser
	at int64
}

func (f *flippedBody) Read(p []byte) (int, error) {
	n, err := f.ReadCloser.Read(p)
	if f.at >= 0 && f.at < int64(n) {
		p[f.at] ^= 1
	}
	f.at -= int64(n)
	return n, err
}

// stallAt lets everything up to at through, and then nothing.
func stallAt(at int64) func(storage.Object) storage.Object {
	return func(o storage.Object) storage.Object {
		return storagetest.Break(o, storagetest.StallBody, at, -1, nil)
	}
}

func TestCancelInTheMiddle(t *testing.T) {
	r := newRig(t)
	spec := r.accept(disk(1, diskSize))
	r.objects.with(stallAt(diskSize / 2))
	runner := r.runner()
	ended := make(chan string, 1)
	go func() {
		outcome, err := runner.Handle(t.Context(), spec.Ref())
		if err != nil {
			t.Error(err)
		}
		ended <- outcome
	}()
	r.until(spec, "the middle", func(i *tasks.Import) bool { return i.DoneBytes > diskSize/3 })
	began := time.Now()
	if _, err := r.store.Cancel(t.Context(), tasks.Scope{Region: region, Tenant: "d1"}, spec.ID); err != nil {
		t.Fatal(err)
	}
	runner.Cancel(spec.ID)
	if got := <-ended; got != "canceled" {
		t.Errorf("outcome %q", got)
	}
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("the cancel took %s", took)
	}
	r.wantNothing(spec, tasks.Canceled, "")
	if runner.Running() != 0 {
		t.Errorf("%d attempts running", runner.Running())
	}
}

// TestDrainAndResume stops a worker in the middle in both ways, and counts what
// the next one reads.
func TestDrainAndResume(t *testing.T) {
	for _, cause := range []error{tasks.ErrDraining, tasks.ErrClaimLost} {
		t.Run(cause.Error(), func(t *testing.T) {
			r := newRig(t)
			a, b := disk(1, diskSize), disk(2, diskSize)
			spec := r.accept(a, b)
			second := spec.Disks[1].Object
			r.objects.with(func(o storage.Object) storage.Object {
				if want, err := r.memory.Open(t.Context(), storage.Location(second)); err == nil && want.Version() == o.Version() {
					return stallAt(diskSize - chunk)(o)
				}
				return o
			})
			ctx, stop := context.WithCancelCause(t.Context())
			defer stop(nil)
			ended := make(chan string, 1)
			runner := r.runner()
			go func() {
				outcome, err := runner.Handle(ctx, spec.Ref())
				if err != nil {
					t.Error(err)
				}
				ended <- outcome
			}()
			r.until(spec, "most of disk 2", func(i *tasks.Import) bool { return i.DoneBytes >= 2*diskSize-2*chunk })
			r.untilSaved(spec, diskSize-markEvery-chunk)
			before := r.get(spec)
			stop(cause)
			outcome := <-ended
			after := r.get(spec)
			if errors.Is(cause, tasks.ErrDraining) {
				if outcome != tasks.OutcomeDrained || after.State != tasks.Queued || after.Setbacks != 0 {
					t.Errorf("outcome %q, state %s, %d setbacks", outcome, after.State, after.Setbacks)
				}
			} else {
				if outcome != tasks.OutcomeLost || after.State != tasks.Processing {
					t.Errorf("outcome %q, state %s", outcome, after.State)
				}
				r.expire(spec)
			}
			r.objects.with(func(o storage.Object) storage.Object { return o })
			counted := &counter{}
			r.opt.Observe = counted
			r.handle(spec)
			r.wantImage(spec, a, b)
			// At most one interval, its rounding, and what was in flight.
			if got := counted.received; got > chunk+markEvery+8*chunk {
				t.Errorf("the second attempt read %d bytes again", got)
			}
			end := r.get(spec)
			last := end.Attempts[len(end.Attempts)-1]
			if last.FromBytes < diskSize || end.Progress < before.Progress {
				t.Errorf("last attempt %+v; progress %d after %d", last, end.Progress, before.Progress)
			}
		})
	}
}

type counter struct{ received int64 }

func (c *counter) Ended(_, _ string, _ time.Duration, _ tasks.Counters, received int64) {
	c.received += received
}

// TestCheckpointWithoutItsData takes away what a checkpoint is about.
func TestCheckpointWithoutItsData(t *testing.T) {
	r := newRig(t)
	a, b := disk(1, diskSize), disk(2, diskSize)
	mark := `"mark":{"offset":65536,"states":{}}`
	disk1 := `{"format":"raw","object_bytes":2097664,"virtual_size":2097664,"digests":{"sha1":"x"}}`
	for name, cp := range map[string]string{
		"first disk":      `{"done":null,` + mark + `}`,
		"second disk":     `{"done":[` + disk1 + `],` + mark + `}`,
		"too many disks":  `{"done":[` + disk1 + `,` + disk1 + `],` + mark + `}`,
		"another version": `{"finished":[` + disk1 + `],` + mark + `}`,
		"no mark":         `{"done":[` + disk1 + `]}`,
		"not JSON":        `half`,
	} {
		spec := r.accept(a, b)
		c, err := r.store.Claim(t.Context(), spec.Ref(), "w0", Lease)
		if err != nil {
			t.Fatal(err)
		}
		if err := r.store.SaveCheckpoint(t.Context(), c.Held, []byte(cp), 65536); err != nil {
			t.Fatal(err)
		}
		r.expire(spec)
		t.Log(name)
		r.handle(spec)
		r.wantImage(spec, a, b)
	}
}

// TestCheckpointOfAnotherVersion has an attempt in the middle that cannot read
// the checkpoint of the first, and dies before it has one of its own. The third
// can read it, and must not take the second's file for the first's.
func TestCheckpointOfAnotherVersion(t *testing.T) {
	r := newRig(t)
	b := disk(1, diskSize)
	spec := r.accept(b)
	drain := func(stall int64, ready func()) {
		t.Helper()
		r.objects.with(stallAt(stall))
		ctx, stop := context.WithCancelCause(t.Context())
		defer stop(nil)
		go func() {
			ready()
			stop(tasks.ErrDraining)
		}()
		if outcome, err := r.runner().Handle(ctx, spec.Ref()); outcome != tasks.OutcomeDrained || err != nil {
			t.Fatalf("outcome %q, %v", outcome, err)
		}
	}
	rdb, key := r.redis.Client(), "vmimport:{d1}:import:"+string(spec.ID)
	saved := func() string { return rdb.HGet(t.Context(), key, "checkpoint").Val() }
	drain(diskSize-chunk, func() { r.until(spec, "a checkpoint", func(*tasks.Import) bool { return saved() != "" }) })
	first := saved()
	if err := rdb.HSet(t.Context(), key, "checkpoint", `{"version":7}`).Err(); err != nil {
		t.Fatal(err)
	}
	drain(chunk, func() { r.until(spec, "some bytes", func(i *tasks.Import) bool { return i.DoneBytes > 0 }) })
	if got := saved(); got != "" {
		t.Errorf("the record still has the checkpoint %s; the first was %s", got, first)
	}
	r.objects.with(func(o storage.Object) storage.Object { return o })
	r.handle(spec)
	r.wantImage(spec, b)
}

// TestDigestsChangeBetweenAttempts resumes under a configuration for which the
// checkpoint lacks a hash.
func TestDigestsChangeBetweenAttempts(t *testing.T) {
	r := newRig(t)
	a, b := disk(1, diskSize), disk(2, diskSize)
	spec := r.accept(a, b)
	ctx, stop := context.WithCancelCause(t.Context())
	defer stop(nil)
	r.objects.with(func(o storage.Object) storage.Object {
		if second, err := r.memory.Open(t.Context(), storage.Location(spec.Disks[1].Object)); err == nil && second.Version() == o.Version() {
			return stallAt(diskSize - chunk)(o)
		}
		return o
	})
	go func() {
		r.untilSaved(spec, markEvery)
		stop(tasks.ErrDraining)
	}()
	if outcome, err := r.runner().Handle(ctx, spec.Ref()); outcome != tasks.OutcomeDrained || err != nil {
		t.Fatalf("outcome %q, %v", outcome, err)
	}
	r.objects.with(func(o storage.Object) storage.Object { return o })
	r.opt.Fetch.Digests = []string{"sha256"}
	if got := r.handle(spec); got != tasks.OutcomeRetry {
		t.Errorf("outcome %q", got)
	}
	r.handle(spec)
	r.wantImage(spec, a, b)
	if d := r.get(spec).Result.Disks[1].Digests; d["sha256"] == "" {
		t.Errorf("digests %v", d)
	}
}

func TestPassingFailures(t *testing.T) {
	r := newRig(t)
	r.opt.MaxSetbacks = 3
	r.opt.Fetch.MarkEvery = 2 * diskSize // no checkpoint, so nothing forgives
	b := disk(1, diskSize)
	spec, hopeless := r.accept(b), r.accept(b)
	down := errors.New("connection refused")
	r.objects.with(func(o storage.Object) storage.Object {
		return storagetest.Break(o, storagetest.FailOpen, diskSize/2, -1, down)
	})
	if got := r.handle(spec); got != tasks.OutcomeRetry {
		t.Errorf("outcome %q", got)
	}
	imp := r.get(spec)
	if imp.State != tasks.Queued || imp.Setbacks != 1 || imp.Attempts[0].Cause.Code != "source_unreadable" {
		t.Errorf("%+v", imp)
	}
	// It may get further by a checkpoint or two before it fails for good.
	for tries := 1; r.handle(hopeless) != "failed"; tries++ {
		if tries == r.opt.MaxSetbacks*diskSize/markEvery {
			t.Fatal("it is tried for ever")
		}
	}
	if f := r.get(hopeless).Failure; f == nil || f.Code != "source_unreadable" {
		t.Errorf("failure %+v", f)
	}
	r.objects.with(func(o storage.Object) storage.Object { return o })
	r.handle(spec)
	r.wantImage(spec, b)
}

func TestObjectReplaced(t *testing.T) {
	r := newRig(t)
	early := r.accept(disk(1, diskSize))
	r.memory.Put(storage.Location(early.Disks[0].Object), disk(2, diskSize))
	r.handle(early)
	r.wantNothing(early, tasks.Failed, "object_changed")

	late := r.accept(disk(1, diskSize))
	r.objects.with(func(o storage.Object) storage.Object {
		return replacing{o, func(context.Context) { r.memory.Put(storage.Location(late.Disks[0].Object), disk(2, diskSize)) }}
	})
	r.handle(late)
	r.wantNothing(late, tasks.Failed, "object_changed")

	gone := r.accept(disk(1, diskSize))
	r.objects.with(func(o storage.Object) storage.Object { return o })
	r.memory.Remove(storage.Location(gone.Disks[0].Object))
	r.handle(gone)
	r.wantNothing(gone, tasks.Failed, "object_not_found")
}

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

func TestPoison(t *testing.T) {
	r := newRig(t)
	r.opt.MaxCrashes = 2
	spec := r.accept(disk(1, diskSize))
	for range 2 {
		if _, err := r.store.Claim(t.Context(), spec.Ref(), "w0", Lease); err != nil {
			t.Fatal(err)
		}
		r.expire(spec)
	}
	r.handle(spec)
	r.wantNothing(spec, tasks.Failed, "worker_crashed")
}

func TestPanic(t *testing.T) {
	r := newRig(t)
	b := disk(1, diskSize)
	spec := r.accept(b)
	r.objects.with(func(o storage.Object) storage.Object { panic("boom") })
	if got := r.handle(spec); got != tasks.OutcomeRetry {
		t.Errorf("outcome %q", got)
	}
	if imp := r.get(spec); imp.Attempts[0].Cause.Code != "internal_error" || strings.Contains(fmt.Sprint(imp.Attempts[0].Cause), "boom") {
		t.Errorf("the customer is told %+v", imp.Attempts[0].Cause)
	}
	r.objects.with(func(o storage.Object) storage.Object { return o })
	r.handle(spec)
	r.wantImage(spec, b)
}

func TestFencedWorkerStops(t *testing.T) {
	r := newRig(t)
	b := disk(1, diskSize)
	spec := r.accept(b)
	r.objects.with(stallAt(diskSize - chunk))
	old := r.runner()
	ended := make(chan string, 1)
	go func() {
		outcome, err := old.Handle(t.Context(), spec.Ref())
		if err != nil {
			t.Error(err)
		}
		ended <- outcome
	}()
	r.until(spec, "most of the disk", func(i *tasks.Import) bool { return i.DoneBytes > diskSize/2 })
	r.expire(spec) // while the old worker is alive and well
	r.objects.with(func(o storage.Object) storage.Object { return o })
	r.handle(spec)
	if got := <-ended; got != tasks.OutcomeLost {
		t.Errorf("the old worker ended with %q", got)
	}
	r.wantImage(spec, b)
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

func TestCancelJustBeforePublishing(t *testing.T) {
	r := newRig(t)
	spec := r.accept(disk(1, diskSize))
	r.claims = &meddling{Claims: r.store, beginPublish: func() {
		if _, err := r.store.Cancel(t.Context(), tasks.Scope{Region: region, Tenant: "d1"}, spec.ID); err != nil {
			t.Error(err)
		}
	}}
	r.handle(spec)
	r.wantNothing(spec, tasks.Canceled, "")
}

func TestDeathBetweenPublishingAndFinishing(t *testing.T) {
	r := newRig(t)
	b := disk(1, diskSize)
	spec := r.accept(b)
	died := errors.New("died")
	r.claims = &meddling{Claims: r.store, succeed: func() error { return died }}
	if _, err := r.runner().Handle(t.Context(), spec.Ref()); !errors.Is(err, died) {
		t.Fatalf("Handle: %v", err)
	}
	if _, err := r.store.Cancel(t.Context(), tasks.Scope{Region: region, Tenant: "d1"}, spec.ID); !errors.Is(err, tasks.ErrFinished) {
		t.Errorf("a cancel after publishing: %v", err)
	}
	r.expire(spec)
	r.claims = r.store
	r.objects.with(func(o storage.Object) storage.Object {
		t.Error("the object was read again")
		return o
	})
	r.handle(spec)
	r.wantImage(spec, b)
}

// TestPublishedImageOutlivesCrashes: an image that was published is never taken
// back, however many workers died over it.
func TestPublishedImageOutlivesCrashes(t *testing.T) {
	r := newRig(t)
	r.opt.MaxCrashes = 1
	b := disk(1, diskSize)
	spec := r.accept(b)
	r.claims = &meddling{Claims: r.store, succeed: func() error { return errors.New("died") }}
	if _, err := r.runner().Handle(t.Context(), spec.Ref()); err == nil {
		t.Fatal("no error")
	}
	r.expire(spec)
	r.claims = r.store
	r.handle(spec)
	r.wantImage(spec, b)
}

func TestImageIDOfAnother(t *testing.T) {
	r := newRig(t)
	b := disk(1, diskSize)
	first, second := r.accept(b), r.accept(disk(2, diskSize))
	second.ImageID = first.ImageID
	second.Owner.Tenant = "d2" // another tenant's reservation is not seen in advance
	second.ID = tasks.ID(uuid.NewString())
	second.RequestedAt = time.Now()
	if _, _, err := r.store.Create(t.Context(), second, tasks.Limits{}); err != nil {
		t.Fatal(err)
	}
	r.handle(first)
	r.handle(second)
	imp, err := r.store.Get(t.Context(), tasks.Scope{Region: region, Tenant: "d2"}, second.ID)
	if err != nil || imp.State != tasks.Failed || imp.Failure.Code != "image_id_in_use" {
		t.Errorf("%+v, %v", imp, err)
	}
	r.wantImage(first, b)
}

// TestRedisAwayInTheMiddle takes Redis down while an import runs: it goes on,
// and finishes when Redis is back.
func TestRedisAwayInTheMiddle(t *testing.T) {
	r := newRig(t)
	b := disk(1, diskSize)
	spec := r.accept(b)
	reached, proceed := make(chan struct{}), make(chan struct{})
	r.claims = &meddling{Claims: r.store, beginPublish: func() {
		close(reached)
		<-proceed
	}}
	runner := r.runner()
	ended := make(chan string, 1)
	go func() {
		outcome, err := runner.Handle(t.Context(), spec.Ref())
		if err != nil {
			t.Error(err)
		}
		ended <- outcome
	}()
	<-reached
	r.redis.Kill()
	close(proceed)
	r.redis.Start()
	switch got := <-ended; got {
	case "succeeded":
	case tasks.OutcomeRetry: // BeginPublish met the gap
		r.claims = r.store
		r.handle(spec)
	default:
		t.Errorf("outcome %q", got)
	}
	r.wantImage(spec, b)
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

func TestCleanUpIsRepeatedUntilItIsDone(t *testing.T) {
	r := newRig(t)
	r.opt.MaxSetbacks = 2
	r.images = &stuck{r.images, 3}
	spec := r.accept(disk(1, diskSize))
	r.objects.with(func(o storage.Object) storage.Object { return flipped{o} })
	for range 3 {
		if got := r.handle(spec); got != tasks.OutcomeLeftovers {
			t.Errorf("outcome %q", got)
		}
		r.objects.with(func(storage.Object) storage.Object { panic("a verdict is not tried again") })
	}
	r.handle(spec)
	r.wantNothing(spec, tasks.Failed, "checksum_mismatch")
}

func TestCanceledCleanUpIsRepeated(t *testing.T) {
	r := newRig(t)
	r.images = &stuck{r.images, 2}
	spec := r.accept(disk(1, diskSize))
	r.claims = &meddling{Claims: r.store, beginPublish: func() { r.cancel(spec) }}
	for range 2 {
		if got := r.handle(spec); got != tasks.OutcomeLeftovers {
			t.Errorf("outcome %q", got)
		}
	}
	if got := r.get(spec).State; got != tasks.Cancelling {
		t.Errorf("state %s", got)
	}
	r.handle(spec)
	r.wantNothing(spec, tasks.Canceled, "")
}

// TestCancelBehindAFailure cancels an import whose worker is about to give it
// back: the cancel does not wait for the next attempt.
func TestCancelBehindAFailure(t *testing.T) {
	r := newRig(t)
	r.opt.Backoff = func(int) time.Duration { return time.Hour }
	spec := r.accept(disk(1, diskSize))
	r.opt.BeatEvery = time.Hour
	r.objects.with(func(o storage.Object) storage.Object {
		broken := storagetest.Break(o, storagetest.FailOpen, diskSize/2+chunk, -1, errors.New("connection refused"))
		return replacing{broken, func(context.Context) { r.cancelOnce(spec) }}
	})
	if got := r.handle(spec); got != "canceled" {
		t.Errorf("outcome %q", got)
	}
	r.wantNothing(spec, tasks.Canceled, "")
}

func TestQueueGivesTheTaskUp(t *testing.T) {
	r := newRig(t)
	b := disk(1, diskSize)
	spec := r.accept(b)
	r.objects.with(stallAt(diskSize / 2))
	ctx, stop := context.WithCancelCause(t.Context())
	defer stop(nil)
	go func() {
		r.until(spec, "the middle", func(i *tasks.Import) bool { return i.DoneBytes > diskSize/3 })
		stop(tasks.ErrTaskLost)
	}()
	outcome, err := r.runner().Handle(ctx, spec.Ref())
	if imp := r.get(spec); outcome != tasks.OutcomeDrained || err != nil || imp.State != tasks.Queued || imp.Crashes+imp.Setbacks != 0 {
		t.Errorf("outcome %q, %v: %+v", outcome, err, imp)
	}
	r.objects.with(func(o storage.Object) storage.Object { return o })
	r.handle(spec)
	r.wantImage(spec, b)
}

// TestShutOutAttemptStopsReading lets another take the image over, while the
// record still says that the attempt holds the claim.
func TestShutOutAttemptStopsReading(t *testing.T) {
	r := newRig(t)
	spec := r.accept(disk(1, diskSize))
	r.objects.with(func(o storage.Object) storage.Object {
		return replacing{o, func(ctx context.Context) {
			if err := r.images.Remove(t.Context(), string(spec.ID), spec.ImageID); err != nil {
				t.Error(err)
			}
			<-ctx.Done() // no more bytes: only the checkpoint can end it
		}}
	})
	r.opt.Fetch.MarkEvery = chunk
	outcome, err := r.runner().Handle(t.Context(), spec.Ref())
	if outcome != tasks.OutcomeLost || err != nil {
		t.Errorf("outcome %q, %v", outcome, err)
	}
}

func TestRegionThatIsNotServed(t *testing.T) {
	r := newRig(t)
	b := disk(1, diskSize)
	spec, canceled := r.accept(b), r.accept(b)
	elsewhere := New(r.claims, nil, r.opt)
	for range 2 * New(nil, nil, Options{}).opt.MaxSetbacks {
		if outcome, err := elsewhere.Handle(t.Context(), spec.Ref()); outcome != tasks.OutcomeDrained || err != nil {
			t.Errorf("outcome %q, %v", outcome, err)
		}
	}
	if c := r.get(spec).Attempts[0].Cause; c == nil || c.Code != "region_not_served" {
		t.Errorf("cause %+v", c)
	}
	r.cancel(canceled)
	r.handle(spec)
	r.wantImage(spec, b)
}

func TestPreflight(t *testing.T) {
	r := newRig(t)
	good := r.accept(disk(1, diskSize))
	r.handle(good)
	loc := storage.Location(good.Disks[0].Object)
	qcow2 := loc
	qcow2.Name = "disk.qcow2"
	r.memory.Put(qcow2, append([]byte("QFI\xfb\x00\x00\x00\x03"), make([]byte, 4096)...))
	empty := loc
	empty.Name = "empty.raw"
	r.memory.Put(empty, nil)
	missing := loc
	missing.Name = "missing.raw"
	for name, c := range map[string]struct {
		loc    storage.Location
		format string
		max    int64
		image  string
		region string
		code   string
	}{
		"good":            {loc: loc, format: "raw", region: region},
		"not declared":    {loc: loc, region: region},
		"missing":         {loc: missing, region: region, code: "object_not_found"},
		"empty":           {loc: empty, region: region, code: "object_empty"},
		"unsupported":     {loc: qcow2, format: "qcow2", region: region, code: "format_unsupported"},
		"lying extension": {loc: qcow2, format: "raw", region: region, code: "format_mismatch"},
		"too large":       {loc: loc, region: region, max: diskSize - 1, code: "disk_too_large"},
		"image exists":    {loc: loc, region: region, image: good.ImageID, code: "image_id_in_use"},
		"no such region":  {loc: loc, region: "elsewhere", code: "internal_error"},
	} {
		t.Run(name, func(t *testing.T) {
			spec := &tasks.Spec{Region: c.region, ImageID: c.image, Disks: []tasks.Disk{{Object: tasks.Object(c.loc), Format: c.format}}}
			if spec.ImageID == "" {
				spec.ImageID = uuid.NewString()
			}
			err := NewPreflight(r.runner().regions, map[string]int64{region: c.max}).Check(t.Context(), spec)
			if got := fault.CodeOf(err); got != c.code {
				t.Errorf("code %q, want %q: %v", got, c.code, err)
			}
			if c.code == "" && (spec.Disks[0].Bytes != diskSize || spec.Disks[0].Version == "") {
				t.Errorf("disk %+v", spec.Disks[0])
			}
		})
	}
}

// TestAnOldHiccupDoesNotCount: setbacks that an import has left behind do not make
// the next one its last.
func TestAnOldHiccupDoesNotCount(t *testing.T) {
	r := newRig(t)
	r.opt.MaxSetbacks = 3
	b := disk(1, diskSize)
	spec := r.accept(b)
	down := errors.New("connection refused")
	r.objects.with(func(o storage.Object) storage.Object { return storagetest.Break(o, storagetest.FailOpen, 0, -1, down) })
	for range 2 {
		r.handle(spec)
	}
	r.objects.with(func(o storage.Object) storage.Object {
		return gate{o, func() error {
			r.until(spec, "forgiveness", func(i *tasks.Import) bool { return i.Setbacks == 0 })
			return down
		}}
	})
	if got := r.handle(spec); got != tasks.OutcomeRetry {
		t.Errorf("outcome %q", got)
	}
	if imp := r.get(spec); imp.Setbacks != 1 {
		t.Errorf("%d setbacks", imp.Setbacks)
	}
	r.objects.with(func(o storage.Object) storage.Object { return o })
	r.handle(spec)
	r.wantImage(spec, b)
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

func (d *deaf) Beat(ctx context.Context, h tasks.Held, p tasks.Progress, lease time.Duration) (tasks.State, error) {
	if d.cut.Load() {
		return "", fault.New(fault.Unavailable, "store_unavailable", "The record store is not available.")
	}
	return d.Claims.Beat(ctx, h, p, lease)
}

// TestAWorkerGivenUpRemovesNothing: a worker lives on without knowing that another
// has finished the import, and then finds a reason to fail it.
func TestAWorkerGivenUpRemovesNothing(t *testing.T) {
	r := newRig(t)
	b := disk(1, diskSize)
	spec := r.accept(b)
	claims := &deaf{Claims: r.store}
	r.claims = claims
	r.opt.Fetch.MarkEvery = 2 * diskSize
	reached, proceed := make(chan struct{}), make(chan struct{})
	reach := sync.OnceFunc(func() { close(reached) })
	r.objects.with(func(o storage.Object) storage.Object {
		return gate{o, func() error {
			reach()
			<-proceed
			return storage.ErrChanged
		}}
	})
	old, ended := r.runner(), make(chan string, 1)
	go func() {
		outcome, err := old.Handle(t.Context(), spec.Ref())
		if err != nil {
			t.Error(err)
		}
		ended <- outcome
	}()
	<-reached
	claims.cut.Store(true)
	r.expire(spec)
	r.claims = r.store
	r.objects.with(func(o storage.Object) storage.Object { return o })
	r.handle(spec)
	close(proceed)
	if got := <-ended; got != tasks.OutcomeLost {
		t.Errorf("the old worker ended with %q", got)
	}
	r.wantImage(spec, b)
}

// TestVerdictOutlivesItsWorker: the worker that found it dies while it cleans up.
func TestVerdictOutlivesItsWorker(t *testing.T) {
	r := newRig(t)
	r.images = &stuck{r.images, 1}
	spec := r.accept(disk(1, diskSize))
	r.objects.with(func(o storage.Object) storage.Object { return flipped{o} })
	r.handle(spec)
	r.objects.with(func(storage.Object) storage.Object { panic("a verdict is not tried again") })
	if _, err := r.store.Claim(t.Context(), spec.Ref(), "w0", Lease); err != nil {
		t.Fatal(err)
	}
	r.expire(spec)
	r.handle(spec)
	r.wantNothing(spec, tasks.Failed, "checksum_mismatch")
}
