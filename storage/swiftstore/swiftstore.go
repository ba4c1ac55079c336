// Package swiftstore reads objects from OpenStack Swift.
//
// It asks with the service's own token, which may read every account, so it decides
// itself what a project may name: the containers of the project's own account, and
// nothing that leads out of it. Swift is never asked to join the parts of a large
// object, and never to follow a link: each request is for one stored object as it
// lies, each part is asked for under its own hash (If-Match), and the answer must
// repeat it. So a part that is missing or another one shows for certain, and a link
// into another project's account leads nowhere.
//
// It never retries and follows no redirect: retries belong to storage.Fetch, and
// the addresses are those of the configuration and the catalogue.
package swiftstore

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"strings"

	"github.com/gophercloud/gophercloud/v2"

	"vmimport/internal/openstack"
	"vmimport/storage"
)

// project is replaced in the account URL by the location's project.
const project = "{project}"

// Options say which Swift to read from.
type Options struct {
	// Cloud has the service's token and the catalogue. Required.
	Cloud *openstack.Cloud

	// AccountURL is the URL of a project's account, with "{project}" in its last
	// segment, such as "https://swift.example/v1/AUTH_{project}". Empty: the
	// object-store endpoint of the catalogue, which then must end with the id of
	// the service's own project.
	AccountURL string
}

// Store is the Swift of one cloud. It is safe for concurrent use.
type Store struct {
	cloud    *openstack.Cloud
	template string // of account URLs, without a slash at the end; may be empty
}

// New returns the store that o describes. It makes no request.
func New(o Options) (*Store, error) {
	if o.Cloud == nil {
		return nil, errors.New("swift: a cloud is needed")
	}
	template := strings.TrimRight(o.AccountURL, "/")
	if template == "" {
		return &Store{cloud: o.Cloud}, nil
	}
	u, err := url.Parse(template)
	switch {
	case err != nil:
		return nil, fmt.Errorf("swift account URL: %w", err)
	case u.Scheme != "http" && u.Scheme != "https", u.Host == "", u.RawQuery != "", u.Fragment != "", u.User != nil:
		return nil, fmt.Errorf("swift account URL %q: want http or https, a host and a path, and nothing else", u.Redacted())
	case strings.Count(template, project) != 1 || !strings.Contains(template[strings.LastIndexByte(template, '/'):], project) || strings.Contains(u.Host, project):
		return nil, fmt.Errorf("swift account URL %q: want %s once, in the last segment of the path", template, project)
	}
	return &Store{cloud: o.Cloud, template: template}, nil
}

// Open implements storage.Store.
//
// An object can be a plain one, or a large one, static or dynamic, whose parts are
// plain objects. It can also be a link to one within the same account, as all
// objects of versioned containers are.
func (s *Store) Open(ctx context.Context, loc storage.Location) (storage.Object, error) {
	if !loc.Valid() || !plainID.MatchString(loc.Project) {
		return nil, storage.ErrNoObject
	}
	a, err := s.account(ctx, loc.Project)
	if err != nil {
		return nil, err
	}
	o := &object{account: a}
	at, found, err := o.resolve(ctx, place{container: loc.Container, name: loc.Name})
	if err != nil {
		return nil, err
	}
	switch {
	case found.static:
		err = o.openStatic(ctx, at, found)
	case found.dynamic != "":
		err = o.openDynamic(ctx, at, found)
	default:
		o.parts = []part{{at: at, etag: found.etag, stamp: found.stamp, size: found.size, n: found.size}}
	}
	if err != nil {
		return nil, err
	}
	if o.size, err = total(o.parts); err != nil {
		return nil, err
	}
	o.version = o.digest(found)
	return o, nil
}

// plainID matches ids that cannot be anything but a part of a path's segment.
var plainID = regexp.MustCompile(`^[0-9A-Za-z_-]{1,64}$`)

// account is a project's account.
type account struct {
	store *Store
	url   string // without a slash at the end
	name  string // last segment of url
}

// account finds the account of a project with a plain id.
func (s *Store) account(ctx context.Context, id string) (*account, error) {
	template := s.template
	if template == "" {
		var err error
		if template, err = s.derived(ctx); err != nil {
			return nil, unanswered(ctx, "find account", err)
		}
	}
	u := strings.Replace(template, project, id, 1)
	return &account{store: s, url: u, name: u[strings.LastIndexByte(u, '/')+1:]}, nil
}

// derived makes a template of the catalogue's endpoint, which is that of the
// service's own account.
func (s *Store) derived(ctx context.Context) (string, error) {
	own, err := s.cloud.ProjectID(ctx)
	if err != nil {
		return "", err
	}
	var endpoint string
	err = s.cloud.Call(ctx, openstack.ObjectStore, func(c *gophercloud.ServiceClient) error {
		endpoint = strings.TrimRight(c.Endpoint, "/")
		return nil
	})
	if err != nil {
		return "", err
	}
	// Before the id stands a slash, or a prefix such as AUTH_; else "b" would be
	// taken for the end of the project "ab".
	before, ok := strings.CutSuffix(endpoint, own)
	if !ok || own == "" || !strings.HasSuffix(before, "/") && !strings.HasSuffix(before, "_") || strings.Contains(before, project) {
		return "", errNoAccountURL.Because(fmt.Errorf("the endpoint of %q does not end with the id of the service's own project", openstack.ObjectStore))
	}
	return before + project, nil
}

// call calls do with the service's token, renewed if Swift refuses it.
func (s *Store) call(ctx context.Context, do func(*gophercloud.ServiceClient) error) error {
	if s.template != "" {
		// The catalogue need not have Swift at all; do knows the address.
		return s.cloud.Identity(ctx, do)
	}
	return s.cloud.Call(ctx, openstack.ObjectStore, do)
}
