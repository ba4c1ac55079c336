package cli

import (
	"fmt"
	"time"

	"vmimport/internal/servers"
)

// steps shows what becomes of a server and of its image. It draws a spinner on stderr,
// or with --json writes an event for each change, or with --quiet nothing:
//
//	step     step, state, and the ids that are known: see stepEvent
//	server   server_id, status, task
//	image    server_id, image_id, status
//	waiting  server_id, until: no image may be asked for before
//	trouble  message: the cloud gave no answer, and is asked again
type steps struct {
	*Progress
	spinner *spinner
	last    servers.State
}

// serverEvent is an event; members without a value are left out.
type serverEvent struct {
	Event    string `json:"event"`
	ServerID string `json:"server_id"`
	ImageID  string `json:"image_id,omitempty"`
	Status   string `json:"status,omitempty"`
	Task     string `json:"task,omitempty"`
	Until    string `json:"until,omitempty"`
	Message  string `json:"message,omitempty"`
}

// report shows a state, if it is another than the last.
func (p *steps) report(s servers.State) {
	if s == p.last {
		return
	}
	fresh := s.Phase != p.last.Phase
	p.last = s
	if p.events != nil {
		p.event(eventOf(s))
		return
	}
	if p.quiet {
		return
	}
	if fresh {
		p.rest() // the time is that of the phase
	}
	if p.spinner == nil {
		p.spinner = newSpinner(p.env.Stderr, p.env.Columns)
	}
	p.spinner.set(textOf(s))
}

func eventOf(s servers.State) serverEvent {
	e := serverEvent{Event: "server", ServerID: s.ServerID, ImageID: s.ImageID, Status: s.Status, Task: s.Task}
	switch {
	case s.Trouble != "":
		return serverEvent{Event: "trouble", ServerID: s.ServerID, ImageID: s.ImageID, Message: s.Trouble}
	case s.Phase == servers.Waiting:
		e.Event, e.Until = "waiting", formatTime(s.Until)
	case s.Phase == servers.Imaging:
		e.Event = "image"
	}
	return e
}

// textOf tells a state in a line.
func textOf(s servers.State) string {
	switch {
	case s.Trouble != "":
		return fmt.Sprintf("%s: no good answer (%s), asking again", s.Phase, s.Trouble)
	case s.Phase == servers.Waiting:
		return "waiting until " + s.Until.Local().Format(time.TimeOnly) + ": the cloud makes 4 images in an hour"
	case s.Task != "":
		return fmt.Sprintf("%s: %s, %s", s.Phase, s.Status, s.Task)
	}
	return fmt.Sprintf("%s: %s", s.Phase, s.Status)
}

// rest ends the line that is drawn.
func (p *steps) rest() {
	if p.spinner != nil {
		p.spinner.stop()
		p.spinner = nil
	}
}

// Stop leaves the last line as it is, and returns the first error of writing events.
func (p *steps) Stop() error {
	p.rest()
	return p.Progress.Stop()
}

// note prints a line for people.
func (p *steps) note(format string, args ...any) {
	p.rest()
	p.Notef(format, args...)
}

// rows are results that can be shown as text.
type rows interface{ table() table }

// result prints what came of a command, and the commands that come next.
func (p *steps) result(a *app, doc rows, next ...string) error {
	if err := p.Stop(); err != nil {
		return err
	}
	if err := a.print(doc, doc.table()); err != nil {
		return err
	}
	p.next(next...)
	return nil
}

// serverResult is the result of stop and start.
type serverResult struct {
	ServerID string `json:"server_id"`
	Name     string `json:"name"`
	Status   string `json:"status"`
}

func (r serverResult) table() table {
	return table{{"server", r.ServerID}, {"name", r.Name}, {"status", r.Status}}
}

// imageResult is the result of image.
type imageResult struct {
	ImageID      string `json:"image_id"`
	Name         string `json:"name"`
	Status       string `json:"status"`
	Created      string `json:"created"`
	Found        bool   `json:"found"` // rather than begun by this command
	ServerID     string `json:"server_id"`
	ServerStatus string `json:"server_status,omitempty"` // if it was started again
}

func (r imageResult) table() table {
	return table{{"image", r.ImageID}, {"name", r.Name}, {"status", r.Status}, {"created", r.Created}, {"server", r.ServerID}, {"server status", r.ServerStatus}}
}
