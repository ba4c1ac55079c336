package ram

import (
	"encoding/json"
	"regexp"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

func FuzzPolicy(f *testing.F) {
	for _, s := range []string{
		allowAll,
		`[{"Effect": "Deny", "NotAction": ["a:b", "?:*c*"], "NotResource": ["acs:a:b:c:d", "acs:${x}::*:*/?"], "Condition": {"A": {"b": ["c"]}}}]`,
		`{"Effect": "Allow", "Action": "sts:AssumeRole", "Principal": {"Service": ["ecs.aliyuncs.com"], "RAM": "acs:ram::1:root"}}`,
		`{"Effect": "Allow", "Action": "a:` + strings.Repeat("*a", 500) + `b", "Resource": "acs:o:*:*:` + strings.Repeat("*a", 500) + `b"}`,
	} {
		f.Add([]byte(`{"Version": "1", "Statement": ` + s + `}`))
	}
	action, resource := "a:"+strings.Repeat("a", 1000), "acs:o:r:1:"+strings.Repeat("a", 1000)
	f.Fuzz(func(t *testing.T, document []byte) {
		p, err := ParsePolicy(document)
		if err != nil {
			return
		}
		if !json.Valid(document) {
			t.Fatal("accepted what is no JSON")
		}
		start := time.Now()
		r := Role{Trust: p, Policies: []*Policy{p}}
		may, trusted := r.May(action, resource), r.TrustedBy("ecs.aliyuncs.com")
		if took := time.Since(start); took > 5*time.Second {
			t.Fatalf("took %v", took)
		}
		if may && p.IsTrust() || trusted && !p.IsTrust() {
			t.Fatal("a policy of the other kind permits")
		}
		deny := &Policy{statements: []statement{p.statements[0]}}
		deny.statements[0].deny = true
		if (&Role{Policies: []*Policy{p, deny}}).May(action, resource) && p.statements[0].applies(request{action: action, resource: resource}) != no {
			t.Fatal("a denial was overruled")
		}
	})
}

func FuzzMatch(f *testing.F) {
	for _, s := range [][2]string{
		{"", ""}, {"*", ""}, {"?", ""}, {"a*b?c", "axxbbbyc"}, {"*aab", "aaaab"}, {"**?", "é"}, {"*é??", "xéé漢字"}, {"a", "ab"}, {"ab", "a"},
		{strings.Repeat("*a", 50) + "b", strings.Repeat("a", 200)},
	} {
		f.Add(s[0], s[1])
	}
	f.Fuzz(func(t *testing.T, pattern, text string) {
		// Regular expressions take each byte of broken UTF-8 for the same character.
		if len(pattern) > 200 || len(text) > 1000 || !utf8.ValidString(pattern) || !utf8.ValidString(text) {
			wildcard(pattern, text)
			return
		}
		quoted := strings.NewReplacer(`\*`, `.*`, `\?`, `.`).Replace(regexp.QuoteMeta(pattern))
		want := regexp.MustCompile(`(?s)\A` + quoted + `\z`).MatchString(text)
		if got := wildcard(pattern, text); got != want {
			t.Errorf("%q, %q: %v", pattern, text, got)
		}
	})
}

// The worst patterns of the longest document, against the longest names.
func BenchmarkWorstPolicy(b *testing.B) {
	pattern := "*" + strings.Repeat("a", 500) + "b"
	list := strings.TrimSuffix(strings.Repeat(`"acs:oss:*:*:`+pattern+`",`, MaxPolicyBytes/(len(pattern)+20)), ",")
	r := Role{Policies: []*Policy{mustParse(b, `{"Version": "1", "Statement": {"Effect": "Allow", "Action": "*", "Resource": [`+list+`]}}`)}}
	resource := "acs:oss:cn-hangzhou:1:" + strings.Repeat("a", 1023)
	for b.Loop() {
		r.May("oss:GetObject", resource)
	}
}
