package portaltest

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"
)

// signIn signs in, in English.
func (b *browser) signIn() {
	b.t.Helper()
	b.visit("/")
	b.fill("Token", token)
	b.click("Sign in")
	b.shows("h1", "Imports")
}

// submit asks for an import, in English, and ends on its page.
func (b *browser) submit(object, name, checksum string) {
	b.t.Helper()
	b.visit("/portal/imports/new")
	b.fill("Location in the object storage", location(object))
	b.fill("Image name", name)
	b.fill("Operating system", "Ubuntu")
	if checksum != "" {
		b.fill("SHA-1 of the file", checksum)
	}
	b.click("Import")
	b.shows("h1", name)
}

// reads waits until the bar of an import has moved by what came as an event.
func (b *browser) reads() {
	b.t.Helper()
	b.holds("see the bar move", `document.querySelector("[data-part=bar]")?.value > 0 && document.querySelector("[data-part=rate]")?.innerText.endsWith("/s")`)
}

// watched is what a bar shows, each value once, until its task has succeeded.
const watched = `new Promise((done) => {
	const seen = [];
	const look = () => {
		const { state } = document.querySelector("article").dataset;
		const value = state === "succeeded" ? 100 : document.querySelector("[data-part=bar]")?.value;
		if (value !== undefined && value !== seen.at(-1)) seen.push(value);
		if (["succeeded", "failed", "canceled"].includes(state)) done(seen);
		else setTimeout(look, 20);
	};
	look();
})`

// rises fails the test unless a bar has come to its end by steps.
func rises(t *testing.T, seen []float64) {
	t.Helper()
	falls := !slices.IsSorted(seen) || len(slices.Compact(slices.Clone(seen))) < len(seen)
	if len(seen) < 4 || seen[len(seen)-1] != 100 || falls {
		t.Errorf("the bar showed %v", seen)
	}
}

func TestImport(t *testing.T) {
	t.Parallel()
	s := serve(t)
	sum := s.put("web01.raw", 60<<10)
	b := open(t, s, desktop)

	b.visit("/")
	b.sees("Paste a token")
	b.shoot("sign-in")
	b.fill("Token", "no such token")
	b.click("Sign in")
	b.sees("The token is not valid, or has ended. Get a new one.")
	b.accessible("sign-in refused")
	b.fill("Token", token)
	b.click("Sign in")
	b.sees("No imports yet")
	b.accessible("empty list")

	b.click("New import")
	b.fill("SHA-1 of the file", "abc")
	b.fill("Image name", "web01")
	b.sees("A SHA-1 has 40 hex digits.")
	b.accessible("form with a wrong value")
	b.fill("SHA-1 of the file", sum)
	b.holds("see the note go", `!document.body.innerText.includes("A SHA-1 has")`)
	b.fill("Location in the object storage", location("web01.raw"))
	b.fill("Operating system", "Ubuntu")
	b.click("Import")
	b.shows("h1", "web01")

	b.mark()
	rises(t, eval[[]float64](b, watched))
	b.sees("The image is ready")
	if came := b.streamed(); !b.marked() || came["progress"] < 3 {
		t.Errorf("the bar was not moved by the stream: %v", came)
	}
	b.sees(sum)
	b.shoot("succeeded")
	image := regexp.MustCompile(`Image ID\s+([0-9a-f-]{36})`).FindStringSubmatch(b.text())
	if image == nil {
		t.Fatalf("the page names no image:\n%s", b.text())
	}
	s.same(image[1], "web01.raw")

	b.visit("/portal/imports")
	b.shows("tbody .state", "Succeeded")
	b.click("Sign out")
	b.sees("Paste a token")
	b.visit("/portal/imports")
	b.sees("Paste a token")
}

// TestCancel cancels one of two imports. The list shows how the other goes on.
func TestCancel(t *testing.T) {
	t.Parallel()
	s := serve(t)
	s.put("db01.raw", 90<<10)
	s.put("web01.raw", 60<<10)
	b, list := open(t, s, desktop), open(t, s, desktop)
	list.signIn()
	list.sees("No imports yet")
	list.mark()

	b.signIn()
	b.submit("web01.raw", "web01", "")
	b.submit("db01.raw", "db01", "")
	list.holds("see two bars move", `[...document.querySelectorAll("[data-part=bar]")].filter((bar) => bar.value > 0).length === 2`)
	list.shoot("list")
	b.reads()
	b.shoot("running")
	b.click("Cancel the import…")
	b.sees("Cancel this import?")
	b.shows("dialog .name", "db01")
	b.accessible("dialog")
	b.shoot("cancel")
	b.click("No, let it go on")
	b.holds("see the dialog close", `!document.querySelector("dialog").open`)
	b.click("Cancel the import…")
	b.click("Yes, cancel it")
	b.sees("The import was canceled")

	row := func(name, state string) {
		t.Helper()
		list.holds("see that "+name+" is "+state, `[...document.querySelectorAll("tbody tr")].some((row) =>
			row.querySelector("a").innerText === `+quote(name)+` && row.querySelector(".state").innerText === `+quote(state)+`)`)
	}
	row("db01", "Canceled")
	row("web01", "Succeeded")
	if !list.marked() {
		t.Error("the list was loaded anew")
	}
	if images, _ := filepath.Glob(filepath.Join(s.images, "*", "image.json")); len(images) != 1 {
		t.Errorf("the images are %v", images)
	}
}

// TestFailure shows what went wrong, and what to do about it, in both languages.
func TestFailure(t *testing.T) {
	t.Parallel()
	s := serve(t)
	s.put("web01.raw", 2<<10)
	b := open(t, s, desktop)
	b.signIn()
	b.submit("web01.raw", "web01", strings.Repeat("0", 40))
	b.sees("What you can do")
	remedy := eval[string](b, `document.querySelector(".remedy").innerText`)
	b.shoot("failed-en")

	b.click("日本語")
	b.sees("対処方法")
	b.shoot("failed-ja")
	japanese := eval[string](b, `document.querySelector(".remedy").innerText`)
	if lang := eval[string](b, `document.documentElement.lang`); lang != "ja" || japanese == remedy || !regexp.MustCompile(`\p{Han}`).MatchString(japanese) {
		t.Errorf("the page in %q says %q, the English one %q", lang, japanese, remedy)
	}
	b.click("English")
	b.sees(remedy)

	// Tried again from the front, it fails again, which its history tells.
	b.click("Try again")
	b.holds("see two attempts", `document.querySelectorAll(".attempts tbody tr").length === 2`)
	b.comes("failed")
	b.accessible("detail of two attempts")
	// With the file as it is, and the rest as it was, it succeeds.
	b.click("New import with these values")
	b.fill("SHA-1 of the file", s.put("web01.raw", 2<<10))
	b.click("Import")
	b.comes("succeeded")
}

// TestExport writes an image that was imported to the object store.
func TestExport(t *testing.T) {
	t.Parallel()
	s := serve(t)
	sum := s.put("web01.raw", 4<<10)
	if err := os.Mkdir(filepath.Join(s.objects, "exports"), 0o700); err != nil {
		t.Fatal(err)
	}
	b := open(t, s, desktop)
	b.signIn()
	b.submit("web01.raw", "web01", sum)
	b.comes("succeeded")
	image := regexp.MustCompile(`Image ID\s+([0-9a-f-]{36})`).FindStringSubmatch(b.text())
	if image == nil {
		t.Fatalf("the page names no image:\n%s", b.text())
	}
	b.click("Exports")
	b.sees("No exports yet")
	b.click("New export")
	b.fill("Image ID", image[1])
	b.fill("Container", strings.TrimSuffix(location(""), container+"/")+"exports")
	b.click("KVM")
	b.shoot("export-form")
	b.click("Export")
	b.comes("succeeded")
	b.sees("The export is complete")
	b.accessible("detail of an export")
	b.shoot("exported")
	names := eval[[]string](b, `[...document.querySelectorAll(".objects .name")].map((name) => name.firstChild.textContent.trim())`)
	for _, name := range names {
		if info, err := os.Stat(filepath.Join(s.objects, "exports", name)); err != nil || info.Size() == 0 {
			t.Errorf("object %q: %v", name, err)
		}
	}
	if len(names) == 0 {
		t.Error("the page names no object")
	}
	b.visit("/portal/exports")
	b.shows("tbody .state", "Succeeded")
}

// TestTokenEnds has the token end while a page is open, and while a form is filled in.
func TestTokenEnds(t *testing.T) {
	t.Parallel()
	s := serve(t)
	s.put("web01.raw", 36<<10)
	b := open(t, s, desktop)
	b.signIn()
	b.submit("web01.raw", "web01", "")
	page := b.path()
	b.reads()
	s.tokens.ended.Store(true)
	b.sees("Your token has ended.") // which the page finds with the next change
	b.accessible("sign-in after the end")
	b.shoot("ended")
	b.fill("Token", nextToken)
	b.click("Sign in")
	b.sees("The image is ready")
	if at := b.path(); at != page {
		t.Errorf("from %s one comes back to %s", page, at)
	}

	s.tokens.ended.Store(false)
	b.click("Sign out")
	b.sees("Paste a token")
	b.signIn()
	b.visit("/portal/imports/new")
	b.fill("Location in the object storage", location("web01.raw"))
	b.fill("Image name", "web02")
	b.fill("Operating system", "Ubuntu")
	s.tokens.ended.Store(true)
	b.click("Import")
	b.sees("What you entered is kept.")
	b.accessible("form after the end")
	b.shoot("form-ended")
	if name := eval[string](b, `document.getElementById("name").value`); name != "web02" {
		t.Errorf("the form has the name %q", name)
	}
	// Another tab signs in, and brings a cookie.
	eval[chromedp.Void](b, `fetch("/portal/sign-in", { method: "POST", body: new URLSearchParams({ token: `+quote(nextToken)+` }) }).then(() => {})`)
	b.click("Import")
	b.shows("h1", "web02")
}

// TestHostileName gives an image a name that would be something else if it were not only text.
func TestHostileName(t *testing.T) {
	t.Parallel()
	s := serve(t)
	s.put("web01.raw", 24<<10)
	name := "\u202egnp.<script>window.hit = 1</script><img src=x onerror='window.hit = 1'>\"'&amp;"
	name += strings.Repeat("x", 255-len([]rune(name)))
	b, list := open(t, s, phone), open(t, s, desktop)
	list.signIn()
	b.signIn()
	b.submit("web01.raw", name, "")
	list.shows("tbody th a", name) // which came by an event
	b.click("Cancel the import…")
	b.shows("dialog .name", name)
	b.accessible("dialog with a hostile name")
	b.click("No, let it go on")
	b.comes("succeeded")
	list.shows("tbody .state", "Succeeded")
	for where, b := range map[string]*browser{"detail": b, "list": list} {
		b.accessible(where + " with a hostile name")
		b.shoot("hostile-" + where)
		if eval[bool](b, `"hit" in window || document.querySelector("main img, main script") !== null`) {
			t.Error("the name has become a part of the page")
		}
		if isolated := eval[string](b, `getComputedStyle(document.querySelector("[dir=auto]")).unicodeBidi`); isolated == "normal" {
			t.Error("the name turns round what follows it")
		}
	}
	b.visit(b.path() + "/cancel") // which is too late
	list.click(name)
	list.shows("h1", name)
}

// TestStreamCut restarts the API under a page that follows an import.
func TestStreamCut(t *testing.T) {
	t.Parallel()
	s := serve(t)
	s.put("web01.raw", 120<<10)
	b := open(t, s, desktop)
	b.expect("net::ERR_") // no server for a moment
	b.signIn()
	b.submit("web01.raw", "web01", "")
	b.reads()
	b.mark()
	before := b.streamed()["progress"]
	s.restartAPI()
	rises(t, eval[[]float64](b, watched))
	b.sees("The image is ready")
	if after := b.streamed()["progress"]; after < before+2 || !b.marked() {
		t.Errorf("%d events came before the restart, and %d after it", before, after-before)
	}
	b.holds("see no note of a lost connection", `!document.querySelector("[data-part=live]:not([hidden])")`)
}

// TestWithoutTLS signs in at a service that is neither this machine nor behind TLS, of whose requests
// a browser says less about where they come from.
func TestWithoutTLS(t *testing.T) {
	t.Parallel()
	s := serve(t)
	s.url = strings.Replace(s.url, "127.0.0.1", elsewhere, 1)
	b := open(t, s, desktop)
	b.signIn()
	b.click("日本語")
	b.sees("インポート")
	b.click("サインアウト")
	b.sees("トークン")
}
