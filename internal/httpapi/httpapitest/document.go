package httpapitest

import (
	"bytes"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/getkin/kin-openapi/routers/gorillamux"

	"vmimport"
)

// Document is the OpenAPI document, made strict: objects have the documented
// members and no other.
type Document struct {
	Paths  *openapi3.Paths
	router routers.Router
}

// LoadDocument reads and validates the document.
func LoadDocument(t testing.TB) *Document {
	t.Helper()
	doc, err := openapi3.NewLoader().LoadFromData(vmimport.OpenAPI)
	if err != nil {
		t.Fatalf("openapi.yaml: %v", err)
	}
	if err := doc.Validate(t.Context()); err != nil {
		t.Fatalf("openapi.yaml: %v", err)
	}
	for name, ref := range doc.Components.Schemas {
		// A request may hold anything besides; see its description.
		if strings.HasSuffix(name, "Request") || ref.Value.AdditionalProperties.Schema != nil {
			continue
		}
		ref.Value.AdditionalProperties = openapi3.AdditionalProperties{Has: new(false)}
	}
	router, err := gorillamux.NewRouter(doc)
	if err != nil {
		t.Fatalf("openapi.yaml: %v", err)
	}
	return &Document{Paths: doc.Paths, router: router}
}

// Check fails the test unless the answer is a documented one for the request,
// and the request, if it succeeded, a documented one too. Paths and methods
// that are not documented must be refused.
func (d *Document) Check(t testing.TB, req *http.Request, resp *http.Response) {
	t.Helper()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	// The document is relative to wherever the service is.
	req.URL = &url.URL{Path: req.URL.Path, RawPath: req.URL.RawPath, RawQuery: req.URL.RawQuery}
	route, params, err := d.router.FindRoute(req)
	if err != nil {
		if resp.StatusCode != http.StatusNotFound && resp.StatusCode != http.StatusMethodNotAllowed {
			t.Errorf("%s %s is not documented (%v), and answered with %s", req.Method, req.URL, err, resp.Status)
		}
		return
	}
	input := &openapi3filter.RequestValidationInput{
		Request: req, PathParams: params, Route: route,
		Options: &openapi3filter.Options{AuthenticationFunc: openapi3filter.NoopAuthenticationFunc},
	}
	if resp.StatusCode < 300 {
		if b := route.Operation.RequestBody; b != nil && b.Value.Content["application/json"] != nil {
			// By its description, other types are no error; the format cannot say so.
			req.Header.Set("Content-Type", "application/json")
		}
		if err := openapi3filter.ValidateRequest(t.Context(), input); err != nil {
			t.Errorf("%s %s was accepted, but is not a documented request: %v", req.Method, req.URL, err)
		}
	}
	if err := openapi3filter.ValidateResponse(t.Context(), &openapi3filter.ResponseValidationInput{
		RequestValidationInput: input,
		Status:                 resp.StatusCode,
		Header:                 resp.Header,
		Body:                   io.NopCloser(bytes.NewReader(body)),
		Options:                &openapi3filter.Options{IncludeResponseStatus: true},
	}); err != nil {
		t.Errorf("%s %s: the answer is not a documented one: %v", req.Method, req.URL, err)
	}
}
