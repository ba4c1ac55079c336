package fjcloud_test

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"vmimport/imageapi"
	"vmimport/internal/auth"
	"vmimport/internal/events"
	"vmimport/internal/fault"
	"vmimport/internal/httpapi"
	"vmimport/internal/httpapi/fjcloud"
	"vmimport/storage"
	"vmimport/tasks"
)

const (
	alicesProject = "6f0b1c2d3e4f5a6b7c8d9e0f1a2b3c4d"
	bobsProject   = "0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b" // of the same domain
	carolsProject = "ca401ca401ca401ca401ca401ca401ca" // of another
)

// Images that can be exported.
const (
	alicesImage = "5b1c1c0e-53a7-4c2a-9a53-2d0f0c1b8a77"
	alicesOther = "6c2d2d1f-64b8-4d3b-8b64-3e1f1d2c9b88"
	bobsImage   = "b0b0b0b0-0000-4000-8000-000000000001"
)

// callers by their tokens.
var callers = map[string]*auth.Identity{
	"alice":     {UserID: "u-alice", ProjectID: alicesProject, DomainID: "contract01", Roles: []string{"importer"}},
	"bob":       {UserID: "u-bob", ProjectID: bobsProject, DomainID: "contract01", Roles: []string{"reader"}},
	"carol":     {UserID: "u-carol", ProjectID: carolsProject, DomainID: "contract02", Roles: []string{"importer"}},
	"dora":      {UserID: "u-dora", DomainID: "contract01", Roles: []string{"importer"}},
	"no-domain": {UserID: "u-eve", ProjectID: alicesProject, Roles: []string{"importer"}},
}

type fakeTokens struct{}

func (fakeTokens) Authenticate(_ context.Context, token string) (*auth.Identity, error) {
	if token == "identity-service-down" {
		return nil, fault.Wrap(errors.New("dial tcp 10.0.0.7:5000: refused"), fault.Unavailable, "keystone_unavailable", "The identity service does not answer.")
	}
	if who := callers[token]; who != nil {
		return who, nil
	}
	return nil, auth.ErrNoIdentity
}

// fakeService keeps imports and exports in memory, by the contract of tasks.Records.
type fakeService struct {
	mu      sync.Mutex
	imports []*tasks.Task     // and exports, oldest first
	objects map[string]string // content by container "/" name; of those that are read
	taken   string            // image id of an image that is there
	images  map[string]string // projects of those that can be exported, by image id; all are called web01
	now     time.Time
	fails   error // of the next call
	journal *fakeJournal
	onGet   func() // called when a record has been looked for, before it is read
}

func newFakeService() *fakeService {
	return &fakeService{
		objects: map[string]string{},
		images:  map[string]string{alicesImage: alicesProject, alicesOther: alicesProject, bobsImage: bobsProject},
		now:     time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC),
		journal: newFakeJournal(),
	}
}

// enter locks the fake and returns what the call is to fail with.
func (f *fakeService) enter() error {
	f.mu.Lock()
	err := f.fails
	f.fails = nil
	return err
}

func (f *fakeService) Register(_ context.Context, spec *tasks.Spec) (*tasks.Task, bool, error) {
	defer f.mu.Unlock()
	if err := f.enter(); err != nil {
		return nil, false, err
	}
	for i := range spec.Disks {
		disk := &spec.Disks[i]
		if strings.Contains(disk.Object.Name, "missing") {
			return nil, false, storage.ErrNoObject
		}
		disk.Bytes, disk.Version = 4<<30, "v1"
	}
	if err := f.admit(spec); err != nil {
		return nil, false, err
	}
	f.now = f.now.Add(time.Second)
	spec.RequestedAt = f.now
	imp := &tasks.Task{Spec: *spec, State: tasks.Queued, Stage: tasks.StageWaiting}
	f.imports = append(f.imports, imp)
	f.journal.note(imp)
	return clone(imp), true, nil
}

// admit checks the rules about images.
func (f *fakeService) admit(spec *tasks.Spec) error {
	if spec.Export != nil {
		return f.admitExport(spec)
	}
	for _, i := range f.imports {
		if i.Export == nil && i.ImageID == spec.ImageID && !i.State.Final() {
			return tasks.ErrImageIDInUse
		}
	}
	if spec.ImageID == f.taken {
		return tasks.ErrImageIDInUse
	}
	return nil
}

// admitExport also fills in what a look at the image tells.
func (f *fakeService) admitExport(spec *tasks.Spec) error {
	e := spec.Export
	switch project, ok := f.images[spec.ImageID]; {
	case !ok:
		return imageapi.ErrNoImage
	case project != spec.Owner.Project:
		return errNotOwned
	case strings.Contains(e.Container, "missing"):
		return storage.ErrNoContainer
	case f.objects[e.Container+"/web01.img.gz"] != "":
		return storage.ErrObjectExists
	}
	spec.Name, e.Format, e.Bytes, e.VirtualBytes, e.Version = "web01", "raw", 4<<30, 40<<30, "v1"
	for _, t := range f.imports {
		if t.Export == nil || t.State.Final() || t.Owner != spec.Owner || t.Export.Container != e.Container {
			continue
		}
		if t.ImageID == spec.ImageID {
			return tasks.ErrImageExporting
		}
		return tasks.ErrNameExporting
	}
	return nil
}

var errNotOwned = fault.New(fault.NotFound, "image_not_owned", "The image is of another project.").Saw("owner %s", bobsProject)

func (f *fakeService) ReadObject(_ context.Context, region string, o tasks.Object, limit int64) ([]byte, error) {
	defer f.mu.Unlock()
	if err := f.enter(); err != nil {
		return nil, err
	}
	content, ok := f.objects[o.Container+"/"+o.Name]
	switch {
	case !ok || o.Project != alicesProject || region == "":
		return nil, storage.ErrNoObject
	case int64(len(content)) > limit:
		return nil, tasks.ErrObjectTooLarge.Saw("%d bytes, at most %d are allowed", len(content), limit)
	}
	return []byte(content), nil
}

func (f *fakeService) put(name, content string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.objects[name] = content
}

func clone(imp *tasks.Task) *tasks.Task { c := *imp; return &c }

func inScope(imp *tasks.Task, s tasks.Scope) bool {
	return imp.Region == s.Region && imp.Owner.Tenant == s.Tenant && (s.Project == "" || imp.Owner.Project == s.Project) &&
		(s.Dialect == "" || imp.Dialect == s.Dialect) && imp.Kind() == cmp.Or(s.Kind, tasks.KindImport)
}

func (f *fakeService) find(s tasks.Scope, id tasks.ID) (*tasks.Task, error) {
	for _, imp := range f.imports {
		if imp.ID == id && inScope(imp, s) {
			return imp, nil
		}
	}
	return nil, tasks.ErrUnknown
}

func (f *fakeService) Get(_ context.Context, s tasks.Scope, id tasks.ID) (*tasks.Task, error) {
	defer f.mu.Unlock()
	if err := f.enter(); err != nil {
		return nil, err
	}
	if f.onGet != nil {
		f.onGet()
	}
	imp, err := f.find(s, id)
	if err != nil {
		return nil, err
	}
	return clone(imp), nil
}

func (f *fakeService) List(_ context.Context, s tasks.Scope, start, limit int) ([]*tasks.Task, error) {
	defer f.mu.Unlock()
	if err := f.enter(); err != nil {
		return nil, err
	}
	var list []*tasks.Task
	for _, imp := range slices.Backward(f.imports) {
		if inScope(imp, s) {
			list = append(list, imp)
		}
	}
	start = min(start, len(list))
	list = list[start:min(start+limit, len(list))]
	for i, imp := range list {
		list[i] = clone(imp)
	}
	return list, nil
}

func (f *fakeService) Cancel(_ context.Context, s tasks.Scope, id tasks.ID) (tasks.State, error) {
	defer f.mu.Unlock()
	if err := f.enter(); err != nil {
		return "", err
	}
	imp, err := f.find(s, id)
	if err != nil {
		return "", err
	}
	switch imp.State {
	case tasks.Queued:
		imp.State, imp.FinishedAt, imp.Stage = tasks.Canceled, f.now, tasks.StageDone
	case tasks.Processing:
		imp.State, imp.Stage = tasks.Cancelling, tasks.StageCleaning
	case tasks.Cancelling, tasks.Canceled:
		return "", tasks.ErrCancelRequested
	default:
		return "", tasks.ErrFinished
	}
	f.journal.note(imp)
	return imp.State, nil
}

func (f *fakeService) Retry(_ context.Context, s tasks.Scope, id tasks.ID) error {
	defer f.mu.Unlock()
	if err := f.enter(); err != nil {
		return err
	}
	imp, err := f.find(s, id)
	switch {
	case err != nil:
		return err
	case imp.State != tasks.Failed:
		return tasks.ErrNotFailed
	}
	imp.State, imp.Stage, imp.Failure, imp.FinishedAt, imp.KeptUntil = tasks.Queued, tasks.StageWaiting, nil, time.Time{}, time.Time{}
	imp.Retried++
	f.journal.note(imp)
	return nil
}

// Position of a task is what it would be if no other tenant had any.
func (f *fakeService) Position(_ context.Context, t *tasks.Task) (*tasks.Position, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if t.Name == "unplaced" {
		return nil, tasks.ErrUnknown
	}
	pos := &tasks.Position{}
	for _, imp := range f.imports {
		if imp.Owner.Tenant == t.Owner.Tenant && imp.State == tasks.Queued {
			pos.Number++
		}
		if imp.ID == t.ID {
			break
		}
	}
	if pos.Number == 1 {
		pos.Start = f.now.Add(time.Minute)
	}
	return pos, nil
}

// change alters the newest import behind the API's back, as workers do.
func (f *fakeService) change(do func(*tasks.Task)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	imp := f.imports[len(f.imports)-1]
	before := imp.State
	do(imp)
	if imp.State != before {
		f.journal.note(imp)
	}
}

// world is a server with regions of all kinds, told apart by host.
type world struct {
	http.Handler
	service *fakeService
	hub     *events.Hub
	log     *lockedBuffer
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{service: newFakeService(), log: &lockedBuffer{}}
	w.hub = events.New(w.service.journal, events.Options{PerTenant: 3})
	t.Cleanup(w.hub.Close)
	var serial atomic.Int64
	newID := func() string { return fmt.Sprintf("c0ffee00-0000-4000-8000-%012d", serial.Add(1)) }
	var regions []httpapi.Region
	for _, r := range []struct {
		name string
		opts fjcloud.Options
	}{
		{"gen3", fjcloud.Options{}}, // the first, and so for any other host
		{"classic", fjcloud.Options{Profile: fjcloud.Classic}},
		{"strict", fjcloud.Options{ListScope: fjcloud.ListProject, RequiredRole: "importer"}},
		{"lax", fjcloud.Options{LegacyOSTypes: true, Extensions: []string{".raw", ".img", ".gz"}, TargetFormat: "qcow2"}},
	} {
		r.opts.NewID, r.opts.Events = newID, w.hub
		d, err := fjcloud.New(r.name, w.service, fakeTokens{}, r.opts)
		if err != nil {
			t.Fatal(err)
		}
		regions = append(regions, httpapi.Region{ID: r.name, Hosts: []string{r.name + ".example.test"}, Dialect: d})
	}
	w.Handler = httpapi.New(httpapi.Options{FJcloud: regions, Log: zerolog.New(w.log)})
	return w
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
