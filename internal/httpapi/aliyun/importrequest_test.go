package aliyun

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"vmimport/internal/auth/ram"
	"vmimport/tasks"
)

func TestValidName(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]bool{
		"ab": true, "a": false, "Z9": true, "a:b.c_d-e": true,
		"9a": false, "_a": false, ":a": false, "-a": false, ".a": false, "a b": false, "a/b": false, "a\n": false, " ab": false,
		strings.Repeat("a", 128): true, strings.Repeat("a", 129): false,
		strings.Repeat("漢", 128): true, strings.Repeat("漢", 129): false,
		"東京ウェブ": true, "ひらがな": true, "カタカナ1": true, "漢字:1": true, "web漢": true, "𠮷野家": true,
		"サーバー": true, "ーサ": true, "佐々木": true, "こゝろ": true, "ヾ々": true, "二〇二六": true,
		"ｻｰﾊﾞｰ": true, "ﾟﾟ": true,
		"か\u3099web": false, // の combining mark of what has a letter of its own
		"㋐㋑":         false, "⼀⼁": false, "〡〢": false, "🈀🈁": false,
		"é1": false, "été": false, "дом": false, "서버": false, "aé": false, "ａｂ": false, "a１": false, "a‐b": false,
		"http://web": false, "https://web": false, "http:web": true,
		"aliyun": false, "aliyun-web": false, "acs:web": false, "web-aliyun": true, "acsweb": true, "Aliyun-web": true,
		"a\xff": false, "": false,
	} {
		if got := validName(name); got != want {
			t.Errorf("%q: %t, want %t", name, got, want)
		}
	}
}

func TestParseSize(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]int64{
		"5": 5, "500": 500, "040": 40,
		"4": 0, "501": 0, "": 0, " 40": 0, "40 ": 0, "+40": 0, "-40": 0, "40.0": 0, "0x28": 0, "4e1": 0, "4_0": 0, "４０": 0, "40GiB": 0,
		"9223372036854775807": 0, "9223372036854775808": 0, "99999999999999999999999": 0,
	} {
		got, ok := parseSize(text, Sizes{5, 500})
		if ok != (want > 0) || ok && got != want {
			t.Errorf("%q: %d, %t; want %d", text, got, ok, want)
		}
	}
}

// Every platform is found in any casing and comes back in its own, and each name for
// Glance is one of a platform.
func TestPlatforms(t *testing.T) {
	t.Parallel()
	for _, want := range platforms {
		for _, sent := range []string{want, strings.ToLower(want), strings.ToUpper(want)} {
			got, err := params{"Platform": sent}.choice("Platform", errPlatform, platforms...)
			if got != want || err != nil {
				t.Errorf("%q: %q, %v; want %q", sent, got, err, want)
			}
		}
	}
	for platform := range distros {
		if !slices.Contains(platforms, platform) {
			t.Errorf("%q is no platform", platform)
		}
	}
	for platform, want := range map[string]string{"Windows 7": "windows", "Other Windows": "windows", "RedHat": "rhel", "Others Linux": "", "SUSE": ""} {
		if got := distroOf(platform); got != want {
			t.Errorf("%s: %q, want %q", platform, got, want)
		}
	}
}

func TestFingerprint(t *testing.T) {
	t.Parallel()
	p := params{"Action": "ImportImage", "Timestamp": "1", "SignatureNonce": "1", "ClientToken": "t", "ImageName": "web", "Description": ""}
	same := params{"Timestamp": "2", "SignatureNonce": "2", "ImageName": "web", "SecurityToken": "x", "AccessKeyId": "y", "Format": "XML"}
	if p.fingerprint() != same.fingerprint() {
		t.Error("two requests for the same have different fingerprints")
	}
	seen := map[string]params{}
	for _, q := range []params{
		{}, {"ImageName": "web"}, {"ImageNam": "eweb"}, {"ImageName": "Web"}, {"ImageName": "web", "Unknown": "x"},
		{"a": "1", "b": "2"}, {"a": "11:b1:2"}, {"a": "2", "b": "1"}, {"ab": "12"},
	} {
		if other, ok := seen[q.fingerprint()]; ok {
			t.Errorf("%v and %v have the same fingerprint", q, other)
		}
		seen[q.fingerprint()] = q
	}
}

// The size of a disk is what was asked for, else what the image turns out to have.
func TestDiskSize(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ asked, found, result, want int64 }{
		{0, 0, 0, 5}, {0, 1, 0, 5}, {0, 5 << 30, 0, 5}, {0, 5<<30 + 1, 0, 6}, {40, 7 << 30, 7 << 30, 40}, {0, 0, 9 << 30, 9},
	} {
		d := &details{Disks: []disk{{GiB: test.asked}}}
		imp := &tasks.Task{Spec: tasks.Spec{Disks: []tasks.Disk{{VirtualBytes: test.found}}}}
		if test.result > 0 {
			imp.Result = &tasks.Result{Disks: []tasks.DiskResult{{VirtualSizes: []int64{test.result}}}}
		}
		if got := d.gib(imp, 0); got != test.want {
			t.Errorf("%+v: %d", test, got)
		}
	}
}

func TestIDs(t *testing.T) {
	t.Parallel()
	const end = "bp000000000000000001"
	if id, ok := taskOfImage("m-" + end); id != "t-"+end || !ok {
		t.Errorf("%s, %t", id, ok)
	}
	if got := imageOf(&tasks.Task{Spec: tasks.Spec{ID: "t-" + end}}); got != "m-"+end {
		t.Error(got)
	}
	for _, no := range []string{"", "m-", "t-" + end, "m-" + end + "0", "m-" + end[1:], "m-" + strings.ToUpper(end), "m-bp00000000000000000/", "m-bp000000000000000é"} {
		if _, ok := taskOfImage(no); ok {
			t.Errorf("%q is no image's id", no)
		}
	}
	for range 100 {
		if id := newID(); !wellFormed(id) {
			t.Errorf("new id %q", id)
		}
	}
}

// accepting is a Service that accepts all, with objects of some size.
type accepting struct {
	Service
	found int64
	spec  *tasks.Spec
}

func (a *accepting) Admit(context.Context, *tasks.Spec, tasks.Quota) (*tasks.Task, error) {
	return nil, nil
}

func (a *accepting) Inspect(_ context.Context, spec *tasks.Spec) error {
	for i := range spec.Disks {
		d := &spec.Disks[i]
		d.Bytes, d.VirtualBytes, d.Detected, d.Version = 1, a.found, "raw", "v"
	}
	return nil
}

func (a *accepting) Accept(_ context.Context, spec *tasks.Spec, _ tasks.Quota) (*tasks.Task, bool, error) {
	a.spec = spec
	return &tasks.Task{Spec: *spec}, true, nil
}

func (a *accepting) send(t *testing.T, p params, account *ram.Account, region *Region) (any, error) {
	d := &Dialect{service: a, opts: Options{NewID: newID}}
	return (&call{Context: t.Context(), d: d, params: p, caller: &ram.Caller{Account: account}, region: region}).importImage()
}

// importer returns an account that may import from its bucket, and the region of that.
func importer(t testing.TB) (account *ram.Account, region *Region) {
	t.Helper()
	allow := func(text string) *ram.Policy {
		p, err := ram.ParsePolicy([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	account = &ram.Account{
		ID: "1", Project: "p", MayImport: true, ResourceGroups: []string{"rg"},
		Buckets: []ram.Bucket{{Name: "images", Region: "r", API: "s3", Project: "p", Container: "c"}},
		Roles: []ram.Role{{
			Name:     importRole,
			Trust:    allow(`{"Version": "1", "Statement": [{"Effect": "Allow", "Action": "sts:AssumeRole", "Principal": {"Service": ["ecs.aliyuncs.com"]}}]}`),
			Policies: []*ram.Policy{allow(`{"Version": "1", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}`)},
		}},
	}
	region = &Region{ID: "r", Formats: []string{"RAW", "VHD", "QCOW2"}, SystemDisk: Sizes{5, 500}, DataDisk: Sizes{5, 1000}, TargetFormat: "raw"}
	return account, region
}

// What Inspect finds is checked here too, if it does not mind itself.
func TestFoundSize(t *testing.T) {
	t.Parallel()
	account, region := importer(t)
	two := params{
		"DiskDeviceMapping.1.OSSBucket": "images", "DiskDeviceMapping.1.OSSObject": "web.raw", "DiskDeviceMapping.1.DiskImageSize": "41",
		"DiskDeviceMapping.2.OSSBucket": "images", "DiskDeviceMapping.2.OSSObject": "d.raw", "DiskDeviceMapping.2.DiskImageSize": "40",
	}
	for _, test := range []struct {
		found  int64
		number int // of the disk that is too large
	}{{40 << 30, 0}, {40<<30 + 1, 2}, {41 << 30, 2}, {41<<30 + 1, 1}} {
		service := &accepting{found: test.found}
		_, err := service.send(t, two, account, region)
		if test.number == 0 {
			if err != nil || service.spec.MinDiskGiB != 41 {
				t.Errorf("%d bytes: %v", test.found, err)
			}
			continue
		}
		if p := problemOf(err); service.spec != nil || p.message != errImageSize.message || p.code != errImageSize.code || !strings.HasPrefix(p.recommend, fmt.Sprintf("Disk %d: ", test.number)) {
			t.Errorf("%d bytes: %v", test.found, err)
		}
	}
}

// FuzzImportImage sends parameters, one in each line, to an account that may import. What
// is accepted has the properties that workers and answers rely on.
func FuzzImportImage(f *testing.F) {
	const disk = "\nDiskDeviceMapping.1.OSSBucket=images\nDiskDeviceMapping.1.OSSObject=web.raw"
	for _, seed := range []string{
		"", disk, "ImageName=漢字" + disk, "ImageName=a:b.c_d-e\nDescription=d\nArchitecture=arm64\nOSType=Windows\nPlatform=uos" + disk,
		"DiskDeviceMapping.1.DiskImageSize=40\nDiskDeviceMapping.1.Format=raw" + disk,
		"DiskDeviceMapping.2.OSSBucket=images\nDiskDeviceMapping.2.OSSObject=d\nDiskDeviceMapping.2.DiskImSize=1000" + disk,
		"DiskDeviceMapping.3.OSSBucket=images\nDiskDeviceMapping.3.OSSObject=d" + disk, "DiskDeviceMapping.1.Device=/dev/xvda" + disk,
		"Tag.1.Key=k\nTag.1.Value=v\nTag.20.key=x" + disk, "ClientToken=t\nBootMode=UEFI\nLicenseType=BYOL\nDryRun=true" + disk,
		"Features.NvmeSupport=supported\nFeatures.ImdsSupport=v2\nResourceGroupId=rg\nRoleName=" + importRole + disk,
	} {
		f.Add(seed, int64(20<<30))
	}
	account, region := importer(f)
	f.Fuzz(func(t *testing.T, text string, found int64) {
		p := params{"RegionId": "r"}
		for line := range strings.SplitSeq(text, "\n") {
			name, value, _ := strings.Cut(line, "=")
			p[name] = value
		}
		service := &accepting{found: max(found, 0)}
		answer, err := service.send(t, p, account, region)
		if err != nil {
			if answer != nil || service.spec != nil || problemOf(err).status >= 500 {
				t.Fatalf("refused with %v, answer %v, accepted %v", err, answer, service.spec)
			}
			return
		}
		checkAccepted(t, p, service.spec, region)
	})
}

func checkAccepted(t *testing.T, p params, spec *tasks.Spec, region *Region) {
	t.Helper()
	shown, err := detailsOf(&tasks.Task{Spec: *spec})
	if err != nil {
		t.Fatal(err)
	}
	if !isTask(string(spec.ID)) || !utf8.ValidString(spec.Name) || spec.Name != p["ImageName"] || spec.UniqueName != (spec.Name != "") ||
		len(spec.ClientToken) > 64 || len(spec.Fingerprint) != 64 {
		t.Fatalf("spec: %+v", spec)
	}
	if n := len(spec.Disks); n < 1 || n > 17 || p[numbered(mapping, n+1)+"OSSBucket"] != "" {
		t.Fatalf("%d disks of %v", n, p)
	}
	for i, d := range spec.Disks {
		most := region.sizes(i).Max << 30
		if d.MaxBytes < 5<<30 || d.MaxBytes > most || d.VirtualBytes > d.MaxBytes || d.Object.Container != "c" || d.Object.Name != p[numbered(mapping, i+1)+"OSSObject"] {
			t.Fatalf("disk %d: %+v", i+1, d)
		}
		if gib := shown.gib(&tasks.Task{Spec: *spec}, i); gib < 5 || gib > region.sizes(i).Max || i == 0 && gib != spec.MinDiskGiB {
			t.Fatalf("disk %d is shown with %d GiB", i+1, gib)
		}
		if !isText(d.Object.Name) || len(d.Object.Name) > maxObjectName {
			t.Fatalf("object %q", d.Object.Name)
		}
	}
	for name, value := range spec.Properties {
		if value == "" || !isText(value) {
			t.Fatalf("property %s: %q", name, value)
		}
	}
	if again, err := json.Marshal(shown); err != nil || string(again) != string(spec.Details) {
		t.Fatalf("details %s read as %s, %v", spec.Details, again, err)
	}
	if len(shown.Tags) > maxTags || shown.Description != p["Description"] {
		t.Fatalf("details: %s", spec.Details)
	}
}
