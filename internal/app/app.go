// Package app puts the service together: a configuration goes in, an API or a
// worker comes out. It is the one place that knows every adapter.
package app

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/rs/zerolog"

	"vmimport/imageapi"
	"vmimport/imageapi/dirimages"
	"vmimport/imageapi/glance"
	"vmimport/internal/config"
	"vmimport/internal/openstack"
	"vmimport/internal/secret"
	"vmimport/storage"
	"vmimport/storage/dirstore"
	"vmimport/storage/s3store"
	"vmimport/storage/swiftstore"
	"vmimport/tasks/pipeline"
	"vmimport/tasks/redisstore"
)

// NewLogger returns the log of a process: JSON lines on w.
func NewLogger(w io.Writer, level, component string) zerolog.Logger {
	l, err := zerolog.ParseLevel(level)
	if err != nil {
		l = zerolog.InfoLevel // Validate has said so
	}
	zerolog.TimeFieldFormat = time.RFC3339Nano
	log := zerolog.New(w).Level(l).With().Timestamp().Str("component", component).Logger()
	redis.SetLogger(redisLog{log})
	return log
}

// parts is what API and worker have in common.
type parts struct {
	rdb     redis.UniversalClient
	store   *redisstore.Store
	regions map[string]pipeline.Region
	clouds  map[string]*openstack.Cloud // of the regions that have one
	images  []images                    // the regions', which have to be closed

	sweepers []sweeper
}

// sweeper is where tasks may leave something.
type sweeper interface {
	// Sweep removes what tasks have left that are not unfinished any more, and counts them.
	Sweep(ctx context.Context, unfinished func(taskID string) (bool, error)) (int, error)
}

var _ sweeper = (*dirstore.Store)(nil)

// images is an image service with what a process owes it.
type images interface {
	imageapi.Images
	sweeper
	Close() error
}

// open makes the parts that cfg describes. Of all addresses in it none is
// contacted; directories are made.
func open(cfg *config.Config) (*parts, error) {
	p := &parts{regions: map[string]pipeline.Region{}, clouds: map[string]*openstack.Cloud{}}
	for _, rc := range cfg.Regions {
		if err := p.openRegion(rc); err != nil {
			return nil, errors.Join(fmt.Errorf("region %s: %w", rc.ID, err), p.Close())
		}
	}
	rdb, err := openRedis(cfg.Redis)
	if err != nil {
		return nil, errors.Join(err, p.Close())
	}
	p.rdb, p.store = rdb, redisstore.New(rdb, redisstore.Options{Retention: cfg.Records.Retention, Replicas: cfg.Redis.Replicas})
	return p, nil
}

// Close lets go of what New opened. Run does so itself; this is for an API or
// Worker that is not run.
func (p *parts) Close() error {
	var errs []error
	for _, i := range p.images {
		errs = append(errs, i.Close())
	}
	if p.rdb != nil {
		errs = append(errs, p.rdb.Close())
	}
	return errors.Join(errs...)
}

func (p *parts) openRegion(rc config.Region) error {
	cloud, err := openCloud(rc.Keystone)
	if err != nil {
		return err
	}
	objects, err := openObjects(rc.Objects, cloud)
	if err != nil {
		return err
	}
	images, err := openImages(rc, cloud)
	if err != nil {
		return err
	}
	p.clouds[rc.ID] = cloud
	p.images = append(p.images, images)
	p.regions[rc.ID] = pipeline.Region{Objects: objects, Images: images, Target: targetOf(objects), MaxDisk: int64(rc.MaxDisk)}
	if s, ok := objects.(sweeper); ok {
		p.sweepers = append(p.sweepers, s)
	}
	p.sweepers = append(p.sweepers, images)
	return nil
}

// openCloud returns nil for a region without a cloud.
func openCloud(kc *config.Keystone) (*openstack.Cloud, error) {
	if kc == nil {
		return nil, nil
	}
	o := openstack.Options{
		AuthURL:                 kc.URL,
		Username:                kc.Username,
		UserDomain:              kc.Domain,
		Project:                 kc.Project,
		ProjectDomain:           kc.ProjectDomain,
		ApplicationCredentialID: kc.ApplicationCredentialID,
		Region:                  kc.Region,
		Interface:               kc.Interface,
		Endpoints:               kc.Endpoints,
		CAFile:                  kc.CAFile,
	}
	var err error
	if kc.Username != "" {
		o.Password, err = secret.FromFile(kc.PasswordFile)
	} else {
		o.ApplicationCredentialSecret, err = secret.FromFile(kc.ApplicationCredentialSecretFile)
	}
	if err != nil {
		return nil, err
	}
	return openstack.New(o)
}

func openImages(rc config.Region, cloud *openstack.Cloud) (images, error) {
	if rc.Images.Glance != nil {
		return glance.New(glance.Options{Cloud: cloud, Region: rc.ID})
	}
	return dirimages.New(rc.Images.Directory.Path, dirimages.Options{})
}

func openObjects(oc config.Objects, cloud *openstack.Cloud) (storage.Store, error) {
	switch {
	case oc.Directory != nil:
		return dirstore.New(oc.Directory.Path)
	case oc.Swift == nil:
		return openS3(oc.S3)
	}
	swift, err := swiftstore.New(swiftstore.Options{Cloud: cloud, AccountURL: oc.Swift.AccountURL})
	if err != nil || oc.S3 == nil {
		return swift, err
	}
	s3, err := openS3(oc.S3)
	return swiftAndS3{swift, s3}, err
}

// targetOf returns where exports write to, nil if that is nowhere: they name containers of
// Swift's accounts.
func targetOf(objects storage.Store) storage.Target {
	switch s := objects.(type) {
	case storage.Target:
		return s
	case swiftAndS3:
		return s.swift
	}
	return nil
}

func openS3(sc *config.S3) (*s3store.Store, error) {
	key, err := secret.FromFile(sc.SecretKeyFile)
	if err != nil {
		return nil, err
	}
	return s3store.New(s3store.Options{
		Endpoint:      sc.Endpoint,
		Region:        sc.Region,
		AccessKey:     sc.AccessKey,
		Secret:        key,
		PathStyle:     sc.PathStyle,
		CAFile:        sc.CAFile,
		BucketPrefix:  sc.BucketPrefix,
		SharedBuckets: sc.SharedBuckets,
	})
}

// swiftAndS3 is a region that has both: whose names a location has says where it is.
type swiftAndS3 struct {
	swift *swiftstore.Store
	s3    *s3store.Store
}

// Open implements storage.Store.
func (s swiftAndS3) Open(ctx context.Context, loc storage.Location) (storage.Object, error) {
	if loc.API == "s3" {
		return s.s3.Open(ctx, loc)
	}
	return s.swift.Open(ctx, loc)
}

// Check implements checker.
func (s swiftAndS3) Check(ctx context.Context) error {
	return errors.Join(s.swift.Check(ctx), s.s3.Check(ctx))
}

// instance names this process: unique among those that run, and telling where.
func instance() string {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	var salt [3]byte
	_, _ = rand.Read(salt[:]) // never fails
	return fmt.Sprintf("%s-%d-%s", host, os.Getpid(), hex.EncodeToString(salt[:]))
}
