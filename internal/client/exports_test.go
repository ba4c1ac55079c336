package client_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"vmimport/internal/client"
	"vmimport/internal/client/clienttest"
	"vmimport/tasks"
)

func exportTo(container string) client.ExportRequest {
	return client.ExportRequest{ImageID: "i-1", StorageContainer: client.Gen3.ContainerLocation(clienttest.Project, container)}
}

func TestExportsLife(t *testing.T) {
	t.Parallel()
	s, c := start(t)
	s.PutObject("backup", "other", nil)
	want := exportTo("backup")
	want.ImageTo = "kvm"
	id, err := c.Export(t.Context(), want)
	if err != nil {
		t.Fatal(err)
	}
	if got := s.Exported(); len(got) != 1 || got[0] != want {
		t.Errorf("the service got %+v", got)
	}
	e, err := c.ExportStatus(t.Context(), id)
	if err != nil || e.ExportID != id || e.State != tasks.Queued || e.ImageID != "i-1" || e.ImageTo() != "kvm" {
		t.Errorf("status is %+v, %v", e, err)
	}
	if err := c.CancelExport(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if err := c.CancelExport(t.Context(), id); !client.HasCode(err, client.CodeExportCancelRequested) {
		t.Errorf("second cancel: %v", err)
	}
	e, err = c.WaitForExport(t.Context(), id, time.Millisecond, client.ExportObserver{})
	if err != nil || e.State != tasks.Canceled {
		t.Errorf("ended as %+v, %v", e, err)
	}
	if _, err := c.ExportStatus(t.Context(), "no such/../export"); !client.HasCode(err, client.CodeUnknownImport) {
		t.Errorf("status of an odd id: %v", err)
	}
	if _, err := c.Status(t.Context(), id); !client.HasCode(err, client.CodeUnknownImport) {
		t.Errorf("status as an import: %v", err)
	}
}

func TestExportMakesTheContainer(t *testing.T) {
	t.Parallel()
	s, c := start(t)
	if _, err := c.Export(t.Context(), exportTo("a b%")); err != nil {
		t.Fatal(err)
	}
	if got, want := s.Targets(), []string{"/v2/AUTH_" + clienttest.Project + "/a%20b%25"}; !slices.Equal(got, want) {
		t.Errorf("put %q, want %q", got, want)
	}
	s.Fail(clienttest.Container, 1, http.StatusForbidden, "")
	_, err := c.Export(t.Context(), exportTo("elsewhere"))
	if e, ok := errors.AsType[*client.Error](err); !ok || e.Code != client.CodeNoContainer {
		t.Errorf("where none may be made: %v", err)
	}
	bare := newClient(t, client.Options{Endpoint: s.URL, HTTP: s.Client()})
	if _, err := bare.Export(t.Context(), exportTo("elsewhere")); !client.HasCode(err, client.CodeNoContainer) || s.Calls(clienttest.Container) != 2 {
		t.Errorf("of a client that knows no objects: %v", err)
	}
}

// A request that may have been heard is not repeated, and said to be uncertain.
func TestBeginIsUncertain(t *testing.T) {
	t.Parallel()
	s, c := start(t)
	s.PutObject("images", "a.vmdk", nil)
	closed := newClient(t, client.Options{Endpoint: "http://" + unusedAddress(t)})
	for name, begin := range map[string]func(*client.Client) error{
		clienttest.Register: func(c *client.Client) error {
			_, err := c.Register(t.Context(), client.Registration{Name: "a", Location: clienttest.Location("images", "a.vmdk")})
			return err
		},
		clienttest.Export: func(c *client.Client) error {
			_, err := c.Export(t.Context(), exportTo("images"))
			return err
		},
	} {
		s.Lose(name, 1)
		if err := begin(c); !errors.Is(err, client.ErrUncertain) || s.Calls(name) != 1 {
			t.Errorf("%s that is lost: %v after %d calls", name, err, s.Calls(name))
		}
		s.Fail(name, 1, http.StatusServiceUnavailable, "")
		if err := begin(c); err == nil || errors.Is(err, client.ErrUncertain) {
			t.Errorf("%s that is refused: %v", name, err)
		}
		if err := begin(closed); err == nil || errors.Is(err, client.ErrUncertain) {
			t.Errorf("%s that reaches nobody: %v", name, err)
		}
	}
	if len(s.Registered()) != 1 || len(s.Exported()) != 1 {
		t.Errorf("accepted were %d imports and %d exports", len(s.Registered()), len(s.Exported()))
	}
}

// unusedAddress is one where nobody listens.
func unusedAddress(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

func TestListExports(t *testing.T) {
	t.Parallel()
	s, c := start(t)
	const all = 401
	for i := range all {
		s.AddExport(tasks.ID(fmt.Sprint(i)), client.Export{State: tasks.Queued, ImageID: "i-1", RequestTime: "2026-01-02T03:04:05Z"})
	}
	n := 0
	for e, err := range c.ListExports(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		if n == 200 { // pushes the others towards the end
			s.AddExport("new", client.Export{State: tasks.Queued})
		}
		if want := tasks.ID(fmt.Sprint(all - 1 - n)); e.ExportID != want || e.ImageID != "i-1" || e.RequestTime == "" {
			t.Fatalf("entry %d is %+v", n, e)
		}
		n++
	}
	if n != all || s.Calls(clienttest.ListExports) != 3 {
		t.Errorf("%d exports in %d calls", n, s.Calls(clienttest.ListExports))
	}
	s.Fail(clienttest.ListExports, 1, http.StatusServiceUnavailable, "")
	for e, err := range c.ListExports(t.Context()) {
		if err == nil {
			t.Errorf("got %+v", e)
		}
	}
}

func TestWatchExport(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		answers := []func() (*http.Response, error){
			func() (*http.Response, error) {
				return response(200, `{"export_status":"processing","progress":3}`), nil
			},
			func() (*http.Response, error) { return nil, io.ErrUnexpectedEOF },
			func() (*http.Response, error) {
				return response(200, `{"export_status":"failed","error_message":"No. Do.","request_time":"yesterday","vmimport":{"remedy":"Do."}}`), nil
			},
		}
		c := offline(t, eventless(func(r *http.Request) (*http.Response, error) {
			if r.URL.Path != "/v1/imageexport/x/status" {
				t.Errorf("asked for %s", r.URL)
			}
			next := answers[0]
			answers = answers[1:]
			return next()
		}))
		var seen []tasks.State
		troubles := 0
		e, err := c.WaitForExport(t.Context(), "x", 0, client.ExportObserver{
			Changed: func(e *client.Export) { seen = append(seen, e.State) },
			Trouble: func(error) { troubles++ },
		})
		if err != nil || !slices.Equal(seen, []tasks.State{tasks.Processing, tasks.Failed}) || troubles != 1 {
			t.Fatalf("saw %v and %d troubles: %v", seen, troubles, err)
		}
		if s := e.Summary(); s.Kind != tasks.KindExport || s.ID != "x" || s.Reason() != "No." {
			t.Errorf("ended as %+v", s)
		}
	})
}

// The original API's errors about exports have their text elsewhere.
func TestErrorsOfExports(t *testing.T) {
	t.Parallel()
	c := offline(t, func(*http.Request) (*http.Response, error) {
		return response(400, `{"error_code":"40005","error_message":"Project id does not exist."}`), nil
	})
	_, err := c.ExportStatus(t.Context(), "x")
	if e, ok := errors.AsType[*client.Error](err); !ok || e.Message != "Project id does not exist." {
		t.Errorf("got %v", err)
	}
}
