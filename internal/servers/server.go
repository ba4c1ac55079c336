package servers

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"regexp"
	"strings"
	"time"

	"vmimport/internal/fault"
)

// Server is what is known of a server here. Its metadata, where passwords are kept,
// is never read.
type Server struct {
	ID, Name  string
	Status    string // "ACTIVE", "SHUTOFF", "ERROR" and others
	VMState   string // Nova's own, such as "stopped"
	TaskState string // what is being done to it; empty at rest
	Power     int    // 1 running, 4 shut down, 0 not known
	// FromVolume says that it boots from a volume, and not from a copy of an image
	// that the hypervisor keeps.
	FromVolume bool
	ImageID    string   // what it was made of; empty if FromVolume
	Volumes    []string // ids of all that are attached
	Created    time.Time
}

// States that servers are waited for.
const (
	Active  = "ACTIVE"
	ShutOff = "SHUTOFF"
	errored = "ERROR"
)

// Stopped reports whether the server is shut off, and nothing is being done to it.
func (s *Server) Stopped() bool { return s.Status == ShutOff && s.TaskState == "" }

// anID is what ids of OpenStack look like, with or without their dashes.
var anID = regexp.MustCompile(`^[0-9A-Za-z][0-9A-Za-z_-]{0,63}$`)

// Server describes a server of the project.
func (c *Cloud) Server(ctx context.Context, id string) (*Server, error) {
	s, err := c.look(ctx, id)
	return s, meaning(err)
}

// look is Server with failures as they are.
func (c *Cloud) look(ctx context.Context, id string) (*Server, error) {
	if !anID.MatchString(id) {
		return nil, ErrServerID
	}
	var answer struct {
		Server struct {
			ID      string   `json:"id"`
			Name    string   `json:"name"`
			Tenant  string   `json:"tenant_id"`
			Status  string   `json:"status"`
			Image   imageRef `json:"image"`
			Created moment   `json:"created"`
			VMState string   `json:"OS-EXT-STS:vm_state"`
			Task    string   `json:"OS-EXT-STS:task_state"` // null at rest
			Power   int      `json:"OS-EXT-STS:power_state"`
			Volumes []struct {
				ID string `json:"id"`
			} `json:"os-extended-volumes:volumes_attached"`
		} `json:"server"`
	}
	_, err := c.do(ctx, call{service: TypeCompute, method: http.MethodGet, path: "servers/" + id, ok: http.StatusOK, into: &answer})
	if statusOf(err) == http.StatusNotFound {
		return nil, ErrServerUnknown.Saw("project %q", c.session.project).Because(err)
	}
	if err != nil {
		return nil, err
	}
	w := &answer.Server
	if w.ID == "" || w.Status == "" {
		return nil, &failure{call: "GET compute", text: errAnswer.Error()}
	}
	if w.Tenant != "" && w.Tenant != c.session.project { // which an administrator is shown
		return nil, ErrServerUnknown.Saw("it is one of another project")
	}
	s := &Server{
		ID: id, Name: w.Name, Status: w.Status, VMState: w.VMState, TaskState: w.Task, Power: w.Power,
		FromVolume: !w.Image.given, ImageID: w.Image.id, Created: w.Created.Time,
	}
	for _, v := range w.Volumes {
		s.Volumes = append(s.Volumes, v.ID)
	}
	return s, nil
}

// imageRef is the image of a server: an object, or an empty string if the server
// boots from a volume.
type imageRef struct {
	given bool
	id    string
}

// UnmarshalJSON implements json.Unmarshaler.
func (r *imageRef) UnmarshalJSON(b []byte) error {
	switch string(b) {
	case `""`, "null":
		return nil
	}
	var object struct {
		ID string `json:"id"`
	}
	if json.Unmarshal(b, &object) != nil {
		return errors.New("an image that is neither an object nor empty")
	}
	r.given, r.id = true, object.ID
	return nil
}

// power is a change between running and not running.
type power struct {
	phase   Phase
	request map[string]any
	from    string // status from which it leads
	to      string // status at its end
	task    string // of a server that is at it
	after   string // beginning of tasks whose end is waited for; empty: none is
}

var (
	stop = power{Stopping, map[string]any{"os-stop": nil}, Active, ShutOff, "powering-off", ""}
	// An image is active a moment before Nova has done with the server it is made of.
	start = power{Starting, map[string]any{"os-start": nil}, ShutOff, Active, "powering-on", "image_"}
)

// idle is how long a server may rest in its old state after the cloud has accepted a
// change. Nova sets the task before it answers; what follows is for clouds of several
// parts, which tell each other.
const idle = 2 * time.Minute

// Stop stops a server as if it were unplugged, and waits until it is shut off. One that
// is shut off already is not touched. report is called with each look at the server.
//
// An end of ctx leaves the server stopping.
func (c *Cloud) Stop(ctx context.Context, id string, report func(State)) (*Server, error) {
	return c.change(ctx, id, stop, report)
}

// Start starts a server, and waits until it is active, as Stop does the other way.
func (c *Cloud) Start(ctx context.Context, id string, report func(State)) (*Server, error) {
	return c.change(ctx, id, start, report)
}

func (c *Cloud) change(ctx context.Context, id string, p power, report func(State)) (*Server, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, c.opt.PowerTimeout, ErrPowerTimeout.Saw("within %v", c.opt.PowerTimeout))
	defer cancel()
	var pace pace
	var accepted time.Time // when the change was asked for; zero: it was not yet
	now := State{Phase: p.phase, ServerID: id}
	for {
		s, err := c.look(ctx, id)
		if err == nil {
			now.Status, now.Task, now.Trouble = s.Status, s.TaskState, ""
			pace.look(now, report)
			var done bool
			if done, err = p.judge(s, accepted); done {
				return s, nil
			}
		}
		if err == nil && accepted.IsZero() && !p.underway(s) {
			if err = c.ask(ctx, s, p); err == nil {
				accepted = time.Now()
			}
		}
		wait, err := again(err)
		if err != nil {
			return nil, err
		}
		if wait.trouble != "" {
			now.Trouble = wait.trouble
			pace.look(now, report)
		}
		if err := pace.pause(ctx, wait.atLeast); err != nil {
			if now.Trouble != "" && errors.Is(err, ErrPowerTimeout) {
				err = fault.Of(err).Because(errors.New(now.Trouble))
			}
			return nil, err
		}
	}
}

// judge reports whether the server is where p leads, or why it will not get there.
func (p power) judge(s *Server, accepted time.Time) (done bool, err error) {
	switch {
	case s.Status == errored:
		return false, ErrServerError
	case s.Status == p.to && s.TaskState == "":
		return true, nil
	case s.Status == p.from && s.TaskState == "" && !accepted.IsZero() && time.Since(accepted) > idle:
		return false, ErrPowerLost.Saw("for %v it has been %s and at rest", idle, s.Status)
	}
	return false, nil
}

// underway reports whether there is nothing to do but to wait.
func (p power) underway(s *Server) bool {
	return s.TaskState == p.task || p.after != "" && strings.HasPrefix(s.TaskState, p.after)
}

// ask asks for the change. That the server is at it, or has just ended it, is no error.
func (c *Cloud) ask(ctx context.Context, s *Server, p power) error {
	_, err := c.do(ctx, call{service: TypeCompute, method: http.MethodPost, path: "servers/" + s.ID + "/action", body: p.request, ok: http.StatusAccepted})
	if statusOf(err) != http.StatusConflict {
		return err
	}
	refused := err
	s, err = c.look(ctx, s.ID) // it may have changed since
	if err != nil {
		return err
	}
	switch {
	case p.underway(s) || s.Status == p.to && s.TaskState == "":
		return nil
	case locked.MatchString(refused.Error()):
		return ErrServerLocked.Because(refused)
	case s.TaskState != "":
		return ErrServerBusy.Saw("task %q", s.TaskState).Because(refused)
	}
	return ErrServerState.Saw("status %q", s.Status).Because(refused)
}

var locked = regexp.MustCompile(`is locked$`)
