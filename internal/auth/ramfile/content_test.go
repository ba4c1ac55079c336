package ramfile

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"vmimport/internal/auth/ram"
	"vmimport/internal/secret"
)

// write makes a file that Open takes, and returns its path.
func write(t testing.TB, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "accounts.yaml")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func open(t testing.TB, path string) *Directory {
	t.Helper()
	d, err := Open(path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

const image = "acs:ecs:cn-hangzhou:1234567890123456:image/*"

func TestExample(t *testing.T) {
	t.Parallel()
	b, err := os.ReadFile(filepath.Join("..", "..", "..", "etc", "aliyun-accounts.example.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	d := open(t, write(t, string(b)))
	want := Summary{Accounts: 1, Keys: 3, Disabled: 1, Buckets: 2, Regions: []string{"cn-beijing", "cn-hangzhou"}}
	if got := d.Summary(); !reflect.DeepEqual(got, want) {
		t.Errorf("summary %v", got)
	}

	root, ok := d.Credential("LTAI5tExampleNewKey")
	if !ok || root.Secret.Reveal() != "replace-me-with-30-random-characters" || root.Disabled || !root.SecurityToken.IsZero() || !root.Expires.IsZero() {
		t.Errorf("key %+v, %v", root, ok)
	}
	if old, ok := d.Credential("LTAI5tExampleOldKey"); !ok || !old.Disabled || old.Caller.Account != root.Caller.Account {
		t.Errorf("old key %+v, %v", old, ok)
	}
	if c, ok := d.Credential("LTAI5tExample"); ok || c != nil {
		t.Errorf("unknown key %+v", c)
	}

	a := *root.Caller.Account
	role, ok := a.Role("AliyunECSImageImportDefaultRole")
	if !ok || !role.TrustedBy("ecs.aliyuncs.com") || !role.May("oss:GetObject", "acs:oss:cn-hangzhou:1:images/x") || role.May("oss:PutObject", "*") {
		t.Errorf("role %+v, %v", role, ok)
	}
	a.Roles = nil
	if want := (ram.Account{
		ID: "1234567890123456", Name: "example", Project: "1234567890123456", MayImport: true,
		Regions: []string{"cn-hangzhou", "cn-beijing"}, Images: 100, Snapshots: 500, ResourceGroups: []string{"rg-example"},
		Buckets: []ram.Bucket{
			{Name: "images", Region: "cn-hangzhou", API: "s3", Project: "1234567890123456", Container: "images"},
			{Name: "images-north", Region: "cn-beijing", API: "swift", Project: "6f70656e737461636b", Container: "images"},
		},
	}); !reflect.DeepEqual(a, want) {
		t.Errorf("account %+v, want %+v", a, want)
	}

	ci, _ := d.Credential("LTAI5tExampleCI")
	session, ok := d.Credential("STS.ExampleSession")
	if !ok || session.SecurityToken.Reveal() != "replace-me-security-token" || !session.Expires.Equal(time.Date(2026, 12, 1, 0, 0, 0, 0, time.UTC)) {
		t.Errorf("session %+v, %v", session, ok)
	}
	for _, tt := range []struct {
		credential *ram.Credential
		arn        string
		may        string
	}{
		{root, "root", "DeleteImage DescribeImages ImportImage"},
		{ci, "user/ci", "DescribeImages ImportImage"},
		{session, "user/ci", "DescribeImages"},
	} {
		c := &tt.credential.Caller
		var may []string
		for _, action := range []string{"DeleteImage", "DescribeImages", "ImportImage"} {
			if c.May("ecs:"+action, image) {
				may = append(may, action)
			}
		}
		if c.ARN() != "acs:ram::1234567890123456:"+tt.arn || strings.Join(may, " ") != tt.may {
			t.Errorf("%s may %v, want %s", c.ARN(), may, tt.may)
		}
	}
}

func TestSessionsOfRoles(t *testing.T) {
	t.Parallel()
	d := open(t, write(t, `
accounts:
  - id: "1"
    sessions:
      - {id: STS.1, secret: s, token: t, expires: "2026-12-01T00:00:00+08:00", role: reader, enabled: false}
      - {id: STS.2, secret: s, token: t, expires: "2026-12-01T00:00:00Z", policies: [AliyunECSReadOnlyAccess]}
    roles:
      - name: reader
        trust: '{"Version": "1", "Statement": [{"Effect": "Allow", "Action": "sts:AssumeRole", "Principal": {"RAM": "acs:ram::1:root"}}]}'
        policies: [AliyunECSReadOnlyAccess]
`))
	for id, arn := range map[string]string{"STS.1": "acs:ram::1:role/reader", "STS.2": "acs:ram::1:root"} {
		c, _ := d.Credential(id)
		if c.Caller.ARN() != arn || !c.Caller.May("ecs:DescribeImages", image) || c.Caller.May("ecs:ImportImage", image) || c.Disabled != (id == "STS.1") {
			t.Errorf("%s: %s, %+v", id, c.Caller.ARN(), c)
		}
	}
	a, _ := d.Credential("STS.1")
	if account := a.Caller.Account; account.MayImport || !account.Enabled("cn-anywhere") || account.Images != 0 {
		t.Errorf("defaults: %+v", account)
	}
}

func TestPoliciesWrittenOnce(t *testing.T) {
	t.Parallel()
	d := open(t, write(t, `
accounts:
  - id: "1"
    users:
      - {name: a, keys: [{id: a, secret: s}], policies: [&delete {Version: "1", Statement: {Effect: Allow, Action: 'ecs:DeleteImage', Resource: '*'}}]}
      - {name: b, keys: [{id: b, secret: s}], policies: [*delete]}
`))
	for _, id := range []string{"a", "b"} {
		if c, _ := d.Credential(id); !c.Caller.May("ecs:DeleteImage", image) || c.Caller.May("ecs:ImportImage", image) {
			t.Errorf("%s has another policy", id)
		}
	}
}

func TestSecretFiles(t *testing.T) {
	t.Parallel()
	path := write(t, `accounts: [{id: "1", keys: [{id: a, secret_file: a.secret}, {id: b, secret_file: absent.secret}]}]`)
	name := filepath.Join(filepath.Dir(path), "a.secret")
	if err := os.WriteFile(name, []byte("hunter2\n"), 0o640); err != nil {
		t.Fatal(err)
	}
	_, err := Open(path, Options{})
	for _, want := range []string{"key 1 (a): secret_file: others than its owner", "mode 0640", "key 2 (b): secret_file: no such file"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
	if err := os.Chmod(name, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(`accounts: [{id: "1", keys: [{id: a, secret_file: a.secret}, {id: b, secret_file: `+name+`}]}]`), 0o600); err != nil {
		t.Fatal(err)
	}
	d := open(t, path)
	for _, id := range []string{"a", "b"} {
		if c, ok := d.Credential(id); !ok || c.Secret.Reveal() != "hunter2" {
			t.Errorf("%s: %+v, %v", id, c, ok)
		}
	}
}

// Each is wrong in one way. The word hunter2 stands for a secret.
func TestRefuses(t *testing.T) {
	t.Parallel()
	in := func(members string) string { return "accounts: [{id: \"1\", " + members + "}]" }
	key := "{id: k, secret: hunter2}"
	session := "token: hunter2, expires: 2026-12-01T00:00:00Z"
	trust := `trust: {Version: "1", Statement: {Effect: Allow, Action: "sts:AssumeRole", Principal: {Service: ecs.aliyuncs.com}}}`
	for file, want := range map[string]string{
		"":                                       "it is empty",
		"# nothing\n":                            "it is empty",
		"accounts: []":                           "it names no accounts",
		"accounts:":                              "it names no accounts",
		"accounts: hunter2":                      "line 1, column 11: string was used where sequence is expected",
		"accounts: [hunter2]":                    "line 1, column 12: string was used where mapping is expected",
		"accounts: [{id: hunter2":                "line 1, column 12: could not find",
		"acounts: []":                            "line 1, column 1: there is no member of this name",
		"accounts: [{id: \"1\"}]\n---\na: b":     "more than one document",
		in("secret:hunter2"):                     "there is no member of this name",
		"accounts:\n- id: x\n  secret:hunter2\n": "line 3, column 3: non-map value",
		in("keys: [{id: k, secret\": hunter2\"}]"):             "there is no member of this name",
		in("keys: [{id: k, hunter2: x, hunter2: x}]"):          "mapping key (not shown) already defined",
		in("keys: [{id: k, secret: *hunter2}]"):                "could not find alias (not shown)",
		in("quotas: *hunter2"):                                 "could not find alias (not shown)",
		in("users: [{name: u, policies: [*hunter2]}]"):         "could not find alias (not shown)",
		in("keys: [{id: k, secret: 0123}]"):                    "it must be text; put it into quotes",
		in("keys: [{id: k, secret: [hunter2]}]"):               "it must be text; put it into quotes",
		in("keys: [{id: k, secret: {hunter2: x}}]"):            "it must be text; put it into quotes",
		in("keys: [{id: k, secret: !!int hunter2}]"):           "it must be text",
		in("import: hunter2"):                                  "it must be true or false",
		in("quotas: {images: hunter2}"):                        "it must be a whole number",
		in("quotas: {images: -1}"):                             "it must be a whole number",
		in("quotas: {images: 1.5}"):                            "it must be a whole number",
		in("quotas: {snapshots: 99999999999}"):                 "it must be a whole number",
		"accounts: [{id: 1}]":                                  "it must be text",
		"accounts: [{name: x}]":                                "account 1: id is not 1 to 32 digits",
		"accounts: [{id: hunter2}]":                            "account 1: id is not 1 to 32 digits",
		"accounts: [{id: \"1\"}, {id: \"1\", project: b}]":     "account 2 (1): id 1 is there twice",
		"accounts: [{id: \"1\"}, {id: \"2\", project: \"1\"}]": "account 2 (2): project 1 is there twice",
		in("project: ../x"):                                    "account 1 (1): project is not",
		in("name: \"a\\nb\""):                                  "account 1 (1): name is longer",
		in("regions: [cn hangzhou]"):                           "account 1 (1): a region is not",
		in("resource_groups: [example]"):                       "account 1 (1): a resource group is not rg-",
		in("keys: [{secret: hunter2}]"):                        "account 1 (1): key 1: id is not",
		in("keys: [{id: a b, secret: hunter2}]"):               "account 1 (1): key 1: id is not",
		in("keys: [{id: k}]"):                                  "account 1 (1): key 1 (k): it needs either secret or secret_file",
		in("keys: [{id: k, secret: null}]"):                    "account 1 (1): key 1 (k): it needs either secret or secret_file",
		in("keys: [{id: k, secret: hunter2, secret_file: x}]"): "account 1 (1): key 1 (k): it needs either secret or secret_file",
		in("keys: [{id: k, secret: \"hunter2 \"}]"):            "account 1 (1): key 1 (k): secret is not printable",
		in("keys: [{id: k, secret: \"hunter2\\n\"}]"):          "account 1 (1): key 1 (k): secret is not printable",
		in("keys: [{id: k, secret_file: hunter2}]"):            "account 1 (1): key 1 (k): secret_file: no such file",
		in("keys: [{id: k, secret_file: .}]"):                  "it is no regular file",
		in("keys: [" + key + ", " + key + "]"):                 "account 1 (1): key 2 (k): key k is there twice",
		in("keys: [" + key + "]")[:len(in("keys: ["+key+"]"))-1] + ", {id: \"2\", users: [{name: u, keys: [" + key + "]}]}]": "account 2 (2): user 1 (u): key 1 (k): key k is there twice",
		in("keys: [" + key + "], sessions: [{id: k, secret: hunter2, " + session + "}]"):                                     "account 1 (1): session 1 (k): key k is there twice",
		in("users: [{name: a b}]"):                                                                    "account 1 (1): user 1: name is not",
		in("users: [{name: u}, {name: u}]"):                                                           "account 1 (1): user 2 (u): user u is there twice",
		in("users: [{name: u, policies: [Nothing]}]"):                                                 `user 1 (u): policy 1: there is no system policy "Nothing"`,
		in("users: [{name: u, policies: [AliyunECSFullAccess, {Version: 1}]}]"):                       "user 1 (u): policy 2: parse policy: the Version",
		in("users: [{name: u, policies: ['{\"Version\": \"2\"}']}]"):                                  "user 1 (u): policy 1: parse policy: the Version",
		in("users: [{name: u, policies: [{Version: .nan}]}]"):                                         "no equal in JSON",
		in("users: [{name: u, policies: [" + trust[len("trust: "):] + "]}]"):                          "user 1 (u): policy 1: a Principal belongs into the trust",
		in("sessions: [{id: s, secret: hunter2, expires: 2026-12-01T00:00:00Z}]"):                     "session 1 (s): token is not",
		in("sessions: [{id: s, secret: hunter2, token: hunter2}]"):                                    "session 1 (s): expires is not of the form",
		in("sessions: [{id: s, secret: hunter2, token: t, expires: hunter2}]"):                        "session 1 (s): expires is not of the form",
		in("sessions: [{id: s, secret: hunter2, role: r, user: u, " + session + "}]"):                 "session 1 (s): it is of a user or of a role",
		in("sessions: [{id: s, secret: hunter2, role: r, " + session + "}]"):                          "session 1 (s): the account has no such user or role",
		in("sessions: [{id: s, secret: hunter2, user: u, " + session + "}]"):                          "session 1 (s): the account has no such user or role",
		in("sessions: [{id: s, secret: hunter2, policies: [X], " + session + "}]"):                    "session 1 (s): policy 1: there is no system policy",
		in("buckets: [{name: im, region: r}]"):                                                        "account 1 (1): bucket 1: name is not 3 to 63",
		in("buckets: [{name: Images, region: r}]"):                                                    "account 1 (1): bucket 1: name is not",
		in("buckets: [{name: -images, region: r}]"):                                                   "account 1 (1): bucket 1: name is not",
		in("buckets: [{name: images.x, region: r}]"):                                                  "account 1 (1): bucket 1: name is not",
		in("buckets: [{name: images}]"):                                                               "account 1 (1): bucket 1 (images): region is not",
		in("buckets: [{name: images, region: r, api: oss}]"):                                          "account 1 (1): bucket 1 (images): api is not s3 or swift",
		in("buckets: [{name: images, region: r, project: a/b}]"):                                      "account 1 (1): bucket 1 (images): project is not",
		in("buckets: [{name: images, region: r, container: ..}]"):                                     "account 1 (1): bucket 1 (images): container is not",
		in("buckets: [{name: images, region: r}]}, {id: \"2\", buckets: [{name: images, region: q}]"): "account 2 (2): bucket 1 (images): bucket images is there twice",
		in("roles: [{name: a/b, " + trust + "}]"):                                                     "account 1 (1): role 1: name is not",
		in("roles: [{name: r}]"):                                                                      "account 1 (1): role 1 (r): trust is missing",
		in("roles: [{name: r, trust: {}}]"):                                                           "account 1 (1): role 1 (r): trust: parse policy",
		in("roles: [{name: r, trust: AdministratorAccess}]"):                                          "account 1 (1): role 1 (r): trust: its statements need a Principal",
		in("roles: [{name: r, " + trust + "}, {name: r, " + trust + "}]"):                             "account 1 (1): role 2 (r): role r is there twice",
		in("roles: [{name: r, " + trust + ", policies: [X]}]"):                                        "account 1 (1): role 1 (r): policy 1: there is no system policy",
	} {
		path := write(t, file)
		d, err := Open(path, Options{})
		if err == nil || d != nil || !strings.HasPrefix(err.Error(), "read accounts: "+path+": ") || !strings.Contains(err.Error(), want) {
			t.Errorf("%s\n\tgot  %v\n\twant %s", file, err, want)
		}
		if err != nil && strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s\n\tthe error shows a secret: %v", file, err)
		}
	}
}

func TestAllProblemsAreTold(t *testing.T) {
	t.Parallel()
	_, err := Open(write(t, `accounts: [{id: x, keys: [{id: k}], buckets: [{name: a}]}, {id: "2", project: "%d/"}]`), Options{})
	for _, want := range []string{"account 1: id", "account 1: key 1 (k)", "account 1: bucket 1: name", "account 1: bucket 1: region", "account 2 (2): project"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not told: %v", want, err)
		}
	}
}

func TestNothingPrintsSecrets(t *testing.T) {
	t.Parallel()
	d := open(t, write(t, `accounts: [{id: "1", keys: [{id: k, secret: hunter2}],
		sessions: [{id: s, secret: hunter2, token: hunter3, expires: 2026-12-01T00:00:00Z}]}]`))
	k, _ := d.Credential("k")
	s, _ := d.Credential("s")
	all := []any{d, *k, *s, *k.Caller.Account, d.Summary(), d.current.Load()}
	for _, c := range slices.Collect(maps.Values(d.current.Load().credentials)) {
		all = append(all, c)
	}
	doc, err := decode([]byte(`accounts: [{id: "1", keys: [{id: k, secret: hunter2}]}]`))
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range append(all, doc, *doc) {
		if text := fmt.Sprintf("%v %+v %#v", v, v, v); strings.Contains(text, "hunter") {
			t.Errorf("%T shows %s", v, text)
		}
	}
}

func TestStandalone(t *testing.T) {
	t.Parallel()
	s := Standalone{
		AccountID: "1000000000000001", Project: "local", KeyID: "LTAIlocal", Secret: secret.New(`se"cr\et:#{}`),
		Regions: []string{"cn-hangzhou", "cn-beijing"},
		Bucket:  ram.Bucket{Name: "images", Region: "cn-hangzhou", API: "swift", Container: "images-local"},
	}
	first, err := s.File()
	if err != nil {
		t.Fatal(err)
	}
	if again, err := s.File(); err != nil || string(again) != string(first) {
		t.Errorf("another file, or %v", err)
	}
	d := open(t, write(t, string(first)))
	c, ok := d.Credential("LTAIlocal")
	if !ok || c.Secret.Reveal() != s.Secret.Reveal() || c.Caller.ARN() != "acs:ram::1000000000000001:root" {
		t.Fatalf("key %+v, %v", c, ok)
	}
	a := c.Caller.Account
	if b, ok := a.Bucket("images"); !ok || *b != (ram.Bucket{Name: "images", Region: "cn-hangzhou", API: "swift", Project: "local", Container: "images-local"}) {
		t.Errorf("bucket %+v, %v", b, ok)
	}
	role, ok := a.Role("AliyunECSImageImportDefaultRole")
	if !ok || !role.TrustedBy("ecs.aliyuncs.com") || !role.May("oss:GetObject", "*") || !role.May("oss:GetBucketLocation", "*") {
		t.Errorf("role %+v, %v", role, ok)
	}
	if !a.MayImport || !slices.Equal(a.Regions, s.Regions) || a.Project != "local" {
		t.Errorf("account %+v", a)
	}

	s.Secret = secret.New("hunter 2")
	if b, err := s.File(); err == nil || b != nil || strings.Contains(err.Error(), "hunter") {
		t.Errorf("a secret that no signature could be made with: %v", err)
	}
}
