package ramfile

import (
	"bytes"
	"fmt"
	"strings"

	"vmimport/internal/auth/ram"
	"vmimport/internal/secret"
)

// Standalone is the one account of an installation that has no other: with one
// key, one bucket, and the role that importing needs.
type Standalone struct {
	AccountID string
	Project   string // default AccountID
	KeyID     string
	Secret    secret.Text
	Regions   []string   // empty: all
	Bucket    ram.Bucket // fields but Name and Region have the defaults of the file
}

// File returns the file that says so, always the same bytes, secret included.
// It fails if Open would.
func (s Standalone) File() ([]byte, error) {
	var b bytes.Buffer
	line := func(indent int, key, value string) {
		if value != "" {
			fmt.Fprintf(&b, "%*s%s: %q\n", indent, "", key, value)
		}
	}
	b.WriteString("# Accounts of the ECS ImportImage API. Read anew when it changes.\naccounts:\n  -\n")
	line(4, "id", s.AccountID)
	line(4, "name", "standalone")
	line(4, "project", s.Project)
	b.WriteString("    import: true\n")
	if len(s.Regions) > 0 {
		b.WriteString("    regions:\n")
	}
	for _, r := range s.Regions {
		fmt.Fprintf(&b, "      - %q\n", r)
	}
	b.WriteString("    keys:\n      -\n")
	line(8, "id", s.KeyID)
	line(8, "secret", s.Secret.Reveal())
	b.WriteString("    buckets:\n      -\n")
	line(8, "name", s.Bucket.Name)
	line(8, "region", s.Bucket.Region)
	line(8, "api", s.Bucket.API)
	line(8, "project", s.Bucket.Project)
	line(8, "container", s.Bucket.Container)
	b.WriteString(strings.TrimPrefix(importRole, "\n"))
	if _, err := parse(b.Bytes(), "", &files{}); err != nil {
		return nil, fmt.Errorf("write accounts: %w", err)
	}
	return b.Bytes(), nil
}

// importRole is the role that imports read buckets as.
const importRole = `
    roles:
      - name: AliyunECSImageImportDefaultRole
        trust:
          Version: "1"
          Statement:
            - Effect: Allow
              Action: sts:AssumeRole
              Principal: {Service: [ecs.aliyuncs.com]}
        policies: [AliyunECSImageImportRolePolicy]
`
