package aliyuntest

import (
	"os/exec"
	"strings"
	"testing"
)

// The vendor's SDK is for these tests only: no program has any of it.
func TestNoProgramHasTheSDK(t *testing.T) {
	t.Parallel()
	out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", "vmimport/cmd/...").CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	packages := strings.Fields(string(out))
	if len(packages) < 100 {
		t.Fatalf("go list names only %q", packages)
	}
	for _, p := range packages {
		if strings.HasPrefix(p, "github.com/aliyun/") {
			t.Errorf("a program has %s", p)
		}
	}
}
