package pipeline

import (
	"context"
	"errors"

	"github.com/google/uuid"

	"vmimport/imageapi"
	"vmimport/internal/fault"
	"vmimport/tasks"
)

// importing is the job of making an image of objects.
type importing struct{ *attempt }

func (a importing) do(ctx context.Context, saved []byte) error {
	if published, err := a.recognise(ctx); published || err != nil {
		return err
	}
	if err := a.endure(); err != nil {
		return err
	}
	cp, err := a.loadCheckpoint(ctx, saved)
	if err != nil {
		return err
	}
	upload, err := a.begin(ctx)
	if err != nil {
		return err
	}
	defer upload.Close()
	disks, err := a.copyDisks(ctx, upload, cp)
	if err != nil {
		return err
	}
	a.heart.enter(tasks.StagePublishing)
	a.heart.beat(ctx) // the last figures, for the record of a success
	result := &tasks.Result{Disks: disks}
	a.publishing = true // whatever the answer: it may be lost
	if err := a.r.claims.BeginPublish(ctx, a.held, result); err != nil {
		return err
	}
	// A worker that drains does not throw away an image at its last step.
	return upload.Publish(context.WithoutCancel(ctx), factsOf(disks))
}

// remove removes the image, or what there is of it.
func (a importing) remove(ctx context.Context) error {
	return a.region.Images.Remove(ctx, string(a.task.ID), a.task.ImageID)
}

// settle has nothing to do: an upload that is published has left nothing.
func (importing) settle(context.Context) error { return nil }

// recognise looks for the image of an earlier attempt of this import that died
// between publishing and finishing. One of which the record has no result, since a failover has
// lost it, is there to stay, and whole; but what is in it has to be read again.
func (a importing) recognise(ctx context.Context) (published bool, err error) {
	img, err := a.region.Images.Get(ctx, a.task.ImageID)
	switch {
	case fault.KindOf(err) == fault.NotFound:
		return false, nil
	case err != nil:
		return false, err
	case img.ImportID != string(a.task.ID):
		return false, imageapi.ErrTaken
	case a.task.Result == nil:
		a.log.Warn().Msg("the image is published, and its result is not in the record: the object is read again")
		a.publishing = true
		return false, nil
	}
	a.log.Info().Msg("image of an earlier attempt recognised")
	return true, a.r.claims.BeginPublish(ctx, a.held, a.task.Result)
}

// begin begins the image. If its id is spent and nobody has asked for it, the image
// gets another: that the image service lost an upload is no reason to fail.
func (a importing) begin(ctx context.Context) (imageapi.Upload, error) {
	upload, err := a.region.Images.Begin(ctx, a.imageSpec())
	if !errors.Is(err, imageapi.ErrSpent) || a.task.ImageIDGiven {
		return upload, err
	}
	id := uuid.NewString()
	if err := a.r.claims.Reassign(ctx, a.held, id); err != nil {
		return nil, err
	}
	a.log.Warn().Str("from", a.task.ImageID).Str("to", id).Msg("the image service does not give out the image id any more; the image gets another")
	a.task.ImageID, a.saved = id, false // the checkpoint went with the old one
	return a.region.Images.Begin(ctx, a.imageSpec())
}

func (a importing) imageSpec() imageapi.Spec {
	return imageapi.Spec{
		ImageID:    a.task.ImageID,
		KeepID:     a.task.ImageIDGiven,
		ImportID:   string(a.task.ID),
		Attempt:    int64(a.held.Epoch),
		Name:       a.task.Name,
		Owner:      a.task.Owner.Project,
		Format:     a.task.TargetFormat,
		MinRAM:     a.task.MinRAMMiB,
		MinDisk:    a.task.MinDiskGiB,
		OSType:     a.task.OSType,
		CreatedAt:  a.task.RequestedAt,
		Properties: map[string]string{"vmimport_region": a.task.Region, "vmimport_request_id": a.task.RequestID},
		WellKnown:  a.task.Properties,
	}
}
