// Package devstack is the whole service in one process: API, one worker, a
// Redis of its own, a directory as object store and a directory as image
// service. It is made of the same parts as the real thing, with nothing of its
// own on the path of an import.
package devstack

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"vmimport/internal/app"
	"vmimport/internal/auth/localtokens"
	"vmimport/internal/config"
	"vmimport/internal/httpapi/objects"
	"vmimport/internal/secret"
	"vmimport/storage/dirstore"
)

// Options set up a Stack.
type Options struct {
	Listen string // host:port; port 0 takes a free one
	// Data is the directory that everything is kept in:
	//
	//	objects/          source objects, a folder for each container
	//	images/           imported images
	//	redis/            records and queue
	//	accounts.yaml     accounts of the ECS ImportImage API
	//	audit.log         who asked for what
	//	credentials.env   how to reach the service
	Data string
	Log  zerolog.Logger
}

// The regions of the two dialects, and the domain and container of standalone.
const (
	Region       = "jp-east-3"
	AliyunRegion = "cn-hangzhou"
	domain       = "default"
	container    = "images"
)

// Stack is a running service.
type Stack struct {
	Credentials *Credentials
	Data        string // absolute path of Options.Data
	Images      string // directory of the image service
	Durable     bool   // whether imports outlive the process

	// What end has to stop; nil where there is nothing yet, or nothing any more.
	unlock func()
	ln     net.Listener
	redis  *embedded
	api    *app.API
	worker *app.Worker
}

// Start makes a Stack in opt.Data, which no other process may use at the same
// time. ctx is for the start alone. A Stack that was started must be run.
func Start(ctx context.Context, opt Options) (*Stack, error) {
	data, err := filepath.Abs(opt.Data)
	if err != nil {
		return nil, fmt.Errorf("find data directory: %w", err)
	}
	s := &Stack{Data: data, Images: filepath.Join(data, "images")}
	if err := s.start(ctx, opt); err != nil {
		s.end()
		return nil, err
	}
	return s, nil
}

func (s *Stack) start(ctx context.Context, opt Options) (err error) {
	if err := os.MkdirAll(s.Data, 0o700); err != nil {
		return fmt.Errorf("make data directory: %w", err)
	}
	if s.unlock, err = lock(s.Data); err != nil {
		return err
	}
	if s.Credentials, err = loadCredentials(s.Data); err != nil {
		return err
	}
	switch s.ln, err = net.Listen("tcp", opt.Listen); {
	case errors.Is(err, unix.EADDRINUSE):
		return fmt.Errorf("another program listens on %s; choose another address with --listen (port 0 takes a free one)", opt.Listen)
	case err != nil:
		return err // which says that it is about listening, and where
	}
	if s.redis, err = startRedis(ctx, filepath.Join(s.Data, "redis"), opt.Log); err != nil {
		return err
	}
	s.Durable = s.redis.durable
	if err := s.build(opt.Log); err != nil {
		return err
	}
	s.Credentials.reach(s.ln.Addr())
	return s.Credentials.save(s.Data)
}

// build makes API and worker.
func (s *Stack) build(log zerolog.Logger) error {
	c := s.Credentials
	tokens, err := localtokens.New([]localtokens.Entry{{
		SHA256: localtokens.Digest(c.Token), User: "standalone", Project: c.ProjectID, Domain: domain, Roles: []string{"member"},
	}})
	if err != nil {
		return err
	}
	store, err := dirstore.New(s.objects())
	if err != nil {
		return err
	}
	if err := store.MakeContainer(c.ProjectID, container); err != nil {
		return err
	}
	// Nobody uploads yet, so what looks like an upload was cut off by a crash.
	if err := store.SweepPuts(c.ProjectID, time.Now()); err != nil {
		return err
	}
	if err := saveAccounts(s.Data, c); err != nil {
		return err
	}
	cfg := s.config()
	if err := cfg.Validate(); err != nil {
		return err
	}
	if s.api, err = app.NewAPI(cfg, app.APIOptions{Tokens: tokens, Objects: objects.New(store, tokens)}, log.With().Str("part", "api").Logger()); err != nil {
		return err
	}
	s.worker, err = app.NewWorker(cfg, log.With().Str("part", "worker").Logger())
	return err
}

func (s *Stack) objects() string { return filepath.Join(s.Data, "objects") }

func (s *Stack) config() *config.Config {
	cfg := config.Default()
	cfg.Redis.URL, cfg.Redis.RequireDurable = s.redis.url, s.redis.durable
	cfg.Worker.Scratch = filepath.Join(s.Data, "scratch")
	cfg.Audit.Path = filepath.Join(s.Data, "audit.log")
	cfg.Operator.Token = secret.New(s.Credentials.OperatorToken)
	cfg.Aliyun = &config.Aliyun{AccountsFile: filepath.Join(s.Data, accountsFile), RequestsPerSecond: -1}
	objects := config.Objects{Directory: &config.Directory{Path: s.objects()}}
	images := config.Images{Directory: &config.Directory{Path: s.Images}, TargetFormat: "raw"}
	cfg.Regions = []config.Region{{
		ID: Region,
		FJcloud: &config.FJcloud{
			Profile: "gen3", ListScope: "domain",
			Extensions: []string{".raw", ".img", ".vhd", ".vhdx", ".vdi", ".ova", ".gz"},
			TokensFile: "(made by standalone)",
		},
		Objects: objects,
		Images:  images,
	}, {
		ID: AliyunRegion,
		Aliyun: &config.AliyunRegion{
			LocalNames: map[string]string{"zh-CN": "华东 1（杭州）", "en-US": "China (Hangzhou)", "ja": "中国 (杭州)"},
			Formats:    []string{"RAW", "VHD", "QCOW2", "VMDK", "VHDX", "VDI"},
		},
		Objects: objects,
		Images:  images,
	}}
	cfg.SetDefaults()
	return &cfg
}

// Run serves until ctx ends, and returns when everything has stopped in order:
// imports that run are given back to the queue, and the next Stack in the same
// directory goes on with them.
func (s *Stack) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.api.Run(ctx, s.ln) })
	g.Go(func() error { return s.worker.Run(ctx, nil) })
	err := g.Wait()
	s.ln, s.api, s.worker = nil, nil, nil // closed by their Run
	s.end()
	return err
}

// end stops what was begun, Redis after all that uses it.
func (s *Stack) end() {
	if s.ln != nil {
		_ = s.ln.Close()
	}
	if s.api != nil {
		_ = s.api.Close()
	}
	if s.worker != nil {
		_ = s.worker.Close()
	}
	if s.redis != nil {
		s.redis.stop()
	}
	if s.unlock != nil {
		s.unlock()
	}
}
