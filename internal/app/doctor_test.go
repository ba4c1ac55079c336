package app

import (
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	stdlog "log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"

	"vmimport/internal/auth/localtokens"
	"vmimport/internal/config"
	"vmimport/internal/secret"
	"vmimport/internal/testenv"
	"vmimport/storage/storagetest"
	"vmimport/tasks"
	"vmimport/tasks/redisstore"
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
	receiver := httptest.NewUnstartedServer(http.NotFoundHandler())
	receiver.Config.ErrorLog = stdlog.New(io.Discard, "", 0)
	receiver.StartTLS()
	t.Cleanup(receiver.Close)
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: receiver.Certificate().Raw})
	collector := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	t.Cleanup(collector.Close)
	tokens := fmt.Sprintf("tokens: [{sha256: %s, user: u, project: p, domain: d}]\n", localtokens.Digest("t"))
	const accounts = `accounts: [{id: "1", keys: [{id: LTAIx, secret: y}]}]`
	path := write("vmimport.yaml", fmt.Sprintf(`
redis: {url: %q}
aliyun: {accounts_file: %q}
audit: {path: %q}
tracing: {endpoint: %q}
webhooks: [{id: portal, url: %q, secret_file: %q, allow_private: true, ca_file: %q}]
regions:
  - id: east
    fjcloud: {tokens_file: %q}
    objects: {s3: {endpoint: %q, region: %q, access_key: %q, secret_key_file: %q, path_style: true}}
    images: {directory: {path: %q}}
  - id: west
    aliyun: {}
    objects: {directory: {path: %q}}
    images: {directory: {path: %q}}
`, redis.URL(), write("accounts.yaml", accounts), filepath.Join(dir, "audit.log"), collector.URL,
		receiver.URL+"/hook?key=hunter2", write("webhook", strings.Repeat("k", 32)), write("ca.pem", string(ca)), write("tokens.yaml", tokens), s3.URL, s3.Region, s3.AccessKey, write("secret", s3.SecretKey+"\n"),
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
		"configuration", "redis", "redis version", "redis durability", "redis memory", "clock", "queue", "scratch", "open files", "audit log", "accounts",
		"region east: tokens", "region east: objects", "region east: clock of objects", "region east: images",
		"region west: objects", "region west: images", "webhook portal: secret", "webhook portal: receiver", "tracing",
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
		"wrong password": {setRedis("requirepass", "another"), "redis", "does not accept user and password"},
		"Redis is full":  {setRedis("maxmemory", "1mb"), "redis memory", "of 1 MiB used"},
		"no replica":     {func(c *config.Config, _ *testenv.Redis, _ *storagetest.S3) { c.Redis.Replicas = 1 }, "redis replicas", "0 are connected, and redis.replicas is 1"},
		"no worker":      {func(_ *config.Config, r *testenv.Redis, _ *storagetest.S3) { accept(r) }, "queue", "No worker runs (1 are unfinished)"},
		"S3's clock": {func(c *config.Config, _ *testenv.Redis, s *storagetest.S3) {
			late := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Date", time.Now().Add(-time.Hour).UTC().Format(http.TimeFormat))
				s.ServeHTTP(w, r)
			}))
			t.Cleanup(late.Close)
			c.Regions[0].Objects.S3.Endpoint = late.URL
		}, "region east: clock of objects", "differ by 1h0m"},
		"S3 behind an unknown CA": {func(c *config.Config, _ *testenv.Redis, _ *storagetest.S3) {
			c.Regions[0].Objects.S3.CAFile = file
		}, "region east: objects", "no certificate in it"},
		"scratch below a file": {func(c *config.Config, _ *testenv.Redis, _ *storagetest.S3) { c.Worker.Scratch = file + "/below" }, "scratch", "not a directory"},
		"too few files":        {func(c *config.Config, _ *testenv.Redis, _ *storagetest.S3) { c.Worker.Concurrency = 1 << 30 }, "open files", "this user may open"},
		"audit log is a directory": {func(c *config.Config, _ *testenv.Redis, _ *storagetest.S3) {
			c.Audit.Path = filepath.Dir(file)
		}, "audit log", "no regular file"},
		"audit log nowhere": {func(c *config.Config, _ *testenv.Redis, _ *storagetest.S3) { c.Audit.Path = file + ".missing/log" }, "audit log", "no such file"},
		"Keystone refuses": {func(c *config.Config, _ *testenv.Redis, _ *storagetest.S3) {
			behindKeystone(t, c, http.StatusUnauthorized, file)
		}, "region east: keystone", "does not know the import service"},
		"Keystone is down": {func(c *config.Config, _ *testenv.Redis, _ *storagetest.S3) {
			behindKeystone(t, c, http.StatusServiceUnavailable, file)
		}, "region east: keystone", "503"},
		"webhook to a private address": {func(c *config.Config, _ *testenv.Redis, _ *storagetest.S3) {
			c.Webhooks[0].AllowPrivate = false
		}, "webhook portal: receiver", "none of the public internet"},
		"webhook behind an unknown CA": {func(c *config.Config, _ *testenv.Redis, _ *storagetest.S3) {
			c.Webhooks[0].CAFile = ""
		}, "webhook portal: receiver", "certificate signed by unknown authority"},
		"webhook's receiver is down": {func(c *config.Config, _ *testenv.Redis, _ *storagetest.S3) {
			c.Webhooks[0].URL = "https://127.0.0.1:1/?key=hunter2"
		}, "webhook portal: receiver", "connection refused"},
		"webhook's secret is short": {func(c *config.Config, _ *testenv.Redis, _ *storagetest.S3) {
			c.Webhooks[0].SecretFile = file
		}, "webhook portal: secret", "fewer than 32 characters"},
		"no collector": {func(c *config.Config, _ *testenv.Redis, _ *storagetest.S3) { c.Tracing.Endpoint = "http://127.0.0.1:1" }, "tracing", "connection refused"},
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
				case !strings.Contains(f.Message, tt.says) || f.Remedy == "" || strings.Contains(f.Message, "pass:") || strings.Contains(f.Message, "hunter2"):
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

// accept makes a record of an import that nobody runs.
func accept(r *testenv.Redis) {
	spec := &tasks.Spec{ID: "i", Owner: tasks.Owner{Tenant: "d", Project: "p"}, Region: "east", Dialect: "fjcloud", ImageID: "i", Disks: make([]tasks.Disk, 1)}
	if _, _, err := redisstore.New(r.Client(), redisstore.Options{}).Create(context.Background(), spec, tasks.Limits{}); err != nil {
		panic(err)
	}
}

// behindKeystone puts the region east behind a Keystone that answers everything with a status.
func behindKeystone(t *testing.T, c *config.Config, status int, passwordFile string) {
	t.Helper()
	keystone := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) }))
	t.Cleanup(keystone.Close)
	c.Regions[0].FJcloud.TokensFile = ""
	c.Regions[0].Keystone = &config.Keystone{URL: keystone.URL + "/v3", Username: "vmimport", PasswordFile: passwordFile, Project: "service", CacheTokens: time.Second}
}

func setRedis(name, value string) func(*config.Config, *testenv.Redis, *storagetest.S3) {
	return func(_ *config.Config, r *testenv.Redis, _ *storagetest.S3) {
		c := r.Client()
		if err := c.ConfigSet(context.Background(), name, value).Err(); err != nil {
			panic(err)
		}
	}
}

// finding returns what a diagnosis says of one check.
func finding(t *testing.T, cfg *config.Config, check string) Finding {
	t.Helper()
	findings := Diagnose(t.Context(), cfg)
	i := slices.IndexFunc(findings, func(f Finding) bool { return f.Check == check })
	if i < 0 {
		t.Fatalf("%s was not looked at: %+v", check, findings)
	}
	return findings[i]
}

func TestDiagnoseClock(t *testing.T) {
	t.Parallel()
	for skew, ok := range map[time.Duration]bool{0: true, time.Second: true, time.Hour: false, -time.Minute: false} {
		fake := miniredis.RunT(t)
		fake.SetTime(time.Now().Add(skew))
		cfg := config.Default()
		cfg.Redis.URL = secret.New("redis://" + fake.Addr())
		if f := finding(t, &cfg, "clock"); f.OK != ok || !strings.Contains(f.Message, "differ") {
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
		if f := finding(t, &cfg, "redis durability"); f.OK != ok || f.Message == "" {
			t.Errorf("required %v: %+v", required, f)
		}
	}
}

// informed is a client of a Redis that says a text when it is asked about itself.
func informed(t *testing.T, text string) *redis.Client {
	t.Helper()
	c := redis.NewClient(&redis.Options{Addr: miniredis.RunT(t).Addr()})
	t.Cleanup(func() { _ = c.Close() })
	c.AddHook(says(text))
	return c
}

type says string

func (says) DialHook(next redis.DialHook) redis.DialHook { return next }

func (says) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

func (s says) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if info, ok := cmd.(*redis.StringCmd); ok && cmd.Name() == "info" {
			info.SetVal(string(s))
			return nil
		}
		return next(ctx, cmd)
	}
}

func TestRedisVersion(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"# Server\r\nredis_version:7.0.15\r\n": "7.0.15",
		"redis_version:10.1.0\r\n":             "10.1.0",
		"redis_version:6.2.19\r\n":             "it is version 6.2.19",
		"redis_version:unstable\r\n":           untold,
		"":                                     untold,
	} {
		message, err := redisVersion(t.Context(), informed(t, text))
		if err != nil {
			message = err.Error()
		}
		if !strings.Contains(message, want) || (err != nil) != strings.HasPrefix(want, "it is") {
			t.Errorf("%q: %q, %v", text, message, err)
		}
	}
}

func TestRedisMemory(t *testing.T) {
	t.Parallel()
	for text, ok := range map[string]bool{
		"used_memory:1000000\r\nmaxmemory:2000000\r\n":                                   true,
		"used_memory:1900000\r\nmaxmemory:2000000\r\ntotal_system_memory:9000000000\r\n": false,
		"used_memory:1000000\r\nmaxmemory:0\r\ntotal_system_memory:9000000000\r\n":       true,
		"used_memory:8000000000\r\nmaxmemory:0\r\ntotal_system_memory:9000000000\r\n":    false,
		"": true,
	} {
		if message, err := redisMemory(t.Context(), informed(t, text)); (err == nil) != ok || ok && message == "" {
			t.Errorf("%q: %q, %v", text, message, err)
		}
	}
}

func TestQueueHealth(t *testing.T) {
	t.Parallel()
	now := time.Now()
	led := tasks.Outlook{At: now.Add(-3 * time.Second), Slots: 4}
	contended := led
	contended.Contenders = 1
	old := tasks.Load{Open: 3, Waiting: 3, Due: 3, Oldest: now.Add(-time.Hour)}
	busy := old
	busy.Running = 4
	for name, tt := range map[string]struct {
		load    tasks.Load
		slots   int
		outlook tasks.Outlook
		says    string
		err     error
	}{
		"nothing yet":           {tasks.Load{}, 0, tasks.Outlook{}, "empty; no worker runs", nil},
		"no worker":             {old, 0, led, "", errNoWorker},
		"no leader":             {tasks.Load{}, 4, tasks.Outlook{At: now.Add(-time.Minute)}, "", errNoLeader},
		"never a leader":        {tasks.Load{}, 4, tasks.Outlook{}, "", errNoLeader},
		"idle":                  {old, 4, contended, "", errIdle},
		"held back by a limit":  {old, 4, led, "3 wait, the oldest for 1h0m0s; 0 of 4 slots in use", nil},
		"busy":                  {busy, 4, contended, "3 wait, the oldest for 1h0m0s; 4 of 4 slots in use", nil},
		"nothing is left to do": {tasks.Load{}, 4, led, "none waits; 0 of 4 slots in use", nil},
	} {
		if message, err := queueHealth(tt.load, tt.slots, tt.outlook, now); message != tt.says || !errors.Is(err, tt.err) {
			t.Errorf("%s: %q, %v", name, message, err)
		}
	}
}

func TestScratchRoom(t *testing.T) {
	t.Parallel()
	cfg := config.Default()
	cfg.Worker.Scratch = t.TempDir()
	for disk, noted := range map[config.ByteSize]bool{0: false, 1 << 20: false, 1 << 60: true} {
		cfg.Regions = []config.Region{{MaxDisk: disk}}
		if message, err := scratchRoom(&cfg); err != nil || strings.Contains(message, "would not fit") != noted {
			t.Errorf("%d: %q, %v", disk, message, err)
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
