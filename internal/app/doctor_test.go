package app

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"

	"vmimport/internal/auth/localtokens"
	"vmimport/internal/config"
	"vmimport/internal/secret"
	"vmimport/internal/testenv"
	"vmimport/storage/storagetest"
)

// healthy returns a configuration with which everything is in order.
func healthy(t *testing.T, redis *testenv.Redis, s3 *storagetest.S3) *config.Config {
	t.Helper()
	dir := t.TempDir()
	write := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	if err := os.Mkdir(filepath.Join(dir, "objects"), 0o700); err != nil {
		t.Fatal(err)
	}
	s3.Tamper(func(_ *http.Request, a *storagetest.Answer) {
		a.Status, a.Body, a.Header = 200, []byte(`<ListAllMyBucketsResult/>`), http.Header{}
	})
	tokens := fmt.Sprintf("tokens: [{sha256: %s, user: u, project: p, domain: d}]\n", localtokens.Digest("t"))
	const accounts = `accounts: [{id: "1", keys: [{id: LTAIx, secret: y}]}]`
	path := write("vmimport.yaml", fmt.Sprintf(`
redis: {url: %q}
aliyun: {accounts_file: %q}
regions:
  - id: east
    fjcloud: {tokens_file: %q}
    objects: {s3: {endpoint: %q, region: %q, access_key: %q, secret_key_file: %q, path_style: true}}
    images: {directory: {path: %q}}
  - id: west
    aliyun: {}
    objects: {directory: {path: %q}}
    images: {directory: {path: %q}}
`, redis.URL(), write("accounts.yaml", accounts), write("tokens.yaml", tokens), s3.URL, s3.Region, s3.AccessKey, write("secret", s3.SecretKey+"\n"),
		filepath.Join(dir, "images"), filepath.Join(dir, "objects"), filepath.Join(dir, "not yet", "images")))
	cfg, err := config.Load(path, func(string) string { return "" })
	if err == nil {
		err = cfg.Validate()
	}
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

func TestDiagnose(t *testing.T) {
	t.Parallel()
	redis, s3 := testenv.StartRedis(t), storagetest.NewS3(t)
	cfg := healthy(t, redis, s3)
	findings := Diagnose(t.Context(), cfg)
	var checks []string
	for _, f := range findings {
		checks = append(checks, f.Check)
		if !f.OK || f.Remedy != "" {
			t.Errorf("%+v", f)
		}
	}
	want := []string{
		"configuration", "redis", "redis durability", "clock", "scratch", "accounts",
		"region east: tokens", "region east: objects", "region east: images", "region west: objects", "region west: images",
	}
	if !slices.Equal(checks, want) {
		t.Errorf("looked at %q, want %q", checks, want)
	}
	if _, err := os.Stat(cfg.Regions[0].Images.Directory.Path); !os.IsNotExist(err) {
		t.Errorf("the image directory was made: %v", err)
	}
}

// Each set-up is broken in one place, and that place is named and no other.
func TestDiagnoseFindsWhatIsBroken(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		breakIt func(*config.Config, *testenv.Redis, *storagetest.S3)
		check   string
		says    string
	}{
		"Redis is down": {func(_ *config.Config, r *testenv.Redis, _ *storagetest.S3) { r.Kill() }, "redis", "connect:"},
		"no URL of Redis": {func(c *config.Config, _ *testenv.Redis, _ *storagetest.S3) {
			c.Redis.URL = secret.New("http://pass:word@x")
		}, "redis", "redis.url"},
		"no fsync":           {setRedis("appendfsync", "everysec"), "redis durability", "appendfsync is everysec, and must be always"},
		"no append-only log": {setRedis("appendonly", "no"), "redis durability", "appendonly is no, and must be yes"},
		"eviction":           {setRedis("maxmemory-policy", "allkeys-lru"), "redis durability", "maxmemory-policy is allkeys-lru"},
		"no tokens": {func(c *config.Config, _ *testenv.Redis, _ *storagetest.S3) {
			c.Regions[0].FJcloud.TokensFile = file + ".missing"
		}, "region east: tokens", "no such file"},
		"broken accounts": {func(c *config.Config, _ *testenv.Redis, _ *storagetest.S3) { c.Aliyun.AccountsFile = file }, "accounts", "read accounts"},
		"accounts for all to read": {func(c *config.Config, _ *testenv.Redis, _ *storagetest.S3) {
			if err := os.Chmod(c.Aliyun.AccountsFile, 0o644); err != nil {
				t.Error(err)
			}
		}, "accounts", "chmod 600"},
		"broken tokens": {func(c *config.Config, _ *testenv.Redis, _ *storagetest.S3) { c.Regions[0].FJcloud.TokensFile = file }, "region east: tokens", "load tokens"},
		"wrong key":     {func(_ *config.Config, _ *testenv.Redis, s *storagetest.S3) { s.SecretKey = "another" }, "region east: objects", "does not accept the service's key"},
		"no key": {func(c *config.Config, _ *testenv.Redis, _ *storagetest.S3) {
			c.Regions[0].Objects.S3.SecretKeyFile = file + ".missing"
		}, "region east: objects", "no such file"},
		"S3 is down": {func(c *config.Config, _ *testenv.Redis, _ *storagetest.S3) {
			c.Regions[0].Objects.S3.Endpoint = "http://127.0.0.1:1"
		}, "region east: objects", "does not answer"},
		"S3 without TLS": {func(c *config.Config, _ *testenv.Redis, s *storagetest.S3) {
			c.Regions[0].Objects.S3.Endpoint = strings.Replace(s.URL, "http:", "https:", 1)
		}, "region east: objects", "No secure connection"},
		"images are a file": {func(c *config.Config, _ *testenv.Redis, _ *storagetest.S3) { c.Regions[0].Images.Directory.Path = file }, "region east: images", "not a directory"},
		"images read-only": {func(c *config.Config, _ *testenv.Redis, _ *storagetest.S3) {
			c.Regions[0].Images.Directory.Path = "/proc/self/images" // where nobody can make anything
		}, "region east: images", "cannot be written"},
		"objects are missing": {func(c *config.Config, _ *testenv.Redis, _ *storagetest.S3) {
			c.Regions[1].Objects.Directory.Path = file + ".missing"
		}, "region west: objects", "is not there"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			redis, s3 := testenv.StartRedis(t), storagetest.NewS3(t)
			cfg := healthy(t, redis, s3)
			tt.breakIt(cfg, redis, s3)
			found := false
			for _, f := range Diagnose(t.Context(), cfg) {
				switch {
				case f.OK:
				case f.Check != tt.check:
					t.Errorf("also found %+v", f)
				case !strings.Contains(f.Message, tt.says) || f.Remedy == "" || strings.Contains(f.Message, "pass"):
					t.Errorf("%+v, want %q", f, tt.says)
				default:
					found = true
				}
			}
			if !found {
				t.Errorf("%s is not found", tt.check)
			}
		})
	}
}

func setRedis(name, value string) func(*config.Config, *testenv.Redis, *storagetest.S3) {
	return func(_ *config.Config, r *testenv.Redis, _ *storagetest.S3) {
		c := r.Client()
		if err := c.ConfigSet(context.Background(), name, value).Err(); err != nil {
			panic(err)
		}
	}
}

func TestDiagnoseClock(t *testing.T) {
	t.Parallel()
	for skew, ok := range map[time.Duration]bool{0: true, time.Second: true, time.Hour: false, -time.Minute: false} {
		fake := miniredis.RunT(t)
		fake.SetTime(time.Now().Add(skew))
		cfg := config.Default()
		cfg.Redis.URL = secret.New("redis://" + fake.Addr())
		i := slices.IndexFunc(Diagnose(t.Context(), &cfg), func(f Finding) bool { return f.Check == "clock" })
		if f := Diagnose(t.Context(), &cfg)[i]; f.OK != ok || !strings.Contains(f.Message, "differ") {
			t.Errorf("%s: %+v", skew, f)
		}
	}
}

// Where durability is not required, its absence is told and no problem.
func TestDiagnoseWithoutDurability(t *testing.T) {
	t.Parallel()
	fake := miniredis.RunT(t) // which does not tell how it is set up
	cfg := config.Default()
	cfg.Redis.URL = secret.New("redis://" + fake.Addr())
	for required, ok := range map[bool]bool{true: false, false: true} {
		cfg.Redis.RequireDurable = required
		if f := Diagnose(t.Context(), &cfg)[2]; f.Check != "redis durability" || f.OK != ok || f.Message == "" {
			t.Errorf("required %v: %+v", required, f)
		}
	}
}

func TestMisconfigured(t *testing.T) {
	t.Parallel()
	findings := Misconfigured(errors.Join(errors.New("first\n"), errors.New("second")))
	if len(findings) != 2 || findings[0].OK || findings[0].Message != "first" || findings[1].Message != "second" || findings[1].Remedy == "" {
		t.Errorf("%+v", findings)
	}
	if findings := Misconfigured(errors.New("only")); len(findings) != 1 || findings[0].Message != "only" {
		t.Errorf("%+v", findings)
	}
}
