package secret_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"

	"vmimport/internal/secret"
)

func TestNothingPrintsIt(t *testing.T) {
	t.Parallel()
	const word = "hunter2"
	v := struct {
		Token secret.Text `json:"token" yaml:"token"`
		Ptr   *secret.Text
	}{secret.New(word), new(secret.New(word))}
	j, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	y, err := yaml.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{
		string(j), string(y), v.Token.String(),
		fmt.Sprint(v), fmt.Sprintf("%v %+v %#v %s %q", v, v, v, v.Token, v.Token), fmt.Errorf("with %v", v.Token).Error(),
	} {
		if strings.Contains(s, word) {
			t.Errorf("shown in %s", s)
		}
	}
	if !strings.Contains(string(j), "[redacted]") || v.Token.Reveal() != word {
		t.Errorf("%s, reveals %q", j, v.Token.Reveal())
	}
}

func TestNoSecret(t *testing.T) {
	t.Parallel()
	var none secret.Text
	if !none.IsZero() || none.String() != "" || secret.New("x").IsZero() {
		t.Error("the zero value is no secret, and prints as nothing")
	}
}

func TestReading(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "s")
	if err := os.WriteFile(path, []byte("  abc\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if s, err := secret.FromFile(path); err != nil || s.Reveal() != "abc" {
		t.Errorf("from file: %q, %v", s.Reveal(), err)
	}
	if _, err := secret.FromFile(path + "x"); err == nil {
		t.Error("a missing file gave a secret")
	}
	var v struct{ T secret.Text }
	if err := json.Unmarshal([]byte(`{"T":"abc"}`), &v); err != nil || v.T.Reveal() != "abc" {
		t.Errorf("from JSON: %q, %v", v.T.Reveal(), err)
	}
}
