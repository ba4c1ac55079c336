// Package localtokens authenticates callers against a list of tokens, for
// installations that have no identity service.
//
// The list holds digests only, so that who reads it cannot call the API.
// Tokens are meant to be long and random: the digest is not salted, and is no
// protection for words that can be guessed.
package localtokens

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"fmt"
	"os"
	"slices"

	"github.com/goccy/go-yaml"

	"vmimport/internal/auth"
)

// Entry says who a token belongs to.
type Entry struct {
	// SHA256 is the digest of the token, 64 hex digits. See Digest.
	SHA256 string `yaml:"sha256"`
	User   string `yaml:"user"`
	// Project is empty for a token that is not scoped to a project; such a
	// token is known, and every dialect refuses it.
	Project string   `yaml:"project"`
	Domain  string   `yaml:"domain"`
	Roles   []string `yaml:"roles"`
}

// Digest returns what Entry.SHA256 holds for a token.
func Digest(token string) string {
	sum := sha256.Sum256([]byte(token))
	return hex.EncodeToString(sum[:])
}

// Tokens is an immutable list of tokens. It implements auth.TokenAuthenticator.
type Tokens struct{ known []known }

type known struct {
	digest   [sha256.Size]byte
	identity auth.Identity
}

var _ auth.TokenAuthenticator = (*Tokens)(nil)

// New returns the tokens of entries. It fails if a digest is malformed or
// listed twice, or if an entry lacks its user or its domain.
func New(entries []Entry) (*Tokens, error) {
	t := &Tokens{known: make([]known, 0, len(entries))}
	for i, e := range entries {
		digest, err := hex.DecodeString(e.SHA256)
		if err != nil || len(digest) != sha256.Size {
			return nil, fmt.Errorf("token %d: sha256 is not 64 hex digits", i+1)
		}
		if e.User == "" || e.Domain == "" {
			return nil, fmt.Errorf("token %d: user and domain are required", i+1)
		}
		k := known{[sha256.Size]byte(digest), auth.Identity{
			UserID: e.User, ProjectID: e.Project, DomainID: e.Domain, Roles: slices.Clone(e.Roles),
		}}
		if slices.ContainsFunc(t.known, func(o known) bool { return o.digest == k.digest }) {
			return nil, fmt.Errorf("token %d: listed twice", i+1)
		}
		t.known = append(t.known, k)
	}
	return t, nil
}

// Load reads a YAML file with one member, tokens, a list of entries. Unknown
// members are errors.
func Load(path string) (*Tokens, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("load tokens: %w", err)
	}
	defer f.Close()

	var file struct {
		Tokens []Entry `yaml:"tokens"`
	}
	if err := yaml.NewDecoder(f, yaml.Strict()).Decode(&file); err != nil {
		// Without the source lines: somebody may have put a token there.
		return nil, fmt.Errorf("load tokens: %s: %s", path, yaml.FormatError(err, false, false))
	}
	t, err := New(file.Tokens)
	if err != nil {
		return nil, fmt.Errorf("load tokens: %s: %w", path, err)
	}
	return t, nil
}

// Authenticate implements auth.TokenAuthenticator. How long it takes depends on
// the number of tokens alone, not on which of them matches.
func (t *Tokens) Authenticate(_ context.Context, token string) (*auth.Identity, error) {
	digest := sha256.Sum256([]byte(token))
	found := -1
	for i := range t.known {
		match := subtle.ConstantTimeCompare(digest[:], t.known[i].digest[:])
		found = subtle.ConstantTimeSelect(match, i, found)
	}
	if found < 0 || token == "" {
		return nil, auth.ErrNoIdentity
	}
	identity := t.known[found].identity
	identity.Roles = slices.Clone(identity.Roles)
	return &identity, nil
}
