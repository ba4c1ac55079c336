package openstack

import (
	"context"
	"crypto/rand"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"sync"
	"time"
)

// Volumes stands in for Cinder, for which there are no block devices here. It keeps
// volumes in memory, and answers what Nova asks about a server's volumes and what
// makes an image of one; it makes none of volumes and snapshots over its API, and knows
// no version above 3.44. It asks Keystone about each token, and has Glance make images
// with the caller's own.
//
// As in a cloud whose operator set enable_force_upload, a volume in use can be uploaded.
type Volumes struct {
	cloud   *Cloud
	user    *User // who asks about tokens
	server  *httptest.Server
	ctx     context.Context // of the uploads
	cancel  context.CancelFunc
	uploads sync.WaitGroup

	mu          sync.Mutex
	volumes     map[string]*Volume
	attachments map[string]*attachment
	token       string // of user
	renew       time.Time
}

// Volume is one of the stand-in's. It is in use while a server has it, whether that runs
// or not.
type Volume struct {
	ID, Name, ProjectID string

	of       *Volumes
	content  []byte
	created  time.Time
	status   string
	uploads  Uploads
	requests int // for uploads, as the limit counts them
}

// attachment is a server's claim on a volume, which it uses when it is complete.
type attachment struct {
	id, server string
	volume     *Volume
	status     string // reserved, attaching, attached
	device     string
}

// Uploads says how a volume is uploaded as an image. All is well with the zero value.
type Uploads struct {
	// Limit is told of each request, counted from one. If it returns a status, 413 as
	// Cinder's own or 429 as gateways', the request is refused with it, and with a
	// Retry-After unless that is zero.
	Limit func(request int) (status int, retryAfter time.Duration)

	// Hold keeps the upload, which was accepted, from beginning until it is closed. The
	// image is queued as long.
	Hold <-chan struct{}

	// Fail has Cinder find that it cannot read the volume. It deletes the image.
	Fail bool

	// SyncStatusReason is a property of the image if it is not "".
	SyncStatusReason string
}

func newVolumes(c *Cloud) *Volumes {
	v := &Volumes{
		cloud: c, user: &User{Name: "cinder", ProjectName: "service", Domain: "Default"},
		volumes: map[string]*Volume{}, attachments: map[string]*attachment{},
	}
	v.ctx, v.cancel = context.WithCancel(context.Background())
	v.server = httptest.NewServer(v.handler())
	return v
}

// url is what the catalogue has.
func (v *Volumes) url() string { return v.server.URL + "/v3/%(project_id)s" }

// close ends it. Uploads break off, and leave their images as they are.
func (v *Volumes) close() {
	v.cancel()
	v.server.Close()
	v.uploads.Wait()
}

// Create makes a volume from which a server can boot in the user's project. The content
// must not change any more.
func (v *Volumes) Create(u *User, name string, content []byte) *Volume {
	vol := &Volume{ID: newUUID(), Name: name, ProjectID: u.ProjectID, of: v, content: content, created: time.Now(), status: "available"}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.volumes[vol.ID] = vol
	return vol
}

// SetUploads says how uploads go whose requests come from now on. Requests are counted
// from one again.
func (vol *Volume) SetUploads(u Uploads) {
	vol.of.mu.Lock()
	defer vol.of.mu.Unlock()
	vol.uploads, vol.requests = u, 0
}

// Status returns what Cinder's API shows: available, reserved, in-use or uploading.
func (vol *Volume) Status() string {
	vol.of.mu.Lock()
	defer vol.of.mu.Unlock()
	return vol.status
}

// admit counts a request for an upload, and says how that is to go.
func (vol *Volume) admit() (u Uploads, status int, retryAfter time.Duration) {
	vol.of.mu.Lock()
	defer vol.of.mu.Unlock()
	vol.requests++
	if vol.uploads.Limit != nil {
		status, retryAfter = vol.uploads.Limit(vol.requests)
	}
	return vol.uploads, status, retryAfter
}

// beginUpload makes the volume's status uploading, if it may be uploaded.
func (vol *Volume) beginUpload(force bool) error {
	vol.of.mu.Lock()
	defer vol.of.mu.Unlock()
	if vol.status != "available" && !(force && vol.status == "in-use") {
		return fmt.Errorf("volume %s is %s", vol.ID, vol.status)
	}
	vol.status = "uploading"
	return nil
}

// rest gives the volume the status that its attachments mean. The caller has the lock.
func (vol *Volume) rest() {
	vol.status = "available"
	for _, a := range vol.of.attachments {
		switch {
		case a.volume != vol:
		case a.status == "attached":
			vol.status = "in-use"
		case vol.status == "available":
			vol.status = a.status
		}
	}
}

// uploadTries is how often Cinder tries an upload: once, and then as glance_num_retries has it.
const uploadTries = 4

// upload is what happens behind an accepted request.
func (v *Volumes) upload(vol *Volume, u Uploads, token, image string) {
	defer func() {
		v.mu.Lock()
		defer v.mu.Unlock()
		vol.rest()
	}()
	if u.Hold != nil {
		select {
		case <-u.Hold:
		case <-v.ctx.Done():
			return
		}
	}
	for try := range uploadTries {
		if u.Fail {
			break
		}
		err := v.cloud.uploadImage(v.ctx, token, image, vol.content)
		if err == nil {
			return
		}
		fmt.Fprintf(os.Stderr, "cinder's stand-in: upload image %s, try %d: %v\n", image, try+1, err)
	}
	_ = v.cloud.deleteImage(v.ctx, token, image) // as Cinder does, which only logs that it failed
}

// authenticate returns the project of a token.
func (v *Volumes) authenticate(ctx context.Context, token string) (project string, err error) {
	own, err := v.ownToken(ctx)
	if err != nil {
		return "", err
	}
	var answer struct{ Token issued }
	header := http.Header{"X-Auth-Token": {own}, "X-Subject-Token": {token}}
	_, err = call(ctx, http.MethodGet, v.cloud.KeystoneURL+"/auth/tokens?nocatalog", header, nil, &answer)
	return answer.Token.Project.ID, err
}

// ownToken returns a token that lives long enough: Keystone's live for an hour.
func (v *Volumes) ownToken(ctx context.Context) (string, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if now := time.Now(); now.After(v.renew) {
		token, err := v.cloud.Token(ctx, v.user, ProjectScope)
		if err != nil {
			return "", err
		}
		v.token, v.renew = token, now.Add(30*time.Minute)
	}
	return v.token, nil
}

// newUUID returns a random one, of version 4.
func newUUID() string {
	var b [16]byte
	rand.Read(b[:])
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}
