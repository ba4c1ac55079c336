package ram

import (
	"slices"
	"strings"
	"testing"
)

const (
	disk  = "acs:oss:cn-hangzhou:1:images/disk.raw"
	image = "acs:ecs:cn-hangzhou:1:image/*"
)

func mustParse(t testing.TB, document string) *Policy {
	t.Helper()
	p, err := ParsePolicy([]byte(document))
	if err != nil {
		t.Fatalf("%s: %v", document, err)
	}
	return p
}

// holding returns a user with policies of one statement each.
func holding(t testing.TB, statements ...string) *Caller {
	t.Helper()
	c := &Caller{Account: &Account{ID: "1"}, User: "u"}
	for _, s := range statements {
		c.Policies = append(c.Policies, mustParse(t, `{"Version": "1", "Statement": `+s+`}`))
	}
	return c
}

const allowAll = `{"Effect": "Allow", "Action": "*", "Resource": "*"}`

func TestMay(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name             string
		statements       []string
		action, resource string
		want             bool
	}{
		{"no policy", nil, "ecs:ImportImage", image, false},
		{"all", []string{allowAll}, "ecs:ImportImage", image, true},
		{"a list of statements", []string{`[` + allowAll + `]`}, "ecs:ImportImage", image, true},
		{"one action", []string{`{"Effect": "Allow", "Action": "ecs:ImportImage", "Resource": "*"}`}, "ecs:ImportImage", image, true},
		{"another action", []string{`{"Effect": "Allow", "Action": "ecs:ImportImage", "Resource": "*"}`}, "ecs:DeleteImage", image, false},
		{"a longer action", []string{`{"Effect": "Allow", "Action": "ecs:Import", "Resource": "*"}`}, "ecs:ImportImage", image, false},
		{"one of several actions", []string{`{"Effect": "Allow", "Action": ["ecs:CopyImage", "ecs:ImportImage"], "Resource": "*"}`}, "ecs:ImportImage", image, true},
		{"actions in another case", []string{`{"Effect": "Allow", "Action": "ECS:importimage", "Resource": "*"}`}, "ecs:ImportImage", image, true},
		{"wildcard of actions", []string{`{"Effect": "Allow", "Action": "ecs:Describe*", "Resource": "*"}`}, "ecs:DescribeImages", image, true},
		{"wildcard of one character", []string{`{"Effect": "Allow", "Action": "ecs:?mportImage", "Resource": "*"}`}, "ecs:ImportImage", image, true},
		{"not this action", []string{`{"Effect": "Allow", "NotAction": "ecs:Delete*", "Resource": "*"}`}, "ecs:DeleteImage", image, false},
		{"not that action", []string{`{"Effect": "Allow", "NotAction": "ecs:Delete*", "Resource": "*"}`}, "ecs:ImportImage", image, true},

		{"resource", []string{`{"Effect": "Allow", "Action": "*", "Resource": "acs:oss:*:*:images/*"}`}, "oss:GetObject", disk, true},
		{"region as OSS has it", []string{`{"Effect": "Allow", "Action": "*", "Resource": "acs:oss:oss-cn-hangzhou:*:images/*"}`}, "oss:GetObject", disk, true},
		{"another region as OSS has it", []string{`{"Effect": "Allow", "Action": "*", "Resource": "acs:oss:oss-cn-beijing:*:images/*"}`}, "oss:GetObject", disk, false},
		{"resource of another bucket", []string{`{"Effect": "Allow", "Action": "*", "Resource": "acs:oss:*:*:other/*"}`}, "oss:GetObject", disk, false},
		{"resource of another account", []string{`{"Effect": "Allow", "Action": "*", "Resource": "acs:oss:*:2:images/*"}`}, "oss:GetObject", disk, false},
		{"bucket is not its objects", []string{`{"Effect": "Allow", "Action": "*", "Resource": "acs:oss:*:*:images/*"}`}, "oss:GetBucketLocation", "acs:oss:cn-hangzhou:1:images", false},
		{"one of several resources", []string{`{"Effect": "Allow", "Action": "*", "Resource": ["acs:oss:*:*:a", "acs:oss:*:*:images/*"]}`}, "oss:GetObject", disk, true},
		{"resources in another case", []string{`{"Effect": "Allow", "Action": "*", "Resource": "acs:oss:*:*:images/Disk.raw"}`}, "oss:GetObject", disk, false},
		{"not this resource", []string{`{"Effect": "Allow", "Action": "*", "NotResource": "acs:oss:*:*:images/*"}`}, "oss:GetObject", disk, false},
		{"not that resource", []string{`{"Effect": "Allow", "Action": "*", "NotResource": "acs:oss:*:*:other/*"}`}, "oss:GetObject", disk, true},
		{"colons in a key", []string{`{"Effect": "Allow", "Action": "*", "Resource": "acs:oss:*:*:images/*"}`}, "oss:GetObject", "acs:oss:cn-hangzhou:1:images/a:b:c", true},
		{"a key that looks like another bucket", []string{`{"Effect": "Allow", "Action": "*", "Resource": "acs:oss:*:*:public/*"}`},
			"oss:GetObject", "acs:oss:cn-hangzhou:1:private/x:1:public/y", false},
		{"no ARN", []string{`{"Effect": "Allow", "Action": "*", "Resource": "acs:oss:*:*:*"}`}, "oss:GetObject", "images", false},

		{"denial in another policy", []string{allowAll, `{"Effect": "Deny", "Action": "ecs:ImportImage", "Resource": "*"}`}, "ecs:ImportImage", image, false},
		{"denial before", []string{`{"Effect": "Deny", "Action": "ecs:ImportImage", "Resource": "*"}`, allowAll}, "ecs:ImportImage", image, false},
		{"denial in the same policy", []string{`[` + allowAll + `, {"Effect": "Deny", "NotAction": "ecs:Describe*", "Resource": "*"}]`}, "ecs:ImportImage", image, false},
		{"denial of others", []string{allowAll, `{"Effect": "Deny", "Action": "ecs:Delete*", "Resource": "*"}`}, "ecs:ImportImage", image, true},
		{"denial of other resources", []string{allowAll, `{"Effect": "Deny", "Action": "*", "Resource": "acs:oss:*:*:other/*"}`}, "oss:GetObject", disk, true},
		{"denial outside of resources", []string{allowAll, `{"Effect": "Deny", "Action": "*", "NotResource": "acs:oss:*:*:other/*"}`}, "oss:GetObject", disk, false},

		{"condition", []string{`{"Effect": "Allow", "Action": "*", "Resource": "*", "Condition": {}}`}, "ecs:ImportImage", image, false},
		{"condition of a denial", []string{allowAll, `{"Effect": "Deny", "Action": "ecs:*", "Resource": "*", "Condition": {"Bool": {"acs:SecureTransport": "false"}}}`},
			"ecs:ImportImage", image, false},
		{"condition of a denial of others", []string{allowAll, `{"Effect": "Deny", "Action": "oss:*", "Resource": "*", "Condition": {}}`}, "ecs:ImportImage", image, true},
		{"variable", []string{`{"Effect": "Allow", "Action": "*", "Resource": "acs:oss:*:*:${x}/*"}`}, "oss:GetObject", "acs:oss:r:1:${x}/k", false},
		{"variable of a denial", []string{allowAll, `{"Effect": "Deny", "Action": "*", "Resource": "acs:oss:*:*:${x}/*"}`}, "oss:GetObject", disk, false},
		{"variable of a denial of others", []string{allowAll, `{"Effect": "Deny", "Action": "*", "Resource": "acs:ecs:*:*:${x}/*"}`}, "oss:GetObject", disk, true},
		{"variable excepted", []string{`{"Effect": "Allow", "Action": "*", "NotResource": "acs:oss:*:*:${x}/*"}`}, "oss:GetObject", disk, false},
		{"empty part", []string{`{"Effect": "Allow", "Action": "*", "Resource": "acs:oss::1:images/*"}`}, "oss:GetObject", disk, false},
		{"empty part of a denial", []string{allowAll, `{"Effect": "Deny", "Action": "*", "Resource": "acs:oss::1:images/*"}`}, "oss:GetObject", disk, false},
		{"empty part of both", []string{`{"Effect": "Allow", "Action": "*", "Resource": "acs:ram::1:role/*"}`}, "ram:PassRole", "acs:ram::1:role/x", true},

		{"a trust policy", []string{`{"Effect": "Allow", "Action": "*", "Principal": {"Service": "ecs.aliyuncs.com"}}`}, "sts:AssumeRole", "*", false},
		{"a trust policy that denies", []string{allowAll, `{"Effect": "Deny", "Action": "*", "Principal": {"RAM": "acs:ram::1:root"}}`}, "ecs:ImportImage", image, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			c := holding(t, tt.statements...)
			if got := c.May(tt.action, tt.resource); got != tt.want {
				t.Errorf("user: %v", got)
			}
			if got := (&Role{Policies: c.Policies}).May(tt.action, tt.resource); got != tt.want {
				t.Errorf("role: %v", got)
			}
		})
	}
}

func TestCallers(t *testing.T) {
	t.Parallel()
	account := &Account{ID: "1"}
	full, readOnly := []*Policy{system["AliyunECSFullAccess"]}, []*Policy{system["AliyunECSReadOnlyAccess"]}
	for _, tt := range []struct {
		arn              string
		caller           Caller
		write, elsewhere bool
	}{
		{"acs:ram::1:root", Caller{}, true, true},
		{"acs:ram::1:root", Caller{Session: readOnly}, false, false},
		{"acs:ram::1:user/u", Caller{User: "u"}, false, false},
		{"acs:ram::1:user/u", Caller{User: "u", Policies: full}, true, false},
		{"acs:ram::1:role/r", Caller{Role: "r"}, false, false},
		{"acs:ram::1:role/r", Caller{Role: "r", Policies: full}, true, false},
		{"acs:ram::1:role/r", Caller{Role: "r", Policies: full, Session: readOnly}, false, false},
		{"acs:ram::1:role/r", Caller{Role: "r", Policies: readOnly, Session: full}, false, false},
	} {
		tt.caller.Account = account
		c := &tt.caller
		if c.ARN() != tt.arn || c.May("ecs:ImportImage", image) != tt.write || c.May("oss:GetObject", disk) != tt.elsewhere {
			t.Errorf("%s: %+v", c.ARN(), c)
		}
	}
}

func TestTrustedBy(t *testing.T) {
	t.Parallel()
	const (
		ecs     = "ecs.aliyuncs.com"
		allow   = `{"Effect": "Allow", "Action": "sts:AssumeRole", "Principal": {"Service": ["ecs.aliyuncs.com"]}}`
		denyAll = `{"Effect": "Deny", "Action": "sts:*", "Principal": {"Service": ["ecs.aliyuncs.com"]}}`
	)
	for _, tt := range []struct {
		statement string
		want      bool
	}{
		{allow, true},
		{`{"Effect": "Allow", "Action": ["sts:AssumeRole"], "Principal": {"Service": "ecs.aliyuncs.com"}}`, true},
		{`{"Effect": "Allow", "Action": "sts:AssumeRole", "Principal": {"RAM": ["acs:ram::1:root"], "Service": ["rds.aliyuncs.com", "ecs.aliyuncs.com"]}}`, true},
		{`{"Effect": "Allow", "Action": "sts:AssumeRole", "Principal": {"Service": ["rds.aliyuncs.com"]}}`, false},
		{`{"Effect": "Allow", "Action": "sts:AssumeRole", "Principal": {"RAM": ["acs:ram::1:root"]}}`, false},
		{`{"Effect": "Allow", "Action": "sts:AssumeRole", "Principal": {"Federated": ["acs:ram::1:saml-provider/x"]}}`, false},
		{`{"Effect": "Allow", "Action": "sts:GetCallerIdentity", "Principal": {"Service": ["ecs.aliyuncs.com"]}}`, false},
		{`{"Effect": "Allow", "Action": "sts:AssumeRole", "Principal": {"Service": ["ecs.aliyuncs.com"]}, "Condition": {"StringEquals": {"sts:ExternalId": "x"}}}`, false},
		{`[` + allow + `, ` + denyAll + `]`, false},
		{`[` + allow + `, {"Effect": "Deny", "Action": "*", "Principal": {"RAM": "acs:ram::1:user/u"}}]`, true},
		{`[` + allow + `, {"Effect": "Deny", "Action": "*", "Principal": {"Service": "ecs.aliyuncs.com"}, "Condition": {}}]`, false},
		{allowAll, false},
	} {
		r := &Role{Trust: mustParse(t, `{"Version": "1", "Statement": `+tt.statement+`}`)}
		if got := r.TrustedBy(ecs); got != tt.want {
			t.Errorf("%s: %v", tt.statement, got)
		}
		if r.Trust.IsTrust() != strings.Contains(tt.statement, "Principal") {
			t.Errorf("%s: IsTrust is %v", tt.statement, r.Trust.IsTrust())
		}
		if r.TrustedBy("") || r.TrustedBy("fc.aliyuncs.com") {
			t.Errorf("%s: trusts others", tt.statement)
		}
	}
	if (&Role{}).TrustedBy(ecs) {
		t.Error("a role without a trust policy is trusted")
	}
}

func TestSystem(t *testing.T) {
	t.Parallel()
	actions := []string{"ecs:DescribeImages", "ecs:ImportImage", "oss:GetObject", "oss:GetBucketLocation", "oss:PutObject", "ram:CreateUser"}
	for name, want := range map[string][]string{
		"AdministratorAccess":            actions,
		"AliyunECSFullAccess":            actions[:2],
		"AliyunECSReadOnlyAccess":        actions[:1],
		"AliyunECSImageImportRolePolicy": actions[2:4],
	} {
		p, ok := System(name)
		if !ok {
			t.Fatalf("there is no %s", name)
		}
		r := Role{Policies: []*Policy{p}}
		may := slices.DeleteFunc(slices.Clone(actions), func(a string) bool { return !r.May(a, disk) })
		if !slices.Equal(may, want) {
			t.Errorf("%s permits %v", name, may)
		}
	}
	if _, ok := System("administratoraccess"); ok || len(system) != 4 {
		t.Error("there are others")
	}
}
