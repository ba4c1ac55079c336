package aliyunsig_test

import (
	"bytes"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"vmimport/internal/auth/aliyunsig"
	"vmimport/internal/auth/aliyunsig/aliyunsigtest"
)

const mutations = 10_000

// Of many small changes to a correct request none is accepted, unless it leaves the
// meaning as it was. The verifier knows the keys of others, too, and no nonce is used up.
func TestMutations(t *testing.T) {
	forEachScheme(t, func(t *testing.T, s scheme) {
		seed := rand.Uint64()
		rnd := rand.New(rand.NewPCG(seed, 0))
		correct, same := signed(t, s), 0
		for range mutations {
			m := correct[rnd.IntN(len(correct))]
			m.header = m.header.Clone()
			meant := m.meaning(s)
			var done []string
			for range 1 + rnd.IntN(2) {
				done = append(done, m.mutate(rnd))
			}
			q, err := m.parse()
			if err == nil {
				err = verifier(&memory{}).Verify(t.Context(), q, nil)
			}
			if err != nil {
				continue
			}
			if got := m.meaning(s); got != meant {
				t.Fatalf("seed %d: accepted after %q:\n%s\ninstead of\n%s", seed, done, got, meant)
			}
			same++
		}
		// Most bytes mean something; some, like the order of parameters, do not.
		if same == 0 || same > mutations/2 {
			t.Errorf("seed %d: %d of %d mutated requests accepted", seed, same, mutations)
		}
	})
}

// message is what a server is sent.
type message struct {
	method, host, query, body string
	header                    http.Header
}

// signed returns correct messages of all kinds.
func signed(t *testing.T, s scheme) (all []message) {
	const query = "RegionId=r&Description=a+b%2A&Empty="
	for _, body := range []string{"", "DiskDeviceMapping.1.OSSBucket=b&DiskDeviceMapping.1.OSSObject=o%2Fp&RegionId=r"} {
		for _, key := range []aliyunsigtest.Key{permanent, temporary} {
			req := newRequest(t, "POST", query, body)
			req.Header.Set("x-acs-credentials-provider", "static_ak")
			req.Header.Set("Accept", "application/json")
			s.sign(t, req, key, "n", now)
			sent, err := io.ReadAll(req.Body)
			if err != nil {
				t.Fatal(err)
			}
			m := message{req.Method, req.Host, req.URL.RawQuery, string(sent), req.Header}
			if q, err := m.parse(); err != nil || verifier(&memory{}).Verify(t.Context(), q, nil) != nil {
				t.Fatalf("%+v is not correct: %v", m, err)
			}
			all = append(all, m)
		}
	}
	return all
}

func (m *message) parse() (*aliyunsig.Request, error) {
	r := &http.Request{Method: m.method, Host: m.host, Header: m.header, URL: &url.URL{Path: "/", RawQuery: m.query}}
	return aliyunsig.Parse(r, []byte(m.body))
}

// meaning is all by which a service could act differently, read by other means than the
// package's own.
func (m *message) meaning(s scheme) string {
	query, form := params(m.query), params(m.body)
	if s.name != "acs3" {
		maps.Copy(query, form) // the form's value counts
		return fmt.Sprint(m.method, query)
	}
	header := maps.Clone(m.header)
	header.Del("Accept") // is not signed
	if m.body == "" {
		header.Del("Content-Type")
	}
	var auth []string
	for field := range strings.SplitSeq(strings.TrimPrefix(header.Get("Authorization"), "ACS3-HMAC-SHA256 "), ",") {
		auth = append(auth, strings.TrimSpace(field))
	}
	slices.Sort(auth) // Credential and so on, in any order
	header["Authorization"] = auth
	for name, values := range header {
		header[name] = strings.Split(strings.Trim(strings.Join(values, ","), " "), ",")
	}
	return fmt.Sprint(m.method, m.host, query, m.body, header)
}

func params(encoded string) map[string]string {
	all, _ := url.ParseQuery(strings.ReplaceAll(encoded, ";", "%3B"))
	first := map[string]string{}
	for name := range all {
		first[name] = all.Get(name)
	}
	return first
}

// mutate changes something, and tells what.
func (m *message) mutate(rnd *rand.Rand) string {
	switch rnd.IntN(10) {
	case 0, 1:
		m.query = mutateText(rnd, m.query)
		return "query"
	case 2:
		m.body = mutateText(rnd, m.body)
		return "body"
	case 3:
		m.query = mutatePairs(rnd, m.query)
		return "pairs of query"
	case 4:
		m.body = mutatePairs(rnd, m.body)
		return "pairs of body"
	case 5:
		return m.movePair(rnd)
	case 6:
		m.method = pick(rnd, "GET", "POST", "PUT", "post", mutateText(rnd, m.method))
		return "method"
	case 7:
		m.host = mutateText(rnd, m.host)
		return "host"
	default:
		return m.mutateHeader(rnd)
	}
}

// movePair moves a parameter from the query to the body or back.
func (m *message) movePair(rnd *rand.Rand) string {
	from, to := &m.query, &m.body
	if rnd.IntN(2) == 0 {
		from, to = to, from
	}
	pairs := strings.Split(*from, "&")
	i := rnd.IntN(len(pairs))
	*to += "&" + pairs[i]
	*from = strings.Join(slices.Delete(pairs, i, i+1), "&")
	return "place of a pair"
}

func (m *message) mutateHeader(rnd *rand.Rand) string {
	names := slices.Sorted(maps.Keys(m.header))
	name := names[rnd.IntN(len(names))]
	switch value := m.header.Get(name); rnd.IntN(5) {
	case 0:
		m.header.Del(name)
	case 1:
		m.header.Add(name, mutateText(rnd, value))
	case 2:
		m.header.Set(pick(rnd, "X-Acs-New", "Accept", "X-Acs-Security-Token", "Content-Type"), value)
	default:
		m.header.Set(name, mutateText(rnd, value))
	}
	return "header " + name
}

// mutatePairs changes parameters as a whole.
func mutatePairs(rnd *rand.Rand, encoded string) string {
	pairs := strings.Split(encoded, "&")
	i, j := rnd.IntN(len(pairs)), rnd.IntN(len(pairs))
	switch rnd.IntN(4) {
	case 0:
		pairs[i], pairs[j] = pairs[j], pairs[i]
	case 1:
		pairs = append(pairs, pairs[i])
	case 2:
		pairs = slices.Delete(pairs, i, i+1)
	default:
		pairs = slices.Insert(pairs, i, pick(rnd, "", "Extra=", "DryRun=true", "OwnerId=1", "Signature=x", "RegionId=q", "%52egionId=q"))
	}
	return strings.Join(pairs, "&")
}

// mutateText changes a byte or a few.
func mutateText(rnd *rand.Rand, s string) string {
	b := []byte(s)
	if len(b) == 0 {
		return pick(rnd, "A=1", "&", " ", "x")
	}
	i := rnd.IntN(len(b))
	switch rnd.IntN(7) {
	case 0:
		b[i] ^= 1 << rnd.IntN(8)
	case 1:
		b[i] = byte(rnd.UintN(256))
	case 2:
		b = slices.Delete(b, i, i+1)
	case 3:
		b = slices.Insert(b, i, "&=+%;, \x00A0"[rnd.IntN(10)])
	case 4:
		b = slices.Replace(b, i, i+1, fmt.Appendf(nil, "%%%02x", b[i])...) // the same in other words
	case 5:
		b = bytes.ToUpper(b)
	default:
		b = b[:i]
	}
	return string(b)
}

func pick(rnd *rand.Rand, of ...string) string { return of[rnd.IntN(len(of))] }
