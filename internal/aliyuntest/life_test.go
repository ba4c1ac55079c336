package aliyuntest

import (
	"fmt"
	"os"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	sdkerrors "github.com/aliyun/alibaba-cloud-sdk-go/sdk/errors"
	"github.com/aliyun/alibaba-cloud-sdk-go/sdk/requests"
	"github.com/aliyun/alibaba-cloud-sdk-go/services/ecs"

	"vmimport/internal/diskimage/imagetest"
)

var (
	imageForm   = regexp.MustCompile(`^m-[0-9a-z]{20}$`)
	taskForm    = regexp.MustCompile(`^t-[0-9a-z]{20}$`)
	requestForm = regexp.MustCompile(`^[0-9A-F]{8}(-[0-9A-F]{4}){3}-[0-9A-F]{12}$`)
)

func TestRegions(t *testing.T) {
	t.Parallel()
	s := serve(t)
	c := s.as("blue")
	for language, want := range map[string]string{"": "华东 1（杭州）", "zh-CN": "华东 1（杭州）", "en-US": "China (Hangzhou)", "ja": "中国 (杭州)"} {
		for _, format := range []string{"JSON", "XML"} {
			r := ecs.CreateDescribeRegionsRequest()
			r.AcceptLanguage, r.AcceptFormat = language, format
			a, err := c.DescribeRegions(r)
			if err != nil {
				t.Fatal(err)
			}
			if regions := a.Regions.Region; len(regions) != 1 || regions[0] != (ecs.Region{Status: "available", RegionEndpoint: s.host, LocalName: want, RegionId: region}) {
				t.Errorf("language %q in %s: %+v", language, format, regions)
			}
			if ids := a.GetHttpHeaders()["X-Acs-Request-Id"]; !requestForm.MatchString(a.RequestId) || !reflect.DeepEqual(ids, []string{a.RequestId}) {
				t.Errorf("request id %q, in the header %q", a.RequestId, ids)
			}
		}
	}
	r := ecs.CreateDescribeRegionsRequest()
	r.AcceptLanguage = "tlh"
	if _, err := c.DescribeRegions(r); refusal(err) != "404 InvalidAcceptLanguage.NotFound" {
		t.Error(err)
	}
}

// One disk, with nothing said but where it is, and all answers in XML.
func TestOneDisk(t *testing.T) {
	t.Parallel()
	s := serve(t)
	_, guest := s.guests()
	c := s.as("blue")
	r := importRequest("", "data.qcow2")
	r.AcceptFormat = "XML"
	made := c.mustImport(r)
	image := c.available(made.ImageId)

	asXML := ecs.CreateDescribeImagesRequest()
	asXML.ImageId, asXML.AcceptFormat = made.ImageId, "XML"
	a, err := c.DescribeImages(asXML)
	if err != nil {
		t.Fatal(err)
	}
	// Printed, since the SDK has no slice for an empty list in XML, and an empty one in JSON.
	if inXML, inJSON := fmt.Sprintf("%+v", a.Images.Image), fmt.Sprintf("%+v", []ecs.Image{*image}); inXML != inJSON {
		t.Errorf("in XML %s\nin JSON %s", inXML, inJSON)
	}
	if image.ImageName != "" || image.Platform != "Others Linux" || image.OSType != "linux" || image.Architecture != "x86_64" || image.BootMode != "BIOS" || image.Size != 5 {
		t.Errorf("defaults: %+v", image)
	}
	imagetest.SameFile(t, s.disk(made.ImageId, 1), guest)

	task := ecs.CreateDescribeTaskAttributeRequest()
	task.TaskId, task.AcceptFormat = made.TaskId, "XML"
	ended, err := c.DescribeTaskAttribute(task)
	if err != nil {
		t.Fatal(err)
	}
	if ended.TaskStatus != "Finished" || ended.TaskProcess != "100%" || ended.TotalCount != 1 || len(ended.OperationProgressSet.OperationProgress) != 1 {
		t.Errorf("%s", ended.GetHttpContentString())
	}

	// The SDK reads errors as JSON, whatever it asked for: they reach the user as they are.
	asXML.ImageOwnerAlias = "nobody"
	_, err = c.DescribeImages(asXML)
	if refusal(err) != "400 " || !strings.Contains(err.Error(), "<Code>InvalidImageOwnerAlias.ValueNotSupported</Code>") {
		t.Error(err)
	}
}

// Everything that can be said of an image, and all that is told of it afterwards.
func TestTwoDisks(t *testing.T) {
	t.Parallel()
	s := serve(t)
	system, data := s.guests()
	c := s.as("blue")
	r := importRequest("映像かな:web_01.a-b", "dir/system disk+1.raw", "data.qcow2")
	(*r.DiskDeviceMapping)[0].Format, (*r.DiskDeviceMapping)[0].DiskImageSize = "raw", "40"
	(*r.DiskDeviceMapping)[1].Device = "/dev/xvdb"
	r.Description, r.OSType, r.Platform, r.Architecture = "sp ace*~+&=%/漢<>\"'", "Linux", "centos", "x86_64"
	r.BootMode, r.LicenseType, r.ResourceGroupId = "UEFI", "Auto", "rg-blue"
	r.RoleName = "AliyunECSImageImportDefaultRole"
	r.Features = ecs.ImportImageFeatures{NvmeSupport: "supported", ImdsSupport: "v2"}
	r.Tag = &[]ecs.ImportImageTag{{Key: "env", Value: "prod"}, {Key: "空 白"}}
	before := time.Now()
	made := c.mustImport(r)
	if !imageForm.MatchString(made.ImageId) || !taskForm.MatchString(made.TaskId) || !requestForm.MatchString(made.RequestId) || made.RegionId != region {
		t.Errorf("%+v", made)
	}
	if !strings.Contains(made.GetHttpContentString(), `"ImportTaskId":"`+made.TaskId+`"`) {
		t.Errorf("older clients find no task in %s", made.GetHttpContentString())
	}
	if c.wire.bodies != 0 {
		t.Error("the SDK sends bodies now, which the tests of form A were to do without")
	}

	image := c.available(made.ImageId)
	created, err := time.Parse("2006-01-02T15:04:05Z", image.CreationTime)
	if err != nil || created.Before(before.Truncate(time.Second)) || created.After(time.Now()) {
		t.Errorf("created %s, %v", image.CreationTime, err)
	}
	want := ecs.Image{
		ImageId: made.ImageId, ImageName: r.ImageName, Description: r.Description, OSType: "linux", Platform: "CentOS", Architecture: "x86_64", BootMode: "UEFI",
		Status: "Available", Progress: "100%", Size: 40, CreationTime: image.CreationTime, ImageOwnerAlias: "self", Usage: "none", ResourceGroupId: "rg-blue",
		DiskDeviceMappings: ecs.DiskDeviceMappingsInDescribeImageFromFamily{DiskDeviceMapping: []ecs.DiskDeviceMapping{
			{Type: "system", Device: "/dev/xvda", Format: "raw", Size: "40", Progress: "100%", ImportOSSBucket: bucket, ImportOSSObject: "dir/system disk+1.raw"},
			{Type: "data", Device: "/dev/xvdb", Format: "QCOW2", Size: "5", Progress: "100%", ImportOSSBucket: bucket, ImportOSSObject: "data.qcow2"},
		}},
		Tags:     ecs.TagsInDescribeImageFromFamily{Tag: []ecs.Tag{{TagKey: "env", TagValue: "prod"}, {TagKey: "空 白"}}},
		Features: ecs.Features{NvmeSupport: "supported", ImdsSupport: "v2"},
	}
	image.IsSelfShared = want.IsSelfShared // either is fine
	if !reflect.DeepEqual(*image, want) {
		t.Errorf("\ngot  %+v\nwant %+v", *image, want)
	}
	imagetest.SameFile(t, s.disk(made.ImageId, 1), system)
	imagetest.SameFile(t, s.disk(made.ImageId, 2), data)

	tasksOf(t, c, made)
	c.findsImage(made.ImageId)
	c.ends(r, made)
}

// tasksOf checks what is told of the task of an import of two disks that has succeeded.
func tasksOf(t *testing.T, c *client, made *ecs.ImportImageResponse) {
	t.Helper()
	task := c.task(made.TaskId)
	if task.TaskAction != "ImportImage" || task.TaskStatus != "Finished" || task.TaskProcess != "100%" || task.SupportCancel != "false" || task.RegionId != region ||
		task.TotalCount != 2 || task.SuccessCount != 2 || task.FailedCount != 0 || task.FinishedTime == "" {
		t.Errorf("%s", task.GetHttpContentString())
	}
	for i, object := range []string{"dir/system disk+1.raw", "data.qcow2"} {
		op := task.OperationProgressSet.OperationProgress[i]
		items := map[string]string{}
		for _, item := range op.RelatedItemSet.RelatedItem {
			items[item.Name] = item.Value
		}
		want := map[string]string{"OSSBucket": bucket, "OSSObject": object, "ImageFormat": []string{"raw", "QCOW2"}[i], "ImageId": made.ImageId}
		if op.OperationStatus != "Success" || op.ErrorCode != "" || op.ErrorMsg != "" || !reflect.DeepEqual(items, want) {
			t.Errorf("disk %d: %+v", i+1, op)
		}
	}
	for about, change := range map[string]func(*ecs.DescribeTasksRequest){
		"all":         func(*ecs.DescribeTasksRequest) {},
		"ids":         func(r *ecs.DescribeTasksRequest) { r.TaskIds = noTask + "," + made.TaskId },
		"ids in JSON": func(r *ecs.DescribeTasksRequest) { r.TaskIds = `["` + made.TaskId + `"]` },
		"images":      func(r *ecs.DescribeTasksRequest) { r.ResourceIds = &[]string{made.ImageId} },
		"state":       func(r *ecs.DescribeTasksRequest) { r.TaskStatus, r.TaskAction = "Finished", "ImportImage" },
		"time":        func(r *ecs.DescribeTasksRequest) { r.StartTime, r.EndTime = task.CreationTime, task.CreationTime },
	} {
		r := ecs.CreateDescribeTasksRequest()
		change(r)
		a, err := c.DescribeTasks(r)
		if err != nil {
			t.Fatal(err)
		}
		want := ecs.Task{
			TaskId: made.TaskId, TaskAction: "ImportImage", TaskStatus: "Finished", SupportCancel: "false", ResourceId: made.ImageId,
			CreationTime: task.CreationTime, FinishedTime: task.FinishedTime,
		}
		if a.TotalCount != 1 || a.PageNumber != 1 || a.PageSize != 10 || len(a.TaskSet.Task) != 1 || !reflect.DeepEqual(a.TaskSet.Task[0], want) {
			t.Errorf("by %s: %s", about, a.GetHttpContentString())
		}
	}
	r := ecs.CreateDescribeTasksRequest()
	r.TaskStatus = "Failed"
	if a, err := c.DescribeTasks(r); err != nil || a.TotalCount != 0 || len(a.TaskSet.Task) != 0 {
		t.Errorf("failed tasks: %v, %v", a, err)
	}
}

// findsImage checks that the image, which is the only one, is found by each filter.
func (c *client) findsImage(imageID string) {
	c.t.Helper()
	for about, change := range map[string]func(*ecs.DescribeImagesRequest){
		"nothing":        func(*ecs.DescribeImagesRequest) {},
		"name":           func(r *ecs.DescribeImagesRequest) { r.ImageName = "映像かな:web_01.a-b" },
		"wildcard":       func(r *ecs.DescribeImagesRequest) { r.ImageName = "*web*" },
		"owner":          func(r *ecs.DescribeImagesRequest) { r.ImageOwnerAlias, r.OSType = "self", "linux" },
		"tags":           func(r *ecs.DescribeImagesRequest) { r.Tag = &[]ecs.DescribeImagesTag{{Key: "env", Value: "prod"}} },
		"resource group": func(r *ecs.DescribeImagesRequest) { r.ResourceGroupId = "rg-blue" },
		"page":           func(r *ecs.DescribeImagesRequest) { r.PageSize, r.PageNumber = requests.NewInteger(100), "1" },
		"time": func(r *ecs.DescribeImagesRequest) {
			r.Filter = &[]ecs.DescribeImagesFilter{{Key: "CreationStartTime", Value: "2020-01-01T00:00Z"}}
		},
	} {
		r := ecs.CreateDescribeImagesRequest()
		change(r)
		a, err := c.DescribeImages(r)
		if err != nil {
			c.t.Fatal(about, err)
		}
		if a.TotalCount != 1 || len(a.Images.Image) != 1 || a.Images.Image[0].ImageId != imageID {
			c.t.Errorf("by %s: %s", about, a.GetHttpContentString())
		}
	}
	for _, change := range []func(*ecs.DescribeImagesRequest){
		func(r *ecs.DescribeImagesRequest) { r.ImageName = "web" },
		func(r *ecs.DescribeImagesRequest) { r.ImageId = noImage },
		func(r *ecs.DescribeImagesRequest) { r.Status = "Creating" },
		func(r *ecs.DescribeImagesRequest) { r.ImageOwnerAlias = "system" },
		func(r *ecs.DescribeImagesRequest) { r.PageNumber = "2" },
	} {
		r := ecs.CreateDescribeImagesRequest()
		change(r)
		if a, err := c.DescribeImages(r); err != nil || len(a.Images.Image) != 0 {
			c.t.Errorf("found: %v, %v", a, err)
		}
	}
}

// ends deletes an image, and gives its name to another.
func (c *client) ends(r *ecs.ImportImageRequest, made *ecs.ImportImageResponse) {
	c.t.Helper()
	if _, err := c.ImportImage(r); refusal(err) != "400 InvalidImageName.Duplicated" {
		c.t.Errorf("a second image of that name: %v", err)
	} else if refused, _ := err.(*sdkerrors.ServerError); refused.Message() != "The destination image is exist." || !requestForm.MatchString(refused.RequestId()) || refused.HostId() == "" {
		c.t.Errorf("%+v", refused)
	}
	if got := refusal(c.cancel(made.TaskId)); got != "403 InvalidTaskId.IncorrectTaskStatus" {
		c.t.Errorf("cancel what has finished: %s", got)
	}
	if err := c.delete(made.ImageId); err != nil {
		c.t.Fatal(err)
	}
	if list := c.images(""); len(list) != 0 {
		c.t.Errorf("after it was deleted: %+v", list)
	}
	until(c.t, "the image was gone", func() bool {
		got := refusal(c.delete(made.ImageId))
		if got != "400 IncorrectImageStatus" && got != "404 InvalidImageId.NotFound" {
			c.t.Fatalf("deleted again: %s", got)
		}
		return got == "404 InvalidImageId.NotFound"
	})
	again := c.mustImport(r)
	if again.ImageId == made.ImageId || again.TaskId == made.TaskId {
		c.t.Errorf("ids are used again: %+v", again)
	}
	c.available(again.ImageId)
}

// The files of a deleted image are removed from the image service.
func TestDeletedFilesAreGone(t *testing.T) {
	t.Parallel()
	s := serve(t)
	s.putHole("disk.raw", 1<<20)
	c := s.as("blue")
	made := c.mustImport(importRequest("web01", "disk.raw"))
	c.available(made.ImageId)
	if _, err := os.Stat(s.disk(made.ImageId, 1)); err != nil {
		t.Fatal(err)
	}
	if err := c.delete(made.ImageId); err != nil {
		t.Fatal(err)
	}
	until(t, "the files were gone", func() bool {
		_, err := os.Stat(s.disk(made.ImageId, 1))
		return os.IsNotExist(err)
	})
}
