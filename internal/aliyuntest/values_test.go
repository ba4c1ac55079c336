package aliyuntest

import (
	"slices"
	"strings"
	"testing"

	sdkerrors "github.com/aliyun/alibaba-cloud-sdk-go/sdk/errors"
	"github.com/aliyun/alibaba-cloud-sdk-go/services/ecs"
)

// diskOf returns disk i of a request, counted from 0.
func diskOf(r *ecs.ImportImageRequest, i int) *ecs.ImportImageDiskDeviceMapping {
	return &(*r.DiskDeviceMapping)[i]
}

// addDisks repeats the first disk.
func addDisks(r *ecs.ImportImageRequest, n int) {
	*r.DiskDeviceMapping = append(*r.DiskDeviceMapping, slices.Repeat((*r.DiskDeviceMapping)[:1], n)...)
}

func setTags(r *ecs.ImportImageRequest, tags ...ecs.ImportImageTag) { r.Tag = &tags }

// badImports are wrong in one way each, and must be told so by the status and the code
// that programs compare.
var badImports = map[string]struct {
	change func(*ecs.ImportImageRequest)
	want   string
}{
	"no disks":               {func(r *ecs.ImportImageRequest) { r.DiskDeviceMapping = nil }, "400 MissingParameter"},
	"no bucket":              {func(r *ecs.ImportImageRequest) { diskOf(r, 0).OSSBucket = "" }, "400 MissingParameter"},
	"no object":              {func(r *ecs.ImportImageRequest) { diskOf(r, 0).OSSObject = "" }, "400 MissingParameter"},
	"no object of a second":  {func(r *ecs.ImportImageRequest) { addDisks(r, 1); diskOf(r, 1).OSSObject = "" }, "400 MissingParameter"},
	"eighteen disks":         {func(r *ecs.ImportImageRequest) { addDisks(r, 17) }, "400 InvalidParameter"},
	"unknown region":         {func(r *ecs.ImportImageRequest) { r.RegionId = "cn-nowhere" }, "400 RegionId.NotFound"},
	"region of another API":  {func(r *ecs.ImportImageRequest) { r.RegionId = "jp-east-3" }, "400 RegionId.NotFound"},
	"name too short":         {func(r *ecs.ImportImageRequest) { r.ImageName = "a" }, "400 InvalidImageName.Malformed"},
	"name too long":          {func(r *ecs.ImportImageRequest) { r.ImageName = strings.Repeat("漢", 129) }, "400 InvalidImageName.Malformed"},
	"name begins with digit": {func(r *ecs.ImportImageRequest) { r.ImageName = "1web" }, "400 InvalidImageName.Malformed"},
	"name is a URL":          {func(r *ecs.ImportImageRequest) { r.ImageName = "http://web" }, "400 InvalidImageName.Malformed"},
	"name of the vendor":     {func(r *ecs.ImportImageRequest) { r.ImageName = "aliyun_web" }, "400 InvalidImageName.Malformed"},
	"description too long":   {func(r *ecs.ImportImageRequest) { r.Description = strings.Repeat("漢", 257) }, "400 InvalidDescription.Malformed"},
	"description is a URL":   {func(r *ecs.ImportImageRequest) { r.Description = "https://web" }, "400 InvalidDescription.Malformed"},
	"architecture":           {func(r *ecs.ImportImageRequest) { r.Architecture = "vax" }, "400 InvalidArchitecture.Malformed"},
	"platform":               {func(r *ecs.ImportImageRequest) { r.Platform = "VMS" }, "400 InvalidPlatform.Malformed"},
	"os type":                {func(r *ecs.ImportImageRequest) { r.OSType = "beos" }, "400 InvalidOSType.Malformed"},
	"format":                 {func(r *ecs.ImportImageRequest) { diskOf(r, 0).Format = "ISO" }, "400 InvalidFormat.Malformed"},
	"not of that format":     {func(r *ecs.ImportImageRequest) { diskOf(r, 0).Format = "QCOW2" }, "400 InvalidFormat.Malformed"},
	"broken image":           {func(r *ecs.ImportImageRequest) { diskOf(r, 0).OSSObject = "broken.qcow2" }, "400 InvalidFormat.Malformed"},
	"size too small":         {func(r *ecs.ImportImageRequest) { diskOf(r, 0).DiskImageSize = "4" }, "400 InvalidImageSize"},
	"size too large":         {func(r *ecs.ImportImageRequest) { diskOf(r, 0).DiskImageSize = "501" }, "400 InvalidImageSize"},
	"size below the image's": {func(r *ecs.ImportImageRequest) { diskOf(r, 0).DiskImageSize = "6" }, "400 InvalidImageSize"},
	"size with a space":      {func(r *ecs.ImportImageRequest) { diskOf(r, 0).DiskImageSize = "40 " }, "400 InvalidImageSize"},
	"size in words":          {func(r *ecs.ImportImageRequest) { diskOf(r, 0).DiskImageSize = "abc" }, "400 InvalidImageSize"},
	"size by its older name": {func(r *ecs.ImportImageRequest) { diskOf(r, 0).DiskImSize = "501" }, "400 InvalidImageSize"},
	"size of a data disk":    {func(r *ecs.ImportImageRequest) { addDisks(r, 1); diskOf(r, 1).DiskImageSize = "1001" }, "400 InvalidImageSize"},
	"device":                 {func(r *ecs.ImportImageRequest) { diskOf(r, 0).Device = "C:" }, "403 InvalidParameter.Malformed"},
	"client token too long":  {func(r *ecs.ImportImageRequest) { r.ClientToken = strings.Repeat("x", 65) }, "400 InvalidClientToken.Malformed"},
	"client token in kanji":  {func(r *ecs.ImportImageRequest) { r.ClientToken = "漢" }, "400 InvalidClientToken.Malformed"},
	"boot mode":              {func(r *ecs.ImportImageRequest) { r.BootMode = "floppy" }, "400 InvalidBootMode.Malformed"},
	"BIOS on arm64":          {func(r *ecs.ImportImageRequest) { r.BootMode, r.Architecture = "BIOS", "arm64" }, "400 InvalidBootMode.NotSupport"},
	"license":                {func(r *ecs.ImportImageRequest) { r.LicenseType = "GPL" }, "400 InvalidLicenseType.NotSupported"},
	"detection":              {func(r *ecs.ImportImageRequest) { r.DetectionStrategy = "Thorough" }, "400 InvalidParameter.DetectionStrategy"},
	"resource group":         {func(r *ecs.ImportImageRequest) { r.ResourceGroupId = "rg-green" }, "404 InvalidResourceGroup.NotFound"},
	"tag of the vendor":      {func(r *ecs.ImportImageRequest) { setTags(r, ecs.ImportImageTag{Key: "acs:x", Value: ""}) }, "400 InvalidTagKey.Malformed"},
	"value of a tag":         {func(r *ecs.ImportImageRequest) { setTags(r, ecs.ImportImageTag{Key: "x", Value: "http://x"}) }, "400 InvalidTagValue.Malformed"},
	"tag twice": {func(r *ecs.ImportImageRequest) {
		setTags(r, ecs.ImportImageTag{Key: "x", Value: ""}, ecs.ImportImageTag{Key: "X", Value: "1"})
	}, "403 TagKey.Duplication"},
	"NVMe":                   {func(r *ecs.ImportImageRequest) { r.Features.NvmeSupport = "yes" }, "400 InvalidParameter"},
	"IMDS":                   {func(r *ecs.ImportImageRequest) { r.Features.ImdsSupport = "v3" }, "400 InvalidParameter.FeaturesImdsSupport"},
	"edge site":              {func(r *ecs.ImportImageRequest) { r.StorageLocationArn = "acs:cloudbox:x" }, "403 InvalidOperation.CloudBoxImageImportUnsupported"},
	"dry run":                {func(r *ecs.ImportImageRequest) { r.DryRun = "true" }, "400 DryRunOperation"},
	"role of another name":   {func(r *ecs.ImportImageRequest) { r.RoleName = "reader" }, "403 NoSetRoletoECSServiceAcount"},
	"form of a bucket":       {func(r *ecs.ImportImageRequest) { diskOf(r, 0).OSSBucket = "No" }, "400 InvalidOSSBucket.Malformed"},
	"form of an object":      {func(r *ecs.ImportImageRequest) { diskOf(r, 0).OSSObject = "../disk.raw" }, "400 InvalidOSSObject.Malformed"},
	"unknown bucket":         {func(r *ecs.ImportImageRequest) { diskOf(r, 0).OSSBucket = "nobodys" }, "400 InvalidOSSBucket.NotFound"},
	"somebody else's bucket": {func(r *ecs.ImportImageRequest) { diskOf(r, 0).OSSBucket = "images-green" }, "400 InvalidOSSBucket.NotFound"},
	"bucket far away":        {func(r *ecs.ImportImageRequest) { diskOf(r, 0).OSSBucket = "images-north" }, "400 InvalidOSSBucket.NotFound"},
	"unknown object":         {func(r *ecs.ImportImageRequest) { diskOf(r, 0).OSSObject = "none.raw" }, "400 InvalidOSSObject.NotFound"},
	"empty object":           {func(r *ecs.ImportImageRequest) { diskOf(r, 0).OSSObject = "empty.raw" }, "400 InvalidOSSObject.Size"},
}

// None of them makes an image or takes a name.
func TestBadImports(t *testing.T) {
	t.Parallel()
	s := serve(t)
	s.putHole("disk.raw", 6<<30+1)
	s.putHole("empty.raw", 0)
	s.putDamaged("broken.qcow2")
	truncate(t, s.object("broken.qcow2"), 4<<10) // the header promises more
	c := s.as("blue")
	for about, tt := range badImports {
		r := importRequest("web01", "disk.raw")
		tt.change(r)
		if _, err := c.ImportImage(r); refusal(err) != tt.want {
			t.Errorf("%s: got %v, want %s", about, err, tt.want)
		}
	}
	if images := c.images(""); len(images) != 0 {
		t.Errorf("refused requests made %+v", images)
	}
	c.mustImport(importRequest("web01", "disk.raw"))
}

func TestMissingParametersAreNamed(t *testing.T) {
	t.Parallel()
	c := serve(t).as("blue")
	for name, change := range map[string]func(*ecs.ImportImageRequest){
		"DiskDeviceMapping.1.OSSBucket": func(r *ecs.ImportImageRequest) { r.DiskDeviceMapping = nil },
		"DiskDeviceMapping.1.OSSObject": func(r *ecs.ImportImageRequest) { diskOf(r, 0).OSSObject = "" },
		"DiskDeviceMapping.3.OSSBucket": func(r *ecs.ImportImageRequest) { addDisks(r, 2); diskOf(r, 2).OSSBucket = "" },
	} {
		r := importRequest("web01", "disk.raw")
		change(r)
		_, err := c.ImportImage(r)
		want := `An input parameter "` + name + `" that is mandatory for processing the request is not supplied.`
		if refused, ok := err.(*sdkerrors.ServerError); !ok || refusal(err) != "400 MissingParameter" || refused.Message() != want {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// What is wrong only in the data fails the task, with the code that a refusal would have
// had, and gives the name back.
func TestFailedImport(t *testing.T) {
	t.Parallel()
	s := serve(t)
	s.guests()
	s.putDamaged("damaged.qcow2")
	c := s.as("blue")
	made := c.mustImport(importRequest("web01", "dir/system disk+1.raw", "damaged.qcow2"))
	until(t, "the import failed", func() bool { return c.task(made.TaskId).TaskStatus == "Failed" })
	task := c.task(made.TaskId)
	ops := task.OperationProgressSet.OperationProgress
	if task.TotalCount != 2 || task.SuccessCount != 1 || task.FailedCount != 1 || len(ops) != 2 || task.SupportCancel != "false" {
		t.Fatalf("%s", task.GetHttpContentString())
	}
	if ops[0].OperationStatus != "Success" || ops[1].OperationStatus != "Failed" || ops[1].ErrorCode != "InvalidFormat.Malformed" || ops[1].ErrorMsg == "" {
		t.Errorf("%+v", ops)
	}
	if images := c.images(made.ImageId); len(images) != 1 || images[0].Status != "CreateFailed" || images[0].Progress == "100%" {
		t.Errorf("%+v", images)
	}
	c.available(c.mustImport(importRequest("web01", "data.qcow2")).ImageId)
	if err := c.delete(made.ImageId); err != nil {
		t.Error(err)
	}
}

// describeImages, and those below, make a call of a request that is as the SDK makes it but
// for a change. The error is its result.
func describeImages(change func(*ecs.DescribeImagesRequest)) func(*client) error {
	r := ecs.CreateDescribeImagesRequest()
	change(r)
	return func(c *client) error { _, err := c.DescribeImages(r); return err }
}

func describeTasks(change func(*ecs.DescribeTasksRequest)) func(*client) error {
	r := ecs.CreateDescribeTasksRequest()
	change(r)
	return func(c *client) error { _, err := c.DescribeTasks(r); return err }
}

func describeTask(id string) func(*client) error {
	r := ecs.CreateDescribeTaskAttributeRequest()
	r.TaskId = id
	return func(c *client) error { _, err := c.DescribeTaskAttribute(r); return err }
}

func cancelTask(change func(*ecs.CancelTaskRequest)) func(*client) error {
	r := ecs.CreateCancelTaskRequest()
	r.TaskId = noTask
	change(r)
	return func(c *client) error { _, err := c.CancelTask(r); return err }
}

func deleteImage(id string) func(*client) error {
	return func(c *client) error { return c.delete(id) }
}

// Ids of the right form that nothing has.
const (
	noTask  = "t-00000000000000000000"
	noImage = "m-00000000000000000000"
)

func TestBadRequests(t *testing.T) {
	t.Parallel()
	c := serve(t).as("blue")
	for about, tt := range map[string]struct {
		call func(*client) error
		want string
	}{
		"images: region":        {describeImages(func(r *ecs.DescribeImagesRequest) { r.RegionId = "cn-nowhere" }), "404 InvalidRegionId.NotFound"},
		"images: page":          {describeImages(func(r *ecs.DescribeImagesRequest) { r.PageNumber = "0" }), "400 InvalidParamter"},
		"images: page in words": {describeImages(func(r *ecs.DescribeImagesRequest) { r.PageNumber = "first" }), "400 InvalidParamter"},
		"images: size":          {describeImages(func(r *ecs.DescribeImagesRequest) { r.PageSize = "101" }), "400 InvalidParamter"},
		"images: owner":         {describeImages(func(r *ecs.DescribeImagesRequest) { r.ImageOwnerAlias = "me" }), "400 InvalidImageOwnerAlias.ValueNotSupported"},
		"images: os type":       {describeImages(func(r *ecs.DescribeImagesRequest) { r.OSType = "beos" }), "404 InvalidOSType"},
		"images: architecture":  {describeImages(func(r *ecs.DescribeImagesRequest) { r.Architecture = "vax" }), "404 InvalidArchitecture"},
		"images: usage":         {describeImages(func(r *ecs.DescribeImagesRequest) { r.Usage = "much" }), "404 InvalidUsage"},
		"images: filter":        {describeImages(func(r *ecs.DescribeImagesRequest) { r.Filter = &[]ecs.DescribeImagesFilter{{Key: "x", Value: "y"}} }), "404 InvalidFilterKey.NotFound"},
		"images: dry run":       {describeImages(func(r *ecs.DescribeImagesRequest) { r.DryRun = "true" }), "400 DryRunOperation"},
		"tasks: region":         {describeTasks(func(r *ecs.DescribeTasksRequest) { r.RegionId = "cn-nowhere" }), "400 InvalidRegionId.NotFound"},
		"tasks: size":           {describeTasks(func(r *ecs.DescribeTasksRequest) { r.PageSize = "0" }), "400 InvalidParameter"},
		"tasks: time":           {describeTasks(func(r *ecs.DescribeTasksRequest) { r.StartTime = "yesterday" }), "400 InvalidParameter"},
		"task: none":            {describeTask(""), "400 MissingParameter"},
		"task: form":            {describeTask("x"), "400 InvalidTaskId.NotFound"},
		"task: unknown":         {describeTask(noTask), "400 InvalidTaskId.NotFound"},
		"cancel: none":          {cancelTask(func(r *ecs.CancelTaskRequest) { r.TaskId = "" }), "400 MissingParameter"},
		"cancel: unknown":       {cancelTask(func(*ecs.CancelTaskRequest) {}), "400 InvalidTaskId.NotFound"},
		"cancel: region":        {cancelTask(func(r *ecs.CancelTaskRequest) { r.RegionId = "cn-nowhere" }), "400 InvalidRegionId.NotFound"},
		"cancel: of a version":  {cancelTask(func(r *ecs.CancelTaskRequest) { r.SetVersion("2015-01-01") }), "400 InvalidParameter"},
		"delete: none":          {deleteImage(""), "400 MissingParameter"},
		"delete: unknown":       {deleteImage(noImage), "404 InvalidImageId.NotFound"},
		"an action of no use":   {func(c *client) error { _, err := c.DescribeInstances(ecs.CreateDescribeInstancesRequest()); return err }, "403 InvalidAction"},
	} {
		if err := tt.call(c); refusal(err) != tt.want {
			t.Errorf("%s: got %v, want %s", about, err, tt.want)
		}
	}
}
