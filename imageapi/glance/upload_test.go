package glance

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"

	"vmimport/imageapi"
	"vmimport/internal/fault"
)

// A disk that Glance has stored and nobody has handed over is compared, not sent again.
func TestStoredBefore(t *testing.T) {
	t.Parallel()
	b := noise(400_000, 1)
	for _, tt := range []struct {
		name string
		disk []byte
		want error
	}{
		{"the same", b, nil},
		{"other bytes", noise(400_000, 2), errAltered},
		{"another size", noise(400_001, 1), errAltered},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, Options{})
			first := r.begin(r.spec)
			r.fill(first, b)
			// It dies between the end of the upload and the change of the owner.
			if err := first.disk.deliver(t.Context()); err != nil {
				t.Fatal(err)
			}
			_ = first.Close()
			wantError(t, "Publish", r.send(r.begin(r.try(2)), tt.disk), tt.want)
			r.wantAsked("PUT", 1)
			if tt.want != nil {
				r.wantState("")
				return
			}
			r.wantPublished(r.spec, b)
		})
	}
}

// What Glance says it has stored is compared by whatever hash Glance has.
func TestHashes(t *testing.T) {
	t.Parallel()
	b := noise(300_000, 1)
	for _, tt := range []struct {
		algo      string
		downloads []int // with each image
	}{
		{"sha512", []int{0, 0}},
		{"sha256", []int{1, 1}},
		{"blake", []int{1, 2}},
	} {
		t.Run(tt.algo, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, Options{})
			r.glance.hashing(tt.algo)
			for _, downloads := range tt.downloads {
				r.spec.ImageID = uuid.NewString()
				if err := r.send(r.begin(r.spec), b); err != nil {
					t.Fatal(err)
				}
				r.wantPublished(r.spec, b)
				n := 0
				r.glance.mu.Lock()
				for _, req := range r.glance.requests {
					if strings.HasPrefix(req, "GET") && strings.HasSuffix(req, "/file") {
						n++
					}
				}
				r.glance.mu.Unlock()
				if n != downloads {
					t.Errorf("%d downloads, want %d", n, downloads)
				}
			}
		})
	}
}

// What Glance does not store as it was sent is deleted and not published.
func TestAltered(t *testing.T) {
	t.Parallel()
	b := noise(300_000, 1)
	for name, alter := range map[string]func(r *rig){
		"other hash": func(r *rig) { r.glance.set(r.spec.ImageID, "os_hash_value", strings.Repeat("0", 128)) },
		"other size": func(r *rig) { r.glance.set(r.spec.ImageID, "size", 299_999) },
		"other hash, read back": func(r *rig) {
			r.glance.set(r.spec.ImageID, "os_hash_algo", "blake")
			r.glance.mu.Lock()
			defer r.glance.mu.Unlock()
			r.glance.rows[r.spec.ImageID].data[7]++
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, Options{})
			r.glance.hook(func(_ http.ResponseWriter, req *http.Request) bool {
				if req.Method == http.MethodGet && r.glance.state(r.spec.ImageID) == active {
					alter(r)
				}
				return false
			})
			err := r.send(r.begin(r.spec), b)
			wantError(t, "Publish", err, errAltered)
			if !fault.Retryable(err) {
				t.Error("it is not tried again")
			}
			r.wantState("")
			r.wantAsked("PATCH", 0)
		})
	}
}

// Refusals of whatever Glance, or something before it, in any step.
func TestRefused(t *testing.T) {
	t.Parallel()
	long := "<html><body>" + strings.Repeat("Very long. ", 100_000)
	// More than there is room for, so that the refusal of an upload shows before its end.
	b := noise(bufferBytes+100_000, 1)
	for _, tt := range []struct {
		name   string
		method string
		status int
		text   string
		want   error
	}{
		{"no admin", http.MethodPost, http.StatusForbidden, "You are not authorized", errForbidden},
		{"a format it does not know", http.MethodPost, http.StatusBadRequest, "Invalid disk format", errRefused},
		{"no such API", http.MethodPost, http.StatusNotFound, "", errUnavailable},
		{"a quota for images", http.MethodPost, http.StatusRequestEntityTooLarge, "The request is over quota", imageapi.ErrFull},
		{"trouble", http.MethodPost, http.StatusInternalServerError, long, errUnavailable},
		{"redirect", http.MethodPost, http.StatusTemporaryRedirect, "", errUnavailable},
		{"trouble", http.MethodGet, http.StatusBadGateway, long, errUnavailable},
		{"a policy", http.MethodPatch, http.StatusForbidden, "", errForbidden},
		{"trouble", http.MethodPatch, http.StatusServiceUnavailable, long, errUnavailable},
		{"conflict that stays", http.MethodPatch, http.StatusConflict, "", errUnavailable},
		{"too large", http.MethodPut, http.StatusRequestEntityTooLarge, "The provided image is too large.", errTooLarge},
		{"store full", http.MethodPut, http.StatusRequestEntityTooLarge, "Image storage media is full", imageapi.ErrFull},
		{"not the token", http.MethodPut, http.StatusUnauthorized, "", errUnavailable},
		{"a policy", http.MethodPut, http.StatusForbidden, "", errForbidden},
		{"not the type", http.MethodPut, http.StatusUnsupportedMediaType, "", errRefused},
		{"redirect", http.MethodPut, http.StatusTemporaryRedirect, "", errUnavailable},
		{"store closed", http.MethodPut, http.StatusGone, "Adding images to store is disabled.", errUnavailable},
		{"busy", http.MethodPut, http.StatusConflict, "Image status transition from saving to saving is not allowed", errBusy},
		{"trouble", http.MethodPut, http.StatusServiceUnavailable, long, errUnavailable},
		{"an answer for something else", http.MethodPut, http.StatusOK, "", errUnavailable},
	} {
		t.Run(tt.method+"/"+tt.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, Options{})
			r.glance.hook(func(w http.ResponseWriter, req *http.Request) bool {
				if req.Method != tt.method {
					return false
				}
				w.Header().Set("Location", "http://elsewhere.invalid/")
				say(w, tt.status, tt.text)
				return true
			})
			u, err := r.images.Begin(t.Context(), r.spec)
			if err == nil {
				err = r.send(u.(*upload), b)
				_ = u.Close()
			}
			wantError(t, tt.name, err, tt.want)
			if fault.KindOf(err) == fault.NotFound {
				t.Errorf("%v would end the import for good", err)
			}
			if tt.method == http.MethodPut {
				r.wantAsked("PUT", 1)
				r.wantState(queued)
			}
		})
	}
}

// An image above Glance's limit is refused while it is sent.
func TestTooLarge(t *testing.T) {
	t.Parallel()
	r := newRig(t, Options{})
	r.glance.cap = 1 << 20
	err := r.send(r.begin(r.spec), noise(bufferBytes+1<<20, 1))
	// The answer can be lost behind the body.
	if !errors.Is(err, errTooLarge) && !errors.Is(err, errUnavailable) {
		t.Errorf("Publish: %v", err)
	}
	r.remove()
	if r.glance.read(r.spec.ImageID)[propParked] != yes {
		t.Error("the id is not free")
	}
}

// A connection that ends in the middle costs an attempt, and nothing else.
func TestConnectionEnds(t *testing.T) {
	t.Parallel()
	b := noise(bufferBytes+100_000, 1)
	for _, after := range []int64{0, 1, 1 << 20, int64(len(b)) - 1, int64(len(b))} {
		t.Run("", func(t *testing.T) {
			t.Parallel()
			r := newRig(t, Options{})
			var once sync.Once
			r.glance.hook(func(w http.ResponseWriter, req *http.Request) bool {
				cut := false
				if req.Method == http.MethodPut {
					once.Do(func() { cut = true })
				}
				if cut {
					_, _ = io.CopyN(io.Discard, req.Body, after)
					panic(http.ErrAbortHandler)
				}
				return false
			})
			u := r.begin(r.spec)
			wantError(t, "Publish", r.send(u, b), errUnavailable)
			_ = u.Close()
			r.wantState(queued)
			if err := r.send(r.begin(r.try(2)), b); err != nil {
				t.Fatal(err)
			}
			r.wantPublished(r.spec, b)
		})
	}
}

// An answer before the end is not believed.
func TestAnswerTooEarly(t *testing.T) {
	t.Parallel()
	r := newRig(t, Options{})
	r.glance.hook(func(w http.ResponseWriter, req *http.Request) bool {
		if req.Method == http.MethodPut {
			_, _ = io.CopyN(io.Discard, req.Body, 1000)
			w.WriteHeader(http.StatusNoContent)
			return true
		}
		return false
	})
	u, b := r.begin(r.spec), noise(12<<20, 1)
	wantError(t, "write", write(r.disk(u, int64(len(b))), b), errUnavailable)
	r.wantState(queued)
}

// Nobody waits for ever for a Glance that takes nothing, or does not answer.
func TestGlanceStandsStill(t *testing.T) {
	t.Parallel()
	for name, after := range map[string]int64{"before the first byte": 0, "amid": 1 << 20, "at the end": 12 << 20} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, Options{AnswerTimeout: 300 * time.Millisecond})
			r.glance.hook(func(_ http.ResponseWriter, req *http.Request) bool {
				if req.Method == http.MethodPut {
					_, _ = io.CopyN(io.Discard, req.Body, after)
					<-r.glance.over
					panic(http.ErrAbortHandler)
				}
				return false
			})
			u := r.begin(r.spec)
			wantError(t, "Publish", r.send(u, noise(12<<20, 1)), errUnavailable)
			_ = u.Close()
		})
	}
	t.Run("while it is read back", func(t *testing.T) {
		t.Parallel()
		r := newRig(t, Options{AnswerTimeout: 300 * time.Millisecond})
		r.glance.hashing("blake")
		r.glance.hook(func(w http.ResponseWriter, req *http.Request) bool {
			if req.Method == http.MethodGet && strings.HasSuffix(req.URL.Path, "/file") {
				_, _ = w.Write([]byte{1})
				_ = http.NewResponseController(w).Flush()
				<-r.glance.over
				return true
			}
			return false
		})
		wantError(t, "Publish", r.send(r.begin(r.spec), noise(1000, 1)), errUnavailable)
		r.wantState(active)
	})
}

// A Glance that takes its time is not one that stands still, and a source that falls
// silent does not let the connection fall silent.
func TestSlow(t *testing.T) {
	t.Parallel()
	r := newRig(t, Options{AnswerTimeout: 10 * time.Second, KeepAlive: 5 * time.Millisecond})
	b := noise(reserveBytes+500_000, 1)
	var taken atomic.Int64
	trickled := make(chan struct{})
	var once sync.Once
	r.glance.taking = func(_ *http.Request, n int64) {
		taken.Store(n)
		if n >= int64(len(b))-reserveBytes-1000+5*trickleBytes {
			once.Do(func() { close(trickled) })
		}
	}
	u := r.begin(r.spec)
	w := r.disk(u, int64(len(b)))
	if _, err := w.WriteAt(b[:len(b)-1000], 0); err != nil {
		t.Fatal(err)
	}
	<-trickled // the source is silent meanwhile
	if _, err := w.WriteAt(b[len(b)-1000:], int64(len(b)-1000)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if n := taken.Load(); n >= int64(len(b)) {
		t.Errorf("%d of %d bytes were sent before Publish", n, len(b))
	}
	r.publish(u)
	r.wantPublished(r.spec, b)
}

// The customer's word for the end reaches whoever waits, in any step.
func TestCanceled(t *testing.T) {
	t.Parallel()
	cause := errors.New("enough")
	for _, method := range []string{http.MethodPost, http.MethodGet, http.MethodPatch, http.MethodPut} {
		t.Run(method, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, Options{})
			if method == http.MethodPatch { // that takes the image up
				_ = r.begin(r.spec).Close()
				r.spec.Attempt = 2
			}
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			r.glance.hook(func(_ http.ResponseWriter, req *http.Request) bool {
				if req.Method != method {
					return false
				}
				_, _ = io.CopyN(io.Discard, req.Body, 1000)
				cancel(cause)
				<-r.glance.over
				return true
			})
			u, err := r.images.Begin(ctx, r.spec)
			if err == nil {
				w, _, derr := u.Disk(ctx, imageapi.DiskSpec{Number: 1, Size: 12 << 20})
				if derr != nil {
					t.Fatal(derr)
				}
				err = write(w, noise(12<<20, 1))
				_ = u.Close()
			}
			wantError(t, method, err, cause)
		})
	}
}

// Once Publish has begun the attempt's context is not asked any more; that of Publish is.
func TestCanceledWhilePublishing(t *testing.T) {
	t.Parallel()
	cause := errors.New("enough")
	b := noise(100_000, 1)
	for _, publish := range []bool{false, true} {
		r := newRig(t, Options{})
		attempt, cancelAttempt := context.WithCancelCause(t.Context())
		publishing, cancelPublish := context.WithCancelCause(t.Context())
		r.glance.taking = func(_ *http.Request, n int64) {
			switch {
			case n < int64(len(b)):
			case publish:
				cancelPublish(cause)
			default:
				cancelAttempt(cause)
			}
		}
		u := r.begin(r.spec)
		w, _, err := u.Disk(attempt, imageapi.DiskSpec{Number: 1, Size: int64(len(b))})
		if err != nil {
			t.Fatal(err)
		}
		if err := write(w, b); err != nil {
			t.Fatal(err)
		}
		err = u.Publish(publishing, someFacts)
		if publish {
			wantError(t, "Publish", err, cause)
		} else if err != nil {
			t.Errorf("Publish: %v", err)
		}
		if err := u.Close(); err != nil {
			t.Error(err)
		}
		cancelAttempt(nil)
		cancelPublish(nil)
	}
}

// Close returns at once, with a source that is silent and nothing left to keep the
// connection alive with, even if Glance has ended it.
func TestCloseWhileSilent(t *testing.T) {
	t.Parallel()
	for _, ended := range []bool{false, true} {
		r := newRig(t, Options{})
		drained := make(chan struct{})
		r.glance.hook(func(_ http.ResponseWriter, req *http.Request) bool {
			if req.Method != http.MethodPut {
				return false
			}
			_, _ = io.CopyN(io.Discard, req.Body, 1)
			close(drained)
			if !ended {
				<-r.glance.over
			}
			panic(http.ErrAbortHandler)
		})
		u := r.begin(r.spec)
		if _, err := r.disk(u, 1000).WriteAt([]byte{1, 2}, 0); err != nil {
			t.Fatal(err)
		}
		<-drained // but for the byte that waits for the end
		if err := u.Close(); err != nil {
			t.Error(err)
		}
	}
}

// The change that hands the image over may be done although nobody says so.
func TestHandOverWithoutAnswer(t *testing.T) {
	t.Parallel()
	b := noise(1000, 1)
	for _, tt := range []struct {
		name  string
		times int // that the answer is lost
		done  bool
		want  error
	}{
		{"done", 1, true, nil},
		{"not done once", 1, false, nil},
		{"not done at all", 99, false, errUnavailable},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, Options{})
			n := 0
			r.glance.hook(func(w http.ResponseWriter, req *http.Request) bool {
				if req.Method != http.MethodPatch || n >= tt.times {
					return false
				}
				n++
				if tt.done {
					r.glance.set(r.spec.ImageID, "owner", r.spec.Owner)
					r.glance.unset(r.spec.ImageID, propAttempt)
					r.glance.unset(r.spec.ImageID, propKeepID)
				}
				say(w, http.StatusGatewayTimeout, "")
				return true
			})
			wantError(t, "Publish", r.send(r.begin(r.spec), b), tt.want)
			if tt.want == nil {
				r.wantPublished(r.spec, b)
			}
		})
	}
}

// Who was shut out finds out before the first byte, before the last, and at the hand-over.
func TestShutOut(t *testing.T) {
	t.Parallel()
	b := noise(1000, 1)
	for _, tt := range []struct {
		name string
		do   func(r *rig)
		want error
	}{
		{"by a later attempt", func(r *rig) { r.glance.set(r.spec.ImageID, propAttempt, "2") }, imageapi.ErrShutOut},
		{"by the removal of the image", func(r *rig) { r.glance.destroy(r.spec.ImageID) }, imageapi.ErrShutOut},
		{"by another import", func(r *rig) { r.glance.set(r.spec.ImageID, propImport, "other") }, imageapi.ErrTaken},
	} {
		for step, number := range map[string]int{"first byte": 1, "last byte": 2, "verify": 3, "hand-over": 4} {
			t.Run(tt.name+"/"+step, func(t *testing.T) {
				t.Parallel()
				r := newRig(t, Options{})
				u := r.begin(r.spec)
				looks := 0
				r.glance.hook(func(_ http.ResponseWriter, req *http.Request) bool {
					if req.Method == http.MethodGet {
						if looks++; looks == number {
							tt.do(r)
						}
					}
					return false
				})
				wantError(t, "Publish", r.send(u, b), tt.want)
				r.wantAsked("PATCH", 0)
				if number == 1 {
					r.wantAsked("PUT", 0)
				}
			})
		}
	}
}

// An upload has a token of its own, made just before, and asks once.
func TestToken(t *testing.T) {
	t.Parallel()
	r := newRig(t, Options{})
	tokens := map[string]string{}
	r.glance.hook(func(_ http.ResponseWriter, req *http.Request) bool {
		tokens[req.Method] = req.Header.Get("X-Auth-Token")
		return false
	})
	u := r.begin(r.spec)
	if err := r.send(u, noise(1000, 1)); err != nil {
		t.Fatal(err)
	}
	if tokens[http.MethodPut] == tokens[http.MethodPost] {
		t.Error("the upload has no token of its own")
	}
	// A token that is not taken any more is renewed, for everything else.
	r.glance.mu.Lock()
	r.glance.refused[tokens[http.MethodPut]] = true
	r.glance.mu.Unlock()
	if _, err := r.images.Get(t.Context(), r.spec.ImageID); err != nil {
		t.Errorf("Get: %v", err)
	}
}
