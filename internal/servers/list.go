package servers

import (
	"context"
	"errors"
	"iter"
	"net/http"
	"net/url"
)

const (
	imagesPerPage = "100"
	mostPages     = 200 // far above what a project keeps
)

// images yields the project's images, newest first; with a property, those that have
// that value of it. An error ends it.
func (c *Cloud) images(ctx context.Context, property, value string) iter.Seq2[*Image, error] {
	return func(yield func(*Image, error) bool) {
		query := url.Values{"owner": {c.session.project}, "sort_key": {"created_at"}, "sort_dir": {"desc"}, "limit": {imagesPerPage}}
		if property != "" {
			query.Set(property, value)
		}
		for range mostPages {
			var page struct {
				Images []wireImage `json:"images"`
				Next   string      `json:"next"`
			}
			_, err := c.do(ctx, call{service: TypeImage, method: http.MethodGet, path: "images?" + query.Encode(), ok: http.StatusOK, into: &page})
			if err != nil {
				yield(nil, err)
				return
			}
			for _, w := range page.Images {
				if w.Owner != "" && w.Owner != c.session.project {
					continue // an older image service does not know the filter
				}
				if !yield(w.image(), nil) {
					return
				}
			}
			if page.Next == "" || len(page.Images) == 0 {
				return
			}
			// The address of the next page may be one of the cloud's inside.
			query.Set("marker", page.Images[len(page.Images)-1].ID)
		}
		yield(nil, ErrUnavailable.Because(errors.New("the list of images has no end")))
	}
}
