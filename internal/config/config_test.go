package config

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
)

func none(string) string { return "" }

func TestExampleIsValid(t *testing.T) {
	t.Parallel()
	// Its operator token lies where a test has no business.
	env := func(name string) string {
		if name == "VMIMPORT_OPERATOR_TOKEN" {
			return "t"
		}
		return ""
	}
	cfg, err := Load("../../etc/vmimport.example.yaml", env)
	if err != nil {
		t.Fatal(err)
	}
	if err := cfg.Validate(); err != nil {
		t.Error(err)
	}
	want := Default()
	cfg.Limits.Tenants = nil // an example, for which there is no default
	if !reflect.DeepEqual(cfg.Worker, want.Worker) || cfg.Redis != want.Redis || cfg.Records != want.Records || !reflect.DeepEqual(cfg.Limits, want.Limits) {
		t.Errorf("the example says that it shows the defaults; it has %+v", cfg)
	}
	if r := cfg.Regions[0]; r.Objects.S3.BucketPrefix != "{project}-" || r.FJcloud.ListScope != "domain" {
		t.Errorf("region %+v", r)
	}
	if a := cfg.Aliyun; a.RequestsPerSecond != 50 || a.Burst != 100 {
		t.Errorf("aliyun %+v", a)
	}
	if a := cfg.Regions[1].Aliyun; a.SystemDisk != (GiBRange{5, 500}) || a.DataDisk != (GiBRange{5, 1000}) || len(a.Formats) != 3 || a.LocalNames["en-US"] == "" {
		t.Errorf("region %+v", a)
	}
}

func TestOpenStackExample(t *testing.T) {
	t.Parallel()
	cfg, err := Load("../../etc/vmimport.openstack.yaml", func(name string) string {
		if name == "VMIMPORT_OPERATOR_TOKEN" {
			return "t"
		}
		return ""
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := cfg.Validate(); err != nil {
		t.Error(err)
	}
	if r := cfg.Regions[0]; r.Objects.Swift == nil || r.Images.Glance == nil || r.Keystone.CacheTokens != 30*time.Second || r.Keystone.Interface != "public" {
		t.Errorf("region %+v", r)
	}
}

func write(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "c.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestUnknownKeysAreErrors(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"lissten: x\n", "worker: {memry: 1MiB}\n", "regions: [{id: a, images: {glanze: {}}}]\n"} {
		if _, err := Load(write(t, text), none); err == nil {
			t.Errorf("%q was accepted", text)
		}
	}
}

func TestOpenStackRegion(t *testing.T) {
	t.Parallel()
	cfg, err := Load(write(t, `
regions:
  - id: a
    fjcloud: {}
    keystone: {url: "https://keystone.test/v3", username: vmimport, password_file: /x, project: service}
    objects: {swift: {}, s3: {endpoint: "http://s3.test", access_key: a, secret_key_file: /x}}
    images: {glance: {}}
`), none)
	if err == nil {
		err = cfg.Validate()
	}
	if err != nil {
		t.Fatal(err)
	}
	r := cfg.Regions[0]
	if r.Keystone.Domain != "Default" || r.Keystone.Interface != "public" || r.Keystone.CacheTokens != 30*time.Second || r.FJcloud.RequiredRole != "member" {
		t.Errorf("defaults: %+v %+v", r.Keystone, r.FJcloud)
	}
}

func TestEnvironmentOverridesFile(t *testing.T) {
	t.Parallel()
	env := map[string]string{
		"VMIMPORT_REDIS_URL": "redis://:pw@elsewhere/1", "VMIMPORT_LISTEN": ":1", "VMIMPORT_OPERATOR_TOKEN": "op",
		"VMIMPORT_LOG_LEVEL": "debug", "VMIMPORT_WORKER_LISTEN": ":2", "VMIMPORT_WORKER_CONCURRENCY": "9", "VMIMPORT_WORKER_MEMORY": "1GiB",
		"VMIMPORT_WORKER_SCRATCH": "/scratch",
	}
	cfg, err := Load(write(t, "listen: :9\nworker: {concurrency: 2, drain_timeout: 5s}\n"), func(n string) string { return env[n] })
	if err != nil {
		t.Fatal(err)
	}
	if len(env) != len(Variables) {
		t.Errorf("%d variables, %d tested", len(Variables), len(env))
	}
	if cfg.Redis.URL.Reveal() != env["VMIMPORT_REDIS_URL"] || cfg.Listen != ":1" || cfg.Operator.Token.Reveal() != "op" || cfg.Log.Level != "debug" ||
		cfg.Worker.Listen != ":2" || cfg.Worker.Concurrency != 9 || cfg.Worker.Memory != 1<<30 || cfg.Worker.Scratch != "/scratch" || cfg.Worker.DrainTimeout != 5*time.Second {
		t.Errorf("%+v", cfg)
	}
	if b, err := yaml.Marshal(cfg); err != nil || strings.Contains(string(b), "pw@") {
		t.Errorf("printed configuration shows a password: %s, %v", b, err)
	}
	if _, err := Load("", func(n string) string { return map[string]string{"VMIMPORT_WORKER_CONCURRENCY": "many"}[n] }); err == nil {
		t.Error("a number that is none was accepted")
	}
}

func TestValidateReportsAllProblems(t *testing.T) {
	t.Parallel()
	cfg, err := Load(write(t, `
log: {level: loud}
records: {retention: 1h}
worker: {concurrency: 0, chunk: 8MiB, memory: 9MiB, parallel: 99, digests: [crc32]}
regions:
  - id: "Bad ID"
    hosts: [a.test]
    fjcloud: {profile: gen4, list_scope: world}
    images: {target_format: vmdk}
  - id: b
    hosts: [A.test]
    objects: {s3: {endpoint: "ftp://x", bucket_prefix: all}}
    images: {directory: {path: ""}}
  - id: c
    fjcloud: {tokens_file: /x}
    keystone: {url: "ldap://x", username: a, application_credential_id: b, interface: secret, cache_tokens: 1h, endpoints: {volume: "x"}}
    objects: {directory: {path: /x}, swift: {account_url: "http://x/v1/all"}}
    images: {directory: {path: /x}, glance: {}}
  - id: d
    objects: {swift: {}}
    images: {glance: {}}
`), none)
	if err != nil {
		t.Fatal(err)
	}
	err = cfg.Validate()
	for _, want := range []string{
		"log.level", "retention", "concurrency", "worker.memory", "parallel", "crc32", "Bad ID", "gen4", "world", "tokens_file",
		"objects needs either directory, or", "images.directory.path", "exactly one of directory and glance", "target_format", "host A.test is used twice", "endpoint", "access_key", "bucket_prefix does not hold {project}",
		"(c): needs either keystone or fjcloud.tokens_file", "keystone.url", "either username or", "interface", "cache_tokens", "none of image", "account_url",
		"(d): objects.swift needs keystone", "(d): images.glance needs keystone",
	} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("no word about %s in:\n%v", want, err)
		}
	}
}

func TestByteSize(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]ByteSize{"0": 0, "4096": 4096, "1KiB": 1024, "160MiB": 160 << 20, "1.5 GiB": 3 << 29, "2TB": 2e12, "7B": 7} {
		var b ByteSize
		if err := b.UnmarshalText([]byte(text)); err != nil || b != want {
			t.Errorf("%q: %d, %v", text, b, err)
		}
		var again ByteSize
		if err := again.UnmarshalText([]byte(b.String())); err != nil || again != b {
			t.Errorf("%q prints as %s", text, b)
		}
	}
	for _, text := range []string{"", "MiB", "-1", "1 QiB", "NaN", "1e30TiB", "0x10"} {
		var b ByteSize
		if err := b.UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q was taken for %d", text, b)
		}
	}
}

func TestAliyunRegion(t *testing.T) {
	t.Parallel()
	const stores = "    objects: {directory: {path: /o}}\n    images: {directory: {path: /i}}\n"
	good := "aliyun: {accounts_file: /a}\nregions:\n  - id: cn-hangzhou\n    aliyun: {}\n" + stores
	cfg, err := Load(write(t, good), none)
	if err != nil {
		t.Fatal(err)
	}
	if err := cfg.Validate(); err != nil {
		t.Error(err)
	}
	for edit, problem := range map[[2]string]string{
		{"aliyun: {accounts_file: /a}\n", ""}:                 "aliyun needs aliyun.accounts_file",
		{"accounts_file: /a", ""}:                             "accounts_file is missing",
		{"accounts_file: /a", "accounts_file: /a, burst: -1"}: "burst is below 1",
		{"aliyun: {}", "aliyun: {formats: [raw]}"}:            `"raw" is none of RAW`,
		{"aliyun: {}", "aliyun: {local_names: {fr: x}}"}:      `"fr" is none of zh-CN`,
		{"aliyun: {}", "aliyun: {system_disk: {min: 5}}"}:     "aliyun.system_disk is no range",
		{"aliyun: {}", "aliyun: {data_disk: {max: 5}}"}:       "aliyun.data_disk is no range",
	} {
		cfg, err := Load(write(t, strings.Replace(good, edit[0], edit[1], 1)), none)
		if err != nil {
			t.Fatal(err)
		}
		if err := cfg.Validate(); err == nil || !strings.Contains(err.Error(), problem) {
			t.Errorf("%q: %v, want %q", edit, err, problem)
		}
	}
}
