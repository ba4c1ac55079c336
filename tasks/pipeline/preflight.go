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

// Preflight is the cheap part of an attempt, run before an import is accepted.
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
	if err := region.Images.Accepts(imageapi.Spec{ImageID: spec.ImageID, Name: spec.Name, OSType: spec.OSType}); err != nil {
		return err
	}
	for i := range spec.Disks {
		d := &spec.Disks[i]
		obj, err := region.Objects.Open(ctx, storage.Location(d.Object))
		if err != nil {
			return err
		}
		d.Bytes, d.Version = obj.Size(), obj.Version()
		if _, err := openSource(ctx, obj, d.Format, limitsOf(region, spec.TargetFormat), preflightReads); err != nil {
			return err
		}
	}
	switch _, err := region.Images.Get(ctx, spec.ImageID); {
	case err == nil:
		return tasks.ErrImageIDInUse
	case fault.KindOf(err) != fault.NotFound:
		return err
	}
	return nil
}
