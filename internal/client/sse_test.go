package client

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"
	"time"
)

// parse returns all frames as text, and the id and pause that a client comes back with.
func parse(r io.Reader, id string) (all []string, last string, retry time.Duration, err error) {
	f := newFrameReader(r, id)
	for {
		frame, err := f.next()
		if err != nil {
			return all, f.id, f.retry, err
		}
		all = append(all, fmt.Sprintf("%s|%s|%s", frame.event, frame.data, frame.id))
	}
}

func TestFrames(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, stream string
		want         []string
		id           string
	}{
		{"empty", "", nil, "0"},
		{"whole", "event: state\nid: 7\ndata: {}\n\n", []string{"state|{}|7"}, "7"},
		{"cut before its end", "event: state\nid: 7\ndata: {}\n", nil, "0"},
		{"cut in a line", "id: 1\n\nid: 2\nda", []string{"||1"}, "1"},
		{"no space", "event:a\ndata:b\n\n", []string{"a|b|0"}, "0"},
		{"two spaces", "data:  b\n\n", []string{"| b|0"}, "0"},
		{"more lines", "data: a\ndata\ndata: b\n\n", []string{"|a\n\nb|0"}, "0"},
		{"comment", ": beat\n\n", []string{"||0"}, "0"},
		{"unknown fields", "x: y\nz\n\n", []string{"||0"}, "0"},
		{"ends of lines", "id: 1\r\ndata: a\r\n\r\ndata: b\r\rdata: c\n\r\n", []string{"|a|1", "|b|1", "|c|1"}, "1"},
		{"bom", "\ufeffdata: a\n\n", []string{"|a|0"}, "0"},
		{"id is taken back", "id: 1\n\nid\n\n", []string{"||1", "||"}, ""},
		{"id with a NUL", "id: 1\x002\n\n", []string{"||0"}, "0"},
	} {
		for _, r := range []io.Reader{strings.NewReader(tt.stream), iotest.OneByteReader(strings.NewReader(tt.stream))} {
			got, id, _, err := parse(r, "0")
			if fmt.Sprintf("%q", got) != fmt.Sprintf("%q", tt.want) || id != tt.id || err != io.EOF {
				t.Errorf("%s: %q, id %q, %v", tt.name, got, id, err)
			}
		}
	}
}

func TestRetryField(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]time.Duration{"2000": 2 * time.Second, "+1": 0, "-1": 0, "1.5": 0, "": 0, "99999999999": 0} {
		if _, _, got, _ := parse(strings.NewReader("retry: "+text+"\n\n"), ""); got != want {
			t.Errorf("%q: %v", text, got)
		}
	}
}

func TestFramesAreBounded(t *testing.T) {
	t.Parallel()
	for name, r := range map[string]io.Reader{
		"a line":     io.MultiReader(strings.NewReader("data: "), endless('x')),
		"many lines": endlessLines{},
	} {
		if _, _, _, err := parse(r, ""); !errors.Is(err, errFrameTooLong) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

type endless byte

func (e endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = byte(e)
	}
	return len(p), nil
}

type endlessLines struct{}

func (endlessLines) Read(p []byte) (int, error) {
	return copy(p, "data: more\n"), nil
}

// Whatever the bytes, they are read the same way however they come, and an id counts only
// with the end of its frame.
func FuzzFrames(f *testing.F) {
	f.Add([]byte("retry: 2000\n\nevent: state\nid: 1-0\ndata: {\"id\":\"x\"}\n\n: beat\n\n"))
	f.Add([]byte("\ufeffid: 1\r\rdata\n\r\n\x00:\r"))
	f.Fuzz(func(t *testing.T, stream []byte) {
		all, id, retry, err := parse(bytes.NewReader(stream), "0")
		if err != io.EOF && !errors.Is(err, errFrameTooLong) {
			t.Fatal(err)
		}
		slow, slowID, slowRetry, _ := parse(iotest.OneByteReader(bytes.NewReader(stream)), "0")
		if fmt.Sprint(all) != fmt.Sprint(slow) || id != slowID || retry != slowRetry || retry < 0 {
			t.Fatalf("%q %q and %q %q", all, id, slow, slowID)
		}
		if len(all) > 0 && !strings.HasSuffix(all[len(all)-1], "|"+id) || len(all) == 0 && id != "0" {
			t.Fatalf("id %q after %q", id, all)
		}
	})
}
