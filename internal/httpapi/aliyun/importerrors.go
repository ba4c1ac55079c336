package aliyun

import (
	"fmt"
	"net/http"
)

// What ImportImage may answer with beyond what every action may. Codes, statuses and
// messages are the vendor's as they are, with their mistakes: clients compare codes.
var (
	errRegionNoImports = forbidden("InvalidRegion.NotSupport", "The specified region does not support image import or export.")
	errCloudBox        = forbidden("InvalidOperation.CloudBoxImageImportUnsupported", "The specified storage location does not support image import.")

	errName           = bad("InvalidImageName.Malformed", "The specified destination Image name is wrongly formed.")
	errNameDuplicated = bad("InvalidImageName.Duplicated", "The destination image is exist.")
	errDescription    = bad("InvalidDescription.Malformed", "The specified destination image description is wrongly formed.")
	errArchitecture   = bad("InvalidArchitecture.Malformed", "The specified Architecture is wrongly formed.")
	errPlatform       = bad("InvalidPlatform.Malformed", "The specified Platform is wrongly formed.")
	errOSType         = bad("InvalidOSType.Malformed", "The specified OSType is wrongly formed.")
	errImageFormat    = bad("InvalidFormat.Malformed", "The specified Image format is wrongly formed.")
	errImageSize      = bad("InvalidImageSize", `The specified "DiskDeviceMapping.n.DiskImageSize" should be not less than system device size.`)
	errDevice         = forbidden("InvalidParameter.Malformed", `The specified parameter "Device" is wrongly formed.`)
	errToken          = bad("InvalidClientToken.Malformed", "The specified parameter clientToken is not valid.")
	errTokenMismatch  = bad("IdempotentParameterMismatch", "The specified parameter has changed while using an already used clientToken.")
	errBootMode       = bad("InvalidBootMode.Malformed", "The specified BootMode is wrongly formed.")
	errBootModeArch   = bad("InvalidBootMode.NotSupport", "The specified BootMode is not supported for the architecture.")
	errLicenseType    = bad("InvalidLicenseType.NotSupported", "The specified LicenseType is not supported.")
	errDetection      = bad("InvalidParameter.DetectionStrategy", "The specified parameter DetectionStrategy is not valid.")
	errResourceGroup  = notFound("InvalidResourceGroup.NotFound", "The specified resource group does not exist.")
	errTagKey         = bad("InvalidTagKey.Malformed", "The specified Tag.n.Key is not valid.")
	errTagValue       = bad("InvalidTagValue.Malformed", "The specified Tag.n.Value is not valid.")
	errTagDuplicated  = forbidden("TagKey.Duplication", "The specified tag key is duplicated.")
	errNvmeSupport    = bad("InvalidParameter", "The specified parameter \"Features.NvmeSupport\" is not valid.")
	errImdsSupport    = bad("InvalidParameter.FeaturesImdsSupport", "The specified parameter Features.ImdsSupport is not valid.")
	errDryRun         = bad("DryRunOperation", "Request validation has been passed with DryRun flag set.")

	errRole          = forbidden("NoSetRoletoECSServiceAcount", "ECS service account has no permission to read the image file: the role is not set.")
	errNotAuthorized = forbidden("InvalidOSS.NotAuthorized", "The object cannot be read with the role.")
	errBucketName    = bad("InvalidOSSBucket.Malformed", "The specified OSS bucket is wrongly formed.")
	errBucketUnknown = bad("InvalidOSSBucket.NotFound", "The specified OSS bucket does not exist in this region.")
	errObjectName    = bad("InvalidOSSObject.Malformed", "The specified OSS object is wrongly formed.")
	errObjectUnknown = bad("InvalidOSSObject.NotFound", "The specified OSS object does not exist.")
	errObjectSize    = bad("InvalidOSSObject.Size", "The specified OSS object is empty.")

	errImageQuota    = forbidden("QuotaExceed.Image", "The Image Quota exceeds.")
	errSnapshotQuota = forbidden("QuotaExceed.Snapshot", "The maximum number of snapshots is exceeded.")

	// Of the actions on the image or the task of an import.
	errImageStatus = bad("IncorrectImageStatus", "The specified image is not available.")
	errImporting   = forbidden("ImageIsImporting", "The specified Image is importing.")

	// errImportFailed is only ever shown of a task: it is why an import failed that no
	// other problem tells.
	errImportFailed = &problem{http.StatusInternalServerError, "ImportImageFailed", "The image cannot be imported.", ""}
)

// hint returns p with a sentence for people. The message stays as it is, for it is part
// of what the vendor documents.
func (p *problem) hint(format string, args ...any) *problem {
	q := *p
	q.recommend = fmt.Sprintf(format, args...)
	return &q
}

// ofDisk returns p with the number of the disk that it is about.
func (p *problem) ofDisk(number int) *problem {
	return p.hint("Disk %d: %s", number, p.recommend)
}
