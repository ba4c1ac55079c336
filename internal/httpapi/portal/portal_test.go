package portal

import (
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/labstack/echo/v4"
	"golang.org/x/net/html"
)

// visited are all pages that can be asked for.
var visited = []string{
	"/portal/sign-in", "/portal/sign-in?ended=1", "/portal/imports", "/portal/imports?page=3", "/portal/exports",
	"/portal/imports/" + taskA, "/portal/imports/" + taskB, "/portal/exports/" + taskA,
	"/portal/imports/new", "/portal/exports/new", "/portal/imports/" + taskA + "/cancel",
}

// TestPages looks at every page in both languages: it is whole, well formed, in the
// language that it says, and has the headers that keep it from harm.
func TestPages(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	for _, target := range append(visited, "/portal/nothing", "/portal/imports/"+strings.Repeat("0", 36)) {
		for _, lang := range []string{"en", "ja"} {
			w := r.get(target, "Accept-Language", lang)
			body := w.Body.String()
			checkHTML(t, lang+" "+target, body)
			if !strings.Contains(body, `<html lang="`+lang+`">`) || strings.Count(body, "<h1") != 1 {
				t.Errorf("%s %s: language or heading: %s", lang, target, body)
			}
			if strings.Contains(body, goodToken) || strings.Contains(body, url.QueryEscape(goodToken)) {
				t.Errorf("%s %s shows the token", lang, target)
			}
			checkHeaders(t, target, w.Header())
			if head := r.do(http.MethodHead, target, nil); head.Code != w.Code {
				t.Errorf("HEAD %s: %d, GET %d", target, head.Code, w.Code)
			}
		}
	}
}

func checkHeaders(t *testing.T, target string, h http.Header) {
	t.Helper()
	for name, want := range map[string]string{
		"Content-Security-Policy": policy,
		"Referrer-Policy":         "same-origin", // which lets forms have an Origin
		"X-Content-Type-Options":  "nosniff",
		"Cache-Control":           "no-store",
	} {
		if got := h.Get(name); got != want {
			t.Errorf("%s: %s is %q", target, name, got)
		}
	}
	if h.Get("Permissions-Policy") == "" {
		t.Errorf("%s has no Permissions-Policy", target)
	}
}

// void are the elements without an end.
var void = map[string]bool{"meta": true, "link": true, "img": true, "input": true}

// checkHTML fails unless every element is ended in its turn, ids are unique, labels and
// descriptions lead somewhere, and there is neither style nor script in the page itself.
func checkHTML(t *testing.T, name, page string) {
	t.Helper()
	var open []string
	ids, refs := map[string]bool{}, []string{}
	z := html.NewTokenizer(strings.NewReader(page))
	for {
		kind := z.Next()
		token := z.Token()
		switch kind {
		case html.ErrorToken:
			if z.Err() != io.EOF || len(open) != 0 {
				t.Errorf("%s: ends with %v, open: %v", name, z.Err(), open)
			}
			for _, id := range refs {
				if !ids[id] {
					t.Errorf("%s: nothing has the id %q", name, id)
				}
			}
			return
		case html.StartTagToken:
			if !void[token.Data] {
				open = append(open, token.Data)
			}
			src := false
			for _, a := range token.Attr {
				src = src || a.Key == "src"
				switch {
				case a.Key == "id" && ids[a.Val]:
					t.Errorf("%s: two elements have the id %q", name, a.Val)
				case a.Key == "id":
					ids[a.Val] = true
				case a.Key == "for", a.Key == "aria-describedby", a.Key == "aria-labelledby":
					refs = append(refs, strings.Fields(a.Val)...)
				case a.Key == "style", strings.HasPrefix(a.Key, "on"):
					t.Errorf("%s: %s has %s", name, token.Data, a.Key)
				case (a.Key == "src" || a.Key == "href" || a.Key == "action") && !strings.HasPrefix(a.Val, "/portal/") && !strings.HasPrefix(a.Val, "#"):
					t.Errorf("%s: %s leads to %q", name, token.Data, a.Val)
				}
			}
			if token.Data == "style" || token.Data == "script" && !src {
				t.Errorf("%s: inline %s", name, token.Data)
			}
		case html.EndTagToken:
			if len(open) == 0 || open[len(open)-1] != token.Data {
				t.Fatalf("%s: </%s> while %v are open", name, token.Data, open)
			}
			open = open[:len(open)-1]
		}
	}
}

// text returns what a page shows, without markup.
func text(t *testing.T, page string) string {
	t.Helper()
	root, err := html.Parse(strings.NewReader(page))
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for n := range root.Descendants() {
		if n.Type == html.TextNode && (n.Parent == nil || n.Parent.Data != "script") {
			b.WriteString(n.Data + " ")
		}
	}
	return strings.Join(strings.Fields(b.String()), " ")
}

func wantText(t *testing.T, w *httptest.ResponseRecorder, parts ...string) {
	t.Helper()
	got := text(t, w.Body.String())
	for _, part := range parts {
		if !strings.Contains(got, part) {
			t.Errorf("the page lacks %q: %s", part, got)
		}
	}
}

func TestList(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	w := r.get("/portal/imports")
	wantText(t, w, "web01-system", "In progress", "37 %", "Reading", "15.0 GiB of 40.0 GiB", "96.0 MiB/s", "about 4 min left",
		"db <script>alert(1)</script>", "Failed", "Checksum of the image file does not match.")
	body := w.Body.String()
	for _, part := range []string{`data-task="` + taskA + `"`, `data-state="processing"`, `<progress max="100" value="37"`, `datetime="2026-03-06T17:20:00Z"`} {
		if !strings.Contains(body, part) {
			t.Errorf("the list lacks %s", part)
		}
	}
	wantText(t, r.get("/portal/imports", "Accept-Language", "ja,en;q=0.5"), "処理中", "読み込んでいます", "残り約4分", "イメージファイルのチェックサムが一致しません。", "2026年3月7日 02:20 JST")
	r.api.on("GET /v1/imageimport", 200, map[string]any{"imports": []any{}})
	wantText(t, r.get("/portal/imports"), "No imports yet", "New import")
	wantText(t, r.get("/portal/imports?page=2"), "nothing on this page", "Newer")
}

func TestPaging(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	var entries []any
	for range perPage + 1 {
		entries = append(entries, entryOf("import", taskA, running("web01-system")))
	}
	r.api.on("GET /v1/imageimport", 200, map[string]any{"imports": entries})
	body := r.get("/portal/imports?page=2").Body.String()
	if n := strings.Count(body, `data-task=`); n != perPage {
		t.Errorf("%d rows", n)
	}
	for _, link := range []string{`rel="prev" href="/portal/imports"`, `rel="next" href="/portal/imports?page=3"`} {
		if !strings.Contains(body, link) {
			t.Errorf("the page lacks %s", link)
		}
	}
	if got := r.api.calls[0].URL.RawQuery; got != "start=20&limit=21" {
		t.Errorf("asked for %s", got)
	}
}

func TestDetail(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	w := r.get("/portal/imports/" + taskB)
	wantText(t, w, "The import failed", "Checksum of the image file does not match.", "declared 2fd4, computed 9e1d", "Compute the SHA-1 of the file again.",
		"It goes on where it stopped.", "7 Mar 2026, 16:30 UTC", "Try again", "The worker was lost", "from 512 MiB to 1.00 GiB", "Red Hat Enterprise Linux 8")
	if text := text(t, w.Body.String()); strings.Contains(text, "match (declared") {
		t.Errorf("the evidence is told twice: %s", text)
	}
	wantText(t, r.get("/portal/imports/"+taskB, "Accept-Language", "ja"), "ファイルのSHA-1を計算し直し", "サービスからのメッセージ：", "Checksum of the image file does not match.",
		"停止した位置から再開します。")
	wantText(t, r.get("/portal/imports/"+taskA), "Cancel the import…", "had to be repeated: 2", "Rocky Linux")
	wantText(t, r.get("/portal/exports/"+taskA), "The export is complete", "web01.vmdk", "900 MiB", "VMware")
}

func TestQueued(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	body := running("waits")
	body["import_status"] = "queued"
	extra := body["vmimport"].(map[string]any)
	extra["stage"], extra["queue_position"], extra["estimated_start"] = "waiting", 3, testNow.Add(90*60e9)
	r.api.on("GET /v1/imageimport/"+taskA+"/status", 200, body)
	w := r.get("/portal/imports/" + taskA)
	wantText(t, w, "Queued", "Number 3 in the queue.", "It starts at about 6 Mar 2026, 19:00 UTC")
	if got := text(t, w.Body.String()); strings.Contains(got, "left") || strings.Contains(got, "MiB/s") {
		t.Errorf("a task that waits has a rate: %s", got)
	}
	extra["queue_position"], extra["estimated_start"] = 1, testNow
	r.api.on("GET /v1/imageimport/"+taskA+"/status", 200, body)
	wantText(t, r.get("/portal/imports/"+taskA), "It is the next to start.", "It starts at any moment.")
}

func TestStall(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	body := running("slow")
	body["vmimport"].(map[string]any)["bytes_per_second"] = 0
	r.api.on("GET /v1/imageimport/"+taskA+"/status", 200, body)
	if body := r.get("/portal/imports/" + taskA).Body.String(); !strings.Contains(body, `data-part="stall">The object store sends nothing`) {
		t.Errorf("the stall is not shown: %s", body)
	}
}

// TestHostile has a name that would be markup, script or a template wherever it is put.
func TestHostile(t *testing.T) {
	t.Parallel()
	name := "\"'><img src=x onerror=alert(1)></script>{{.}}`${1}\u202e"
	r := newRig(t)
	for _, body := range []map[string]any{running(name), failed(name)} {
		body["location"], body["os_type"] = name, name
		extra := body["vmimport"].(map[string]any)
		extra["evidence"], extra["stage"], extra["failure_code"] = name, name, name
		r.api.on("GET /v1/imageimport/"+taskA+"/status", 200, body)
		for _, target := range []string{"/portal/imports", "/portal/imports/" + taskA, "/portal/imports/" + taskA + "/cancel"} {
			w := r.get(target)
			if w.Code == http.StatusSeeOther {
				continue
			}
			checkHTML(t, target, w.Body.String())
			if strings.Contains(w.Body.String(), "<img src=x") {
				t.Errorf("%s: markup gets in: %s", target, w.Body)
			}
		}
	}
	w := r.get("/portal/imports/new?" + url.Values{"name": {name}, "location": {name}, "os_type": {name}}.Encode())
	checkHTML(t, "form", w.Body.String())
}

func TestErrors(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		target string
		status int
		body   any
		want   int
		text   string
	}{
		"no such page":       {"/portal/what", 0, nil, 404, "This page does not exist"},
		"not an id":          {"/portal/imports/x", 0, nil, 404, "This page does not exist"},
		"no such task":       {"/portal/exports/" + taskB, 0, nil, 404, "There is no such import or export"},
		"no role":            {"/portal/imports", 403, said("40301", "You cannot execute this API."), 403, "You cannot execute this API."},
		"away":               {"/portal/imports", 503, said("50301", "Later."), 503, "Try again"},
		"broken":             {"/portal/imports", 500, said("50001", "Internal server error."), 500, "Something went wrong"},
		"nonsense":           {"/portal/imports", 200, "nonsense", 500, "Something went wrong"},
		"an odd answer":      {"/portal/imports", 302, nil, 502, "Something went wrong"},
		"refused altogether": {"/portal/imports", 400, said("40005", "Project id does not exist."), 400, "Project id does not exist."},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			if tc.status != 0 {
				r.api.on("GET /v1/imageimport", tc.status, tc.body)
			}
			w := r.get(tc.target)
			if w.Code != tc.want {
				t.Errorf("status %d", w.Code)
			}
			checkHTML(t, name, w.Body.String())
			wantText(t, w, tc.text)
		})
	}
	r := newRig(t)
	r.api.answers["GET /v1/imageimport"] = func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }
	if w := r.get("/portal/imports"); w.Code != http.StatusInternalServerError {
		t.Errorf("an api that breaks off: %d", w.Code)
	}
	if w := r.do(http.MethodPut, "/portal/imports", nil); w.Code != http.StatusMethodNotAllowed {
		t.Errorf("PUT: %d", w.Code)
	}
}

// TestWhoAsks checks that the API learns who asks.
func TestWhoAsks(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.echo.Pre(func(next echo.HandlerFunc) echo.HandlerFunc {
		return func(c echo.Context) error {
			c.Response().Header().Set(echo.HeaderXRequestID, "req-1")
			return next(c)
		}
	})
	r.get("http://import.example/portal/imports/"+taskA, "X-Forwarded-For", "203.0.113.7", "X-Auth-Token", "another",
		"Traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "X-Acs-Action", "ImportImage")
	got := r.api.calls[0]
	want := http.Header{"X-Request-Id": {"req-1"}, "X-Forwarded-For": {"203.0.113.7"}, "X-Auth-Token": {goodToken}}
	if !maps.EqualFunc(got.Header, want, slices.Equal) {
		t.Errorf("headers %v", got.Header)
	}
	if got.Host != "import.example" || got.RemoteAddr == "" || got.RequestURI != "/v1/imageimport/"+taskA+"/status" {
		t.Errorf("host %q, peer %q, target %q", got.Host, got.RemoteAddr, got.RequestURI)
	}
}

func TestAssets(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	for name := range assets {
		w := r.get("/portal/assets/"+name, "Cookie", "")
		etag := w.Header().Get("ETag")
		if w.Code != 200 || w.Body.Len() == 0 || etag == "" || !strings.Contains(w.Header().Get("Cache-Control"), "immutable") {
			t.Errorf("%s: %d %v", name, w.Code, w.Header())
		}
		if w := r.get("/portal/assets/"+name, "If-None-Match", etag); w.Code != http.StatusNotModified || w.Body.Len() != 0 {
			t.Errorf("%s again: %d", name, w.Code)
		}
	}
	if w := r.get("/portal/assets/portal.css"); w.Code != 404 {
		t.Errorf("a name without hash: %d", w.Code)
	}
	if n := strings.Count(string(assets[assetNames["portal.js"]].content), "\n"); n >= 400 {
		t.Errorf("the script has %d lines", n)
	}
	for _, bad := range []string{"innerHTML", "outerHTML =", "insertAdjacentHTML", "document.write", "eval(", "http://", "https://"} {
		if strings.Contains(string(assets[assetNames["portal.js"]].content), bad) {
			t.Errorf("the script has %s", bad)
		}
	}
}

func TestProfiles(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(o *Options) {
		o.Offers = Offers{LocationVersion: "v1", Hypervisors: []Hypervisor{{"vmware", []string{".vmdk"}}}, OSTypes: []string{"rocky"}}
	})
	body := r.get("/portal/imports/new").Body.String()
	checkHTML(t, "classic", body)
	for _, part := range []string{"s3_location", `name="image_from"`, "/portal/exports"} {
		if strings.Contains(body, part) {
			t.Errorf("a classic region offers %s", part)
		}
	}
	if !strings.Contains(body, `data-prefix="/v1/AUTH_`+project+`/"`) {
		t.Errorf("no prefix: %s", body)
	}
	if w := r.get("/portal/imports/" + taskA); strings.Contains(w.Body.String(), "/cancel") {
		t.Error("a classic region offers to cancel")
	}
	if w := r.do(http.MethodPost, "/portal/imports/"+taskA+"/cancel", url.Values{}); w.Code != http.StatusMethodNotAllowed && w.Code != http.StatusNotFound {
		t.Errorf("cancel: %d", w.Code)
	}
}
