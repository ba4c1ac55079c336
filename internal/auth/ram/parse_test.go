package ram

import (
	"strings"
	"testing"
)

func TestParsePolicyRefuses(t *testing.T) {
	t.Parallel()
	one := func(statement string) string { return `{"Version": "1", "Statement": ` + statement + `}` }
	for document, want := range map[string]string{
		``:                           "unexpected EOF",
		`{`:                          "unexpected EOF",
		`{"Version": "1",}`:          "parse policy",
		`{"Version" "1"}`:            "parse policy",
		"\"\xff\"":                   "no UTF-8",
		`[]`:                         "it is no object",
		`null`:                       "it is no object",
		one(allowAll) + ` {}`:        "something follows",
		one(allowAll) + `x`:          "something follows",
		`{"Statement": []}`:          "Version",
		`{"Version": 1}`:             "Version",
		`{"Version": "2"}`:           "Version",
		`{"Version": "1"}`:           "statement 1: it is no object",
		`{"version": "1"}`:           `unknown element "version"`,
		one(`[]`):                    "Statement is empty",
		one(`[` + allowAll + `, 1]`): "statement 2: it is no object",
		`{"Version": "1", "Version": "1", "Statement": {}}`:                                      `"Version" is given twice`,
		one(`{"Effect": "Deny", "Effect": "Allow"}`):                                             `"Effect" is given twice`,
		one(`{"Effect": "Deny", "\u0045ffect": "Allow"}`):                                        `"Effect" is given twice`,
		one(`{"Action": "*", "Resource": "*"}`):                                                  "Effect is neither",
		one(`{"Effect": "allow", "Action": "*", "Resource": "*"}`):                               "Effect is neither",
		one(`{"Effect": ["Allow"]}`):                                                             "Effect is neither",
		one(`{"Effect": "Allow", "Resource": "*"}`):                                              "it needs either Action or NotAction",
		one(`{"Effect": "Allow", "Action": "*", "NotAction": "*", "Resource": "*"}`):             "it needs either Action or NotAction",
		one(`{"Effect": "Allow", "Action": "*"}`):                                                "it needs either Resource or NotResource",
		one(`{"Effect": "Allow", "Action": "*", "Resource": "*", "NotResource": "*"}`):           "it needs either Resource or NotResource",
		one(`{"Effect": "Allow", "action": "*", "Resource": "*"}`):                               `unknown element "action"`,
		one(`{"Effect": "Allow", "Actions": "*", "Resource": "*"}`):                              `unknown element "Actions"`,
		one(`{"Effect": "Allow", "Action": [], "Resource": "*"}`):                                "Action is empty",
		one(`{"Effect": "Allow", "Action": "", "Resource": "*"}`):                                "Action is neither",
		one(`{"Effect": "Allow", "Action": ["*", 1], "Resource": "*"}`):                          "Action is neither",
		one(`{"Effect": "Allow", "Action": [["*"]], "Resource": "*"}`):                           "Action is neither",
		one(`{"Effect": "Allow", "Action": null, "Resource": "*"}`):                              "Action is neither",
		one(`{"Effect": "Allow", "NotAction": "ecs", "Resource": "*"}`):                          `NotAction: "ecs" is not`,
		one(`{"Effect": "Allow", "Action": "ecs:", "Resource": "*"}`):                            "service:action",
		one(`{"Effect": "Allow", "Action": ":x", "Resource": "*"}`):                              "service:action",
		one(`{"Effect": "Allow", "Action": " ecs:x", "Resource": "*"}`):                          "service:action",
		one(`{"Effect": "Allow", "Action": "ecs:${x}", "Resource": "*"}`):                        "service:action",
		one(`{"Effect": "Allow", "Action": "*", "Resource": "images"}`):                          `Resource: "images" is not`,
		one(`{"Effect": "Allow", "Action": "*", "Resource": "acs:oss:*:images"}`):                "acs:service",
		one(`{"Effect": "Allow", "Action": "*", "Resource": "arn:oss:*:*:images"}`):              "acs:service",
		one(`{"Effect": "Allow", "Action": "*", "Resource": "acs:oss:*:*:"}`):                    "acs:service",
		one(`{"Effect": "Allow", "Action": "*", "Resource": "*", "Condition": []}`):              "Condition is no object",
		one(`{"Effect": "Allow", "Action": "*", "Resource": "*", "Condition": null}`):            "Condition is no object",
		one(`{"Effect": "Allow", "Action": "*", "Principal": "*"}`):                              "Principal: it is no object",
		one(`{"Effect": "Allow", "Action": "*", "Principal": {}}`):                               "Principal is empty",
		one(`{"Effect": "Allow", "Action": "*", "Principal": {"Services": "x"}}`):                `Principal: unknown element "Services"`,
		one(`{"Effect": "Allow", "Action": "*", "Principal": {"Service": []}}`):                  "Principal: Service is empty",
		one(`{"Effect": "Allow", "Action": "*", "Principal": {"RAM": 1}}`):                       "Principal: RAM is neither",
		one(`{"Effect": "Allow", "Action": "*", "Principal": {"Service": "*"}}`):                 "ecs.aliyuncs.com",
		one(`{"Effect": "Allow", "Action": "*", "Principal": {"Service": "ECS.x.com"}}`):         "ecs.aliyuncs.com",
		one(`{"Effect": "Allow", "Action": "*", "Principal": {"RAM": "*"}, "Resource": null}`):   "no Resource",
		one(`{"Effect": "Allow", "Action": "*", "NotPrincipal": {"RAM": "*"}}`):                  `unknown element "NotPrincipal"`,
		one(`[` + allowAll + `, {"Effect": "Allow", "Action": "*", "Principal": {"RAM": "*"}}]`): "some have a Principal",
		one(strings.Repeat("[", 9) + strings.Repeat("]", 9)):                                     "nested too deeply",
		one(strings.Repeat("[", 9000)):                                                           "nested too deeply",
		one(allowAll) + strings.Repeat(" ", MaxPolicyBytes):                                      "longer than",
	} {
		p, err := ParsePolicy([]byte(document))
		if err == nil || p != nil || !strings.HasPrefix(err.Error(), "parse policy: ") || !strings.Contains(err.Error(), want) {
			t.Errorf("%.120s: got %v, want %q", document, err, want)
		}
	}
}

// What RAM's own documents look like.
func TestParsePolicyAccepts(t *testing.T) {
	t.Parallel()
	for _, document := range []string{
		`{"Version": "1", "Statement": [{"Effect": "Allow", "Action": ["oss:GetObject"], "Resource": "*",
			"Condition": {"StringEquals": {"oss:BucketTag/allow": ["true", "yes"]}, "IpAddress": {"acs:SourceIp": "192.0.2.0/24"}}}]}`,
		`{"Statement": [{"Action": "sts:AssumeRole", "Effect": "Allow", "Principal": {"Service": ["1@ecs.aliyuncs.com"]}}], "Version": "1"}`,
		`{"Version": "1", "Statement": [{"Effect": "Allow", "Action": "yundun-sas:*", "Resource": "acs:ram::*:role/*"}]}`,
	} {
		mustParse(t, document)
	}
}
