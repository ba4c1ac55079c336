package fjcloud_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"vmimport/tasks"
)

const goodExport = `{"image_id": "` + alicesImage + `", "storage_container": "/v2/AUTH_` + alicesProject + `/backup"}`

// registerExport has an export to a container accepted and returns its id.
func registerExport(t *testing.T, h http.Handler, container string) string {
	t.Helper()
	rec := call(h, "POST", "/v1/imageexport", strings.Replace(goodExport, "/backup", "/"+container, 1))
	var answer map[string]string
	if err := json.Unmarshal(rec.Body.Bytes(), &answer); rec.Code != 201 || err != nil || len(answer) != 1 {
		t.Fatalf("export: %d %s (%v)", rec.Code, rec.Body, err)
	}
	if location := rec.Header().Get("Location"); location != "/v1/imageexport/"+answer["export_id"]+"/status" {
		t.Fatalf("the export is at %q", location)
	}
	return answer["export_id"]
}

// What reaches the service is the request, and the caller as the token says.
func TestExportSpec(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	body := `{"image_id": "` + strings.ToUpper(alicesImage) + `", "storage_container": "/v2/AUTH_` + alicesProject + `/a b%2e/",
		"details": {"image_to": "vmware", "secret": "c2VjcmV0"}, "name": "other", "project": "` + bobsProject + `", "password": "c2VjcmV0"}`
	if rec := call(w, "POST", "/v1/imageexport?password=in-the-query", body, "X-Request-Id", "r-1"); rec.Code != 201 {
		t.Fatal(rec.Body)
	}
	got := w.service.imports[0].Spec
	want := tasks.Spec{
		ID: "c0ffee00-0000-4000-8000-000000000001", ImageID: alicesImage, Name: "web01",
		Owner:   tasks.Owner{Tenant: "contract01", Project: alicesProject, User: "u-alice"},
		Dialect: "fjcloud", Region: "gen3", RequestID: "r-1", RequestedAt: got.RequestedAt,
		Export:  &tasks.Export{Form: tasks.FormVMDK, Container: "a b%2e", Format: "raw", Bytes: 4 << 30, VirtualBytes: 40 << 30, Version: "v1"},
		Details: json.RawMessage(`{"storage_container":"/v2/AUTH_` + alicesProject + `/a b%2e/","details":{"image_to":"vmware"}}`),
	}
	g, err := json.Marshal(got)
	if err != nil {
		t.Fatal(err)
	}
	if w, err := json.Marshal(want); err != nil || string(g) != string(w) {
		t.Errorf("got  %s\nwant %s (%v)", g, w, err)
	}
	for _, secret := range []string{"c2VjcmV0", "in-the-query", `"alice"`} {
		if strings.Contains(w.log.String(), secret) {
			t.Errorf("%s is in the log:\n%s", secret, w.log)
		}
	}
	for _, fact := range []string{`"request_id":"r-1"`, `"project":"` + alicesProject, `"export_id":"c0ffee00`, `"route":"/v1/imageexport"`, `"region":"gen3"`} {
		if strings.Count(w.log.String(), fact) != 1 {
			t.Errorf("the log does not say %s once:\n%s", fact, w.log)
		}
	}
}

func TestExportListWindows(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var want []string // newest first
	for i := range 430 {
		want = append(want, registerExport(t, w, fmt.Sprint("c", i)))
		register(t, w)
	}
	slices.Reverse(want)
	list := func(query string) (ids []string) {
		rec := call(w, "GET", "/v1/imageexport"+query, "")
		var body struct {
			Exports []struct {
				ID      string    `json:"export_id"`
				Status  string    `json:"status"`
				ImageID string    `json:"image_id"`
				Time    time.Time `json:"request_time"`
			} `json:"exports"`
		}
		if err := json.Unmarshal(rec.Body.Bytes(), &body); err != nil || rec.Code != 200 {
			t.Fatalf("%s: %d %s", query, rec.Code, rec.Body)
		}
		for i, e := range body.Exports {
			if e.Status != "/v1/imageexport/"+e.ID+"/status" || e.ImageID != alicesImage || i > 0 && e.Time.After(body.Exports[i-1].Time) {
				t.Fatalf("%s: entry %d is %+v", query, i, e)
			}
			ids = append(ids, e.ID)
		}
		return ids
	}
	for _, query := range []string{"", "?limit=200", "?limit=201", "?limit=4000000000", "?start=0"} {
		if got := list(query); !slices.Equal(got, want[:200]) {
			t.Errorf("%q: %d entries, not the newest 200", query, len(got))
		}
	}
	for _, limit := range []int{1, 7, 199, 200} {
		var got []string
		for start := 0; ; start += limit {
			page := list(fmt.Sprintf("?start=%d&limit=%d", start, limit))
			if got = append(got, page...); len(page) == 0 {
				break
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("windows of %d do not join to the list", limit)
		}
	}
}

func TestParallelExportCancels(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id := registerExport(t, w, "backup")
	w.service.change(func(e *tasks.Task) { e.State = tasks.Processing })
	codes := make([]int, 20)
	start := make(chan struct{})
	var wg sync.WaitGroup
	for i := range codes {
		wg.Go(func() {
			<-start
			codes[i] = call(w, "POST", "/v1/imageexport/"+id+"/cancel", "").Code
		})
	}
	close(start)
	wg.Wait()
	slices.Sort(codes)
	want := append([]int{202}, slices.Repeat([]int{400}, 19)...)
	if slices.Sort(want); !slices.Equal(codes, want) {
		t.Errorf("got %v", codes)
	}
}

func TestHostileExportBodies(t *testing.T) {
	t.Parallel()
	with := func(member string) string { return strings.Replace(goodExport, "{", "{"+member+", ", 1) }
	to := func(path string) string {
		return strings.Replace(goodExport, "/v2/AUTH_"+alicesProject+"/backup", path, 1)
	}
	in := func(container string) string { return strings.Replace(goodExport, "/backup", "/"+container, 1) }
	for name, tt := range map[string]struct{ body, code string }{
		"2 MiB of white space":       {strings.Repeat(" ", 2<<20) + goodExport, "40016"},
		"2 MiB in a member":          {with(`"x": "` + strings.Repeat("x", 2<<20) + `"`), "40016"},
		"10000 arrays":               {with(`"x": ` + strings.Repeat("[", 10000) + strings.Repeat("]", 10000)), "40016"},
		"member twice, escaped":      {with(`"image_\u0069d": "` + alicesOther + `"`), "40016"},
		"details twice inside":       {with(`"details": {"image_to": "kvm", "image_to": "vmware"}`), "40016"},
		"bytes that are no UTF-8":    {in("\xff"), "40016"},
		"half a surrogate pair":      {in(`\ud800`), "40016"},
		"raw NUL":                    {in("a\x00b"), "40016"},
		"escaped NUL":                {in(`a\u0000b`), "40004"},
		"C1 control":                 {in(`a\u009bb`), "40004"},
		"line break":                 {in(`a\r\nX-Auth-Token: b`), "40004"},
		"dots by escapes":            {in(`\u002e\u002e`), "40004"},
		"dots and a slash":           {in(`../`), "40004"},
		"out and in again":           {in(`../AUTH_` + bobsProject + `/backup`), "40004"},
		"slash by escape":            {in(`backup\u002fweb01`), "40004"},
		"slash as percent":           {in(`backup%2fweb01`), ""}, // a percent is only a percent
		"dots as percent":            {in(`%2e%2e`), ""},
		"backslash":                  {in(`..\\`), ""}, // a name like others for Swift
		"query":                      {in(`backup?multipart-manifest=delete`), "40004"},
		"fragment":                   {in(`backup#x`), "40004"},
		"247 bytes":                  {in(strings.Repeat("c", 247)), ""},
		"248 bytes":                  {in(strings.Repeat("c", 248)), "40004"},
		"83 characters of 3 bytes":   {in(strings.Repeat("ぬ", 83)), "40004"},
		"project of another":         {to("/v2/AUTH_" + bobsProject + "/backup"), "40004"},
		"project in capitals":        {to("/v2/AUTH_" + strings.ToUpper(alicesProject) + "/backup"), "40004"},
		"project by its name":        {to("/v2/AUTH_alice/backup"), "40004"},
		"project as percent":         {to("/v2/AUTH_%36" + alicesProject[1:] + "/backup"), "40004"},
		"no project":                 {to("/v2/AUTH_/backup"), "40004"},
		"other reseller":             {to("/v2/KEY_" + alicesProject + "/backup"), "40004"},
		"other version":              {to("/v1/AUTH_" + alicesProject + "/backup"), "40004"},
		"version in capitals":        {to("/V2/AUTH_" + alicesProject + "/backup"), "40004"},
		"no slash before":            {to("v2/AUTH_" + alicesProject + "/backup"), "40004"},
		"blank before":               {to(" /v2/AUTH_" + alicesProject + "/backup"), "40004"},
		"container as a list":        {`{"image_id": "` + alicesImage + `", "storage_container": ["/v2/AUTH_` + alicesProject + `/backup"]}`, "40004"},
		"image as URN":               {strings.Replace(goodExport, alicesImage, "urn:uuid:"+alicesImage, 1), "40002"},
		"image with a blank":         {strings.Replace(goodExport, alicesImage, alicesImage+" ", 1), "40002"},
		"image with other letters":   {strings.Replace(goodExport, "5b1c1c0e", "5b1c1c0g", 1), "40002"},
		"image with other digits":    {strings.Replace(goodExport, "5b1c1c0e", "5b1c1c0٣", 1), "40002"},
		"details of an import":       {with(`"details": {"image_from": "kvm"}`), ""},
		"details in capitals":        {with(`"DETAILS": 7, "details": {"IMAGE_TO": 7}`), ""},
		"details, false":             {with(`"details": false`), "40011"},
		"details, a number in it":    {with(`"details": {"image_to": 1}`), "40011"},
		"details, a form of our own": {with(`"details": {"image_to": "vmdk"}`), "40011"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			rec := call(newWorld(t), "POST", "/v1/imageexport", tt.body)
			switch {
			case tt.code == "" && rec.Code != http.StatusCreated:
				t.Errorf("refused: %s", rec.Body)
			case tt.code != "" && errorCode(t, rec) != tt.code:
				t.Errorf("want %s: %s", tt.code, rec.Body)
			}
		})
	}
}
