package portal

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/html"

	"vmimport/internal/client"
	"vmimport/tasks"
)

var place = regexp.MustCompile(`\{\d\}`)

// TestCatalogs compares the languages: the same texts, with the same places in them.
func TestCatalogs(t *testing.T) {
	t.Parallel()
	want := catalogs[english].words
	for l, c := range catalogs {
		for key, text := range c.words {
			if _, ok := want[key]; !ok {
				t.Errorf("%s has %q, which English has not", l, key)
			}
			if text == "" && key != "stage." {
				t.Errorf("%s says nothing for %q", l, key)
			}
		}
		for key, text := range want {
			own, ok := c.words[key]
			if !ok {
				t.Errorf("%s lacks %q", l, key)
			}
			places := func(s string) []string { return slices.Sorted(slices.Values(place.FindAllString(s, -1))) }
			if !slices.Equal(places(own), places(text)) {
				t.Errorf("%s has other places in %q: %s", l, key, own)
			}
		}
	}
	japaneseText := regexp.MustCompile(`[\p{Hiragana}\p{Katakana}\p{Han}]`)
	for code, f := range catalogs[japanese].faults {
		for _, s := range []string{f.Message, f.Remedy} {
			if s != "" && (!japaneseText.MatchString(s) || !strings.HasSuffix(s, "。")) {
				t.Errorf("%s: %q is no sentence in Japanese", code, s)
			}
		}
		if f.Message == "" {
			t.Errorf("%s has no message", code)
		}
	}
}

// templates are all that is in the files of the pages.
func templates(t *testing.T) map[string]string {
	t.Helper()
	all := map[string]string{}
	names, err := fs.Glob(web, "web/*.html")
	if err != nil || len(names) == 0 {
		t.Fatal(names, err)
	}
	for _, name := range names {
		b, err := web.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		all[name] = string(b)
	}
	return all
}

// TestWordsAreUsed finds texts that no page asks for, and those that are asked for and
// are not there. Keys that end in a dot stand for all that begin with them.
func TestWordsAreUsed(t *testing.T) {
	t.Parallel()
	asked := map[string]bool{}
	keys := regexp.MustCompile(`"([a-z0-9_]+(?:\.[a-zA-Z0-9_]*)+|[a-z]+)"`)
	sources := templates(t)
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	words := catalogs[english].words
	for name, source := range sources {
		for _, m := range regexp.MustCompile(`\(?\bt (?:\(print )?"([^"]+)"`).FindAllStringSubmatch(source, -1) {
			asked[m[1]] = true
			found := words[m[1]] != ""
			for key := range words {
				found = found || strings.HasSuffix(m[1], ".") && strings.HasPrefix(key, m[1])
			}
			if !found {
				t.Errorf("%s asks for %q", name, m[1])
			}
		}
	}
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(f, func(n ast.Node) bool {
			if lit, ok := n.(*ast.BasicLit); ok && lit.Kind == token.STRING {
				if m := keys.FindStringSubmatch(lit.Value); m != nil {
					asked[m[1]] = true
				}
			}
			return true
		})
	}
	for key := range words {
		used := asked[key] || asked[strings.TrimSuffix(key, ".hint")]
		for a := range asked {
			used = used || strings.HasSuffix(a, ".") && strings.HasPrefix(key, a)
		}
		if !used {
			t.Errorf("nobody says %q", key)
		}
	}
}

// TestWordsOfTheService has a text for every word that the API may show.
func TestWordsOfTheService(t *testing.T) {
	t.Parallel()
	words := catalogs[english].words
	var keys []string
	for _, s := range tasks.States {
		keys = append(keys, "state."+string(s))
	}
	for _, s := range []tasks.Stage{tasks.StageWaiting, tasks.StageInspecting, tasks.StageCopying, tasks.StageConverting, tasks.StageVerifying,
		tasks.StagePublishing, tasks.StageCleaning, tasks.StageDone} {
		keys = append(keys, "stage."+string(s))
	}
	for _, o := range []string{tasks.OutcomeDrained, tasks.OutcomeLost, tasks.OutcomeRemoved, tasks.OutcomeRetry, tasks.OutcomeLeftovers,
		string(tasks.Succeeded), string(tasks.Failed), string(tasks.Canceled)} {
		keys = append(keys, "outcome."+o)
	}
	for _, fields := range []map[string]string{importFields, exportFields} {
		for _, field := range fields {
			keys = append(keys, "field."+field)
		}
	}
	for _, key := range keys {
		if words[key] == "" {
			t.Errorf("there is no %q", key)
		}
	}
	for k, fields := range map[string]map[string]string{"import": importFields, "export": exportFields} {
		for code := range fields {
			if catalogs[japanese].faults["api."+k+"."+code].Message == "" {
				t.Errorf("code %s of %ss has no text in Japanese", code, k)
			}
		}
	}
}

// TestNoTextOutside finds words in the templates that are in no catalog. The names of
// the languages and a command are the same in all of them.
func TestNoTextOutside(t *testing.T) {
	t.Parallel()
	allowed := map[string]bool{"English": true, "日本語": true, "openstack token issue -f value -c id": true}
	actions := regexp.MustCompile(`(?s)\{\{.*?\}\}`)
	letters := regexp.MustCompile(`\pL`)
	for name, source := range templates(t) {
		z := html.NewTokenizer(strings.NewReader(actions.ReplaceAllString(source, "")))
		for z.Next() != html.ErrorToken {
			tok := z.Token()
			if s := strings.TrimSpace(tok.Data); tok.Type == html.TextToken && letters.MatchString(s) && !allowed[s] {
				t.Errorf("%s says %q", name, s)
			}
			for _, a := range tok.Attr {
				if slices.Contains([]string{"alt", "title", "placeholder", "aria-label", "label"}, a.Key) && letters.MatchString(a.Val) {
					t.Errorf("%s says %s=%q", name, a.Key, a.Val)
				}
			}
		}
		if err := z.Err(); err != io.EOF {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// faultPackages are those that say why an import or an export ended.
var faultPackages = []string{"tasks/pipeline", "storage", "imageapi", "internal/diskimage", "internal/openstack", "internal/scratch", "internal/fault", "tasks/queue", "tasks/redisstore"}

// TestFaults walks the source for the codes of failures. Each has a text in Japanese,
// and a code that cannot be read from the source is not one to have.
func TestFaults(t *testing.T) {
	t.Parallel()
	root := filepath.Join("..", "..", "..")
	known := catalogs[japanese].faults
	found := map[string]bool{"internal_error": true, "canceled": true, "fenced": true, "cancel_came_first": true} // of tasks and fault
	for _, dir := range faultPackages {
		err := filepath.WalkDir(filepath.Join(root, dir), func(name string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") ||
				strings.HasSuffix(filepath.Base(filepath.Dir(name)), "test") {
				return err
			}
			codes, err := faultCodes(name)
			for code, at := range codes {
				found[code] = true
				if _, ok := known[code]; !ok {
					t.Errorf("%s: %q has no text in words/faults.ja.json", at, code)
				}
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if len(found) < 60 {
		t.Errorf("only %d codes were found", len(found))
	}
	for code := range known {
		if !found[code] && !strings.HasPrefix(code, "api.") {
			t.Errorf("words/faults.ja.json has %q, and no failure", code)
		}
	}
}

// faultCodes returns the codes of the faults that a file makes, with their places.
func faultCodes(name string) (map[string]string, error) {
	files := token.NewFileSet()
	f, err := parser.ParseFile(files, name, nil, 0)
	if err != nil {
		return nil, err
	}
	inFault := f.Name.Name == "fault"
	codes := map[string]string{}
	ast.Inspect(f, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok {
			return true
		}
		fn := ""
		switch e := call.Fun.(type) {
		case *ast.SelectorExpr:
			if pkg, ok := e.X.(*ast.Ident); ok && pkg.Name == "fault" {
				fn = e.Sel.Name
			}
		case *ast.Ident:
			if inFault {
				fn = e.Name
			}
		}
		at := map[string]int{"New": 1, "Wrap": 2}[fn]
		if at == 0 || len(call.Args) <= at {
			return true
		}
		where := files.Position(call.Pos()).String()
		lit, ok := call.Args[at].(*ast.BasicLit)
		if !ok {
			err = fmt.Errorf("%s: the code is no literal", where)
			return false
		}
		code, uerr := strconv.Unquote(lit.Value)
		if uerr != nil {
			err = uerr
		}
		codes[code] = where
		return true
	})
	return codes, err
}

func TestFigures(t *testing.T) {
	t.Parallel()
	en, ja := catalogs[english], catalogs[japanese]
	for n, want := range map[int64]string{
		0: "0 B", 1023: "1023 B", 1024: "1.00 KiB", 1 << 20: "1.00 MiB", 15 << 30: "15.0 GiB", 1<<40 - 1: "1.00 TiB", 999 << 30: "999 GiB",
		10235: "10.0 KiB", 1<<63 - 1: "8.00 EiB", 102_380: "100 KiB",
	} {
		if got := en.bytes(n); got != want {
			t.Errorf("bytes(%d) = %q, want %q", n, got, want)
		}
	}
	for d, want := range map[time.Duration][2]string{
		0:                               {"", ""},
		time.Second:                     {"less than a minute left", "残り1分未満"},
		90 * time.Second:                {"about 2 min left", "残り約2分"},
		59*time.Minute + 40*time.Second: {"about 1 h 0 min left", "残り約1時間0分"},
		5*time.Hour + 7*time.Minute:     {"about 5 h 7 min left", "残り約5時間7分"},
		60 * time.Hour:                  {"about 3 days left", "残り約3日"},
	} {
		if got := [2]string{en.left(d), ja.left(d)}; got != want {
			t.Errorf("left(%v) = %q", d, got)
		}
	}
	r := &record{State: tasks.Processing, Extra: run{Run: client.Run{Stage: tasks.StageCopying, TotalBytes: 1 << 50, BytesPerSecond: 1}}}
	if r.Left() != 0 {
		t.Errorf("a rate of one byte a second gives %v", r.Left())
	}
	if got := ja.date(testNow); got != "2026年3月7日 02:30 JST" {
		t.Error(got)
	}
	if got := en.text("state.unheard"); got != "unheard" {
		t.Error(got)
	}
}

func TestFailureText(t *testing.T) {
	t.Parallel()
	f := &failure{Code: "image_corrupt", Message: "It is damaged.", Remedy: "Send it again."}
	if got := catalogs[english].failure(f); got.Message != f.Message || got.Original != "" {
		t.Errorf("%+v", got)
	}
	if got := catalogs[japanese].failure(f); got.Original != "It is damaged. Send it again." || !strings.Contains(got.Remedy, "エクスポート") {
		t.Errorf("%+v", got)
	}
	f.Code = "unheard_of"
	if got := catalogs[japanese].failure(f); got.Message != f.Message || got.Original != "" {
		t.Errorf("%+v", got)
	}
	if catalogs[japanese].failure(nil) != nil {
		t.Error("a failure out of nothing")
	}
	if n := len(slices.Collect(maps.Keys(catalogs))); n != 2 {
		t.Errorf("%d languages", n)
	}
}

// BenchmarkList renders a list of 100.
func BenchmarkList(b *testing.B) {
	p := New(Options{Region: "jp-east-3", Offers: testOffers})
	one := &record{ID: taskA, Kind: tasks.KindImport, State: tasks.Processing, ImportName: "web01-system", Progress: 37,
		Extra: run{Run: client.Run{Stage: tasks.StageCopying, DoneBytes: 15 << 30, TotalBytes: 40 << 30, BytesPerSecond: 96 << 20, RequestedAt: testNow}}}
	body := listBody{Kind: tasks.KindImport, Path: imports.path, Page: 1, Records: slices.Repeat([]*record{one}, 100)}
	for b.Loop() {
		err := p.pages[japanese]["list"].ExecuteTemplate(io.Discard, "layout.html", page{Lang: japanese, Body: body})
		if err != nil {
			b.Fatal(err)
		}
	}
}
