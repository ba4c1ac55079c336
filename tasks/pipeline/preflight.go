package pipeline

import (
	"context"
	"fmt"
	"time"

	"vmimport/imageapi"
	"vmimport/internal/fault"
	"vmimport/storage"
	"vmimport/tasks"
)

// Preflight is the cheap part of an attempt, run before a task is accepted.
type Preflight struct{ regions map[string]Region }

// NewPreflight returns a Preflight for the given regions.
func NewPreflight(regions map[string]Region) *Preflight { return &Preflight{regions} }

// preflightReads is how a caller who waits for the answer is served: what does not
// come now is for the caller to try again.
var preflightReads = storage.Options{Attempts: 2, StallAfter: 5 * time.Second}

// Check implements tasks.Preflight.
func (p *Preflight) Check(ctx context.Context, spec *tasks.Spec) error {
	region, ok := p.regions[spec.Region]
	if !ok {
		return fmt.Errorf("region %s is not configured", spec.Region)
	}
	if spec.Export != nil {
		return p.checkExport(ctx, region, spec)
	}
	image := imageapi.Spec{ImageID: spec.ImageID, Name: spec.Name, OSType: spec.OSType}
	if err := region.Images.Accepts(image); err != nil {
		return err
	}
	for i := range spec.Disks {
		disks, err := check(ctx, region, spec, &spec.Disks[i])
		if err != nil {
			return &tasks.DiskError{Number: i + 1, Err: err}
		}
		image.Disks += disks
	}
	if err := region.Images.Accepts(image); err != nil {
		return err
	}
	switch _, err := region.Images.Get(ctx, spec.ImageID); {
	case err == nil:
		return tasks.ErrImageIDInUse
	case fault.KindOf(err) != fault.NotFound:
		return err
	}
	return nil
}

// check looks at one object, and returns how many disks it holds.
func check(ctx context.Context, region Region, spec *tasks.Spec, d *tasks.Disk) (disks int, err error) {
	obj, err := region.Objects.Open(ctx, storage.Location(d.Object))
	if err != nil {
		return 0, err
	}
	d.Bytes, d.Version = obj.Size(), obj.Version()
	src, err := openSource(ctx, obj, d.Format, limitsOf(region, spec.TargetFormat, d.MaxBytes), preflightReads)
	if err != nil {
		return 0, err
	}
	d.Detected, d.VirtualBytes = src.String(), 0
	if len(src.Disks) == 1 {
		d.VirtualBytes = src.Disks[0].Size
	}
	return len(src.Disks), nil
}
