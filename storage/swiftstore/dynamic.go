package swiftstore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"vmimport/storage"
)

// maxListingBytes bounds one answer to a request for a list, which is of at most
// 10,000 names of 1 KiB, each of which JSON may make six times as long.
const maxListingBytes = 64 << 20

// openDynamic finds the parts of a dynamic large object, whose manifest is at at:
// all objects of a container whose names begin alike.
//
// Such a list lags behind what was uploaded. So Swift is asked what it would join,
// which is another look at the list; if the two differ in length, another try may
// see the whole.
func (o *object) openDynamic(ctx context.Context, at place, found state) error {
	const op = "open object"
	container, prefix, ok := parsePrefix(found.dynamic)
	if !ok {
		return errUnsupported.Saw("a prefix that cannot be read").Because(fmt.Errorf("%s: manifest of %q", op, found.dynamic))
	}
	var err error
	if o.parts, err = o.account.list(ctx, container, prefix); err != nil {
		return err
	}
	joined, err := o.account.head(ctx, op, at, asJoined, storage.ErrNoObject)
	if err != nil {
		return err
	}
	size, err := total(o.parts)
	if err != nil {
		return err
	}
	if joined.size >= 0 && joined.size != size {
		return storage.ErrUnavailable.Because(fmt.Errorf("%s: the parts have %d bytes, and the whole has %d", op, size, joined.size))
	}
	if joined.dynamic != found.dynamic || joined.stamp != found.stamp {
		return errReplaced
	}
	// Its ETag is made of those of the parts, so that one look shows whether any
	// was added, removed or replaced.
	o.pins = append(o.pins, pin{at: at, query: asJoined, was: joined, looks: 3})
	return nil
}

// parsePrefix reads the header X-Object-Manifest.
func parsePrefix(header string) (container, prefix string, ok bool) {
	text, err := url.PathUnescape(header)
	container, prefix, _ = strings.Cut(text, "/")
	// Any name will do here. The prefix is no path: it goes into a query.
	loc := storage.Location{API: "swift", Container: container, Name: "x"}
	return container, prefix, err == nil && prefix != "" && loc.Valid()
}

// list returns the objects of a container whose names begin with prefix, in the
// order of the bytes of their names, which is Swift's. Those of no bytes are left
// out.
func (a *account) list(ctx context.Context, container, prefix string) ([]part, error) {
	var parts []part
	for marker, seen := "", 0; ; {
		page, err := a.page(ctx, container, prefix, marker)
		if err != nil {
			return nil, err
		}
		if len(page) == 0 {
			return parts, nil
		}
		if seen += len(page); seen > maxParts {
			return nil, errTooMany
		}
		for _, l := range page {
			// A page that begins again would never end.
			if l.Name <= marker || !strings.HasPrefix(l.Name, prefix) {
				return nil, storage.ErrUnavailable.Because(errors.New("list parts: the list is not in order"))
			}
			marker = l.Name
			p, err := l.part(container)
			if err != nil {
				return nil, err
			}
			if p.n > 0 {
				parts = append(parts, p)
			}
		}
	}
}

// listed is an object as a list has it.
type listed struct {
	Name    string  `json:"name"`
	Hash    string  `json:"hash"`
	Bytes   int64   `json:"bytes"`
	SLOETag *string `json:"slo_etag"`     // set for the manifest of a static large object
	Symlink *string `json:"symlink_path"` // set for a link
}

func (l *listed) part(container string) (part, error) {
	at, ok := parsePath(container + "/" + l.Name)
	switch {
	case l.Symlink != nil:
		return part{}, errUnsupported.Saw("a part is a link")
	case l.SLOETag != nil:
		return part{}, errUnsupported.Saw("a part is a large object itself")
	case !ok, l.Bytes < 0, !validETag(l.Hash):
		return part{}, errUnsupported.Saw("a part that cannot be read").Because(fmt.Errorf("list parts: %.200q", l.Name))
	}
	return part{at: at, etag: l.Hash, size: l.Bytes, n: l.Bytes}, nil
}

// page asks for those of the list that come after marker, as many as Swift gives at
// once.
func (a *account) page(ctx context.Context, container, prefix, marker string) ([]listed, error) {
	const op = "list parts"
	query := "format=json&prefix=" + escape(prefix, false)
	if marker != "" {
		query += "&marker=" + escape(marker, false)
	}
	answer, err := a.send(ctx, request{op: op, method: http.MethodGet, path: escape(container, false), query: query})
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	switch answer.StatusCode {
	case http.StatusOK:
	case http.StatusNoContent: // of an empty list, in some versions
		return nil, nil
	default:
		return nil, refused(op, answer.StatusCode, errPart)
	}
	page, err := parseListing(io.LimitReader(answer.Body, maxListingBytes))
	if err != nil && !errors.Is(err, errTooMany) {
		return nil, unanswered(ctx, op, err)
	}
	return page, err
}

// parseListing reads a list as Swift gives it in JSON.
func parseListing(r io.Reader) ([]listed, error) {
	d := json.NewDecoder(r)
	if start, err := d.Token(); err != nil || start != json.Delim('[') {
		return nil, errors.Join(errors.New("want a list"), err)
	}
	var page []listed
	for d.More() {
		if len(page) > maxParts {
			return nil, errTooMany
		}
		var l listed
		if err := d.Decode(&l); err != nil {
			return nil, err
		}
		page = append(page, l)
	}
	_, err := d.Token()
	return page, err
}
