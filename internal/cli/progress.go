package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"time"

	"vmimport/internal/client"
	"vmimport/tasks"
)

// eventEvery is the time between two upload events of --json.
const eventEvery = time.Second

// Progress shows a file on its way to an image, or an image on its way out. It draws bars on stderr, or
// with --json writes one event per line on stdout, or with --quiet nothing.
//
// Every event has a member "event":
//
//	hash, upload   done_bytes, total_bytes, attempt
//	uploaded       sha1
//	registered     import_id, or export_id
//	status         the import or export, as its status command prints it
//	trouble        message: the service gave no answer, and is asked again
type Progress struct {
	env    Env
	events *json.Encoder // nil without --json
	quiet  bool

	bar       *Bar
	lastEvent time.Time
	lastState []byte
	err       error // of writing events
}

// NewProgress returns a Progress. Stop ends it.
func NewProgress(env Env, asJSON, quiet bool) *Progress {
	p := &Progress{env: env, quiet: quiet || asJSON}
	if asJSON {
		p.events = json.NewEncoder(env.Stdout)
		p.events.SetEscapeHTML(false)
	}
	return p
}

// Observer returns the functions that feed p.
func (p *Progress) Observer() client.Observer {
	return client.Observer{
		Uploading:  func(t client.Transfer) { p.transfer("upload", t) },
		Uploaded:   p.uploaded,
		Registered: func(id tasks.ID) { p.registered(tasks.KindImport, id) },
		Changed: func(imp *client.Import) {
			p.changed(imp, struct {
				Event string `json:"event"`
				*client.Import
			}{"status", imp})
		},
		Trouble: p.trouble,
	}
}

// ExportObserver returns the functions that feed p with an export.
func (p *Progress) ExportObserver() client.ExportObserver {
	return client.ExportObserver{
		Registered: func(id tasks.ID) { p.registered(tasks.KindExport, id) },
		Changed: func(e *client.Export) {
			p.changed(e, struct {
				Event string `json:"event"`
				*client.Export
			}{"status", e})
		},
		Trouble: p.trouble,
	}
}

// Stop leaves the last line as it is, and returns the first error of writing
// events.
func (p *Progress) Stop() error {
	if p.bar != nil {
		p.bar.Stop()
		p.bar = nil
	}
	return p.err
}

// Notef prints a line for people, above the next bar.
func (p *Progress) Notef(format string, args ...any) {
	if p.quiet {
		return
	}
	p.Stop()
	fmt.Fprintf(p.env.Stderr, format+"\n", args...)
}

// next says which commands come next: the first, or one of the others.
func (p *Progress) next(commands ...string) {
	for i, command := range commands {
		p.Notef("%s %s", []string{"next:", "  or:"}[min(i, 1)], clean(command))
	}
}

func (p *Progress) transfer(stage string, t client.Transfer) {
	if p.events != nil {
		if now := time.Now(); now.Sub(p.lastEvent) >= eventEvery {
			p.lastEvent = now
			p.event(struct {
				Event   string `json:"event"`
				Done    int64  `json:"done_bytes"`
				Total   int64  `json:"total_bytes"`
				Attempt int    `json:"attempt"`
			}{stage, t.Done, t.Total, t.Try})
		}
		return
	}
	label := map[string]string{"upload": "uploading", "hash": "hashing"}[stage]
	// 100 % is for uploaded to show: until then the store may still refuse.
	percent := 0
	if t.Total > 0 {
		percent = int(min(99, float64(t.Done)/float64(t.Total)*100))
	}
	p.show(Sample{Stage: label, Percent: percent, Done: t.Done, Total: t.Total, Attempt: t.Try, Moving: true})
}

func (p *Progress) uploaded(sum string) {
	if p.events != nil {
		p.event(struct {
			Event string `json:"event"`
			SHA1  string `json:"sha1"`
		}{"uploaded", sum})
	}
	p.show(Sample{Stage: "uploaded", Percent: 100})
	p.Stop()
}

func (p *Progress) registered(name tasks.Kind, id tasks.ID) {
	if p.events != nil {
		p.event(map[string]any{"event": "registered", idMember(name): id})
	}
	p.Notef("%s %s", name, clean(string(id)))
}

// changed shows a task, or writes the event that says how it stands.
func (p *Progress) changed(t client.Task, event any) {
	if p.events == nil {
		p.show(sampleOf(t))
		return
	}
	// Only changes are events; the bytes are the simplest comparison.
	now, err := json.Marshal(event)
	if err == nil && !bytes.Equal(now, p.lastState) {
		p.lastState = now
		p.event(event)
	}
}

func (p *Progress) trouble(err error) {
	if p.events != nil {
		p.event(struct {
			Event   string `json:"event"`
			Message string `json:"message"`
		}{"trouble", err.Error()})
		return
	}
	p.show(Sample{Stage: "no answer, asking again"})
}

func (p *Progress) event(e any) {
	if err := p.events.Encode(e); err != nil && p.err == nil {
		p.err = fmt.Errorf("write event: %w", err)
	}
}

func (p *Progress) show(s Sample) {
	if p.quiet {
		return
	}
	if p.bar == nil {
		p.bar = NewBar(p.env.Stderr, p.env.Columns)
	}
	p.bar.Set(s)
}

// sampleOf tells a task's state to a Bar.
func sampleOf(t client.Task) Sample {
	now := t.Summary()
	s := Sample{
		Stage: string(now.State), Percent: now.Progress, Attempt: int(now.Attempt),
		Done: now.DoneBytes, Total: now.TotalBytes, Rate: now.BytesPerSecond,
	}
	if now.State == tasks.Processing && now.Stage != "" {
		s.Stage = string(now.Stage)
		s.Moving = now.Stage == tasks.StageCopying
	}
	return s
}

// writeJSON prints one document.
func writeJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	return e.Encode(v)
}
