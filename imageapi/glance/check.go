package glance

import (
	"context"
	"net/http"
	"time"

	"github.com/gophercloud/gophercloud/v2"
	"github.com/gophercloud/gophercloud/v2/openstack/image/v2/images"
)

// Check reports whether Glance can be reached with the service's token, and whether its
// policy lets the service's user give images to others. It asks for what Glance refuses
// whoever asks, but says so only to those who would be allowed to. Nothing is changed.
func (i *Images) Check(ctx context.Context) error {
	var list struct {
		Images []record `json:"images"`
	}
	err := i.call(ctx, "list images", func(c *gophercloud.ServiceClient) error {
		_, err := c.Get(ctx, c.ServiceURL("images?limit=1"), &list, nil)
		return err
	})
	if err != nil {
		return err
	}
	if len(list.Images) == 0 {
		return i.checkCreate(ctx)
	}
	return i.checkUpdate(ctx, &list.Images[0])
}

// checkUpdate asks for a change of the owner, to whom it is, and for the removal of a
// property that is not there.
func (i *Images) checkUpdate(ctx context.Context, r *record) error {
	err := i.call(ctx, "try to change an owner", func(c *gophercloud.ServiceClient) error {
		return images.Update(ctx, c, r.ID, images.UpdateOpts{
			set("owner", r.Owner),
			images.UpdateImageProperty{Op: images.RemoveOp, Name: propNone},
		}).Err
	})
	switch statusOf(err) {
	case http.StatusConflict, http.StatusNotFound: // or it was deleted just now
		return nil
	}
	return err
}

// checkCreate asks for an image of somebody else's that needs less than no room. It is
// for a Glance without images.
func (i *Images) checkCreate(ctx context.Context) error {
	var made record
	err := i.call(ctx, "try to create an image", func(c *gophercloud.ServiceClient) error {
		_, err := c.Post(ctx, c.ServiceURL("images"), map[string]any{
			"name": "vmimport-check", "owner": "vmimport-check", "visibility": string(images.ImageVisibilityPrivate),
			"container_format": "bare", "disk_format": "raw", "min_disk": -1, "min_ram": -1,
		}, &made, &gophercloud.RequestOpts{OkCodes: []int{http.StatusCreated}})
		return err
	})
	switch {
	case err == nil:
		made.seen = time.Now()
		return i.delete(ctx, &made)
	case statusOf(err) == http.StatusBadRequest:
		return nil
	}
	return err
}
