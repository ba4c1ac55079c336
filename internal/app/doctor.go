package app

import (
	"context"
	"errors"
	"strings"
	"time"

	"vmimport/imageapi/dirimages"
	"vmimport/internal/auth/ramfile"
	"vmimport/internal/config"
	"vmimport/internal/fault"
	"vmimport/internal/openstack"
	"vmimport/internal/tracing"
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
	d.machine(cfg)
	if ac := cfg.Aliyun; ac != nil {
		d.look("accounts", "Correct aliyun.accounts_file.", func(context.Context) (string, error) { return checkAccounts(ac.AccountsFile) })
	}
	for _, rc := range cfg.Regions {
		d.region(rc)
	}
	for _, wc := range cfg.Webhooks {
		d.webhook(wc)
	}
	if endpoint := cfg.Tracing.Endpoint; endpoint != "" {
		d.look("tracing", "Start the collector, or correct tracing.endpoint.", func(ctx context.Context) (string, error) { return "", tracing.Check(ctx, endpoint) })
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
		if e.Evidence != "" {
			f.Message += " (" + e.Evidence + ")"
		}
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
	if kc := rc.Keystone; kc != nil {
		d.serverClock(at+"clock of keystone", kc.URL, kc.CAFile)
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
	reached := d.look(at+"objects", "Correct the region's objects.", func(ctx context.Context) (string, error) {
		store, err := openObjects(rc.Objects, cloud)
		if err != nil {
			return "", err
		}
		return checkIfAble(ctx, store)
	})
	if s3 := rc.Objects.S3; s3 != nil && reached {
		d.serverClock(at+"clock of objects", s3.Endpoint, s3.CAFile)
	}
	d.look(at+"images", "Correct the region's images.", func(ctx context.Context) (string, error) {
		if rc.Images.Directory != nil { // which opening would make
			if err := dirimages.Check(ctx, rc.Images.Directory.Path); err != nil {
				return "", err
			}
			free, err := freeBytes(rc.Images.Directory.Path)
			return free.String() + " free", err
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
