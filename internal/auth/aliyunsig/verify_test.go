package aliyunsig_test

import (
	"errors"
	"math"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"vmimport/internal/auth/aliyunsig"
	"vmimport/internal/auth/aliyunsig/aliyunsigtest"
	"vmimport/internal/fault"
)

// Every way in which clients send parameters is verified, and read alike.
func TestForms(t *testing.T) {
	t.Parallel()
	params := url.Values{"Description": {hard}, "ImageName": {""}, "Tag.1.Key": {"a b"}}.Encode()
	for _, s := range schemes {
		for _, tt := range []struct{ name, method, query, body string }{
			{"GET", "GET", params, ""},
			{"POST with query", "POST", params, ""},
			{"POST with form", "POST", "", params},
			{"POST with both", "POST", "ImageName=", "Tag.1.Key=a+b&Description=" + url.QueryEscape(hard)},
			{"the form's value counts", "POST", params, "Description=" + url.QueryEscape(hard+"!")},
			{"%20", "POST", strings.ReplaceAll(params, "+", "%20"), ""},
		} {
			t.Run(s.name+", "+tt.name, func(t *testing.T) {
				t.Parallel()
				for _, key := range []aliyunsigtest.Key{permanent, temporary} {
					req := newRequest(t, tt.method, tt.query, tt.body)
					s.sign(t, req, key, "n", now)
					q, err := receive(t, req)
					if err == nil {
						err = verifier(&memory{}).Verify(t.Context(), q, nil)
					}
					if err != nil {
						t.Fatal(err)
					}
					description, _ := url.ParseQuery(tt.query + "&" + tt.body)
					all := description["Description"]
					if q.KeyID != key.ID || q.Nonce != "n" || !q.Time.Equal(now) || q.Method != tt.method || q.Host != "ecs.example:8080" ||
						q.SecurityToken.Reveal() != key.Token || q.Params["Tag.1.Key"] != "a b" || q.Params["Description"] != all[len(all)-1] {
						t.Errorf("read as %+v", q)
					}
				}
			})
		}
	}
}

// The encoding on the wire is the client's affair.
func TestEncodings(t *testing.T) {
	t.Parallel()
	req := newRequest(t, "GET", url.Values{"Description": {hard}}.Encode(), "")
	signRPC(t, req, permanent, "n", now)
	signed := req.URL.RawQuery
	pairs := strings.Split(signed, "&")
	for _, same := range []string{
		strings.ReplaceAll(signed, "+", "%20"),
		strings.ReplaceAll(signed, "~", "%7E"),
		strings.ReplaceAll(signed, "%2A", "*"),
		strings.ReplaceAll(signed, "%2F", "%2f"),
		strings.Join(append(pairs[1:len(pairs):len(pairs)], pairs[0]), "&"),
		"&" + strings.ReplaceAll(signed, "&", "&&") + "&",
	} {
		if err := check(t, verifier(&memory{}), newRequest(t, "GET", same, "")); err != nil {
			t.Errorf("%s: %v", same, err)
		}
	}
}

func TestWindow(t *testing.T) {
	forEachScheme(t, func(t *testing.T, s scheme) {
		for _, tt := range []struct {
			off time.Duration
			ok  bool
		}{
			{0, true},
			{aliyunsig.Window, true},
			{-aliyunsig.Window, true},
			{aliyunsig.Window + time.Second, false},
			{-aliyunsig.Window - time.Second, false},
			{math.MaxInt64, false},
			{math.MinInt64, false},
		} {
			req := newRequest(t, "GET", "", "")
			s.sign(t, req, permanent, "n", now.Add(tt.off))
			err := check(t, verifier(&memory{}), req)
			if tt.ok && err != nil {
				t.Errorf("%v: %v", tt.off, err)
			} else if !tt.ok {
				wantRefusal(t, err, 400, "InvalidTimeStamp.Expired")
			}
		}
	})
}

// A nonce is used by its key only, with either scheme, and remembered for longer than the
// request can be repeated.
func TestNonce(t *testing.T) {
	t.Parallel()
	nonces := &memory{}
	v := verifier(nonces)
	send := func(s scheme, key aliyunsigtest.Key, query string) error {
		req := newRequest(t, "GET", query, "")
		s.sign(t, req, key, "n", now)
		return check(t, v, req)
	}
	stranger := permanent
	stranger.Secret = "guessed"
	for _, s := range schemes {
		wantRefusal(t, send(s, stranger, ""), 400, "SignatureDoesNotMatch")
	}
	if len(nonces.used) != 0 {
		t.Fatal("a stranger used a nonce up")
	}
	if err := send(schemes[0], permanent, ""); err != nil {
		t.Fatal(err)
	}
	for _, s := range schemes {
		wantRefusal(t, send(s, permanent, "Other=parameter"), 400, "SignatureNonceUsed")
	}
	if err := send(schemes[2], temporary, ""); err != nil {
		t.Errorf("another's nonce: %v", err)
	}
	if ttl := nonces.used[[2]string{permanent.ID, "n"}]; ttl <= 2*aliyunsig.Window {
		t.Errorf("remembered for %v", ttl)
	}
}

// Who cannot look up nonces lets nobody in, and blames nobody.
func TestNoncesUnavailable(t *testing.T) {
	t.Parallel()
	down := fault.New(fault.Unavailable, "store_unavailable", "The record store is not available.")
	req := newRequest(t, "GET", "", "")
	signRPC(t, req, permanent, "n", now)
	err := check(t, verifier(&memory{err: down}), req)
	if _, refused := errors.AsType[*aliyunsig.Refusal](err); refused || !errors.Is(err, down) || fault.KindOf(err) != fault.Unavailable {
		t.Errorf("got %v", err)
	}
}

// Whether its owner sees "wrong secret" or "fault of the SDK" depends on this message.
func TestStringToSign(t *testing.T) {
	t.Parallel()
	wrong := temporary
	wrong.Secret = "guessed"
	req := newRequest(t, "POST", "A=%2A+x", "")
	signRPC(t, req, wrong, "n", now)
	sent := req.URL.Query().Get("Signature")
	r := wantRefusal(t, check(t, verifier(&memory{}), req), 400, "SignatureDoesNotMatch")
	const want = "POST&%2F&A%3D%252A%2520x%26AccessKeyId%3DSTS.1%26Action%3DDescribeImages%26SecurityToken%3Dtoken%252B%252F%253D%26SignatureMethod%3DHMAC-SHA1%26" +
		"SignatureNonce%3Dn%26SignatureVersion%3D1.0%26Timestamp%3D2026-01-02T03%253A04%253A05Z%26Version%3D2014-05-26"
	if _, toSign, _ := strings.Cut(r.Message, "server string to sign is:"); toSign != want {
		t.Errorf("string to sign %s", toSign)
	}
	for _, never := range []string{temporary.Secret, url.QueryEscape(temporary.Secret), sent} {
		if strings.Contains(r.Message, never) {
			t.Errorf("the message tells %s", never)
		}
	}
	if strings.Contains(r.Error(), "token") {
		t.Errorf("the log would show a security token: %s", r.Error())
	}

	req = newRequest(t, "POST", "", url.Values{"A": {strings.Repeat("漢", 1<<16)}}.Encode())
	signRPC(t, req, wrong, "n", now)
	if r := wantRefusal(t, check(t, verifier(&memory{}), req), 400, "SignatureDoesNotMatch"); len(r.Message) > 1<<17 {
		t.Errorf("a message of %d bytes", len(r.Message))
	}
}

// broken is something wrong with a request. What is of an earlier stage is told first.
type broken struct {
	stage  int
	name   string
	code   string // with RPC
	acs3   string // with ACS3, if another
	status int
	make   func(c *call) // before the request is signed
	spoil  func(req *http.Request)
}

// call is what a request is made of.
type call struct {
	method, nonce string
	key           aliyunsigtest.Key
	at            time.Time
}

var orderly = []broken{
	{stage: 1, name: "method", code: "UnsupportedHTTPMethod", status: 403, make: func(c *call) { c.method = "PUT" }},
	{stage: 2, name: "path", code: "InvalidParameter", status: 400, spoil: func(req *http.Request) { req.URL.Path = "/x" }},
	{stage: 3, name: "parameter twice", code: "InvalidParameter", status: 400, spoil: func(req *http.Request) { req.URL.RawQuery += "&X=1&X=2" }},
	{stage: 3, name: "bad escape", code: "InvalidParameter", status: 400, spoil: func(req *http.Request) { req.URL.RawQuery += "&X=%zz" }},
	{stage: 4, name: "no signature method", code: "MissingParameter", acs3: "IncompleteSignature", status: 400, spoil: func(req *http.Request) {
		editQuery(req, func(v url.Values) { v.Del("SignatureMethod") })
		req.Header.Del("x-acs-content-sha256")
	}},
	{stage: 5, name: "nonce too long", code: "InvalidParameter", status: 400, make: func(c *call) { c.nonce = strings.Repeat("n", 129) }},
	{stage: 6, name: "no time", code: "InvalidTimeStamp.Format", status: 400, spoil: func(req *http.Request) {
		if req.Header.Get("x-acs-date") != "" {
			req.Header.Set("x-acs-date", "now")
		}
		editQuery(req, func(v url.Values) {
			if v.Has("Timestamp") {
				v.Set("Timestamp", "now")
			}
		})
	}},
	{stage: 7, name: "long ago", code: "InvalidTimeStamp.Expired", status: 400, make: func(c *call) { c.at = c.at.Add(-time.Hour) }},
	{stage: 8, name: "unknown key", code: "InvalidAccessKeyId.NotFound", status: 404, make: func(c *call) { c.key.ID = "nobody" }},
	{stage: 8, name: "key without a secret", code: "InvalidAccessKeyId.NotFound", status: 404,
		make: func(c *call) { c.key = aliyunsigtest.Key{ID: "without secret"} }},
	{stage: 9, name: "disabled key", code: "Forbidden.AccessKeyDisabled", status: 403, make: func(c *call) { c.key.ID = "disabled" }},
	{stage: 10, name: "token with a permanent key", code: "InvalidSecurityToken.Malformed", status: 400,
		make: func(c *call) { c.key.ID, c.key.Token = permanent.ID, temporary.Token }},
	{stage: 10, name: "wrong token", code: "InvalidSecurityToken.Malformed", status: 400,
		make: func(c *call) { c.key.ID, c.key.Token = "STS.outlived", "x" }},
	{stage: 10, name: "no token", code: "InvalidSecurityToken.Malformed", status: 400,
		make: func(c *call) { c.key.ID, c.key.Token = "STS.outlived", "" }},
	{stage: 11, name: "outlived token", code: "InvalidSecurityToken.Expired", status: 400,
		make: func(c *call) { c.key.ID, c.key.Token = "STS.outlived", temporary.Token }},
	{stage: 11, name: "token without an end", code: "InvalidSecurityToken.Expired", status: 400,
		make: func(c *call) { c.key.ID, c.key.Token = "STS.without-an-end", temporary.Token }},
	{stage: 12, name: "wrong secret", code: "SignatureDoesNotMatch", status: 400, make: func(c *call) { c.key.Secret = "guessed" }},
	{stage: 12, name: "changed parameter", code: "SignatureDoesNotMatch", status: 400, spoil: func(req *http.Request) { req.URL.RawQuery += "&X=1" }},
	{stage: 13, name: "used nonce", code: "SignatureNonceUsed", status: 400, make: func(c *call) { c.nonce = "used" }},
}

// Who has the key and may not go on leaves no nonce behind.
func TestProved(t *testing.T) {
	t.Parallel()
	for _, s := range schemes {
		nonces := &memory{}
		v := verifier(nonces)
		verify := func(key aliyunsigtest.Key, proved func() error) error {
			t.Helper()
			req := newRequest(t, "GET", "Action=A&Version=V", "")
			s.sign(t, req, key, "n", now)
			q, err := receive(t, req)
			if err != nil {
				t.Fatal(err)
			}
			return v.Verify(t.Context(), q, proved)
		}
		stop := errors.New("stop")
		guessed := aliyunsigtest.Key{ID: permanent.ID, Secret: "guessed"}
		err := verify(guessed, func() error { t.Error("asked about a key that was not proved"); return nil })
		wantRefusal(t, err, 400, "SignatureDoesNotMatch")
		if err := verify(permanent, func() error { return stop }); err != stop || len(nonces.used) != 0 {
			t.Errorf("%s: %v, nonces %v", s.name, err, nonces.used)
		}
		if err := verify(permanent, func() error { return nil }); err != nil {
			t.Errorf("%s: %v", s.name, err)
		}
	}
}

// Of two faults the earlier one is told. Each is seen alone, too.
func TestOrderOfChecks(t *testing.T) {
	t.Parallel()
	for _, s := range []scheme{schemes[0], schemes[2]} {
		for i, first := range orderly {
			for _, second := range orderly[i:] {
				if second.stage == first.stage && second.name != first.name {
					continue
				}
				t.Run(s.name+", "+first.name+" before "+second.name, func(t *testing.T) {
					t.Parallel()
					nonces := &memory{used: map[[2]string]time.Duration{}}
					for _, id := range []string{permanent.ID, temporary.ID} {
						nonces.used[[2]string{id, "used"}] = 0
					}
					err := check(t, verifier(nonces), first.and(t, second, s))
					code := first.code
					if s.name == "acs3" && first.acs3 != "" {
						code = first.acs3
					}
					wantRefusal(t, err, first.status, code)
				})
			}
		}
	}
}

// and returns a request with both faults.
func (b broken) and(t *testing.T, later broken, s scheme) *http.Request {
	both := []broken{later, b}
	if later.name == b.name {
		both = both[:1]
	}
	c := call{"GET", "n", permanent, now}
	for _, f := range both {
		if f.make != nil {
			f.make(&c)
		}
	}
	req := newRequest(t, c.method, "RegionId=r", "")
	s.sign(t, req, c.key, c.nonce, c.at)
	for _, f := range both {
		if f.spoil != nil {
			f.spoil(req)
		}
	}
	return req
}
