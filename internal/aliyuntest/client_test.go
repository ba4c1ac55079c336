package aliyuntest

import (
	"errors"
	"fmt"
	"net/http"
	"testing"

	"github.com/aliyun/alibaba-cloud-sdk-go/sdk"
	"github.com/aliyun/alibaba-cloud-sdk-go/sdk/auth"
	"github.com/aliyun/alibaba-cloud-sdk-go/sdk/auth/credentials"
	sdkerrors "github.com/aliyun/alibaba-cloud-sdk-go/sdk/errors"
	"github.com/aliyun/alibaba-cloud-sdk-go/services/ecs"
)

// everyState lists all states of an image, for DescribeImages, which shows only
// available ones if it is not asked for more.
const everyState = "Waiting,Creating,Available,CreateFailed,UnAvailable,Deprecated"

// client is the SDK's client of one caller. Like the SDK's it is not for several
// goroutines at once: the SDK writes to its own fields with each call.
type client struct {
	*ecs.Client
	t    *testing.T
	wire *wire
}

// as returns a client that signs with a permanent key.
func (s *service) as(keyID string) *client {
	return s.client(credentials.NewAccessKeyCredential(keyID, secretOf(keyID)), sdk.NewConfig())
}

// client returns a client with any credential and configuration.
func (s *service) client(c auth.Credential, config *sdk.Config) *client {
	s.t.Helper()
	w := &wire{transport: &http.Transport{}}
	s.t.Cleanup(w.transport.CloseIdleConnections)
	config.Transport = w
	sdkClient, err := ecs.NewClientWithOptions(region, config, c)
	if err != nil {
		s.t.Fatal(err)
	}
	sdkClient.Domain = s.host
	return &client{sdkClient, s.t, w}
}

// wire carries a client's requests, and keeps what came by last.
type wire struct {
	transport *http.Transport
	// answer, if not nil, is asked what to tell the client instead of what came back.
	answer func(*http.Response) (*http.Response, error)

	request *http.Request
	bodies  int // of requests, that were not empty
}

func (w *wire) RoundTrip(r *http.Request) (*http.Response, error) {
	w.request = r.Clone(r.Context())
	if r.ContentLength != 0 {
		w.bodies++
	}
	resp, err := w.transport.RoundTrip(r)
	if err == nil && w.answer != nil {
		return w.answer(resp)
	}
	return resp, err
}

// refusal is what the SDK makes of an error that the service answered with: status and
// code. It is "" without an error.
func refusal(err error) string {
	if err == nil {
		return ""
	}
	refused, ok := errors.AsType[*sdkerrors.ServerError](err)
	if !ok {
		return err.Error()
	}
	return fmt.Sprintf("%d %s", refused.HttpStatus(), refused.ErrorCode())
}

// importRequest asks for an image of objects in the bucket.
func importRequest(name string, objects ...string) *ecs.ImportImageRequest {
	r := ecs.CreateImportImageRequest()
	r.ImageName = name
	var disks []ecs.ImportImageDiskDeviceMapping
	for _, o := range objects {
		disks = append(disks, ecs.ImportImageDiskDeviceMapping{OSSBucket: bucket, OSSObject: o})
	}
	r.DiskDeviceMapping = &disks
	return r
}

// mustImport returns the answer to a request that must be accepted.
func (c *client) mustImport(r *ecs.ImportImageRequest) *ecs.ImportImageResponse {
	c.t.Helper()
	a, err := c.ImportImage(r)
	if err != nil {
		c.t.Fatal(err)
	}
	if a.ImageId == "" || a.TaskId == "" {
		c.t.Fatalf("ids are missing: %s", a.GetHttpContentString())
	}
	return a
}

// images lists what DescribeImages has of an id, or all, whatever their state.
func (c *client) images(imageID string) []ecs.Image {
	c.t.Helper()
	r := ecs.CreateDescribeImagesRequest()
	r.ImageId = imageID
	return c.listed(r)
}

// imagesNamed is images by name.
func (c *client) imagesNamed(name string) []ecs.Image {
	c.t.Helper()
	r := ecs.CreateDescribeImagesRequest()
	r.ImageName = name
	return c.listed(r)
}

func (c *client) listed(r *ecs.DescribeImagesRequest) []ecs.Image {
	c.t.Helper()
	r.Status = everyState
	a, err := c.DescribeImages(r)
	if err != nil {
		c.t.Fatal(err)
	}
	return a.Images.Image
}

func (c *client) task(taskID string) *ecs.DescribeTaskAttributeResponse {
	c.t.Helper()
	r := ecs.CreateDescribeTaskAttributeRequest()
	r.TaskId = taskID
	a, err := c.DescribeTaskAttribute(r)
	if err != nil {
		c.t.Fatal(err)
	}
	return a
}

func (c *client) cancel(taskID string) error {
	r := ecs.CreateCancelTaskRequest()
	r.TaskId = taskID
	_, err := c.CancelTask(r)
	return err
}

func (c *client) delete(imageID string) error {
	r := ecs.CreateDeleteImageRequest()
	r.ImageId = imageID
	_, err := c.DeleteImage(r)
	return err
}

// available waits for an image as the vendor's own tools do, and checks what they rely on:
// that there is one outcome, and that only an image that can be used is at 100%.
func (c *client) available(imageID string) *ecs.Image {
	c.t.Helper()
	var image ecs.Image
	until(c.t, "the image was available", func() bool {
		list := c.images(imageID)
		if len(list) != 1 {
			c.t.Fatalf("%d images of the id %s", len(list), imageID)
		}
		image = list[0]
		switch image.Status {
		case "Waiting", "Creating", "Available":
		default:
			c.t.Fatalf("image %s is %s", imageID, image.Status)
		}
		if (image.Progress == "100%") != (image.Status == "Available") {
			c.t.Errorf("image %s is %s at %s", imageID, image.Status, image.Progress)
		}
		return image.Status == "Available"
	})
	return &image
}

// underWay waits until an import runs.
func (c *client) underWay(taskID string) {
	c.t.Helper()
	until(c.t, "the import ran", func() bool {
		task := c.task(taskID)
		if task.TaskStatus != "Waiting" && task.TaskStatus != "Processing" {
			c.t.Fatalf("task %s is %s", taskID, task.TaskStatus)
		}
		return task.TaskStatus == "Processing"
	})
}
