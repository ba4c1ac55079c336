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

	"vmimport/imageapi/dirimages"
	"vmimport/internal/config"
	"vmimport/internal/secret"
	"vmimport/storage"
	"vmimport/storage/dirstore"
	"vmimport/storage/s3store"
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
	return zerolog.New(w).Level(l).With().Timestamp().Str("component", component).Logger()
}

// parts is what API and worker have in common.
type parts struct {
	rdb     redis.UniversalClient
	store   *redisstore.Store
	regions map[string]pipeline.Region
	maxDisk map[string]int64
	images  []*dirimages.Images // the regions', which have to be closed and swept
}

// open makes the parts that cfg describes. Of all addresses in it none is
// contacted; directories are made.
func open(cfg *config.Config) (*parts, error) {
	p := &parts{regions: map[string]pipeline.Region{}, maxDisk: map[string]int64{}}
	for _, rc := range cfg.Regions {
		if err := p.openRegion(rc); err != nil {
			return nil, errors.Join(fmt.Errorf("region %s: %w", rc.ID, err), p.close())
		}
	}
	rdb, err := openRedis(cfg.Redis.URL)
	if err != nil {
		return nil, errors.Join(err, p.close())
	}
	p.rdb, p.store = rdb, redisstore.New(rdb, cfg.Records.Retention)
	return p, nil
}

func (p *parts) close() error {
	var errs []error
	for _, i := range p.images {
		errs = append(errs, i.Close())
	}
	if p.rdb != nil {
		errs = append(errs, p.rdb.Close())
	}
	return errors.Join(errs...)
}

func openRedis(url secret.Text) (redis.UniversalClient, error) {
	opt, err := redis.ParseURL(url.Reveal())
	if err != nil {
		// The error of ParseURL may quote the URL, and so the password.
		return nil, errors.New("redis.url is not a valid Redis URL")
	}
	// Room for the heartbeats and reads of all imports beside asynq's own.
	opt.PoolSize = 64
	return redis.NewClient(opt), nil
}

func (p *parts) openRegion(rc config.Region) error {
	objects, err := openObjects(rc.Objects)
	if err != nil {
		return err
	}
	images, err := dirimages.New(rc.Images.Directory.Path, dirimages.Options{})
	if err != nil {
		return err
	}
	p.images = append(p.images, images)
	p.regions[rc.ID] = pipeline.Region{Objects: objects, Images: images}
	p.maxDisk[rc.ID] = int64(rc.MaxDisk)
	return nil
}

func openObjects(oc config.Objects) (storage.Store, error) {
	if oc.Directory != nil {
		return dirstore.New(oc.Directory.Path)
	}
	key, err := secret.FromFile(oc.S3.SecretKeyFile)
	if err != nil {
		return nil, err
	}
	return s3store.New(s3store.Options{
		Endpoint:      oc.S3.Endpoint,
		Region:        oc.S3.Region,
		AccessKey:     oc.S3.AccessKey,
		Secret:        key,
		PathStyle:     oc.S3.PathStyle,
		CAFile:        oc.S3.CAFile,
		BucketPrefix:  oc.S3.BucketPrefix,
		SharedBuckets: oc.S3.SharedBuckets,
	})
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

// redisReady fails while Redis does not answer, or (if required) would lose
// what it accepted.
func (p *parts) redisReady(requireDurable bool) func(context.Context) error {
	return func(ctx context.Context) error {
		if err := p.rdb.Ping(ctx).Err(); err != nil {
			return errors.New("Redis does not answer")
		}
		if !requireDurable {
			return nil
		}
		problems, err := p.store.Durability(ctx)
		if err != nil {
			return errors.New("Redis does not tell how it is set up")
		}
		if len(problems) > 0 {
			return fmt.Errorf("Redis may lose accepted imports: %v", problems)
		}
		return nil
	}
}
