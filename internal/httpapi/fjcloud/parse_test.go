package fjcloud

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"vmimport/internal/fault"
	"vmimport/tasks"
)

const project = "6f0b1c2d3e4f5a6b7c8d9e0f1a2b3c4d"

func newDialect(t testing.TB, opts Options) *Dialect {
	t.Helper()
	d, err := New("r", nil, nil, opts)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestOSTypes(t *testing.T) {
	t.Parallel()
	both := []string{"win2016SE_ja", "win2016SE_SQL2016SE", "rhel7", "rocky", "ubuntu"}
	later := []string{"win2019SE", "win2019SE_SQL2019SE", "rhel8"}
	legacy := []string{"win2008R2SE", "win2008R2EE", "win2012SE", "win2012R2SE", "win2016SE_en", "rhel6", "centos"}
	never := []string{"", "Rocky", "rocky ", "windows", "rhel9"}
	for _, tt := range []struct {
		opts    Options
		offered []string
	}{
		{Options{Profile: Classic}, both},
		{Options{Profile: Gen3}, slices.Concat(both, later)},
		{Options{Profile: Classic, LegacyOSTypes: true}, slices.Concat(both, legacy)},
		{Options{Profile: Gen3, LegacyOSTypes: true}, slices.Concat(both, later, legacy)},
	} {
		d := newDialect(t, tt.opts)
		for _, osType := range slices.Concat(both, later, legacy, never) {
			if got, want := d.offers(osType), slices.Contains(tt.offered, osType); got != want {
				t.Errorf("%+v: %q offered: %v", tt.opts, osType, got)
			}
		}
	}
}

func TestDeclaredFormat(t *testing.T) {
	t.Parallel()
	standalone := newDialect(t, Options{Extensions: []string{".raw", ".img", ".vhd", ".vhdx", ".vdi", ".ova", ".gz"}})
	documented := newDialect(t, Options{})
	for _, tt := range []struct{ name, kind, documented, standalone string }{
		{"a.vmdk", fromVMware, "vmdk", "vmdk"},
		{"a.vmdk", fromKVM, "", ""},
		{"a.qcow2", fromKVM, "qcow2", "qcow2"},
		{"a.qcow2", fromVMware, "", ""},
		{"a.raw", fromVMware, "", "raw"},
		{"a.raw", fromKVM, "", "raw"},
		{"a.img", fromVMware, "", "raw"},
		{"a.vhd", fromVMware, "", "vhd"},
		{"a.vhdx", fromVMware, "", "vhdx"},
		{"a.vdi", fromVMware, "", "vdi"},
		{"a.ova", fromVMware, "", "ova"},
		{"a.raw.gz", fromVMware, "", "gzip"},
		{"a.img.gz", fromVMware, "40017", "40017"},
		{"a.qcow2.gz", fromKVM, "40017", "40017"},
		{"a.Raw", fromVMware, "", ""},
		{"raw", fromVMware, "", ""},
		{"a.vmdk/b", fromVMware, "", ""},
	} {
		for _, on := range []struct {
			d    *Dialect
			want string
		}{{documented, tt.documented}, {standalone, tt.standalone}} {
			got, err := on.d.declaredFormat(tasks.Object{Name: tt.name}, tt.kind)
			if errors.Is(err, errExportedImage) {
				got = "40017"
			} else if (err == nil) != (on.want != "") {
				t.Errorf("%s from %s: %v", tt.name, tt.kind, err)
			}
			if got != on.want {
				t.Errorf("%s from %s: got %q, want %q", tt.name, tt.kind, got, on.want)
			}
		}
	}
}

// Every row of the table is reached, and every kind has an answer that does not
// blame the client for what is not its fault.
func TestProblemOf(t *testing.T) {
	t.Parallel()
	for kind, want := range map[fault.Kind]int{
		fault.Invalid: 400, fault.NotFound: 400, fault.Denied: 400, fault.Conflict: 400, fault.Exhausted: 403,
		fault.Unavailable: 503, fault.Canceled: 503, fault.Fenced: 500, fault.Internal: 500, "unheard-of": 500,
	} {
		err := fmt.Errorf("wrapped: %w", fault.New(kind, "some_code", "Words for the customer."))
		p := problemOf(err)
		if p.status != want || p.code[:3] != fmt.Sprint(want) || p.message == "" {
			t.Errorf("%s: %+v", kind, p)
		}
		if shown := p.message == "Words for the customer."; shown != (want == 400 || want == 403) {
			t.Errorf("%s: message %q", kind, p.message)
		}
	}
}

func FuzzLocation(f *testing.F) {
	for _, s := range []string{
		"/v2/AUTH_" + project + "/c/o.vmdk", "/v2/AUTH_" + project + "/c/a/b c/%2e.vmdk", "/v1/AUTH_" + project + "/c/o.vmdk",
		"//v2/AUTH_" + project + "/c/o", "http://h/v2/AUTH_" + project + "/c/o", "/v2/AUTH_/c/o", "/v2/AUTH_" + project + "/c/../o",
		"/v2/AUTH_" + project + "//o", "/v2/AUTH_" + project + "/c/", "/v2/AUTH_" + project + "/c/o?x#y", "/bucket/o.vmdk", "",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		check := func(o tasks.Object, again string) {
			if again != s {
				t.Errorf("%q was read as %+v", s, o)
			}
			if o.Project != project || o.Container == "" || strings.Contains(o.Container, "/") {
				t.Errorf("%q: %+v", s, o)
			}
			for _, segment := range append(strings.Split(o.Name, "/"), o.Container) {
				if segment == "" || segment == "." || segment == ".." || strings.ContainsAny(segment, "?#\x00\n\x7f") {
					t.Errorf("%q was accepted with the segment %q", s, segment)
				}
			}
		}
		if o, err := parseLocation(s, "v2", project); err == nil {
			check(o, "/v2/AUTH_"+project+"/"+o.Container+"/"+o.Name)
		}
		if o, err := parseS3Location(s, project); err == nil {
			check(o, "/"+o.Container+"/"+o.Name)
		}
	})
}

func FuzzRegister(f *testing.F) {
	location := `"location": "/v2/AUTH_` + project + `/c/o.vmdk"`
	for _, s := range []string{
		`{"name": "n", ` + location + `, "os_type": "rocky"}`,
		`{"name": "n", ` + location + `, "os_type": "rocky", "min_ram": "5", "min_disk": 7, "checksum": null, "details": {"image_from": "vmware"}, "conversion": "true", "id": "5b1c1c0e-53a7-4c2a-9a53-2d0f0c1b8a77"}`,
		`{"name": "n", "s3_location": "/b/o.vmdk", "os_type": "rhel8", "checksum": "2fd4e1c67a2d28fced849ee1bb76e7391b93eb12"}`,
		`{"name": "\ud83d\ude00", "x": [[{"a": "\\ud800"}]]}`, `{"a":1,"a":2}`, `{`, `null`, "{\"name\":\"\xff\"}",
	} {
		f.Add([]byte(s))
	}
	d := newDialect(f, Options{})
	f.Fuzz(func(t *testing.T, body []byte) {
		spec, err := d.parse(body, project)
		if err != nil {
			if p := problemOf(err); p.status != 400 || p.message == "" {
				t.Fatalf("%q: %+v", body, p)
			}
			return
		}
		var sent struct{ Name string }
		if err := json.Unmarshal(body, &sent); err != nil || !utf8.ValidString(spec.Name) {
			t.Fatalf("%q was accepted: %v", body, err)
		}
		disk := spec.Disks[0]
		switch {
		case spec.Name == "" || spec.OSType == "" || disk.Format != "vmdk" && disk.Format != "qcow2",
			disk.Object.Project != project,
			spec.MinRAMMiB < 0 || spec.MinRAMMiB > 1<<31-1 || spec.MinDiskGiB < 0 || spec.MinDiskGiB > 1<<31-1,
			disk.SHA1 != "" && (len(disk.SHA1) != 40 || disk.SHA1 != strings.ToLower(disk.SHA1)),
			spec.ImageID != "" && len(spec.ImageID) != 36:
			t.Fatalf("%q was accepted as %+v", body, spec)
		}
		if _, err := newStatusBody(&tasks.Import{Spec: *spec}); err != nil {
			t.Fatalf("%q cannot be shown: %v", body, err)
		}
	})
}

// The decoder puts U+FFFD where it finds half a pair, and nowhere else.
func FuzzHalfSurrogate(f *testing.F) {
	for _, s := range []string{`\ud800`, `\udc00`, `\ud83d\ude00`, `\\ud800`, `\ud800\\udc00`, `\uD800x\uDC00`, `\"\ud800\u0041`, `a\nb`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		quoted := []byte(`"` + s + `"`)
		var text string
		if !utf8.Valid(quoted) || json.Unmarshal(quoted, &text) != nil {
			return
		}
		written := strings.Count(s, "\ufffd") + strings.Count(strings.ReplaceAll(strings.ToLower(s), `\\`, ""), `\ufffd`)
		if got, want := hasHalfSurrogate(quoted), strings.Count(text, "\ufffd") > written; got != want {
			t.Errorf("%q: %v", s, got)
		}
	})
}
