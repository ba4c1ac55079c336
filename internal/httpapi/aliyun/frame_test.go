package aliyun_test

import (
	"context"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"vmimport/internal/auth/aliyunsig/aliyunsigtest"
	"vmimport/internal/fault"
	"vmimport/internal/httpapi/aliyun"
	"vmimport/tasks"
)

const (
	contentJSON = "application/json;charset=utf-8"
	contentXML  = "text/xml;charset=utf-8"
)

var requestID = regexp.MustCompile(`^[0-9A-F]{8}-[0-9A-F]{4}-[0-9A-F]{4}-[0-9A-F]{4}-[0-9A-F]{12}$`)

// wantWellFormed fails the test unless the answer is one of the API, in either form.
func wantWellFormed(t testing.TB, a reply) {
	t.Helper()
	members, err := a.flat()
	if err != nil {
		t.Errorf("the answer cannot be read: %v\n%d %v\n%s", err, a.status, a.header, a.body)
		return
	}
	if id := a.header.Get("X-Acs-Request-Id"); !requestID.MatchString(id) || members[0] != "RequestId="+id {
		t.Errorf("the request id is %q, and the answer %s", id, a.body)
	}
	if a.status == http.StatusOK {
		return
	}
	var names []string
	for _, m := range members {
		name, value, _ := strings.Cut(m, "=")
		names = append(names, name)
		if value == "" && name != "Recommend" {
			t.Errorf("%s is empty: %s", name, a.body)
		}
	}
	if got := strings.Join(names, " "); got != "RequestId HostId Code Message Recommend" {
		t.Errorf("an error has the members %s", got)
	}
	for name, v := range a.json {
		if _, ok := v.(string); !ok {
			t.Errorf("%s of an error is no string: %v", name, v)
		}
	}
	if a.json == nil && !strings.HasPrefix(a.body, xml.Header+"<Error>") {
		t.Errorf("the error is not called so: %s", a.body)
	}
}

// flat returns the leaves of an answer in their order, as path=text, alike for both forms.
// An empty list is a leaf without text.
func (a reply) flat() (leaves []string, err error) {
	switch a.header.Get("Content-Type") {
	case contentJSON:
		d := json.NewDecoder(strings.NewReader(a.body))
		d.UseNumber()
		err = flatJSON(d, "", &leaves)
	case contentXML:
		d := xml.NewDecoder(strings.NewReader(a.body))
		err = flatXML(d, "", &leaves)
	default:
		err = fmt.Errorf("the content is %q", a.header.Get("Content-Type"))
	}
	if err == nil && len(leaves) == 0 {
		err = errors.New("it is empty")
	}
	return leaves, err
}

func flatJSON(d *json.Decoder, path string, leaves *[]string) error {
	tok, err := d.Token()
	if err != nil {
		return err
	}
	delim, nested := tok.(json.Delim)
	if !nested {
		*leaves = append(*leaves, fmt.Sprintf("%s=%v", path, tok))
		return nil
	}
	before := len(*leaves)
	for d.More() {
		at := path
		if delim == '{' {
			name, err := d.Token()
			if err != nil {
				return err
			}
			at = strings.TrimPrefix(fmt.Sprintf("%s.%v", path, name), ".")
		}
		if err := flatJSON(d, at, leaves); err != nil {
			return err
		}
	}
	if delim == '[' && len(*leaves) == before {
		*leaves = append(*leaves, path[:strings.LastIndex(path, ".")]+"=")
	}
	_, err = d.Token()
	return err
}

// flatXML leaves the root out.
func flatXML(d *xml.Decoder, path string, leaves *[]string) error {
	var text strings.Builder
	leaf := true
	for {
		tok, err := d.Token()
		if err == io.EOF && path == "" {
			return nil
		}
		if err != nil {
			return err
		}
		switch tok := tok.(type) {
		case xml.StartElement:
			leaf = false
			if err := flatXML(d, path+"."+tok.Name.Local, leaves); err != nil {
				return err
			}
		case xml.CharData:
			text.Write(tok)
		case xml.EndElement:
			if leaf {
				_, below, _ := strings.Cut(strings.TrimPrefix(path, "."), ".")
				*leaves = append(*leaves, below+"="+text.String())
			}
			return nil
		}
	}
}

// TestTwins asks for the same in both forms.
func TestTwins(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	two := oneDisk("DiskDeviceMapping.2.OSSBucket", "images", "DiskDeviceMapping.2.OSSObject", "data.qcow2",
		"Description", "<&>\"'\n漢字", "Tag.1.Key", "a", "Tag.2.Key", "b", "Tag.2.Value", "<&>", "ClientToken", "once")
	r.imported(t, two)
	id, _ := r.imported(t, oneDisk("ImageName", "done"))
	r.work(t, id).succeed(t)
	id, _ = r.imported(t, oneDisk("ImageName", "bad"))
	r.work(t, id).fail(t, tasks.Failure{Code: "checksum_mismatch", Message: "The hashes differ.", Evidence: "a <> b", Remedy: "Upload it again."})

	region := params{"RegionId": hangzhou}
	for _, test := range []struct {
		action string
		params params
	}{
		{"ImportImage", two}, // the answer to a repetition
		{"ImportImage", oneDisk("ImageName", "done")},
		{"ImportImage", oneDisk("ImageName", "<&>")},
		{"ImportImage", oneDisk("DiskDeviceMapping.1.OSSObject", "missing.raw")},
		{"DescribeRegions", params{}},
		{"DescribeRegions", params{"AcceptLanguage": "ja"}},
		{"DescribeTasks", region},
		{"DescribeTasks", region.with("TaskIds", "t-none")},
		{"DescribeTasks", region.with("PageSize", "0")},
		{"DescribeTaskAttribute", region.with("TaskId", task(1))},
		{"DescribeTaskAttribute", region.with("TaskId", task(2))},
		{"DescribeTaskAttribute", region.with("TaskId", string(id))},
		{"DescribeTaskAttribute", region},
		{"DescribeImages", region.with("Status", "ALL")},
		{"DescribeImages", region.with("ImageName", "none")},
		{"DescribeImages", region.with("Usage", "<&>")},
		{"CancelTask", region.with("TaskId", task(2))},
		{"CancelTask", params{}},
		{"DeleteImage", region.with("ImageId", image(1))},
		{"DeleteImage", region.with("ImageId", "\x00\x01")},
		{"<&>", region},
	} {
		var answers [2][]string
		for i, form := range []string{"json", "Xml"} {
			a := r.call(t, test.action, test.params.with("Format", form))
			if got := a.header.Get("Content-Type"); got != []string{contentJSON, contentXML}[i] {
				t.Errorf("%s in %s: the content is %q", test.action, form, got)
			}
			flat, err := a.flat()
			if err != nil {
				t.Fatal(err)
			}
			answers[i] = append([]string{fmt.Sprint(a.status)}, flat[1:]...)
		}
		if !slices.Equal(answers[0], answers[1]) {
			t.Errorf("%s %v: the forms differ:\n%q\n%q", test.action, test.params, answers[0], answers[1])
		}
	}
}

// TestForms is about which form an answer has.
func TestForms(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	for _, test := range []struct{ format, accept, rpc, acs3 string }{
		{"", "", contentXML, contentJSON},
		{"", "application/json", contentXML, contentJSON},
		{"", "text/xml, application/xml;q=0.9", contentXML, contentXML},
		{"", "application/xml, */*", contentXML, contentJSON},
		{"JSON", "text/xml", contentJSON, contentJSON},
		{"xml", "application/json", contentXML, contentXML},
	} {
		for _, action := range []string{"DescribeRegions", "Refused"} {
			req := unsigned(params{"Action": action, "Format": test.format})
			req.Header.Set("Accept", test.accept)
			aliyunsigtest.SignRPC(t, req, alphaKey, r.newNonce(), r.clock.now())
			if got := r.send(t, req).header.Get("Content-Type"); got != test.rpc {
				t.Errorf("%+v: with the older signature the content is %q", test, got)
			}
			req = httptest.NewRequest(http.MethodPost, "http://ecs.example.test/?Format="+test.format, nil)
			req.Header.Set("Accept", test.accept)
			aliyunsigtest.SignACS3(t, req, alphaKey, action, r.newNonce(), r.clock.now())
			if got := r.send(t, req).header.Get("Content-Type"); got != test.acs3 {
				t.Errorf("%+v: with the newer signature the content is %q", test, got)
			}
		}
	}
}

// TestPlaces sends the parameters in every place that clients have for them.
func TestPlaces(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	task, _ := r.imported(t, oneDisk())
	all := url.Values{"Version": {aliyun.Version}, "Format": {"JSON"}, "Action": {"DescribeTaskAttribute"}, "RegionId": {hangzhou}, "TaskId": {task}}.Encode()
	form := func(query, body string) *http.Request {
		req := httptest.NewRequest(http.MethodPost, "http://ecs.example.test/?"+query, strings.NewReader(body))
		req.Header.Set("Content-Type", aliyunsigtest.Form)
		return req
	}
	get := httptest.NewRequest(http.MethodGet, "http://ecs.example.test/?"+all, nil)
	aliyunsigtest.SignRPC(t, get, alphaKey, r.newNonce(), r.clock.now())
	query := form(all, "")
	aliyunsigtest.SignRPC(t, query, alphaKey, r.newNonce(), r.clock.now())
	body := form("", all)
	aliyunsigtest.SignRPCForm(t, body, alphaKey, r.newNonce(), r.clock.now())
	mixed := form("Action=x&Format=JSON&TaskId=t-other", all)
	aliyunsigtest.SignRPC(t, mixed, alphaKey, r.newNonce(), r.clock.now())
	newer := form("", all)
	aliyunsigtest.SignACS3(t, newer, sessionKey, "DescribeTaskAttribute", r.newNonce(), r.clock.now())
	for name, req := range map[string]*http.Request{"GET": get, "query": query, "body": body, "both": mixed, "ACS3": newer} {
		if a := r.send(t, req); a.status != http.StatusOK || a.text("TaskId") != task {
			t.Errorf("%s: %d %s", name, a.status, a.body)
		}
	}
	wantCode(t, r.send(t, clone(body, all)), 400, "MissingParameter") // Signature
	replayed := form("", "")
	replayed.URL.RawQuery = get.URL.RawQuery
	replayed.Method = http.MethodGet
	wantCode(t, r.send(t, replayed), 400, "SignatureNonceUsed")
}

// clone returns req with another body.
func clone(req *http.Request, body string) *http.Request {
	c := req.Clone(context.Background())
	c.Body, c.ContentLength = io.NopCloser(strings.NewReader(body)), int64(len(body))
	return c
}

type broken struct{ err error }

func (b broken) Read([]byte) (int, error) { return 0, b.err }

// TestUnreadable sends what is no request of the API. Each is answered in the form that it
// asks for, as far as that can be read.
func TestUnreadable(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	const path = "http://ecs.example.test/"
	for name, test := range map[string]struct {
		req          *http.Request
		status       int
		code, answer string
	}{
		"too long": {httptest.NewRequest(http.MethodPost, path+"?Format=JSON", strings.NewReader(strings.Repeat("a=b&", 1<<19))),
			400, "InvalidParameter", "too long"},
		"cut short":    {httptest.NewRequest(http.MethodPost, path+"?Format=JSON", broken{io.ErrUnexpectedEOF}), 400, "InvalidParameter", "cut short"},
		"too slow":     {httptest.NewRequest(http.MethodPost, path+"?Format=JSON", broken{os.ErrDeadlineExceeded}), 400, "InvalidParameter", "in time"},
		"JSON body":    {httptest.NewRequest(http.MethodPost, path+"?Format=json", strings.NewReader("{}")), 400, "InvalidParameter", "urlencoded"},
		"twice":        {httptest.NewRequest(http.MethodGet, path+"?a=1&Format=JSON&a=2", nil), 400, "InvalidParameter", "twice"},
		"escape":       {httptest.NewRequest(http.MethodGet, path+"?Format=JSON", nil), 400, "InvalidParameter", "UTF-8"},
		"not signed":   {httptest.NewRequest(http.MethodGet, path+"?Format=JSON&Action=DescribeTasks", nil), 400, "MissingParameter", "Signature"},
		"PUT":          {httptest.NewRequest(http.MethodPut, path+"?Format=JSON", nil), 403, "UnsupportedHTTPMethod", ""},
		"OPTIONS":      {httptest.NewRequest(http.MethodOptions, path+"?Format=JSON", nil), 403, "UnsupportedHTTPMethod", ""},
		"own method":   {httptest.NewRequest("IMPORT", path+"?Format=JSON", nil), 403, "UnsupportedHTTPMethod", ""},
		"other scheme": {httptest.NewRequest(http.MethodGet, path+"?Format=JSON&SignatureType=BEARERTOKEN", nil), 400, "MissingParameter", ""},
	} {
		if name == "escape" {
			test.req.URL.RawQuery = "%zz&Format=JSON"
		}
		a := r.send(t, test.req)
		wantCode(t, a, test.status, test.code)
		if !strings.Contains(a.text("Message"), test.answer) {
			t.Errorf("%s: the message is %q", name, a.text("Message"))
		}
	}
	acs3 := httptest.NewRequest(http.MethodPost, path, strings.NewReader(strings.Repeat("a=b&", 1<<19)))
	acs3.Header.Set("Authorization", "ACS3-HMAC-SHA256 what")
	wantCode(t, r.send(t, acs3), 400, "InvalidParameter")
}

// TestBrowser: who looks at / is not told of signatures.
func TestBrowser(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	for _, method := range []string{http.MethodGet, http.MethodHead} {
		rec := httptest.NewRecorder()
		r.ServeHTTP(rec, httptest.NewRequest(method, "/", nil))
		if rec.Code != http.StatusNotFound || !strings.Contains(rec.Body.String(), `"error_code":"40400"`) {
			t.Errorf("%s /: %d %s", method, rec.Code, rec.Body)
		}
	}
}

// faulty is a service whose answers to Get are errors, or panics.
type faulty struct {
	aliyun.Service
	get func() error
}

func (f faulty) Get(context.Context, tasks.Scope, tasks.ID) (*tasks.Task, error) {
	return nil, f.get()
}

// TestFaults: what goes wrong inside is told without its particulars.
func TestFaults(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		get    func() error
		status int
		code   string
	}{
		"panic":       {func() error { panic("secret 10.0.0.7") }, 500, "InternalError"},
		"bug":         {func() error { return errors.New("secret in /srv/vmimport") }, 500, "InternalError"},
		"fenced":      {func() error { return tasks.ErrFenced }, 500, "InternalError"},
		"timeout":     {func() error { return fmt.Errorf("secret: %w", context.DeadlineExceeded) }, 503, "ServiceUnavailable"},
		"client left": {func() error { return fmt.Errorf("secret: %w", context.Canceled) }, 503, "ServiceUnavailable"},
		"store down": {func() error {
			return fault.Wrap(errors.New("dial tcp 10.0.0.5:6379: secret"), fault.Unavailable, "store_unavailable", "The record store is not available.")
		}, 503, "ServiceUnavailable"},
		"denied":     {func() error { return fault.New(fault.Denied, "object_not_readable", "Access is denied.") }, 403, "InvalidOSS.NotAuthorized"},
		"unheard of": {func() error { return fault.New(fault.Invalid, "unheard_of", "It is wrong.") }, 400, "InvalidParameter"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			r.mount(t, faulty{get: test.get}, allNew{})
			for _, form := range []string{"JSON", "XML"} {
				a := r.call(t, "DescribeTaskAttribute", params{"RegionId": hangzhou, "TaskId": task(1), "Format": form})
				if a.status != test.status || !strings.Contains(a.body, test.code) || strings.Contains(a.body, "secret") {
					t.Errorf("answered %d %s", a.status, a.body)
				}
			}
		})
	}
}

// allNew is aliyunsig.Nonces that finds all of them new.
type allNew struct{}

func (allNew) Use(context.Context, string, string, time.Duration) (bool, error) { return true, nil }

// TestLog: nothing of a request is logged but what it is about.
func TestLog(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.callACS3(t, sessionKey, "DescribeTasks", params{"RegionId": hangzhou, "TaskIds": "private"})
	r.call(t, "DescribeTasks", params{"RegionId": "private"})
	for _, secret := range []string{sessionKey.Token, sessionKey.Secret, "private", "Signature", "nonce-"} {
		if strings.Contains(r.log.String(), secret) {
			t.Errorf("the log tells %q:\n%s", secret, r.log)
		}
	}
	for _, fact := range []string{`"action":"DescribeTasks"`, `"account":"` + alpha + `"`, `"code":"InvalidRegionId.NotFound"`, `"aliyun_request_id":"C0FFEE00-`} {
		if !strings.Contains(r.log.String(), fact) {
			t.Errorf("the log lacks %s:\n%s", fact, r.log)
		}
	}
}
