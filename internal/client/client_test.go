package client_test

import (
	"bytes"
	"context"
	"crypto/sha1"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"vmimport/internal/client"
	"vmimport/internal/client/clienttest"
	"vmimport/internal/secret"
	"vmimport/tasks"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// start returns a service and a client of it.
func start(t *testing.T) (*clienttest.Service, *client.Client) {
	t.Helper()
	s := clienttest.New()
	t.Cleanup(s.Close)
	return s, newClient(t, client.Options{Endpoint: s.URL, ObjectsURL: s.ObjectsURL(), HTTP: s.Client()})
}

func newClient(t *testing.T, opt client.Options) *client.Client {
	t.Helper()
	opt.Token = secret.New(clienttest.Token)
	c, err := client.New(opt)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// transport answers requests without a network, so that synctest's clock runs.
type transport func(*http.Request) (*http.Response, error)

func (f transport) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func offline(t *testing.T, f transport) *client.Client {
	const base = "http://service.test"
	return newClient(t, client.Options{Endpoint: base, ObjectsURL: base + "/v2/AUTH_p", HTTP: &http.Client{Transport: f}})
}

func response(status int, body string) *http.Response {
	return &http.Response{StatusCode: status, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(body))}
}

func sha1Of(content []byte) string {
	sum := sha1.Sum(content)
	return hex.EncodeToString(sum[:])
}

func TestRegisterExpansion(t *testing.T) {
	t.Parallel()
	s, c := start(t)
	s.PutObject("images", "data.img.gz", []byte("disk"))
	want := client.Registration{Name: "data", Location: clienttest.Location("images", "data.img.gz"), Expansion: true}
	if _, err := c.Register(t.Context(), want); err != nil {
		t.Fatal(err)
	}
	if got := s.Registered()[0]; got != want {
		t.Errorf("the service got %+v", got)
	}
}

func TestBillingInfo(t *testing.T) {
	t.Parallel()
	s, c := start(t)
	want := client.Billing{OSType: "rhel7", BaseImageID: "b-1"}
	s.Add("i-1", client.Import{State: tasks.Queued, BillingInfo: &want})
	imp, err := c.Status(t.Context(), "i-1")
	if err != nil || imp.BillingInfo == nil || *imp.BillingInfo != want {
		t.Errorf("%+v, %v", imp, err)
	}
}

func TestImportsLife(t *testing.T) {
	t.Parallel()
	s, c := start(t)
	s.PutObject("images", "a.vmdk", []byte("disk"))
	id, err := c.Register(t.Context(), client.Registration{
		Name: "a", Location: clienttest.Location("images", "a.vmdk"), OSType: "rocky", MinRAM: 512,
		Details: &client.Details{ImageFrom: "vmware"},
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := s.Registered()[0]; got.Name != "a" || got.MinRAM != 512 || got.Details.ImageFrom != "vmware" {
		t.Errorf("the service got %+v", got)
	}
	imp, err := c.Status(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	if imp.ImportID != id || imp.State != tasks.Queued || imp.Name != "a" {
		t.Errorf("status is %+v", imp)
	}
	if err := c.Cancel(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if err := c.Cancel(t.Context(), id); !client.HasCode(err, client.CodeCancelRequested) {
		t.Errorf("second cancel: %v", err)
	}
	if _, err := c.Status(t.Context(), "no such/../import"); !client.HasCode(err, client.CodeUnknownImport) {
		t.Errorf("status of an odd id: %v", err)
	}
}

func TestStatusOfOtherServices(t *testing.T) {
	t.Parallel()
	c := offline(t, func(*http.Request) (*http.Response, error) {
		return response(200, `{"import_status":"processing","progress":3,"min_ram":"0","min_disk":40,"ovf_location":"","checksum":null}`), nil
	})
	imp, err := c.Status(t.Context(), "x")
	if err != nil {
		t.Fatal(err)
	}
	if imp.MinRAM != "0" || imp.MinDisk != "40" || imp.Progress != 3 {
		t.Errorf("status is %+v", imp)
	}
}

func TestErrors(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		answer *http.Response
		want   client.Error
	}{
		{"of the API", response(400, `{"error_code":"40004","message":"Bad location."}`),
			client.Error{Op: "get status", Status: 400, Code: "40004", Message: "Bad location."}},
		{"of a proxy", response(502, `<html>`), client.Error{Op: "get status", Status: 502, Message: "Bad Gateway"}},
		{"not this API", response(200, `<html>`),
			client.Error{Op: "get status", Status: 200, Message: "The answer is not what this API sends; check the endpoint."}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			c := offline(t, func(*http.Request) (*http.Response, error) { return tt.answer, nil })
			_, err := c.Status(t.Context(), "x")
			got, ok := errors.AsType[*client.Error](err)
			if !ok || *got != tt.want {
				t.Errorf("got %#v, want %#v", err, tt.want)
			}
		})
	}
}

func TestRedirectGetsNoToken(t *testing.T) {
	t.Parallel()
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		t.Error("the redirect was followed")
	}))
	defer elsewhere.Close()
	service := httptest.NewServer(http.RedirectHandler(elsewhere.URL, http.StatusTemporaryRedirect))
	defer service.Close()
	c := newClient(t, client.Options{Endpoint: service.URL, HTTP: service.Client()})
	_, err := c.Status(t.Context(), "x")
	if e, ok := errors.AsType[*client.Error](err); !ok || e.Status != http.StatusTemporaryRedirect {
		t.Errorf("got %v", err)
	}
}

func TestNewRefusesAddresses(t *testing.T) {
	t.Parallel()
	for _, endpoint := range []string{"", "service.test", "ftp://service.test", "http://", "http://u:hunter2@h", "http://h?x", "http://u:hunter2@h\x7f"} {
		_, err := client.New(client.Options{Endpoint: endpoint})
		if err == nil {
			t.Errorf("%q was accepted", endpoint)
		} else if strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%q: the error shows a password: %v", endpoint, err)
		}
	}
}

func TestRegisterUncertain(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name      string
		err       error
		uncertain bool
	}{
		{"no answer", io.ErrUnexpectedEOF, true},
		{"no connection", &net.OpError{Op: "dial", Err: errors.New("connection refused")}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			calls := 0
			c := offline(t, func(*http.Request) (*http.Response, error) { calls++; return nil, tt.err })
			_, err := c.Register(t.Context(), client.Registration{})
			if errors.Is(err, client.ErrUncertain) != tt.uncertain || !errors.Is(err, tt.err) {
				t.Errorf("got %v", err)
			}
			if calls != 1 {
				t.Errorf("the request was sent %d times", calls)
			}
		})
	}
}

func TestPush(t *testing.T) {
	t.Parallel()
	_, c := start(t)
	content := bytes.Repeat([]byte("disk"), 1000)
	object := client.Object{Container: "images", Name: "a.vmdk"}
	var heard []string
	var done int64
	imp, err := c.Push(t.Context(), client.Job{
		File: bytes.NewReader(content), Size: int64(len(content)), To: object,
		Request:  client.Registration{Name: "a", Location: client.Gen3.Location(clienttest.Project, object), OSType: "rocky"},
		Interval: 1,
	}, client.Observer{
		Uploading:  func(tr client.Transfer) { done = tr.Done },
		Uploaded:   func(sum string) { heard = append(heard, sum) },
		Registered: func(id tasks.ID) { heard = append(heard, "registered") },
		Changed:    func(imp *client.Import) { heard = append(heard, string(imp.State)) },
	})
	if err != nil {
		t.Fatal(err)
	}
	want := sha1Of(content) + " registered queued processing succeeded"
	if got := strings.Join(heard, " "); got != want {
		t.Errorf("heard %q, want %q", got, want)
	}
	if imp.State != tasks.Succeeded || imp.Checksum != sha1Of(content) || done != int64(len(content)) {
		t.Errorf("ended as %+v after %d bytes", imp, done)
	}
}

func TestPushStopsAtItsFirstError(t *testing.T) {
	t.Parallel()
	s, c := start(t)
	s.Fail(clienttest.Object, 1, http.StatusForbidden, "")
	_, err := c.Push(t.Context(), client.Job{
		File: strings.NewReader("x"), Size: 1, To: client.Object{Container: "images", Name: "a.vmdk"},
	}, client.Observer{})
	if e, ok := errors.AsType[*client.Error](err); !ok || e.Status != http.StatusForbidden {
		t.Errorf("got %v", err)
	}
	if n := s.Calls(clienttest.Register); n != 0 {
		t.Errorf("registered %d times", n)
	}
}

func TestList(t *testing.T) {
	t.Parallel()
	for _, n := range []int{0, 1, 99, 100, 101, 250} {
		s, c := start(t)
		for i := range n {
			s.Add(tasks.ID(rune('一'+i)), client.Import{State: tasks.Queued})
		}
		i := n
		for e, err := range c.List(t.Context()) {
			if err != nil {
				t.Fatal(err)
			}
			if i--; e.ImportID != tasks.ID(rune('一'+i)) || e.State != tasks.Queued {
				t.Fatalf("of %d: entry %d is %+v", n, i, e)
			}
		}
		if i != 0 {
			t.Errorf("of %d: %d are missing", n, i)
		}
	}
}

func TestListIsLazy(t *testing.T) {
	t.Parallel()
	s, c := start(t)
	for i := range 150 {
		s.Add(tasks.ID(rune('一'+i)), client.Import{State: tasks.Queued})
	}
	for range c.List(t.Context()) {
		break
	}
	if n := s.Calls(clienttest.List); n != 1 {
		t.Errorf("%d pages were asked for", n)
	}
}

func TestListWhileImportsAreAdded(t *testing.T) {
	t.Parallel()
	s, c := start(t)
	for i := range 150 {
		s.Add(tasks.ID(rune('一'+i)), client.Import{State: tasks.Queued})
	}
	seen := map[tasks.ID]int{}
	for e, err := range c.List(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		if len(seen) == 0 {
			s.Add("late", client.Import{State: tasks.Queued})
		}
		seen[e.ImportID]++
	}
	for id, n := range seen {
		if n > 1 {
			t.Errorf("%s was listed %d times", id, n)
		}
	}
	if len(seen) != 150 {
		t.Errorf("%d were listed", len(seen))
	}
}

func TestListError(t *testing.T) {
	t.Parallel()
	s, c := start(t)
	s.Fail(clienttest.List, 1, http.StatusServiceUnavailable, "")
	n := 0
	for _, err := range c.List(t.Context()) {
		n++
		if err == nil {
			t.Error("an entry without an answer")
		}
	}
	if n != 1 {
		t.Errorf("%d results, want one error", n)
	}
}

func TestCallEndsWithItsContext(t *testing.T) {
	t.Parallel()
	s, c := start(t)
	_, release := s.Hold(clienttest.Status)
	defer release()
	ctx, cancel := context.WithCancel(t.Context())
	go func() { s.Await(clienttest.Status, 1); cancel() }()
	if _, err := c.Status(ctx, "x"); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}
