package pipeline

import (
	"context"
	"testing"

	"vmimport/imageapi"
	"vmimport/tasks"
)

// spending is an image service that has lost an upload of one image, and does not give
// out its id any more.
type spending struct {
	imageapi.Images
	spent string
}

func (s *spending) Begin(ctx context.Context, spec imageapi.Spec) (imageapi.Upload, error) {
	if spec.ImageID == s.spent {
		return nil, imageapi.ErrSpent
	}
	return s.Images.Begin(ctx, spec)
}

// An image whose id nobody asked for gets another.
func TestSpentImageID(t *testing.T) {
	r := newRig(t)
	content := disk(1, diskSize)
	spec := r.accept(content)
	r.images = &spending{r.images, spec.ImageID}
	if outcome := r.handle(spec); outcome != string(tasks.Succeeded) {
		t.Fatalf("outcome %q", outcome)
	}
	task := r.get(spec)
	if task.ImageID == spec.ImageID || task.ImageID == "" {
		t.Fatalf("image id %q", task.ImageID)
	}
	spec.ImageID = task.ImageID
	r.wantImage(spec, content)
}

// An image that must have its id fails, with a way out.
func TestSpentImageIDThatWasAskedFor(t *testing.T) {
	r := newRig(t)
	r.givenID = true
	spec := r.accept(disk(1, diskSize))
	r.images = &spending{r.images, spec.ImageID}
	r.handle(spec)
	r.wantNothing(spec, tasks.Failed, "image_id_spent")
	if f := r.get(spec).Failure; f.Remedy == "" {
		t.Error("no remedy")
	}
}

// A cancel that comes while the image is given another id wins.
func TestSpentImageIDUnderACancel(t *testing.T) {
	r := newRig(t)
	spec := r.accept(disk(1, diskSize))
	images := &spending{r.images, spec.ImageID}
	r.images = &canceling{images, func() { r.cancel(spec) }}
	r.handle(spec)
	r.wantNothing(spec, tasks.Canceled, "")
}

// canceling is canceled when an image is begun.
type canceling struct {
	imageapi.Images
	cancel func()
}

func (c *canceling) Begin(ctx context.Context, spec imageapi.Spec) (imageapi.Upload, error) {
	c.cancel()
	return c.Images.Begin(ctx, spec)
}
