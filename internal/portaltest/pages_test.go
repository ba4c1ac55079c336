package portaltest

import (
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"vmimport/internal/client"
	"vmimport/internal/config"
	"vmimport/internal/secret"
	"vmimport/tasks"
)

// states asks for an import that comes to each state, and stays there. It returns their pages.
func (s *service) states() map[tasks.State]string {
	s.t.Helper()
	c, err := client.New(client.Options{Endpoint: s.url, Token: secret.New(token)})
	if err != nil {
		s.t.Fatal(err)
	}
	s.put("small.raw", 64)
	s.put("large.raw", 64<<10)
	pages := map[tasks.State]string{}
	for _, i := range []struct {
		state                  tasks.State
		name, object, checksum string
	}{
		{tasks.Succeeded, "Rocky Linux 9.4 web server", "small.raw", ""},
		{tasks.Failed, "支店の業務サーバー（東京・大阪）2026年度版", "small.raw", strings.Repeat("0", 40)},
		{tasks.Processing, "db01", "large.raw", ""},
		{tasks.Canceled, strings.Repeat("unbreakable", 12), "large.raw", ""},
		{tasks.Queued, "db02", "large.raw", ""},
	} {
		id, err := c.Register(s.t.Context(), client.Registration{Name: i.name, Location: location(i.object), OSType: "ubuntu", Checksum: i.checksum})
		if err != nil {
			s.t.Fatal(err)
		}
		pages[i.state] = "/portal/imports/" + string(id)
		if i.state == tasks.Canceled {
			if err := c.Cancel(s.t.Context(), id); err != nil {
				s.t.Fatal(err)
			}
		}
		for at, err := range c.Watch(s.t.Context(), id, client.WatchOptions{}) {
			if err != nil {
				s.t.Fatal(err)
			}
			if at.State == i.state {
				break
			}
		}
	}
	return pages
}

// slowly has large imports hardly begin within a test, and one at a time.
func slowly(cfg *config.Config) { cfg.Limits.Bandwidth, cfg.Limits.Running = 256<<10, 1 }

// TestPages looks at every page, in each language, on either screen and in either light.
func TestPages(t *testing.T) {
	t.Parallel()
	s := serve(t, slowly)
	pages := s.states()
	const japanese = "ja,en;q=0.5"
	for name, l := range map[string]look{
		"desktop":         desktop,
		"desktop-dark-ja": {languages: japanese, width: desktop.width, height: desktop.height, dark: true},
		"phone-ja":        {languages: japanese, width: phone.width, height: phone.height},
		"phone-dark":      {languages: phone.languages, width: phone.width, height: phone.height, dark: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := open(t, s, l)
			b.expect("404") // of the page that is not there
			visit := func(page, path string) {
				t.Helper()
				b.visit(path)
				b.accessible(page)
				b.shoot(page)
			}
			visit("sign-in", "/portal/")
			b.press(token + kb.Enter)
			b.holds("see the list", `document.querySelector(".tasks") !== null`)
			for state, path := range pages {
				visit(string(state), path)
			}
			visit("list", "/portal/imports")
			visit("form", "/portal/imports/new")
			eval[chromedp.Void](b, `document.getElementById("form").requestSubmit()`)
			b.holds("see what is missing", `document.querySelector("#summary") !== null`)
			b.accessible("form refused")
			b.shoot("form-refused")
			visit("exports", "/portal/exports")
			visit("export-form", "/portal/exports/new")
			visit("cancel", pages[tasks.Processing]+"/cancel")
			visit("nowhere", "/portal/nowhere")
		})
	}
}

// TestWithoutScript does with pages and forms alone what dialogs and events do otherwise.
func TestWithoutScript(t *testing.T) {
	t.Parallel()
	s := serve(t, slowly)
	s.put("web01.raw", 60<<10)
	plain := desktop
	plain.noScript = true
	b := open(t, s, plain)
	b.signIn()
	b.click("New import")
	b.fill("SHA-1 of the file", "abc")
	b.click("Import")
	b.sees("This cannot be accepted yet")
	b.submit("web01.raw", "web01", "")
	b.click("Cancel the import…")
	b.sees("Cancel this import?")
	b.click("Yes, cancel it")
	b.shows("h1", "web01")
	for end := time.Now().Add(patience); !strings.Contains(b.text(), "The import was canceled"); b.visit(b.path()) {
		if time.Now().After(end) {
			b.fail("it is not canceled")
		}
	}
	b.click("New import with these values")
	b.fill("SHA-1 of the file", strings.Repeat("0", 40))
	b.click("Import")
	b.shows("h1", "web01")
}

// TestKeyboard signs in, submits and cancels without a mouse.
func TestKeyboard(t *testing.T) {
	t.Parallel()
	s := serve(t, slowly)
	s.put("web01.raw", 60<<10)
	b := open(t, s, desktop)
	b.visit("/")
	b.reach("Token")
	b.press(token + kb.Enter)
	b.sees("No imports yet")
	b.reach("Skip to the content")
	b.reach("New import")
	b.press(kb.Enter)
	b.sees("Location in the object storage")
	b.reach("Location in the object storage")
	b.press(location("web01.raw"))
	b.reach("Image name")
	b.press("web01")
	b.reach("Operating system")
	b.press("Ubuntu")
	b.reach("Import")
	b.press(kb.Enter)
	b.shows("h1", "web01")
	b.reach("Cancel the import…")
	b.press(kb.Enter)
	b.holds("begin the dialog with what does no harm", `document.activeElement.innerText === "No, let it go on"`)
	b.press(kb.Escape)
	b.holds("come back from the dialog", `document.activeElement.id === "cancel" && !document.querySelector("dialog").open`)
	b.press(kb.Enter)
	b.sees("Cancel this import?")
	b.reach("Yes, cancel it")
	b.press(kb.Enter)
	b.sees("The import was canceled")
}

// reach moves the focus on until it is on what has a text or label.
func (b *browser) reach(name string) {
	b.t.Helper()
	for range 40 {
		at := eval[struct {
			Name  string
			Plain bool
		}](b, `(() => {
			const at = document.activeElement, style = getComputedStyle(at);
			return {
				name: (at.labels?.[0] ?? at).innerText.trim(),
				plain: style.outlineStyle === "none" && style.boxShadow === "none",
			};
		})()`)
		if at.Name == name {
			if at.Plain {
				b.t.Errorf("nothing shows that the focus is on %q", name)
			}
			return
		}
		b.press(kb.Tab)
	}
	b.fail("%q is not reached by the keyboard", name)
}
