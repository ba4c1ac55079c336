package fjcloud

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"vmimport/imageapi"
	"vmimport/internal/auth"
	"vmimport/internal/fault"
	"vmimport/storage"
	"vmimport/tasks"
)

// Each thing that can be wrong has its own code.
func TestExportCodes(t *testing.T) {
	t.Parallel()
	wrapped := func(f error) error { return fmt.Errorf("register export: %w", f) }
	for code, errs := range map[string][]error{
		"40001": {errImageIDMissing},
		"40002": {errImageID},
		"40003": {errContainerMissing},
		"40004": {errContainer},
		"40005": {errNoProject},
		"40006": {errForeignImage, imageapi.ErrNoImage, fault.New(fault.NotFound, "image_not_owned", "Of another project."), fault.New(fault.Denied, "image_not_owned", "Of another project.")},
		"40007": {
			imageapi.ErrNotReady, imageapi.ErrSeveralDisks, imageapi.ErrGone,
			fault.New(fault.Invalid, "image_format_unsupported", "Not raw."), fault.New(fault.Invalid, "image_name_unusable", "Has a slash."),
		},
		"40008": {storage.ErrNoContainer, fault.New(fault.Denied, "access_denied", "The object store refuses access.")},
		"40009": {storage.ErrObjectExists, tasks.ErrNameExporting, tasks.ErrImageExporting},
		"40010": {tasks.ErrCancelRequested},
		"40011": {errExportDetails},
		"40012": {fault.New(fault.Invalid, "exports_not_offered", "No exports here.")},
		"40013": {errExportStart},
		"40014": {errExportLimit},
		"40016": {errBody},
		"40101": {auth.ErrNoIdentity},
		"40301": {errNoRole},
		"40302": {tasks.ErrTooManyImports, fault.New(fault.Exhausted, "disk_quota", "Used up.")},
		"40401": {tasks.ErrUnknown},
		"40402": {tasks.ErrFinished},
		"50001": {fault.New(fault.Internal, "bug", "x"), tasks.ErrFenced, fmt.Errorf("nil map")},
		"50301": {storage.ErrUnavailable, storage.ErrFull, imageapi.ErrFull, fault.New(fault.Unavailable, "image_service_unavailable", "x"), fault.New(fault.Canceled, "canceled", "x")},
	} {
		for _, err := range errs {
			p := exportAnswers.to(wrapped(err))
			if p.code != code || code[:3] != fmt.Sprint(p.status) || p.message == "" {
				t.Errorf("%v is answered with %+v, not with %s", err, p, code)
			}
			// Nothing is said in words about imports.
			if text := strings.ReplaceAll(p.message, "imports and exports", ""); strings.Contains(text, "import") {
				t.Errorf("%v is answered with %q", err, p.message)
			}
		}
	}
	there := exportAnswers.to(fault.New(fault.NotFound, "image_not_owned", "Of another project.").Saw("owner 7").Try("Ask the owner."))
	if gone := exportAnswers.to(imageapi.ErrNoImage); *gone != *there {
		t.Errorf("%+v and %+v tell whether an image of another project is there", gone, there)
	}
}

func TestExportForms(t *testing.T) {
	t.Parallel()
	for _, opts := range []Options{{}, {Profile: Classic}} {
		d := newDialect(t, opts)
		for member, want := range map[string]tasks.Form{
			``: tasks.FormCloud, `, "details": null`: tasks.FormCloud, `, "details": {}`: tasks.FormCloud, `, "details": {"image_to": null}`: tasks.FormCloud,
			`, "details": {"image_to": "cloud"}`: tasks.FormCloud, `, "details": {"image_to": "vmware"}`: tasks.FormVMDK, `, "details": {"image_to": "kvm"}`: tasks.FormQCOW2,
		} {
			body := `{"image_id": "` + original + `", "storage_container": "/` + d.version + `/AUTH_` + project + `/c"` + member + `}`
			if r, err := d.parseExport([]byte(body), project); err != nil || r.form != want || r.container != "c" {
				t.Errorf("%s: %+v, %v", body, r, err)
			}
		}
	}
}

func FuzzContainer(f *testing.F) {
	for _, s := range []string{
		"/v2/AUTH_" + project + "/c", "/v2/AUTH_" + project + "/c/", "/v2/AUTH_" + project + "/a b%2f", "/v2/AUTH_" + project + "/c/o", "/v2/AUTH_" + project + "//",
		"/v2/AUTH_" + project + "/..", "/v2/AUTH_" + project + "/.", "/v2/AUTH_" + project, "/v2/AUTH_/c", "/v1/AUTH_" + project + "/c", "//v2/AUTH_" + project + "/c",
		"/v2/AUTH_" + project + "/c?x#y", "/v2/AUTH_" + project + "/c\x00", "/v2/AUTH_" + project + "/" + strings.Repeat("c", 248), "",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		container, err := parseContainer(s, "v2", project)
		if err != nil {
			if p := exportAnswers.to(err); p.code != "40004" || container != "" {
				t.Errorf("%q: %+v", s, p)
			}
			return
		}
		if path := "/v2/AUTH_" + project + "/" + container; s != path && s != path+"/" {
			t.Errorf("%q was read as %q", s, container)
		}
		if container == "" || container == "." || container == ".." || len(container) > 247 || strings.ContainsAny(container, "/?#\x00\n\x7f") {
			t.Errorf("%q was accepted as %q", s, container)
		}
		// What an import may read from, an export may write to, and the other way round.
		if _, err := parseLocation("/v2/AUTH_"+project+"/"+container+"/web01.img.gz", "v2", project); err != nil {
			t.Errorf("%q is no place for an import: %v", container, err)
		}
	})
}

func FuzzExport(f *testing.F) {
	container := `"storage_container": "/v2/AUTH_` + project + `/c"`
	for _, s := range []string{
		`{"image_id": "` + original + `", ` + container + `}`, `{"image_id": "` + strings.ToUpper(original) + `", ` + container + `, "details": {"image_to": "vmware"}}`,
		`{"image_id": "` + original + `", "storage_container": "/v2/AUTH_` + project + `/\ud83d\ude00/", "details": {"x": [{}]}}`, `{"image_id": 7, ` + container + `}`,
		`{"image_id": "` + original + `", ` + container + `, "details": 7}`, `{"a":1,"a":2}`, `{`, `null`, "{\"image_id\":\"\xff\"}",
	} {
		f.Add([]byte(s))
	}
	d := newDialect(f, Options{})
	known := []string{"40001", "40002", "40003", "40004", "40011", "40016"}
	f.Fuzz(func(t *testing.T, body []byte) {
		r, err := d.parseExport(body, project)
		if err != nil {
			if p := exportAnswers.to(err); !slices.Contains(known, p.code) || p.message == "" {
				t.Fatalf("%q: %+v", body, p)
			}
			return
		}
		if id, ok := canonicalUUID(r.imageID); !ok || id != r.imageID || !slices.Contains([]tasks.Form{tasks.FormCloud, tasks.FormVMDK, tasks.FormQCOW2}, r.form) {
			t.Fatalf("%q was accepted as %+v", body, r)
		}
		if again, err := parseContainer(r.shown.StorageContainer, "v2", project); err != nil || again != r.container {
			t.Fatalf("%q was accepted as %+v", body, r)
		}
		details, err := json.Marshal(r.shown)
		if err != nil {
			t.Fatal(err)
		}
		spec := tasks.Spec{ImageID: r.imageID, Export: &tasks.Export{Form: r.form, Container: r.container}, Details: details}
		if b, err := newExportStatusBody(&tasks.Task{Spec: spec}, nil); err != nil || b.StorageContainer != r.shown.StorageContainer {
			t.Fatalf("%+v cannot be shown: %v", r, err)
		}
	})
}
