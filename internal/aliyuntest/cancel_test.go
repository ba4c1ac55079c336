package aliyuntest

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/aliyun/alibaba-cloud-sdk-go/sdk/requests"
	"github.com/aliyun/alibaba-cloud-sdk-go/services/ecs"
)

func TestCancel(t *testing.T) {
	t.Parallel()
	s := serve(t)
	s.putEndless()
	s.putHole("disk.raw", 1<<20)
	c := s.as("blue")
	made := c.mustImport(importRequest("web01", endless))

	// Only who asks for it sees an image that is being made.
	if a, err := c.DescribeImages(ecs.CreateDescribeImagesRequest()); err != nil || a.TotalCount != 0 {
		t.Errorf("listed as available: %v, %v", a, err)
	}
	c.underWay(made.TaskId)
	if images := c.images(made.ImageId); len(images) != 1 || images[0].Status != "Creating" {
		t.Errorf("while it is imported: %+v", images)
	}
	if task := c.task(made.TaskId); task.SupportCancel != "true" || task.FinishedTime != "" || task.OperationProgressSet.OperationProgress[0].OperationStatus != "Processing" {
		t.Errorf("while it is imported: %s", task.GetHttpContentString())
	}
	for _, force := range []requests.Boolean{"", "true"} {
		r := ecs.CreateDeleteImageRequest()
		r.ImageId, r.Force = made.ImageId, force
		if _, err := c.DeleteImage(r); refusal(err) != "403 ImageIsImporting" {
			t.Errorf("deleted while it is imported, force %q: %v", force, err)
		}
	}
	if _, err := c.ImportImage(importRequest("web01", "disk.raw")); refusal(err) != "400 InvalidImageName.Duplicated" {
		t.Errorf("the name of an image that is being made: %v", err)
	}
	if got := refusal(s.as("green").cancel(made.TaskId)); got != "400 InvalidTaskId.NotFound" {
		t.Errorf("canceled by another account: %s", got)
	}
	s.cancels(c, made)
}

// cancels cancels an import of the name web01, and gives the name to another.
func (s *service) cancels(c *client, made *ecs.ImportImageResponse) {
	t := s.t
	t.Helper()
	if err := c.cancel(made.TaskId); err != nil {
		t.Fatal(err)
	}
	if got := refusal(c.cancel(made.TaskId)); got != "403 InvalidTaskId.IncorrectTaskStatus" {
		t.Errorf("canceled twice: %s", got)
	}
	until(t, "the import was canceled", func() bool {
		task := c.task(made.TaskId)
		if task.SupportCancel != "false" || task.TaskStatus != "Processing" && task.TaskStatus != "Deleted" {
			t.Fatalf("after the cancel: %s", task.GetHttpContentString())
		}
		return task.TaskStatus == "Deleted"
	})
	if task := c.task(made.TaskId); task.FinishedTime == "" || task.TaskProcess == "100%" {
		t.Errorf("canceled: %s", task.GetHttpContentString())
	}
	for _, image := range c.images(made.ImageId) {
		if image.Status != "CreateFailed" || image.Progress == "100%" {
			t.Errorf("image of a canceled import: %+v", image)
		}
	}
	if got := refusal(c.cancel(made.TaskId)); got != "403 InvalidTaskId.IncorrectTaskStatus" {
		t.Errorf("canceled when it was: %s", got)
	}

	// The name is free again, and nothing is left of the data.
	again := c.mustImport(importRequest("web01", "disk.raw"))
	c.available(again.ImageId)
	if got := refusal(c.delete(made.ImageId)); got != "" && got != "404 InvalidImageId.NotFound" {
		t.Errorf("deleted afterwards: %s", got)
	}
	if images := c.images(""); len(images) > 1 && images[1].ImageId != made.ImageId {
		t.Errorf("%+v", images)
	}
	until(t, "the data was gone", func() bool {
		left, err := os.ReadDir(filepath.Join(s.stack.Images, ".staging"))
		return err == nil && len(left) == 0
	})
}

// What waits for its turn can be canceled, too. Four imports run at a time.
func TestCancelWaiting(t *testing.T) {
	t.Parallel()
	s := serve(t)
	s.putEndless()
	c := s.as("blue")
	var running []*ecs.ImportImageResponse
	for range 4 {
		running = append(running, c.mustImport(importRequest("", endless)))
	}
	for _, r := range running {
		c.underWay(r.TaskId)
	}
	waiting := c.mustImport(importRequest("web01", endless))
	task := c.task(waiting.TaskId)
	if task.TaskStatus != "Waiting" || task.SupportCancel != "true" {
		t.Errorf("%s", task.GetHttpContentString())
	}
	if images := c.images(waiting.ImageId); len(images) != 1 || images[0].Status != "Waiting" || images[0].Progress != "0%" {
		t.Errorf("%+v", images)
	}
	r := ecs.CreateDescribeImagesRequest()
	r.Status = "Creating"
	if a, err := c.DescribeImages(r); err != nil || a.TotalCount != len(running) {
		t.Errorf("images that are being made: %v, %v", a, err)
	}
	r.Status = "Waiting"
	if a, err := c.DescribeImages(r); err != nil || a.TotalCount != 1 {
		t.Errorf("images that wait: %v, %v", a, err)
	}
	if got := refusal(c.delete(waiting.ImageId)); got != "403 ImageIsImporting" {
		t.Errorf("deleted while it waits: %s", got)
	}
	if err := c.cancel(waiting.TaskId); err != nil {
		t.Fatal(err)
	}
	until(t, "the import was canceled", func() bool { return c.task(waiting.TaskId).TaskStatus == "Deleted" })
	for _, r := range running {
		if err := c.cancel(r.TaskId); err != nil {
			t.Error(err)
		}
	}
}
