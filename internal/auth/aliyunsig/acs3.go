package aliyunsig

import (
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"slices"
	"strings"

	"vmimport/internal/secret"
)

const (
	acs3Prefix    = "ACS3-"
	acs3Algorithm = "ACS3-HMAC-SHA256"
)

// acs3Required lists the headers that every request has, signed.
var acs3Required = []string{"host", "x-acs-action", "x-acs-version", "x-acs-date", "x-acs-signature-nonce", "x-acs-content-sha256"}

// acs3Single lists headers that a proxy or an attacker may not add a second value to: who
// reads the first and who reads the last would see different requests.
var acs3Single = append([]string{"authorization", "content-type", "x-acs-security-token", "x-acs-accesskey-id"}, acs3Required...)

// parseACS3 reads the headers of the signature. Nothing of it is in the parameters.
func (q *Request) parseACS3(r *http.Request, query map[string]string, body []byte) error {
	q.Action, q.Version = header(r, "x-acs-action"), header(r, "x-acs-version")
	for _, name := range acs3Single {
		if len(headerValues(r, name)) > 1 {
			return incomplete("The header %s was sent more than once.", name)
		}
	}
	credentials, err := parseAuthorization(authorization(r.Header))
	if err != nil {
		return err
	}
	q.KeyID, q.signature = credentials["Credential"], credentials["Signature"]
	names, err := signedHeaders(r, credentials["SignedHeaders"], len(body) > 0)
	if err != nil {
		return err
	}
	q.SecurityToken = secret.New(header(r, "x-acs-security-token"))
	if err := q.setNonceAndTime("x-acs-signature-nonce", header(r, "x-acs-signature-nonce"), header(r, "x-acs-date")); err != nil {
		return err
	}

	bodyHash := header(r, "x-acs-content-sha256")
	q.altered = bodyHash != hexSHA256(string(body))
	parts := []string{r.Method, "/", canonical(query), headerLines(r, names), credentials["SignedHeaders"], bodyHash}
	q.toSign = acs3Algorithm + "\n" + hexSHA256(strings.Join(parts, "\n"))
	return nil
}

// authorization returns the header that makes a request one of this scheme, or "". It need
// not be the only one; a second one is refused later, in the scheme's own form.
func authorization(h http.Header) string {
	all := h.Values("Authorization")
	if i := slices.IndexFunc(all, func(v string) bool { return strings.HasPrefix(v, acs3Prefix) }); i >= 0 {
		return all[i]
	}
	return ""
}

// parseAuthorization reads "ACS3-HMAC-SHA256 Credential=…,SignedHeaders=…,Signature=…".
func parseAuthorization(header string) (map[string]string, error) {
	algorithm, list, _ := strings.Cut(header, " ")
	if algorithm != acs3Algorithm {
		return nil, refuse(http.StatusBadRequest, "InvalidParameter", "The only algorithm supported in Authorization is %s.", acs3Algorithm)
	}
	fields := map[string]string{}
	for field := range strings.SplitSeq(list, ",") {
		name, value, _ := strings.Cut(strings.TrimSpace(field), "=")
		if _, twice := fields[name]; twice || value == "" {
			return nil, incomplete("The header Authorization is malformed.")
		}
		fields[name] = value
	}
	if len(fields) != 3 || fields["Credential"] == "" || fields["SignedHeaders"] == "" || fields["Signature"] == "" {
		return nil, incomplete("The header Authorization must have Credential, SignedHeaders and Signature.")
	}
	return fields, nil
}

// signedHeaders returns the names in list, sorted, if they are all headers of r and none is
// missing that has to be signed. Every x-acs- header has to: the vendor's clients sign
// them, so one that is not was added by somebody else.
func signedHeaders(r *http.Request, list string, hasBody bool) ([]string, error) {
	must := slices.Clone(acs3Required)
	if hasBody {
		must = append(must, "content-type") // it decides how the body is read
	}
	for _, name := range must {
		if header(r, name) == "" {
			return nil, incomplete("The header %s is missing.", name)
		}
	}
	for name := range r.Header {
		if name = strings.ToLower(name); strings.HasPrefix(name, "x-acs-") {
			must = append(must, name)
		}
	}

	names := strings.Split(strings.ToLower(list), ";")
	slices.Sort(names)
	for i, name := range names {
		if len(headerValues(r, name)) == 0 || i > 0 && names[i-1] == name {
			return nil, incomplete("SignedHeaders must name each header once that was sent, and no other.")
		}
	}
	slices.Sort(must)
	for _, name := range must {
		if _, signed := slices.BinarySearch(names, name); !signed {
			return nil, incomplete("The header %s is not among SignedHeaders.", name)
		}
	}
	return names, nil
}

// headerLines returns the lines of the signed headers, a line feed after each.
func headerLines(r *http.Request, names []string) string {
	var b strings.Builder
	for _, name := range names {
		values := slices.Sorted(slices.Values(headerValues(r, name)))
		b.WriteString(name + ":" + strings.Join(values, ",") + "\n")
	}
	return b.String()
}

// header returns the value of a header of acs3Single, or "".
func header(r *http.Request, name string) string {
	return strings.Join(headerValues(r, name), ",")
}

// headerValues returns the values of a header, trimmed. It also knows Host, which net/http
// keeps apart from the others.
func headerValues(r *http.Request, name string) []string {
	if name == "host" {
		return []string{r.Host}
	}
	values := slices.Clone(r.Header.Values(name))
	for i := range values {
		values[i] = strings.Trim(values[i], " \t")
	}
	return values
}

func hexSHA256(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])
}
