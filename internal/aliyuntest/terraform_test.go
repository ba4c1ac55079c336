package aliyuntest

import (
	"testing"

	"github.com/aliyun/alibaba-cloud-sdk-go/services/ecs"
)

// The calls of the vendor's Terraform provider for a resource alicloud_image_import, with
// its defaults, in its order. What it reads back must be what it asked for, or the next
// plan would replace the image.
func TestCallsOfTerraform(t *testing.T) {
	t.Parallel()
	s := serve(t)
	s.putHole("disk.raw", 1<<20)
	c := s.as("blue")
	describe := func(imageID string) []ecs.Image {
		t.Helper()
		r := ecs.CreateDescribeImagesRequest()
		r.RegionId, r.ImageId, r.Status = region, imageID, "Creating,Waiting,Available,UnAvailable,CreateFailed"
		a, err := c.DescribeImages(r)
		if err != nil {
			t.Fatal(err)
		}
		return a.Images.Image
	}

	// A request for each call: the SDK sends again what an earlier call had of it.
	request := func(disk ecs.ImportImageDiskDeviceMapping) *ecs.ImportImageRequest {
		r := ecs.CreateImportImageRequest()
		r.RegionId, r.ImageName, r.Description = region, "web01", "terraform"
		r.Architecture, r.LicenseType, r.OSType, r.Platform = "x86_64", "Auto", "linux", "Ubuntu"
		disk.OSSBucket, disk.DiskImageSize = bucket, "5"
		r.DiskDeviceMapping = &[]ecs.ImportImageDiskDeviceMapping{disk}
		return r
	}

	create := request(ecs.ImportImageDiskDeviceMapping{OSSObject: "disk.raw", Format: "RAW"})
	id := c.mustImport(create).ImageId
	var image ecs.Image
	until(t, "the image was available", func() bool {
		list := describe(id)
		if len(list) != 1 || list[0].Status == "CreateFailed" || list[0].Status == "UnAvailable" {
			t.Fatalf("%+v", list)
		}
		image = list[0]
		return image.Status == "Available"
	})
	if image.ImageName != create.ImageName || image.Description != create.Description || image.Architecture != create.Architecture ||
		image.OSType != create.OSType || image.Platform != create.Platform || image.BootMode != "BIOS" {
		t.Errorf("%+v", image)
	}
	if disks := image.DiskDeviceMappings.DiskDeviceMapping; len(disks) != 1 || disks[0].Size != "5" || disks[0].Format != "RAW" || disks[0].Device == "" ||
		disks[0].ImportOSSBucket != bucket || disks[0].ImportOSSObject != "disk.raw" {
		t.Errorf("%+v", disks)
	}

	if err := c.delete(describe(id)[0].ImageId); err != nil {
		t.Fatal(err)
	}
	if list := describe(id); len(list) != 0 {
		t.Errorf("after the delete, whose end is waited for: %+v", list)
	}

	// An import that fails is deleted in the same way.
	s.putDamaged("damaged.qcow2")
	id = c.mustImport(request(ecs.ImportImageDiskDeviceMapping{OSSObject: "damaged.qcow2"})).ImageId
	until(t, "the import failed", func() bool {
		list := describe(id)
		if len(list) != 1 || list[0].Status == "Available" {
			t.Fatalf("%+v", list)
		}
		return list[0].Status == "CreateFailed"
	})
	if err := c.delete(id); err != nil {
		t.Fatal(err)
	}
	if list := describe(id); len(list) != 0 {
		t.Errorf("a failed image after its delete: %+v", list)
	}
}
