package aliyun_test

import (
	"encoding/xml"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"vmimport/internal/auth/aliyunsig/aliyunsigtest"
	"vmimport/internal/auth/ram"
	"vmimport/internal/httpapi/aliyun"
	"vmimport/tasks"
)

// importOf reads the record of an import of alpha in Hangzhou.
func (r *rig) importOf(t testing.TB, task string) *tasks.Task {
	t.Helper()
	imp, err := r.store.Get(t.Context(), tasks.Scope{Region: hangzhou, Tenant: "aliyun:" + alpha}, tasks.ID(task))
	if err != nil {
		t.Fatal(err)
	}
	return imp
}

// disks are the parameters of further disks, from the second on.
func disks(n int) []string {
	var pairs []string
	for i := 2; i <= n; i++ {
		prefix := "DiskDeviceMapping." + strconv.Itoa(i) + "."
		pairs = append(pairs, prefix+"OSSBucket", "images", prefix+"OSSObject", "data.raw")
	}
	return pairs
}

func TestImportImageAnswer(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	uuid := regexp.MustCompile(`^[0-9A-F]{8}(-[0-9A-F]{4}){3}-[0-9A-F]{12}$`)

	a := r.call(t, "ImportImage", oneDisk())
	wantOK(t, a)
	names := slices.Sorted(maps.Keys(a.json))
	if want := []string{"ImageId", "ImportTaskId", "RegionId", "RequestId", "TaskId"}; !slices.Equal(names, want) {
		t.Errorf("members %q, want %q", names, want)
	}
	if a.text("RegionId") != hangzhou || a.text("ImportTaskId") != a.text("TaskId") || !uuid.MatchString(a.text("RequestId")) {
		t.Errorf("answer: %s", a.body)
	}
	task, image := a.text("TaskId"), a.text("ImageId")
	if !regexp.MustCompile(`^t-[0-9a-z]{20}$`).MatchString(task) || image != "m-"+strings.TrimPrefix(task, "t-") {
		t.Errorf("ids: %s", a.body)
	}

	var doc struct {
		XMLName                                            xml.Name `xml:"ImportImageResponse"`
		RequestId, RegionId, ImageId, ImportTaskId, TaskId string
	}
	inXML := r.call(t, "ImportImage", oneDisk("Format", "XML"))
	wantOK(t, inXML)
	if err := xml.Unmarshal([]byte(inXML.body), &doc); err != nil {
		t.Fatal(err)
	}
	if doc.TaskId == "" || doc.TaskId == task || doc.ImportTaskId != doc.TaskId || doc.ImageId == "" || doc.RegionId != hangzhou {
		t.Errorf("in XML: %s", inXML.body)
	}
}

func TestImportImageRecord(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(o *aliyun.Options) {
		o.Regions[0].ImageID = func(public string) string { return "id-of-" + public }
	})
	r.objects.put("web.qcow2", object{bytes: 2 << 30, virtualBytes: 7<<30 + 1, format: "qcow2"})
	r.objects.put("data.vhd", object{bytes: 1 << 30, virtualBytes: 9 << 30, format: "vhd"})
	a := r.callAs(t, importerKey, "ImportImage", params{
		"RegionId": hangzhou, "ImageName": "東京ウェブ-1", "Description": "two\nlines", "Architecture": "arm64",
		"OSType": "Linux", "Platform": "centos stream", "ResourceGroupId": "rg-one", "ClientToken": "token-1",
		"LicenseType": "BYOL", "DetectionStrategy": "Standard", "RoleName": "AliyunECSImageImportDefaultRole",
		"Features.NvmeSupport": "supported", "Features.ImdsSupport": "v2", "DryRun": "false",
		"Tag.1.Key": "env", "Tag.1.Value": "prod", "Tag.3.Key": "空", "OwnerId": "17", "Unknown": "x",
		"DiskDeviceMapping.1.OSSBucket": "images", "DiskDeviceMapping.1.OSSObject": "web.qcow2", "DiskDeviceMapping.1.Device": "/dev/xvdq",
		"DiskDeviceMapping.2.OSSBucket": "images", "DiskDeviceMapping.2.OSSObject": "data.vhd", "DiskDeviceMapping.2.Format": "Vhd",
		"DiskDeviceMapping.2.DiskImSize": "40",
	})
	wantOK(t, a)
	spec := r.importOf(t, a.text("TaskId")).Spec

	if want := "id-of-" + a.text("ImageId"); spec.ImageID != want || spec.ImageIDGiven {
		t.Errorf("image id %s, %t; want %s", spec.ImageID, spec.ImageIDGiven, want)
	}
	if want := (tasks.Owner{Tenant: "aliyun:" + alpha, Project: "p-" + alpha, User: "acs:ram::" + alpha + ":user/importer"}); spec.Owner != want {
		t.Errorf("owner %+v, want %+v", spec.Owner, want)
	}
	if spec.Dialect != aliyun.Name || spec.Region != hangzhou || spec.Name != "東京ウェブ-1" || !spec.UniqueName || !spec.ListsImage ||
		spec.OSType != "linux" || spec.TargetFormat != "raw" || spec.ClientToken != "token-1" || len(spec.Fingerprint) != 64 ||
		spec.RequestID != a.text("RequestId") || spec.MinDiskGiB != 8 {
		t.Errorf("spec: %+v", spec)
	}
	wantDisks := []tasks.Disk{
		{Object: tasks.Object{API: "s3", Project: "p-" + alpha, Container: "images-" + alpha, Name: "web.qcow2"},
			Bytes: 2 << 30, Version: "v1", Detected: "qcow2", VirtualBytes: 7<<30 + 1, MaxBytes: 500 << 30},
		{Object: tasks.Object{API: "s3", Project: "p-" + alpha, Container: "images-" + alpha, Name: "data.vhd"},
			Format: "vhd", Bytes: 1 << 30, Version: "v1", Detected: "vhd", VirtualBytes: 9 << 30, MaxBytes: 40 << 30},
	}
	if !slices.Equal(spec.Disks, wantDisks) {
		t.Errorf("disks\n%+v, want\n%+v", spec.Disks, wantDisks)
	}
	wantProperties := map[string]string{"architecture": "aarch64", "hw_firmware_type": "uefi", "os_distro": "centos"}
	if !maps.Equal(spec.Properties, wantProperties) {
		t.Errorf("properties %v, want %v", spec.Properties, wantProperties)
	}
	wantDetails := `{"description":"two\nlines","architecture":"arm64","platform":"CentOS Stream","boot_mode":"UEFI",` +
		`"license_type":"BYOL","resource_group_id":"rg-one","nvme_support":"supported","imds_support":"v2",` +
		`"tags":[{"key":"env","value":"prod"},{"key":"空","value":""}],` +
		`"disks":[{"bucket":"images","object":"web.qcow2","device":"/dev/xvda"},` +
		`{"bucket":"images","object":"data.vhd","format":"Vhd","gib":40,"device":"/dev/xvdb"}]}`
	if string(spec.Details) != wantDetails {
		t.Errorf("details\n%s, want\n%s", spec.Details, wantDetails)
	}
}

// What is left out has the documented defaults.
func TestImportImageDefaults(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	task, _ := r.imported(t, oneDisk("ImageName", "", "Format", "JSON", "DiskDeviceMapping.2.OSSBucket", ""))
	spec := r.importOf(t, task).Spec
	if spec.Name != "" || spec.UniqueName || spec.OSType != "linux" || len(spec.Disks) != 1 || spec.Disks[0].Format != "" || spec.MinDiskGiB != 20 {
		t.Errorf("spec: %+v", spec)
	}
	if want := map[string]string{"architecture": "x86_64", "hw_firmware_type": "bios"}; !maps.Equal(spec.Properties, want) {
		t.Errorf("properties %v, want %v", spec.Properties, want)
	}
	want := `{"architecture":"x86_64","platform":"Others Linux","boot_mode":"BIOS","license_type":"Auto",` +
		`"nvme_support":"unsupported","imds_support":"v1","disks":[{"bucket":"images","object":"web.raw","device":"/dev/xvda"}]}`
	if string(spec.Details) != want {
		t.Errorf("details\n%s, want\n%s", spec.Details, want)
	}
	// Images without a name do not get in each other's way.
	r.imported(t, oneDisk())
}

// Every code that ImportImage may answer with for its parameters alone, and what is just
// within the bounds. An empty code is a success.
func TestImportImageParameters(t *testing.T) {
	t.Parallel()
	const (
		name, description = "InvalidImageName.Malformed", "InvalidDescription.Malformed"
		size              = "InvalidImageSize"
		d1, d2            = "DiskDeviceMapping.1.", "DiskDeviceMapping.2."
	)
	second := func(pairs ...string) []string { return append(disks(2), pairs...) }
	for what, test := range map[string]struct {
		pairs []string
		code  string
	}{
		"description of 256":         {[]string{"Description", strings.Repeat("漢", 256)}, ""},
		"description of 257":         {[]string{"Description", strings.Repeat("a", 257)}, description},
		"description, http":          {[]string{"Description", "http://a"}, description},
		"description, https":         {[]string{"Description", "https://a"}, description},
		"description, http inside":   {[]string{"Description", "see http://a"}, ""},
		"description, slashes":       {[]string{"Description", "//a"}, ""},
		"description, control":       {[]string{"Description", "a\x00b"}, description},
		"i386":                       {[]string{"Architecture", "i386"}, ""},
		"another architecture":       {[]string{"Architecture", "x86-64"}, "InvalidArchitecture.Malformed"},
		"Windows":                    {[]string{"OSType", "Windows"}, ""},
		"windows":                    {[]string{"OSType", "windows"}, ""},
		"another system":             {[]string{"OSType", "bsd"}, "InvalidOSType.Malformed"},
		"contradicting platform":     {[]string{"OSType", "linux", "Platform", "windows server 2012"}, ""},
		"another platform":           {[]string{"Platform", "Windows Server"}, "InvalidPlatform.Malformed"},
		"raw":                        {[]string{d1 + "Format", "raw"}, ""},
		"Raw":                        {[]string{d1 + "Format", "Raw"}, ""},
		"format not enabled":         {[]string{d1 + "Format", "VMDK"}, "InvalidFormat.Malformed"},
		"format of the data disk":    {second(d2+"Format", "ISO"), "InvalidFormat.Malformed"},
		"format that it is not":      {[]string{d1 + "Format", "VHD"}, "InvalidFormat.Malformed"},
		"no object":                  {[]string{d1 + "OSSObject", ""}, "MissingParameter"},
		"no second bucket":           {[]string{d2 + "OSSObject", "x"}, "MissingParameter"},
		"only a size":                {[]string{d2 + "DiskImageSize", "40"}, "MissingParameter"},
		"17 disks":                   {disks(17), ""},
		"18 disks":                   {disks(18), "InvalidParameter"},
		"18 disks, one incomplete":   {append(disks(17), "DiskDeviceMapping.18.OSSBucket", "images"), "InvalidParameter"},
		"gap":                        {append(disks(3), d2+"OSSBucket", "", d2+"OSSObject", ""), "InvalidParameter"},
		"disk 0":                     {[]string{"DiskDeviceMapping.0.OSSBucket", "images"}, "InvalidParameter"},
		"disk 01":                    {[]string{"DiskDeviceMapping.01.OSSBucket", "images"}, "InvalidParameter"},
		"disk N":                     {[]string{"DiskDeviceMapping.N.OSSBucket", "images"}, "InvalidParameter"},
		"disk beyond all numbers":    {[]string{"DiskDeviceMapping.99999999999999999999.OSSBucket", "images"}, "InvalidParameter"},
		"bucket, capitals":           {[]string{d1 + "OSSBucket", "Images"}, "InvalidOSSBucket.Malformed"},
		"bucket, short":              {[]string{d1 + "OSSBucket", "im"}, "InvalidOSSBucket.Malformed"},
		"bucket, hyphen":             {[]string{d1 + "OSSBucket", "images-"}, "InvalidOSSBucket.Malformed"},
		"bucket, path":               {[]string{d1 + "OSSBucket", "../images"}, "InvalidOSSBucket.Malformed"},
		"object, slash":              {[]string{d1 + "OSSObject", "/web.raw"}, "InvalidOSSObject.Malformed"},
		"object, backslash":          {[]string{d1 + "OSSObject", `\web.raw`}, "InvalidOSSObject.Malformed"},
		"object, dots":               {[]string{d1 + "OSSObject", "a/../../web.raw"}, "InvalidOSSObject.Malformed"},
		"object, control":            {[]string{d1 + "OSSObject", "a\nb"}, "InvalidOSSObject.Malformed"},
		"object of 1023":             {[]string{d1 + "OSSObject", strings.Repeat("漢", 341)}, ""},
		"object of 1024":             {[]string{d1 + "OSSObject", strings.Repeat("a", 1024)}, "InvalidOSSObject.Malformed"},
		"object in a folder":         {[]string{d1 + "OSSObject", "dir/disk 1+2.raw"}, ""},
		"size of the image":          {[]string{d1 + "DiskImageSize", "20"}, ""},
		"size below the image":       {[]string{d1 + "DiskImageSize", "19"}, size},
		"size 4":                     {[]string{d1 + "DiskImageSize", "4"}, size},
		"size 500":                   {[]string{d1 + "DiskImageSize", "500"}, ""},
		"size 501":                   {[]string{d1 + "DiskImageSize", "501"}, size},
		"size 1000 of data":          {second(d2+"DiskImageSize", "1000"), ""},
		"size 1001 of data":          {second(d2+"DiskImageSize", "1001"), size},
		"size of disk 17":            {append(disks(17), "DiskDeviceMapping.17.DiskImageSize", "4"), size},
		"size, blank":                {[]string{d1 + "DiskImageSize", "40 "}, size},
		"size, word":                 {[]string{d1 + "DiskImageSize", "abc"}, size},
		"size, plus":                 {[]string{d1 + "DiskImageSize", "+40"}, size},
		"size, minus":                {[]string{d1 + "DiskImageSize", "-40"}, size},
		"size, fraction":             {[]string{d1 + "DiskImageSize", "40.0"}, size},
		"size, exponent":             {[]string{d1 + "DiskImageSize", "4e1"}, size},
		"size, huge":                 {[]string{d1 + "DiskImageSize", "99999999999999999999"}, size},
		"size, other digits":         {[]string{d1 + "DiskImageSize", "４０"}, size},
		"old name of the size":       {[]string{d1 + "DiskImSize", "abc"}, size},
		"both names of the size":     {[]string{d1 + "DiskImageSize", "40", d1 + "DiskImSize", "abc"}, ""},
		"device":                     {[]string{d1 + "Device", "/dev/xvda"}, ""},
		"malformed device":           {[]string{d1 + "Device", "xvda"}, "InvalidParameter.Malformed"},
		"token of 64":                {[]string{"ClientToken", strings.Repeat("t", 64)}, ""},
		"token of 65":                {[]string{"ClientToken", strings.Repeat("t", 65)}, "InvalidClientToken.Malformed"},
		"token, not ASCII":           {[]string{"ClientToken", "tøken"}, "InvalidClientToken.Malformed"},
		"BIOS":                       {[]string{"BootMode", "BIOS"}, ""},
		"UEFI":                       {[]string{"BootMode", "UEFI"}, ""},
		"another boot mode":          {[]string{"BootMode", "Grub"}, "InvalidBootMode.Malformed"},
		"arm64 with UEFI":            {[]string{"Architecture", "arm64", "BootMode", "UEFI"}, ""},
		"arm64 with BIOS":            {[]string{"Architecture", "arm64", "BootMode", "BIOS"}, "InvalidBootMode.NotSupport"},
		"Auto":                       {[]string{"LicenseType", "Auto"}, ""},
		"Aliyun":                     {[]string{"LicenseType", "Aliyun"}, ""},
		"another license":            {[]string{"LicenseType", "GPL"}, "InvalidLicenseType.NotSupported"},
		"another detection strategy": {[]string{"DetectionStrategy", "Thorough"}, "InvalidParameter.DetectionStrategy"},
		"resource group":             {[]string{"ResourceGroupId", "rg-two"}, ""},
		"unknown resource group":     {[]string{"ResourceGroupId", "rg-three"}, "InvalidResourceGroup.NotFound"},
		"tag":                        {[]string{"Tag.20.Key", strings.Repeat("k", 128), "Tag.20.Value", strings.Repeat("v", 128)}, ""},
		"tag 21":                     {[]string{"Tag.21.Key", "k"}, "InvalidParameter"},
		"tag N":                      {[]string{"Tag.N.Key", "k"}, "InvalidParameter"},
		"tag without a key":          {[]string{"Tag.1.Value", "v"}, "InvalidTagKey.Malformed"},
		"tag key of 129":             {[]string{"Tag.1.Key", strings.Repeat("k", 129)}, "InvalidTagKey.Malformed"},
		"tag key, aliyun":            {[]string{"Tag.1.Key", "aliyun-x"}, "InvalidTagKey.Malformed"},
		"tag key, acs":               {[]string{"Tag.1.Key", "acs:x"}, "InvalidTagKey.Malformed"},
		"tag key, URL":               {[]string{"Tag.1.Key", "x-https://a"}, "InvalidTagKey.Malformed"},
		"tag value of 129":           {[]string{"Tag.1.Key", "k", "Tag.1.Value", strings.Repeat("v", 129)}, "InvalidTagValue.Malformed"},
		"tag value, acs":             {[]string{"Tag.1.Key", "k", "Tag.1.Value", "acs:x"}, "InvalidTagValue.Malformed"},
		"tag value, aliyun":          {[]string{"Tag.1.Key", "k", "Tag.1.Value", "aliyun"}, ""},
		"tag value, URL":             {[]string{"Tag.1.Key", "k", "Tag.1.Value", "x http://a"}, "InvalidTagValue.Malformed"},
		"tag twice":                  {[]string{"Tag.1.Key", "Env", "Tag.2.key", "eNV"}, "TagKey.Duplication"},
		"NVMe":                       {[]string{"Features.NvmeSupport", "yes"}, "InvalidParameter"},
		"metadata service":           {[]string{"Features.ImdsSupport", "v3"}, "InvalidParameter.FeaturesImdsSupport"},
		"storage at an edge":         {[]string{"StorageLocationArn", "arn:acs:cloudbox:x"}, "InvalidOperation.CloudBoxImageImportUnsupported"},
		"dry run, misspelt":          {[]string{"DryRun", "yes"}, "InvalidParameter"},
		"dry run, capital":           {[]string{"DryRun", "True"}, "DryRunOperation"},
		"name with http":             {[]string{"ImageName", "http://web"}, name},
		"name with a blank":          {[]string{"ImageName", "web 1"}, name},
		"name":                       {[]string{"ImageName", "a:b.c_d-e"}, ""},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			a := r.call(t, "ImportImage", oneDisk(test.pairs...))
			if a.code() != test.code {
				t.Fatalf("answered %d %q, want %q\n%s", a.status, a.code(), test.code, a.body)
			}
			want := 1
			if test.code != "" {
				want = 0
			}
			if n := r.count(t, hangzhou, alpha); n != want {
				t.Errorf("%d imports, want %d", n, want)
			}
		})
	}
}

// The codes of the two oldest editions of the vendor's reference, with their statuses and
// messages.
func TestDocumentedErrors(t *testing.T) {
	t.Parallel()
	const missing = `An input parameter "%s" that is mandatory for processing the request is not supplied.`
	supply := func(name string) string { return strings.ReplaceAll(missing, "%s", name) }
	send := func(pairs ...string) func(*testing.T, *rig) reply {
		return func(t *testing.T, r *rig) reply { return r.call(t, "ImportImage", oneDisk(pairs...)) }
	}
	// quota bounds what alpha may have, and imports two disks.
	quota := func(images, snapshots int) func(*testing.T, *rig) reply {
		return func(t *testing.T, r *rig) reply {
			r.accounts[alphaKey.ID].Caller.Account.Images = images
			r.accounts[alphaKey.ID].Caller.Account.Snapshots = snapshots
			r.imported(t, oneDisk())
			return r.call(t, "ImportImage", oneDisk(disks(2)...))
		}
	}
	for _, test := range []struct {
		what    string
		send    func(*testing.T, *rig) reply
		status  int
		code    string
		message string
	}{
		{"no region", send("RegionId", ""), 400, "MissingParameter", supply("RegionId")},
		{"no bucket", send("DiskDeviceMapping.1.OSSBucket", ""), 400, "MissingParameter", supply("DiskDeviceMapping.1.OSSBucket")},
		{"no disk", send("DiskDeviceMapping.1.OSSBucket", "", "DiskDeviceMapping.1.OSSObject", ""), 400, "MissingParameter", supply("DiskDeviceMapping.1.OSSBucket")},
		{"no object", send("DiskDeviceMapping.2.OSSBucket", "images"), 400, "MissingParameter", supply("DiskDeviceMapping.2.OSSObject")},
		{"name", send("ImageName", "1web"), 400, "InvalidImageName.Malformed", "The specified destination Image name is wrongly formed."},
		{"name in use", func(t *testing.T, r *rig) reply {
			r.imported(t, oneDisk("ImageName", "web"))
			return r.call(t, "ImportImage", oneDisk("ImageName", "web"))
		}, 400, "InvalidImageName.Duplicated", "The destination image is exist."},
		{"description", send("Description", "http://a"), 400, "InvalidDescription.Malformed", "The specified destination image description is wrongly formed."},
		{"architecture", send("Architecture", "sparc"), 400, "InvalidArchitecture.Malformed", "The specified Architecture is wrongly formed."},
		{"platform", send("Platform", "BeOS"), 400, "InvalidPlatform.Malformed", "The specified Platform is wrongly formed."},
		{"system", send("OSType", "beos"), 400, "InvalidOSType.Malformed", "The specified OSType is wrongly formed."},
		{"format", send("DiskDeviceMapping.1.Format", "ISO"), 400, "InvalidFormat.Malformed", "The specified Image format is wrongly formed."},
		{"size", send(append(disks(2), "DiskDeviceMapping.2.DiskImageSize", "19")...), 400, "InvalidImageSize",
			`The specified "DiskDeviceMapping.n.DiskImageSize" should be not less than system device size.`},
		{"image being removed", func(t *testing.T, r *rig) reply {
			task, image := r.imported(t, oneDisk())
			r.work(t, task).succeed(t)
			wantOK(t, r.call(t, "DeleteImage", params{"RegionId": hangzhou, "ImageId": image}))
			return r.call(t, "DeleteImage", params{"RegionId": hangzhou, "ImageId": image})
		}, 400, "IncorrectImageStatus", "The specified image is not available."},
		{"region", send("RegionId", "cn-nowhere"), 400, "RegionId.NotFound", "The specified region is not found."},
		{"user without the permission", func(t *testing.T, r *rig) reply {
			return r.callAs(t, readerKey, "ImportImage", oneDisk())
		}, 400, "Forbbiden", "User not authorized to operate on the specified resource"},
		{"account without importing", func(t *testing.T, r *rig) reply {
			return r.callAs(t, gammaKey, "ImportImage", oneDisk())
		}, 400, "Forbbiden", "User not authorized to operate on the specified resource"},
		{"image being imported", func(t *testing.T, r *rig) reply {
			_, image := r.imported(t, oneDisk())
			return r.call(t, "DeleteImage", params{"RegionId": hangzhou, "ImageId": image, "Force": "true"})
		}, 403, "ImageIsImporting", "The specified Image is importing."},
		{"region without importing", send("RegionId", closed), 403, "InvalidRegion.NotSupport", "The specified region does not support image import or export."},
		{"images", quota(1, 0), 403, "QuotaExceed.Image", "The Image Quota exceeds."},
		{"snapshots", quota(0, 2), 403, "QuotaExceed.Snapshot", "The maximum number of snapshots is exceeded."},
	} {
		t.Run(test.code+", "+test.what, func(t *testing.T) {
			t.Parallel()
			a := test.send(t, newRig(t))
			wantCode(t, a, test.status, test.code)
			if a.text("Message") != test.message {
				t.Errorf("message %q, want %q", a.text("Message"), test.message)
			}
		})
	}
}

// Of two faults the one that is checked first is told. Each row's fault comes before those
// of all rows below it.
func TestOrderOfImportChecks(t *testing.T) {
	t.Parallel()
	type wrong struct {
		code  string
		pairs []string
		as    *aliyunsigtest.Key
		made  params // an import that there is before
		alter func(*ram.Account)
	}
	ladder := []wrong{
		{code: "InvalidAccessKeyId.NotFound", as: &aliyunsigtest.Key{ID: "LTAInone", Secret: "x"}},
		{code: "Forbbiden", as: &readerKey},
		{code: "RegionId.NotFound", pairs: []string{"RegionId", "cn-nowhere"}},
		{code: "Forbbiden", alter: func(a *ram.Account) { a.MayImport = false }},
		{code: "InvalidRegion.NotSupport", pairs: []string{"RegionId", closed}},
		{code: "MissingParameter", pairs: []string{"DiskDeviceMapping.3.OSSBucket", "images"}},
		{code: "InvalidParameter", pairs: []string{"DiskDeviceMapping.3.OSSBucket", "images", "DiskDeviceMapping.3.OSSObject", "x"}},
		{code: "InvalidImageName.Malformed", pairs: []string{"ImageName", "1"}},
		{code: "InvalidDescription.Malformed", pairs: []string{"Description", "http://a"}},
		{code: "InvalidArchitecture.Malformed", pairs: []string{"Architecture", "x"}},
		{code: "InvalidOSType.Malformed", pairs: []string{"OSType", "x"}},
		{code: "InvalidPlatform.Malformed", pairs: []string{"Platform", "x"}},
		{code: "InvalidFormat.Malformed", pairs: []string{"DiskDeviceMapping.1.Format", "x"}},
		{code: "InvalidImageSize", pairs: []string{"DiskDeviceMapping.1.DiskImageSize", "x"}},
		{code: "InvalidBootMode.Malformed", pairs: []string{"BootMode", "x"}},
		{code: "InvalidOperation.CloudBoxImageImportUnsupported", pairs: []string{"StorageLocationArn", "x"}},
		{code: "IdempotentParameterMismatch", pairs: []string{"ClientToken", "used"}, made: oneDisk("ClientToken", "used", "Description", "before")},
		{code: "InvalidImageName.Duplicated", pairs: []string{"ImageName", "taken"}, made: oneDisk("ImageName", "taken")},
		{code: "NoSetRoletoECSServiceAcount", alter: func(a *ram.Account) { a.Roles = nil }},
		{code: "InvalidOSSBucket.NotFound", pairs: []string{"DiskDeviceMapping.1.OSSBucket", "nowhere"}},
		{code: "InvalidOSSObject.NotFound", pairs: []string{"DiskDeviceMapping.1.OSSObject", "missing.raw"}},
		{code: "InvalidResourceGroup.NotFound", pairs: []string{"ResourceGroupId", "rg-none"}},
		{code: "QuotaExceed.Image", made: oneDisk(), alter: func(a *ram.Account) { a.Images = 1 }},
		{code: "DryRunOperation", pairs: []string{"DryRun", "true"}},
	}
	for i, first := range ladder {
		for _, second := range ladder[i+1:] {
			if clash(first.pairs, second.pairs) {
				continue // one parameter cannot be wrong in two ways
			}
			t.Run(first.code+" before "+second.code, func(t *testing.T) {
				t.Parallel()
				r := newRig(t)
				for _, w := range []wrong{first, second} {
					if w.made != nil {
						r.imported(t, w.made)
					}
				}
				for _, w := range []wrong{first, second} {
					if w.alter != nil {
						w.alter(r.accounts[alphaKey.ID].Caller.Account)
					}
				}
				key := alphaKey
				if first.as != nil {
					key = *first.as
				}
				p := oneDisk(second.pairs...).with(first.pairs...)
				if a := r.callAs(t, key, "ImportImage", p); a.code() != first.code {
					t.Errorf("answered %d %s\n%s", a.status, a.code(), a.body)
				}
			})
		}
	}
}

// clash reports whether both have the same parameter.
func clash(a, b []string) bool {
	for i := 0; i < len(a); i += 2 {
		for j := 0; j < len(b); j += 2 {
			if a[i] == b[j] {
				return true
			}
		}
	}
	return false
}
