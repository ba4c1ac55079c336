package portal

import (
	"bufio"
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/labstack/echo/v4"
)

func cookieOf(w *httptest.ResponseRecorder, name string) *http.Cookie {
	for _, c := range w.Result().Cookies() {
		if c.Name == name {
			return c
		}
	}
	return nil
}

func TestSignIn(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	pasted := url.Values{"token": {"  X-Subject-Token: " + goodToken[:9] + "\r\n" + goodToken[9:] + " \n"}, "return": {"/portal/imports/" + taskA}}
	w := r.do(http.MethodPost, "/portal/sign-in", pasted, "Cookie", "")
	if w.Code != http.StatusSeeOther || w.Header().Get("Location") != "/portal/imports/"+taskA {
		t.Fatalf("%d to %q: %s", w.Code, w.Header().Get("Location"), w.Body)
	}
	c := cookieOf(w, tokenCookie)
	if c == nil || !c.HttpOnly || c.Secure || c.SameSite != http.SameSiteStrictMode || c.Path != "/" || c.MaxAge != 0 || !c.Expires.IsZero() || c.Domain != "" {
		t.Fatalf("cookie %+v", c)
	}
	if w := r.get("/portal/imports", "Cookie", c.Name+"="+c.Value); w.Code != http.StatusOK {
		t.Errorf("with the cookie: %d", w.Code)
	}
	w = r.do(http.MethodPost, "/portal/sign-out", url.Values{})
	if c := cookieOf(w, tokenCookie); w.Code != http.StatusSeeOther || c == nil || c.MaxAge >= 0 || c.Value != "" {
		t.Errorf("sign out: %d, cookie %+v", w.Code, c)
	}
}

func TestSignInByTLS(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(o *Options) {
		o.Secure = func(c echo.Context) bool { return c.Request().Header.Get("X-Forwarded-Proto") == "https" }
	})
	w := r.do(http.MethodPost, "/portal/sign-in", url.Values{"token": {goodToken}}, "X-Forwarded-Proto", "https")
	if c := cookieOf(w, "__Host-"+tokenCookie); c == nil || !c.Secure || c.Path != "/" || c.Domain != "" {
		t.Fatalf("cookies %v", w.Result().Cookies())
	}
	// A cookie that a page without TLS may have planted counts for nothing.
	if w := r.get("/portal/imports", "X-Forwarded-Proto", "https"); w.Code != http.StatusSeeOther {
		t.Errorf("with the plain cookie: %d", w.Code)
	}
}

func TestSignInRefused(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		token  string
		status int
		body   any
		want   string
	}{
		"nothing":    {"  \n", 0, nil, "Paste a token first."},
		"odd":        {"tökén", 0, nil, "characters that a token cannot have"},
		"long":       {strings.Repeat("a", 3501), 0, nil, "too long for a browser to keep"},
		"wrong":      {"another-token", 0, nil, "not valid, or has ended"},
		"no project": {goodToken, 400, said("40005", "Project id does not exist."), "scoped to a project"},
		"no role":    {goodToken, 403, said("40301", "You cannot execute this API."), "may not use this service"},
		"away":       {goodToken, 503, said("50301", "Later."), "cannot be checked at the moment"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			if tc.status != 0 {
				r.api.on("GET /v1/imageimport", tc.status, tc.body)
			}
			w := r.do(http.MethodPost, "/portal/sign-in", url.Values{"token": {tc.token}}, "Cookie", "")
			wantText(t, w, tc.want)
			checkHTML(t, name, w.Body.String())
			if len(w.Result().Cookies()) != 0 || tc.token != "  \n" && strings.Contains(w.Body.String(), tc.token) {
				t.Errorf("cookies %v, page %s", w.Result().Cookies(), w.Body)
			}
		})
	}
}

func TestEndedToken(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	back := "/portal/imports?page=2"
	w := r.get(back, "Cookie", tokenCookie+"=ended")
	want := "/portal/sign-in?return=" + url.QueryEscape(back) + "&ended=1"
	if c := cookieOf(w, tokenCookie); w.Code != http.StatusSeeOther || w.Header().Get("Location") != want || c == nil || c.MaxAge >= 0 {
		t.Fatalf("%d to %q", w.Code, w.Header().Get("Location"))
	}
	page := r.get(want, "Cookie", "")
	wantText(t, page, "Your token has ended")
	if !strings.Contains(page.Body.String(), `name="return" value="`+back+`"`) {
		t.Error("the way back is lost")
	}
	w = r.do(http.MethodPost, "/portal/imports/"+taskA+"/retry", url.Values{}, "Cookie", tokenCookie+"=ended")
	if got := w.Header().Get("Location"); !strings.Contains(got, url.QueryEscape("/portal/imports/"+taskA)+"&") {
		t.Errorf("after an action to %q", got)
	}
	// Whoever comes by a link from elsewhere gets a second try, with the cookie.
	w = r.get("/portal/imports/"+taskA, "Cookie", "", "Sec-Fetch-Site", "cross-site")
	checkHTML(t, "bounce", w.Body.String())
	if !strings.Contains(w.Body.String(), `content="0; url=/portal/imports/`+taskA+`"`) {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

func TestForeignRequests(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	for _, target := range []string{"/portal/sign-in", "/portal/sign-out", "/portal/language", "/portal/imports", "/portal/exports",
		"/portal/imports/" + taskA + "/cancel", "/portal/imports/" + taskA + "/retry", "/portal/exports/" + taskA + "/cancel"} {
		for name, headers := range map[string][]string{
			"cross-site": {"Sec-Fetch-Site", "cross-site"},
			"same-site":  {"Sec-Fetch-Site", "same-site"},
			"origin":     {"Sec-Fetch-Site", "", "Origin", "https://evil.example"},
		} {
			w := r.do(http.MethodPost, target, url.Values{"token": {goodToken}}, headers...)
			if w.Code != http.StatusForbidden || len(w.Result().Cookies()) != 0 {
				t.Errorf("%s %s: %d", name, target, w.Code)
			}
		}
	}
	if len(r.api.calls) != 0 {
		t.Errorf("the api was called %d times", len(r.api.calls))
	}
}

func TestReturnPath(t *testing.T) {
	t.Parallel()
	for asked, want := range map[string]string{
		"/portal/imports?page=2":              "/portal/imports?page=2",
		"/portal/exports/" + taskA:            "/portal/exports/" + taskA,
		"":                                    imports.path,
		"https://evil.example":                imports.path,
		"//evil.example":                      imports.path,
		"/portal//evil.example":               imports.path,
		"/portal/\\evil.example":              imports.path,
		"/portal/\r\nSet-Cookie: a=b":         imports.path,
		"/portal/../../x":                     imports.path,
		"/portal/%2E%2e/x":                    imports.path,
		"/portal/sign-in?return=x":            imports.path,
		"/portalevil":                         imports.path,
		"javascript:alert(1)":                 imports.path,
		"/portal/" + strings.Repeat("a", 600): imports.path,
	} {
		if got := returnPath(asked); got != want {
			t.Errorf("returnPath(%q) = %q", asked, got)
		}
	}
}

func FuzzReturnPath(f *testing.F) {
	f.Add("/portal/imports?page=2")
	f.Add("/portal/%2e%2e//x")
	f.Fuzz(func(t *testing.T, asked string) {
		got := returnPath(asked)
		u, err := url.Parse("https://portal.example" + got)
		if err != nil {
			return // nothing that a browser goes to elsewhere
		}
		base := &url.URL{Scheme: "https", Host: "portal.example", Path: "/portal/sign-in"}
		if ref, err := base.Parse(got); err != nil || ref.Host != base.Host || ref.Scheme != base.Scheme || u.Host != base.Host || !strings.HasPrefix(ref.Path, root) {
			t.Errorf("%q leads to %q", asked, got)
		}
	})
}

func TestLanguage(t *testing.T) {
	t.Parallel()
	for header, want := range map[string]language{
		"": english, "ja": japanese, "ja-JP,ja;q=0.9,en;q=0.8": japanese, "en-GB,ja;q=0.9": english,
		"fr, ja;q=0.5, en;q=0.4": japanese, "de": english, "en;q=0.2,ja;q=0.9": japanese, "ja;q=x,;;,": english,
	} {
		if got := preferred(header); got != want {
			t.Errorf("preferred(%q) = %s", header, got)
		}
	}
	r := newRig(t)
	w := r.do(http.MethodPost, "/portal/language", url.Values{"language": {"ja"}, "return": {"/portal/exports"}})
	c := cookieOf(w, languageCookie)
	if c == nil || c.Value != "ja" || w.Header().Get("Location") != "/portal/exports" {
		t.Fatalf("cookie %v to %q", c, w.Header().Get("Location"))
	}
	wantText(t, r.get("/portal/sign-in", "Cookie", languageCookie+"=ja", "Accept-Language", "en"), "サインイン")
	w = r.do(http.MethodPost, "/portal/language", url.Values{"language": {"ja"}, "return": {"/portal/sign-in?return=%2Fportal%2Fexports"}})
	if got := w.Header().Get("Location"); got != "/portal/sign-in?return=%2Fportal%2Fexports" {
		t.Errorf("from the page to sign in to %q", got)
	}
	w = r.do(http.MethodPost, "/portal/language", url.Values{"language": {"xx"}, "return": {"//evil.example"}})
	if len(w.Result().Cookies()) != 0 || w.Header().Get("Location") != imports.path {
		t.Errorf("cookies %v to %q", w.Result().Cookies(), w.Header().Get("Location"))
	}
}

// TestEvents follows a stream through the portal, over a connection.
func TestEvents(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	next := make(chan string)
	r.api.answers["GET /v1/events"] = func(w http.ResponseWriter, req *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream; charset=utf-8")
		w.Header().Set("X-Accel-Buffering", "no")
		w.Header().Set("Set-Cookie", "not=ours")
		if err := http.NewResponseController(w).Flush(); err != nil {
			t.Error(err)
		}
		for {
			select {
			case s := <-next:
				_, _ = io.WriteString(w, s)
				_ = http.NewResponseController(w).Flush()
			case <-req.Context().Done():
				close(next)
				return
			}
		}
	}
	server := httptest.NewServer(r.echo)
	defer server.Close()
	ctx, leave := context.WithCancel(t.Context())
	req, _ := http.NewRequestWithContext(ctx, http.MethodGet, server.URL+"/portal/events?kind=export", nil)
	req.Header.Set("Cookie", tokenCookie+"="+url.QueryEscape(goodToken))
	req.Header.Set("Last-Event-ID", "17-0")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != 200 || !strings.HasPrefix(resp.Header.Get("Content-Type"), "text/event-stream") || resp.Header.Get("X-Accel-Buffering") != "no" || len(resp.Cookies()) != 0 {
		t.Fatalf("%d %v", resp.StatusCode, resp.Header)
	}
	lines := bufio.NewScanner(resp.Body)
	for _, frame := range []string{"event: ready", ": beat"} {
		next <- frame + "\n"
		if !lines.Scan() || lines.Text() != frame {
			t.Fatalf("got %q, want %q", lines.Text(), frame)
		}
	}
	leave()
	<-next // the api's handler has ended with its client
	r.api.mu.Lock()
	defer r.api.mu.Unlock()
	if call := r.api.calls[0]; call.Header.Get("Last-Event-ID") != "17-0" || call.URL.RawQuery != "kind=export" {
		t.Errorf("asked for %s after %q", call.URL, call.Header.Get("Last-Event-ID"))
	}
}

func TestEventsOfOne(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	for target, want := range map[string]string{
		"/portal/events?kind=import&id=" + taskA:         "/v1/imageimport/" + taskA + "/events",
		"/portal/events?kind=export&id=" + taskA:         "/v1/imageexport/" + taskA + "/events",
		"/portal/events?kind=x&id=../../metrics":         "/v1/events?kind=import",
		"/portal/events?kind=export&id=%0d%0aX-Evil:%20": "/v1/events?kind=export",
	} {
		w := r.get(target)
		if got := r.api.calls[len(r.api.calls)-1].RequestURI; got != want {
			t.Errorf("%s asks for %s", target, got)
		}
		if w.Code != http.StatusNotFound || w.Body.Len() != 0 {
			t.Errorf("%s: %d %q", target, w.Code, w.Body)
		}
	}
	if w := r.get("/portal/events", "Cookie", ""); w.Code != http.StatusUnauthorized {
		t.Errorf("without a token: %d", w.Code)
	}
	p := New(Options{API: r.api})
	if !p.Streams("/portal/events") || p.Streams("/portal/imports") {
		t.Error("the server takes the wrong routes for streams")
	}
}
