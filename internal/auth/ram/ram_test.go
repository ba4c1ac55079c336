package ram

import (
	"fmt"
	"strings"
	"testing"

	"vmimport/internal/secret"
)

func TestAccount(t *testing.T) {
	t.Parallel()
	a := &Account{
		ID: "1", Regions: []string{"cn-hangzhou"}, ResourceGroups: []string{"rg-1"},
		Roles: []Role{{Name: "Reader"}}, Buckets: []Bucket{{Name: "images", Region: "cn-hangzhou"}},
	}
	if r, ok := a.Role("Reader"); !ok || r != &a.Roles[0] {
		t.Errorf("role %v, %v", r, ok)
	}
	if r, ok := a.Role("reader"); ok || r != nil {
		t.Errorf("names of roles are exact; got %v", r)
	}
	if b, ok := a.Bucket("images"); !ok || b != &a.Buckets[0] {
		t.Errorf("bucket %v, %v", b, ok)
	}
	if b, ok := a.Bucket("image"); ok || b != nil {
		t.Errorf("bucket %v", b)
	}
	if !a.HasResourceGroup("rg-1") || a.HasResourceGroup("") {
		t.Error("resource groups")
	}
	if !a.Enabled("cn-hangzhou") || a.Enabled("cn-beijing") || a.Enabled("") || !(&Account{}).Enabled("cn-beijing") {
		t.Error("regions")
	}
}

func TestNothingPrintsSecrets(t *testing.T) {
	t.Parallel()
	c := Credential{KeyID: "k", Secret: secret.New("hunter2"), SecurityToken: secret.New("hunter3"), Caller: Caller{Account: &Account{ID: "1"}}}
	if s := fmt.Sprintf("%v %+v %#v %+v", c, c, c, &c); strings.Contains(s, "hunter") {
		t.Error(s)
	}
}
