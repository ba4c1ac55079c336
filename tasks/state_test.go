package tasks

import (
	"os"
	"regexp"
	"slices"
	"testing"
)

// TestDiagram compares the arrows of the published diagram with the table.
func TestDiagram(t *testing.T) {
	t.Parallel()
	doc, err := os.ReadFile("../docs/design/state-machine.md")
	if err != nil {
		t.Fatal(err)
	}
	type move struct{ from, to State }
	drawn := map[move]bool{}
	begins := false
	for _, m := range regexp.MustCompile(`(?m)^ +(\S+) --> (\S+)$`).FindAllStringSubmatch(string(doc), -1) {
		switch from, to := State(m[1]), State(m[2]); {
		case m[1] == "[*]":
			begins = to == Queued
		case m[2] == "[*]":
			if !from.Final() {
				t.Errorf("the diagram ends at %s", from)
			}
		default:
			drawn[move{from, to}] = true
		}
	}
	if !begins {
		t.Error("the diagram does not begin at queued")
	}
	for _, from := range States {
		for _, to := range States {
			if got, want := drawn[move{from, to}], from.CanBecome(to); got != want {
				t.Errorf("%s to %s: drawn %v, in the table %v", from, to, got, want)
			}
		}
	}
}

func TestTable(t *testing.T) {
	t.Parallel()
	for _, s := range States {
		// What has failed can be tried again, but nothing else brings it back.
		if got := len(next[s]) == 0 || s == Failed; got != s.Final() {
			t.Errorf("%s: no way out %v, final %v", s, got, s.Final())
		}
		for _, to := range next[s] {
			if !slices.Contains(Sources(to), s) {
				t.Errorf("Sources(%s) lacks %s", to, s)
			}
		}
	}
	for s := range next {
		if !slices.Contains(States, s) {
			t.Errorf("%s is in the table and not in States", s)
		}
	}
}
