package localtokens

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"vmimport/internal/auth"
)

func TestAuthenticate(t *testing.T) {
	t.Parallel()
	tokens, err := New([]Entry{
		{SHA256: Digest("one"), User: "alice", Project: "p1", Domain: "d1", Roles: []string{"member"}},
		{SHA256: strings.ToUpper(Digest("two")), User: "bob", Domain: "d1"},
	})
	if err != nil {
		t.Fatal(err)
	}
	for token, want := range map[string]*auth.Identity{
		"one":         {UserID: "alice", ProjectID: "p1", DomainID: "d1", Roles: []string{"member"}},
		"two":         {UserID: "bob", DomainID: "d1"},
		"":            nil,
		"One":         nil,
		"one ":        nil,
		Digest("one"): nil, // the list must not be worth stealing
	} {
		got, err := tokens.Authenticate(t.Context(), token)
		if want == nil {
			if !errors.Is(err, auth.ErrNoIdentity) || got != nil {
				t.Errorf("token %q: got %v, %v; want ErrNoIdentity", token, got, err)
			}
		} else if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("token %q: got %+v, %v; want %+v", token, got, err, want)
		}
	}
}

// The digest of the empty string may be listed, by a script that forgot to
// make a token; it must not let everybody in who sends none.
func TestEmptyTokenNeverMatches(t *testing.T) {
	t.Parallel()
	tokens, err := New([]Entry{{SHA256: Digest(""), User: "u", Domain: "d"}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tokens.Authenticate(t.Context(), ""); !errors.Is(err, auth.ErrNoIdentity) {
		t.Errorf("empty token: %v", err)
	}
}

func TestIdentityIsACopy(t *testing.T) {
	t.Parallel()
	tokens, _ := New([]Entry{{SHA256: Digest("t"), User: "u", Domain: "d", Roles: []string{"member"}}})
	first, _ := tokens.Authenticate(t.Context(), "t")
	first.Roles[0], first.ProjectID = "admin", "other"
	if second, _ := tokens.Authenticate(t.Context(), "t"); second.Roles[0] != "member" || second.ProjectID != "" {
		t.Errorf("a caller changed the list: %+v", second)
	}
}

func TestLoad(t *testing.T) {
	t.Parallel()
	good := "sha256: " + Digest("t") + ", user: u, domain: d"
	for _, tt := range []struct{ name, file, err string }{
		{"good", "tokens:\n- {" + good + ", project: p, roles: [member]}\n", ""},
		{"empty list", "tokens: []\n", ""},
		{"short digest", "tokens:\n- {sha256: abcd, user: u, domain: d}\n", "64 hex digits"},
		{"a token instead of its digest", "tokens:\n- {sha256: my-secret-token, user: u, domain: d}\n", "64 hex digits"},
		{"no user", "tokens:\n- {sha256: " + Digest("t") + ", domain: d}\n", "user and domain"},
		{"no domain", "tokens:\n- {sha256: " + Digest("t") + ", user: u}\n", "user and domain"},
		{"twice", "tokens:\n- {" + good + "}\n- {" + good + "}\n", "listed twice"},
		{"unknown member", "tokens:\n- {" + good + ", role: member}\n", "role"},
		{"a token in plain text", "tokens:\n- {token: my-secret-token, user: u, domain: d}\n", "token"},
		{"not YAML", "tokens: [", "load tokens"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "tokens.yaml")
			if err := os.WriteFile(path, []byte(tt.file), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := Load(path)
			if tt.err == "" && err != nil || tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err)) {
				t.Errorf("got %v, want %q", err, tt.err)
			}
			if err != nil && strings.Contains(err.Error(), "my-secret-token") {
				t.Errorf("the error shows a token: %v", err)
			}
		})
	}
	if _, err := Load(filepath.Join(t.TempDir(), "absent")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("absent file: %v", err)
	}
}
