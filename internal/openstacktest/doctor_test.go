package openstacktest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"vmimport/internal/app"
	"vmimport/internal/config"
	"vmimport/internal/secret"
	"vmimport/internal/testenv"
	env "vmimport/internal/testenv/openstack"
)

// What is in order is told as such, and each thing that is not by its own check, with
// a remedy and without a secret.
func TestDoctor(t *testing.T) {
	t.Parallel()
	redis := testenv.StartRedis(t)
	impostor := *cloud.Service
	impostor.Password = "not the password"
	for name, tt := range map[string]struct {
		edit func(*config.Config)
		user *env.User // in place of the service's
		fail []string  // the checks that find something
	}{
		"all in order":          {},
		"a role in place admin": {user: cloud.Minimal, fail: []string{"images"}}, // this Glance lacks the policy
		"a customer's user":     {user: cloud.Alpha, fail: []string{"tokens", "objects", "images"}},
		"wrong password":        {user: &impostor, fail: []string{"keystone"}},
		"wrong project":         {edit: func(c *config.Config) { c.Regions[0].Keystone.Project = "nowhere" }, fail: []string{"keystone"}},
		"no such region":        {edit: func(c *config.Config) { c.Regions[0].Keystone.Region = "Moon" }, fail: []string{"objects", "images"}},
		"another server": {edit: func(c *config.Config) {
			c.Regions[0].Keystone.Endpoints = map[string]string{"image": cloud.KeystoneURL, "object-store": cloud.GlanceURL}
		}, fail: []string{"objects", "images"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			user := cloud.Service
			if tt.user != nil {
				user = tt.user
			}
			cfg := configured(t, user)
			cfg.Redis.URL = secret.New(redis.URL())
			if tt.edit != nil {
				tt.edit(cfg)
			}
			if err := cfg.Validate(); err != nil {
				t.Fatal(err)
			}
			failed := map[string]bool{}
			for _, f := range app.Diagnose(t.Context(), cfg) {
				t.Logf("%+v", f)
				if strings.Contains(f.Message, user.Password) {
					t.Error("the password is in the findings")
				}
				check := strings.TrimPrefix(f.Check, "region jp-east-3: ")
				failed[check] = !f.OK
				if !f.OK && f.Remedy == "" {
					t.Errorf("%s: no remedy", check)
				}
			}
			for check, failed := range failed {
				want := false
				for _, f := range tt.fail {
					want = want || f == check
				}
				if failed != want {
					t.Errorf("%s: failed %v, want %v", check, failed, want)
				}
			}
		})
	}
}

// configured returns the configuration of a region in the cloud, for the service as a
// user.
func configured(t *testing.T, user *env.User) *config.Config {
	t.Helper()
	dir := t.TempDir()
	password := filepath.Join(dir, "password")
	if err := os.WriteFile(password, []byte(user.Password+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := config.Default()
	cfg.Worker.Scratch = dir
	cfg.Regions = []config.Region{{
		ID:      "jp-east-3",
		FJcloud: &config.FJcloud{Profile: "gen3", ListScope: "domain"},
		Keystone: &config.Keystone{
			URL: cloud.KeystoneURL, Username: user.Name, PasswordFile: password, Domain: user.Domain, Project: user.ProjectName, ProjectDomain: user.Domain,
			Interface: "public", CacheTokens: 1e9,
		},
		Objects: config.Objects{Swift: &config.Swift{}},
		Images:  config.Images{Glance: &config.Glance{}, TargetFormat: "raw"},
	}}
	return &cfg
}
