package swiftstore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"strings"

	"vmimport/storage"
)

// maxLinks is how many links may follow each other: the two that Swift allows by
// default, and one more for each of them in a versioned container.
const maxLinks = 4

// resolve finds what a name means. Links are followed here and not by Swift, which
// would follow them, with the service's rights, into any account. Each is pinned.
func (o *object) resolve(ctx context.Context, at place) (place, state, error) {
	const op = "open object"
	wanted := ""
	for {
		found, err := o.account.head(ctx, op, at, asStored, storage.ErrNoObject)
		if err != nil {
			return at, found, err
		}
		if wanted != "" && wanted != cmp.Or(found.linkETag, found.etag) {
			return at, found, storage.ErrNoObject.Because(errors.New("open object: a link is to other bytes than there are"))
		}
		if found.link == "" {
			if found.size < 0 {
				return at, found, storage.ErrUnavailable.Because(errors.New("open object: the answer has no length"))
			}
			return at, found, nil
		}
		if len(o.pins) == maxLinks {
			return at, found, storage.ErrNoObject.Because(errors.New("open object: too many links"))
		}
		o.pins = append(o.pins, pin{at: at, query: asStored, was: found, looks: 1})
		if at, err = o.account.target(found); err != nil {
			return at, found, err
		}
		wanted = found.linkETag
	}
}

// versionID matches what Swift names versions by, which are points in time.
var versionID = regexp.MustCompile(`^[0-9a-f._]{1,64}$`)

// target returns where a link leads. To another account there is no way, and nobody
// learns whether anything is there.
func (a *account) target(found state) (place, error) {
	// Links are quoted by Swift, which adds to those into versioned containers what
	// looks like a query.
	path, version, _ := strings.Cut(found.link, "?version-id=")
	path, err := url.PathUnescape(path)
	at, ok := parsePath(path)
	foreign := false
	if found.linkAccount != "" {
		name, err := url.PathUnescape(found.linkAccount)
		foreign = err != nil || name != a.name
	}
	switch {
	case foreign:
		return place{}, storage.ErrNoObject.Because(errors.New("open object: a link leads out of the account"))
	case err != nil || !ok, version != "" && !versionID.MatchString(version):
		return place{}, errUnsupported.Saw("a link that cannot be followed").Because(fmt.Errorf("open object: link to %.200q", found.link))
	}
	at.version = version
	return at, nil
}

// parsePath takes apart "container/name", for names that mean the same to every
// server.
func parsePath(path string) (place, bool) {
	container, name, _ := strings.Cut(path, "/")
	loc := storage.Location{API: "swift", Container: container, Name: name}
	return place{container: container, name: name}, loc.Valid()
}
