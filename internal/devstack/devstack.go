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

	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"

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
	//	credentials.env   how to reach the service
	Data string
	Log  zerolog.Logger
}

// The region, domain and container of standalone.
const (
	Region    = "jp-east-3"
	domain    = "default"
	container = "images"
)

// Stack is a running service.
type Stack struct {
	Credentials *Credentials
	Images      string // directory of the image service
	Durable     bool   // whether imports outlive the process

	api    *app.API
	worker *app.Worker
	redis  *embedded
	ln     net.Listener
	unlock func()
	stop   context.CancelFunc // of Redis, after all others
}

// Start makes a Stack in opt.Data. Run serves it; a Stack that was started must
// be run, if only with a context that is done.
func Start(ctx context.Context, opt Options) (_ *Stack, err error) {
	data, err := filepath.Abs(opt.Data)
	if err != nil {
		return nil, fmt.Errorf("find data directory: %w", err)
	}
	if err := os.MkdirAll(data, 0o700); err != nil {
		return nil, fmt.Errorf("make data directory: %w", err)
	}
	s := &Stack{Images: filepath.Join(data, "images")}
	if s.unlock, err = lock(data); err != nil {
		return nil, err
	}
	life, stop := context.WithCancel(context.WithoutCancel(ctx))
	s.stop = stop
	defer func() {
		if err != nil {
			s.end()
		}
	}()
	if s.Credentials, err = loadCredentials(data); err != nil {
		return nil, err
	}
	if s.redis, err = startRedis(life, filepath.Join(data, "redis"), opt.Log); err != nil {
		return nil, err
	}
	s.Durable = s.redis.durable
	if s.ln, err = net.Listen("tcp", opt.Listen); err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	if err := s.build(data, opt.Log); err != nil {
		return nil, err
	}
	c := s.Credentials
	c.Endpoint, c.Region, c.Container = "http://"+s.ln.Addr().String(), Region, container
	c.ObjectsURL = c.Endpoint + "/v2/AUTH_" + c.ProjectID
	return s, c.save(data)
}

// build makes API and worker.
func (s *Stack) build(data string, log zerolog.Logger) error {
	c := s.Credentials
	tokens, err := localtokens.New([]localtokens.Entry{{
		SHA256: localtokens.Digest(c.Token), User: "standalone", Project: c.ProjectID, Domain: domain, Roles: []string{"member"},
	}})
	if err != nil {
		return err
	}
	store, err := dirstore.New(filepath.Join(data, "objects"))
	if err != nil {
		return err
	}
	if err := store.MakeContainer(c.ProjectID, container); err != nil {
		return err
	}
	cfg := s.config(data)
	if err := cfg.Validate(); err != nil {
		return err
	}
	if s.api, err = app.NewAPI(cfg, app.APIOptions{Tokens: tokens, Objects: objects.New(store, tokens)}, log.With().Str("part", "api").Logger()); err != nil {
		return err
	}
	s.worker, err = app.NewWorker(cfg, log.With().Str("part", "worker").Logger())
	return err
}

func (s *Stack) config(data string) *config.Config {
	cfg := config.Default()
	cfg.Redis = config.Redis{URL: s.redis.url, RequireDurable: s.redis.durable}
	cfg.Operator.Token = secret.New(s.Credentials.OperatorToken)
	cfg.Regions = []config.Region{{
		ID: Region,
		FJcloud: &config.FJcloud{
			Profile: "gen3", ListScope: "domain", Extensions: []string{".raw", ".img"},
			TokensFile: "(made by standalone)",
		},
		Objects: config.Objects{Directory: &config.Directory{Path: filepath.Join(data, "objects")}},
		Images:  config.Images{Directory: &config.Directory{Path: s.Images}, TargetFormat: "raw"},
	}}
	return &cfg
}

// Run serves until ctx ends, and returns when everything has stopped in order.
func (s *Stack) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.api.Run(ctx, s.ln) })
	g.Go(func() error { return s.worker.Run(ctx, nil) })
	err := g.Wait()
	s.ln = nil
	s.end()
	if errors.Is(err, context.Canceled) {
		err = nil
	}
	return err
}

// end stops what Start began, Redis last.
func (s *Stack) end() {
	if s.ln != nil {
		_ = s.ln.Close()
	}
	s.stop()
	if s.redis != nil {
		s.redis.wait()
	}
	s.unlock()
}
