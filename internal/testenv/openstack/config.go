package openstack

import (
	"crypto/rand"
	"embed"
	"encoding/base64"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"text/template"
)

//go:embed files
var files embed.FS

var templates = template.Must(template.New("").Option("missingkey=error").ParseFS(files, "files/*"))

// settings are what the files are filled with.
type settings struct {
	Dir             string
	OSUser          string // whom this process runs as
	Region          string
	KeystoneURL     string
	GlanceURL       string
	Memcached       string // host:port
	ServicePassword string
}

// swiftSettings are those of one of Swift's servers.
type swiftSettings struct {
	settings
	Kind string
	Port int
}

// debianPackage is one of Debian's packages, with a file that shows it is there.
type debianPackage struct{ name, file string }

// packages are those that every cloud needs.
var packages = []debianPackage{
	{"python3-keystone", "/usr/lib/python3/dist-packages/keystone/__init__.py"},
	{"python3-glance", "/usr/lib/python3/dist-packages/glance/__init__.py"},
	{"python3-swift", "/usr/lib/python3/dist-packages/swift/__init__.py"},
	{"python3-keystonemiddleware", "/usr/lib/python3/dist-packages/keystonemiddleware/__init__.py"},
	{"python3-openstackclient", "/usr/bin/openstack"},
	{"python3-swiftclient", "/usr/bin/swift"},
	{"python3-glanceclient", "/usr/bin/glance"},
	{"uwsgi-core", "/usr/bin/uwsgi"},
	{"uwsgi-plugin-python3", "/usr/lib/uwsgi/plugins/python3_plugin.so"},
	{"memcached", "/usr/bin/memcached"},
}

func checkInstalled(packages []debianPackage) error {
	var missing []string
	for _, p := range packages {
		if _, err := os.Stat(p.file); err != nil {
			missing = append(missing, p.name)
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("not installed: %s; `make deps-openstack` installs what is missing", strings.Join(missing, ", "))
	}
	return nil
}

// makeDir makes the cloud's directory where files can have extended attributes, in
// which Swift keeps what it knows about objects: among temporary files, else in
// /var/tmp or in memory.
func makeDir() (string, error) {
	var errs []error
	for _, parent := range slices.Compact([]string{os.TempDir(), "/var/tmp", "/dev/shm"}) {
		dir, err := os.MkdirTemp(parent, "vmimport-openstack-")
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if err = syscall.Setxattr(dir, "user.vmimport.test", []byte("1"), 0); err == nil {
			return dir, nil
		}
		errs = append(errs, fmt.Errorf("%s: %w", parent, err), os.Remove(dir))
	}
	return "", fmt.Errorf("find a file system with extended attributes, which Swift needs: %w", errors.Join(errs...))
}

// freePorts returns n ports that nobody listens on.
//
// They are below those that Linux gives to outgoing connections: a server that was
// killed must find its port free when it comes back.
func freePorts(n int) ([]int, error) {
	const low, high, tries = 15000, 32768, 1000
	var ports []int
	for range tries {
		port := low + mathrand.IntN(high-low)
		l, err := net.Listen("tcp", net.JoinHostPort(loopback, strconv.Itoa(port)))
		if err != nil {
			continue
		}
		defer l.Close() // when all are found, so that they differ
		if ports = append(ports, port); len(ports) == n {
			return ports, nil
		}
	}
	return nil, fmt.Errorf("find %d free ports: gave up after %d tries", n, tries)
}

const loopback = "127.0.0.1"

// configure chooses the addresses, says what is to run, and writes the files.
func (c *Cloud) configure() error {
	ports, err := freePorts(7)
	if err != nil {
		return err
	}
	me, err := user.Current()
	if err != nil {
		return err
	}
	c.Keystone = c.wsgi("keystone", "keystone/keystone_wsgi.py", ports[0], "/v3", "OS_KEYSTONE_CONFIG_DIR="+c.path("keystone"))
	c.Glance = c.wsgi("glance", "glance/glance_wsgi.py", ports[1], "/healthcheck", "OS_GLANCE_CONFIG_DIR="+c.path("glance"), c.pythonPath())
	c.Swift = c.swift("proxy", ports[2])
	c.memcached = &Server{host: c.host, name: "memcached", port: ports[3], argv: []string{
		"/usr/bin/memcached", "-l", loopback, "-p", strconv.Itoa(ports[3]), "-U", "0", "-m", "64", "-u", me.Username,
	}}
	for i, kind := range []string{"account", "container", "object"} {
		c.storage = append(c.storage, c.swift(kind, ports[4+i]))
	}
	c.KeystoneURL, c.GlanceURL, c.SwiftURL = c.Keystone.url()+"/v3", c.Glance.url(), c.Swift.url()
	c.settings = settings{
		Dir: c.Dir, OSUser: me.Username, Region: c.Region, KeystoneURL: c.KeystoneURL, GlanceURL: c.GlanceURL,
		Memcached: c.memcached.address(), ServicePassword: c.servicePassword,
	}
	return c.writeFiles()
}

func (c *Cloud) path(name string) string { return filepath.Join(c.Dir, name) }

// pythonPath is a variable with which Python finds what several servers import.
func (c *Cloud) pythonPath() string { return "PYTHONPATH=" + c.path("python") }

// writeFiles writes keys, configuration and launchers to where the servers look for
// them.
func (c *Cloud) writeFiles() error {
	err := c.makeDirs("log", "python", "keystone/keys", "glance/images", "glance/staging", "glance/tasks", "glance/lock", "swift/devices/d1")
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range []string{"0", "1"} {
		key := make([]byte, 32)
		rand.Read(key)
		errs = append(errs, os.WriteFile(c.path("keystone/keys/"+name), []byte(base64.URLEncoding.EncodeToString(key)), 0o600))
	}
	errs = append(errs,
		c.fillAll(c.settings,
			"python/sqlite_immediate.py",
			"keystone/keystone.conf", "keystone/keystone_setup.py", "keystone/keystone_wsgi.py",
			"glance/glance-api.conf", "glance/glance-api-paste.ini", "glance/glance_wsgi.py",
			"swift/swift.conf", "swift/swift_rings.py", "swift/swift_server.py"),
		fill(c.path("swift/proxy-server.conf"), "proxy-server.conf", swiftSettings{c.settings, c.Swift.name, c.Swift.port}))
	for _, server := range c.storage {
		errs = append(errs, fill(c.path("swift/"+server.name+"-server.conf"), "storage-server.conf", swiftSettings{c.settings, server.name, server.port}))
	}
	return errors.Join(errs...)
}

func (c *Cloud) makeDirs(names ...string) error {
	for _, name := range names {
		if err := os.MkdirAll(c.path(name), 0o700); err != nil {
			return err
		}
	}
	return nil
}

// fillAll writes files that are called as those they are filled from.
func (c *Cloud) fillAll(data any, paths ...string) error {
	var errs []error
	for _, path := range paths {
		errs = append(errs, fill(c.path(path), filepath.Base(path), data))
	}
	return errors.Join(errs...)
}

// fill writes the file that name stands for, filled with data.
func fill(path, name string, data any) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(templates.ExecuteTemplate(f, name, data), f.Close())
}
