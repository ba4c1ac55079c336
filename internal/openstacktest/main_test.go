// Package openstacktest tests the service against OpenStack itself: Keystone, Swift
// and Glance, as Debian has them.
package openstacktest

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	"vmimport/internal/openstack"
	"vmimport/internal/secret"
	env "vmimport/internal/testenv/openstack"
)

// cloud is the OpenStack that all tests of this package share.
var cloud *env.Cloud

func TestMain(m *testing.M) {
	os.Exit(func() int {
		ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
		defer cancel()
		c, err := env.Start(ctx)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer c.Stop()
		cloud = c
		return m.Run()
	}())
}

// service returns the identity of the import service, with whatever edit changes of it.
func service(t testing.TB, edit ...func(*openstack.Options)) *openstack.Cloud {
	t.Helper()
	s := cloud.Service
	o := openstack.Options{
		AuthURL: cloud.KeystoneURL, Username: s.Name, UserDomain: s.Domain, Password: secret.New(s.Password), Project: s.ProjectName, Region: cloud.Region,
	}
	for _, e := range edit {
		e(&o)
	}
	c, err := openstack.New(o)
	if err != nil {
		t.Fatal(err)
	}
	return c
}
