package glance

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"vmimport/imageapi"
	"vmimport/internal/fault"
)

// stuck leaves an image as a Glance does that is stopped while it takes an upload.
func (r *rig) stuck() {
	r.Helper()
	if err := r.begin(r.spec).Close(); err != nil {
		r.Fatal(err)
	}
	r.glance.set(r.spec.ImageID, "status", saving)
}

func TestStuckSaving(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		keep    bool
		attempt int64
		want    error
	}{
		{false, 2, imageapi.ErrSpent},
		{true, 2, errBusy},
		{true, maxBusy, errBusy},
		{true, maxBusy + 1, imageapi.ErrSpent},
	} {
		t.Run(fmt.Sprintf("keep %v, attempt %d", tt.keep, tt.attempt), func(t *testing.T) {
			t.Parallel()
			r := newRig(t, Options{Patience: 200 * time.Millisecond})
			r.spec.KeepID = tt.keep
			r.stuck()
			began := time.Now()
			u, err := r.images.Begin(t.Context(), r.try(tt.attempt))
			wantError(t, "Begin", err, tt.want)
			if u != nil {
				t.Error("Begin returns an upload with its error")
			}
			if waited := time.Since(began); waited < r.images.patience(r.spec) {
				t.Errorf("gave up after %v", waited)
			}
			if tt.want == errBusy {
				r.wantState(saving)
				if fault.Of(err).Remedy == "" {
					t.Error("no remedy")
				}
				return
			}
			r.wantState("")
			_, err = r.images.Begin(t.Context(), r.try(tt.attempt+1))
			wantError(t, "Begin of a spent id", err, imageapi.ErrSpent)
		})
	}
	t.Run("Remove", func(t *testing.T) {
		t.Parallel()
		for _, keep := range []bool{true, false} {
			r := newRig(t, Options{Patience: 200 * time.Millisecond})
			r.spec.KeepID = keep
			r.stuck()
			r.remove()
			r.wantState("")
		}
	})
	t.Run("Glance lets go in time", func(t *testing.T) {
		t.Parallel()
		r := newRig(t, Options{})
		r.stuck()
		looks := 0
		r.glance.hook(func(_ http.ResponseWriter, req *http.Request) bool {
			if looks++; req.Method == http.MethodGet && looks == 4 {
				r.glance.set(r.spec.ImageID, "status", queued)
			}
			return false
		})
		b := noise(1000, 1)
		if err := r.send(r.begin(r.try(2)), b); err != nil {
			t.Fatal(err)
		}
		r.wantPublished(r.try(2), b)
	})
}

// hook sets before.
func (g *fakeGlance) hook(before func(http.ResponseWriter, *http.Request) bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.before = before
}

// An id that was asked for goes from one import to the next.
func TestParkedID(t *testing.T) {
	t.Parallel()
	r := newRig(t, Options{})
	if err := r.begin(r.spec).Close(); err != nil {
		t.Fatal(err)
	}
	r.remove()
	values := r.glance.read(r.spec.ImageID)
	if values["os_hidden"] != true || values["name"] != "" || values[propImport] != nil || values["os_type"] != nil || values["vmimport_region"] != nil {
		t.Errorf("the parked image is %v", values)
	}
	if _, err := r.images.Get(t.Context(), r.spec.ImageID); !errors.Is(err, imageapi.ErrNoImage) {
		t.Errorf("Get: %v", err)
	}
	r.remove()
	r.wantState(queued)

	next := r.spec
	next.ImportID, next.Name, next.Format, next.MinDisk, next.OSType = uuid.NewString(), "db01", "qcow2", 7, ""
	u := r.begin(next)
	b := noise(5000, 2)
	if err := r.send(u, b); err != nil {
		t.Fatal(err)
	}
	r.wantPublished(next, b)
	if values := r.glance.read(r.spec.ImageID); values["disk_format"] != "qcow2" || values["min_disk"] != 7.0 || values["os_hidden"] != false || values["os_type"] != nil {
		t.Errorf("the image is %v", values)
	}
	r.remove()
	r.wantPublished(next, b)
}

// Of two imports that take over one parked id, Glance may let both do so: each reads
// the image before the other writes it.
func TestParkedIDForTwo(t *testing.T) {
	t.Parallel()
	r := newRig(t, Options{Patience: 2 * time.Second})
	if err := r.begin(r.spec).Close(); err != nil {
		t.Fatal(err)
	}
	r.remove()
	both := sync.WaitGroup{}
	both.Add(2)
	var times sync.Mutex
	n := 0
	r.glance.amid = func(string) {
		times.Lock()
		first := n < 2
		n++
		times.Unlock()
		if first {
			both.Done()
			both.Wait()
		}
	}
	specs := []imageapi.Spec{r.spec, r.spec}
	errs := make([]error, 2)
	var done sync.WaitGroup
	for i := range specs {
		specs[i].ImportID, specs[i].Name = uuid.NewString(), fmt.Sprintf("image %d", i)
		done.Go(func() {
			u, err := r.images.Begin(t.Context(), specs[i])
			if err == nil {
				w, _, _ := u.Disk(t.Context(), imageapi.DiskSpec{Number: 1, Size: 1000})
				if err = write(w, noise(1000, uint64(i))); err == nil {
					err = u.Publish(t.Context(), someFacts)
				}
				_ = u.Close()
			}
			errs[i] = err
		})
	}
	done.Wait()
	won := 0
	if errs[0] != nil {
		won = 1
	}
	if errs[won] != nil {
		t.Fatalf("nobody published: %v, %v", errs[0], errs[1])
	}
	wantError(t, "the other import", errs[1-won], imageapi.ErrTaken)
	r.wantPublished(specs[won], noise(1000, uint64(won)))
}

// An upload is to be broken off when Glance has only read the image, and not begun to
// save. That is waited for, so that it cannot undo what comes after.
func TestBrokenOffAtTheBeginning(t *testing.T) {
	t.Parallel()
	r := newRig(t, Options{Patience: time.Minute})
	u := r.begin(r.spec)
	started, looked := make(chan struct{}), make(chan struct{})
	r.glance.starting = func() {
		close(started)
		<-looked
	}
	if _, err := r.disk(u, 1<<20).WriteAt(noise(1<<19, 1), 0); err != nil {
		t.Fatal(err)
	}
	<-started
	var once sync.Once
	r.glance.hook(func(_ http.ResponseWriter, req *http.Request) bool {
		if req.Method == http.MethodGet {
			once.Do(func() { close(looked) })
		}
		return false
	})
	if err := u.Close(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-looked:
	default:
		t.Error("the upload was broken off before it had begun")
		once.Do(func() { close(looked) })
	}
	r.remove()
	r.glance.uploads.Wait()
	if values := r.glance.read(r.spec.ImageID); values[propParked] != yes || values["status"] != queued {
		t.Errorf("the image is %v", values)
	}
	r.wantAsked("PATCH", 1)
}

// Glance is too slow for that, and goes on with the upload when the image was parked.
func TestParkingBesideUpload(t *testing.T) {
	t.Parallel()
	r := newRig(t, Options{Patience: 4 * time.Second})
	u := r.begin(r.spec)
	w := r.disk(u, 1<<20)
	started, seen := make(chan struct{}), make(chan struct{})
	r.glance.starting = func() {
		close(started)
		<-seen
	}
	if _, err := w.WriteAt(noise(1<<19, 1), 0); err != nil {
		t.Fatal(err)
	}
	<-started
	if err := u.Close(); err != nil {
		t.Fatal(err)
	}
	var once sync.Once
	r.glance.hook(func(_ http.ResponseWriter, req *http.Request) bool {
		if req.Method == http.MethodGet && r.glance.read(r.spec.ImageID)[propParked] != nil {
			once.Do(func() { close(seen) })
		}
		return false
	})
	r.remove()
	once.Do(func() { close(seen) })
	r.glance.uploads.Wait()
	if values := r.glance.read(r.spec.ImageID); values[propParked] != yes || values[propImport] != nil || values["status"] != queued {
		t.Errorf("the image is %v", values)
	}
	r.wantAsked("PATCH", 2)
}

// An upload of an earlier attempt begins between the two halves of the change by which
// the later one takes the image up. Glance then has it for queued.
func TestTakeUpBesideUpload(t *testing.T) {
	t.Parallel()
	r := newRig(t, Options{Patience: 2 * time.Second})
	first := r.begin(r.spec)
	b := noise(2<<20, 3)
	old := r.disk(first, int64(len(b)))
	var once sync.Once
	started := make(chan struct{})
	r.glance.taking = func(*http.Request, int64) { once.Do(func() { close(started) }) }
	var race sync.Once
	gone := make(chan struct{})
	r.glance.amid = func(string) {
		race.Do(func() {
			if _, err := old.WriteAt(b[:reserveBytes+1000], 0); err != nil {
				t.Errorf("WriteAt: %v", err)
			}
			<-started
			// It notices after a while that it has lost its import.
			time.AfterFunc(r.images.settle()/2, func() {
				_ = first.Close()
				close(gone)
			})
		})
	}
	second := r.begin(r.try(2))
	if got := r.glance.read(r.spec.ImageID)[propAttempt]; got != "2" {
		t.Errorf("attempt %v has the image", got)
	}
	err := r.send(second, b)
	<-gone
	r.glance.uploads.Wait()
	if err != nil {
		t.Fatal(err)
	}
	r.wantPublished(r.try(2), b)
}

// What happens to the image just before the change that takes it up.
func TestTakeUpComesLate(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		do   func(r *rig)
		want error
	}{
		{"handed over", func(r *rig) {
			r.glance.set(r.spec.ImageID, "owner", r.spec.Owner)
			r.glance.unset(r.spec.ImageID, propAttempt)
		}, nil},
		{"handed over to the service's own project", func(r *rig) {
			r.glance.set(r.spec.ImageID, "owner", own)
			r.glance.unset(r.spec.ImageID, propAttempt)
		}, imageapi.ErrTaken},
		{"deleted", func(r *rig) { r.glance.destroy(r.spec.ImageID) }, imageapi.ErrSpent},
		{"parked", func(r *rig) {
			for _, name := range []string{propAttempt, propImport, propKeepID} {
				r.glance.unset(r.spec.ImageID, name)
			}
			r.glance.set(r.spec.ImageID, propParked, yes)
		}, nil},
		{"taken over", func(r *rig) {
			r.glance.unset(r.spec.ImageID, propAttempt)
			r.glance.set(r.spec.ImageID, propImport, uuid.NewString())
		}, imageapi.ErrTaken},
		{"taken up by a later attempt", func(r *rig) { r.glance.set(r.spec.ImageID, propAttempt, "9") }, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, Options{})
			_ = r.begin(r.spec).Close()
			var once sync.Once
			r.glance.hook(func(_ http.ResponseWriter, req *http.Request) bool {
				if req.Method == http.MethodPatch {
					once.Do(func() { tt.do(r) })
				}
				return false
			})
			u, err := r.images.Begin(t.Context(), r.try(2))
			wantError(t, "Begin", err, tt.want)
			if err == nil {
				_ = u.Close()
			}
			if values := r.glance.read(r.spec.ImageID); values["owner"] == r.spec.Owner && values[propAttempt] != nil {
				t.Errorf("the customer's image is marked: %v", values)
			}
		})
	}
}

func (g *fakeGlance) unset(id, name string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.rows[id].values, name)
}

func (g *fakeGlance) destroy(id string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.rows[id].deleted = true
}

// A worker that was stopped after it has looked does nothing to what it finds later.
func TestStaleLook(t *testing.T) {
	t.Parallel()
	r := newRig(t, Options{})
	_ = r.begin(r.spec).Close()
	seen, err := r.images.show(t.Context(), r.spec.ImageID)
	if err != nil {
		t.Fatal(err)
	}
	seen.seen = time.Now().Add(-r.images.settle())
	wantError(t, "delete", r.images.delete(t.Context(), seen), errMoved)
	wantError(t, "update", r.images.update(t.Context(), "park", seen, parking(seen)), errMoved)
	r.wantAsked("DELETE", 0)
	r.wantAsked("PATCH", 0)
	r.wantState(queued)
}

// Before Glance removes an image it removes its properties.
func TestImageThatIsBeingDeleted(t *testing.T) {
	t.Parallel()
	for _, status := range []string{"deleted", "pending_delete"} {
		r := newRig(t, Options{})
		r.glance.put(r.spec.ImageID, map[string]any{"owner": own, "status": status})
		_, err := r.images.Begin(t.Context(), r.spec)
		wantError(t, "Begin", err, imageapi.ErrSpent)
		r.remove()
	}
}

// Customers make images with whatever id, and change their own.
func TestCustomers(t *testing.T) {
	t.Parallel()
	theirs := func(r *rig, owner string, more map[string]any) {
		values := map[string]any{"owner": owner, propImport: r.spec.ImportID, propAttempt: "1", propKeepID: yes, propParked: yes}
		for name, value := range more {
			values[name] = value
		}
		r.glance.put(r.spec.ImageID, values)
	}
	for _, tt := range []struct {
		name        string
		make        func(r *rig)
		begin       error
		removed     bool // by Remove
		requestsPut int
	}{
		{"an image of another project that looks like ours", func(r *rig) { theirs(r, "other", nil) }, imageapi.ErrTaken, true, 0},
		{"one without data", func(r *rig) { theirs(r, "other", map[string]any{"status": queued}) }, imageapi.ErrTaken, true, 0},
		{"a protected one", func(r *rig) { theirs(r, "other", map[string]any{"protected": true}) }, imageapi.ErrTaken, false, 0},
		{"one of another import", func(r *rig) { theirs(r, "customer", map[string]any{propImport: "x"}) }, imageapi.ErrTaken, false, 0},
		{"nothing of ours", func(r *rig) { r.glance.put(r.spec.ImageID, map[string]any{"owner": "customer"}) }, imageapi.ErrTaken, false, 0},
		// Who makes the image that they asked for has it.
		{"their own in the import's place", func(r *rig) { theirs(r, "customer", map[string]any{"protected": true}) }, nil, false, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, Options{})
			tt.make(r)
			u, err := r.images.Begin(t.Context(), r.spec)
			wantError(t, "Begin", err, tt.begin)
			if err == nil {
				if err := r.send(u.(*upload), noise(1000, 1)); err != nil {
					t.Errorf("Publish: %v", err)
				}
			}
			r.wantAsked("PUT", tt.requestsPut)
			r.wantAsked("PATCH", 0)
			r.remove()
			if gone := r.glance.state(r.spec.ImageID) == ""; gone != tt.removed {
				t.Errorf("removed: %v", gone)
			}
		})
	}
}

func TestRemoveIsCanceled(t *testing.T) {
	t.Parallel()
	r := newRig(t, Options{Patience: time.Hour})
	r.stuck()
	ctx, cancel := context.WithCancelCause(t.Context())
	cause := errors.New("enough")
	r.glance.hook(func(_ http.ResponseWriter, req *http.Request) bool {
		if req.Method == http.MethodGet {
			cancel(cause)
		}
		return false
	})
	wantError(t, "Remove", r.images.Remove(ctx, r.spec.ImportID, r.spec.ImageID), cause)
	r.wantState(saving)
}
