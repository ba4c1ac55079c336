// Package glance registers images in OpenStack Glance.
//
// While an image is being made it belongs to the service's own project, and no
// customer sees it. It is handed to its owner in one change, after Glance has stored
// all of it and has shown the same hash of it that was computed on the way there.
//
// Glance gives no image id out twice, and an image cannot leave the state "saving"
// but by the end of its upload. The package lives with both: see
// docs/design/0009-glance.md.
package glance

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"
	"github.com/gophercloud/gophercloud/v2"
	"github.com/gophercloud/gophercloud/v2/openstack/image/v2/images"

	"vmimport/imageapi"
	"vmimport/internal/openstack"
)

// Options set up Images. All but Cloud may be left zero.
type Options struct {
	Cloud *openstack.Cloud

	// Region is the imports' region, as they name it in the property "vmimport_region".
	// Sweep touches images of that region alone: several installations may share the
	// service's project.
	Region string

	// Patience is how long Begin and Remove wait for Glance to notice that an upload
	// was cut off, 15 s by default: longer than the usual front ends wait for a body.
	// They do so for the sake of an id that is to be kept; for others an eighth of it
	// will do.
	Patience time.Duration
	// AnswerTimeout is for how long an upload may stand still since Glance takes no more
	// of it, or does not answer after its last byte, 10 minutes by default: it may have
	// to be written to a cluster first.
	AnswerTimeout time.Duration
	// KeepAlive is the most time between two bytes of an upload whose source is slow, 2 s
	// by default. See body.
	KeepAlive time.Duration
}

// Images is one Glance. It is safe for concurrent use, and so are several of them,
// in whatever processes, with the same service.
type Images struct {
	opt    Options
	cloud  *openstack.Cloud
	client *http.Client
	algo   atomic.Pointer[string] // by which Glance hashes, as far as is known

	mu     sync.Mutex
	broken map[string]time.Time // when an upload was broken off here, by image id
}

var _ imageapi.Images = (*Images)(nil)

// pollEvery is the pause between two looks at an image that is to change its state.
const pollEvery = 100 * time.Millisecond

// New returns the image service of a cloud. It makes no request.
func New(o Options) (*Images, error) {
	o.Patience = cmp.Or(o.Patience, 15*time.Second)
	o.AnswerTimeout = cmp.Or(o.AnswerTimeout, 10*time.Minute)
	o.KeepAlive = cmp.Or(o.KeepAlive, 2*time.Second)
	client, err := o.Cloud.Client(o.AnswerTimeout)
	if err != nil {
		return nil, err
	}
	i := &Images{opt: o, cloud: o.Cloud, client: client, broken: map[string]time.Time{}}
	i.algo.Store(new(defaultAlgo))
	return i, nil
}

// Close lets go of connections.
func (i *Images) Close() error {
	i.client.CloseIdleConnections()
	return nil
}

// maxName is how many characters a name may have: see get_base_properties in
// glance/api/v2/images.py.
const maxName = 255

// Accepts implements imageapi.Images.
func (i *Images) Accepts(spec imageapi.Spec) error {
	// Glance's database takes three bytes for a character. See no_4byte_params in
	// glance/common/utils.py.
	if utf8.RuneCountInString(spec.Name) > maxName || strings.ContainsFunc(spec.Name, func(r rune) bool { return r > 0xffff }) {
		return errName
	}
	if spec.Disks > 1 {
		return imageapi.ErrOneDisk
	}
	return nil
}

// Get implements imageapi.Images.
func (i *Images) Get(ctx context.Context, imageID string) (*imageapi.Image, error) {
	r, err := i.published(ctx, imageID)
	if err != nil {
		return nil, err
	}
	return &imageapi.Image{ImageID: r.ID, ImportID: r.Import, Owner: r.Owner}, nil
}

// published returns an image that is none of those that the service makes or has parked.
func (i *Images) published(ctx context.Context, imageID string) (*record, error) {
	own, err := i.cloud.ProjectID(ctx)
	if err != nil {
		return nil, err
	}
	r, err := i.show(ctx, imageID)
	switch {
	case err != nil:
		return nil, err
	case r.unpublished(own) || r.parked(own):
		return nil, imageapi.ErrNoImage
	}
	return r, nil
}

// Begin implements imageapi.Images.
func (i *Images) Begin(ctx context.Context, spec imageapi.Spec) (imageapi.Upload, error) {
	if err := i.Accepts(spec); err != nil {
		return nil, err
	}
	own, err := i.cloud.ProjectID(ctx)
	if err != nil {
		return nil, err
	}
	u := &upload{images: i, spec: spec, own: own}
	err = i.create(ctx, spec)
	if statusOf(err) == http.StatusConflict { // the id is in use, or has been once
		err = i.takeUp(ctx, u)
	}
	if err != nil {
		return nil, err
	}
	return u, nil
}

// create makes the image.
func (i *Images) create(ctx context.Context, spec imageapi.Spec) error {
	return i.call(ctx, "create image", func(c *gophercloud.ServiceClient) error {
		return images.Create(ctx, c, creation(spec)).Err
	})
}

// maxBusy is how many attempts find an image busy before they give it up: with the
// pauses between them some minutes. A Glance that was stopped while it took an upload
// never lets go of it.
const maxBusy = 5

// takeUp goes on with an image that exists.
//
// Glance changes an image by reading and writing all of it, so of two changes at a time
// one may be undone, and with it a state: an upload of an earlier attempt that begins
// just now, or ends. So what was written is believed when it is still there a while
// later.
func (i *Images) takeUp(ctx context.Context, u *upload) error {
	deadline := time.Now().Add(i.patience(u.spec))
	for {
		r, err := i.show(ctx, u.spec.ImageID)
		if errors.Is(err, imageapi.ErrNoImage) {
			return imageapi.ErrSpent
		}
		if err != nil {
			return err
		}
		pause := i.settle()
		switch {
		case r.parked(u.own):
			err = i.update(ctx, "take over image id", r, takeover(r, u.spec))
		case !r.isOf(u.spec, u.own):
			return imageapi.ErrTaken
		case !r.unpublished(u.own):
			u.published = true
			return nil
		case r.attempt() > u.spec.Attempt:
			return imageapi.ErrShutOut
		case r.Status != queued && r.Status != active:
			if time.Now().After(deadline) {
				return i.abandon(ctx, r, u.spec)
			}
			pause = pollEvery
		case r.attempt() < u.spec.Attempt:
			err = i.update(ctx, "take up image", r, takingUp(u.spec))
		default:
			// An image that is active has everything but its owner. This attempt finds
			// out whether it is what it should be.
			return nil
		}
		if err := again(ctx, err, deadline, pause); err != nil {
			return err
		}
	}
}

// abandon gives up an image that Glance does not let go of.
func (i *Images) abandon(ctx context.Context, r *record, spec imageapi.Spec) error {
	if spec.KeepID && spec.Attempt-r.attempt() < maxBusy {
		return errBusy.Because(fmt.Errorf("image is %s", r.Status))
	}
	if err := i.delete(ctx, r); err != nil {
		return err
	}
	return imageapi.ErrSpent
}

// again returns nil when it is time for another look at an image, after a change to it
// that ended with err.
func again(ctx context.Context, err error, deadline time.Time, pause time.Duration) error {
	if err != nil && (!errors.Is(err, errMoved) || time.Now().After(deadline)) {
		return err
	}
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(pause):
		return nil
	}
}

// patience is how long an image is waited for that is busy.
func (i *Images) patience(spec imageapi.Spec) time.Duration {
	if spec.KeepID {
		return i.opt.Patience
	}
	return i.settle()
}

// settle is longer than Glance takes to change an image, and a worker to notice that
// it has lost its import: how long a look at an image may be acted upon, and when it is
// looked at again after that.
func (i *Images) settle() time.Duration { return i.opt.Patience / 8 }

// hasBegun waits until Glance has begun with an upload, and says whether it has. An upload
// that is broken off before that changes the image later, when nobody looks for it. One
// that another attempt has taken the image from is not waited for: it must end.
func (i *Images) hasBegun(s *sending, spec imageapi.Spec) bool {
	ctx, cancel := context.WithTimeout(context.Background(), i.opt.Patience)
	defer cancel()
	for pause := time.Duration(0); ; pause = pollEvery {
		select {
		case <-s.done:
			return true
		case <-ctx.Done():
			return false
		case <-time.After(pause):
		}
		r, err := i.show(ctx, spec.ImageID)
		switch {
		case err != nil || r.Import != spec.ImportID || r.attempt() != spec.Attempt:
			return false
		case r.Status != queued:
			return true
		}
	}
}

// brokeOff notes that an upload was broken off that Glance had not begun with. It may
// do so still, for as long as settle.
func (i *Images) brokeOff(imageID string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	maps.DeleteFunc(i.broken, func(_ string, at time.Time) bool { return time.Since(at) > i.settle() })
	i.broken[imageID] = time.Now()
}

// settled is when an upload that was broken off here changes the image no more.
func (i *Images) settled(imageID string) time.Time {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.broken[imageID].Add(i.settle())
}

// Remove implements imageapi.Images. An id that is to be kept is spent only if Glance
// does not let go of an upload, or has stored all of it.
//
// An upload that Glance begins with after the image was parked undoes that: it writes back
// what it had read before. Uploads are broken off when they have begun, and where that
// could not be waited for, the image is looked at again for a while.
func (i *Images) Remove(ctx context.Context, importID, imageID string) error {
	own, err := i.cloud.ProjectID(ctx)
	if err != nil {
		return err
	}
	deadline, settled, parked := time.Now().Add(i.opt.Patience), i.settled(imageID), false
	for {
		r, err := i.show(ctx, imageID)
		switch {
		case errors.Is(err, imageapi.ErrNoImage):
			return nil
		case err != nil:
			return err
		case parked && r.parked(own) && time.Now().Before(settled):
			if err := again(ctx, nil, deadline, pollEvery); err != nil {
				return err
			}
			continue
		case r.Import != importID:
			return nil
		case r.Protected && !r.unpublished(own): // its owner has decided that it stays
			return nil
		}
		keep := r.KeepID == yes && r.unpublished(own)
		switch {
		case keep && r.Status == saving && time.Now().Before(deadline):
			err = errMoved // or will be: Glance notices the end of the upload
		case keep && r.Status == queued:
			err = i.update(ctx, "park image id", r, parking(r))
			parked = err == nil
		default:
			err = i.delete(ctx, r)
		}
		if err == nil && !(parked && time.Now().Before(settled)) {
			return nil
		}
		if err := again(ctx, err, deadline, pollEvery); err != nil {
			return err
		}
	}
}

// show returns the image as it is now.
func (i *Images) show(ctx context.Context, imageID string) (*record, error) {
	// Whatever else goes into a path would be asked for something else.
	if len(imageID) != 36 || uuid.Validate(imageID) != nil {
		return nil, imageapi.ErrNoImage
	}
	r := &record{}
	err := i.call(ctx, "show image", func(c *gophercloud.ServiceClient) error {
		return read(images.Get(ctx, c, imageID).Result, r)
	})
	switch {
	case statusOf(err) == http.StatusNotFound, err == nil && r.gone():
		return nil, imageapi.ErrNoImage
	case err != nil:
		return nil, err
	}
	r.seen = time.Now()
	return r, nil
}

// update changes an image that Glance does not change at the same time: it writes
// back all of what it has read, its state included. A property that is to be removed
// must be there, which is the only condition that Glance knows.
func (i *Images) update(ctx context.Context, op string, r *record, patch images.UpdateOpts) error {
	return i.change(ctx, op, r, func(c *gophercloud.ServiceClient) error {
		return images.Update(ctx, c, r.ID, patch).Err
	})
}

// delete deletes an image, and spends its id. That it is gone is success.
func (i *Images) delete(ctx context.Context, r *record) error {
	err := i.change(ctx, "delete image", r, func(c *gophercloud.ServiceClient) error {
		return images.Delete(ctx, c, r.ID).Err
	})
	if statusOf(err) == http.StatusNotFound {
		return nil
	}
	return err
}

// change does something to an image on the ground of what was seen of it. errMoved: it
// is not like that any more, or was seen too long ago. So a worker that was stopped in
// between, for however long, does nothing to the image of those who came after it.
func (i *Images) change(ctx context.Context, op string, r *record, do func(*gophercloud.ServiceClient) error) error {
	err := i.call(ctx, op, func(c *gophercloud.ServiceClient) error {
		if time.Since(r.seen) > i.settle() {
			return errMoved
		}
		return do(c)
	})
	switch statusOf(err) {
	case http.StatusNotFound, http.StatusConflict:
		return errUnavailable.Because(fmt.Errorf("%w: %w", errMoved, err))
	}
	return err
}

// callTimeout bounds a call together with the reading of its answer.
const callTimeout = time.Minute

// call does something that can be done twice.
func (i *Images) call(ctx context.Context, op string, do func(*gophercloud.ServiceClient) error) error {
	err := i.cloud.Call(ctx, openstack.Image, func(c *gophercloud.ServiceClient) error {
		c.ResourceBase = versioned(c.Endpoint)
		c.HTTPClient.Timeout = callTimeout
		return do(c)
	})
	if err != nil {
		return failure(ctx, op, err)
	}
	return nil
}

// versioned returns the address of API version 2, which the catalogue may leave out.
func versioned(endpoint string) string {
	if strings.HasSuffix(endpoint, "/v2/") {
		return endpoint
	}
	return endpoint + "v2/"
}

// read decodes an image.
func read(result gophercloud.Result, r *record) error {
	if result.Err != nil {
		return result.Err
	}
	if err := result.ExtractInto(r); err != nil {
		return fmt.Errorf("read image: %w", err)
	}
	return result.ExtractInto(&r.properties)
}
