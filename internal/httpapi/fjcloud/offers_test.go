package fjcloud_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/labstack/echo/v4"
	"go.opentelemetry.io/otel/trace"

	"vmimport/internal/audit"
	"vmimport/internal/httpapi/fjcloud"
)

func TestOffers(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		opts fjcloud.Options
		want string
	}{
		{fjcloud.Options{}, "gen3 v2 true true [rhel7 rhel8 rocky ubuntu win2016SE_SQL2016SE win2016SE_ja win2019SE win2019SE_SQL2019SE] " +
			"[{vmware [.vmdk .img.gz .qcow2.gz]} {kvm [.qcow2 .img.gz .qcow2.gz]}] [.img.gz .qcow2.gz]"},
		{fjcloud.Options{Profile: fjcloud.Classic, Extensions: []string{".raw"}}, "classic v1 false false [rhel7 rocky ubuntu win2016SE_SQL2016SE win2016SE_ja] " +
			"[{vmware [.vmdk .img.gz .qcow2.gz .raw]}] [.img.gz .qcow2.gz]"},
	} {
		d, err := fjcloud.New("r", nil, nil, tt.opts)
		if err != nil {
			t.Fatal(err)
		}
		o := d.Offers()
		got := fmt.Sprint(o.Profile, " ", o.LocationVersion, o.S3Locations, o.CancelImports, o.OSTypes, o.Hypervisors, o.ExportedExtensions)
		got = strings.ReplaceAll(strings.ReplaceAll(got, "true[", "true ["), "false[", "false [")
		if strings.Join(strings.Fields(got), "") != strings.Join(strings.Fields(tt.want), "") {
			t.Errorf("got  %s\nwant %s", got, tt.want)
		}
	}
}

// What is asked for is noted, and the trace that it belongs to is kept.
func TestWhatIsNoted(t *testing.T) {
	t.Parallel()
	service := newFakeService()
	d, err := fjcloud.New("r", service, fakeTokens{}, fjcloud.Options{NewID: func() string { return alicesImage }})
	if err != nil {
		t.Fatal(err)
	}
	e := echo.New()
	d.Mount(e)
	e.HTTPErrorHandler = func(err error, c echo.Context) { _ = d.WriteError(c, err) }
	span := trace.NewSpanContext(trace.SpanContextConfig{TraceID: trace.TraceID{1}, SpanID: trace.SpanID{2}, TraceFlags: trace.FlagsSampled})
	var noted []string
	for _, r := range []struct{ method, path, token, body string }{
		{"POST", "/v1/imageimport", "alice", goodBody},
		{"GET", "/v1/imageimport", "alice", ""},
		{"POST", "/v1/imageimport/" + alicesImage + "/retry", "alice", ""},
		{"POST", "/v1/imageimport/" + alicesImage + "/cancel", "bob", ""},
		{"POST", "/v1/imageexport/" + alicesImage + "/cancel", "dora", ""},
		{"GET", "/v1/imageimport", "mallory", ""},
	} {
		ctx, entry := audit.NewContext(trace.ContextWithSpanContext(context.Background(), span))
		req := httptest.NewRequestWithContext(ctx, r.method, r.path, strings.NewReader(r.body))
		req.Header = http.Header{"X-Auth-Token": {r.token}}
		e.ServeHTTP(httptest.NewRecorder(), req)
		noted = append(noted, strings.Join([]string{entry.Action, entry.Tenant, entry.User, entry.Region, entry.ID}, " "))
	}
	want := []string{
		"import.register contract01 u-alice r " + alicesImage, " contract01 u-alice r ", "import.retry contract01 u-alice r " + alicesImage,
		"import.cancel contract01 u-bob r " + alicesImage, "export.cancel contract01 u-dora r ", audit.SignInRefused + "   r ",
	}
	if !slices.Equal(noted, want) {
		t.Errorf("noted %q", noted)
	}
	if got := service.imports[0].Trace; got != "00-01000000000000000000000000000000-0200000000000000-01" {
		t.Errorf("trace %q", got)
	}
}
