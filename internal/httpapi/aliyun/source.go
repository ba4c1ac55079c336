package aliyun

import "vmimport/tasks"

// importRole is the role that the service acts as when it reads an account's buckets. A
// role of another name is of no use for that.
const (
	importRole = "AliyunECSImageImportDefaultRole"
	ecsService = "ecs.aliyuncs.com"
)

// checkSource finds out whether the account lets its objects be imported, and whether
// they can be. It tells spec where they are, and what they are.
//
// The role comes first, since nothing may be looked at without it.
func (cl *call) checkSource(r *importRequest, spec *tasks.Spec) error {
	if err := cl.checkRole(r); err != nil {
		return err
	}
	for i, d := range r.Disks {
		// Whether others have a bucket of that name is no matter of the caller's.
		bucket, ok := cl.caller.Account.Bucket(d.Bucket)
		if !ok || bucket.Region != cl.region.ID {
			return errBucketUnknown.hint("Disk %d: the bucket must be the account's own, and in the region of the image.", i+1)
		}
		spec.Disks[i].Object = tasks.Object{API: bucket.API, Project: bucket.Project, Container: bucket.Container, Name: d.Object}
	}
	if err := cl.d.service.Inspect(cl, spec); err != nil {
		return err
	}
	for i, d := range spec.Disks {
		if !cl.region.accepts(d.Detected) {
			return errImageFormat.hint("Disk %d: it is in a format that the region does not import.", i+1)
		}
		if d.VirtualBytes > d.MaxBytes {
			return errImageSize.hint("Disk %d: the image has a disk of %d bytes.", i+1, d.VirtualBytes)
		}
	}
	spec.MinDiskGiB = r.gib(&tasks.Task{Spec: *spec}, 0)
	return nil
}

// checkRole evaluates the account's policies. It asks for no permission that is not
// needed to read these objects.
func (cl *call) checkRole(r *importRequest) error {
	account := cl.caller.Account
	role, ok := account.Role(importRole)
	if !ok || r.role != "" && r.role != importRole || !role.TrustedBy(ecsService) {
		return errRole.hint("Create the role %s and let %s assume it.", importRole, ecsService)
	}
	for _, d := range r.Disks {
		bucket := "acs:oss:" + cl.region.ID + ":" + account.ID + ":" + d.Bucket // in another region it is of no use
		if !role.May("oss:GetBucketLocation", bucket) || !role.May("oss:GetObject", bucket+"/"+d.Object) {
			return errRole.hint("Let the role %s do oss:GetObject and oss:GetBucketLocation.", importRole)
		}
	}
	return nil
}
