package ram

import (
	"slices"
	"strings"
)

// Policy is a policy document, made by ParsePolicy or System. It is never
// changed, and safe for concurrent use.
type Policy struct {
	statements []statement
	trust      bool
}

// IsTrust reports whether the policy says who may act (as that of a role's
// trust does), rather than what a holder of the policy may do.
func (p *Policy) IsTrust() bool { return p.trust }

func (p *Policy) trusts(service string) bool {
	return p.trust && decide([]*Policy{p}, request{action: "sts:AssumeRole", service: service})
}

// request is what a policy is asked: whether its holder may do an action with
// a resource, or whether a service may.
type request struct{ action, resource, service string }

// decide reports whether a statement surely allows the request, and all that
// deny surely do not apply.
func decide(policies []*Policy, r request) bool {
	allowed := false
	for _, p := range policies {
		for i := range p.statements {
			s := &p.statements[i]
			switch v := s.applies(r); {
			case s.deny && v != no:
				return false
			case !s.deny && v == yes:
				allowed = true
			}
		}
	}
	return allowed
}

// A verdict is what is known of whether something applies. It is Kleene's
// logic: the conjunction is the least, the disjunction the greatest, and the
// negation the negative.
type verdict int8

const (
	no      verdict = -1
	unknown verdict = 0
	yes     verdict = 1
)

func verdictOf(b bool) verdict {
	if b {
		return yes
	}
	return no
}

// statement is one statement of a policy.
type statement struct {
	deny        bool
	actions     patterns[actionPattern]
	resources   patterns[resourcePattern] // unused in a statement with a principal
	principal   *principal                // nil: whoever holds the policy
	conditional bool                      // there is a Condition, which is not evaluated
}

func (s *statement) applies(r request) verdict {
	v := s.actions.match(r.action)
	switch {
	case (s.principal != nil) != (r.service != ""):
		v = min(v, unknown) // a policy of the other kind
	case s.principal != nil:
		v = min(v, verdictOf(slices.Contains(s.principal.services, r.service)))
	default:
		v = min(v, s.resources.match(r.resource))
	}
	if s.conditional {
		v = min(v, unknown)
	}
	return v
}

// principal is who may assume a role. Users and identity providers are read and
// forgotten: nobody asks for them here.
type principal struct{ services []string }

// patterns is what an element like Action lists, or, like NotAction, excepts.
type patterns[P interface{ match(string) verdict }] struct {
	except bool
	list   []P
}

func (ps patterns[P]) match(text string) verdict {
	v := no
	for _, p := range ps.list {
		v = max(v, p.match(text))
	}
	if ps.except {
		return -v
	}
	return v
}

// actionPattern is in lower case: the case of actions does not matter.
type actionPattern string

func (p actionPattern) match(action string) verdict {
	return verdictOf(wildcard(string(p), strings.ToLower(action)))
}

// resourcePattern is the parts of an ARN, or none for "*", which is any text.
// Parts match one by one. If an asterisk could reach over colons, then who
// chooses an object's name could make it look like another bucket's:
// acs:oss:cn-hangzhou:1:private/x:1:public/y.
type resourcePattern []string

func (p resourcePattern) match(resource string) verdict {
	if len(p) == 0 {
		return yes
	}
	parts, ok := splitARN(resource)
	if !ok {
		return no
	}
	v := yes
	for i, part := range parts {
		v = min(v, matchPart(p[i], part))
	}
	return v
}

func matchPart(pattern, part string) verdict {
	switch {
	case strings.Contains(pattern, "${"):
		return unknown // a variable, whose value nobody knows here
	case wildcard(pattern, part):
		return yes
	case pattern == "":
		return unknown // services differ in whether it stands for any
	}
	return no
}

// arnParts is the number of parts of acs:service:region:account:relative-id. The
// last may hold colons.
const arnParts = 5

func splitARN(s string) (parts []string, ok bool) {
	parts = strings.SplitN(s, ":", arnParts)
	return parts, len(parts) == arnParts
}
