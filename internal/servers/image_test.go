package servers_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"vmimport/internal/servers"
	"vmimport/internal/servers/serverstest"
)

const (
	firstImage  = "00000000-0000-0000-0000-000000000001"
	secondImage = "00000000-0000-0000-0000-000000000002"
	list        = "GET /image/v2/images\\?"
	showImage   = "GET /image/v2/images/"
	patch       = "PATCH /image/"
)

// stopped is a bench whose server is shut off.
func stopped(b *bench) {
	b.AddServer(serverstest.Server{ID: server, Name: "web01", Status: "SHUTOFF", Volumes: []string{volume}})
}

// ofDisk makes the server one that boots from a disk of its own.
func ofDisk(b *bench) {
	b.AddImage(serverstest.Image{ID: "base", Name: "base", Owner: "public",
		Properties: map[string]string{"vmimport_server": "another", "vmimport_image": "base"}})
	b.AddServer(serverstest.Server{ID: server, Name: "web01", Status: "SHUTOFF", Image: "base"})
}

// image has an image made, and looks at it.
func (b *bench) image(o servers.ImageOptions) *servers.Image {
	b.t.Helper()
	img, err := b.c.Image(b.ctx, server, o, b.report)
	b.wants(err, nil)
	if err != nil {
		b.t.FailNow()
	}
	b.secretless(img)
	if img.Status != "active" {
		b.t.Errorf("got %+v", img)
	}
	return img
}

// wantMarks looks for the marks of an image.
func (b *bench) wantMarks(id string) {
	b.t.Helper()
	img, ok := b.Image(id)
	if !ok || img.Properties["vmimport_server"] != server || img.Properties["vmimport_image"] != id {
		b.t.Errorf("image %s has %v", id, img.Properties)
	}
}

func TestImage(t *testing.T) {
	t.Parallel()
	for name, prepare := range map[string]func(*bench){
		"of a volume":   stopped,
		"of a disk":     ofDisk,
		"with slow use": func(b *bench) { stopped(b); b.QueuedFor = time.Hour },
		// The marks are put on while its bytes come, and so are lost.
		"marked late":  func(b *bench) { stopped(b); b.QueuedFor = 0 },
		"marked later": func(b *bench) { stopped(b); b.Reply(patch, 3, 503, serverstest.AdminPass) },
	} {
		t.Run(name, func(t *testing.T) {
			inTime(t, func(b *bench) {
				prepare(b)
				img := b.image(servers.ImageOptions{})
				if img.Name != "web01" || img.Found || img.Created.IsZero() {
					t.Errorf("got %+v", img)
				}
				b.wantMarks(img.ID)
				again := b.image(servers.ImageOptions{})
				if again.ID != img.ID || !again.Found {
					t.Errorf("again got %+v", again)
				}
				b.wantCalls("POST /(volume|compute)/", 1)
				first, last := b.states[0], b.states[len(b.states)-1]
				if first.Status != "queued" && b.QueuedFor > 0 || last.Status != "active" || last.ImageID != img.ID || last.Phase != servers.Imaging {
					t.Errorf("states from %+v to %+v", first, last)
				}
			})
		})
	}
}

func TestImageWithoutMarks(t *testing.T) {
	t.Parallel()
	inTime(t, func(b *bench) {
		stopped(b)
		b.Reply(patch, 100, 403, serverstest.AdminPass)
		b.image(servers.ImageOptions{})
		b.wantCalls(patch, 1)
	})
	inTime(t, func(b *bench) {
		stopped(b)
		b.Reply(patch, 100, 503, serverstest.AdminPass)
		b.image(servers.ImageOptions{})
		b.wantCalls(patch, 5)
	})
}

func TestImageGoesOn(t *testing.T) {
	t.Parallel()
	for name, prepare := range map[string]func(*bench){
		"of a volume": stopped,
		"of a disk":   ofDisk,
	} {
		// A run ends in the middle of any of its requests, which the cloud has heard or not.
		for _, at := range []string{show, list, "POST /(volume|compute)/", patch, showImage} {
			for _, heard := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s, left in %.10s, %v", name, at, heard), func(t *testing.T) {
					inTime(t, func(b *bench) {
						prepare(b)
						b.QueuedFor = 10 * time.Second
						ctx, cancel := context.WithCancel(b.ctx)
						if heard {
							b.On(at, 1, cancel)
						} else {
							b.Lose(at, 1, false)
						}
						_, err := b.c.Image(ctx, server, servers.ImageOptions{}, func(servers.State) { cancel() })
						if heard {
							b.wants(err, context.Canceled)
						}
						img := b.image(servers.ImageOptions{})
						b.wantMarks(img.ID)
						if n := b.Calls("POST /(volume|compute)/"); n > 2 {
							t.Errorf("%d requests", n)
						}
						if _, two := b.Image(secondOf(name)); two {
							t.Error("there are two images")
						}
					})
				})
			}
		}
	}
}

// secondOf names the image that must not be: the cloud numbers them, and a disk's
// base image is one, too.
func secondOf(name string) string {
	if strings.HasSuffix(name, "disk") {
		return "00000000-0000-0000-0000-000000000003"
	}
	return secondImage
}

func TestImageIsAdopted(t *testing.T) {
	t.Parallel()
	uploading := func(b *bench) {
		stopped(b)
		b.AddVolume(serverstest.Volume{ID: volume, Status: "uploading", Bootable: true, Updated: time.Now()})
	}
	image := func(b *bench, id, name, status string, age time.Duration, properties map[string]string) {
		b.AddImage(serverstest.Image{ID: id, Name: name, Status: status, Created: time.Now().Add(-age).UTC(), Properties: properties})
	}
	for name, tt := range map[string]struct {
		prepare func(*bench)
		want    error
	}{
		"the only one": {func(b *bench) { image(b, firstImage, "web01", "queued", 0, nil) }, nil},
		"with inherited marks": {func(b *bench) {
			image(b, firstImage, "web01", "queued", 0, map[string]string{"vmimport_server": "x", "vmimport_image": "y"})
		}, nil},
		"beside older ones": {func(b *bench) {
			image(b, firstImage, "web01", "queued", 0, nil)
			image(b, "a", "web01", "queued", time.Hour, nil)
			image(b, "b", "web01", "active", 0, nil)
			image(b, "c", "web02", "queued", 0, nil)
			image(b, "d", "web01", "queued", 0, map[string]string{"vmimport_server": "x", "vmimport_image": "d"})
		}, nil},
		"two": {func(b *bench) {
			image(b, firstImage, "web01", "queued", 0, nil)
			image(b, "a", "web01", "saving", 0, nil)
		}, servers.ErrImageUnclear},
		"none": {func(*bench) {}, servers.ErrImageUnclear},
		"of another name": {func(b *bench) { image(b, firstImage, "other", "queued", 0, nil) },
			servers.ErrImageUnclear},
	} {
		t.Run(name, func(t *testing.T) {
			inTime(t, func(b *bench) {
				uploading(b)
				tt.prepare(b)
				img, err := b.c.Image(b.ctx, server, servers.ImageOptions{}, b.report)
				b.wants(err, tt.want)
				b.wantCalls(upload, 0)
				if err == nil {
					b.wantMarks(img.ID)
				}
			})
		})
	}
}

func TestFindImage(t *testing.T) {
	t.Parallel()
	inTime(t, func(b *bench) {
		stopped(b)
		if img, err := b.c.FindImage(b.ctx, server, servers.ImageOptions{}); img != nil || err != nil {
			t.Errorf("got %+v, %v", img, err)
		}
		// What others have made of a server that was started from the image of this one.
		b.AddImage(serverstest.Image{ID: "copy", Name: "web01", Status: "active", Created: time.Now(),
			Properties: map[string]string{"vmimport_server": server, "vmimport_image": "original", "instance_uuid": server}})
		if img, err := b.c.FindImage(b.ctx, server, servers.ImageOptions{}); img != nil || err != nil {
			t.Errorf("got %+v, %v", img, err)
		}
		made := b.image(servers.ImageOptions{})
		for name, want := range map[string]string{"": made.ID, "web01": made.ID, "web02": ""} {
			img, err := b.c.FindImage(b.ctx, server, servers.ImageOptions{Name: name})
			if err != nil || (img == nil) != (want == "") || img != nil && img.ID != want {
				t.Errorf("%q: got %+v, %v", name, img, err)
			}
		}
		_, err := b.c.FindImage(b.ctx, "9", servers.ImageOptions{})
		b.wants(err, servers.ErrServerUnknown)
	})
}

func TestNewImage(t *testing.T) {
	t.Parallel()
	for name, prepare := range map[string]func(*bench){"of a volume": stopped, "of a disk": ofDisk} {
		t.Run(name, func(t *testing.T) {
			inTime(t, func(b *bench) {
				prepare(b)
				first := b.image(servers.ImageOptions{})
				second := b.image(servers.ImageOptions{New: true, Name: "web01-b"})
				if first.ID == second.ID || second.Found || second.Name != "web01-b" {
					t.Errorf("got %+v and %+v", first, second)
				}
				if newest := b.image(servers.ImageOptions{}); newest.ID != second.ID {
					t.Errorf("the newest is %+v", newest)
				}
				if named := b.image(servers.ImageOptions{Name: "web01"}); named.ID != first.ID {
					t.Errorf("by its name: %+v", named)
				}
			})
		})
	}
}

func TestImageRefusals(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		prepare func(*bench)
		o       servers.ImageOptions
		want    error
		says    string
	}{
		"running": {func(*bench) {}, servers.ImageOptions{}, servers.ErrRunning, `"ACTIVE"`},
		"at something": {func(b *bench) {
			b.AddServer(serverstest.Server{ID: server, Name: "a", Status: "SHUTOFF", Task: "rebuilding", Volumes: []string{volume}})
		},
			servers.ImageOptions{}, servers.ErrServerBusy, "rebuilding"},
		"no name":             {stopped, servers.ImageOptions{Name: " "}, servers.ErrImageName, ""},
		"a long name":         {stopped, servers.ImageOptions{Name: strings.Repeat("é", 256)}, servers.ErrImageName, ""},
		"a name with escapes": {stopped, servers.ImageOptions{Name: "a\x1b"}, servers.ErrImageName, ""},
		"a volume of a disk":  {ofDisk, servers.ImageOptions{Volume: volume}, servers.ErrBootVolume, "Leave --volume out"},
		"another volume":      {stopped, servers.ImageOptions{Volume: "v9"}, servers.ErrBootVolume, volume},
		"no volume":           {func(b *bench) { b.AddServer(serverstest.Server{ID: server, Name: "a", Status: "SHUTOFF"}) }, servers.ImageOptions{}, servers.ErrBootVolume, "no volume"},
		"uploading, new": {func(b *bench) { stopped(b); b.AddVolume(serverstest.Volume{ID: volume, Status: "uploading"}) },
			servers.ImageOptions{New: true}, servers.ErrImageUnclear, volume},
		"a volume in error": {func(b *bench) { stopped(b); b.AddVolume(serverstest.Volume{ID: volume, Status: "error"}) },
			servers.ImageOptions{}, servers.ErrRefused, "status must be available or in-use"},
		"a busy server": {func(b *bench) {
			ofDisk(b)
			b.Reply(action, 1, 409, serverstest.Fault(409, "conflictingRequest", "Cannot 'createImage' instance "+server+" while it is in task_state image_snapshot"))
		}, servers.ImageOptions{}, servers.ErrServerBusy, "image_snapshot"},
		"not allowed": {func(b *bench) {
			stopped(b)
			b.Reply(upload, 1, 403, serverstest.Fault(403, "forbidden", serverstest.AdminPass))
		}, servers.ImageOptions{}, servers.ErrDenied, "403"},
		"an answer without an image": {func(b *bench) { stopped(b); b.Reply(upload, 1, 202, `{}`) }, servers.ImageOptions{}, servers.ErrImageUncertain, "Run the same"},
		"a snapshot of no id":        {func(b *bench) { ofDisk(b); b.Reply(action, 1, 202, "") }, servers.ImageOptions{}, servers.ErrImageUncertain, ""},
		"not heard":                  {func(b *bench) { stopped(b); b.Lose(upload, 1, false) }, servers.ImageOptions{}, servers.ErrImageUncertain, "Run the same"},
		"not heard, and then down": {func(b *bench) { ofDisk(b); b.Lose(action, 1, false); b.On(action, 1, func() {}) }, servers.ImageOptions{},
			servers.ErrImageUncertain, ""},
		"images are down":  {func(b *bench) { stopped(b); b.Reply("GET /image", 1000, 503, serverstest.AdminPass) }, servers.ImageOptions{}, servers.ErrUnavailable, "503"},
		"volumes are down": {func(b *bench) { stopped(b); b.Reply("GET /volume", 1000, 503, serverstest.AdminPass) }, servers.ImageOptions{}, servers.ErrUnavailable, "503"},
	} {
		t.Run(name, func(t *testing.T) {
			inTime(t, func(b *bench) {
				tt.prepare(b)
				_, err := b.c.Image(b.ctx, server, tt.o, b.report)
				b.wants(err, tt.want, tt.says)
			})
		})
	}
}

// An image that was begun although nobody heard of it is found at once.
func TestImageOfALostAnswer(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		prepare func(*bench)
		o       servers.ImageOptions
	}{
		"of a volume":      {func(b *bench) { stopped(b); b.Lose(upload, 1, true) }, servers.ImageOptions{}},
		"of a volume, new": {func(b *bench) { stopped(b); b.Lose(upload, 1, true) }, servers.ImageOptions{New: true, Name: "n"}},
		"of a disk":        {func(b *bench) { ofDisk(b); b.Lose(action, 1, true) }, servers.ImageOptions{}},
	} {
		t.Run(name, func(t *testing.T) {
			inTime(t, func(b *bench) {
				tt.prepare(b)
				img := b.image(tt.o)
				b.wantMarks(img.ID)
				b.wantCalls("POST /(volume|compute)/", 1)
			})
		})
	}
}

func TestImageOfALiveServer(t *testing.T) {
	t.Parallel()
	inTime(t, func(b *bench) {
		b.image(servers.ImageOptions{Live: true})
		// It was begun, and so nothing has to be stopped.
		b.image(servers.ImageOptions{})
	})
}

func TestImageFails(t *testing.T) {
	t.Parallel()
	set := func(status string, properties map[string]string) func(*bench) {
		return func(b *bench) {
			b.On(showImage, 2, func() {})
			b.On(showImage, 1, func() {
				img, _ := b.Image(firstImage)
				img.Status = status
				for k, v := range properties {
					img.Properties[k] = v
				}
				b.AddImage(img)
			})
		}
	}
	for name, tt := range map[string]struct {
		prepare func(*bench)
		says    string
	}{
		"not copied":          {set("active", map[string]string{"sync_status_reason": "no room in jp-east-1b"}), "no room in jp-east-1b"},
		"not copied, long":    {set("saving", map[string]string{"sync_status_reason": strings.Repeat("x", 1000)}), strings.Repeat("x", 190)},
		"not copied, no word": {set("saving", map[string]string{"sync_status_reason": ""}), "no reason is given"},
		"killed":              {set("killed", nil), "is killed"},
		"error":               {set("error", nil), "is error"},
		"deactivated":         {set("deactivated", nil), "is deactivated"},
		"deleted":             {set("pending_delete", nil), "is deleted"},
		"gone": {func(b *bench) {
			b.On(showImage, 2, func() {})
			b.On(showImage, 1, func() { b.DeleteImage(firstImage) })
		}, "is deleted"},
		"failed before, again": {func(b *bench) { set("active", map[string]string{"sync_status_reason": "no room"})(b) }, "Delete the image"},
	} {
		t.Run(name, func(t *testing.T) {
			inTime(t, func(b *bench) {
				stopped(b)
				tt.prepare(b)
				_, err := b.c.Image(b.ctx, server, servers.ImageOptions{}, b.report)
				b.wants(err, servers.ErrImageFailed, tt.says)
				if len(err.Error()) > 400 {
					t.Errorf("%d characters", len(err.Error()))
				}
			})
		})
	}
}

// A member that is null says nothing.
func TestImageWithoutSyncReason(t *testing.T) {
	t.Parallel()
	inTime(t, func(b *bench) {
		stopped(b)
		b.On(showImage, 3, func() {})
		b.Reply(showImage, 1, 200, `{"id":"`+firstImage+`","status":"active","vmimport_server":"`+server+`","vmimport_image":"`+firstImage+`","sync_status_reason":null}`)
		b.image(servers.ImageOptions{})
	})
}

func TestImageTimeout(t *testing.T) {
	t.Parallel()
	inTime(t, func(b *bench) {
		stopped(b)
		b.SavingFor = 90 * time.Minute
		_, err := b.c.Image(b.ctx, server, servers.ImageOptions{}, b.report)
		b.wants(err, servers.ErrImageTimeout, "1h0m0s")
		b.image(servers.ImageOptions{})
		b.wantCalls(upload, 1)
	}, func(o *servers.Options) { o.ImageTimeout = time.Hour })
}

func TestImageSurvivesOutages(t *testing.T) {
	t.Parallel()
	for _, what := range []string{show, list, showImage, "GET /volume"} {
		inTime(t, func(b *bench) {
			stopped(b)
			b.Reply(what, 5, 503, serverstest.AdminPass, "Retry-After", "30")
			began := time.Now()
			b.image(servers.ImageOptions{})
			if took := time.Since(began); took < 150*time.Second {
				t.Errorf("%s: took %v", what, took)
			}
			if said := b.troubles(); !strings.Contains(said, "status 503") || strings.Contains(said, serverstest.AdminPass) {
				t.Errorf("%s: troubles are %q", what, said)
			}
		})
	}
}

func TestManyImages(t *testing.T) {
	t.Parallel()
	inTime(t, func(b *bench) {
		stopped(b)
		for i := range 9 { // pages have two
			b.AddImage(serverstest.Image{ID: fmt.Sprint("i", i), Name: "web01", Status: "active", Created: time.Now()})
		}
		made := b.image(servers.ImageOptions{})
		if found := b.image(servers.ImageOptions{}); found.ID != made.ID {
			t.Errorf("got %+v", found)
		}
	})
}

func TestImageIsLeft(t *testing.T) {
	t.Parallel()
	inTime(t, func(b *bench) {
		stopped(b)
		b.Reply(upload, 1, 429, "", "Retry-After", "600")
		err := ended(b, "image", time.Minute)
		b.wants(err, context.DeadlineExceeded)
		if b.states[len(b.states)-1].Phase != servers.Waiting {
			t.Errorf("got %v after %+v", err, b.states)
		}
	})
}
