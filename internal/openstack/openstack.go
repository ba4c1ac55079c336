// Package openstack is the service's own identity in an OpenStack cloud: a token
// that is renewed in time, and the endpoints of the cloud's catalogue.
//
// It is never anybody else's: what a customer may do is found out before, and what
// the service then does for them it does under its own name. So an import outlives
// every token.
package openstack

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/gophercloud/gophercloud/v2"

	"vmimport/internal/outbound"
	"vmimport/internal/secret"
)

// Options say where a cloud is and who the service is there: a user with a
// password and a project, or an application credential, which has its own.
type Options struct {
	AuthURL string // of Keystone's API version 3, such as "https://keystone.example/v3"

	Username   string
	UserDomain string // name of the user's domain; empty: "Default"
	Password   secret.Text

	Project       string // name of the service's own project
	ProjectDomain string // name of its domain; empty: that of the user

	ApplicationCredentialID     string
	ApplicationCredentialSecret secret.Text

	// Region is the one of the catalogue; empty if it has only one.
	Region string
	// Interface selects the endpoints of the catalogue: "public" (also if empty),
	// "internal" or "admin".
	Interface string
	// Endpoints go before those of the catalogue, by type of service.
	Endpoints map[string]string

	CAFile string // certificates to trust besides the system's, PEM

	// AnswerTimeout bounds the wait for the answer to a request without a body of
	// note, and the whole of getting a token; zero is 30 s.
	AnswerTimeout time.Duration
}

// Types of services in the catalogue.
const (
	Image       = "image"
	ObjectStore = "object-store"
)

// identity is the type of Keystone itself, which is not looked up.
const identity = "identity"

// Cloud is one cloud as the service sees it. It is safe for concurrent use.
type Cloud struct {
	opt    Options
	client http.Client

	mu      sync.Mutex // guards what follows
	session *session   // the newest; nil before the first
	attempt *attempt   // to get a newer one: under way, or failed
}

// New returns the cloud that o describes. It makes no request.
func New(o Options) (*Cloud, error) {
	if !plainURL(o.AuthURL) {
		return nil, errors.New("openstack: the URL of keystone is no plain http or https URL")
	}
	for _, service := range slices.Sorted(maps.Keys(o.Endpoints)) {
		if u := o.Endpoints[service]; u != "" && !plainURL(u) {
			return nil, fmt.Errorf("openstack: the URL of %s is no plain http or https URL", service)
		}
	}
	o.Interface = cmp.Or(o.Interface, "public")
	switch {
	case (o.Username == "") == (o.ApplicationCredentialID == ""):
		return nil, errors.New("openstack: needs either a user or an application credential")
	case o.Username != "" && (o.Password.IsZero() || o.Project == ""):
		return nil, errors.New("openstack: a user needs a password and a project")
	case o.ApplicationCredentialID != "" && o.ApplicationCredentialSecret.IsZero():
		return nil, errors.New("openstack: an application credential needs its secret")
	case !slices.Contains([]string{"public", "internal", "admin"}, o.Interface):
		return nil, fmt.Errorf("openstack: interface %q is not public, internal or admin", o.Interface)
	}
	o.Endpoints = maps.Clone(o.Endpoints)
	o.AnswerTimeout = cmp.Or(o.AnswerTimeout, 30*time.Second)
	transport, err := outbound.Transport(outbound.Options{CAFile: o.CAFile, AnswerTimeout: o.AnswerTimeout})
	if err != nil {
		return nil, fmt.Errorf("openstack: %w", err)
	}
	return &Cloud{opt: o, client: http.Client{Transport: outbound.ShortErrors(transport), CheckRedirect: noRedirect}}, nil
}

// plainURL reports whether a path may be added to s. Its password, if it had one,
// would end up in errors.
func plainURL(s string) bool {
	u, err := url.Parse(s)
	return err == nil && (u.Scheme == "http" || u.Scheme == "https") && u.Host != "" &&
		u.User == nil && u.RawQuery == "" && !u.ForceQuery && u.Fragment == ""
}

// noRedirect keeps the service's token from being carried to where nobody has
// configured it to go.
func noRedirect(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

// service returns a client that holds one token and never gets another by itself.
func (c *Cloud) service(token secret.Text, endpoint string) *gophercloud.ServiceClient {
	return &gophercloud.ServiceClient{
		ProviderClient: &gophercloud.ProviderClient{HTTPClient: c.client, TokenID: token.Reveal()},
		Endpoint:       endpoint,
	}
}

// Call calls do with a client of a service, whose Endpoint ends with a slash. If the
// service does not take the token, do is called once more with a new one: it must be
// something that can be done again, so not the sending of a body that comes once.
//
// do's error is passed on. It is for do to say what an answer means, and for its
// caller to pass on no more of it than Cause does.
func (c *Cloud) Call(ctx context.Context, service string, do func(*gophercloud.ServiceClient) error) error {
	var refused secret.Text
	for {
		s, err := c.current(ctx, refused)
		if err != nil {
			return err
		}
		endpoint, err := c.endpoint(s, service)
		if err != nil {
			return err
		}
		err = do(c.service(s.token, endpoint))
		if !refused.IsZero() || StatusOf(err) != http.StatusUnauthorized {
			return err
		}
		refused = s.token
	}
}

// Identity is Call for the identity service at AuthURL.
func (c *Cloud) Identity(ctx context.Context, do func(*gophercloud.ServiceClient) error) error {
	return c.Call(ctx, identity, do)
}

// Fresh returns a token that was made just now, for one request that takes long and
// cannot be made again. endpoint is as for Call.
func (c *Cloud) Fresh(ctx context.Context, service string) (token, endpoint string, err error) {
	s, err := c.renewed(ctx)
	if err != nil {
		return "", "", err
	}
	endpoint, err = c.endpoint(s, service)
	if err != nil {
		return "", "", err
	}
	return s.token.Reveal(), endpoint, nil
}

// ProjectID returns the id of the service's own project.
func (c *Cloud) ProjectID(ctx context.Context) (string, error) {
	s, err := c.current(ctx, secret.Text{})
	if err != nil {
		return "", err
	}
	return s.projectID, nil
}

// endpoint finds a service, with a slash at the end.
func (c *Cloud) endpoint(s *session, service string) (string, error) {
	found := c.opt.Endpoints[service]
	if service == identity {
		found = c.opt.AuthURL
	}
	if found == "" {
		var err error
		if found, err = c.lookUp(s, service); err != nil {
			return "", err
		}
	}
	return strings.TrimRight(found, "/") + "/", nil
}

// lookUp finds a service in the catalogue.
func (c *Cloud) lookUp(s *session, service string) (string, error) {
	found := ""
	for _, entry := range s.catalogue {
		if entry.Type != service {
			continue
		}
		for _, e := range entry.Endpoints {
			if e.Interface != c.opt.Interface || c.opt.Region != "" && c.opt.Region != cmp.Or(e.RegionID, e.Region) {
				continue
			}
			if found != "" && found != e.URL {
				return "", ErrCatalogue.Because(fmt.Errorf("the catalogue has several %s endpoints of %q in region %q", c.opt.Interface, service, c.opt.Region))
			}
			found = e.URL
		}
	}
	if found == "" {
		return "", ErrCatalogue.Because(fmt.Errorf("the catalogue has no %s endpoint of %q in region %q", c.opt.Interface, service, c.opt.Region))
	}
	return found, nil
}
