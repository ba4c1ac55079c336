package aliyunsig_test

import (
	"errors"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"vmimport/internal/auth/aliyunsig"
	"vmimport/internal/auth/aliyunsig/aliyunsigtest"
)

// FuzzParams reads anything as parameters: without a panic, as net/url does where that is
// defined, and with one value for each name.
func FuzzParams(f *testing.F) {
	for _, seed := range []string{
		"", "A=1&B=&C", "A=1&A=1", "%41=1&A=2", "a=b=c&&d", "=1", "A=%", "A=%FF", "a+b=%20+%2B", "A;B=C", "漢=字", strings.Repeat("&", 2000), numbered(1001),
	} {
		f.Add(seed, seed, "POST", "ACS3-HMAC-SHA256 x")
		f.Add(seed, "", "GET", "")
	}
	f.Fuzz(func(t *testing.T, query, body, method, authorization string) {
		r := &http.Request{
			Method: method, Host: "h", URL: &url.URL{Path: "/", RawQuery: query},
			Header: http.Header{"Content-Type": {aliyunsigtest.Form}, "Authorization": {authorization}},
		}
		q, err := aliyunsig.Parse(r, []byte(body))
		if q == nil || q.Params == nil {
			t.Fatal("nothing to answer by")
		}
		for name, value := range q.Params {
			if name == "" || !utf8.ValidString(name) || !utf8.ValidString(value) {
				t.Errorf("accepted %q=%q", name, value)
			}
		}
		if refusal, ok := errors.AsType[*aliyunsig.Refusal](err); ok && refusal.Code == "InvalidParameter" || method != "GET" && method != "POST" {
			return
		}
		want := params(query)
		maps.Copy(want, params(body))
		if !maps.Equal(q.Params, want) {
			t.Errorf("read %q and %q as %q, want %q", query, body, q.Params, want)
		}
		again := url.Values{}
		for name, value := range q.Params {
			again.Set(name, value)
		}
		r.URL.RawQuery = again.Encode()
		if back, _ := aliyunsig.Parse(r, nil); !maps.Equal(back.Params, q.Params) {
			t.Errorf("%q became %q", q.Params, back.Params)
		}
	})
}

// pairs makes parameters of what a fuzzer thinks up, if a client can send them.
func pairs(all ...string) (encoded string, ok bool) {
	v := url.Values{}
	for pair := range slices.Chunk(all, 2) {
		name, value := pair[0], pair[1]
		if name == "" || !utf8.ValidString(name) || !utf8.ValidString(value) || strings.HasPrefix(name, "Signature") || v.Has(name) ||
			slices.Contains([]string{"Action", "Version", "AccessKeyId", "SecurityToken", "Timestamp"}, name) {
			return "", false
		}
		v.Set(name, value)
	}
	return v.Encode(), true
}

// FuzzRPCCanonical signs parameters by other code than verifies them, in every form.
func FuzzRPCCanonical(f *testing.F) {
	f.Add("Description", hard, "Tag.1.Key", "", false, false, false)
	f.Add("a", "b", "a.1", "%2F+", true, false, true)
	f.Add("漢", "\x00\n", "&=", "=&", true, true, false)
	f.Fuzz(func(t *testing.T, name1, value1, name2, value2 string, post, form, plus bool) {
		query, ok := pairs(name1, value1, name2, value2)
		if !ok {
			return
		}
		body, method := "", "GET"
		if post {
			method = "POST"
		}
		if form {
			query, _ = pairs(name1, value1)
			body, _ = pairs(name2, value2)
		}
		for _, sign := range []scheme{schemes[0], schemes[1]} {
			req := newRequest(t, method, query, body)
			sign.sign(t, req, temporary, "n", now)
			if !plus {
				req.URL.RawQuery = strings.ReplaceAll(req.URL.RawQuery, "+", "%20")
			}
			verifies(t, req, func() { req.URL.RawQuery += "&Some=parameter" })
		}
	})
}

// FuzzACS3Canonical does the same with headers.
func FuzzACS3Canonical(f *testing.F) {
	f.Add("Description", hard, "ImageName", "a:b", "DescribeImages", "n-1", "static_ak")
	f.Add("a", "", "b", "%2F+", "x", "y", " a , b ")
	f.Add("漢", "\x00\n", "&=", "=&", "A;b", "=", "")
	f.Fuzz(func(t *testing.T, name1, value1, name2, value2, action, nonce, header string) {
		for _, value := range []string{action, nonce, header} {
			if strings.ContainsFunc(value, func(r rune) bool { return r < ' ' || r > '~' }) {
				return // no header has it
			}
		}
		query, ok1 := pairs(name1, value1)
		body, ok2 := pairs(name2, value2)
		if !ok1 || !ok2 || strings.TrimSpace(action) == "" || strings.TrimSpace(nonce) == "" || len(nonce) > 128 {
			return
		}
		req := newRequest(t, "POST", query, body)
		req.Header["X-Acs-Other"] = []string{header, "b"}
		aliyunsigtest.SignACS3(t, req, temporary, action, nonce, now)
		verifies(t, req, func() { req.Header.Set("X-Acs-Other", header+"x") })
	})
}

// verifies checks that req is good as it is, and is not after a change.
func verifies(t *testing.T, req *http.Request, change func()) {
	t.Helper()
	if err := check(t, verifier(&memory{}), req); err != nil {
		t.Fatal(err)
	}
	change()
	if check(t, verifier(&memory{}), req) == nil {
		t.Error("accepted after a change")
	}
}
