package fjcloud

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"vmimport/internal/diskimage"
	"vmimport/internal/fault"
	"vmimport/storage"
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

func TestExtensions(t *testing.T) {
	t.Parallel()
	standalone := newDialect(t, Options{Extensions: []string{".raw", ".img", ".vhd", ".vhdx", ".vdi", ".ova", ".gz"}})
	classic := newDialect(t, Options{Profile: Classic})
	onlyGzip := newDialect(t, Options{Extensions: []string{".gz"}})
	for _, tt := range []struct{ name, hypervisor, documented, onlyGzip, standalone string }{
		{"a.vmdk", fromVMware, "vmdk", "vmdk", "vmdk"},
		{"a.vmdk", fromKVM, "", "", ""},
		{"a.qcow2", fromKVM, "qcow2", "qcow2", "qcow2"},
		{"a.qcow2", fromVMware, "", "", ""},
		{"a.raw", fromVMware, "", "", "raw"},
		{"a.raw", fromKVM, "", "", "raw"},
		{"a.img", fromVMware, "", "", "raw"},
		{"a.vhd", fromVMware, "", "", "vhd"},
		{"a.vhdx", fromVMware, "", "", "vhdx"},
		{"a.vdi", fromVMware, "", "", "vdi"},
		{"a.ova", fromVMware, "", "", "ova"},
		// Compressed: what is inside must be accepted, or raw.
		{"a.raw.gz", fromVMware, "", "raw.gz", "raw.gz"},
		{"a.raw.gz", fromKVM, "", "raw.gz", "raw.gz"},
		{"a.vmdk.gz", fromVMware, "", "vmdk.gz", "vmdk.gz"},
		{"a.vmdk.gz", fromKVM, "", "", ""},
		{"a.vhd.gz", fromVMware, "", "", "vhd.gz"},
		{"a.ova.gz", fromVMware, "", "", "ova.gz"},
		{"a.gz", fromVMware, "", "", ""},
		{"a.gz.gz", fromVMware, "", "", ""},
		{"a.raw.gz.gz", fromVMware, "", "", ""},
		{"a.tar.gz", fromVMware, "", "", ""},
		{"a.raw.GZ", fromVMware, "", "", ""},
		// Exported images, whoever asks.
		{"a.img.gz", fromVMware, "raw.gz exported", "raw.gz exported", "raw.gz exported"},
		{"a.img.gz", fromKVM, "raw.gz exported", "raw.gz exported", "raw.gz exported"},
		{"a.qcow2.gz", fromVMware, "qcow2.gz exported", "qcow2.gz exported", "qcow2.gz exported"},
		{"a.qcow2.gz", fromKVM, "qcow2.gz exported", "qcow2.gz exported", "qcow2.gz exported"},
		{"a.img.gz.raw", fromVMware, "", "", "raw"},
		{"a.Raw", fromVMware, "", "", ""},
		{"raw", fromVMware, "", "", ""},
		{"a.vmdk/b", fromVMware, "", "", ""},
	} {
		for _, on := range []struct {
			d    *Dialect
			want string
		}{{newDialect(t, Options{}), tt.documented}, {classic, tt.documented}, {onlyGzip, tt.onlyGzip}, {standalone, tt.standalone}} {
			ext, err := extensionOf(tasks.Object{Name: tt.name}, on.d.extensions(tt.hypervisor))
			got := ext.format
			if ext.exported {
				got += " exported"
			}
			if (err == nil) != (on.want != "") || got != on.want {
				t.Errorf("%s from %s: got %q, want %q: %v", tt.name, tt.hypervisor, got, on.want, err)
			}
		}
	}
}

// An extension that ends with another would be taken for it.
func TestExtensionsAreApart(t *testing.T) {
	t.Parallel()
	all := append(slices.Sorted(maps.Keys(Formats)), ".gz")
	for _, hypervisor := range []string{fromVMware, fromKVM} {
		list := newDialect(t, Options{Extensions: all}).extensions(hypervisor)
		for i, a := range list {
			for j, b := range list {
				if i != j && strings.HasSuffix(a.suffix, b.suffix) {
					t.Errorf("%s ends with %s", a.suffix, b.suffix)
				}
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
		p := importAnswers.to(err)
		if p.status != want || p.code[:3] != fmt.Sprint(want) || p.message == "" {
			t.Errorf("%s: %+v", kind, p)
		}
		if shown := p.message == "Words for the customer."; shown != (want == 400 || want == 403) {
			t.Errorf("%s: message %q", kind, p.message)
		}
	}
}

// What preflight may have against an image is the fault of the request, and is
// told in the fault's own words.
func TestImageFaultsAreTheRequests(t *testing.T) {
	t.Parallel()
	for _, f := range []*fault.Error{
		diskimage.ErrBackingFile, diskimage.ErrExternalData, diskimage.ErrDifferencing, diskimage.ErrSplit, diskimage.ErrEncrypted,
		diskimage.ErrDirtyLog, diskimage.ErrUnknownFeature, diskimage.ErrUnsupported, diskimage.ErrMarkedCorrupt, diskimage.ErrCorrupt,
		diskimage.ErrTruncated, diskimage.ErrTrailing, diskimage.ErrShared, diskimage.ErrFragmented, diskimage.ErrEmptyDisk,
		diskimage.ErrTooLarge, diskimage.ErrBomb, diskimage.ErrNested,
		fault.New(fault.Invalid, "format_mismatch", "The object is not what its extension says."),
		fault.New(fault.Invalid, "format_ambiguous", "The object is more than one image format at once."),
		fault.New(fault.Invalid, "object_empty", "The object is empty."),
		fault.New(fault.Invalid, "not_a_disk_image", "The object is a document."),
	} {
		f = f.Saw("%d bytes", 512)
		if p := importAnswers.to(fmt.Errorf("register import: %w", f)); p.status != 400 || p.code != "40004" || p.message != f.Sentences() {
			t.Errorf("%s is answered with %+v", f.Code, p)
		}
	}
	for f, code := range map[*fault.Error]string{storage.ErrNoObject: "40014", storage.ErrChanged: "40014", tasks.ErrImageIDInUse: "40015"} {
		if p := importAnswers.to(f); p.code != code || p.message != f.Sentences() {
			t.Errorf("%s is answered with %+v", f.Code, p)
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
		`{"location": "/v2/AUTH_` + project + `/c/o.img.gz", "min_disk": 3}`, `{"s3_location": "/b/o.qcow2.gz", "details": {"image_from": "kvm"}}`,
		`{"name": "\ud83d\ude00", "x": [[{"a": "\\ud800"}]]}`, `{"a":1,"a":2}`, `{`, `null`, "{\"name\":\"\xff\"}",
	} {
		f.Add([]byte(s))
	}
	d := newDialect(f, Options{})
	f.Fuzz(func(t *testing.T, body []byte) {
		for _, parse := range []func([]byte, string) (*request, error){d.parseImage, d.parseDataDisk} {
			r, err := parse(body, project)
			if err != nil {
				if p := importAnswers.to(err); p.status != 400 || p.message == "" {
					t.Fatalf("%q: %+v", body, p)
				}
				continue
			}
			checkRequest(t, body, r)
		}
	})
}

// checkRequest looks for anything in an accepted request that no later step
// expects.
func checkRequest(t *testing.T, body []byte, r *request) {
	var sent struct{ Name string }
	if err := json.Unmarshal(body, &sent); err != nil || !utf8.ValidString(r.spec.Name) {
		t.Fatalf("%q was accepted: %v", body, err)
	}
	spec, disk := r.spec, r.spec.Disks[0]
	formats := []string{"vmdk", "qcow2"}
	if r.metadata != nil {
		formats = []string{"raw.gz", "qcow2.gz"}
		if o := *r.metadata; o.Project != project || o.Container != disk.Object.Container || !strings.HasSuffix(o.Name, ".json") || checkNames(o.Container, o.Name) != "" {
			t.Fatalf("%q has its metadata at %+v", body, o)
		}
	}
	switch {
	case r.metadata == nil && (spec.Name == "" || spec.OSType == "" || r.dataDisk), r.dataDisk && (spec.Name == "" || spec.OSType != ""),
		!slices.Contains(formats, disk.Format),
		disk.Object.Project != project,
		spec.MinRAMMiB < 0 || spec.MinRAMMiB > 1<<31-1 || spec.MinDiskGiB < 0 || spec.MinDiskGiB > 1<<31-1,
		disk.SHA1 != "" && (len(disk.SHA1) != 40 || disk.SHA1 != strings.ToLower(disk.SHA1)),
		spec.ImageID != "" && len(spec.ImageID) != 36:
		t.Fatalf("%q was accepted as %+v", body, spec)
	}
	showable(t, r)
}

// showable fails the test unless a status can be made of what r has kept.
func showable(t *testing.T, r *request) {
	var err error
	if r.spec.Details, err = json.Marshal(r.shown); err != nil {
		t.Fatal(err)
	}
	if _, err := newStatusBody(&tasks.Task{Spec: *r.spec}, nil); err != nil {
		t.Fatalf("%+v cannot be shown: %v", r, err)
	}
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
