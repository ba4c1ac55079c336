package aliyun

import (
	"errors"
	"fmt"
	"strconv"

	"vmimport/tasks"
)

type imagesAnswer struct {
	base
	RegionId string
	page
	TotalCount int
	Images     struct{ Image []image }
}

// image is one as DescribeImages tells of it. The types are those that generated clients
// have, odd as some are.
type image struct {
	ImageId, ImageName, Description          string
	ImageFamily, ImageVersion                string
	ImageOwnerAlias                          string
	OSName, OSNameEn, OSType                 string
	Platform, Architecture, BootMode         string
	Status, Progress                         string
	Size                                     int64 // GiB, of the system disk
	CreationTime                             string
	Usage, ProductCode, ResourceGroupId      string
	IsSelfShared                             string
	IsCopied, IsSubscribed, IsPublic         bool
	IsSupportCloudinit, IsSupportIoOptimized bool
	DiskDeviceMappings                       struct{ DiskDeviceMapping []imageDisk }
	Tags                                     struct{ Tag []imageTag }
	Features                                 imageFeatures
}

type imageDisk struct {
	Type, Device, Format             string
	Size                             string // GiB
	SnapshotId                       string // always empty: there is none that could be used
	Progress                         string
	RemainTime                       int64 // seconds
	ImportOSSBucket, ImportOSSObject string
}

type imageFeatures struct{ NvmeSupport, ImdsSupport string }

type imageTag struct{ TagKey, TagValue string }

// describeImages answers DescribeImages.
func (cl *call) describeImages() (any, error) {
	at, ok := cl.params.page()
	if !ok {
		return nil, errImagesParameter.because("PageNumber is at least 1, and PageSize from 1 to %d.", maxList)
	}
	q, err := cl.imagesQuery()
	if err != nil {
		return nil, err
	}
	switch dry, ok := cl.params.flag("DryRun"); {
	case !ok:
		return nil, errImagesParameter.because("DryRun is true or false.")
	case dry:
		return nil, errDryRun
	}
	found, total, err := cl.find(q, at)
	if err != nil {
		return nil, err
	}
	answer := imagesAnswer{base: cl.base(), RegionId: cl.region.ID, page: at, TotalCount: total}
	answer.Images.Image = make([]image, 0, len(found))
	for _, imp := range found {
		more, err := detailsOf(imp)
		if err != nil {
			return nil, err
		}
		answer.Images.Image = append(answer.Images.Image, newImage(imp, more))
	}
	return answer, nil
}

func newImage(imp *tasks.Task, more *details) image {
	img := image{
		ImageId: imageOf(imp), ImageName: imp.Name, Description: more.Description, ImageOwnerAlias: "self",
		OSType: imp.OSType, Platform: more.Platform, Architecture: more.Architecture, BootMode: more.BootMode,
		Status: states[imp.Phase()].image, Progress: percent(imp.Progress), Size: more.gib(imp, 0),
		CreationTime: formatTime(imp.RequestedAt, longTime), Usage: "none", ResourceGroupId: more.ResourceGroupID,
		Features: imageFeatures{more.NvmeSupport, more.ImdsSupport},
	}
	disks := make([]imageDisk, len(imp.Disks))
	for i := range imp.Disks {
		asked := more.Disks[i]
		done, remaining := diskProgress(imp, i)
		disks[i] = imageDisk{
			Type: "data", Device: asked.Device, Format: formatOf(imp, more, i), Size: strconv.FormatInt(more.gib(imp, i), 10),
			Progress: percent(done), RemainTime: remaining, ImportOSSBucket: asked.Bucket, ImportOSSObject: asked.Object,
		}
	}
	disks[0].Type = "system"
	img.DiskDeviceMappings.DiskDeviceMapping = disks
	img.Tags.Tag = make([]imageTag, len(more.Tags))
	for i, t := range more.Tags {
		img.Tags.Tag[i] = imageTag{t.Key, t.Value}
	}
	return img
}

// deleteImage answers DeleteImage. Force is read and changes nothing: nothing here uses
// an image, and an unfinished import is not deleted by force either.
func (cl *call) deleteImage() (any, error) {
	_, okForce := cl.params.flag("Force")
	dry, okDry := cl.params.flag("DryRun")
	id, ok := taskOfImage(cl.params["ImageId"])
	switch {
	case cl.params["ImageId"] == "":
		return nil, missing("ImageId")
	case !okForce || !okDry:
		return nil, errParameter.because("Force and DryRun are true or false.")
	case !ok:
		return nil, errImageUnknown
	}
	var err error
	if dry {
		err = cl.deletable(id)
	} else {
		err = cl.d.service.DeleteImage(cl, cl.scope(), id)
	}
	if errors.Is(err, tasks.ErrUnknown) {
		return nil, errImageUnknown
	}
	if err != nil {
		return nil, fmt.Errorf("delete image: %w", err)
	}
	return cl.base(), nil
}

// deletable returns the error that deleting the image of an import would have, else
// errDryRun.
func (cl *call) deletable(id tasks.ID) error {
	imp, err := cl.d.service.Get(cl, cl.scope(), id)
	switch {
	case err != nil:
		return err
	case imp.Removed:
		return tasks.ErrUnknown
	case !imp.DeletedAt.IsZero():
		return tasks.ErrImageRemoving
	case !imp.State.Final():
		return tasks.ErrImageImporting
	}
	return errDryRun
}
