// Package swiftstore reads objects from OpenStack Swift, and writes large ones to it.
//
// It asks with the service's own token, which may read and write every account, so it
// decides itself what a project may name: the containers of the project's own account,
// and nothing that leads out of it. Swift is never asked to join the parts of a large
// object to read it, and never to follow a link: each request is for one stored object
// as it lies, each part is asked for under its own hash (If-Match), and the answer must
// repeat it. So a part that is missing or another one shows for certain, and a link
// into another project's account leads nowhere.
//
// What it writes are static large objects. The parts go to the container
// "<container>_segments", which it makes if there is none, with the storage policy of
// the first; they are named "<object>/<upload>/<number>-<MD5>". Everything has the upload's id
// in its metadata (X-Object-Meta-Vmimport-Upload), is looked at before it is written or
// removed, and is written with "If-None-Match: *". Consequences:
//
//   - Swift has no condition for a removal. Whoever replaces something between the look at it
//     and its removal, mostly a few milliseconds and never more than some seconds, loses what
//     was written.
//   - Swift may store what its client no longer waits for. So the answer to an object that was
//     sent completely is waited for a while, even when the caller has left.
//   - Swift can tell two who put an object at the same time that there was none. Then the
//     later one stays, and the other is told so unless it had its answer before.
//   - Lists lag where container servers are slow. Parts are removed until no list shows any;
//     one that comes to light later stays behind, in the way of other objects of that name.
//   - Swift does not hold the service to the quota of an account, as it does anybody else; so
//     that is compared here, with the number of bytes used, which lags, too.
//
// It never retries and follows no redirect: retries belong to its callers, and
// the addresses are those of the configuration and the catalogue.
package swiftstore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"time"

	"github.com/gophercloud/gophercloud/v2"

	"vmimport/internal/openstack"
	"vmimport/storage"
)

// project is replaced in the account URL by the location's project.
const project = "{project}"

// Options say which Swift to use.
type Options struct {
	// Cloud has the service's token and the catalogue. Required.
	Cloud *openstack.Cloud

	// AccountURL is the URL of a project's account, with "{project}" in its last
	// segment, such as "https://swift.example/v1/AUTH_{project}". Empty: the
	// object-store endpoint of the catalogue, which then must end with the id of
	// the service's own project.
	AccountURL string

	// AnswerTimeout is for how long the sending of an object may stand still since
	// Swift takes no more of it, and how long its answer may take after that; zero is
	// 2 minutes. Cloud has its own for all else.
	AnswerTimeout time.Duration
}

// Store is the Swift of one cloud. It is safe for concurrent use.
type Store struct {
	cloud    *openstack.Cloud
	template string        // of account URLs, without a slash at the end; may be empty
	client   *http.Client  // sends objects
	patience time.Duration // for Swift, while an object is sent
	parting  time.Duration // for its answer, when the caller has left
	removal  time.Duration // from the look at an object to the end of its removal
}

// New returns the store that o describes. It makes no request.
func New(o Options) (*Store, error) {
	if o.Cloud == nil {
		return nil, errors.New("swift: a cloud is needed")
	}
	s := &Store{
		cloud: o.Cloud, template: strings.TrimRight(o.AccountURL, "/"), patience: cmp.Or(o.AnswerTimeout, 2*time.Minute),
		parting: 10 * time.Second,
		// Swift itself waits 10 seconds for a server that does not answer.
		removal: 15 * time.Second,
	}
	if err := checkTemplate(s.template); err != nil {
		return nil, err
	}
	var err error
	if s.client, err = o.Cloud.Client(s.patience); err != nil {
		return nil, fmt.Errorf("swift: %w", err)
	}
	return s, nil
}

// checkTemplate checks the URL of accounts. It may be empty.
func checkTemplate(template string) error {
	if template == "" {
		return nil
	}
	u, err := url.Parse(template)
	switch {
	case err != nil:
		return fmt.Errorf("swift account URL: %w", err)
	case u.Scheme != "http" && u.Scheme != "https", u.Host == "", u.RawQuery != "", u.Fragment != "", u.User != nil:
		return fmt.Errorf("swift account URL %q: want http or https, a host and a path, and nothing else", u.Redacted())
	case strings.Count(template, project) != 1 || !strings.Contains(template[strings.LastIndexByte(template, '/'):], project) || strings.Contains(u.Host, project):
		return fmt.Errorf("swift account URL %q: want %s once, in the last segment of the path", template, project)
	}
	return nil
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
