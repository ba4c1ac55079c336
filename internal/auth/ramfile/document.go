package ramfile

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"reflect"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"

	"vmimport/internal/auth/ram"
	"vmimport/internal/secret"
)

// document is the file as it is written.
type document struct {
	Accounts []account `yaml:"accounts"`
}

type account struct {
	ID      text   `yaml:"id"`
	Name    text   `yaml:"name"`
	Project text   `yaml:"project"`
	Import  bool   `yaml:"import"`
	Regions []text `yaml:"regions"`
	Quotas  struct {
		Images    count `yaml:"images"`
		Snapshots count `yaml:"snapshots"`
	} `yaml:"quotas"`
	Keys           []key     `yaml:"keys"`
	Users          []user    `yaml:"users"`
	Sessions       []session `yaml:"sessions"`
	ResourceGroups []text    `yaml:"resource_groups"`
	Buckets        []bucket  `yaml:"buckets"`
	Roles          []role    `yaml:"roles"`
}

type key struct {
	ID         text   `yaml:"id"`
	Secret     hidden `yaml:"secret"`
	SecretFile text   `yaml:"secret_file"`
	Enabled    *bool  `yaml:"enabled"`
}

type user struct {
	Name     text     `yaml:"name"`
	Keys     []key    `yaml:"keys"`
	Policies []policy `yaml:"policies"`
}

type session struct {
	Key      key      `yaml:",inline"`
	Token    hidden   `yaml:"token"`
	Expires  text     `yaml:"expires"`
	Role     text     `yaml:"role"`
	User     text     `yaml:"user"`
	Policies []policy `yaml:"policies"`
}

type bucket struct {
	Name      text `yaml:"name"`
	Region    text `yaml:"region"`
	API       text `yaml:"api"`
	Project   text `yaml:"project"`
	Container text `yaml:"container"`
}

type role struct {
	Name     text     `yaml:"name"`
	Trust    policy   `yaml:"trust"`
	Policies []policy `yaml:"policies"`
}

// text is a string that is written as one. The library would take a number, too,
// and give back another: 0123 is 83.
type text string

// UnmarshalYAML implements yaml.NodeUnmarshaler.
func (t *text) UnmarshalYAML(n ast.Node) error {
	s, err := stringOf(n)
	*t = text(s)
	return err
}

// hidden is a text that is not to be printed.
type hidden struct{ secret.Text }

// UnmarshalYAML implements yaml.NodeUnmarshaler.
func (h *hidden) UnmarshalYAML(n ast.Node) error {
	s, err := stringOf(n)
	h.Text = secret.New(s)
	return err
}

func stringOf(n ast.Node) (string, error) {
	switch n := n.(type) {
	case *ast.StringNode:
		return n.Value, nil
	case *ast.LiteralNode:
		return n.Value.Value, nil
	}
	return "", &yaml.SyntaxError{Message: "it must be text; put it into quotes", Token: n.GetToken()}
}

// count is a number from 0.
type count int

// UnmarshalYAML implements yaml.NodeUnmarshaler.
func (c *count) UnmarshalYAML(n ast.Node) error {
	if i, ok := n.(*ast.IntegerNode); ok {
		if v, ok := i.Value.(uint64); ok && v <= math.MaxInt32 {
			*c = count(v)
			return nil
		}
	}
	return &yaml.SyntaxError{Message: "it must be a whole number, 0 or more", Token: n.GetToken()}
}

// policy is the name of a system policy, or a document as JSON text or as YAML.
type policy struct{ value any }

// UnmarshalYAML implements yaml.InterfaceUnmarshaler, which resolves aliases: a
// policy may be written once and named elsewhere.
func (p *policy) UnmarshalYAML(unmarshal func(any) error) error { return unmarshal(&p.value) }

func (p policy) parse() (*ram.Policy, error) {
	name, ok := p.value.(string)
	if !ok {
		document, err := json.Marshal(p.value)
		if err != nil {
			return nil, errors.New("its YAML has no equal in JSON")
		}
		return ram.ParsePolicy(document)
	}
	if strings.HasPrefix(strings.TrimSpace(name), "{") {
		return ram.ParsePolicy([]byte(name))
	}
	if known, ok := ram.System(name); ok {
		return known, nil
	}
	return nil, fmt.Errorf("there is no system policy %.64q", name)
}

// decode reads the YAML. Its errors never repeat what is written in the file: one
// space left out, and a secret is a name.
func decode(b []byte) (doc *document, err error) {
	// What is read here may be broken in ways that a library has not thought of,
	// and lookups go on.
	defer func() {
		if recover() != nil {
			doc, err = nil, errors.New("it is no YAML that can be read")
		}
	}()
	d := yaml.NewDecoder(bytes.NewReader(b), yaml.Strict())
	doc = &document{}
	if err := d.Decode(doc); err != nil {
		return nil, describe(err)
	}
	if err := d.Decode(&document{}); !errors.Is(err, io.EOF) {
		return nil, errors.New("it holds more than one document")
	}
	return doc, nil
}

func describe(err error) error {
	e, ok := errors.AsType[yaml.Error](err)
	switch {
	case errors.Is(err, io.EOF):
		return errors.New("it is empty")
	case !ok || e.GetToken() == nil:
		return errors.New("it is no YAML that can be read")
	}
	p := e.GetToken().Position
	return fmt.Errorf("line %d, column %d: %s", p.Line, p.Column, problemOf(e))
}

func problemOf(e yaml.Error) string {
	switch e := e.(type) {
	case *yaml.UnknownFieldError:
		return "there is no member of this name"
	case *yaml.TypeError:
		if e.DstType.Kind() == reflect.Bool {
			return "it must be true or false"
		}
	case *yaml.UnexpectedNodeTypeError:
		return e.GetMessage() // names types only
	case *yaml.SyntaxError:
		// What it repeats of the file is in quotes.
		m := e.Message
		if i, j := strings.IndexByte(m, '"'), strings.LastIndexByte(m, '"'); i < j {
			m = m[:i] + "(not shown)" + m[j+1:]
		}
		return m
	}
	return "it is of the wrong type"
}
