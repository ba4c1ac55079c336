package aliyun_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// statuses of the ways in which the sources make errors.
var statuses = map[string]string{
	"bad": "400", "forbidden": "403", "notFound": "404",
	"StatusBadRequest": "400", "StatusForbidden": "403", "StatusNotFound": "404",
	"StatusInternalServerError": "500", "StatusServiceUnavailable": "503",
}

// codesOf returns "status code" of every error that the sources of a package can make: by
// bad("Code", ...), refuse(http.StatusX, "Code", ...), &problem{http.StatusX, "Code", ...},
// or x.Code = "Code", of which the status is 400.
func codesOf(t *testing.T, glob string) map[string]bool {
	t.Helper()
	files, err := filepath.Glob(glob)
	if err != nil || len(files) == 0 {
		t.Fatalf("no sources at %s: %v", glob, err)
	}
	codes := map[string]bool{}
	add := func(status string, code ast.Expr) {
		if lit, ok := code.(*ast.BasicLit); ok && lit.Kind == token.STRING && status != "" {
			text, err := strconv.Unquote(lit.Value)
			if err != nil {
				t.Fatal(err)
			}
			codes[status+" "+text] = true
		}
	}
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(parsed, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.CallExpr:
				switch f, _ := n.Fun.(*ast.Ident); {
				case f == nil || len(n.Args) < 2:
				case f.Name == "refuse":
					add(selected(n.Args[0]), n.Args[1])
				default:
					add(statuses[f.Name], n.Args[0])
				}
			case *ast.CompositeLit:
				if f, _ := n.Type.(*ast.Ident); f != nil && f.Name == "problem" && len(n.Elts) == 4 {
					add(selected(n.Elts[0]), n.Elts[1])
				}
			case *ast.AssignStmt:
				if s, ok := n.Lhs[0].(*ast.SelectorExpr); ok && s.Sel.Name == "Code" {
					add("400", n.Rhs[0])
				}
			}
			return true
		})
	}
	return codes
}

func selected(status ast.Expr) string {
	if s, ok := status.(*ast.SelectorExpr); ok {
		return statuses[s.Sel.Name]
	}
	return ""
}

var documented = regexp.MustCompile("(?m)^\\| (\\d{3}) \\| `([^`]+)` \\|")

// onlyOfTasks is the code that no request is refused with.
const onlyOfTasks = "ImportImageFailed"

// TestErrorsAreDocumented holds the page for customers against the code.
func TestErrorsAreDocumented(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../../../docs/aliyun.md")
	if err != nil {
		t.Fatal(err)
	}
	told := map[string]bool{}
	for _, m := range documented.FindAllStringSubmatch(string(page), -1) {
		told[m[1]+" "+m[2]] = true
	}
	made := codesOf(t, "*.go")
	maps.Copy(made, codesOf(t, "../../auth/aliyunsig/*.go"))
	for _, code := range slices.Sorted(maps.Keys(made)) {
		if strings.HasSuffix(code, " "+onlyOfTasks) {
			if !strings.Contains(string(page), onlyOfTasks) {
				t.Errorf("the page lacks %s", onlyOfTasks)
			}
			continue
		}
		if !told[code] {
			t.Errorf("the page lacks %s", code)
		}
	}
	for _, code := range slices.Sorted(maps.Keys(told)) {
		if !made[code] {
			t.Errorf("the page has %s, which is never sent", code)
		}
	}
	if len(made) < 60 {
		t.Errorf("only %d codes were found in the sources", len(made))
	}
}

// TestErrorsAreProvoked: no code is there that no test of this package names.
func TestErrorsAreProvoked(t *testing.T) {
	t.Parallel()
	var tests strings.Builder
	for _, glob := range []string{"*_test.go", "testdata/*.txt", "../../auth/aliyunsig/*_test.go"} {
		files, err := filepath.Glob(glob)
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			tests.Write(text)
		}
	}
	for code := range codesOf(t, "*.go") {
		_, code, _ = strings.Cut(code, " ")
		if !regexp.MustCompile(`["> ]` + regexp.QuoteMeta(code) + `["< ]`).MatchString(tests.String()) {
			t.Errorf("no test provokes %s", code)
		}
	}
}
