package ram

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"unicode/utf8"
)

// MaxPolicyBytes is the longest policy document. RAM takes 6144 characters.
const MaxPolicyBytes = 16 << 10

// maxDepth is one more than a list of values inside of a Condition needs.
const maxDepth = 8

// ParsePolicy reads a policy document: Version "1" and one Statement or a list
// of them. Each has an Effect, an Action or NotAction, and either a Resource or
// NotResource (what the holder of the policy may do), or a Principal (who may
// assume the role whose trust policy this is). All statements of a document are
// of the same kind. In patterns, * is any text and ? any one character; the case
// of actions does not matter. Resources are "*" or ARNs,
// acs:service:region:account:relative-id, each part of which matches for itself.
//
// A Condition is accepted and not evaluated, no more than variables, ${...}, and
// parts of ARNs that are left empty. A statement with these never permits, and
// always denies where the rest of it applies. Anything else that is not known
// is an error, as are names of elements in another case or given twice:
// overlooked, they would change what a policy means. Errors name the statement
// and the element.
func ParsePolicy(document []byte) (*Policy, error) {
	tree, err := parseJSON(document)
	if err != nil {
		return nil, fmt.Errorf("parse policy: %w", err)
	}
	p, err := newPolicy(tree)
	if err != nil {
		return nil, fmt.Errorf("parse policy: %w", err)
	}
	return p, nil
}

func newPolicy(tree any) (*Policy, error) {
	root, err := elements(tree, "Version", "Statement")
	if err != nil {
		return nil, err
	}
	if v, _ := root["Version"].(string); v != "1" {
		return nil, errors.New(`the Version is not the text "1"`)
	}
	list, ok := root["Statement"].([]any)
	if !ok {
		list = []any{root["Statement"]}
	}
	if len(list) == 0 {
		return nil, errors.New("the Statement is empty")
	}
	p := &Policy{statements: make([]statement, len(list))}
	for i, tree := range list {
		s, err := newStatement(tree)
		if err != nil {
			return nil, fmt.Errorf("statement %d: %w", i+1, err)
		}
		p.statements[i] = s
		trust := s.principal != nil
		if i > 0 && trust != p.trust {
			return nil, fmt.Errorf("statement %d: some have a Principal, and some have none", i+1)
		}
		p.trust = trust
	}
	return p, nil
}

func newStatement(tree any) (s statement, err error) {
	m, err := elements(tree, "Effect", "Action", "NotAction", "Resource", "NotResource", "Principal", "Condition")
	if err != nil {
		return s, err
	}
	switch m["Effect"] {
	case "Allow":
	case "Deny":
		s.deny = true
	default:
		return s, errors.New("the Effect is neither Allow nor Deny")
	}
	if s.actions, err = newPatterns(m, "Action", newAction); err != nil {
		return s, err
	}
	_, resource := m["Resource"]
	_, notResource := m["NotResource"]
	tree, trust := m["Principal"]
	switch {
	case trust && (resource || notResource):
		err = errors.New("with a Principal there can be no Resource")
	case trust:
		s.principal, err = newPrincipal(tree)
	default:
		s.resources, err = newPatterns(m, "Resource", newResource)
	}
	if err != nil {
		return s, err
	}
	if c, ok := m["Condition"]; ok {
		if _, ok := c.(map[string]any); !ok {
			return s, errors.New("the Condition is no object")
		}
		s.conditional = true
	}
	return s, nil
}

// newPatterns reads an element or its negation, one of which there must be.
func newPatterns[P interface{ match(string) verdict }](
	m map[string]any, name string, parse func(string) (P, error),
) (ps patterns[P], err error) {
	tree, ok := m[name]
	except, not := m["Not"+name]
	switch {
	case ok == not:
		return ps, fmt.Errorf("it needs either %s or Not%[1]s", name)
	case not:
		ps.except, tree, name = true, except, "Not"+name
	}
	list, err := texts(tree)
	if err != nil {
		return ps, fmt.Errorf("%s %w", name, err)
	}
	for _, text := range list {
		p, err := parse(text)
		if err != nil {
			return ps, fmt.Errorf("%s: %.80q %w", name, text, err)
		}
		ps.list = append(ps.list, p)
	}
	return ps, nil
}

func newAction(text string) (actionPattern, error) {
	service, name, ok := strings.Cut(text, ":")
	if text != "*" && (!ok || service == "" || name == "" || strings.ContainsFunc(text, notOfAction)) {
		return "", errors.New("is not of the form service:action")
	}
	return actionPattern(strings.ToLower(text)), nil
}

func notOfAction(r rune) bool {
	alphanumeric := r >= '0' && r <= '9' || r >= 'A' && r <= 'Z' || r >= 'a' && r <= 'z'
	return !alphanumeric && !strings.ContainsRune("-_.:/*?", r)
}

func newResource(text string) (resourcePattern, error) {
	if text == "*" {
		return nil, nil
	}
	parts, ok := splitARN(text)
	if !ok || parts[0] != "acs" || parts[1] == "" || parts[4] == "" {
		return nil, errors.New("is not of the form acs:service:region:account:relative-id")
	}
	// OSS has names of its own for regions, and its policies are written with either.
	if parts[1] == "oss" {
		parts[2] = strings.TrimPrefix(parts[2], "oss-")
	}
	return parts, nil
}

func newPrincipal(tree any) (*principal, error) {
	m, err := elements(tree, "Service", "RAM", "Federated")
	if err != nil {
		return nil, fmt.Errorf("the Principal: %w", err)
	}
	if len(m) == 0 {
		return nil, errors.New("the Principal is empty")
	}
	for name, tree := range m {
		if _, err := texts(tree); err != nil {
			return nil, fmt.Errorf("the Principal: %s %w", name, err)
		}
	}
	p := &principal{}
	if services, ok := m["Service"]; ok {
		p.services, _ = texts(services)
	}
	for _, s := range p.services {
		if strings.ContainsFunc(s, notOfService) {
			return nil, fmt.Errorf("the Principal: Service: %.80q is not of the form ecs.aliyuncs.com", s)
		}
	}
	return p, nil
}

// notOfService keeps out patterns, which RAM does not know there.
func notOfService(r rune) bool {
	return (r < '0' || r > '9') && (r < 'a' || r > 'z') && !strings.ContainsRune("-.@", r)
}

// elements returns the members of an object, which has none but those of the
// given names.
func elements(tree any, names ...string) (map[string]any, error) {
	m, ok := tree.(map[string]any)
	if !ok {
		return nil, errors.New("it is no object")
	}
	for _, name := range slices.Sorted(maps.Keys(m)) {
		if !slices.Contains(names, name) {
			return nil, fmt.Errorf("unknown element %.40q; it is one of %s", name, strings.Join(names, ", "))
		}
	}
	return m, nil
}

// texts returns the values of an element that takes one text or several.
func texts(tree any) ([]string, error) {
	list, ok := tree.([]any)
	if !ok {
		list = []any{tree}
	}
	if len(list) == 0 {
		return nil, errors.New("is empty")
	}
	out := make([]string, len(list))
	for i, v := range list {
		s, ok := v.(string)
		if !ok || s == "" {
			return nil, errors.New("is neither text nor a list of texts")
		}
		out[i] = s
	}
	return out, nil
}

// parseJSON returns the document as the values that json.Unmarshal makes. That
// itself would not do: of members given twice it keeps one and says nothing.
func parseJSON(document []byte) (any, error) {
	switch {
	case len(document) > MaxPolicyBytes:
		return nil, fmt.Errorf("it is longer than %d bytes", MaxPolicyBytes)
	case !utf8.Valid(document):
		return nil, errors.New("it is no UTF-8")
	}
	d := json.NewDecoder(bytes.NewReader(document))
	tree, err := parseValue(d, maxDepth)
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return nil, err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("something follows the document")
	}
	return tree, nil
}

func parseValue(d *json.Decoder, depth int) (any, error) {
	t, err := d.Token()
	if err != nil {
		return nil, err
	}
	if _, ok := t.(json.Delim); ok && depth == 0 {
		return nil, errors.New("it is nested too deeply")
	}
	switch t {
	case json.Delim('{'):
		return parseObject(d, depth-1)
	case json.Delim('['):
		list := []any{}
		for d.More() {
			v, err := parseValue(d, depth-1)
			if err != nil {
				return nil, err
			}
			list = append(list, v)
		}
		_, err := d.Token()
		return list, err
	}
	return t, nil
}

func parseObject(d *json.Decoder, depth int) (any, error) {
	m := map[string]any{}
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return nil, err
		}
		name, _ := t.(string) // the decoder has seen to it
		if _, ok := m[name]; ok {
			return nil, fmt.Errorf("%.40q is given twice", name)
		}
		if m[name], err = parseValue(d, depth); err != nil {
			return nil, err
		}
	}
	_, err := d.Token()
	return m, err
}
