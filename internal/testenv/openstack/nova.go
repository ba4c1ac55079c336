package openstack

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"path"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"
)

// Compute is a cloud's Nova, with Placement and RabbitMQ: all its servers as they are,
// and below them a hypervisor without guests, whose disks are files. A server stops
// and starts, and an image of it is made of its disk's bytes.
//
// Two of the services that Nova talks to are stand-ins in this process. Cinder needs
// block devices to keep volumes on, and Volumes is what Nova, and who makes an image
// of a volume, sees of it. Neutron is asked about networks even for servers that have
// none, and answers that there are none.
type Compute struct {
	URL     string  // in the catalogue as compute; ends in /v2.1, beside which there is /v2
	Nova    *Server // its API, for tests in which it is away
	Volumes *Volumes

	cloud     *Cloud
	rabbit    *Server
	placement *Server
	conductor *Server
	scheduler *Server
	computer  *Server
	neutron   *httptest.Server
	flavor    string
}

// computePackages are those that StartCompute needs besides.
var computePackages = []debianPackage{
	{"python3-nova", "/usr/lib/python3/dist-packages/nova/__init__.py"},
	{"python3-placement", "/usr/lib/python3/dist-packages/placement/__init__.py"},
	{"rabbitmq-server", rabbitServer},
}

// rabbitServer is not the one on PATH, which wants to be root or a certain user.
const rabbitServer = "/usr/lib/rabbitmq/bin/rabbitmq-server"

// computeSettings are what the files of Compute are filled with.
type computeSettings struct {
	settings
	Rabbit   string // host:port
	NovaPort int
}

// StartCompute starts Nova beside the cloud's other servers, which takes another
// fifteen to twenty seconds on two cores and 700 MB of memory. There is one for a cloud,
// and it ends with it.
func (c *Cloud) StartCompute(ctx context.Context) (*Compute, error) {
	if err := checkInstalled(computePackages); err != nil {
		return nil, fmt.Errorf("start Nova: %w", err)
	}
	n := &Compute{cloud: c, Volumes: newVolumes(c), neutron: httptest.NewServer(http.HandlerFunc(answerAsNeutron))}
	c.compute = n
	if err := n.up(ctx); err != nil {
		return nil, fmt.Errorf("start Nova: %w", err)
	}
	return n, nil
}

// close ends what runs in this process.
func (n *Compute) close() {
	n.neutron.Close()
	n.Volumes.close()
}

// answerAsNeutron says that there is none of anything.
func answerAsNeutron(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	answer(w, http.StatusOK, object{path.Base(r.URL.Path): []any{}})
}

// up starts in three steps. The API needs the databases and RabbitMQ, and tells when the
// conductor is there, for which nova-compute would wait ten seconds at a time. Each
// step keeps two cores busy.
func (n *Compute) up(ctx context.Context) error {
	if err := n.configure(); err != nil {
		return err
	}
	g, running := errgroup.WithContext(ctx)
	g.Go(func() error { return n.rabbit.Start(running) })
	g.Go(func() error { return n.placement.Start(running) })
	g.Go(func() error { return n.register(running) })
	g.Go(func() error {
		argv := append([]string{python, n.cloud.path("nova/nova_setup.py"), n.cloud.path("nova")}, n.options(true)...)
		return n.cloud.host.run(running, "nova-setup", argv...)
	})
	if err := g.Wait(); err != nil {
		return err
	}
	g, running = errgroup.WithContext(ctx)
	g.Go(func() error { return n.Nova.Start(running) })
	g.Go(func() error { return n.conductor.Start(running) })
	if err := g.Wait(); err != nil {
		return err
	}
	if err := n.await(ctx, "/os-services?binary=nova-conductor", "services", n.conductor); err != nil {
		return err
	}
	for _, s := range []*Server{n.scheduler, n.computer} {
		if err := s.Start(ctx); err != nil {
			return err
		}
	}
	// The hypervisor is shown when the scheduler has found its host.
	if err := n.await(ctx, "/os-hypervisors", "hypervisors", n.computer, n.scheduler); err != nil {
		return err
	}
	return n.makeFlavor(ctx)
}

func (n *Compute) configure() error {
	ports, err := freePorts(3)
	if err != nil {
		return err
	}
	c := n.cloud
	n.rabbit = c.rabbit(ports[0])
	n.placement = c.wsgi("placement", "placement/placement_wsgi.py", ports[1], "/", "OS_PLACEMENT_CONFIG_DIR="+c.path("placement"), c.pythonPath())
	n.Nova = n.server("api", ports[2], true)
	n.conductor = n.server("conductor", 0, true)
	n.scheduler = n.server("scheduler", 0, true)
	n.computer = n.server("compute", 0, false)
	n.URL = n.Nova.url() + "/v2.1"
	if err := c.makeDirs("placement", "nova/disks"); err != nil {
		return err
	}
	return c.fillAll(computeSettings{c.settings, n.rabbit.address(), ports[2]},
		"placement/placement.conf", "placement/placement_wsgi.py",
		"nova/nova.conf", "nova/nova-databases.conf", "nova/nova-api-paste.ini",
		"nova/nova_setup.py", "nova/nova_server.py", "nova/disk_driver.py")
}

// rabbit returns a broker that is a cluster of its own. It listens to no other node, so
// that it needs no epmd, a daemon that says where nodes are and would outlive it.
func (c *Cloud) rabbit(port int) *Server {
	s := &Server{host: c.host, name: "rabbitmq", port: port, argv: []string{rabbitServer}}
	s.env = []string{
		"RABBITMQ_NODENAME=rabbit@localhost", "RABBITMQ_NODE_IP_ADDRESS=" + loopback, "RABBITMQ_NODE_PORT=" + strconv.Itoa(port),
		"RABBITMQ_MNESIA_BASE=" + c.path("rabbitmq/mnesia"), "RABBITMQ_LOG_BASE=" + c.path("rabbitmq"),
		"RABBITMQ_LOGS=-", "RABBITMQ_LOG=warning",
		// There are none, not even those under /etc.
		"RABBITMQ_CONF_ENV_FILE=/dev/null", "RABBITMQ_ENABLED_PLUGINS_FILE=" + c.path("rabbitmq/plugins"),
		"RABBITMQ_CONFIG_FILE=" + c.path("rabbitmq/none"), "RABBITMQ_CONFIG_FILES=" + c.path("rabbitmq/none"),
		"RABBITMQ_ADVANCED_CONFIG_FILE=" + c.path("rabbitmq/none"),
		// A name from the beginning, or it starts epmd to get one.
		"RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS=-sname rabbit@localhost",
		// Also for the child that it has start epmd once a minute. Ports of 1 are never
		// listened on, and keep it away from an epmd that the machine may have.
		"ERL_AFLAGS=-start_epmd false -dist_listen false -erl_epmd_port 1", "ERL_EPMD_PORT=1",
		// The script becomes the broker. It would wait for it otherwise.
		"RUNNING_UNDER_SYSTEMD=true",
	}
	return s
}

// server returns one of Nova's servers. It has a port if it is the API's.
func (n *Compute) server(name string, port int, databases bool) *Server {
	s := &Server{host: n.cloud.host, name: name, port: port, ready: "/", env: []string{n.cloud.pythonPath()}}
	s.argv = append([]string{python, n.cloud.path("nova/nova_server.py"), name}, n.options(databases)...)
	return s
}

func (n *Compute) options(databases bool) []string {
	options := []string{"--config-file", n.cloud.path("nova/nova.conf")}
	if databases {
		options = append(options, "--config-file", n.cloud.path("nova/nova-databases.conf"))
	}
	return options
}

// register makes the users of the new servers, and puts them into the catalogue.
func (n *Compute) register(ctx context.Context) error {
	i, err := n.cloud.administer(ctx)
	if err != nil {
		return err
	}
	i.keep("project", "service", n.cloud.Service.ProjectID)
	n.Volumes.user.Password = n.cloud.servicePassword
	all := steps{
		func(ctx context.Context) error { return i.makeUser(ctx, n.Volumes.user, []string{"service"}) },
	}
	for name, roles := range map[string][]string{"nova": {"admin", "service"}, "placement": {"service"}} {
		u := &User{Name: name, Password: n.cloud.servicePassword, ProjectName: "service", Domain: "Default"}
		all = append(all, func(ctx context.Context) error { return i.makeUser(ctx, u, roles) })
	}
	for _, s := range []struct{ name, kind, url string }{
		{"nova", "compute", n.URL},
		{"placement", "placement", n.placement.url()},
		{"neutron", "network", n.neutron.URL},
		// The second is what Nova asks for, the first what it is called by now.
		{"cinder", "block-storage", n.Volumes.url()},
		{"cinderv3", "volumev3", n.Volumes.url()},
	} {
		all = append(all, func(ctx context.Context) error { return i.publish(ctx, s.name, s.kind, s.url) })
	}
	return all.run(ctx)
}

// await polls a list of Nova's until what it has first is up. That takes servers of which
// nobody else notices when they end.
func (n *Compute) await(ctx context.Context, path, list string, servers ...*Server) error {
	token, err := n.cloud.Token(ctx, n.cloud.Admin, ProjectScope)
	if err != nil {
		return err
	}
	last := servers[0].name
	err = poll(ctx, startTimeout, func(ctx context.Context) (bool, error) {
		for _, s := range servers {
			if !s.isRunning() {
				last = s.name
				return false, errEnded
			}
		}
		var answer map[string][]struct{ State string }
		if err := n.call(ctx, http.MethodGet, path, token, nil, &answer); err != nil {
			return false, err
		}
		return len(answer[list]) > 0 && answer[list][0].State == "up", nil
	})
	if err != nil {
		return n.cloud.host.failed(last, err)
	}
	return nil
}

// makeFlavor makes the one size that servers have. Without a disk, it would be for
// those with volumes only.
func (n *Compute) makeFlavor(ctx context.Context) error {
	token, err := n.cloud.Token(ctx, n.cloud.Admin, ProjectScope)
	if err != nil {
		return err
	}
	flavor := object{"name": "small", "vcpus": 1, "ram": 64, "disk": 10}
	var answer struct{ Flavor struct{ ID string } }
	if err := n.call(ctx, http.MethodPost, "/flavors", token, object{"flavor": flavor}, &answer); err != nil {
		return n.cloud.host.failed(n.Nova.name, err)
	}
	n.flavor = answer.Flavor.ID
	return nil
}

// call makes a request of Nova's API, in a version that knows servers without networks.
func (n *Compute) call(ctx context.Context, method, path, token string, body, answer any) error {
	header := http.Header{"X-Auth-Token": {token}, "Openstack-Api-Version": {"compute 2.37"}}
	_, err := call(ctx, method, n.URL+path, header, body, answer)
	return err
}

// poll asks again and again until it is told yes, or an error.
func poll(ctx context.Context, patience time.Duration, ask func(context.Context) (bool, error)) error {
	ctx, cancel := context.WithTimeoutCause(ctx, patience, fmt.Errorf("gave up after %s", patience))
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		if done, err := ask(ctx); done || err != nil {
			return errors.Join(err, context.Cause(ctx))
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
