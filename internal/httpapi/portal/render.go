package portal

import (
	"bytes"
	"embed"
	"fmt"
	"html"
	"html/template"
	"regexp"
	"strings"
	"time"

	"github.com/labstack/echo/v4"
)

//go:embed web
var web embed.FS

// pages are the templates of one language by name.
type pages map[string]*template.Template

// parsePages parses the embedded templates, which tests have parsed before.
func parsePages() map[language]pages {
	all := map[language]pages{}
	for l, words := range catalogs {
		layout := template.Must(template.New("layout.html").Funcs(functions(words)).Parse(source("layout", words)))
		template.Must(layout.Parse(source("parts", words)))
		all[l] = pages{}
		for _, name := range []string{"bounce", "signin", "list", "detail", "import", "export", "cancel", "error"} {
			all[l][name] = template.Must(template.Must(layout.Clone()).Parse(source(name, words)))
		}
	}
	return all
}

// fixed are the texts that are the same whatever a page shows.
var fixed = regexp.MustCompile(`\{\{t "([^"]+)"\}\}`)

// source returns a file with its fixed texts in place, which makes a long list several
// times as fast as if they were looked up for each line.
func source(name string, words *catalog) string {
	b, err := web.ReadFile("web/" + name + ".html")
	if err != nil {
		panic(fmt.Sprintf("portal: %v", err))
	}
	return fixed.ReplaceAllStringFunc(string(b), func(action string) string {
		return html.EscapeString(words.text(fixed.FindStringSubmatch(action)[1]))
	})
}

// functions are what templates may call.
func functions(words *catalog) template.FuncMap {
	return template.FuncMap{
		"t":       words.text,
		"bytes":   words.bytes,
		"look":    words.look,
		"took":    func(from, to time.Time) string { return words.took(to.Sub(from)) },
		"date":    words.date,
		"iso":     iso,
		"digest":  func(algorithm string) string { return strings.Replace(strings.ToUpper(algorithm), "SHA", "SHA-", 1) },
		"failure": words.failure,
		"setback": setback,
		"asset":   func(name string) string { return root + "assets/" + assetNames[name] },
		"args":    arguments,
	}
}

func iso(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// arguments are what a part of a page is called with: names and values by turns.
func arguments(pairs ...any) (map[string]any, error) {
	m := map[string]any{}
	for i := 0; i+1 < len(pairs); i += 2 {
		name, ok := pairs[i].(string)
		if !ok {
			return nil, fmt.Errorf("argument %d is named %v", i, pairs[i])
		}
		m[name] = pairs[i+1]
	}
	return m, nil
}

// page is what a template shows.
type page struct {
	Lang     language
	Region   string
	Title    string
	Here     string // path to come back to
	SignedIn bool
	Exports  bool
	Now      time.Time
	Body     any
}

// render answers with a page. It is made before the first byte is sent, so that a
// page is whole or is not there.
func (p *Portal) render(c echo.Context, status int, name, title string, body any) error {
	words := p.words(c)
	_, signedIn := p.token(c)
	back := here(c.Request())
	if b, ok := body.(signInBody); ok {
		signedIn, back = false, signInAt(b.Return)
	}
	var out bytes.Buffer
	err := p.pages[words.language][name].ExecuteTemplate(&out, "layout.html", page{
		Lang: words.language, Region: p.opts.Region, Title: title, Here: back, SignedIn: signedIn,
		Exports: p.opts.Offers.Exports, Now: p.opts.Now(), Body: body,
	})
	if err != nil {
		return fmt.Errorf("render %s: %w", name, err)
	}
	c.Response().Header().Set("Content-Language", string(words.language))
	return c.HTMLBlob(status, out.Bytes())
}
