package app

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"vmimport/imageapi/dirimages"
	"vmimport/internal/auth/ramfile"
	"vmimport/internal/config"
	"vmimport/internal/fault"
	"vmimport/internal/openstack"
	"vmimport/internal/scratch"
	"vmimport/tasks/redisstore"
)

// Finding is one thing that a diagnosis looked at.
type Finding struct {
	Check   string `json:"check"`
	OK      bool   `json:"ok"`
	Message string `json:"message,omitempty"` // what was found
	Remedy  string `json:"remedy,omitempty"`  // if not OK
}

// diagnoseTimeout bounds each check.
const diagnoseTimeout = 10 * time.Second

// maxSkew is how far clocks may be apart before logs cannot be read together and
// object stores come near to refusing signatures. Imports go by Redis's clock.
const maxSkew = 30 * time.Second

// Misconfigured is the diagnosis of a configuration that cannot be used, for an
// error of config.Load or Validate: a finding for each problem.
func Misconfigured(err error) []Finding {
	problems := []error{err}
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		problems = joined.Unwrap()
	}
	var findings []Finding
	for _, p := range problems {
		findings = append(findings, Finding{Check: "configuration", Message: strings.TrimSpace(p.Error()), Remedy: "Correct the configuration file or the environment."})
	}
	return findings
}

// Diagnose checks everything that a valid cfg makes the service depend on. It
// changes nothing that lasts, and checks all of it whatever it finds.
func Diagnose(ctx context.Context, cfg *config.Config) []Finding {
	d := &diagnosis{ctx: ctx, findings: []Finding{{Check: "configuration", OK: true}}}
	d.redis(cfg.Redis)
	d.look("scratch", "Correct worker.scratch, or make room there.", func(context.Context) (string, error) { return scratch.Check(cfg.Worker.Scratch) })
	if ac := cfg.Aliyun; ac != nil {
		d.look("accounts", "Correct aliyun.accounts_file.", func(context.Context) (string, error) { return checkAccounts(ac.AccountsFile) })
	}
	for _, rc := range cfg.Regions {
		d.region(rc)
	}
	return d.findings
}

// checker is what a dependency does for a diagnosis: look whether it could do its work,
// and change nothing.
type checker interface {
	Check(ctx context.Context) error
}

// diagnosis collects findings under the ctx of one Diagnose.
type diagnosis struct {
	ctx      context.Context
	findings []Finding
}

// look does one check. What it says is shown, and so is what its error says,
// with the remedy that the error knows or else the one given here.
func (d *diagnosis) look(check, remedy string, do func(context.Context) (string, error)) (ok bool) {
	ctx, cancel := context.WithTimeout(d.ctx, diagnoseTimeout)
	defer cancel()
	message, err := do(ctx)
	f := Finding{Check: check, OK: err == nil, Message: message}
	if err != nil {
		f.Message, f.Remedy = err.Error(), remedy
	}
	if e, ok := errors.AsType[*fault.Error](err); ok {
		f.Message = strings.TrimSuffix(e.Message, ".")
		if e.Err != nil {
			f.Message += ": " + e.Err.Error()
		}
		if e.Remedy != "" {
			f.Remedy = e.Remedy
		}
	}
	d.findings = append(d.findings, f)
	return f.OK
}

func (d *diagnosis) redis(rc config.Redis) {
	const remedy = "Start Redis, or correct redis.url."
	rdb, err := openRedis(rc.URL)
	if err != nil {
		d.look("redis", remedy, func(context.Context) (string, error) { return "", err })
		return
	}
	defer rdb.Close()
	if !d.look("redis", remedy, func(ctx context.Context) (string, error) { return "", rdb.Ping(ctx).Err() }) {
		return
	}
	d.look("redis durability", "Set Redis so. Only with redis.require_durable false does the service run without, and may then lose imports.",
		func(ctx context.Context) (string, error) { return durability(ctx, rdb, rc.RequireDurable) })
	d.look("clock", "Synchronise the clocks of this machine and of Redis's.",
		func(ctx context.Context) (string, error) { return compareClocks(ctx, rdb) })
}

// checkAccounts reads the file, and says what is in it.
func checkAccounts(path string) (string, error) {
	accounts, err := ramfile.Open(path, ramfile.Options{})
	if err != nil {
		return "", err
	}
	return accounts.Summary().String(), nil
}

func (d *diagnosis) region(rc config.Region) {
	at := "region " + rc.ID + ": "
	var cloud *openstack.Cloud
	if rc.Keystone != nil && !d.look(at+"keystone", "Correct the region's keystone.", func(ctx context.Context) (message string, err error) {
		if cloud, err = openCloud(rc.Keystone); err != nil {
			return "", err
		}
		_, err = cloud.ProjectID(ctx)
		return "", err
	}) {
		return // what follows would find the same again
	}
	if rc.FJcloud != nil {
		d.look(at+"tokens", "Correct fjcloud.tokens_file.", func(ctx context.Context) (string, error) {
			tokens, err := openTokens(rc, cloud)
			if err != nil {
				return "", err
			}
			return checkIfAble(ctx, tokens)
		})
	}
	d.look(at+"objects", "Correct the region's objects.", func(ctx context.Context) (string, error) {
		store, err := openObjects(rc.Objects, cloud)
		if err != nil {
			return "", err
		}
		return checkIfAble(ctx, store)
	})
	d.look(at+"images", "Correct the region's images.", func(ctx context.Context) (string, error) {
		if rc.Images.Directory != nil { // which opening would make
			return "", dirimages.Check(ctx, rc.Images.Directory.Path)
		}
		images, err := openImages(rc, cloud)
		if err != nil {
			return "", err
		}
		defer images.Close()
		return checkIfAble(ctx, images)
	})
}

// checkIfAble has a dependency look at itself, if it is one that does.
func checkIfAble(ctx context.Context, dependency any) (string, error) {
	if c, ok := dependency.(checker); ok {
		return "", c.Check(ctx)
	}
	return "", nil
}

// durability looks whether Redis would keep what it accepts. Where that is not
// required, it says so and is content.
func durability(ctx context.Context, rdb redis.UniversalClient, required bool) (string, error) {
	problems, err := redisstore.New(rdb, redisstore.Options{}).Durability(ctx)
	if len(problems) > 0 {
		err = errors.New(strings.Join(problems, "; "))
	}
	if err != nil && !required {
		return "not required (" + err.Error() + ")", nil
	}
	return "", err
}

func compareClocks(ctx context.Context, rdb redis.UniversalClient) (string, error) {
	before := time.Now()
	there, err := rdb.Time(ctx).Result()
	if err != nil {
		return "", err
	}
	// The answer was made at some time between asking and now.
	half := time.Since(before) / 2
	skew := there.Sub(before.Add(half)).Abs()
	if skew-half > maxSkew {
		return "", fmt.Errorf("this machine's clock and that of Redis differ by %s", skew.Round(time.Millisecond))
	}
	return "differs by " + skew.Round(time.Millisecond).String(), nil
}
