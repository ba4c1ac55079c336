package servers

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"path"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// An image that was made here says of which server, and says its own id: a server that
// is started from it, or a volume, hands on its properties to images that others make
// of these, but not its id.
const (
	serverMark = "vmimport_server"
	imageMark  = "vmimport_image"
)

// Image is an image of a server.
type Image struct {
	ID, Name string
	Status   string // "active" when it can be used
	Created  time.Time
	// Found says that it was there, whole or not, before it was asked for.
	Found bool

	server, image, instance string // what it says of itself
	syncReason              string // why it could not be copied to where it is needed
	syncFailed              bool
}

// ImageOptions say which image is wanted of a server. The zero value is good.
type ImageOptions struct {
	Name   string // empty: that of the server, or of an image that was made before
	Volume string // id of the volume that the server boots from; empty: it is found
	New    bool   // make another, even if there is one
	Live   bool   // of a server that is not stopped, too
	NoWait bool   // fail if the cloud makes no more images of the project now
}

// FindImage returns the newest image that Image has begun of a server, and which Image
// would go on with, or nil if there is none.
func (c *Cloud) FindImage(ctx context.Context, id string, o ImageOptions) (*Image, error) {
	s, err := c.look(ctx, id)
	if err != nil {
		return nil, meaning(err)
	}
	img, err := c.find(ctx, s, o)
	return img, meaning(err)
}

// Image has an image of a stopped server's system disk made, and waits until it is
// active. If it has been begun before, it only waits. report is called with each look.
//
// An end of ctx leaves the cloud making the image.
func (c *Cloud) Image(ctx context.Context, id string, o ImageOptions, report func(State)) (*Image, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, c.opt.ImageTimeout, ErrImageTimeout.Saw("within %v", c.opt.ImageTimeout))
	defer cancel()
	var img *Image
	if !o.New {
		err := insist(ctx, State{Phase: Imaging, ServerID: id}, report, func() error {
			s, err := c.look(ctx, id)
			if err == nil {
				img, err = c.find(ctx, s, o)
			}
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	found := img != nil
	if !found {
		var err error
		if img, err = c.begin(ctx, id, o, report); err != nil {
			return nil, meaning(err)
		}
	}
	img, err := c.settle(ctx, id, img.ID, report)
	if err != nil {
		return nil, err
	}
	img.Found = found
	return img, nil
}

// settle waits until an image is active, and sees to it that it keeps its marks: the
// image service writes an image's properties back when its bytes are there, as they
// were when these began to come.
func (c *Cloud) settle(ctx context.Context, server, id string, report func(State)) (*Image, error) {
	var pace pace
	now := State{Phase: Imaging, ServerID: server, ImageID: id}
	marks := marking{left: 5}
	for {
		var img *Image
		err := insist(ctx, now, report, func() (err error) {
			img, err = c.image(ctx, id)
			return err
		})
		if err == nil {
			now.Status = img.Status
			pace.look(now, report)
			err = img.broken()
		}
		if err != nil {
			return nil, err
		}
		marked := c.mark(ctx, server, img, &marks)
		if img.Status == "active" && marked {
			return img, nil
		}
		if err := pace.pause(ctx, 0); err != nil {
			return nil, err
		}
	}
}

// broken says why an image will never be whole, if it will not.
func (i *Image) broken() error {
	const remedy = "Delete the image (openstack image delete ID), and run the same command again."
	switch {
	case i.syncFailed:
		return ErrImageFailed.Saw("image %s could not be copied: %s", i.ID, i.syncReason).Try(remedy)
	case slices.Contains([]string{"killed", "error", "deactivated"}, i.Status):
		return ErrImageFailed.Saw("image %s is %s", i.ID, i.Status).Try(remedy)
	case i.Status == "deleted" || i.Status == "pending_delete":
		return i.gone()
	}
	return nil
}

func (i *Image) gone() error {
	return ErrImageFailed.Saw("image %s is deleted, as the cloud does when it cannot read the disk", i.ID).
		Try("Look at the server and its volume in the cloud's console, and run the same command again.")
}

// marking is how far the marks of an image are.
type marking struct {
	left int    // attempts that may still fail
	in   string // status of the image when it was last marked
}

// mark marks an image if it is not, and reports whether it is now or cannot be. One
// without marks is as good, but is not found again.
func (c *Cloud) mark(ctx context.Context, server string, img *Image, m *marking) bool {
	if img.of(server) && img.image == img.ID || m.in == img.Status || m.left == 0 {
		return true
	}
	_, err := c.do(ctx, call{
		service: TypeImage, method: http.MethodPatch, path: "images/" + img.ID, ok: http.StatusOK, patch: true,
		body: []map[string]string{
			{"op": "add", "path": "/" + serverMark, "value": server},
			{"op": "add", "path": "/" + imageMark, "value": img.ID},
		},
	})
	if err == nil {
		m.in = img.Status
		return true
	}
	m.left--
	if _, final := again(err); final != nil {
		m.left = 0
	}
	return m.left == 0
}

// of reports whether the image was made of that server here. What Nova makes says of
// which server it is, and has the first of our marks at once.
func (i *Image) of(server string) bool {
	return i.server == server && (i.image == i.ID || i.image == "" && i.instance == server)
}

// underway reports whether the image is not whole, and may become so.
func (i *Image) underway() bool {
	return slices.Contains([]string{"queued", "saving", "uploading", "importing"}, i.Status)
}

// called reports whether the image has that name. Nova makes each white space of a name
// one blank.
func (i *Image) called(name string) bool {
	return i.Name == name || i.Name == strings.Join(strings.Fields(name), " ")
}

// find returns the newest image of s that was begun here, nil if there is none.
func (c *Cloud) find(ctx context.Context, s *Server, o ImageOptions) (*Image, error) {
	for img, err := range c.images(ctx, serverMark, s.ID) {
		if err != nil {
			return nil, err
		}
		if img.of(s.ID) && (o.Name == "" || img.called(o.Name)) {
			return img, nil
		}
	}
	if !s.FromVolume {
		return nil, nil
	}
	v, err := c.bootVolume(ctx, s, o.Volume)
	if err != nil || v.Status != uploading {
		return nil, err
	}
	return c.adopt(ctx, v, cmp.Or(o.Name, s.Name))
}

// adopt finds the image that is being made of a volume and was not marked yet: the only
// one of that name that began when the volume changed.
func (c *Cloud) adopt(ctx context.Context, v *volume, name string) (*Image, error) {
	var all []*Image
	for img, err := range c.images(ctx, "name", name) {
		if err != nil {
			return nil, err
		}
		// Two services have told the times.
		if img.called(name) && img.underway() && img.image != img.ID && !img.Created.Before(v.Updated.Add(-time.Minute)) {
			all = append(all, img)
		}
	}
	if len(all) != 1 {
		return nil, ErrImageUnclear.Saw("volume %s; images in question: %d", v.ID, len(all))
	}
	return all[0], nil
}

// source is what an image is made of.
type source struct {
	server *Server
	volume *volume // nil: the server's own disk
	name   string  // for the image
}

// begin asks for an image as soon as the cloud lets it.
func (c *Cloud) begin(ctx context.Context, id string, o ImageOptions, report func(State)) (*Image, error) {
	now := State{Phase: Imaging, ServerID: id}
	for {
		var from source
		var turn time.Time
		err := insist(ctx, now, report, func() (err error) {
			if from, err = c.source(ctx, id, o); err == nil {
				turn, err = c.turn(ctx)
			}
			return err
		})
		if err != nil {
			return nil, err
		}
		if turn.IsZero() {
			img, err := c.create(ctx, from)
			f, ok := err.(*failure) // what is wrapped has a meaning
			if !ok || !f.limited() {
				return img, err
			}
			turn = time.Now().Add(cmp.Or(f.retryAfter, time.Minute))
		}
		if o.NoWait {
			return nil, ErrImageLimit.Saw("the next can be asked for at %s", turn.UTC().Format(time.RFC3339))
		}
		report(State{Phase: Waiting, ServerID: id, Until: turn})
		if err := sleep(ctx, time.Until(turn)); err != nil {
			return nil, err
		}
	}
}

// source finds out what the image is to be made of, and whether it can be now.
func (c *Cloud) source(ctx context.Context, id string, o ImageOptions) (source, error) {
	s, err := c.look(ctx, id)
	if err != nil {
		return source{}, err
	}
	from := source{server: s, name: cmp.Or(o.Name, s.Name)}
	switch {
	case !imageName(from.name):
		return from, ErrImageName
	case s.Status == ShutOff && s.TaskState != "" && !o.Live:
		return from, ErrServerBusy.Saw("task %q", s.TaskState)
	case !s.Stopped() && !o.Live:
		return from, ErrRunning.Saw("status %q", s.Status)
	case !s.FromVolume && o.Volume != "":
		return from, ErrBootVolume.Saw("it boots from a disk of its own, not from a volume").Try("Leave --volume out.")
	case !s.FromVolume:
		return from, nil
	}
	if from.volume, err = c.bootVolume(ctx, s, o.Volume); err != nil {
		return from, err
	}
	if from.volume.Status == uploading {
		return from, ErrImageUnclear.Saw("volume %s", from.volume.ID)
	}
	return from, nil
}

// imageName reports whether the image service takes a name.
func imageName(s string) bool {
	n := utf8.RuneCountInString(s)
	return utf8.ValidString(s) && n <= 255 && strings.TrimSpace(s) != "" && !strings.ContainsFunc(s, unicode.IsControl)
}

// create asks for the image, once: whether it was heard cannot be known if there is no
// answer. Then an image that has begun is looked for.
func (c *Cloud) create(ctx context.Context, from source) (*Image, error) {
	ask := c.createOfDisk
	if from.volume != nil {
		ask = c.createOfVolume
	}
	id, err := ask(ctx, from)
	if err == nil {
		return &Image{ID: id}, nil
	}
	f, ok := err.(*failure) // what is wrapped has a meaning
	switch {
	case !ok || f.limited():
		return nil, err
	case f.passing():
		if img := c.begun(ctx, from); img != nil {
			return img, nil
		}
		return nil, ErrImageUncertain.Because(err)
	case f.status == http.StatusConflict:
		return nil, ErrServerBusy.Because(err)
	}
	return nil, err
}

func (c *Cloud) createOfVolume(ctx context.Context, from source) (string, error) {
	type upload struct {
		ImageName       string `json:"image_name"`
		ContainerFormat string `json:"container_format"`
		DiskFormat      string `json:"disk_format"`
		Force           bool   `json:"force"` // the volume is attached
	}
	var answer struct {
		Upload struct {
			ImageID string `json:"image_id"`
		} `json:"os-volume_upload_image"`
	}
	_, err := c.do(ctx, call{
		service: TypeBlockStorage, method: http.MethodPost, path: "volumes/" + from.volume.ID + "/action", ok: http.StatusAccepted, into: &answer,
		body: map[string]upload{"os-volume_upload_image": {from.name, "bare", "raw", true}},
	})
	return created("POST block-storage", answer.Upload.ImageID, err)
}

func (c *Cloud) createOfDisk(ctx context.Context, from source) (string, error) {
	type snapshot struct {
		Name     string            `json:"name"`
		Metadata map[string]string `json:"metadata"`
	}
	var answer struct {
		ImageID string `json:"image_id"`
	}
	header, err := c.do(ctx, call{
		service: TypeCompute, method: http.MethodPost, path: "servers/" + from.server.ID + "/action", ok: http.StatusAccepted, into: &answer, silent: true,
		// The second mark would be that of the image which the server was made of.
		body: map[string]snapshot{"createImage": {from.name, map[string]string{serverMark: from.server.ID, imageMark: ""}}},
	})
	// Before its version 2.45, which nobody asks for here, Nova names the image there.
	return created("POST compute", cmp.Or(answer.ImageID, path.Base("/"+header.Get("Location"))), err)
}

// created returns the id of an image that the cloud says it has begun.
func created(call, id string, err error) (string, error) {
	if err == nil && !anID.MatchString(id) {
		err = &failure{call: call, text: errAnswer.Error()}
	}
	return id, err
}

// begun returns the image that a request without an answer has made after all, nil if
// none can be found.
func (c *Cloud) begun(ctx context.Context, from source) *Image {
	if sleep(ctx, firstWait) != nil {
		return nil
	}
	if from.volume != nil {
		v, err := c.volume(ctx, from.volume.ID)
		if err != nil || v.Status != uploading {
			return nil
		}
		img, err := c.adopt(ctx, v, from.name)
		if err != nil {
			return nil
		}
		return img
	}
	for img, err := range c.images(ctx, serverMark, from.server.ID) {
		if err != nil {
			return nil
		}
		if img.of(from.server.ID) && img.underway() && img.image == "" {
			return img
		}
	}
	return nil
}

// The cloud makes no more images of a project than this, and the services say so only
// in part.
const (
	mostImages = 4
	limitFor   = time.Hour
)

// turn returns when the next image may be asked for, zero if at once.
func (c *Cloud) turn(ctx context.Context) (time.Time, error) {
	count, now := 0, time.Now()
	for img, err := range c.images(ctx, "", "") {
		if err != nil {
			return time.Time{}, err
		}
		free := img.Created.Add(limitFor)
		if !free.After(now) {
			break // newest first
		}
		if img.server == "" || img.image != "" && img.image != img.ID {
			continue
		}
		if count++; count == mostImages {
			return free, nil
		}
	}
	return time.Time{}, nil
}

// wireImage is an image as Glance describes it.
type wireImage struct {
	ID       string          `json:"id"`
	Name     string          `json:"name"`
	Status   string          `json:"status"`
	Owner    string          `json:"owner"`
	Created  moment          `json:"created_at"`
	Server   string          `json:"vmimport_server"`
	Image    string          `json:"vmimport_image"`
	Instance string          `json:"instance_uuid"`
	Sync     json.RawMessage `json:"sync_status_reason"` // whose presence matters
}

func (w *wireImage) image() *Image {
	i := &Image{ID: w.ID, Name: w.Name, Status: w.Status, Created: w.Created.Time, server: w.Server, image: w.Image, instance: w.Instance}
	if i.syncFailed = len(w.Sync) > 0 && string(w.Sync) != "null"; i.syncFailed {
		if json.Unmarshal(w.Sync, &i.syncReason) != nil || i.syncReason == "" {
			i.syncReason = "no reason is given"
		}
		i.syncReason = fmt.Sprintf("%.200q", i.syncReason)
	}
	return i
}

// image describes one image. One that is gone is a fault.
func (c *Cloud) image(ctx context.Context, id string) (*Image, error) {
	var answer wireImage
	_, err := c.do(ctx, call{service: TypeImage, method: http.MethodGet, path: "images/" + id, ok: http.StatusOK, into: &answer})
	switch {
	case statusOf(err) == http.StatusNotFound:
		return nil, (&Image{ID: id}).gone()
	case err != nil:
		return nil, err
	case answer.ID != id:
		return nil, &failure{call: "GET image", text: errAnswer.Error()}
	}
	return answer.image(), nil
}
