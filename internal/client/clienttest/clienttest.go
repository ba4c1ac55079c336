// Package clienttest is a small service that speaks the REST dialect and keeps
// objects, for tests of what calls it. It imports nothing: an import walks
// through states that the test decides.
package clienttest

import (
	"bytes"
	"crypto/sha1" // the API's choice of hash
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
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
	Register  = "register"
	Status    = "status"
	List      = "list"
	Cancel    = "cancel"
	Object    = "object"
	Container = "container"
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
	imports    []*record // oldest first
	plans      map[string][]client.Import
	calls      map[string]int
	failures   map[string][]failure
	gates      map[string]*gate
}

type record struct {
	id       tasks.ID
	steps    []client.Import // the first is what a status call answers
	canceled bool
}

type failure struct {
	status     int
	retryAfter string
}

type gate struct {
	once    sync.Once
	reached chan struct{}
	open    chan struct{}
}

// New starts a Service. Close ends it.
func New() *Service {
	s := &Service{
		objects: map[string][]byte{}, containers: map[string]bool{}, plans: map[string][]client.Import{},
		calls: map[string]int{}, failures: map[string][]failure{}, gates: map[string]*gate{},
	}
	s.changed = sync.NewCond(&s.mu)
	mux := http.NewServeMux()
	mux.Handle("POST /v1/imageimport", s.serve(Register, s.register))
	mux.Handle("POST /v1/expansionstorageimageimport", s.serve(Register, s.register))
	mux.Handle("GET /v1/imageimport", s.serve(List, s.list))
	mux.Handle("GET /v1/imageimport/{id}/status", s.serve(Status, s.status))
	mux.Handle("POST /v1/imageimport/{id}/cancel", s.serve(Cancel, s.cancel))
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

// Add keeps an import that walks through steps, one for each status call, and
// stays at the last.
func (s *Service) Add(id tasks.ID, steps ...client.Import) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.imports = append(s.imports, &record{id: id, steps: steps})
}

// Plan decides the steps of the imports of that name that are registered later.
func (s *Service) Plan(name string, steps ...client.Import) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.plans[name] = steps
}

// Fail makes the next n of the named calls fail with an HTTP status, or for 0
// by a lost connection. retryAfter is a header; it may be empty.
func (s *Service) Fail(call string, n, status int, retryAfter string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for range n {
		s.failures[call] = append(s.failures[call], failure{status, retryAfter})
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
	id := tasks.ID(fmt.Sprintf("00000000-0000-4000-8000-%012d", len(s.imports)+1))
	sum := sha1.Sum(content)
	steps := []client.Import{{State: tasks.Queued}, {State: tasks.Processing, Progress: 40}, {State: tasks.Succeeded, Progress: 100}}
	if plan := s.plans[req.Name]; plan != nil {
		steps = slices.Clone(plan)
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
	s.imports = append(s.imports, &record{id: id, steps: steps})
	answer(w, http.StatusCreated, map[string]tasks.ID{"import_id": id})
}

// Failed are the steps of an import that is queued and then fails. As the real
// service does, the message has the remedy too.
func Failed(code, message, remedy string) []client.Import {
	return []client.Import{{State: tasks.Queued}, {
		State: tasks.Failed, ErrorMessage: message + " " + remedy,
		Extra: client.Extra{FailureCode: code, Remedy: remedy, FinishedAt: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)},
	}}
}

func (s *Service) list(w http.ResponseWriter, r *http.Request) {
	const most = 100
	start, limit := 0, most
	for name, v := range map[string]*int{"start": &start, "limit": &limit} {
		if text := r.FormValue(name); text != "" {
			var err error
			if *v, err = strconv.Atoi(text); err != nil || *v < 0 {
				refuse(w, http.StatusBadRequest, "40035", "Query parameter '"+name+"' has invalid value.")
				return
			}
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	entries := []client.Entry{}
	for _, rec := range slices.Backward(s.imports) {
		entries = append(entries, client.Entry{ImportID: rec.id, State: rec.steps[0].State})
	}
	start = min(start, len(entries))
	entries = entries[start:min(len(entries), start+min(limit, most))]
	answer(w, http.StatusOK, map[string][]client.Entry{"imports": entries})
}

// find returns a record, or answers that there is none. It wants the mutex.
func (s *Service) find(w http.ResponseWriter, r *http.Request) *record {
	i := slices.IndexFunc(s.imports, func(rec *record) bool { return string(rec.id) == r.PathValue("id") })
	if i < 0 {
		refuse(w, http.StatusNotFound, "40401", "Invalid import_id.")
		return nil
	}
	return s.imports[i]
}

func (s *Service) status(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if rec := s.find(w, r); rec != nil {
		now := rec.steps[0]
		if len(rec.steps) > 1 {
			rec.steps = rec.steps[1:]
		}
		answer(w, http.StatusOK, now)
	}
}

func (s *Service) cancel(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	rec := s.find(w, r)
	switch {
	case rec == nil:
	case rec.canceled:
		refuse(w, http.StatusBadRequest, "40037", "A cancel of this import was already accepted.")
	case rec.steps[0].State.Final():
		refuse(w, http.StatusNotFound, "40402", "The import has already finished.")
	default:
		rec.canceled = true
		now := rec.steps[0]
		now.State = tasks.Cancelling
		after := now
		after.State = tasks.Canceled
		rec.steps = []client.Import{now, after}
		w.WriteHeader(http.StatusAccepted)
	}
}
