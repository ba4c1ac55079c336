package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"unicode"

	"vmimport/internal/client"
	"vmimport/internal/fault"
	"vmimport/tasks"
)

// Exit is an error that decides the exit code.
type Exit struct {
	Code  int
	Err   error
	Kind  tasks.Kind // of what it is about, and its id; may be empty
	ID    tasks.ID
	Hints []string // what to type next; may be nil
}

func (e *Exit) Error() string { return e.Err.Error() }

// Unwrap returns the error itself.
func (e *Exit) Unwrap() error { return e.Err }

// Usagef returns a usage error: ExitUsage, and a message as by fmt.Errorf.
func Usagef(format string, args ...any) error {
	return &Exit{Code: ExitUsage, Err: fmt.Errorf(format, args...)}
}

// Outcome returns nil for an import or export that succeeded, and for one that failed
// or was canceled an error that explains it and has the exit code for it.
func Outcome(t client.Task) error {
	s := t.Summary()
	e := &Exit{Code: ExitError, Kind: s.Kind, ID: s.ID}
	switch s.State {
	case tasks.Succeeded:
		return nil
	case tasks.Canceled:
		e.Code, e.Err = ExitCanceled, fmt.Errorf("the %s was canceled", s.Kind)
	case tasks.Failed:
		e.Code, e.Err = ExitFailed, &failedError{s}
	default:
		e.Err = fmt.Errorf("the %s is %s", s.Kind, s.State)
	}
	return e
}

type failedError struct{ client.Summary }

func (e *failedError) Error() string {
	s := "the " + string(e.Kind) + " failed"
	if e.ErrorMessage != "" {
		s += ": " + e.Reason()
	}
	return s
}

// report is an error as Main prints it.
type report struct {
	Message    string   `json:"message"`        // what failed, and what was seen
	Code       string   `json:"code,omitempty"` // of the API, or of the failure
	HTTPStatus int      `json:"http_status,omitempty"`
	ImportID   tasks.ID `json:"import_id,omitempty"`
	ExportID   tasks.ID `json:"export_id,omitempty"`
	Remedy     string   `json:"remedy,omitempty"`
	ExitCode   int      `json:"exit_code"`
	hints      []string
}

// describe collects what the errors in err's chain know.
func describe(err error, code int) report {
	r := report{Message: err.Error(), ExitCode: code}
	if e, ok := errors.AsType[*Exit](err); ok {
		r.hints = e.Hints
		switch e.Kind {
		case tasks.KindImport:
			r.ImportID = e.ID
		case tasks.KindExport:
			r.ExportID = e.ID
		}
	}
	if e, ok := errors.AsType[*client.Error](err); ok {
		r.Code, r.HTTPStatus = e.Code, e.Status
	}
	if _, ok := errors.AsType[*net.OpError](err); ok {
		r.hints = append(r.hints, "Check that the service runs, and the addresses in VMIMPORT_ENDPOINT and VMIMPORT_OBJECTS_URL.")
	}
	if e, ok := errors.AsType[*failedError](err); ok {
		r.Code, r.Remedy = e.FailureCode, e.Summary.Remedy
	}
	if e, ok := errors.AsType[*fault.Error](err); ok {
		r.Code, r.Remedy = e.Code, e.Remedy
	}
	return r
}

func (r report) print(w io.Writer, asJSON bool) {
	if asJSON {
		_ = json.NewEncoder(w).Encode(map[string]report{"error": r})
		return
	}
	fmt.Fprintf(w, "vmimport: %s\n", clean(r.Message))
	for _, part := range [][2]string{{"import", string(r.ImportID)}, {"export", string(r.ExportID)}, {"remedy", r.Remedy}} {
		if part[1] != "" {
			fmt.Fprintf(w, "  %s: %s\n", part[0], clean(part[1]))
		}
	}
	for _, hint := range r.hints {
		fmt.Fprintf(w, "  %s\n", clean(hint))
	}
}

// clean makes text from elsewhere safe for a terminal: no control character but
// the end of a line, and so no escape sequence, gets through.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) && r != '\n' {
			return unicode.ReplacementChar
		}
		return r
	}, s)
}
