// Package openstack runs a small real cloud for tests: Keystone, Swift and Glance,
// and Nova on demand, as Debian's packages have them, as ordinary processes on free
// ports of the loopback interface, with all they write in one directory. It needs no
// root, no containers and nothing under /etc.
//
// Nothing of a cloud outlives it, and nothing outlives the process that started
// it, however that ends.
package openstack

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"time"

	"golang.org/x/sync/errgroup"
)

// Cloud is a running cloud of one region, whose projects are closed to each other.
type Cloud struct {
	Dir         string // of everything; removed by Stop
	Region      string
	KeystoneURL string // ends in /v3
	SwiftURL    string // the accounts are below /v1
	GlanceURL   string // without the version

	// The servers that users talk to, for tests in which one is away.
	Keystone, Swift, Glance *Server

	Admin   *User // of everything, as Keystone's bootstrap makes it
	Service *User // vmimport itself: admin, ResellerAdmin and service in the project service
	Minimal *User // vmimport with a role of its own in place of admin
	Alpha   *User // alice, a member of project alpha in domain contract01, and of the domain
	Beta    *User // bob, a member of project beta in domain contract01
	Gamma   *User // carol, a member of project gamma in domain contract02
	Reader  *User // rita, who may only read in project alpha

	host      *host
	memcached *Server
	storage   []*Server // what is behind Swift's proxy
	settings  settings
	compute   *Compute // nil before StartCompute

	// The password of the servers' own users.
	servicePassword string
}

// portTries is how often a start is tried whose ports are taken by others.
const portTries = 3

// Start starts a cloud, which takes ten to twenty seconds on two cores and 600 MB
// of memory. The caller stops it.
//
// The error names the packages that are missing, or quotes the end of the log of
// what failed.
func Start(ctx context.Context) (*Cloud, error) {
	if err := checkInstalled(packages); err != nil {
		return nil, fmt.Errorf("start OpenStack: %w", err)
	}
	var c *Cloud
	var err error
	for range portTries {
		if c, err = start(ctx); err == nil {
			return c, nil
		}
		if !errors.Is(err, errPortTaken) {
			break
		}
	}
	return nil, fmt.Errorf("start OpenStack: %w", err)
}

func start(ctx context.Context) (*Cloud, error) {
	dir, err := makeDir()
	if err != nil {
		return nil, err
	}
	h, err := newHost(dir)
	if err != nil {
		return nil, err
	}
	c := &Cloud{Dir: dir, Region: "RegionOne", host: h, servicePassword: password()}
	if err := c.up(ctx); err != nil {
		c.Stop()
		return nil, err
	}
	return c, nil
}

// Stop kills the cloud and removes its directory. It may be called again; nothing
// else may.
func (c *Cloud) Stop() {
	if c.compute != nil {
		c.compute.close()
	}
	c.host.close()
}

// up starts all that does not depend on each other at once.
func (c *Cloud) up(ctx context.Context) error {
	if err := c.configure(); err != nil {
		return err
	}
	g, running := errgroup.WithContext(ctx)
	g.Go(func() error { return c.memcached.Start(running) })
	g.Go(func() error { return c.startKeystone(running) })
	g.Go(func() error { return c.startGlance(running) })
	g.Go(func() error { return c.startSwift(running) })
	if err := g.Wait(); err != nil {
		return err
	}
	return c.check(ctx)
}

func (c *Cloud) startKeystone(ctx context.Context) error {
	adminPassword := password()
	g, running := errgroup.WithContext(ctx)
	g.Go(func() error {
		return c.host.run(running, "keystone-setup", python, c.path("keystone/keystone_setup.py"),
			"--config", c.path("keystone/keystone.conf"), "--database", c.path("keystone/keystone.db"),
			"--password", adminPassword, "--region", c.Region, "--url", c.KeystoneURL)
	})
	g.Go(func() error { return c.Keystone.Start(running) })
	if err := g.Wait(); err != nil {
		return err
	}
	if err := c.populate(ctx, adminPassword); err != nil {
		return c.host.failed(c.Keystone.name, err)
	}
	return nil
}

func (c *Cloud) startGlance(ctx context.Context) error {
	err := c.host.run(ctx, "glance-manage", python, "-c", "from glance.cmd.manage import main; main()",
		"--config-file", c.path("glance/glance-api.conf"), "db", "sync")
	if err != nil {
		return err
	}
	return c.Glance.Start(ctx)
}

func (c *Cloud) startSwift(ctx context.Context) error {
	argv := []string{python, c.path("swift/swift_rings.py"), c.path("swift")}
	for _, s := range c.storage {
		argv = append(argv, fmt.Sprintf("%s=%d", s.name, s.port))
	}
	if err := c.host.run(ctx, "rings", argv...); err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return c.Swift.Start(ctx) })
	for _, s := range c.storage {
		g.Go(func() error { return s.Start(ctx) })
	}
	return g.Wait()
}

// check proves that the parts have found each other: Swift its servers, and both it
// and Glance Keystone, which they ask about a token.
func (c *Cloud) check(ctx context.Context) error {
	token, err := c.Token(ctx, c.Alpha, ProjectScope)
	if err != nil {
		return c.host.failed(c.Keystone.name, err)
	}
	header := http.Header{"X-Auth-Token": {token}}
	for _, r := range []struct {
		server      *Server
		method, url string
	}{
		{c.Swift, http.MethodPut, c.AccountURL(c.Alpha) + "/ready"},
		{c.Swift, http.MethodDelete, c.AccountURL(c.Alpha) + "/ready"},
		{c.Glance, http.MethodGet, c.GlanceURL + "/v2/images"},
	} {
		if _, err := call(ctx, r.method, r.url, header, nil, nil); err != nil {
			return c.host.failed(r.server.name, err)
		}
	}
	if !c.memcached.isRunning() { // without which all goes on, but slowly
		return c.host.failed(c.memcached.name, errEnded)
	}
	return nil
}

// StartShortLived starts a second Keystone over the same data, whose tokens live
// that long, in whole seconds. It returns its URL, which ends in /v3 and is in no
// catalogue. The cloud's other servers accept its tokens. There is one for a cloud.
func (c *Cloud) StartShortLived(ctx context.Context, life time.Duration) (string, error) {
	err := fill(c.path("keystone/keystone-short.conf"), "keystone-short.conf", map[string]int{"TokenLife": int(life.Seconds())})
	if err != nil {
		return "", err
	}
	url, err := startFurther(ctx, func(port int) *Server {
		return c.wsgi("keystone-short", "keystone/keystone_wsgi.py", port, "/v3",
			"OS_KEYSTONE_CONFIG_DIR="+c.path("keystone"), "OS_KEYSTONE_CONFIG_FILES=keystone.conf;keystone-short.conf")
	})
	return url + "/v3", err
}

// StartStrictGlance starts a second Glance over the same data, which goes by the
// defaults of later releases, and by a file of policies before them. It returns its
// URL, which is in no catalogue. There is one for a cloud.
func (c *Cloud) StartStrictGlance(ctx context.Context, policy string) (string, error) {
	if err := os.MkdirAll(c.path("glance-strict"), 0o700); err != nil {
		return "", err
	}
	for _, name := range []string{"glance-api.conf", "glance-api-paste.ini"} {
		if err := os.Link(c.path("glance/"+name), c.path("glance-strict/"+name)); err != nil {
			return "", err
		}
	}
	// The only further file that Glance looks for.
	if err := fill(c.path("glance-strict/glance-image-import.conf"), "glance-policy.conf", map[string]string{"Policy": policy}); err != nil {
		return "", err
	}
	return startFurther(ctx, func(port int) *Server {
		return c.wsgi("glance-strict", "glance/glance_wsgi.py", port, "/healthcheck", "OS_GLANCE_CONFIG_DIR="+c.path("glance-strict"), c.pythonPath())
	})
}

// startFurther starts a server on a free port, and returns its URL.
func startFurther(ctx context.Context, on func(port int) *Server) (url string, err error) {
	for range portTries {
		var ports []int
		if ports, err = freePorts(1); err != nil {
			return "", err
		}
		s := on(ports[0])
		if err = s.Start(ctx); !errors.Is(err, errPortTaken) {
			return s.url(), err
		}
	}
	return "", err
}

// Logs returns the last lines of a server's log: keystone, keystone-short, glance,
// glance-strict, memcached, or proxy, account, container, object of Swift, or rabbitmq,
// placement and Nova's api, conductor, scheduler, compute. It returns "" for a server that
// has written nothing.
func (c *Cloud) Logs(name string, lines int) string { return c.host.tail(name, lines) }

// AccountURL returns the URL of the Swift account of the user's project.
func (c *Cloud) AccountURL(u *User) string { return c.SwiftURL + "/v1/AUTH_" + u.ProjectID }
