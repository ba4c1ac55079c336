package storagetest

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

const (
	sigV4      = "AWS4-HMAC-SHA256"
	sigV4Time  = "20060102T150405Z"
	sigV4Drift = 15 * time.Minute
)

// verify checks a request's signature ("Authenticating Requests: Using the
// Authorization Header", Amazon S3 API Reference). It returns the answer's
// status and error code, or "" if the signature is right.
func (s *S3) verify(r *http.Request, now time.Time) (status int, code string) {
	scheme, rest, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if scheme != sigV4 {
		return http.StatusForbidden, "AccessDenied"
	}
	field := make(map[string]string)
	for part := range strings.SplitSeq(rest, ",") {
		name, value, _ := strings.Cut(strings.TrimSpace(part), "=")
		field[name] = value
	}
	stamp := r.Header.Get("X-Amz-Date")
	at, err := time.Parse(sigV4Time, stamp)
	if err != nil {
		return http.StatusForbidden, "AccessDenied"
	}
	if now.Sub(at).Abs() > sigV4Drift {
		return http.StatusForbidden, "RequestTimeTooSkewed"
	}
	key, scope, _ := strings.Cut(field["Credential"], "/")
	if key != s.AccessKey {
		return http.StatusForbidden, "InvalidAccessKeyId"
	}
	if scope != stamp[:8]+"/"+s.Region+"/s3/aws4_request" {
		return http.StatusBadRequest, "AuthorizationHeaderMalformed"
	}
	signed := strings.Split(field["SignedHeaders"], ";")
	for _, must := range []string{"host", "x-amz-content-sha256", "x-amz-date"} {
		if !slices.Contains(signed, must) {
			return http.StatusForbidden, "AccessDenied"
		}
	}
	if !hmac.Equal([]byte(signature(r, s.SecretKey, s.Region, signed)), []byte(field["Signature"])) {
		return http.StatusForbidden, "SignatureDoesNotMatch"
	}
	return 0, ""
}

// signature computes the signature of r over the named headers, in hex.
func signature(r *http.Request, secret, region string, signed []string) string {
	var canonical strings.Builder
	fmt.Fprintf(&canonical, "%s\n%s\n%s\n", r.Method, uriEncode(r.URL.Path, "/"), canonicalQuery(r.URL.Query()))
	for _, name := range signed {
		value := strings.Join(r.Header.Values(name), ",")
		if name == "host" {
			value = r.Host
		}
		fmt.Fprintf(&canonical, "%s:%s\n", name, strings.Join(strings.Fields(value), " "))
	}
	fmt.Fprintf(&canonical, "\n%s\n%s", strings.Join(signed, ";"), r.Header.Get("X-Amz-Content-Sha256"))

	stamp := r.Header.Get("X-Amz-Date")
	day := stamp[:8]
	sum := sha256.Sum256([]byte(canonical.String()))
	toSign := strings.Join([]string{sigV4, stamp, day + "/" + region + "/s3/aws4_request", hex.EncodeToString(sum[:])}, "\n")

	key := []byte("AWS4" + secret)
	for _, part := range []string{day, region, "s3", "aws4_request", toSign} {
		mac := hmac.New(sha256.New, key)
		mac.Write([]byte(part))
		key = mac.Sum(nil)
	}
	return hex.EncodeToString(key)
}

func canonicalQuery(query url.Values) string {
	var pairs []string
	for name, values := range query {
		for _, value := range values {
			pairs = append(pairs, uriEncode(name, "")+"="+uriEncode(value, ""))
		}
	}
	slices.Sort(pairs)
	return strings.Join(pairs, "&")
}

// uriEncode escapes all but RFC 3986's unreserved characters and those in keep.
func uriEncode(s, keep string) string {
	const unreserved = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~"
	var b strings.Builder
	for _, c := range []byte(s) {
		if strings.IndexByte(unreserved, c) >= 0 || strings.IndexByte(keep, c) >= 0 {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}
