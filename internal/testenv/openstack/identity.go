package openstack

import (
	"context"
	"crypto/rand"
	"fmt"
	"net/http"
	"sync"

	"golang.org/x/sync/errgroup"
)

// User is a user with roles in one project of his own domain.
type User struct {
	UserID, Name, Password string
	ProjectID, ProjectName string
	DomainID, Domain       string // Domain is the name
}

func password() string { return rand.Text() }

// identities makes things in Keystone as its administrator. It keeps their ids by
// their names, which are unique here.
type identities struct {
	cloud *Cloud
	admin *issued

	mu  sync.Mutex
	ids map[key]string
}

type key struct{ kind, name string }

func (i *identities) id(kind, name string) string {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.ids[key{kind, name}]
}

func (i *identities) keep(kind, name, id string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.ids[key{kind, name}] = id
}

// populate makes the users of the cloud, with their domains, projects and roles, and
// the catalogue. Each step needs only what those before it have made.
func (c *Cloud) populate(ctx context.Context, adminPassword string) error {
	c.Admin = &User{Name: "admin", Password: adminPassword, ProjectName: "admin", DomainID: "default", Domain: "Default"}
	i, err := c.administer(ctx)
	if err != nil {
		return err
	}
	c.Admin.UserID, c.Admin.ProjectID = i.admin.User.ID, i.admin.Project.ID

	c.Service = &User{Name: "vmimport", ProjectName: "service", Domain: "Default"}
	c.Alpha = &User{Name: "alice", ProjectName: "alpha", Domain: "contract01"}
	c.Beta = &User{Name: "bob", ProjectName: "beta", Domain: "contract01"}
	c.Gamma = &User{Name: "carol", ProjectName: "gamma", Domain: "contract02"}
	c.Reader = &User{Name: "rita", ProjectName: "alpha", Domain: "contract01"}
	c.Minimal = &User{Name: "vmimport-minimal", ProjectName: "service", Domain: "Default"}
	users := map[*User][]string{
		c.Service: {"admin", "ResellerAdmin", "service"},
		c.Minimal: {"ResellerAdmin", "service", "member", "vmimport"},
		c.Alpha:   {"member"},
		c.Beta:    {"member"},
		c.Gamma:   {"member"},
		c.Reader:  {"reader"},
		// The cloud's own, who may validate tokens and no more.
		{Name: "swift", Password: c.servicePassword, ProjectName: "service", Domain: "Default"}:  {"service"},
		{Name: "glance", Password: c.servicePassword, ProjectName: "service", Domain: "Default"}: {"service"},
	}
	if err := i.makeScopes(ctx); err != nil {
		return err
	}
	var s steps
	for u, roles := range users {
		s = append(s, func(ctx context.Context) error { return i.makeUser(ctx, u, roles) })
	}
	if err := s.run(ctx); err != nil {
		return err
	}
	return i.grant(ctx, "/domains/"+c.Alpha.DomainID, c.Alpha, "member")
}

// administer returns the identities of a cloud, of which the roles and the domain of
// the cloud's own users are known.
func (c *Cloud) administer(ctx context.Context) (*identities, error) {
	admin, err := c.login(ctx, c.KeystoneURL, c.Admin, ProjectScope)
	if err != nil {
		return nil, err
	}
	i := &identities{cloud: c, admin: admin, ids: map[key]string{{"domain", "Default"}: "default"}}
	return i, i.learnRoles(ctx)
}

// makeScopes makes what users have roles in, the roles, and the catalogue.
func (i *identities) makeScopes(ctx context.Context) error {
	var first, second steps
	for _, name := range []string{"contract01", "contract02"} {
		first = append(first, func(ctx context.Context) error { return i.make(ctx, "domain", name, object{}) })
	}
	for _, name := range []string{"service", "ResellerAdmin", "vmimport"} {
		first = append(first, func(ctx context.Context) error { return i.make(ctx, "role", name, object{}) })
	}
	for project, domain := range map[string]string{"service": "Default", "alpha": "contract01", "beta": "contract01", "gamma": "contract02"} {
		second = append(second, func(ctx context.Context) error {
			return i.make(ctx, "project", project, object{"domain_id": i.id("domain", domain)})
		})
	}
	second = append(second,
		func(ctx context.Context) error {
			return i.publish(ctx, "swift", "object-store", i.cloud.SwiftURL+"/v1/AUTH_%(project_id)s")
		},
		func(ctx context.Context) error { return i.publish(ctx, "glance", "image", i.cloud.GlanceURL) },
	)
	if err := first.run(ctx); err != nil {
		return err
	}
	return second.run(ctx)
}

// steps are requests that do not depend on each other.
type steps []func(context.Context) error

func (s steps) run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(4)
	for _, step := range s {
		g.Go(func() error { return step(ctx) })
	}
	return g.Wait()
}

// make makes a thing of a kind, such as "project".
func (i *identities) make(ctx context.Context, kind, name string, properties object) error {
	properties["name"] = name
	var answer map[string]struct{ ID string }
	if err := i.cloud.keystone(ctx, http.MethodPost, "/"+kind+"s", i.admin.id, object{kind: properties}, &answer); err != nil {
		return err
	}
	i.keep(kind, name, answer[kind].ID)
	return nil
}

// learnRoles finds the roles that Keystone's bootstrap has made.
func (i *identities) learnRoles(ctx context.Context) error {
	var answer struct{ Roles []struct{ ID, Name string } }
	if err := i.cloud.keystone(ctx, http.MethodGet, "/roles", i.admin.id, nil, &answer); err != nil {
		return err
	}
	for _, r := range answer.Roles {
		i.keep("role", r.Name, r.ID)
	}
	return nil
}

// makeUser makes u, with a password if he has none, and gives him roles in his project.
func (i *identities) makeUser(ctx context.Context, u *User, roles []string) error {
	if u.Password == "" {
		u.Password = password()
	}
	u.DomainID, u.ProjectID = i.id("domain", u.Domain), i.id("project", u.ProjectName)
	if err := i.make(ctx, "user", u.Name, object{"domain_id": u.DomainID, "password": u.Password}); err != nil {
		return err
	}
	u.UserID = i.id("user", u.Name)
	for _, role := range roles {
		if err := i.grant(ctx, "/projects/"+u.ProjectID, u, role); err != nil {
			return err
		}
	}
	return nil
}

// grant gives u a role in the project or domain that the path names.
func (i *identities) grant(ctx context.Context, path string, u *User, role string) error {
	path = fmt.Sprintf("%s/users/%s/roles/%s", path, u.UserID, i.id("role", role))
	return i.cloud.keystone(ctx, http.MethodPut, path, i.admin.id, nil, nil)
}

// publish puts a service into the catalogue.
func (i *identities) publish(ctx context.Context, name, kind, url string) error {
	if err := i.make(ctx, "service", name, object{"type": kind}); err != nil {
		return err
	}
	for _, face := range []string{"public", "internal", "admin"} {
		endpoint := object{"service_id": i.id("service", name), "interface": face, "region_id": i.cloud.Region, "url": url}
		if err := i.cloud.keystone(ctx, http.MethodPost, "/endpoints", i.admin.id, object{"endpoint": endpoint}, nil); err != nil {
			return err
		}
	}
	return nil
}
