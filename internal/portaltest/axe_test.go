package portaltest

import (
	"fmt"
	"os"
	"sync"

	"github.com/chromedp/chromedp"
)

// axe is the checker of accessibility, as npm installs it.
var axe = sync.OnceValues(func() (string, error) {
	script, err := os.ReadFile("node/node_modules/axe-core/axe.min.js")
	if err != nil {
		return "", fmt.Errorf("the tests of the portal need axe-core (make deps-node): %w", err)
	}
	return string(script), nil
})

// violation is a rule that a page breaks, as axe-core reports it.
type violation struct {
	ID, Impact, Help string
	Nodes            []struct{ HTML, FailureSummary string }
}

// accessible fails the test for every rule that the page breaks, and for a page that has to be
// moved sideways.
func (b *browser) accessible(where string) {
	b.t.Helper()
	script, err := axe()
	if err != nil {
		b.t.Fatal(err)
	}
	run(b, "load axe-core", chromedp.Evaluate[chromedp.Void](`if (!window.axe) {`+script+`}`))
	found := eval[[]violation](b, `axe.run({
		resultTypes: ["violations"],
		runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"],
	}).then((r) => r.violations)`)
	for _, v := range found {
		b.t.Errorf("%s: %s (%s): %s", where, v.ID, v.Impact, v.Help)
		for _, n := range v.Nodes {
			b.t.Errorf("  %s\n  %s", n.HTML, n.FailureSummary)
		}
	}
	if wide := eval[int](b, `document.documentElement.scrollWidth - document.documentElement.clientWidth`); wide > 0 {
		b.t.Errorf("%s: the page is %d pixels wider than its window", where, wide)
	}
}
