// Package clienttest is a small service that speaks the REST dialect and keeps
// objects, for tests of what calls it. It imports and exports nothing: a task walks
// through states that the test decides.
package clienttest

import (
	"bytes"
	"crypto/sha1" // the API's choice of hash
	"encoding/hex"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"time"

	"vmimport/internal/client"
	"vmimport/tasks"
)

// What the service knows callers by.
const (
	Token   = "test-token"
	Project = "6f0b1c2d3e4f5a6b7c8d9e0f1a2b3c4d"
)

// Calls that Fail, Hold and Await name.
const (
	Register     = "register"
	Status       = "status"
	List         = "list"
	Cancel       = "cancel"
	Retry        = "retry"
	RetryExport  = "export-retry"
	Events       = "events"
	Export       = "export"
	ExportStatus = "export-status"
	ListExports  = "export-list"
	CancelExport = "export-cancel"
	Object       = "object"
	Container    = "container"
)

// Service is the service. Its zero value is not usable; see New.
type Service struct {
	*httptest.Server

	mu         sync.Mutex
	changed    *sync.Cond
	objects    map[string][]byte // by container "/" name
	containers map[string]bool
	targets    []string // of PUT requests, as they came
	registered []client.Registration
	requested  []client.ExportRequest
	imports    *shelf
	exports    *shelf
	plans      map[string][]client.Task // by the image's name, for exports by its id
	calls      map[string]int
	failures   map[string][]failure
	gates      map[string]*gate
	stream     string
}

type failure struct {
	status     int // 0: the connection is lost
	retryAfter string
	heard      bool // the call is handled, and then the connection lost
}

type gate struct {
	once    sync.Once
	reached chan struct{}
	open    chan struct{}
}

// New starts a Service. Close ends it.
func New() *Service {
	s := &Service{
		objects: map[string][]byte{}, containers: map[string]bool{}, plans: map[string][]client.Task{},
		imports: newShelf(tasks.KindImport, 100, "40037"), exports: newShelf(tasks.KindExport, 200, "40010"),
		calls: map[string]int{}, failures: map[string][]failure{}, gates: map[string]*gate{},
	}
	s.changed = sync.NewCond(&s.mu)
	mux := http.NewServeMux()
	mux.Handle("POST /v1/imageimport", s.serve(Register, s.register))
	mux.Handle("POST /v1/expansionstorageimageimport", s.serve(Register, s.register))
	mux.Handle("GET /v1/imageimport", s.serve(List, s.locked(s.imports.list)))
	mux.Handle("GET /v1/imageimport/{id}/status", s.serve(Status, s.locked(s.imports.status)))
	mux.Handle("POST /v1/imageimport/{id}/cancel", s.serve(Cancel, s.locked(s.imports.cancel)))
	mux.Handle("POST /v1/imageimport/{id}/retry", s.serve(Retry, s.locked(s.imports.retry)))
	mux.Handle("POST /v1/imageexport/{id}/retry", s.serve(RetryExport, s.locked(s.exports.retry)))
	mux.Handle("GET /v1/events", s.serve(Events, s.events))
	mux.Handle("POST /v1/imageexport", s.serve(Export, s.locked(s.export)))
	mux.Handle("GET /v1/imageexport", s.serve(ListExports, s.locked(s.exports.list)))
	mux.Handle("GET /v1/imageexport/{id}/status", s.serve(ExportStatus, s.locked(s.exports.status)))
	mux.Handle("POST /v1/imageexport/{id}/cancel", s.serve(CancelExport, s.locked(s.exports.cancel)))
	mux.Handle("PUT /v2/AUTH_"+Project+"/{container}", s.serve(Container, s.putContainer))
	mux.Handle("PUT /v2/AUTH_"+Project+"/{container}/{object...}", s.serve(Object, s.putObject))
	s.Server = httptest.NewServer(mux)
	return s
}

// ObjectsURL is where the service keeps objects.
func (s *Service) ObjectsURL() string { return s.URL + "/v2/AUTH_" + Project }

// Location names an object for a registration.
func Location(container, name string) string {
	return client.Gen3.Location(Project, client.Object{Container: container, Name: name})
}

// PutObject keeps an object, as if it had been uploaded.
func (s *Service) PutObject(container, name string, content []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.containers[container] = true
	s.objects[container+"/"+name] = content
}

// Object returns a kept object.
func (s *Service) Object(container, name string) (content []byte, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	content, ok = s.objects[container+"/"+name]
	return content, ok
}

// Targets returns the targets of all PUT requests, as they came over the wire.
func (s *Service) Targets() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.targets)
}

// Registered returns the accepted registrations, oldest first.
func (s *Service) Registered() []client.Registration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.registered)
}

// Exported returns the accepted requests for exports, oldest first.
func (s *Service) Exported() []client.ExportRequest {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.requested)
}

// Add keeps an import that walks through steps, one for each status call, and
// stays at the last.
func (s *Service) Add(id tasks.ID, steps ...client.Import) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.imports.add(id, stepsOf(steps))
}

// AddExport keeps an export, as Add does an import.
func (s *Service) AddExport(id tasks.ID, steps ...client.Export) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.exports.add(id, stepsOf(steps))
}

// Plan decides the steps of the imports of that name that are registered later.
func (s *Service) Plan(name string, steps ...client.Import) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.plans[name] = stepsOf(steps)
}

// PlanExport decides the steps of the exports of an image that are registered later.
func (s *Service) PlanExport(imageID string, steps ...client.Export) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.plans[imageID] = stepsOf(steps)
}

// Tell decides what the stream of all events has: its frames, as they are sent. It is all
// sent to whoever names no event that was before, and to others nothing.
func (s *Service) Tell(frames string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stream = frames
}

func (s *Service) events(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	stream := s.stream
	s.mu.Unlock()
	w.Header().Set("Content-Type", "text/event-stream")
	if r.Header.Get("Last-Event-ID") == "" {
		_, _ = io.WriteString(w, stream)
	}
}

// Fail makes the next n of the named calls fail with an HTTP status, or for 0
// by a lost connection. retryAfter is a header; it may be empty.
func (s *Service) Fail(call string, n, status int, retryAfter string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for range n {
		s.failures[call] = append(s.failures[call], failure{status: status, retryAfter: retryAfter})
	}
}

// Lose loses the connection of the next n of the named calls when they have been
// handled, so that nobody hears of that.
func (s *Service) Lose(call string, n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for range n {
		s.failures[call] = append(s.failures[call], failure{heard: true})
	}
}

// Hold stops the named calls until release, and closes reached when the first
// has come. An Object call stops when it has read the first byte.
func (s *Service) Hold(call string) (reached <-chan struct{}, release func()) {
	g := &gate{reached: make(chan struct{}), open: make(chan struct{})}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.gates[call] = g
	return g.reached, sync.OnceFunc(func() { close(g.open) })
}

// Await returns when n of the named calls have come.
func (s *Service) Await(call string, n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.calls[call] < n {
		s.changed.Wait()
	}
}

// Calls returns how many of the named calls have come.
func (s *Service) Calls(call string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.calls[call]
}

func (s *Service) pass(call string) {
	s.mu.Lock()
	g := s.gates[call]
	s.mu.Unlock()
	if g != nil {
		g.once.Do(func() { close(g.reached) })
		<-g.open
	}
}

func (s *Service) serve(call string, handle http.HandlerFunc) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		s.calls[call]++
		s.changed.Broadcast()
		var fail *failure
		if queue := s.failures[call]; len(queue) > 0 {
			fail, s.failures[call] = &queue[0], queue[1:]
		}
		s.mu.Unlock()
		switch {
		case fail != nil && fail.heard:
			handle(httptest.NewRecorder(), r)
			panic(http.ErrAbortHandler)
		case fail != nil && fail.status == 0:
			panic(http.ErrAbortHandler)
		case fail != nil:
			if fail.retryAfter != "" {
				w.Header().Set("Retry-After", fail.retryAfter)
			}
			refuse(w, fail.status, "50301", "The service is temporarily unavailable.")
		case r.Header.Get("X-Auth-Token") != Token:
			refuse(w, http.StatusUnauthorized, "40101", "The token is missing, invalid or expired.")
		default:
			if call != Object {
				s.pass(call)
			}
			handle(w, r)
		}
	})
}

// locked has a call handled under the mutex.
func (s *Service) locked(handle http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		defer s.mu.Unlock()
		handle(w, r)
	}
}

func refuse(w http.ResponseWriter, status int, code, message string) {
	answer(w, status, map[string]string{"error_code": code, "message": message})
}

func answer(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body)
}

func (s *Service) putContainer(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.targets = append(s.targets, r.RequestURI)
	s.containers[r.PathValue("container")] = true
	w.WriteHeader(http.StatusCreated)
}

func (s *Service) putObject(w http.ResponseWriter, r *http.Request) {
	container := r.PathValue("container")
	s.mu.Lock()
	s.targets = append(s.targets, r.RequestURI)
	exists := s.containers[container]
	s.mu.Unlock()
	if !exists {
		refuse(w, http.StatusNotFound, "", "No such container.")
		return
	}
	var content bytes.Buffer
	_, _ = io.CopyN(&content, r.Body, 1) // an error comes again below
	s.pass(Object)
	if _, err := content.ReadFrom(r.Body); err != nil || int64(content.Len()) != r.ContentLength {
		refuse(w, http.StatusUnprocessableEntity, "", "The object is cut short.")
		return
	}
	s.PutObject(container, r.PathValue("object"), content.Bytes())
	w.WriteHeader(http.StatusCreated)
}

func (s *Service) register(w http.ResponseWriter, r *http.Request) {
	var req client.Registration
	if json.NewDecoder(r.Body).Decode(&req) != nil {
		refuse(w, http.StatusBadRequest, "40016", "The request body is not a JSON object.")
		return
	}
	req.Expansion = r.URL.Path != "/v1/imageimport"
	s.mu.Lock()
	defer s.mu.Unlock()
	object, own := strings.CutPrefix(req.Location, "/v2/AUTH_"+Project+"/")
	content, found := s.objects[object]
	switch {
	case req.Location != "" && !own:
		refuse(w, http.StatusBadRequest, "40004", "Parameter 'location' has invalid value.")
		return
	case req.Location != "" && !found:
		refuse(w, http.StatusBadRequest, "40014", "The object does not exist or cannot be read.")
		return
	}
	sum := sha1.Sum(content)
	steps := []client.Import{{State: tasks.Queued}, {State: tasks.Processing, Progress: 40}, {State: tasks.Succeeded, Progress: 100}}
	if plan := s.plans[req.Name]; plan != nil {
		steps = planned[client.Import](plan)
	} else if found && req.Checksum != "" && !strings.EqualFold(req.Checksum, hex.EncodeToString(sum[:])) {
		steps = Failed("checksum_mismatch", "Checksum of the image file does not match.", "Upload the file again.")
	}
	image := req.ID
	if image == "" {
		image = "10000000-0000-4000-8000-000000000001"
	}
	for i := range steps {
		steps[i].Name, steps[i].ID, steps[i].OSType = req.Name, image, req.OSType
		steps[i].Location, steps[i].S3Location, steps[i].Checksum = req.Location, req.S3Location, req.Checksum
	}
	s.registered = append(s.registered, req)
	s.imports.register(w, stepsOf(steps))
}

// Failed are the steps of an import that is queued and then fails. As the real
// service does, the message has the remedy too.
func Failed(code, message, remedy string) []client.Import {
	return []client.Import{{State: tasks.Queued}, {
		State: tasks.Failed, ErrorMessage: message + " " + remedy,
		Extra: client.Extra{Run: client.Run{FailureCode: code, Remedy: remedy, FinishedAt: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}},
	}}
}
