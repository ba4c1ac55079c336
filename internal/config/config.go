// Package config reads the service's configuration: defaults, then one YAML
// file, then the environment, then flags; each overrides the one before. A key
// that is unknown is an error, and Validate reports every problem at once.
package config

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/goccy/go-yaml"

	"vmimport/internal/secret"
)

// Config is the configuration of an API or worker process. Both read the same
// file; each uses its part.
type Config struct {
	Redis    Redis     `yaml:"redis"`
	Listen   string    `yaml:"listen"` // of the API, host:port
	Operator Operator  `yaml:"operator"`
	Log      Log       `yaml:"log"`
	Records  Records   `yaml:"records"`
	Limits   Limits    `yaml:"limits"`
	HTTP     HTTP      `yaml:"http"`
	Worker   Worker    `yaml:"worker"`
	Webhooks []Webhook `yaml:"webhooks"`
	Audit    Audit     `yaml:"audit"`
	Tracing  Tracing   `yaml:"tracing"`
	Aliyun   *Aliyun   `yaml:"aliyun"`
	Regions  []Region  `yaml:"regions"`
}

// Redis is where the records and the queue are.
type Redis struct {
	// URL is redis://, rediss:// (TLS) or unix://, with user, password and
	// database as go-redis reads them. Further addresses are parameters, addr=host:port,
	// as often as needed; for Sentinels also master_name, sentinel_username and
	// sentinel_password.
	URL secret.Text `yaml:"url"`
	// Mode is what the addresses are: those of a server, of sentinels, or of some nodes of a
	// cluster.
	Mode string `yaml:"mode"`
	// Replicas is how many replicas must have an import before it is accepted. Without, one
	// that was accepted in the moment of a failover may be lost.
	Replicas int `yaml:"replicas"`
	// RequireDurable makes the API unready while Redis would lose accepted
	// imports in a crash or under memory pressure.
	RequireDurable bool `yaml:"require_durable"`
}

// Operator opens metrics and the queue monitor.
type Operator struct {
	TokenFile string      `yaml:"token_file"`
	Token     secret.Text `yaml:"-"` // from TokenFile or the environment
	// OpenMetrics serves /metrics without the token.
	OpenMetrics bool `yaml:"open_metrics"`
}

// Log is what is logged, as JSON on standard error.
type Log struct {
	Level string `yaml:"level"` // debug, info, warn or error
}

// Records says how long records live.
type Records struct {
	Retention time.Duration `yaml:"retention"` // of finished imports
	// KeepPartial is how long that is kept which an import had written when it failed for a
	// passing reason, so that a retry goes on from there; 0: not at all.
	KeepPartial time.Duration `yaml:"keep_partial"`
}

// Limits are per tenant.
type Limits struct {
	Limit `yaml:",inline"`
	// EventStreams is how many streams of events a tenant may have open at one API process.
	EventStreams int `yaml:"event_streams"`
	// Tenants have limits of their own: domains of OpenStack, accounts of access keys.
	Tenants map[string]Limit `yaml:"tenants"`
}

// Limit is what one tenant may have. 0 is no bound; in Limits.Tenants it is what all have,
// and -1 no bound (of bandwidth: more than ever comes).
type Limit struct {
	Unfinished int      `yaml:"unfinished_imports"`
	Running    int      `yaml:"running"`   // imports and exports at a time, of all workers
	Bandwidth  ByteSize `yaml:"bandwidth"` // bytes per second that all of these read together
}

// Webhook is a receiver of events.
type Webhook struct {
	ID  string `yaml:"id"`
	URL string `yaml:"url"` // https, or http with AllowPrivate
	// SecretFile holds the key of the signatures, 32 characters at least.
	SecretFile string `yaml:"secret_file"`
	// Tenants, Dialects and States are those whose events are sent; none: all.
	Tenants  []string `yaml:"tenants"`
	Dialects []string `yaml:"dialects"`
	States   []string `yaml:"states"`
	// AllowPrivate allows addresses that are loopback, link-local or private.
	AllowPrivate bool   `yaml:"allow_private"`
	CAFile       string `yaml:"ca_file"`
}

// Audit is the log of who asked for what.
type Audit struct {
	// Path is a file that lines are added to; empty: they go to the log.
	Path string `yaml:"path"`
}

// Tracing is where traces of requests and attempts go.
type Tracing struct {
	Endpoint string  `yaml:"endpoint"` // of OTLP over HTTP, such as http://127.0.0.1:4318; empty: off
	Sample   float64 `yaml:"sample"`   // of the traces that begin here, the part that is kept: 0 to 1
}

// HTTP sets up the API's server.
type HTTP struct {
	// TrustedProxies are CIDR blocks whose X-Forwarded-For is believed.
	TrustedProxies []string `yaml:"trusted_proxies"`
	// Portal serves the web page for customers of regions with FJcloud.
	Portal bool `yaml:"portal"`
}

// Aliyun sets up what the dialect of that name has in common in all regions.
type Aliyun struct {
	// AccountsFile lists accounts with their access keys, buckets and roles. It is
	// read anew when it changes.
	AccountsFile string `yaml:"accounts_file"`
	// RequestsPerSecond is what an account may ask of one API process, with Burst at
	// once; negative: no bound.
	RequestsPerSecond float64 `yaml:"requests_per_second"`
	Burst             int     `yaml:"burst"`
}

// Worker sets up a worker process.
type Worker struct {
	Listen      string `yaml:"listen"`      // health and metrics; empty for none
	Concurrency int    `yaml:"concurrency"` // imports at a time
	// Memory is for the buffers of all imports together. The process needs
	// some 40 MiB more.
	Memory ByteSize `yaml:"memory"`
	Chunk  ByteSize `yaml:"chunk"` // of one range request
	// Parallel is the most range requests in flight for one import.
	Parallel int `yaml:"parallel"`
	// StallAfter is how long a range request may go without a byte.
	StallAfter time.Duration `yaml:"stall_after"`
	// Digests are computed besides SHA-1: md5, sha256, sha512.
	Digests []string `yaml:"digests"`
	// CheckpointEvery is how much an import may have to read again.
	CheckpointEvery ByteSize      `yaml:"checkpoint_every"`
	DrainTimeout    time.Duration `yaml:"drain_timeout"`
	// Scratch is a directory for images that cannot be written as they come, such
	// as a QCOW2 inside gzip. A worker's reservations in it are its own.
	Scratch string `yaml:"scratch"`
}

// Region is one region that the process serves.
type Region struct {
	ID       string        `yaml:"id"`
	Hosts    []string      `yaml:"hosts"` // of its API; the first region with FJcloud also serves all others
	FJcloud  *FJcloud      `yaml:"fjcloud"`
	Aliyun   *AliyunRegion `yaml:"aliyun"`
	Keystone *Keystone     `yaml:"keystone"`
	Objects  Objects       `yaml:"objects"`
	Images   Images        `yaml:"images"`
	MaxDisk  ByteSize      `yaml:"max_disk"` // largest virtual disk, 0 for no bound
}

// Keystone is the OpenStack cloud of a region, and who the service is there: a user
// with a password, or an application credential.
type Keystone struct {
	URL      string `yaml:"url"` // of version 3 of the API
	Username string `yaml:"username"`
	// PasswordFile holds the user's password.
	PasswordFile string `yaml:"password_file"`
	Domain       string `yaml:"domain"`  // of the user, by name
	Project      string `yaml:"project"` // the service's own, by name
	// ProjectDomain is the domain of Project, by name; empty: that of the user.
	ProjectDomain string `yaml:"project_domain"`

	ApplicationCredentialID         string `yaml:"application_credential_id"`
	ApplicationCredentialSecretFile string `yaml:"application_credential_secret_file"`

	Region    string            `yaml:"region"`    // in the catalogue; empty if it has one
	Interface string            `yaml:"interface"` // public, internal or admin
	Endpoints map[string]string `yaml:"endpoints"` // in place of the catalogue's, by type of service
	CAFile    string            `yaml:"ca_file"`
	// CacheTokens is how long a customer's token is believed without asking again,
	// and so how long a revoked one may still pass.
	CacheTokens time.Duration `yaml:"cache_tokens"`
}

// FJcloud sets up the dialect of that name.
type FJcloud struct {
	Profile       string   `yaml:"profile"`    // gen3 or classic
	ListScope     string   `yaml:"list_scope"` // domain or project
	Extensions    []string `yaml:"extensions"` // further ones, such as .raw
	LegacyOSTypes bool     `yaml:"legacy_os_types"`
	// RequiredRole is what a token must have; "*" for none. The default is "member"
	// with Keystone, where a role "reader" is for looking only.
	RequiredRole string `yaml:"required_role"`
	// TokensFile lists tokens, for regions without Keystone.
	TokensFile string `yaml:"tokens_file"`
}

// AliyunRegion sets up a region of the Aliyun dialect.
type AliyunRegion struct {
	// Endpoint is what DescribeRegions says: a host, maybe with a port. Empty: the
	// host that was asked.
	Endpoint string `yaml:"endpoint"`
	// LocalNames are names for people, by language: zh-CN, en-US, ja.
	LocalNames map[string]string `yaml:"local_names"`
	// NoImports makes the region known, but not open for imports.
	NoImports bool `yaml:"no_imports"`
	// Formats are those that ImportImage accepts.
	Formats    []string `yaml:"formats"`
	SystemDisk GiBRange `yaml:"system_disk"`
	DataDisk   GiBRange `yaml:"data_disk"`
}

// GiBRange is a range of sizes in GiB, both ends included.
type GiBRange struct {
	Min int64 `yaml:"min"`
	Max int64 `yaml:"max"`
}

// Objects is where source objects are. Exactly one member is set, but Swift and S3
// may be set together: then locations of the S3 kind are S3's.
type Objects struct {
	Directory *Directory `yaml:"directory"`
	S3        *S3        `yaml:"s3"`
	Swift     *Swift     `yaml:"swift"`
}

// Swift is that of the region's cloud.
type Swift struct {
	// AccountURL is the URL of a project's account, with {project} in it; empty: as
	// the catalogue has it.
	AccountURL string `yaml:"account_url"`
}

// Directory is a path.
type Directory struct {
	Path string `yaml:"path"`
}

// S3 is an S3 endpoint and the service's own key for it.
type S3 struct {
	Endpoint      string `yaml:"endpoint"` // URL
	Region        string `yaml:"region"`
	AccessKey     string `yaml:"access_key"`
	SecretKeyFile string `yaml:"secret_key_file"`
	PathStyle     bool   `yaml:"path_style"`
	CAFile        string `yaml:"ca_file"`
	// BucketPrefix is what the names of a project's buckets begin with. It must
	// hold {project}, unless SharedBuckets says that every project may read
	// every bucket.
	BucketPrefix  string `yaml:"bucket_prefix"`
	SharedBuckets bool   `yaml:"shared_buckets"`
}

// Images is where images are registered.
type Images struct {
	Directory    *Directory `yaml:"directory"`
	Glance       *Glance    `yaml:"glance"`
	TargetFormat string     `yaml:"target_format"` // of the stored disks: raw or qcow2
}

// Glance is that of the region's cloud.
type Glance struct{}

// Default returns the configuration without a file.
func Default() Config {
	return Config{
		Redis:   Redis{URL: secret.New("redis://127.0.0.1:6379/0"), RequireDurable: true, Mode: "server"},
		Listen:  "127.0.0.1:8080",
		Log:     Log{Level: "info"},
		Records: Records{Retention: 30 * 24 * time.Hour, KeepPartial: 24 * time.Hour},
		Limits:  Limits{Limit: Limit{Unfinished: 10000}, EventStreams: 100},
		HTTP:    HTTP{Portal: true},
		Tracing: Tracing{Sample: 1},
		Worker: Worker{
			Listen:          "127.0.0.1:8081",
			Concurrency:     4,
			Memory:          160 << 20,
			Chunk:           4 << 20,
			Parallel:        16,
			StallAfter:      10 * time.Second,
			CheckpointEvery: 64 << 20,
			DrainTimeout:    60 * time.Second,
			Scratch:         "/var/tmp",
		},
	}
}

// Load returns the defaults, overridden by the YAML file at path (none if path
// is empty) and by the environment. It does not validate.
func Load(path string, getenv func(string) string) (*Config, error) {
	cfg := Default()
	if path != "" {
		b, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("read configuration: %w", err)
		}
		if err := yaml.NewDecoder(bytes.NewReader(b), yaml.Strict()).Decode(&cfg); err != nil {
			return nil, fmt.Errorf("read configuration %s: %w", path, err)
		}
	}
	cfg.SetDefaults()
	var problems []error
	for _, v := range Variables {
		if s := getenv(v.Name); s != "" {
			if err := v.set(&cfg, s); err != nil {
				problems = append(problems, fmt.Errorf("environment %s: %w", v.Name, err))
			}
		}
	}
	if cfg.Operator.Token.IsZero() && cfg.Operator.TokenFile != "" {
		t, err := secret.FromFile(cfg.Operator.TokenFile)
		if err != nil {
			problems = append(problems, fmt.Errorf("operator.token_file: %w", err))
		}
		cfg.Operator.Token = t
	}
	if err := errors.Join(problems...); err != nil {
		return nil, err
	}
	return &cfg, nil
}

// SetDefaults fills in what the parts of c leave open. Load does so by itself.
func (c *Config) SetDefaults() {
	if a := c.Aliyun; a != nil {
		a.RequestsPerSecond = cmp.Or(a.RequestsPerSecond, 50)
		a.Burst = cmp.Or(a.Burst, 100)
	}
	for i := range c.Regions {
		c.Regions[i].setDefaults()
	}
}

func (r *Region) setDefaults() {
	if a := r.Aliyun; a != nil {
		if len(a.Formats) == 0 {
			a.Formats = []string{"RAW", "VHD", "QCOW2"}
		}
		a.SystemDisk = cmp.Or(a.SystemDisk, GiBRange{5, 500})
		a.DataDisk = cmp.Or(a.DataDisk, GiBRange{5, 1000})
	}
	if r.Images.TargetFormat == "" {
		r.Images.TargetFormat = "raw"
	}
	if k := r.Keystone; k != nil {
		k.Domain = cmp.Or(k.Domain, "Default")
		k.Interface = cmp.Or(k.Interface, "public")
		k.CacheTokens = cmp.Or(k.CacheTokens, 30*time.Second)
	}
	if f := r.FJcloud; f != nil {
		if f.Profile == "" {
			f.Profile = "gen3"
		}
		if f.ListScope == "" {
			f.ListScope = "domain"
		}
		if f.RequiredRole == "" && r.Keystone != nil {
			f.RequiredRole = "member"
		}
	}
	if s := r.Objects.S3; s != nil && s.BucketPrefix == "" && !s.SharedBuckets {
		s.BucketPrefix = "{project}-"
	}
}

var regionID = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,62}$`)

// Validate reports every problem of the configuration, one error each, joined.
func (c *Config) Validate() error {
	var problems []error
	check := func(ok bool, format string, args ...any) {
		if !ok {
			problems = append(problems, fmt.Errorf(format, args...))
		}
	}
	check(!c.Redis.URL.IsZero(), "redis.url is missing")
	check(slices.Contains([]string{"debug", "info", "warn", "error"}, c.Log.Level), "log.level %q is none of debug, info, warn, error", c.Log.Level)
	check(c.Records.Retention >= 24*time.Hour, "records.retention is below 24h")
	check(c.Records.KeepPartial >= 0 && c.Records.KeepPartial < c.Records.Retention, "records.keep_partial is negative, or not below records.retention")
	check(slices.Contains([]string{"server", "sentinel", "cluster"}, c.Redis.Mode), "redis.mode %q is none of server, sentinel, cluster", c.Redis.Mode)
	check(c.Redis.Replicas >= 0, "redis.replicas is negative")
	check(c.Limits.Unfinished >= 0 && c.Limits.Running >= 0, "limits: a number is negative")
	check(c.Limits.EventStreams >= 0, "limits.event_streams is negative")
	check(c.Tracing.Endpoint == "" || isURL(c.Tracing.Endpoint), "tracing.endpoint is no http or https URL")
	check(c.Tracing.Sample >= 0 && c.Tracing.Sample <= 1, "tracing.sample is outside of 0 to 1")
	hooks := map[string]bool{}
	for i, h := range c.Webhooks {
		at := fmt.Sprintf("webhooks[%d] (%s)", i, h.ID)
		check(!hooks[h.ID], "%s: id is used twice", at)
		hooks[h.ID] = true
		h.validate(at, check)
	}
	w := c.Worker
	check(w.Concurrency >= 1, "worker.concurrency is below 1")
	check(w.Chunk >= 1<<20 && w.Chunk <= 64<<20, "worker.chunk %s is outside of 1MiB to 64MiB", w.Chunk)
	check(w.Memory >= 2*w.Chunk, "worker.memory %s holds fewer than two chunks of %s", w.Memory, w.Chunk)
	check(w.Parallel >= 1 && w.Parallel <= 64, "worker.parallel %d is outside of 1 to 64", w.Parallel)
	check(w.StallAfter >= time.Second, "worker.stall_after is below 1s")
	check(w.CheckpointEvery >= 1<<20, "worker.checkpoint_every is below 1MiB")
	check(w.DrainTimeout >= time.Second, "worker.drain_timeout is below 1s")
	check(w.Scratch != "", "worker.scratch is missing")
	for _, d := range w.Digests {
		check(slices.Contains([]string{"md5", "sha256", "sha512"}, d), "worker.digests: %q is none of md5, sha256, sha512", d)
	}
	if a := c.Aliyun; a != nil {
		check(a.AccountsFile != "", "aliyun.accounts_file is missing")
		check(a.Burst >= 1, "aliyun.burst is below 1")
	}
	check(len(c.Regions) > 0, "regions: there is none")
	ids, hosts := map[string]bool{}, map[string]bool{}
	for i, r := range c.Regions {
		at := fmt.Sprintf("regions[%d] (%s)", i, r.ID)
		check(regionID.MatchString(r.ID), "%s: id is not of lower-case letters, digits and dashes", at)
		check(!ids[r.ID], "%s: id is used twice", at)
		ids[r.ID] = true
		for _, h := range r.Hosts {
			check(!hosts[strings.ToLower(h)], "%s: host %s is used twice", at, h)
			hosts[strings.ToLower(h)] = true
		}
		check(r.Aliyun == nil || c.Aliyun != nil, "%s: aliyun needs aliyun.accounts_file at the top level", at)
		r.validate(at, check)
	}
	return errors.Join(problems...)
}

func (r *Region) validate(at string, check func(ok bool, format string, args ...any)) {
	if f := r.FJcloud; f != nil {
		check(f.Profile == "gen3" || f.Profile == "classic", "%s: fjcloud.profile %q is neither gen3 nor classic", at, f.Profile)
		check(f.ListScope == "domain" || f.ListScope == "project", "%s: fjcloud.list_scope %q is neither domain nor project", at, f.ListScope)
		check((f.TokensFile == "") == (r.Keystone != nil), "%s: needs either keystone or fjcloud.tokens_file", at)
	}
	if a := r.Aliyun; a != nil {
		a.validate(at, check)
	}
	if k := r.Keystone; k != nil {
		k.validate(at, check)
	}
	check((r.Objects.Directory == nil) == (r.Objects.S3 != nil || r.Objects.Swift != nil), "%s: objects needs either directory, or swift, s3 or both of them", at)
	check(r.Objects.Swift == nil || r.Keystone != nil, "%s: objects.swift needs keystone", at)
	if s := r.Objects.Swift; s != nil && s.AccountURL != "" {
		check(strings.Contains(s.AccountURL, "{project}"), "%s: objects.swift.account_url does not hold {project}", at)
	}
	if d := r.Objects.Directory; d != nil {
		check(d.Path != "", "%s: objects.directory.path is missing", at)
	}
	if s := r.Objects.S3; s != nil {
		check(strings.HasPrefix(s.Endpoint, "http://") || strings.HasPrefix(s.Endpoint, "https://"), "%s: objects.s3.endpoint is no http or https URL", at)
		check(s.AccessKey != "" && s.SecretKeyFile != "", "%s: objects.s3 needs access_key and secret_key_file", at)
		check(s.SharedBuckets || strings.Contains(s.BucketPrefix, "{project}"), "%s: objects.s3.bucket_prefix does not hold {project}, and shared_buckets is not set", at)
	}
	check((r.Images.Directory == nil) != (r.Images.Glance == nil), "%s: images needs exactly one of directory and glance", at)
	if d := r.Images.Directory; d != nil {
		check(d.Path != "", "%s: images.directory.path is missing", at)
	}
	check(r.Images.Glance == nil || r.Keystone != nil, "%s: images.glance needs keystone", at)
	check(r.Images.TargetFormat == "raw" || r.Images.TargetFormat == "qcow2", "%s: images.target_format %q is neither raw nor qcow2", at, r.Images.TargetFormat)
	check(r.MaxDisk >= 0, "%s: max_disk is negative", at)
}

func (h *Webhook) validate(at string, check func(ok bool, format string, args ...any)) {
	check(regionID.MatchString(h.ID), "%s: id is not of lower-case letters, digits and dashes", at)
	check(strings.HasPrefix(h.URL, "https://") || h.AllowPrivate && strings.HasPrefix(h.URL, "http://"), "%s: url is no https URL (http needs allow_private)", at)
	check(h.SecretFile != "", "%s: secret_file is missing", at)
	for _, d := range h.Dialects {
		check(d == "fjcloud" || d == "aliyun", "%s: dialects: %q is neither fjcloud nor aliyun", at, d)
	}
	for _, s := range h.States {
		check(slices.Contains([]string{"queued", "processing", "succeeded", "failed", "cancelling", "canceled"}, s), "%s: states: %q is no state", at, s)
	}
}

func isURL(s string) bool { return strings.HasPrefix(s, "http://") || strings.HasPrefix(s, "https://") }

func (a *AliyunRegion) validate(at string, check func(ok bool, format string, args ...any)) {
	for _, f := range a.Formats {
		check(slices.Contains([]string{"RAW", "VHD", "QCOW2", "VMDK", "VHDX", "VDI"}, f), "%s: aliyun.formats: %q is none of RAW, VHD, QCOW2, VMDK, VHDX, VDI", at, f)
	}
	for l := range a.LocalNames {
		check(slices.Contains([]string{"zh-CN", "en-US", "ja"}, l), "%s: aliyun.local_names: %q is none of zh-CN, en-US, ja", at, l)
	}
	for name, r := range map[string]GiBRange{"system_disk": a.SystemDisk, "data_disk": a.DataDisk} {
		check(1 <= r.Min && r.Min <= r.Max && r.Max <= 65536, "%s: aliyun.%s is no range of sizes from 1 to 65536 GiB", at, name)
	}
}

func (k *Keystone) validate(at string, check func(ok bool, format string, args ...any)) {
	check(strings.HasPrefix(k.URL, "http://") || strings.HasPrefix(k.URL, "https://"), "%s: keystone.url is no http or https URL", at)
	user, credential := k.Username != "", k.ApplicationCredentialID != ""
	check(user != credential, "%s: keystone needs either username or application_credential_id", at)
	if user {
		check(k.PasswordFile != "" && k.Project != "", "%s: keystone.username needs password_file and project", at)
	}
	if credential {
		check(k.ApplicationCredentialSecretFile != "", "%s: keystone.application_credential_id needs application_credential_secret_file", at)
	}
	check(slices.Contains([]string{"public", "internal", "admin"}, k.Interface), "%s: keystone.interface %q is none of public, internal, admin", at, k.Interface)
	check(k.CacheTokens >= time.Second && k.CacheTokens <= time.Minute, "%s: keystone.cache_tokens is outside of 1s to 1m", at)
	for service, u := range k.Endpoints {
		check(slices.Contains([]string{"image", "object-store"}, service), "%s: keystone.endpoints: %q is none of image, object-store", at, service)
		check(strings.HasPrefix(u, "http://") || strings.HasPrefix(u, "https://"), "%s: keystone.endpoints.%s is no http or https URL", at, service)
	}
}
