// Package aliyunsigtest signs requests in the two ways of Alibaba Cloud's clients.
//
// It is written from the description of the signatures and shares no code with
// aliyunsig, so that each checks the other.
package aliyunsigtest

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"
)

// Form is the content type of parameters in a body.
const Form = "application/x-www-form-urlencoded"

// Key is an access key. Token is empty for a permanent one.
type Key struct{ ID, Secret, Token string }

// SignRPC signs req with HMAC-SHA1. It adds the common parameters, Signature last, to
// the query, and covers what the body holds if that is a form: with action parameters in
// the query this is how generated clients send them, with some in the body how generic
// ones do. Action, Version, Format and the like are the caller's to set before, in either place.
// What req has already of the common parameters stays, so that a test can spoil one.
func SignRPC(t testing.TB, req *http.Request, key Key, nonce string, at time.Time) {
	t.Helper()
	query := values(t, req.URL.RawQuery)
	addCommon(query, key, nonce, at)
	form := url.Values{}
	if isForm(req) {
		form = values(t, string(body(t, req)))
	}
	query.Set("Signature", rpcSignature(req.Method, key.Secret, merged(query, form)))
	req.URL.RawQuery = query.Encode()
}

// SignRPCForm signs req as SignRPC does, but puts the common parameters into its body, and
// moves what is in the query there, too.
func SignRPCForm(t testing.TB, req *http.Request, key Key, nonce string, at time.Time) {
	t.Helper()
	form := values(t, req.URL.RawQuery)
	if isForm(req) {
		maps.Copy(form, values(t, string(body(t, req))))
	}
	addCommon(form, key, nonce, at)
	form.Set("Signature", rpcSignature(req.Method, key.Secret, merged(form)))
	req.URL.RawQuery = ""
	req.Header.Set("Content-Type", Form)
	setBody(req, []byte(form.Encode()))
}

// SignACS3 signs req with ACS3-HMAC-SHA256: it sets the x-acs-* headers and Authorization,
// and covers Host, Content-Type and every x-acs-* header that req has. The version is
// 2014-05-26. What req has already of the headers stays, so that a test can spoil one.
func SignACS3(t testing.TB, req *http.Request, key Key, action, nonce string, at time.Time) {
	t.Helper()
	sent := body(t, req)
	headers := map[string]string{
		"x-acs-action":          action,
		"x-acs-version":         "2014-05-26",
		"x-acs-date":            timestamp(at),
		"x-acs-signature-nonce": nonce,
		"x-acs-content-sha256":  hexSHA256(sent),
	}
	if key.Token != "" {
		headers["x-acs-accesskey-id"] = key.ID
		headers["x-acs-security-token"] = key.Token
	}
	for name, value := range headers {
		if _, set := req.Header[http.CanonicalHeaderKey(name)]; !set {
			req.Header.Set(name, value)
		}
	}

	lines := map[string]string{"host": host(req)}
	for name, all := range req.Header {
		name = strings.ToLower(name)
		if name == "content-type" || strings.HasPrefix(name, "x-acs-") {
			var trimmed []string
			for _, value := range all {
				trimmed = append(trimmed, strings.TrimSpace(value))
			}
			slices.Sort(trimmed)
			lines[name] = strings.Join(trimmed, ",")
		}
	}
	names := slices.Sorted(maps.Keys(lines))
	var canonical strings.Builder
	fmt.Fprintf(&canonical, "%s\n/\n%s\n", req.Method, joined(merged(values(t, req.URL.RawQuery))))
	for _, name := range names {
		fmt.Fprintf(&canonical, "%s:%s\n", name, lines[name])
	}
	signed := strings.Join(names, ";")
	fmt.Fprintf(&canonical, "\n%s\n%s", signed, req.Header.Get("x-acs-content-sha256"))

	toSign := "ACS3-HMAC-SHA256\n" + hexSHA256([]byte(canonical.String()))
	req.Header.Set("Authorization", fmt.Sprintf("ACS3-HMAC-SHA256 Credential=%s,SignedHeaders=%s,Signature=%s",
		key.ID, signed, hex.EncodeToString(mac(sha256.New, key.Secret, toSign))))
}

func addCommon(v url.Values, key Key, nonce string, at time.Time) {
	common := map[string]string{
		"AccessKeyId":      key.ID,
		"SignatureMethod":  "HMAC-SHA1",
		"SignatureVersion": "1.0",
		"SignatureNonce":   nonce,
		"Timestamp":        timestamp(at),
	}
	if key.Token != "" {
		common["SecurityToken"] = key.Token
	}
	for name, value := range common {
		if !v.Has(name) {
			v.Set(name, value)
		}
	}
}

func rpcSignature(method, secret string, params map[string]string) string {
	delete(params, "Signature")
	toSign := method + "&%2F&" + escape(joined(params))
	return base64.StdEncoding.EncodeToString(mac(sha1.New, secret+"&", toSign))
}

// merged returns one value for each name, that of the last place which has it.
func merged(places ...url.Values) map[string]string {
	all := map[string]string{}
	for _, place := range places {
		for name := range place {
			all[name] = place.Get(name)
		}
	}
	return all
}

func joined(params map[string]string) string {
	var pairs []string
	for _, name := range slices.Sorted(maps.Keys(params)) {
		pairs = append(pairs, escape(name)+"="+escape(params[name]))
	}
	return strings.Join(pairs, "&")
}

func escape(s string) string {
	var b strings.Builder
	for _, c := range []byte(s) {
		switch {
		case 'A' <= c && c <= 'Z', 'a' <= c && c <= 'z', '0' <= c && c <= '9', strings.IndexByte("-_.~", c) >= 0:
			b.WriteByte(c)
		default:
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}

func mac(h func() hash.Hash, key, text string) []byte {
	m := hmac.New(h, []byte(key))
	m.Write([]byte(text))
	return m.Sum(nil)
}

func hexSHA256(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

func timestamp(at time.Time) string { return at.UTC().Format("2006-01-02T15:04:05Z") }

func isForm(req *http.Request) bool { return req.Header.Get("Content-Type") == Form }

// host returns what the client will send as Host.
func host(req *http.Request) string {
	if req.Host != "" {
		return req.Host
	}
	return req.URL.Host
}

func values(t testing.TB, encoded string) url.Values {
	t.Helper()
	v, err := url.ParseQuery(encoded)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// body reads the body of req, and puts it back.
func body(t testing.TB, req *http.Request) []byte {
	t.Helper()
	if req.Body == nil {
		return nil
	}
	b, err := io.ReadAll(req.Body)
	if err != nil {
		t.Fatal(err)
	}
	setBody(req, b)
	return b
}

func setBody(req *http.Request, b []byte) {
	if len(b) == 0 {
		req.Body, req.ContentLength, req.GetBody = http.NoBody, 0, nil
		return
	}
	req.Body = io.NopCloser(bytes.NewReader(b))
	req.ContentLength = int64(len(b))
	req.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil }
}
