package ramfile

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode"

	"vmimport/internal/auth/ram"
	"vmimport/internal/secret"
)

// content is what the files say. It is never changed.
type content struct {
	accounts    []*ram.Account
	credentials map[string]*ram.Credential // by key id
}

// Summary tells what a file holds, without a secret.
type Summary struct {
	Accounts int
	Keys     int // that are enabled, temporary ones included
	Disabled int
	Buckets  int
	Regions  []string // that accounts or buckets name, sorted
}

func (s Summary) String() string {
	return fmt.Sprintf("%d accounts, %d keys and %d disabled ones, %d buckets, regions %s",
		s.Accounts, s.Keys, s.Disabled, s.Buckets, cmp.Or(strings.Join(s.Regions, ", "), "not named"))
}

func (c *content) summary() Summary {
	s := Summary{Accounts: len(c.accounts)}
	for _, k := range c.credentials {
		if k.Disabled {
			s.Disabled++
		} else {
			s.Keys++
		}
	}
	regions := map[string]bool{}
	for _, a := range c.accounts {
		s.Buckets += len(a.Buckets)
		for _, r := range a.Regions {
			regions[r] = true
		}
		for _, b := range a.Buckets {
			regions[b.Region] = true
		}
	}
	s.Regions = slices.Sorted(maps.Keys(regions))
	return s
}

// load reads the file at path and the files of secrets that it names.
func load(path string, f *files) (*content, error) {
	b, err := f.read(path)
	if err != nil {
		return nil, err
	}
	return parse(b, filepath.Dir(path), f)
}

// parse returns what the bytes of a file say, or all that is wrong. Files of
// secrets are relative to dir.
func parse(b []byte, dir string, f *files) (*content, error) {
	doc, err := decode(b)
	if err != nil {
		return nil, err
	}
	if len(doc.Accounts) == 0 {
		return nil, errors.New("it names no accounts")
	}
	r := &reader{
		dir: dir, files: f, content: &content{credentials: map[string]*ram.Credential{}},
		seen: map[string]bool{},
	}
	for i, a := range doc.Accounts {
		r.account(place("", "account", i, a.ID, digits), a)
	}
	if r.problems != nil {
		return nil, errors.Join(r.problems...)
	}
	return r.content, nil
}

// reader makes content of a document, and collects what is wrong with it.
type reader struct {
	dir      string
	files    *files
	content  *content
	seen     map[string]bool // what must be unique
	problems []error
}

func (r *reader) problem(at, format string, args ...any) {
	r.problems = append(r.problems, fmt.Errorf("%s: %w", at, fmt.Errorf(format, args...)))
}

// place says where in the file something is: by its number, from 1, and by its
// name if it has the form. Something else may be a secret in the wrong place.
func place(in, what string, i int, t text, f form) string {
	at := fmt.Sprintf("%s%s %d", in, what, i+1)
	if f.MatchString(string(t)) {
		at += fmt.Sprintf(" (%s)", t)
	}
	return at
}

// The forms of names.
var (
	digits   = form{regexp.MustCompile(`^[0-9]{1,32}$`), "1 to 32 digits"}
	keyID    = form{regexp.MustCompile(`^[A-Za-z0-9._-]{1,128}$`), "1 to 128 letters, digits, '.', '_' or '-'"}
	name     = form{regexp.MustCompile(`^[A-Za-z0-9._@-]{1,64}$`), "1 to 64 letters, digits, '.', '_', '@' or '-'"}
	region   = form{regexp.MustCompile(`^[A-Za-z0-9._-]{1,64}$`), "1 to 64 letters, digits, '.', '_' or '-'"}
	group    = form{regexp.MustCompile(`^rg-[A-Za-z0-9-]{1,61}$`), "rg- and at most 61 letters, digits or '-'"}
	ossName  = form{regexp.MustCompile(`^[a-z0-9][a-z0-9-]{1,61}[a-z0-9]$`), "3 to 63 lower-case letters, digits or '-', with no '-' at either end"}
	project  = form{regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$`), "1 to 128 letters, digits, '.', '_' or '-', the first of which is a letter or digit"}
	segment  = form{regexp.MustCompile(`^[^/.\pC][^/\pC]{0,254}$`), "1 to 255 characters, without '/' and with no '.' before them"}
	storeAPI = form{regexp.MustCompile(`^(s3|swift)$`), "s3 or swift"}
	password = form{regexp.MustCompile(`^[!-~]+$`), "printable ASCII characters without spaces"}
)

type form struct {
	*regexp.Regexp
	says string
}

// formed returns a name that has the form, and "" after it has complained of one
// that has not.
func (r *reader) formed(at, what string, t text, f form) string {
	if !f.MatchString(string(t)) {
		r.problem(at, "%s is not %s", what, f.says)
		return ""
	}
	return string(t)
}

// unique complains of what is there already, in the scope of a name that all
// that must differ share.
func (r *reader) unique(at, what, scope, value string) {
	k := scope + "\x00" + what + "\x00" + value
	if value != "" && r.seen[k] {
		r.problem(at, "%s %s is there twice", what, value)
	}
	r.seen[k] = true
}

func (r *reader) account(at string, a account) {
	account := &ram.Account{
		ID:        r.formed(at, "id", a.ID, digits),
		Name:      string(a.Name),
		Project:   r.formed(at, "project", cmp.Or(a.Project, a.ID), project),
		MayImport: a.Import,
		Images:    int(a.Quotas.Images),
		Snapshots: int(a.Quotas.Snapshots),
	}
	if len(account.Name) > 128 || strings.ContainsFunc(account.Name, unicode.IsControl) {
		r.problem(at, "name is longer than 128 bytes, or holds control characters")
	}
	r.unique(at, "id", "", account.ID)
	r.unique(at, "project", "", account.Project)
	for _, t := range a.Regions {
		account.Regions = append(account.Regions, r.formed(at, "a region", t, region))
	}
	for _, t := range a.ResourceGroups {
		account.ResourceGroups = append(account.ResourceGroups, r.formed(at, "a resource group", t, group))
	}
	for i, b := range a.Buckets {
		r.bucket(place(at, ": bucket", i, b.Name, ossName), account, b)
	}
	for i, in := range a.Roles {
		r.role(place(at, ": role", i, in.Name, name), account, in)
	}
	r.callers(at, account, a)
	r.content.accounts = append(r.content.accounts, account)
}

func (r *reader) bucket(at string, a *ram.Account, b bucket) {
	bucket := ram.Bucket{
		Name:      r.formed(at, "name", b.Name, ossName),
		Region:    r.formed(at, "region", b.Region, region),
		API:       r.formed(at, "api", cmp.Or(b.API, "s3"), storeAPI),
		Project:   a.Project,
		Container: r.formed(at, "container", cmp.Or(b.Container, b.Name), segment),
	}
	if b.Project != "" {
		bucket.Project = r.formed(at, "project", b.Project, project)
	}
	r.unique(at, "bucket", "", bucket.Name)
	a.Buckets = append(a.Buckets, bucket)
}

func (r *reader) role(at string, a *ram.Account, in role) {
	role := ram.Role{Name: r.formed(at, "name", in.Name, name), Policies: r.policies(at, in.Policies)}
	r.unique(at, "role", a.ID, role.Name)
	switch p, err := in.Trust.parse(); {
	case in.Trust.value == nil:
		r.problem(at, "trust is missing; it says who may assume the role")
	case err != nil:
		r.problem(at, "trust: %w", err)
	case !p.IsTrust():
		r.problem(at, "trust: its statements need a Principal")
	default:
		role.Trust = p
	}
	a.Roles = append(a.Roles, role)
}

func (r *reader) policies(at string, in []policy) []*ram.Policy {
	var out []*ram.Policy
	for i, p := range in {
		switch parsed, err := p.parse(); {
		case err != nil:
			r.problem(at, "policy %d: %w", i+1, err)
		case parsed.IsTrust():
			r.problem(at, "policy %d: a Principal belongs into the trust of a role", i+1)
		default:
			out = append(out, parsed)
		}
	}
	return out
}

// callers reads who may sign for the account: itself, its users, its sessions.
func (r *reader) callers(at string, a *ram.Account, in account) {
	r.keys(at, in.Keys, ram.Caller{Account: a})
	users := map[string][]*ram.Policy{}
	for i, u := range in.Users {
		at := place(at, ": user", i, u.Name, name)
		caller := ram.Caller{Account: a, User: r.formed(at, "name", u.Name, name), Policies: r.policies(at, u.Policies)}
		r.unique(at, "user", a.ID, caller.User)
		users[caller.User] = caller.Policies
		r.keys(at, u.Keys, caller)
	}
	for i, s := range in.Sessions {
		r.session(place(at, ": session", i, s.Key.ID, keyID), s, a, users)
	}
}

func (r *reader) keys(at string, keys []key, c ram.Caller) {
	for i, k := range keys {
		r.credential(place(at, ": key", i, k.ID, keyID), k, c)
	}
}

func (r *reader) session(at string, s session, a *ram.Account, users map[string][]*ram.Policy) {
	c := ram.Caller{Account: a, User: string(s.User), Role: string(s.Role), Session: r.policies(at, s.Policies)}
	known := true
	switch {
	case s.User != "" && s.Role != "":
		r.problem(at, "it is of a user or of a role, not of both")
	case s.User != "":
		c.Policies, known = users[c.User]
	case s.Role != "":
		var role *ram.Role
		if role, known = a.Role(c.Role); known {
			c.Policies = role.Policies
		}
	}
	if !known {
		r.problem(at, "the account has no such user or role")
	}
	k := r.credential(at, s.Key, c)
	k.SecurityToken = s.Token.Text
	if !password.MatchString(s.Token.Reveal()) {
		r.problem(at, "token is not %s", password.says)
	}
	var err error
	if k.Expires, err = time.Parse(time.RFC3339, string(s.Expires)); err != nil {
		r.problem(at, "expires is not of the form 2026-12-01T00:00:00Z")
	}
}

// credential adds a key of c.
func (r *reader) credential(at string, k key, c ram.Caller) *ram.Credential {
	credential := &ram.Credential{
		KeyID:    r.formed(at, "id", k.ID, keyID),
		Secret:   r.secret(at, k),
		Disabled: k.Enabled != nil && !*k.Enabled,
		Caller:   c,
	}
	r.unique(at, "key", "", credential.KeyID)
	r.content.credentials[credential.KeyID] = credential
	return credential
}

func (r *reader) secret(at string, k key) secret.Text {
	s := k.Secret.Text
	switch {
	case s.IsZero() == (k.SecretFile == ""):
		r.problem(at, "it needs either secret or secret_file")
		return s
	case s.IsZero():
		path := string(k.SecretFile)
		if !filepath.IsAbs(path) {
			path = filepath.Join(r.dir, path)
		}
		b, err := r.files.read(path)
		if err != nil {
			// Without the path: it would not be the first time that a secret stands
			// where its file should.
			r.problem(at, "secret_file: %w", err)
			return s
		}
		s = secret.New(string(bytes.TrimSpace(b)))
	}
	if !password.MatchString(s.Reveal()) {
		r.problem(at, "secret is not %s", password.says)
	}
	return s
}
