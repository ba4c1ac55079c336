package aliyun

import (
	"cmp"
	"encoding/json"
	"fmt"
	"strings"

	"vmimport/internal/audit"
	"vmimport/internal/fault"
	"vmimport/tasks"
)

// importAnswer is the answer to an ImportImage.
type importAnswer struct {
	base
	RegionId     string
	ImageId      string
	ImportTaskId string
	TaskId       string // the same; newer clients read this one only
}

// importImage checks a request to import an image, and accepts it.
//
// That importing is not enabled for the account is told first: it is a lack of permission.
// That the region has none comes next, since it is about RegionId. Then come what is
// missing, what is malformed, the repetition of a client token, the name, the role, the
// buckets, the objects, the resource group and the quotas. A dry run ends there.
func (cl *call) importImage() (any, error) {
	account := cl.caller.Account
	switch {
	case !account.MayImport:
		return nil, errMayNotImport.hint("Ask the operator of the service to enable importing for the account.")
	case cl.region.NoImports:
		return nil, errRegionNoImports
	}
	r, err := parseImport(cl.params, cl.region)
	if err != nil {
		return nil, err
	}
	spec, err := cl.newSpec(r)
	if err != nil {
		return nil, err
	}
	quota := tasks.Quota{Images: account.Images, Disks: account.Snapshots}
	repeated, err := cl.d.service.Admit(cl, spec, quota)
	exhausted := fault.KindOf(err) == fault.Exhausted
	switch {
	case repeated != nil:
		return cl.accepted(repeated), nil
	case err != nil && !exhausted:
		return nil, err
	}
	if err := cl.checkSource(r, spec); err != nil {
		return nil, err
	}
	switch {
	case r.ResourceGroupID != "" && !account.HasResourceGroup(r.ResourceGroupID):
		return nil, errResourceGroup
	case exhausted:
		return nil, err
	case r.dryRun:
		return nil, errDryRun
	}
	// What has changed since Admit is for Accept to find out: of requests at the same
	// moment it takes one.
	imp, _, err := cl.d.service.Accept(cl, spec, quota)
	if err != nil {
		return nil, err
	}
	return cl.accepted(imp), nil
}

func (cl *call) accepted(imp *tasks.Task) *importAnswer {
	audit.From(cl).ID = string(imp.ID)
	return &importAnswer{cl.base(), cl.region.ID, imageOf(imp), string(imp.ID), string(imp.ID)}
}

// newSpec returns the import that r asks for. Where its objects are is left open.
func (cl *call) newSpec(r *importRequest) (*tasks.Spec, error) {
	shown, err := json.Marshal(r.details)
	if err != nil {
		return nil, fmt.Errorf("encode details: %w", err)
	}
	account, id := cl.caller.Account, cl.d.opts.NewID()
	imageID := imagePrefix + id
	if cl.region.ImageID != nil {
		imageID = cl.region.ImageID(imageID)
	}
	spec := &tasks.Spec{
		ID:           tasks.ID(taskPrefix + id),
		Owner:        tasks.Owner{Tenant: tenantOf(account), Project: account.Project, User: cl.caller.ARN()},
		Dialect:      Name,
		Region:       cl.region.ID,
		Name:         r.name,
		ImageID:      imageID,
		OSType:       r.osType,
		TargetFormat: cl.region.TargetFormat,
		Properties:   r.properties(),
		Details:      shown,
		ClientToken:  r.clientToken,
		Fingerprint:  cl.params.fingerprint(),
		UniqueName:   r.name != "",
		ListsImage:   true,
		RequestID:    cl.requestID,
	}
	for i, d := range r.Disks {
		spec.Disks = append(spec.Disks, tasks.Disk{
			Format:   strings.ToLower(d.Format),
			MaxBytes: cmp.Or(d.GiB, cl.region.sizes(i).Max) * gibibyte,
		})
	}
	return spec, nil
}

// properties are what the image service is told of the image, by the names that Glance
// has for it.
func (r *importRequest) properties() map[string]string {
	properties := map[string]string{
		"architecture":     architectures[r.Architecture],
		"hw_firmware_type": strings.ToLower(r.BootMode),
	}
	if distro := distroOf(r.Platform); distro != "" {
		properties["os_distro"] = distro
	}
	return properties
}
