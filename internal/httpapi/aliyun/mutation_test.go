package aliyun_test

import (
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"testing"

	"vmimport/internal/auth/aliyunsig/aliyunsigtest"
	"vmimport/internal/httpapi/aliyun"
)

// mutations is how many of each kind of request are sent.
const mutations = 2500

// TestMutations changes one thing about requests that are right, over HTTP. None may be
// accepted that does not mean the same, none be a fault of the server, and all must be
// answered in a form of the API.
func TestMutations(t *testing.T) {
	t.Parallel()
	for seed, kind := range []string{"RPC GET", "RPC query", "RPC form", "ACS3"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			srv := httptest.NewServer(r)
			defer srv.Close()
			m := &mutator{rng: rand.New(rand.NewPCG(uint64(seed), 5))}
			accepted := 0
			for range mutations {
				right := r.right(t, kind, srv.URL)
				mutant, what := m.mutate(right)
				a, sent := exchange(t, srv.Client(), mutant)
				if !sent {
					continue
				}
				if a.status >= 500 {
					t.Errorf("%s: %d %s", what, a.status, a.body)
				}
				if a.status < 400 {
					accepted++
					if !reflect.DeepEqual(meaning(right), meaning(mutant)) {
						t.Errorf("%s: accepted\n%q\n%q", what, meaning(right), meaning(mutant))
					}
				}
				if mutant.Method != http.MethodHead && mutant.path == "/" {
					wantWellFormed(t, a)
				}
			}
			if accepted == 0 {
				t.Error("none was accepted, though some mean the same: the requests are wrong from the start")
			}
		})
	}
}

// message is a request before it is sent.
type message struct {
	*http.Request
	kind, base, path, query, body string
}

// right returns a correct request of a kind.
func (r *rig) right(t *testing.T, kind, base string) message {
	t.Helper()
	all := url.Values{"RegionId": {hangzhou}, "TaskStatus": {"Finished"}, "TaskIds": {"t-1,t-2"}, "Note": {"sp ace*~+&=%/漢"}, "Empty": {""}}
	if kind != "ACS3" {
		maps.Copy(all, url.Values{"Action": {"DescribeTasks"}, "Version": {aliyun.Version}, "Format": {"JSON"}, "SignatureType": {""}})
	}
	method, query, body := http.MethodPost, all.Encode(), ""
	switch kind {
	case "RPC GET":
		method = http.MethodGet
	case "ACS3":
		query, body = "RegionId="+hangzhou+"&Empty=", all.Encode()
	}
	req, err := http.NewRequestWithContext(t.Context(), method, base+"/?"+query, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if body != "" {
		req.Header.Set("Content-Type", aliyunsigtest.Form)
	}
	switch kind {
	case "ACS3":
		aliyunsigtest.SignACS3(t, req, sessionKey, "DescribeTasks", r.newNonce(), r.clock.now())
	case "RPC form":
		aliyunsigtest.SignRPCForm(t, req, alphaKey, r.newNonce(), r.clock.now())
	default:
		aliyunsigtest.SignRPC(t, req, alphaKey, r.newNonce(), r.clock.now())
	}
	sent := ""
	if req.Body != nil {
		b, err := io.ReadAll(req.Body)
		if err != nil {
			t.Fatal(err)
		}
		sent = string(b)
	}
	return message{req, kind, base, "/", req.URL.RawQuery, sent}
}

// exchange sends m, unless the client of the standard library would not.
func exchange(t *testing.T, client *http.Client, m message) (reply, bool) {
	t.Helper()
	target := m.base + m.path
	if m.query != "" {
		target += "?" + m.query
	}
	req, err := http.NewRequestWithContext(t.Context(), m.Method, target, strings.NewReader(m.body))
	if err != nil {
		return reply{}, false
	}
	req.Header, req.Host = m.Header, m.Host
	resp, err := client.Do(req)
	if err != nil {
		return reply{}, false
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return newReply(t, resp.StatusCode, resp.Header, string(body)), true
}

// meaning is what must not change about a request that is accepted.
func meaning(m message) map[string][]string {
	all := map[string][]string{"method": {m.Method}, "path": {m.path}}
	params := func(prefix, encoded string) {
		values, err := url.ParseQuery(encoded)
		if err != nil {
			values = url.Values{"malformed": {encoded}}
		}
		for name, v := range values {
			all[prefix+name] = v
		}
	}
	if m.kind != "ACS3" {
		// Where a parameter stands is all the same, but which one counts is not.
		params("param ", m.query)
		params("param ", m.body)
		if m.body != "" {
			all["content"] = []string{strings.ToLower(m.Header.Get("Content-Type"))}
		}
		return all
	}
	params("query ", m.query)
	all["body"], all["host"] = []string{m.body}, []string{m.Host}
	for name, values := range m.Header {
		name = strings.ToLower(name)
		if strings.HasPrefix(name, "x-acs-") || name == "content-type" {
			for _, v := range values {
				all["header "+name] = append(all["header "+name], strings.TrimSpace(v))
			}
		}
	}
	fields := strings.FieldsFunc(m.Header.Get("Authorization"), func(c rune) bool { return c == ' ' || c == ',' })
	slices.Sort(fields)
	for i, f := range fields {
		if names, ok := strings.CutPrefix(f, "SignedHeaders="); ok {
			fields[i] = strings.ToLower(names)
		}
	}
	all["authorization"] = fields
	return all
}

type mutator struct{ rng *rand.Rand }

// mutate returns right with one change, and what that is.
func (m *mutator) mutate(right message) (message, string) {
	mutant := right
	mutant.Request = right.Clone(right.Context())
	var what string
	switch n := m.rng.IntN(20); {
	case n == 0:
		mutant.Method = m.pick("GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "post", "IMPORT")
		what = "method " + mutant.Method
	case n == 1:
		mutant.path = m.pick("//", "/x", "/%2F", "/.", "/;", "/index.html")
		what = "path " + mutant.path
	case n < 8 && right.body != "":
		mutant.body, what = m.pairs(right.body)
		what = "body: " + what
	case n < 12 && right.kind == "ACS3":
		what = m.headers(mutant.Header)
	case n == 12:
		what = m.headers(mutant.Header)
	case n == 13:
		mutant.Host = m.pick(mutant.Host, "other.example.test", strings.ToUpper(mutant.Host), mutant.Host+".")
		what = "host " + mutant.Host
	default:
		mutant.query, what = m.pairs(right.query)
		what = "query: " + what
	}
	return mutant, what
}

func (m *mutator) pick(of ...string) string { return of[m.rng.IntN(len(of))] }

// pairs changes text of the form name=value&name=value.
func (m *mutator) pairs(text string) (mutant, what string) {
	pairs := strings.Split(text, "&")
	i, j := m.rng.IntN(len(pairs)), m.rng.IntN(len(pairs))
	switch m.rng.IntN(9) {
	case 0:
		return strings.Join(slices.Delete(pairs, i, i+1), "&"), fmt.Sprintf("without pair %d", i)
	case 1:
		return text + "&" + pairs[i], "twice " + pairs[i]
	case 2:
		pairs[i], pairs[j] = pairs[j], pairs[i]
		return strings.Join(pairs, "&"), "another order"
	case 3:
		return text + "&" + m.pick("a=b", "=", "&", "a", "Action=DeleteImage", "Format=XML", "Signature=", "%zz=1", "Tag.1.Key=x"), "one more pair"
	case 4:
		return strings.ReplaceAll(text, "+", "%20"), "spaces"
	case 5:
		pairs[i] = strings.ToLower(pairs[i])
		return strings.Join(pairs, "&"), fmt.Sprintf("lower case of pair %d", i)
	}
	return m.bytes(text, "abzAZ019-_.~=&%+;:,/?@!$'()*[]")
}

// bytes changes one byte.
func (m *mutator) bytes(text, by string) (mutant, what string) {
	if text == "" {
		return by[:1], "no text"
	}
	i := m.rng.IntN(len(text))
	c := string(by[m.rng.IntN(len(by))])
	switch m.rng.IntN(3) {
	case 0:
		return text[:i] + c + text[i:], fmt.Sprintf("%s put in at %d", c, i)
	case 1:
		return text[:i] + text[i+1:], fmt.Sprintf("byte %d taken out", i)
	}
	return text[:i] + c + text[i+1:], fmt.Sprintf("%s at %d", c, i)
}

// headers changes one header.
func (m *mutator) headers(h http.Header) string {
	names := slices.Sorted(maps.Keys(h))
	if len(names) == 0 {
		names = []string{"Accept"}
	}
	name := names[m.rng.IntN(len(names))]
	switch m.rng.IntN(6) {
	case 0:
		h.Del(name)
		return "without " + name
	case 1:
		h.Add(name, h.Get(name)+m.pick("", "x"))
		return "twice " + name
	case 2:
		added := m.pick("X-Acs-Foo", "X-Acs-Action", "X-Acs-Security-Token", "Authorization", "Content-Type", "Accept", "X-Forwarded-Host")
		h.Add(added, m.pick("x", "ACS3-HMAC-SHA256 x", "application/json", "DescribeRegions"))
		return "one more " + added
	}
	value, what := m.bytes(h.Get(name), "abzAZ019-_.~=&%+;:,/ ")
	h.Set(name, value)
	return name + ": " + what
}
