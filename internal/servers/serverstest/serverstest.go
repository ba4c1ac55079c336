// Package serverstest is a small cloud for tests: identity, compute, block storage and
// images, without a network, so that time may be that of a synctest bubble.
package serverstest

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"sync"
	"time"
)

// AdminPass is in the metadata of each server, and in each answer of Reply's. Nothing
// may ever print it.
const AdminPass = "Adm1nPassw0rd"

// What the cloud knows from its start.
const (
	AuthURL  = "http://cloud.test/identity/v3"
	Project  = "6f0b1c2d3e4f5a6b7c8d9e0f1a2b3c4d"
	Password = "pass-word-9921"

	Token             = "tok-project" // of Project
	TokenUnscoped     = "tok-unscoped"
	TokenDomain       = "tok-domain"            // of the domain contract01
	TokenActsAsDomain = "tok-project-as-domain" // of a project that stands for a domain

	ServerID = "11111111-2222-3333-4444-555555555555" // boots from VolumeID
	VolumeID = "aaaaaaaa-2222-3333-4444-555555555555"
)

// Server is one in the cloud.
type Server struct {
	ID, Name, Project string
	Status, Task      string
	Image             string // empty: boots from a volume
	Volumes           []string
	Devices           []string // of Volumes, in their order
	Locked            bool
	Stuck             bool // accepts changes and makes none

	next string // status after the task
	done time.Time
}

// Volume is one in the cloud.
type Volume struct {
	ID, Name, Status string
	Bootable         bool
	Updated          time.Time
	Properties       map[string]string // of the image that it was made of
}

// Image is one in the cloud.
type Image struct {
	ID, Name, Status, Owner string
	Created                 time.Time
	Properties              map[string]string

	atStart map[string]string // Properties when the bytes began to come
	saved   bool              // its bytes come from this cloud
	volume  string
}

// Cloud is the cloud. Its exported members may be changed between requests.
type Cloud struct {
	PowerTakes time.Duration // for a stop or a start
	QueuedFor  time.Duration // for an image that nobody has begun to write
	SavingFor  time.Duration // for its bytes
	Limit      int           // images in an hour, after which it answers 429; 0: none

	mu      sync.Mutex
	servers map[string]*Server
	volumes map[string]*Volume
	images  map[string]*Image
	replies []*reply
	calls   []string
	token   string // what Token is now; another after RenewToken
}

type reply struct {
	what *regexp.Regexp
	left int
	do   func(http.ResponseWriter, *http.Request) bool
}

// New returns a cloud with a running server, ServerID, which boots from VolumeID.
func New() *Cloud {
	c := &Cloud{
		PowerTakes: 5 * time.Second, QueuedFor: 2 * time.Second, SavingFor: time.Minute,
		servers: map[string]*Server{}, volumes: map[string]*Volume{}, images: map[string]*Image{}, token: Token,
	}
	c.AddVolume(Volume{ID: VolumeID, Bootable: true})
	c.AddServer(Server{ID: ServerID, Name: "web01", Volumes: []string{VolumeID}})
	return c
}

// AddServer adds a server, or replaces it. It is active unless it says otherwise.
func (c *Cloud) AddServer(s Server) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.Status == "" {
		s.Status = "ACTIVE"
	}
	if s.Project == "" {
		s.Project = Project
	}
	c.servers[s.ID] = &s
}

// Server returns a server as it is.
func (c *Cloud) Server(id string) Server {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.servers[id]
	s.advance()
	return *s
}

// AddVolume adds a volume, or replaces it. It is in use unless it says otherwise.
func (c *Cloud) AddVolume(v Volume) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if v.Status == "" {
		v.Status = "in-use"
	}
	c.volumes[v.ID] = &v
}

// AddImage adds an image of Project, or replaces it.
func (c *Cloud) AddImage(i Image) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if i.Owner == "" {
		i.Owner = Project
	}
	c.images[i.ID] = &i
}

// Image returns an image as it is, if it is there.
func (c *Cloud) Image(id string) (Image, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	i := c.images[id]
	if i == nil {
		return Image{}, false
	}
	c.advance(i)
	return *i, true
}

// DeleteImage removes an image.
func (c *Cloud) DeleteImage(id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.images, id)
}

// RenewToken ends the token that was given out for the password.
func (c *Cloud) RenewToken() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.token += "-2"
}

// Reply makes the next n requests that what matches, as "GET /compute/.*", get that
// status and body, together with the secret. Status 0 loses the answer, without or
// after having done what was asked.
func (c *Cloud) Reply(what string, n, status int, body string, header ...string) {
	c.on(what, n, func(w http.ResponseWriter, _ *http.Request) bool {
		for i := 0; i+1 < len(header); i += 2 {
			w.Header().Set(header[i], header[i+1])
		}
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
		return true
	})
}

// Lose makes the next n requests that what matches lose their connection; if done, the
// cloud does what they ask.
func (c *Cloud) Lose(what string, n int, done bool) {
	c.on(what, n, func(w http.ResponseWriter, r *http.Request) bool {
		if done {
			c.serve(httptest.NewRecorder(), r)
		}
		w.Header().Set(lost, "yes")
		return true
	})
}

// On calls f before each of the next n requests that what matches.
func (c *Cloud) On(what string, n int, f func()) {
	c.on(what, n, func(http.ResponseWriter, *http.Request) bool {
		f()
		return false
	})
}

func (c *Cloud) on(what string, n int, do func(http.ResponseWriter, *http.Request) bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.replies = append(c.replies, &reply{regexp.MustCompile("^" + what), n, do})
}

// Calls returns how many requests matched what.
func (c *Cloud) Calls(what string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	n, re := 0, regexp.MustCompile("^"+what)
	for _, call := range c.calls {
		if re.MatchString(call) {
			n++
		}
	}
	return n
}

// lost is a header of answers that never arrive.
const lost = "X-Lost"

// RoundTrip implements http.RoundTripper.
func (c *Cloud) RoundTrip(r *http.Request) (*http.Response, error) {
	if err := r.Context().Err(); err != nil {
		return nil, err
	}
	w := httptest.NewRecorder()
	if !c.scripted(w, r) {
		c.serve(w, r)
	}
	if err := r.Context().Err(); err != nil {
		return nil, err
	}
	if w.Header().Get(lost) != "" {
		return nil, errors.New("broken response " + AdminPass)
	}
	return w.Result(), nil
}

// Client returns a client all of whose requests reach the cloud.
func (c *Cloud) Client() *http.Client { return &http.Client{Transport: c} }

func (c *Cloud) scripted(w http.ResponseWriter, r *http.Request) bool {
	c.mu.Lock()
	call := r.Method + " " + r.URL.RequestURI()
	c.calls = append(c.calls, call)
	var todo []func(http.ResponseWriter, *http.Request) bool
	for _, s := range c.replies {
		if s.left > 0 && s.what.MatchString(call) {
			s.left--
			todo = append(todo, s.do)
			break
		}
	}
	c.mu.Unlock()
	for _, do := range todo {
		if do(w, r) {
			return true
		}
	}
	return false
}

func answer(w http.ResponseWriter, status int, doc any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(doc)
}

// Fault is the body of an answer as Nova and Cinder make it, with the secret beside.
func Fault(status int, name, message string) string {
	b, _ := json.Marshal(map[string]any{name: map[string]any{"code": status, "message": message, "metadata": map[string]string{"admin_pass": AdminPass}}})
	return string(b)
}

func refuse(w http.ResponseWriter, status int, name, format string, args ...any) {
	w.WriteHeader(status)
	_, _ = io.WriteString(w, Fault(status, name, fmt.Sprintf(format, args...)))
}
