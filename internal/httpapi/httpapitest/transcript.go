// Package httpapitest runs golden transcripts of HTTP exchanges against a
// handler, and holds every exchange against the OpenAPI document.
//
// A transcript is a text file. A line says by its first character what it is:
//
//	# a comment
//	! an action, by name, that changes what stands behind the handler
//	> a line of a request as sent, without Content-Length
//	< a line of the answer that must come
//
// go test -update writes the answers anew; what changed is then reviewed in
// the version control system.
package httpapitest

import (
	"bufio"
	"bytes"
	"flag"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the answers of golden transcripts anew")

// requestID is sent with every request, and not shown if it comes back.
const requestID = "transcript"

// unshown are headers that all answers have. One test looks at them.
var unshown = []string{"Cache-Control", "X-Content-Type-Options"}

// Actions are what lines with an exclamation mark call, with the words after
// the action's name.
type Actions map[string]func(t *testing.T, args []string)

// Run runs each transcript that glob finds against a handler of its own.
func Run(t *testing.T, glob string, open func(t *testing.T) (http.Handler, Actions)) {
	t.Helper()
	files, err := filepath.Glob(glob)
	if err != nil || len(files) == 0 {
		t.Fatalf("no transcripts at %s: %v", glob, err)
	}
	doc := LoadDocument(t)
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			t.Parallel()
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			handler, actions := open(t)
			got := replay(t, doc, handler, actions, string(want))
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			compare(t, file, string(want), got)
		})
	}
}

func compare(t *testing.T, file, want, got string) {
	t.Helper()
	w, g := strings.Split(want, "\n"), strings.Split(got, "\n")
	for i := range max(len(w), len(g)) {
		var wl, gl string
		if i < len(w) {
			wl = w[i]
		}
		if i < len(g) {
			gl = g[i]
		}
		if wl != gl {
			t.Fatalf("%s:%d:\nwant %s\ngot  %s\n\nin full:\n%s", file, i+1, wl, gl, got)
		}
	}
}

// replay returns the transcript as it happens now.
func replay(t *testing.T, doc *Document, h http.Handler, actions Actions, transcript string) string {
	t.Helper()
	var out strings.Builder
	var request []string
	flush := func() {
		if len(request) > 0 {
			out.WriteString(exchange(t, doc, h, request))
			request = nil
		}
	}
	for line := range strings.Lines(transcript) {
		line = strings.TrimSuffix(line, "\n")
		if text, ok := strings.CutPrefix(line, ">"); ok {
			out.WriteString(line + "\n")
			request = append(request, strings.TrimPrefix(text, " "))
			continue
		}
		flush()
		if strings.HasPrefix(line, "<") {
			continue
		}
		out.WriteString(line + "\n")
		if text, ok := strings.CutPrefix(line, "!"); ok {
			words := strings.Fields(text)
			action := actions[words[0]]
			if action == nil {
				t.Fatalf("no action %q", words[0])
			}
			action(t, words[1:])
		}
	}
	flush()
	return out.String()
}

func exchange(t *testing.T, doc *Document, h http.Handler, lines []string) string {
	t.Helper()
	head, body := lines, ""
	if i := slices.Index(lines, ""); i >= 0 {
		head, body = lines[:i], strings.Join(lines[i+1:], "\n")
	}
	if !slices.ContainsFunc(head, func(l string) bool { return strings.HasPrefix(l, "Host:") }) {
		head = append(slices.Clone(head), "Host: import.example.test")
	}
	text := strings.Join(head, "\r\n") + fmt.Sprintf("\r\nX-Request-Id: %s\r\nContent-Length: %d\r\n\r\n%s", requestID, len(body), body)
	req, err := http.ReadRequest(bufio.NewReader(strings.NewReader(text)))
	if err != nil {
		t.Fatalf("read request: %v\n%s", err, text)
	}
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, req)
	req.Body = io.NopCloser(strings.NewReader(body))
	doc.Check(t, req, rec.Result())
	return dump(rec)
}

func dump(rec *httptest.ResponseRecorder) string {
	var b bytes.Buffer
	fmt.Fprintf(&b, "< HTTP/1.1 %d %s\n", rec.Code, http.StatusText(rec.Code))
	header := rec.Result().Header
	for _, name := range slices.Sorted(maps.Keys(header)) {
		if slices.Contains(unshown, name) || name == "X-Request-Id" && header.Get(name) == requestID {
			continue
		}
		for _, value := range header[name] {
			fmt.Fprintf(&b, "< %s: %s\n", name, value)
		}
	}
	if body := strings.TrimSuffix(rec.Body.String(), "\n"); body != "" {
		b.WriteString("<\n")
		for line := range strings.SplitSeq(body, "\n") {
			fmt.Fprintf(&b, "< %s\n", line)
		}
	}
	return b.String()
}
