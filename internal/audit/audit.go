// Package audit notes who asked for what. The server makes an Entry for each request, whoever
// understands the request fills it in, and the server writes it as a Record when the request
// has been answered.
//
// A Record never holds a token, a signature, a query or a body.
package audit

import (
	"context"
	"strings"
	"time"
	"unicode"
)

// Entry is what one request asked for. Members that do not apply are empty.
type Entry struct {
	Tenant  string `json:"tenant,omitempty"`
	Project string `json:"project,omitempty"`
	User    string `json:"user,omitempty"`
	// AccessKey is the id of the key that signed the request; the key itself is nowhere.
	AccessKey string `json:"access_key,omitempty"`
	Region    string `json:"region,omitempty"`
	// Action is what was asked for, as kind and verb: import.register, export.cancel,
	// image.delete. An Entry without one is not written.
	Action string `json:"action"`
	ID     string `json:"id,omitempty"` // of what it was asked for: an import, an export, an image
	// Fault is the code of what kept it from being done. A dialect sets it whose answers have
	// codes of their own; by default it is that of the request's error.
	Fault string `json:"fault,omitempty"`
}

// SignInRefused is the Action of a request that was refused before anybody knew what it
// asked for.
const SignInRefused = "sign_in.refused"

// Record is an Entry, with what the server knows of the request.
type Record struct {
	Time      time.Time `json:"time"` // of the answer
	RequestID string    `json:"request_id"`
	Remote    string    `json:"remote"` // address of the client
	// Dialect is whose request it was: fjcloud, aliyun, objects, portal or operations.
	Dialect string `json:"dialect"`
	Entry
	Outcome Outcome `json:"outcome"`
	Status  int     `json:"status"` // of the answer
}

// Outcome is what became of a request.
type Outcome string

// The outcomes.
const (
	Accepted Outcome = "accepted"
	Refused  Outcome = "refused" // for a reason that lies with the request, or with who sent it
	Failed   Outcome = "failed"  // for a reason of the service's
)

// OutcomeOf returns what an HTTP status says.
func OutcomeOf(status int) Outcome {
	switch {
	case status >= 500:
		return Failed
	case status >= 400:
		return Refused
	}
	return Accepted
}

// Sink takes Records. Implementations are safe for concurrent use.
type Sink interface {
	Add(Record) error
}

// maxValue bounds each value of a Record, in bytes. Ids and names are far below it.
const maxValue = 256

// Clean returns r as it may be written: values that strangers may have made up are cut to a
// bounded length, and hold nothing that a terminal or a reader of lines takes for more than text.
func (r Record) Clean() Record {
	for _, s := range []*string{&r.RequestID, &r.Remote, &r.Tenant, &r.Project, &r.User, &r.AccessKey, &r.Region, &r.Action, &r.ID, &r.Fault} {
		*s = clean(*s)
	}
	return r
}

func clean(s string) string {
	cut := len(s) > maxValue
	if cut {
		s = s[:maxValue]
	}
	s = strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return unicode.ReplacementChar
	}, s)
	if cut {
		s = strings.TrimRight(s, string(unicode.ReplacementChar)) + "…"
	}
	return s
}

type key struct{}

// NewContext returns a context with an empty Entry, for From.
func NewContext(ctx context.Context) (context.Context, *Entry) {
	e := new(Entry)
	return context.WithValue(ctx, key{}, e), e
}

// From returns the Entry of ctx to be filled in. Without one it returns an Entry that nobody
// reads.
func From(ctx context.Context) *Entry {
	if e, ok := ctx.Value(key{}).(*Entry); ok {
		return e
	}
	return new(Entry)
}
