// Package secret holds text that must not be printed, logged or marshalled.
package secret

import (
	"fmt"
	"os"
	"strings"
)

const redacted = "[redacted]"

// Text is a secret string. Every way of printing or marshalling it gives
// "[redacted]"; only Reveal gives the text. The zero value is "no secret".
type Text struct{ s string }

// New returns s as a secret.
func New(s string) Text { return Text{s} }

// FromFile reads a secret from a file and drops white space around it.
func FromFile(path string) (Text, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return Text{}, fmt.Errorf("read secret: %w", err)
	}
	return Text{strings.TrimSpace(string(b))}, nil
}

// Reveal returns the secret itself.
func (t Text) Reveal() string { return t.s }

// IsZero reports whether there is no secret.
func (t Text) IsZero() bool { return t.s == "" }

func (t Text) String() string {
	if t.s == "" {
		return ""
	}
	return redacted
}

// GoString keeps %#v from printing the field.
func (t Text) GoString() string { return fmt.Sprintf("secret.Text(%q)", t.String()) }

// MarshalText implements encoding.TextMarshaler, and so JSON and YAML.
func (t Text) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (t *Text) UnmarshalText(b []byte) error {
	t.s = string(b)
	return nil
}
