package portal

import (
	"html"
	"html/template"
	"strconv"

	"vmimport/tasks"
)

// look is what a page shows of how a task stands, in the reader's language. It is made
// at once, and of plain strings, since a list shows many.
type look struct {
	ID       tasks.ID
	Page     string
	Name     string
	State    tasks.State
	Progress int
	Stalled  bool
	Data     template.HTMLAttr // what the script goes on from
	Word     string            // for the state
	Stage    string
	Bytes    string
	Rate     string
	Left     string
	Place    string // in the queue
	Why      string // it has failed
	ISO      string // time of the request
	Date     string
}

// look returns how r stands.
func (c *catalog) look(r *record) *look {
	x, name := &r.Extra, r.Name()
	l := &look{
		ID: r.ID, Page: r.Page, Name: name, State: r.State, Progress: r.Progress, Stalled: r.Stalled(), Data: data(r, name),
		Word: c.text("state." + string(r.State)), Left: c.left(r.Left()),
	}
	if r.State == tasks.Processing {
		l.Stage = c.text("stage." + string(x.Stage))
	}
	if r.Moves() && x.TotalBytes > 0 {
		l.Bytes = c.text("of", c.bytes(x.DoneBytes), c.bytes(x.TotalBytes))
	}
	if r.Copies() && x.BytesPerSecond > 0 {
		l.Rate = c.text("rate", c.bytes(x.BytesPerSecond))
	}
	if r.State == tasks.Queued && x.QueuePosition > 0 {
		l.Place = c.text("queue.place", x.QueuePosition)
	}
	if f := c.failure(r.Failure()); f != nil {
		l.Why = f.Message
	}
	if !x.RequestedAt.IsZero() {
		l.ISO, l.Date = iso(x.RequestedAt), c.date(x.RequestedAt)
	}
	return l
}

// data are the attributes of a task's element. Their values are escaped here, for the
// template takes them as they are.
func data(r *record, name string) template.HTMLAttr {
	b := make([]byte, 0, 256)
	text := func(attribute, value string) {
		b = append(append(append(append(append(b, " data-"...), attribute...), `="`...), html.EscapeString(value)...), '"')
	}
	number := func(attribute string, n int64) { text(attribute, strconv.FormatInt(n, 10)) }
	text("task", string(r.ID))
	text("kind", string(r.Kind))
	text("state", string(r.State))
	text("name", name)
	text("stage", string(r.Extra.Stage))
	number("attempt", r.Extra.Attempt)
	number("done", r.Extra.DoneBytes)
	number("total", r.Extra.TotalBytes)
	number("rate", r.Extra.BytesPerSecond)
	number("stalls", r.Extra.Stalls)
	return template.HTMLAttr(b[1:])
}
