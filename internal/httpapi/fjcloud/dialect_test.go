package fjcloud_test

import (
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	"vmimport/internal/httpapi/fjcloud"
	"vmimport/internal/httpapi/httpapitest"
	"vmimport/tasks"
)

// call sends a request as alice, unless header says otherwise.
func call(h http.Handler, method, target, body string, header ...string) *httptest.ResponseRecorder {
	req := httptest.NewRequest(method, target, strings.NewReader(body))
	req.Header.Set("X-Auth-Token", "alice")
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, req)
	return rec
}

const goodBody = `{"name": "web01", "location": "/v2/AUTH_` + alicesProject + `/c/web01.vmdk", "os_type": "rocky"}`

const exportedBody = `{"location": "/v2/AUTH_` + alicesProject + `/c/web01.img.gz"}`

// register has an import accepted and returns its id.
func register(t *testing.T, h http.Handler) string {
	t.Helper()
	rec := call(h, "POST", "/v1/imageimport", goodBody)
	var answer map[string]string
	if err := json.Unmarshal(rec.Body.Bytes(), &answer); rec.Code != 201 || err != nil || len(answer) != 1 {
		t.Fatalf("register: %d %s (%v)", rec.Code, rec.Body, err)
	}
	return answer["import_id"]
}

// errorCode returns the code of an error answer, and fails the test unless it
// is one of the documented shape.
func errorCode(t testing.TB, rec *httptest.ResponseRecorder) string {
	t.Helper()
	var body map[string]string
	if err := json.Unmarshal(rec.Body.Bytes(), &body); err != nil {
		t.Fatalf("status %d without a JSON body: %q", rec.Code, rec.Body)
	}
	code := body["error_code"]
	if len(code) != 5 || code[:3] != fmt.Sprint(rec.Code) || body["message"] == "" || body["message"] != body["error_message"] ||
		rec.Header().Get("Content-Type") != "application/json" {
		t.Fatalf("status %d with %v and body %s", rec.Code, rec.Header(), rec.Body)
	}
	return code
}

func TestNewRefusesBadOptions(t *testing.T) {
	t.Parallel()
	for _, opts := range []fjcloud.Options{
		{Profile: "gen4"},
		{ListScope: "world"},
		{Extensions: []string{".exe"}},
		{Extensions: []string{"raw"}},
	} {
		if _, err := fjcloud.New("r", newFakeService(), fakeTokens{}, opts); err == nil {
			t.Errorf("%+v was accepted", opts)
		}
	}
	if _, err := fjcloud.New("", newFakeService(), fakeTokens{}, fjcloud.Options{}); err == nil {
		t.Error("a region without a name was accepted")
	}
}

// What reaches the service is the request, and the caller as the token says.
func TestRegisteredSpec(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	body := `{"name":"n","location":"/v2/AUTH_` + alicesProject + `/c/a b/%2e.vmdk","checksum":"2FD4E1C67A2D28FCED849EE1BB76E7391B93EB12",
		"min_ram":"7","min_disk":8,"os_type":"ubuntu","project":"` + bobsProject + `","password":"c2VjcmV0LXBhc3N3b3Jk"}`
	if rec := call(w, "POST", "/v1/imageimport?password=in-the-query", body, "X-Request-Id", "r-1"); rec.Code != 201 {
		t.Fatal(rec.Body)
	}
	got := w.service.imports[0].Spec
	want := tasks.Spec{
		ID: "c0ffee00-0000-4000-8000-000000000001", ImageID: "c0ffee00-0000-4000-8000-000000000002",
		Owner:   tasks.Owner{Tenant: "contract01", Project: alicesProject, User: "u-alice"},
		Dialect: "fjcloud", Region: "gen3", Name: "n", MinRAMMiB: 7, MinDiskGiB: 8, OSType: "ubuntu", TargetFormat: "raw",
		RequestID: "r-1", RequestedAt: got.RequestedAt,
		Disks: []tasks.Disk{{
			Object: tasks.Object{API: "swift", Project: alicesProject, Container: "c", Name: "a b/%2e.vmdk"},
			Format: "vmdk", SHA1: "2fd4e1c67a2d28fced849ee1bb76e7391b93eb12", Bytes: 4 << 30, Version: "v1",
		}},
		Details: got.Details,
	}
	if g, w := fmt.Sprintf("%+v", got), fmt.Sprintf("%+v", want); g != w {
		t.Errorf("got  %s\nwant %s", g, w)
	}
	// Nobody needs to know these, and so nobody may.
	record, err := json.Marshal(got)
	if err != nil {
		t.Fatal(err)
	}
	for _, secret := range []string{"c2VjcmV0", "in-the-query", `"alice"`} {
		if strings.Contains(w.log.String(), secret) || strings.Contains(string(record), secret) {
			t.Errorf("%s is in the log or in the record:\n%s\n%s", secret, w.log, record)
		}
	}
	for _, fact := range []string{`"request_id":"r-1"`, `"project":"` + alicesProject, `"import_id":"c0ffee00`, `"status":201`, `"route":"/v1/imageimport"`, `"region":"gen3"`} {
		if strings.Count(w.log.String(), fact) != 1 {
			t.Errorf("the log does not say %s once:\n%s", fact, w.log)
		}
	}
}

// An error of ours is told to the log in full, once, and to the client not at all.
func TestInternalErrorsAreLogged(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"bug", "store-down"} {
		w := newWorld(t)
		w.service.fails = failures[name]
		rec := call(w, "GET", "/v1/imageimport", "")
		if errorCode(t, rec); rec.Code < 500 {
			t.Errorf("%s: %d", name, rec.Code)
		}
		said := failures[name].Error()
		if strings.Contains(rec.Body.String(), said) || strings.Count(w.log.String(), said) != 1 {
			t.Errorf("%s: answer %s, log %s", name, rec.Body, w.log)
		}
	}
}

func TestListWindows(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var want []string // newest first
	for range 230 {
		want = append(want, register(t, w))
	}
	slices.Reverse(want)
	list := func(query string) (ids []string) {
		rec := call(w, "GET", "/v1/imageimport"+query, "")
		var body struct {
			Imports []struct {
				ID     string `json:"import_id"`
				Status string `json:"status"`
			} `json:"imports"`
		}
		if err := json.Unmarshal(rec.Body.Bytes(), &body); err != nil || rec.Code != 200 {
			t.Fatalf("%s: %d %s", query, rec.Code, rec.Body)
		}
		for _, i := range body.Imports {
			if i.Status != "/v1/imageimport/"+i.ID+"/status" {
				t.Fatalf("status path %s of %s", i.Status, i.ID)
			}
			ids = append(ids, i.ID)
		}
		return ids
	}
	for _, query := range []string{"", "?limit=100", "?limit=101", "?limit=4000000000", "?start=0"} {
		if got := list(query); !slices.Equal(got, want[:100]) {
			t.Errorf("%q: %d entries, not the newest 100", query, len(got))
		}
	}
	for _, limit := range []int{1, 7, 99, 100} {
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

func TestParallelCancels(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id := register(t, w)
	w.service.change(func(imp *tasks.Task) { imp.State = tasks.Processing })
	codes := make([]int, 20)
	start := make(chan struct{})
	var wg sync.WaitGroup
	for i := range codes {
		wg.Go(func() {
			<-start
			codes[i] = call(w, "POST", "/v1/imageimport/"+id+"/cancel", "").Code
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

func TestMetadataIsBounded(t *testing.T) {
	t.Parallel()
	for size, code := range map[int]string{64 << 10: "", 64<<10 + 1: "40017"} {
		w := newWorld(t)
		record := `{"name": "web01"}`
		w.service.put("c/web01.json", record+strings.Repeat(" ", size-len(record)))
		rec := call(w, "POST", "/v1/imageimport", exportedBody)
		if code == "" && rec.Code != http.StatusCreated || code != "" && errorCode(t, rec) != code {
			t.Errorf("%d bytes: %d %s", size, rec.Code, rec.Body)
		}
	}
}

// An image id that is taken by an image that nobody is importing is found by the
// preflight; what Register then says is the same.
func TestOriginalIDIsTaken(t *testing.T) {
	t.Parallel()
	const original = "5b1c1c0e-53a7-4c2a-9a53-2d0f0c1b8a77"
	for _, path := range []string{"/v1/imageimport", "/v1/expansionstorageimageimport"} {
		w := newWorld(t)
		w.service.put("c/web01.json", `{"id": "`+original+`"}`)
		w.service.taken = original
		body := `{"name": "web01", "location": "/v2/AUTH_` + alicesProject + `/c/web01.img.gz"`
		if rec := call(w, "POST", path, body+"}"); rec.Code != http.StatusCreated {
			t.Fatalf("%s: %s", path, rec.Body)
		}
		got := w.service.imports[0].Spec
		disk := got.Disks[0]
		if got.ID != "c0ffee00-0000-4000-8000-000000000001" || got.ImageID != "c0ffee00-0000-4000-8000-000000000002" || disk.Format != "raw.gz" || disk.Object.Name != "web01.img.gz" {
			t.Errorf("%s: %+v", path, got)
		}
		if code := errorCode(t, call(w, "POST", path, body+`, "id": "`+original+`"}`)); code != "40015" {
			t.Errorf("%s with the id given: %s", path, code)
		}
	}
}

// Only an id that the request gives is one that the image must have.
func TestGivenID(t *testing.T) {
	t.Parallel()
	const original, given = "5b1c1c0e-53a7-4c2a-9a53-2d0f0c1b8a77", "6c2d2d1f-64b8-4d3b-8b64-3e1f1d2c9b88"
	w := newWorld(t)
	w.service.put("c/web01.json", `{"id": "`+original+`", "name": "web01", "os_type": "ubuntu"}`)
	body := `{"location": "/v2/AUTH_` + alicesProject + `/c/web01.img.gz"`
	for i, tt := range []struct {
		body, id string
		given    bool
	}{
		{goodBody, "", false},
		{body + "}", original, false},
		{body + `, "id": "` + given + `"}`, given, true},
	} {
		if rec := call(w, "POST", "/v1/imageimport", tt.body); rec.Code != http.StatusCreated {
			t.Fatal(rec.Body)
		}
		got := w.service.imports[i].Spec
		if got.ImageIDGiven != tt.given || tt.id != "" && got.ImageID != tt.id {
			t.Errorf("%s: image id %s, given %v", tt.body, got.ImageID, got.ImageIDGiven)
		}
	}
}

func TestHostileBodies(t *testing.T) {
	t.Parallel()
	with := func(member string) string { return strings.Replace(goodBody, "{", "{"+member+", ", 1) }
	for name, tt := range map[string]struct{ body, code string }{
		"5 MiB of white space":        {strings.Repeat(" ", 5<<20) + goodBody, "40016"},
		"5 MiB in a member":           {with(`"x": "` + strings.Repeat("x", 5<<20) + `"`), "40016"},
		"10000 arrays":                {with(`"x": ` + strings.Repeat("[", 10000) + strings.Repeat("]", 10000)), "40016"},
		"100000 objects, open":        {strings.Repeat(`{"x":`, 100000), "40016"},
		"33 levels":                   {with(`"x": ` + strings.Repeat("[", 32) + strings.Repeat("]", 32)), "40016"},
		"32 levels":                   {with(`"x": ` + strings.Repeat("[", 31) + strings.Repeat("]", 31)), ""},
		"raw NUL":                     {"{\"name\": \"a\x00b\"}", "40016"},
		"NUL after the object":        {goodBody + "\x00", "40016"},
		"bytes that are no UTF-8":     {"{\"name\": \"\xff\xfe\"}", "40016"},
		"UTF-16":                      {"{\x00\"\x00n\x00", "40016"},
		"member twice":                {with(`"name": "other"`), "40016"},
		"member twice, escaped":       {with(`"n\u0061me": "other"`), "40016"},
		"member twice, deep inside":   {with(`"x": [{"a": {"b": 1, "b": 2}}]`), "40016"},
		"same name on two levels":     {with(`"x": {"name": {"name": ["name", "name"]}}`), ""},
		"member in capitals":          {with(`"NAME": "other", "Checksum": 7`), ""},
		"low surrogate":               {with(`"x": "\udc00"`), "40016"},
		"high surrogate twice":        {with(`"x": "\ud800\ud800"`), "40016"},
		"surrogates swapped":          {with(`"x": "\udc00\ud800"`), "40016"},
		"surrogate pair":              {with(`"x": "\ud83d\ude00"`), ""},
		"no surrogate at all":         {with(`"x": "\\ud800"`), ""},
		"number beyond floats":        {with(`"min_ram": 1e999`), "40008"},
		"number with exponent":        {with(`"min_ram": 1e3`), "40008"},
		"minus zero":                  {with(`"min_ram": -0`), "40008"},
		"number beyond int64":         {with(`"min_disk": 99999999999999999999`), "40009"},
		"number in other digits":      {with(`"min_disk": "١٢"`), "40009"},
		"number with blanks":          {with(`"min_disk": " 1"`), "40009"},
		"empty number":                {with(`"min_disk": ""`), "40009"},
		"the largest number":          {with(`"min_ram": 2147483647, "min_disk": "2147483647"`), ""},
		"null":                        {"null", "40016"},
		"nothing":                     {"", "40016"},
		"name of 255 characters":      {strings.Replace(goodBody, "web01", strings.Repeat("ぬ", 255), 1), ""},
		"name of 256 characters":      {strings.Replace(goodBody, "web01", strings.Repeat("ぬ", 256), 1), "40002"},
		"name of blanks of all sorts": {strings.Replace(goodBody, "web01", " \u3000\u2003", 1), "40002"},
		"name with C1 control":        {strings.Replace(goodBody, "web01", `a\u009bb`, 1), "40002"},
		"dots by escapes":             {strings.Replace(goodBody, "/c/", `/c/\u002e\u002e/`, 1), "40004"},
		"container too long":          {strings.Replace(goodBody, "/c/", "/"+strings.Repeat("c", 257)+"/", 1), "40004"},
		"object too long":             {strings.Replace(goodBody, "/c/", "/c/"+strings.Repeat("o/", 512), 1), "40004"},
		"percent is only a percent":   {strings.Replace(goodBody, "/c/", "/c/%2e%2e/%00/", 1), ""},
		"no project":                  {strings.Replace(goodBody, alicesProject, "", 1), "40004"},
		"project and more":            {strings.Replace(goodBody, alicesProject, alicesProject+"0", 1), "40004"},
		"id of zero length":           {with(`"id": ""`), "40007"},
		"id without dashes":           {with(`"id": "5b1c1c0e53a74c2a9a532d0f0c1b8a77"`), "40007"},
		"id as URN":                   {with(`"id": "urn:uuid:5b1c1c0e-53a7-4c2a-9a53-2d0f0c1b8a77"`), "40007"},
		"os_type as a list":           {strings.Replace(goodBody, `"rocky"`, `["rocky"]`, 1), "40011"},
		"conversion as 1":             {with(`"conversion": 1`), "40012"},
		"details twice inside":        {with(`"details": {"image_from": "kvm", "image_from": "vmware"}`), "40016"},
		"details empty":               {with(`"details": {}`), ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			rec := call(newWorld(t), "POST", "/v1/imageimport", tt.body)
			switch {
			case tt.code == "" && rec.Code != http.StatusCreated:
				t.Errorf("refused: %s", rec.Body)
			case tt.code != "" && errorCode(t, rec) != tt.code:
				t.Errorf("want %s: %s", tt.code, rec.Body)
			}
		})
	}
}

// TestMutations changes good requests at random. Whatever comes of it must be
// answered, by what the document allows.
func TestMutations(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	doc := httpapitest.LoadDocument(t)
	id, export := register(t, w), registerExport(t, w, "first")
	w.service.put("c/web01.json", `{"name": "web01"}`)
	type request struct{ method, path, token, body string }
	seeds := []request{
		{"POST", "/v1/imageimport", "alice", goodBody},
		{"POST", "/v1/imageimport", "alice", strings.Replace(goodBody, "{", `{"checksum": "2fd4e1c67a2d28fced849ee1bb76e7391b93eb12", "id": "5b1c1c0e-53a7-4c2a-9a53-2d0f0c1b8a77", "min_ram": 2048, "details": {"image_from": "vmware"}, `, 1)},
		{"POST", "/v1/imageimport", "alice", strings.Replace(exportedBody, "{", `{"min_disk": 3, "id": "5b1c1c0e-53a7-4c2a-9a53-2d0f0c1b8a77", `, 1)},
		{"POST", "/v1/expansionstorageimageimport", "alice", strings.Replace(exportedBody, "{", `{"name": "data", `, 1)},
		{"GET", "/v1/imageimport?start=1&limit=2", "alice", ""},
		{"GET", "/v1/imageimport/" + id + "/status", "bob", ""},
		{"POST", "/v1/imageimport/" + id + "/cancel", "carol", ""},
		{"POST", "/v1/imageexport", "alice", goodExport},
		{"POST", "/v1/imageexport", "alice", strings.Replace(goodExport, "{", `{"details": {"image_to": "kvm"}, `, 1)},
		{"GET", "/v1/imageexport?start=1&limit=2", "alice", ""},
		{"GET", "/v1/imageexport/" + export + "/status", "bob", ""},
		{"POST", "/v1/imageexport/" + export + "/cancel", "carol", ""},
	}
	random := rand.New(rand.NewPCG(20260301, 7))
	for range 10000 {
		r := seeds[random.IntN(len(seeds))]
		for _, field := range []*string{&r.method, &r.path, &r.token, &r.body} {
			if random.IntN(3) == 0 {
				*field = mutate(random, *field)
			}
		}
		req := requestFrom(r.method, r.path, r.token, r.body)
		if req == nil {
			continue // no client library and no server would let it through
		}
		rec := httptest.NewRecorder()
		w.ServeHTTP(rec, req)
		if rec.Code >= 500 {
			t.Fatalf("%+q: %d %s\n%s", r, rec.Code, rec.Body, w.log)
		}
		if rec.Code >= 400 {
			errorCode(t, rec)
		}
		req.Body = io.NopCloser(strings.NewReader(r.body))
		if rec.Code >= 300 || r.method != "POST" { // what is accepted may have more digits or members than can be documented
			doc.Check(t, req, rec.Result())
		}
	}
}

// mutate changes s in one to three places.
func mutate(random *rand.Rand, s string) string {
	nasty := []string{"\x00", "\"", "\\", "{", "}", "[", "]", ",", ":", "/", "..", "//", "%2F", "%00", "%", "\xff", "\u202e", "\r\n", "'", "\\ud800", "null", "-1", "1e9", strings.Repeat("A", 300)}
	for range 1 + random.IntN(3) {
		at := 0
		if len(s) > 0 {
			at = random.IntN(len(s))
		}
		switch random.IntN(4) {
		case 0:
			s = s[:at] + nasty[random.IntN(len(nasty))] + s[at:]
		case 1:
			s = s[:at] + s[min(len(s), at+1+random.IntN(8)):]
		case 2:
			s = s[:at] + s[at:] + s[at:]
		default:
			if at < len(s) {
				s = s[:at] + string([]byte{s[at] ^ 1<<random.IntN(8)}) + s[at+1:]
			}
		}
	}
	return s
}

// requestFrom returns nil for what net/http's server itself refuses.
func requestFrom(method, path, token, body string) (req *http.Request) {
	defer func() {
		if recover() != nil {
			req = nil
		}
	}()
	req = httptest.NewRequest(method, path, strings.NewReader(body))
	req.Header.Set("X-Auth-Token", token)
	return req
}
