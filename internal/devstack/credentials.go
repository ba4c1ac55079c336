package devstack

import (
	"bufio"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
)

// credentialsFile is written into the data directory, for shells to source.
const credentialsFile = "credentials.env"

// Credentials are what a client of standalone needs. They stay the same over
// restarts, but for the endpoint.
type Credentials struct {
	Endpoint      string
	Token         string
	ProjectID     string
	Region        string
	ObjectsURL    string
	Container     string
	OperatorToken string

	// Those of the ECS ImportImage API.
	AliyunEndpoint               string
	AccessKeyID, AccessKeySecret string
	AliyunRegion                 string
	newKey                       bool // made now
}

// reach fills in how to reach a service that listens on addr. A client on this
// machine reaches one that listens on all addresses on the loopback one.
func (c *Credentials) reach(addr net.Addr) {
	host, port, _ := net.SplitHostPort(addr.String())
	if ip := net.ParseIP(host); ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	c.Endpoint, c.Region, c.Container = "http://"+net.JoinHostPort(host, port), Region, container
	c.ObjectsURL = c.Endpoint + "/v2/AUTH_" + c.ProjectID
	c.AliyunEndpoint, c.AliyunRegion = c.Endpoint, AliyunRegion
}

// variables pairs the fields with their names in the environment.
func (c *Credentials) variables() []struct {
	name  string
	value *string
} {
	return []struct {
		name  string
		value *string
	}{
		{"VMIMPORT_ENDPOINT", &c.Endpoint},
		{"VMIMPORT_TOKEN", &c.Token},
		{"VMIMPORT_PROJECT_ID", &c.ProjectID},
		{"VMIMPORT_REGION", &c.Region},
		{"VMIMPORT_OBJECTS_URL", &c.ObjectsURL},
		{"VMIMPORT_CONTAINER", &c.Container},
		{"VMIMPORT_OPERATOR_TOKEN", &c.OperatorToken},
		{"ALIYUN_ENDPOINT", &c.AliyunEndpoint},
		{"ALIYUN_ACCESS_KEY_ID", &c.AccessKeyID},
		{"ALIYUN_ACCESS_KEY_SECRET", &c.AccessKeySecret},
		{"ALIYUN_REGION", &c.AliyunRegion},
	}
}

// Getenv answers as the environment would after sourcing the file.
func (c *Credentials) Getenv(name string) string {
	for _, v := range c.variables() {
		if v.name == name {
			return *v.value
		}
	}
	return ""
}

// loadCredentials reads those of an earlier run, or makes new ones.
func loadCredentials(dir string) (*Credentials, error) {
	c := &Credentials{
		Token: random(32), ProjectID: random(16), OperatorToken: random(32),
		AccessKeyID: "LTAI" + random(10), AccessKeySecret: random(15), newKey: true,
	}
	made := c.AccessKeyID
	f, err := os.Open(filepath.Join(dir, credentialsFile))
	if errors.Is(err, fs.ErrNotExist) {
		return c, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read credentials: %w", err)
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		name, value, ok := strings.Cut(lines.Text(), "=")
		if !ok || value == "" {
			continue
		}
		for _, v := range c.variables() {
			if v.name == name {
				*v.value = value
			}
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("read credentials: %w", err)
	}
	c.newKey = c.AccessKeyID == made
	return c, nil
}

// save writes the file.
func (c *Credentials) save(dir string) error {
	var b strings.Builder
	for _, v := range c.variables() {
		fmt.Fprintf(&b, "%s=%s\n", v.name, *v.value)
	}
	return replace(filepath.Join(dir, credentialsFile), []byte(b.String()))
}

// random returns n random bytes in hex.
func random(n int) string {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails
	return hex.EncodeToString(b)
}
