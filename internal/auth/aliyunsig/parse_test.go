package aliyunsig_test

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"vmimport/internal/auth/aliyunsig"
	"vmimport/internal/auth/aliyunsig/aliyunsigtest"
)

func missing(name string) string {
	return `An input parameter "` + name + `" that is mandatory for processing the request is not supplied.`
}

func numbered(n int) string {
	var pairs []string
	for i := range n {
		pairs = append(pairs, fmt.Sprintf("P.%d=", i))
	}
	return strings.Join(pairs, "&")
}

// Parameters have one meaning or none.
func TestParameters(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ name, query, body, message string }{
		{"twice in the query", "A=1&A=1", "", `The parameter "A" was sent twice.`},
		{"twice in the form", "", "A=1&B=&A=2", `The parameter "A" was sent twice.`},
		{"twice, encoded in two ways", "A+b=1&%41%20b=2", "", `The parameter "A b" was sent twice.`},
		{"bad escape in a value", "A=%4", "", "A parameter is not percent-encoded UTF-8."},
		{"bad escape in a name", "%4G=1", "", "A parameter is not percent-encoded UTF-8."},
		{"bad escape in the form", "", "A=%", "A parameter is not percent-encoded UTF-8."},
		{"no UTF-8", "A=%FF", "", "A parameter is not percent-encoded UTF-8."},
		{"half a surrogate pair", "A=%ED%A0%80", "", "A parameter is not percent-encoded UTF-8."},
		{"no name", "=1", "", "A parameter has no name."},
		{"too many in the query", numbered(1001), "", "A request has at most 1000 parameters."},
		{"too many in the form", "", numbered(1001), "A request has at most 1000 parameters."},
		{"too many together", numbered(600), strings.ReplaceAll(numbered(600), "P", "Q"), "A request has at most 1000 parameters."},
		{"the first fault is told", "A=1&A=2&B=%", "C=%", `The parameter "A" was sent twice.`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			query := "Format=JSON&SignatureNonce=n&" + tt.query
			for _, auth := range []string{"", "ACS3-HMAC-SHA256 x"} {
				req := newRequest(t, "POST", query, tt.body)
				req.Header.Set("Authorization", auth)
				q, err := receive(t, req)
				if r := wantRefusal(t, err, 400, "InvalidParameter"); r.Message != tt.message {
					t.Errorf("message %q", r.Message)
				}
				if q.Params["Format"] != "JSON" || q.Scheme != aliyunsig.ACS3 && auth != "" {
					t.Errorf("the form of the answer is lost: %+v", q)
				}
			}
		})
	}
	req := newRequest(t, "GET", "a=1;b=2&c&d=x=y&e=漢&f=%00&&", "")
	q, _ := receive(t, req)
	want := map[string]string{"a": "1;b=2", "c": "", "d": "x=y", "e": "漢", "f": "\x00"}
	if fmt.Sprint(q.Params) != fmt.Sprint(want) {
		t.Errorf("read as %q", q.Params)
	}
}

func TestBodies(t *testing.T) {
	forEachScheme(t, func(t *testing.T, s scheme) {
		if s.name == "rpc form" {
			return // has a form always
		}
		for _, tt := range []struct {
			body  string
			types []string
			ok    bool
		}{
			{"", nil, true},
			{"", []string{aliyunsigtest.Form}, true},
			{"", []string{"application/json"}, true},
			{"A=1", []string{aliyunsigtest.Form}, true},
			{"A=1", nil, false},
			{"A=1", []string{"text/plain"}, false},
			{"A=1", []string{"multipart/form-data; boundary=x"}, false},
			{"{}", []string{"application/json"}, false},
		} {
			req := newRequest(t, "POST", "RegionId=r", tt.body)
			req.Header.Del("Content-Type")
			for _, name := range tt.types {
				req.Header.Add("Content-Type", name)
			}
			s.sign(t, req, permanent, "n", now)
			err := check(t, verifier(&memory{}), req)
			if tt.ok && err != nil {
				t.Errorf("%q as %q: %v", tt.body, tt.types, err)
			} else if !tt.ok {
				wantRefusal(t, err, 400, "InvalidParameter")
			}
		}
	})
}

func TestContentTypes(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"application/x-www-form-urlencoded; charset=UTF-8", "Application/X-WWW-Form-URLencoded;", "application/x-www-form-urlencoded ; =;"} {
		req := newRequest(t, "POST", "", "A=1")
		signRPC(t, req, permanent, "n", now)
		req.Header.Set("Content-Type", name)
		if err := check(t, verifier(&memory{}), req); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		req.Header.Add("Content-Type", "text/plain")
		wantRefusal(t, check(t, verifier(&memory{}), req), 400, "InvalidParameter")
	}
}

// That there is no action is told to who has the key, and after all else.
func TestNoAction(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"Action", "Version"} {
		for _, value := range []string{"", "&" + name + "="} {
			v := verifier(&memory{})
			req := newRequest(t, "GET", "Action=DescribeImages&Version=2014-05-26", "")
			editQuery(req, func(v url.Values) { v.Del(name) })
			req.URL.RawQuery += value
			aliyunsigtest.SignRPC(t, req, permanent, "n", now)
			if r := wantRefusal(t, check(t, v, req), 400, "MissingParameter"); r.Message != missing(name) {
				t.Errorf("message %q", r.Message)
			}
			wantRefusal(t, check(t, v, req), 400, "SignatureNonceUsed")
		}
	}
}

func TestRPCRefusals(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ name, value, code, message string }{
		{"AccessKeyId", "", "MissingParameter", missing("AccessKeyId")},
		{"Signature", "", "MissingParameter", missing("Signature")},
		{"SignatureMethod", "", "MissingParameter", missing("SignatureMethod")},
		{"SignatureVersion", "", "MissingParameter", missing("SignatureVersion")},
		{"SignatureNonce", "", "MissingParameter", missing("SignatureNonce")},
		{"Timestamp", "", "MissingParameter", missing("Timestamp")},
		{"SignatureMethod", "HMAC-SHA256", "InvalidParamater", `The specified parameter "SignatureMethod" is not valid.`},
		{"SignatureVersion", "2.0", "InvalidParamater", `The specified parameter "SignatureVersion" is not valid.`},
		{"SignatureType", "BEARERTOKEN", "InvalidParameter", `The specified parameter "SignatureType" is not valid.`},
		{"SignatureNonce", strings.Repeat("漢", 43), "InvalidParameter", `The specified parameter "SignatureNonce" is not valid.`},
	} {
		t.Run(tt.name+" "+tt.value, func(t *testing.T) {
			t.Parallel()
			for _, present := range []bool{true, false} {
				req := newRequest(t, "GET", "Format=JSON", "")
				signRPC(t, req, permanent, "n", now)
				editQuery(req, func(v url.Values) {
					if v.Set(tt.name, tt.value); !present && tt.value == "" {
						v.Del(tt.name)
					}
				})
				if r := wantRefusal(t, check(t, verifier(&memory{}), req), 400, tt.code); r.Message != tt.message {
					t.Errorf("message %q", r.Message)
				}
			}
		})
	}
	t.Run("clients of the older scheme send headers of the newer one", func(t *testing.T) {
		t.Parallel()
		req := newRequest(t, "POST", "SignatureType=", "")
		req.Header.Set("x-acs-action", "ImportImage")
		req.Header.Set("x-acs-version", "2014-05-26")
		req.Header.Set("Authorization", "Basic x")
		signRPC(t, req, permanent, strings.Repeat("n", 128), now)
		if err := check(t, verifier(&memory{}), req); err != nil {
			t.Error(err)
		}
		if q, err := receive(t, newRequest(t, "GET", "", "")); q.Scheme != aliyunsig.RPC || err == nil {
			t.Errorf("not signed at all: %+v, %v", q, err)
		}
	})
}

func TestTimestamps(t *testing.T) {
	forEachScheme(t, func(t *testing.T, s scheme) {
		for _, text := range []string{
			"2026-01-02T03:04:05", "2026-01-02 03:04:05Z", "2026-01-02T03:04:05.000Z", "2026-01-02T03:04:05,5Z", "2026-01-02T03:04:05+00:00",
			"2026-01-02T3:04:05Z", "2026-02-30T03:04:05Z", "20260102T030405Z", "Fri, 02 Jan 2026 03:04:05 GMT", "2026-01-02t03:04:05z", "1767323045",
		} {
			req := newRequest(t, "GET", "", "")
			if s.name == "acs3" {
				req.Header.Set("x-acs-date", text)
			} else {
				editQuery(req, func(v url.Values) { v.Set("Timestamp", text) })
			}
			s.sign(t, req, permanent, "n", now)
			wantRefusal(t, check(t, verifier(&memory{}), req), 400, "InvalidTimeStamp.Format")
		}
	})
}

func TestACS3Refusals(t *testing.T) {
	t.Parallel()
	replace := func(name, old, new string) func(*http.Request) {
		return func(req *http.Request) {
			req.Header.Set(name, strings.Replace(req.Header.Get(name), old, new, 1))
		}
	}
	authorization := func(old, new string) func(*http.Request) { return replace("Authorization", old, new) }
	add := func(name, value string) func(*http.Request) {
		return func(req *http.Request) { req.Header.Add(name, value) }
	}
	remove := func(name string) func(*http.Request) { return func(req *http.Request) { req.Header.Del(name) } }
	for _, tt := range []struct {
		name  string
		spoil func(*http.Request)
		code  string
	}{
		{"another algorithm", authorization("SHA256", "SM3"), "InvalidParameter"},
		{"an asymmetric algorithm", authorization("ACS3-HMAC", "ACS3-RSA"), "InvalidParameter"},
		{"no algorithm", authorization("HMAC-SHA256 ", ""), "InvalidParameter"},
		{"nothing but the algorithm", func(req *http.Request) { req.Header.Set("Authorization", "ACS3-HMAC-SHA256") }, "IncompleteSignature"},
		{"no credential", authorization("Credential=testid,", ""), "IncompleteSignature"},
		{"an empty credential", authorization("testid", ""), "IncompleteSignature"},
		{"no signature", authorization(",Signature=", ",Signatur="), "IncompleteSignature"},
		{"no signed headers", authorization("SignedHeaders=", "Headers="), "IncompleteSignature"},
		{"a field twice", authorization("Credential=testid", "Credential=testid,Credential=testid"), "IncompleteSignature"},
		{"a field more", authorization("Credential", "X=y,Credential"), "IncompleteSignature"},
		{"spaces for commas", authorization(",", " "), "IncompleteSignature"},
		{"host is not signed", authorization("host;", ""), "IncompleteSignature"},
		{"content type is not signed", authorization("content-type;", ""), "IncompleteSignature"},
		{"action is not signed", authorization("x-acs-action;", ""), "IncompleteSignature"},
		{"version is not signed", authorization(";x-acs-version", ""), "IncompleteSignature"},
		{"date is not signed", authorization("x-acs-date;", ""), "IncompleteSignature"},
		{"nonce is not signed", authorization("x-acs-signature-nonce;", ""), "IncompleteSignature"},
		{"body is not signed", authorization("x-acs-content-sha256;", ""), "IncompleteSignature"},
		{"security token is not signed", add("x-acs-security-token", "x"), "IncompleteSignature"},
		{"some other header is not signed", add("X-Acs-Anything", "x"), "IncompleteSignature"},
		{"a header signed twice", authorization("host;", "host;host;"), "IncompleteSignature"},
		{"a header signed that was not sent", authorization("host;", "host;range;"), "IncompleteSignature"},
		{"no name of a header", authorization("host;", "host;;"), "IncompleteSignature"},
		{"no action", remove("x-acs-action"), "IncompleteSignature"},
		{"no version", remove("x-acs-version"), "IncompleteSignature"},
		{"no date", remove("x-acs-date"), "IncompleteSignature"},
		{"no nonce", remove("x-acs-signature-nonce"), "IncompleteSignature"},
		{"no hash", remove("x-acs-content-sha256"), "IncompleteSignature"},
		{"empty nonce", replace("x-acs-signature-nonce", "n", ""), "IncompleteSignature"},
		{"two authorizations", add("Authorization", "ACS3-HMAC-SHA256 x"), "IncompleteSignature"},
		{"another authorization", add("Authorization", "Basic x"), "IncompleteSignature"},
		{"two dates", add("x-acs-date", "2026-01-02T03:04:05Z"), "IncompleteSignature"},
		{"two actions", add("x-acs-action", "DeleteImage"), "IncompleteSignature"},
		{"two nonces", add("x-acs-signature-nonce", "n"), "IncompleteSignature"},
		{"another action", replace("x-acs-action", "Describe", "Delete"), "SignatureDoesNotMatch"},
		{"another host", func(req *http.Request) { req.Host = "ecs.example:80" }, "SignatureDoesNotMatch"},
		{"another port", func(req *http.Request) { req.Host = "ecs.example" }, "SignatureDoesNotMatch"},
		{"another method", func(req *http.Request) { req.Method = "GET" }, "SignatureDoesNotMatch"},
		{"another hash", replace("x-acs-content-sha256", "9", "0"), "SignatureDoesNotMatch"},
		{"capitals in the hash", func(req *http.Request) {
			req.Header.Set("x-acs-content-sha256", strings.ToUpper(req.Header.Get("x-acs-content-sha256")))
		}, "SignatureDoesNotMatch"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			req := newRequest(t, "POST", "RegionId=r", "ImageName=a%3Ab")
			signACS3(t, req, permanent, "n", now)
			if err := check(t, verifier(&memory{}), req); err != nil {
				t.Fatal(err)
			}
			tt.spoil(req)
			wantRefusal(t, check(t, verifier(&memory{}), req), 400, tt.code)
		})
	}
}

// A hash that is signed, and is not that of the body.
func TestACS3AlteredBody(t *testing.T) {
	t.Parallel()
	nonces := &memory{}
	req := newRequest(t, "POST", "RegionId=r", "ImageName=a%3Ab")
	signACS3(t, req, permanent, "n", now)
	other := newRequest(t, "POST", "RegionId=r", "ImageName=a%3Ac")
	other.Header = req.Header
	r := wantRefusal(t, check(t, verifier(nonces), other), 400, "SignatureDoesNotMatch")
	if !strings.Contains(r.Message, "server string to sign is:ACS3-HMAC-SHA256\n") || len(nonces.used) != 0 {
		t.Errorf("message %q, %d nonces used", r.Message, len(nonces.used))
	}
}

// What is signed beyond the obligatory may be anything, with any number of values.
func TestACS3SignsMore(t *testing.T) {
	t.Parallel()
	req := newRequest(t, "GET", "Format=XML", "")
	req.Header["X-Acs-Several"] = []string{"b", " a ", "c,d"}
	req.Header.Set("x-acs-empty", "")
	signACS3(t, req, permanent, "n", now)
	req.Header["X-Acs-Several"] = []string{"c,d", "b", "a"}
	req.Header.Set("Accept", "application/json")
	q, err := receive(t, req)
	if err != nil || q.Scheme != aliyunsig.ACS3 || q.Action != "DescribeImages" || q.Version != "2014-05-26" || q.Params["Format"] != "XML" {
		t.Fatalf("%+v, %v", q, err)
	}
	if err := verifier(&memory{}).Verify(t.Context(), q, nil); err != nil {
		t.Error(err)
	}
}
