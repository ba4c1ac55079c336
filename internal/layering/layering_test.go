// Package layering holds the tree to one table of who may import whom.
//
// It reads import clauses rather than asking the go command, so that files for
// other systems are held to it too.
package layering

import (
	"fmt"
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "vmimport"

// A layer is a kind of packages that may import the same packages of this
// module, besides the standard library. Paths are below the module.
type layer struct {
	name     string
	packages []string
	may      []string
	why      string // for members of may that the kind does not explain
}

var (
	leaves    = []string{"internal/fault", "internal/secret"}
	contracts = []string{"tasks", "storage", "imageapi", "internal/diskimage", "internal/auth", "internal/auth/ram", "internal/auth/aliyunsig"}
	formats   = []string{
		"internal/diskimage/gz", "internal/diskimage/ova", "internal/diskimage/qcow2", "internal/diskimage/vdi",
		"internal/diskimage/vhd", "internal/diskimage/vhdx", "internal/diskimage/vmdk",
	}
	roots = []string{"internal/app", "internal/devstack", "internal/config", "internal/client", "internal/cli"}
)

func leavesAnd(packages ...string) []string { return slices.Concat(leaves, packages) }

// layers lists every package but those for tests, from the bottom to the top.
// What a flow may import are contracts, never an adapter; what a contract may
// import are leaves, never another contract.
var layers = []layer{
	{name: "leaf", packages: leavesAnd("internal/config"), may: leaves},
	{name: "leaf", packages: []string{"internal/inflate", "internal/scratch", "internal/outbound", "internal/diskimage/partition", "internal/audit", "internal/tracing"}, may: leaves},
	{name: "cloud", packages: []string{"internal/openstack"}, may: leavesAnd("internal/outbound"),
		why: "adapters of one cloud act under one identity"},
	{name: "leaf", packages: []string{"."}, why: "openapi.yaml lies at the root, and can be embedded only from there"},

	{name: "contract", packages: contracts, may: leaves},

	{name: "format of disk images", packages: formats, may: leavesAnd("internal/diskimage", "internal/inflate")},
	{name: "all formats", packages: []string{"internal/diskimage/formats"}, may: leavesAnd(slices.Concat([]string{"internal/diskimage"}, formats)...),
		why: "it is the list of them"},
	{name: "all formats", packages: []string{"internal/diskimage/decode"}, may: leavesAnd("internal/diskimage", "internal/diskimage/formats", "internal/diskimage/gz"),
		why: "what is inside gzip is opened when it has been unpacked"},
	{name: "all formats", packages: []string{"internal/diskimage/inspect"},
		may: leavesAnd("internal/diskimage", "internal/diskimage/formats", "internal/diskimage/decode", "internal/diskimage/gz", "internal/diskimage/partition"),
		why: "it looks at any image as an import would"},

	{name: "all formats", packages: []string{"internal/diskimage/encode"}, may: leavesAnd("internal/diskimage", "internal/diskimage/qcow2", "internal/diskimage/vmdk"),
		why: "it writes what these read"},
	{name: "leaf", packages: []string{"internal/diskimage/ovf"}, may: leaves},
	{name: "order of the guest", packages: []string{"internal/diskimage/guestorder"}, may: leavesAnd("internal/diskimage")},

	{name: "adapter of tasks", packages: []string{"tasks/redisstore", "tasks/queue"}, may: leavesAnd("tasks")},
	{name: "adapter of storage", packages: []string{"storage/dirstore"}, may: leavesAnd("storage")},
	{name: "adapter of storage", packages: []string{"storage/s3store"}, may: leavesAnd("storage", "internal/outbound")},
	{name: "adapter of storage", packages: []string{"storage/swiftstore"}, may: leavesAnd("storage", "internal/openstack")},
	{name: "adapter of imageapi", packages: []string{"imageapi/dirimages"}, may: leavesAnd("imageapi")},
	{name: "adapter of imageapi", packages: []string{"imageapi/glance"}, may: leavesAnd("imageapi", "internal/openstack")},
	{name: "adapter of auth", packages: []string{"internal/auth/localtokens"}, may: leavesAnd("internal/auth")},
	{name: "adapter of auth", packages: []string{"internal/auth/ramfile"}, may: leavesAnd("internal/auth/ram")},
	{name: "adapter of auth", packages: []string{"internal/auth/nonces"}, may: leavesAnd("internal/auth/aliyunsig")},
	{name: "adapter of auth", packages: []string{"internal/auth/keystone"}, may: leavesAnd("internal/auth", "internal/openstack")},

	{name: "flow", packages: []string{"tasks/pipeline"},
		may: leavesAnd(slices.Concat(contracts, []string{
			"internal/diskimage/formats", "internal/diskimage/decode", "internal/diskimage/qcow2",
			"internal/diskimage/encode", "internal/diskimage/guestorder", "internal/diskimage/ovf",
		})...),
		why: "it reads any format, and writes some"},
	{name: "flow", packages: []string{"internal/events"}, may: leavesAnd("tasks")},
	{name: "flow", packages: []string{"internal/webhook"}, may: leavesAnd("tasks", "internal/outbound")},
	{name: "flow", packages: []string{"internal/httpapi/fjcloud", "internal/httpapi/aliyun", "internal/httpapi/objects"},
		may: leavesAnd(append(contracts, "internal/audit", "internal/events")...),
		why: "they say in the server's audit log what was asked for, and show events as they come"},
	{name: "flow", packages: []string{"internal/httpapi/portal"}, may: leavesAnd("tasks", "internal/client"),
		why: "it is a client of the API, inside of the process"},
	{name: "flow", packages: []string{"internal/httpapi"}, may: leavesAnd(".", "internal/audit"),
		why: "it serves openapi.yaml and writes the audit log; dialects come to it as an interface"},
	{name: "flow", packages: []string{"internal/servers"}, may: leavesAnd("internal/outbound"),
		why: "it calls a customer's cloud with the customer's own rights"},
	{name: "flow", packages: []string{"internal/client"}, may: leavesAnd("tasks"),
		why: "the states of an import have the same names on both sides"},
	{name: "flow", packages: []string{"internal/cli"},
		may: leavesAnd("tasks", "internal/client", "internal/servers", "internal/diskimage", "internal/diskimage/inspect"),
		why: "the commands are the client's calls, and a look at an image, for which no service is needed; what needs the service itself is handed in by cmd/vmimport"},

	{name: "root", packages: []string{"internal/app", "internal/devstack"}, may: []string{everything}},
	{name: "main", packages: []string{"cmd/api", "cmd/worker", "cmd/vmimport"}, may: roots},
}

// everything but programs and what is for tests only.
const everything = "*"

// A library is a module of others, and where it may be seen.
type library struct {
	path  string
	in    []string // packages; "dir/..." for all in and below a directory
	tests bool     // all tests may import it, too
	why   string
}

var libraries = []library{
	{path: "github.com/labstack/echo/v4", in: []string{"internal/httpapi/..."}, why: "HTTP ends at the dialects"},
	{path: "github.com/hibiken/asynq", in: []string{"tasks/queue"}, why: "the record is the truth; the queue can be replaced"},
	{path: "github.com/hibiken/asynqmon", in: []string{"internal/app"}, why: "a handler to mount"},
	{path: "github.com/redis/go-redis/v9", in: []string{"tasks/redisstore", "tasks/queue", "internal/auth/nonces", "internal/app", "internal/devstack", "internal/testenv", "internal/clustertest"}, tests: true,
		why: "app opens the connections that store and queue share; devstack and the tests of whole processes look after the servers that they start"},
	{path: "github.com/minio/minio-go/v7", in: []string{"storage/s3store", "internal/clustertest", "internal/testenv/openstack", "internal/openstacktest"},
		why: "an object store is storage.Store to all others; in these tests it is the customer who fills it"},
	{path: "github.com/gophercloud/gophercloud/v2", in: []string{"internal/openstack", "internal/auth/keystone", "storage/swiftstore", "imageapi/glance", "internal/servers"}, tests: true,
		why: "OpenStack is one adapter of each contract to all others"},
	{path: "github.com/alicebob/miniredis/v2", in: []string{"internal/devstack"}, tests: true, why: "standalone without redis-server"},
	{path: "github.com/spf13/cobra", in: []string{"internal/cli", "cmd/vmimport"}, tests: true, why: "the command line"},
	{path: "github.com/spf13/pflag", in: []string{"internal/cli"}, why: "flags of cobra's commands"},
	{path: "github.com/goccy/go-yaml", in: []string{"internal/config", "internal/app", "internal/auth/localtokens", "internal/auth/ramfile"}, tests: true,
		why: "files that operators write; app prints the configuration"},
	{path: "github.com/prometheus/client_golang", in: []string{"internal/app", "internal/httpapi"}, tests: true,
		why: "flows are observed through interfaces"},
	{path: "github.com/rs/zerolog", in: []string{"tasks/queue", "tasks/pipeline", "internal/webhook", "internal/httpapi/...", "internal/app", "internal/devstack"}, tests: true,
		why: "adapters return their errors; who handles them logs them, once"},
	{path: "github.com/google/uuid", in: []string{"tasks/redisstore", "tasks/pipeline", "imageapi/glance", "internal/httpapi/...", "internal/app"}, tests: true, why: "who makes or reads ids"},
	{path: "golang.org/x/time", in: []string{"internal/httpapi/aliyun"}, tests: true, why: "what an account may ask"},
	{path: "go.opentelemetry.io/otel", in: []string{"internal/tracing", "tasks/queue", "tasks/pipeline", "internal/httpapi/...", "internal/app"}, tests: true,
		why: "spans are made where the work is; only tracing knows where they go"},
	{path: "golang.org/x/sync", in: []string{"internal/app", "internal/devstack", "internal/cli"}, tests: true, why: "who runs several things that end together"},
	{path: "golang.org/x/sys", in: []string{"storage/dirstore", "imageapi/dirimages", "internal/devstack", "internal/cli", "internal/scratch"}, tests: true,
		why: "files, locks and terminals, as the kernel has them"},

	{path: "github.com/klauspost/compress", in: []string{"internal/diskimage/gz", "internal/diskimage/qcow2", "internal/diskimage/encode"}, tests: true,
		why: "what images are packed with, besides DEFLATE in one piece"},

	{path: "github.com/aliyun/alibaba-cloud-sdk-go", tests: true},
	{path: "github.com/chromedp/chromedp", tests: true},
	{path: "github.com/chromedp/cdproto", tests: true},
	{path: "golang.org/x/net", tests: true},
	{path: "github.com/getkin/kin-openapi", tests: true},
	{path: "github.com/rogpeppe/go-internal", tests: true},
	{path: "go.uber.org/goleak", tests: true},
}

// forTests reports whether a package exists for tests only, by its name.
func forTests(pkg string) bool {
	return strings.HasSuffix(pkg, "test") || within("internal/testenv/...", pkg)
}

// An edge is an import as it stands in a file.
type edge struct {
	pkg    string // of the file, below the module; "." for its root
	test   bool   // whether the file is part of no program
	target string // as written
}

// refusal says which rule the import breaks, or "".
func (e edge) refusal() string {
	inside, ok := strings.CutPrefix(e.target+"/", module+"/")
	switch {
	case strings.HasPrefix(e.target, ".") || strings.HasPrefix(e.target, "/") || strings.Contains(e.target, `\`):
		return "imports are paths of modules, not of files"
	case ok:
		return e.refusalInside(path.Clean(inside))
	case !strings.Contains(strings.Split(e.target, "/")[0], "."):
		return "" // the standard library
	}
	return e.refusalOutside()
}

func (e edge) refusalInside(target string) string {
	switch {
	case strings.HasPrefix(target, "cmd/"):
		return "nothing imports a program"
	case e.test:
		return ""
	case forTests(target):
		return "a package for tests is imported by tests only"
	}
	l := layerOf(e.pkg)
	switch {
	case l == nil:
		return "the package is not in the table of layers; give it a place there"
	case slices.Contains(l.may, target) || slices.Contains(l.may, everything):
		return ""
	}
	rule := fmt.Sprintf("%s is a %s, which may import %s of this module", e.pkg, l.name, list(l.may))
	if l.why != "" {
		rule += " (" + l.why + ")"
	}
	return rule
}

func (e edge) refusalOutside() string {
	lib := libraryOf(e.target)
	switch {
	case lib == nil:
		return "the library is not in the table of libraries; say there who may see it, and why"
	case e.test && lib.tests, slices.ContainsFunc(lib.in, func(in string) bool { return within(in, e.pkg) }):
		return ""
	case lib.in == nil:
		return lib.path + " is for tests only"
	}
	return fmt.Sprintf("%s is for %s only (%s)", lib.path, list(lib.in), lib.why)
}

func list(names []string) string {
	if len(names) == 0 {
		return "nothing"
	}
	return strings.Join(names, ", ")
}

func layerOf(pkg string) *layer {
	for i := range layers {
		if slices.Contains(layers[i].packages, pkg) {
			return &layers[i]
		}
	}
	return nil
}

func libraryOf(target string) *library {
	for i := range libraries {
		if within(libraries[i].path+"/...", target) {
			return &libraries[i]
		}
	}
	return nil
}

// within reports whether pkg is what in names.
func within(in, pkg string) bool {
	dir, tree := strings.CutSuffix(in, "/...")
	return pkg == dir || tree && strings.HasPrefix(pkg, dir+"/")
}

func TestImports(t *testing.T) {
	t.Parallel()
	root := filepath.Join("..", "..")
	packages, used := map[string]bool{}, map[string]bool{}
	err := filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, name)
		if err != nil {
			return err
		}
		if d.IsDir() {
			// What the go command passes over, and the modules of tools.
			if rel != "." && strings.ContainsAny(d.Name()[:1], "._") || d.Name() == "testdata" || d.Name() == "node_modules" || rel == "tools" {
				return fs.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(rel, ".go") {
			return nil
		}
		pkg := filepath.ToSlash(filepath.Dir(rel))
		test := strings.HasSuffix(rel, "_test.go") || forTests(pkg)
		if !test {
			packages[pkg] = true
			if layerOf(pkg) == nil {
				t.Errorf("%s is not in the table of layers; give it a place there", pkg)
			}
		}
		files := token.NewFileSet()
		f, err := parser.ParseFile(files, name, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		for _, spec := range f.Imports {
			target, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return err
			}
			if lib := libraryOf(target); lib != nil {
				used[lib.path] = true
			}
			if reason := (edge{pkg, test, target}).refusal(); reason != "" {
				t.Errorf("%s:%d imports %q: %s", rel, files.Position(spec.Pos()).Line, target, reason)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range layers {
		for _, p := range l.packages {
			if !packages[p] {
				t.Errorf("%s is in the table of layers and not in the tree", p)
			}
		}
	}
	for _, lib := range libraries {
		if !used[lib.path] {
			t.Errorf("%s is in the table of libraries and nobody imports it", lib.path)
		}
	}
}

func TestRules(t *testing.T) {
	t.Parallel()
	const program, test = false, true
	for _, tc := range []struct {
		edge
		refused string // a part of the reason; empty: allowed
	}{
		{edge{"tasks", program, "net/http"}, ""},
		{edge{"tasks", program, "vmimport/internal/fault"}, ""},
		{edge{"tasks", program, "vmimport/storage"}, "tasks is a contract"},
		{edge{"tasks", program, "github.com/redis/go-redis/v9"}, "only"},
		{edge{"tasks", program, "vmimport/internal/config"}, "tasks is a contract"},
		{edge{"storage", program, "github.com/minio/minio-go/v7/pkg/credentials"}, "is for storage/s3store"},
		{edge{"tasks/redisstore", program, "vmimport/tasks/queue"}, "adapter of tasks"},
		{edge{"tasks/pipeline", program, "vmimport/imageapi/dirimages"}, "tasks/pipeline is a flow"},
		{edge{"tasks/pipeline", program, "vmimport/storage"}, ""},
		{edge{"tasks/pipeline", test, "vmimport/imageapi/dirimages"}, ""},
		{edge{"tasks/pipeline", test, "github.com/hibiken/asynq"}, "tasks/queue only"},
		{edge{"internal/app", program, "github.com/hibiken/asynq"}, "tasks/queue only"},
		{edge{"internal/app", program, "github.com/hibiken/asynqmon"}, ""},
		{edge{"internal/app", program, "vmimport/tasks/pipeline"}, ""},
		{edge{"internal/app", program, "vmimport/storage/storagetest"}, "tests only"},
		{edge{"internal/app", program, "vmimport/internal/testenv"}, "tests only"},
		{edge{"internal/httpapi", program, "vmimport"}, ""},
		{edge{"internal/httpapi", program, "vmimport/internal/httpapi/fjcloud"}, "internal/httpapi is a flow"},
		{edge{"internal/httpapi/fjcloud", program, "vmimport/internal/httpapi/objects"}, "is a flow"},
		{edge{"internal/httpapi/fjcloud", program, "github.com/labstack/echo/v4/middleware"}, ""},
		{edge{"internal/client", program, "github.com/labstack/echo/v4"}, "internal/httpapi/... only"},
		{edge{"internal/cli", program, "vmimport/internal/app"}, "internal/cli is a flow"},
		{edge{"cmd/api", program, "vmimport/storage"}, "cmd/api is a main"},
		{edge{"cmd/api", test, "vmimport/cmd/worker"}, "nothing imports a program"},
		{edge{"new", program, "vmimport/tasks"}, "not in the table of layers"},
		{edge{"storage", program, "go.uber.org/goleak"}, "for tests only"},
		{edge{"storage", test, "go.uber.org/goleak"}, ""},
		{edge{"storage", test, "example.org/new"}, "not in the table of libraries"},
		{edge{"storage", test, "../other/x"}, "paths of modules"},
		{edge{"storage", test, "/srv/x"}, "paths of modules"},
	} {
		got := tc.refusal()
		if (got == "") != (tc.refused == "") || !strings.Contains(got, tc.refused) {
			t.Errorf("%s imports %s (test %v): refused for %q, want %q", tc.pkg, tc.target, tc.test, got, tc.refused)
		}
	}
}
