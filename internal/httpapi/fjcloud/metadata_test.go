package fjcloud

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"vmimport/tasks"
)

const original = "5b1c1c0e-53a7-4c2a-9a53-2d0f0c1b8a77"

func TestMetadataOf(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]string{
		"web01.img.gz": "web01.json", "web01.qcow2.gz": "web01.json", "a.img.gz/b.c.img.gz": "a.img.gz/b.c.json",
		"a.img.gz.img.gz": "a.img.gz.json", ".img.gz": ".json", "dir/.qcow2.gz": "dir/.json", "ウェブ 01.img.gz": "ウェブ 01.json",
	} {
		o := tasks.Object{API: apiS3, Project: project, Container: "c", Name: name}
		ext, err := extensionOf(o, exportedExtensions)
		if err != nil {
			t.Fatal(err)
		}
		if got := metadataOf(o, ext); got != (tasks.Object{API: apiS3, Project: project, Container: "c", Name: want}) {
			t.Errorf("%s has its metadata at %+v", name, got)
		}
	}
}

func TestParseMetadata(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("ぬ", 255)
	for name, tt := range map[string]struct {
		content string
		want    metadata
		unfit   string // member that cannot be used, "-": all of it
	}{
		"whole record": {
			content: `{"id": "` + strings.ToUpper(original) + `", "name": "web01", "min_ram": 2048, "min_disk": "40", "disk_format": "raw", "container_format": "bare",
				"os_type": "centos", "base_image_id": "b-1", "status": "active", "checksum": null, "tags": ["a", {"b": [1.5]}]}`,
			want: metadata{id: original, name: "web01", osType: "centos", baseImageID: "b-1", minRAMMiB: 2048, minDiskGiB: 40},
		},
		"properties": {
			content: `{"hw_firmware_type": "uefi", "hw_machine_type": "q35", "hw_disk_bus": "scsi", "hw_scsi_model": "virtio-scsi", "os_distro": "", "os_version": null,
				"hw_numa_nodes": 4, "trait:CUSTOM_X": "required", "hypervisor_type": "xen", "kernel_id": "` + original + `", "vmimport_import_id": "x", "properties": {"hw_tpm_model": "x"}}`,
			want: metadata{properties: map[string]string{"hw_firmware_type": "uefi", "hw_machine_type": "q35", "hw_disk_bus": "scsi", "hw_scsi_model": "virtio-scsi"}},
		},
		"long property":     {content: `{"os_version": "` + long + `"}`, want: metadata{properties: map[string]string{"os_version": long}}},
		"nothing in it":     {content: "{}"},
		"null all over":     {content: `{"id": null, "name": null, "min_ram": null, "min_disk": null, "os_type": null, "base_image_id": null}`},
		"empty labels":      {content: `{"os_type": "", "base_image_id": ""}`},
		"long labels":       {content: `{"os_type": "` + long + `"}`, want: metadata{osType: long}},
		"strange formats":   {content: `{"disk_format": 7, "container_format": {"name": "x"}}`},
		"white space":       {content: " \n{\"name\": \" a \"}\r\n", want: metadata{name: " a "}},
		"empty":             {content: "", unfit: "-"},
		"array":             {content: `[{"name": "web01"}]`, unfit: "-"},
		"string":            {content: `"web01"`, unfit: "-"},
		"null":              {content: "null", unfit: "-"},
		"cut short":         {content: `{"name": "web01"`, unfit: "-"},
		"two records":       {content: `{}{}`, unfit: "-"},
		"not UTF-8":         {content: "{\"name\": \"\xff\"}", unfit: "-"},
		"byte order mark":   {content: "\ufeff{}", unfit: "-"},
		"HTML":              {content: "<html><body>404</body></html>", unfit: "-"},
		"member twice":      {content: `{"id": null, "id": "` + original + `"}`, unfit: "-"},
		"deep":              {content: `{"x": ` + strings.Repeat("[", 40) + strings.Repeat("]", 40) + `}`, unfit: "-"},
		"id, number":        {content: `{"id": 7}`, unfit: "id"},
		"id, no UUID":       {content: `{"id": "../../etc/passwd"}`, unfit: "id"},
		"name, number":      {content: `{"name": 7}`, unfit: "name"},
		"name, blank":       {content: `{"name": " "}`, unfit: "name"},
		"name, control":     {content: `{"name": "a\u0007"}`, unfit: "name"},
		"name, long":        {content: `{"name": "` + long + `x"}`, unfit: "name"},
		"min_ram, negative": {content: `{"min_ram": -1}`, unfit: "min_ram"},
		"min_ram, fraction": {content: `{"min_ram": 1.5}`, unfit: "min_ram"},
		"min_disk, huge":    {content: `{"min_disk": "2147483648"}`, unfit: "min_disk"},
		"min_disk, true":    {content: `{"min_disk": true}`, unfit: "min_disk"},
		"os_type, object":   {content: `{"os_type": {}}`, unfit: "os_type"},
		"os_type, long":     {content: `{"os_type": "` + long + `x"}`, unfit: "os_type"},
		"os_type, newline":  {content: `{"os_type": "rhel7\nX-Header: y"}`, unfit: "os_type"},
		"os_type, bidi":     {content: `{"os_type": "rhel\u202e7"}`, unfit: "os_type"},
		"base, array":       {content: `{"base_image_id": ["x"]}`, unfit: "base_image_id"},
		"base, escape":      {content: `{"base_image_id": "\u001b[2J"}`, unfit: "base_image_id"},
		"property, true":    {content: `{"os_secure_boot": true}`, unfit: "os_secure_boot"},
		"property, list":    {content: `{"hw_vif_model": ["virtio"]}`, unfit: "hw_vif_model"},
		"property, long":    {content: `{"hw_machine_type": "` + long + `x"}`, unfit: "hw_machine_type"},
		"property, NUL":     {content: `{"hw_video_model": "vga\u0000"}`, unfit: "hw_video_model"},
	} {
		md, err := parseMetadata([]byte(tt.content))
		if tt.unfit == "" {
			if err != nil || fmt.Sprintf("%+v", *md) != fmt.Sprintf("%+v", tt.want) {
				t.Errorf("%s: %+v, %v", name, md, err)
			}
			continue
		}
		want := "It is not a JSON object."
		if tt.unfit != "-" {
			want = "Its member '" + tt.unfit + "' has an invalid value."
		}
		if err == nil || importAnswers.to(err).code != "40017" || !strings.HasSuffix(importAnswers.to(err).message, " "+want) {
			t.Errorf("%s: %v, want %s", name, err, want)
		}
	}
}

// The request's own members win, also where they are zero.
func TestTakeFromMetadata(t *testing.T) {
	t.Parallel()
	full := metadata{
		id: original, name: "old", osType: "centos", baseImageID: "b-1", minRAMMiB: 1, minDiskGiB: 2,
		properties: map[string]string{"hw_firmware_type": "uefi", "os_version": "7"},
	}
	const hardware = " map[hw_firmware_type:uefi os_version:7]"
	const other = "00000000-0000-4000-8000-000000000001"
	for name, tt := range map[string]struct {
		md       metadata
		more     string // members of the request
		dataDisk bool
		want     string
	}{
		"all":                {full, ``, false, original + " old centos 1 2 kept, billed by {centos b-1}" + hardware},
		"none":               {full, `, "id": "` + other + `", "name": "new", "os_type": "rocky", "min_ram": 0, "min_disk": "0"`, false, other + " new rocky 0 0, billed by {rocky b-1}" + hardware},
		"null":               {full, `, "id": null, "name": null, "os_type": null, "min_ram": null`, false, original + " old centos 1 2 kept, billed by {centos b-1}" + hardware},
		"base image":         {full, `, "base_image_id": "b-2", "billing_info": {"os_type": "free"}`, false, original + " old centos 1 2 kept, billed by {centos b-1}" + hardware},
		"empty, name given":  {metadata{}, `, "name": "new"`, false, " new  0 0, billed by { }"},
		"empty, none given":  {metadata{}, ``, false, "40017"},
		"data disk":          {full, `, "name": "new"`, true, original + " new  0 0 kept"},
		"data disk, all":     {full, `, "name": "new", "id": "` + other + `", "os_type": "?", "min_ram": -1, "details": 7, "conversion": 7`, true, other + " new  0 0"},
		"data disk, no name": {full, ``, true, "40001"},
		"data disk, no id":   {metadata{}, `, "name": "new"`, true, " new  0 0"},
	} {
		d := newDialect(t, Options{})
		parse := d.parseImage
		if tt.dataDisk {
			parse = d.parseDataDisk
		}
		r, err := parse([]byte(`{"location": "/v2/AUTH_`+project+`/c/o.img.gz"`+tt.more+`}`), project)
		if err == nil {
			err = r.take(&tt.md)
		}
		got := ""
		if err != nil {
			got = importAnswers.to(err).code
		} else {
			got = fmt.Sprint(r.spec.ImageID, " ", r.spec.Name, " ", r.spec.OSType, " ", r.spec.MinRAMMiB, " ", r.spec.MinDiskGiB)
			if r.keepsID {
				got += " kept"
			}
			if b := r.shown.BillingInfo; b != nil {
				got += fmt.Sprint(", billed by ", *b)
			}
			if p := r.spec.Properties; p != nil {
				got += fmt.Sprint(" ", p)
			}
		}
		if got != tt.want {
			t.Errorf("%s: got %q, want %q (%v)", name, got, tt.want, err)
		}
	}
}

func FuzzMetadata(f *testing.F) {
	for _, s := range []string{
		`{"id": "` + original + `", "name": "web01", "min_ram": 2048, "min_disk": "40", "os_type": "rocky", "base_image_id": "b-1"}`,
		`{"name": "\ud83d\ude00", "os_type": "\u00a0", "x": [[{"a": null}]]}`, `{"min_ram": 1e3, "min_disk": "00007"}`,
		`{"id": null, "id": 1}`, `{}`, `[]`, `null`, "", "{\"name\":\"\xff\"}", "\ufeff{}",
		`{"hw_firmware_type": "uefi", "hw_tpm_version": "2.0", "os_secure_boot": "", "architecture": null, "hw_disk_bus": 7}`,
	} {
		f.Add([]byte(s))
	}
	// Only these are said, so that nothing of the content ever is.
	said := []string{errExported.message + " It is not a JSON object."}
	for _, member := range slices.Concat([]string{"id", "name", "min_ram", "min_disk", "os_type", "base_image_id"}, startProperties) {
		said = append(said, unusable(member).(*problem).message)
	}
	d := newDialect(f, Options{})
	f.Fuzz(func(t *testing.T, content []byte) {
		md, err := parseMetadata(content)
		if err != nil {
			if p := importAnswers.to(err); p.code != "40017" || !slices.Contains(said, p.message) {
				t.Fatalf("%q: %+v", content, p)
			}
			return
		}
		r, err := d.parseImage([]byte(`{"name": "n", "location": "/v2/AUTH_`+project+`/c/o.img.gz"}`), project)
		if err != nil {
			t.Fatal(err)
		}
		if err := r.take(md); err != nil {
			t.Fatalf("%q: %v", content, err)
		}
		if r.spec.OSType != md.osType || r.spec.ImageID != md.id || r.spec.Name != "n" {
			t.Fatalf("%q was taken as %+v", content, r.spec)
		}
		for property, value := range r.spec.Properties {
			unprintable := strings.ContainsFunc(value, func(r rune) bool { return !unicode.IsPrint(r) })
			if !slices.Contains(startProperties, property) || value == "" || unprintable || utf8.RuneCountInString(value) > 255 {
				t.Fatalf("%q has the property %q of %q", content, property, value)
			}
		}
		checkRequest(t, []byte("{}"), r)
	})
}
