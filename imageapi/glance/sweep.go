package glance

import (
	"context"
	"errors"
	"time"

	"github.com/gophercloud/gophercloud/v2"
	"github.com/gophercloud/gophercloud/v2/openstack/image/v2/images"
	"github.com/gophercloud/gophercloud/v2/pagination"
)

// sweepAfter is how old an image must be to be taken for left over.
const sweepAfter = time.Hour

// Sweep removes images that imports of the region have begun which are no longer
// unfinished. It is a safety net: each import cleans up after itself. alive reports
// whether an import is unfinished; it is asked after its image was seen. Sweep returns
// how many images it has removed.
func (i *Images) Sweep(ctx context.Context, alive func(importID string) (bool, error)) (removed int, err error) {
	left, err := i.begun(ctx)
	if err != nil {
		return 0, err
	}
	for _, r := range left {
		switch unfinished, err := alive(r.Import); {
		case err != nil:
			return removed, err
		case unfinished:
			continue
		}
		if err := i.Remove(ctx, r.Import, r.ID); err != nil {
			return removed, err
		}
		removed++
	}
	return removed, nil
}

// begun lists the images that were begun some time ago and are not published.
func (i *Images) begun(ctx context.Context) ([]record, error) {
	own, err := i.cloud.ProjectID(ctx)
	if err != nil {
		return nil, err
	}
	var found []record
	err = i.call(ctx, "list images", func(c *gophercloud.ServiceClient) error {
		found = nil
		pages := images.List(c, images.ListOpts{Owner: own, Visibility: images.ImageVisibilityPrivate, Limit: 100})
		return pages.EachPage(ctx, func(_ context.Context, page pagination.Page) (bool, error) {
			var list struct {
				Images []record `json:"images"`
			}
			p, ok := page.(images.ImagePage)
			if !ok {
				return false, errors.New("list images: the answer is no list")
			}
			if err := p.ExtractInto(&list); err != nil {
				return false, err
			}
			for _, r := range list.Images {
				if r.unpublished(own) && r.Region == i.opt.Region && time.Since(r.CreatedAt) > sweepAfter {
					found = append(found, r)
				}
			}
			return true, nil
		})
	})
	return found, err
}
