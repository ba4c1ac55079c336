// Package fault is the service's vocabulary of errors.
//
// Adapters translate what a vendor says into a Kind, because only they know
// the vendor's codes. From the Kind the worker decides whether to try again,
// and from the Code each dialect finds the answer its clients know. Nothing
// else looks into error text.
package fault

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"strings"
)

// Kind says what can be done about an error.
type Kind string

// The kinds. Only Unavailable and Internal are worth another attempt.
const (
	Invalid     Kind = "invalid"     // the request, the object or the image is wrong
	NotFound    Kind = "not_found"   // unknown, expired, or not visible to this caller
	Denied      Kind = "denied"      // known caller, missing right
	Conflict    Kind = "conflict"    // something changed or exists that must not
	Exhausted   Kind = "exhausted"   // a quota of the caller is used up
	Unavailable Kind = "unavailable" // a dependency failed; try again with backoff
	Canceled    Kind = "canceled"    // a user asked for the import to stop
	Fenced      Kind = "fenced"      // another worker owns the import; stop without writing
	Internal    Kind = "internal"    // not foreseen; logged in full, shown as nothing
)

// Error is an error with a kind, a stable code and words for the customer.
//
// Message, Evidence and Remedy may be shown to the customer, so they never
// hold a host path, an address of the service's own network or a secret. Err
// is for the log alone.
type Error struct {
	Kind     Kind
	Code     string // stable and machine readable, such as "checksum_mismatch"
	Message  string // one sentence, what is wrong
	Evidence string // what was seen, such as the two hashes; may be empty
	Remedy   string // what the customer can do; may be empty
	Err      error  // the cause; may be nil
}

// New returns an Error without a cause.
func New(kind Kind, code, message string) *Error {
	return &Error{Kind: kind, Code: code, Message: message}
}

// Wrap gives err a kind, a code and a sentence for the customer.
func Wrap(err error, kind Kind, code, message string) *Error {
	return &Error{Kind: kind, Code: code, Message: message, Err: err}
}

// Panicked makes an error of what recover returned, with the stack for the log. It is
// Internal: goroutines that read what strangers have made must not take the process
// with them.
func Panicked(p any) *Error {
	return Wrap(fmt.Errorf("panic: %v\n%s", p, debug.Stack()), Internal, "internal_error", "Internal server error.")
}

// Saw returns a copy of e with evidence, formatted as by fmt.Sprintf.
func (e *Error) Saw(format string, args ...any) *Error {
	c := *e
	c.Evidence = fmt.Sprintf(format, args...)
	return &c
}

// Try returns a copy of e with a remedy.
func (e *Error) Try(remedy string) *Error {
	c := *e
	c.Remedy = remedy
	return &c
}

// Because returns a copy of e with a cause, for the log.
func (e *Error) Because(err error) *Error {
	c := *e
	c.Err = err
	return &c
}

// Sentences returns what a customer may read of e: the message with its
// evidence, and the remedy.
func (e *Error) Sentences() string {
	s := e.Message
	if e.Evidence != "" {
		s = strings.TrimSuffix(s, ".") + " (" + e.Evidence + ")."
	}
	if e.Remedy != "" {
		s += " " + e.Remedy
	}
	return s
}

func (e *Error) Error() string {
	s := e.Code + ": " + e.Message
	if e.Evidence != "" {
		s += " (" + e.Evidence + ")"
	}
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Is reports whether target is an Error of the same code, so that errors.Is
// works with package variables made by New even after Saw or Try.
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && t.Code == e.Code
}

// Of returns the outermost Error in err's chain. An error without one is
// Internal with the code "internal_error"; a bare context.Canceled is Canceled;
// Of(nil) is nil.
func Of(err error) *Error {
	if err == nil {
		return nil
	}
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	if errors.Is(err, context.Canceled) {
		return Wrap(err, Canceled, "canceled", "The operation was canceled.")
	}
	return Wrap(err, Internal, "internal_error", "Internal server error.")
}

// KindOf returns the kind of err: that of its outermost Error, else Internal.
// KindOf(nil) is "".
func KindOf(err error) Kind {
	if err == nil {
		return ""
	}
	return Of(err).Kind
}

// CodeOf returns the code of err as KindOf returns its kind.
func CodeOf(err error) string {
	if err == nil {
		return ""
	}
	return Of(err).Code
}

// Retryable reports whether the same work may succeed later: when a dependency
// failed, or when nobody foresaw the error and so nobody knows.
func Retryable(err error) bool {
	k := KindOf(err)
	return k == Unavailable || k == Internal
}
