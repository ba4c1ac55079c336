package portaltest

import (
	"bytes"
	"context"
	"crypto/sha1"
	"encoding/hex"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/rs/zerolog"

	"vmimport/internal/app"
	"vmimport/internal/auth"
	"vmimport/internal/auth/localtokens"
	"vmimport/internal/config"
	"vmimport/internal/testenv"
)

const (
	project   = "4b1c0a7f6d2e4f55a6c1d3b2e9f80712"
	token     = "token-of-ken"
	nextToken = "next-token-of-ken"
	container = "images"
	region    = "jp-east-3"

	// bandwidth is what the tenant may read, so that a bar can be seen to move.
	bandwidth = 12 << 20
)

// service is API and worker, on a Redis of their own.
type service struct {
	t       *testing.T
	url     string
	objects string // directory of the containers
	images  string
	tokens  *tokens
	cfg     config.Config
	log     zerolog.Logger
	stopAPI func()
}

// serve starts a service that runs until the test ends.
func serve(t *testing.T, change ...func(*config.Config)) *service {
	t.Helper()
	dir := t.TempDir()
	s := &service{
		t: t, objects: filepath.Join(dir, "objects"), images: filepath.Join(dir, "images"), tokens: newTokens(t),
		cfg: config.Default(), log: zerolog.New(zerolog.NewTestWriter(t)).Level(zerolog.WarnLevel),
	}
	s.cfg.Worker.Scratch = filepath.Join(dir, "scratch")
	for _, d := range []string{filepath.Join(s.objects, container), s.images, s.cfg.Worker.Scratch} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.cfg.Redis.URL.UnmarshalText([]byte(testenv.StartRedis(t).URL())); err != nil {
		t.Fatal(err)
	}
	s.cfg.Worker.Chunk, s.cfg.Worker.Parallel = 1<<20, 2
	s.cfg.Limits.Bandwidth = bandwidth
	s.cfg.Regions = []config.Region{{
		ID:      region,
		FJcloud: &config.FJcloud{Extensions: []string{".raw"}, TokensFile: "(made here)"},
		Objects: config.Objects{Directory: &config.Directory{Path: s.objects}},
		Images:  config.Images{Directory: &config.Directory{Path: s.images}},
	}}
	for _, c := range change {
		c(&s.cfg)
	}
	s.cfg.SetDefaults()
	if err := s.cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	worker, err := app.NewWorker(&s.cfg, s.log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.background(func(ctx context.Context) error { return worker.Run(ctx, nil) }))
	s.startAPI("127.0.0.1:0")
	t.Cleanup(func() { s.stopAPI() })
	return s
}

// background runs a process of the service, and returns what ends it.
func (s *service) background(process func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- process(ctx) }()
	return func() {
		cancel()
		if err := <-ended; err != nil {
			s.t.Error(err)
		}
	}
}

func (s *service) startAPI(address string) {
	s.t.Helper()
	api, err := app.NewAPI(&s.cfg, app.APIOptions{Tokens: s.tokens}, s.log)
	if err != nil {
		s.t.Fatal(err)
	}
	ln, err := net.Listen("tcp", address)
	if err != nil {
		s.t.Fatal(err)
	}
	s.url = "http://" + ln.Addr().String()
	s.stopAPI = s.background(func(ctx context.Context) error { return api.Run(ctx, ln) })
}

// restartAPI ends the API in good order, and starts another at the same address.
func (s *service) restartAPI() {
	s.t.Helper()
	s.stopAPI()
	s.startAPI(s.url[len("http://"):])
}

// put stores a raw disk of some KiB of noise as an object, and returns its SHA-1.
func (s *service) put(name string, kib int) string {
	s.t.Helper()
	noise := rand.NewChaCha8([32]byte{byte(kib)})
	disk := make([]byte, kib<<10)
	_, _ = noise.Read(disk) // never fails
	if err := os.WriteFile(filepath.Join(s.objects, container, name), disk, 0o600); err != nil {
		s.t.Fatal(err)
	}
	sum := sha1.Sum(disk)
	return hex.EncodeToString(sum[:])
}

// same fails the test unless an image has the bytes of an object.
func (s *service) same(imageID, name string) {
	s.t.Helper()
	want, err := os.ReadFile(filepath.Join(s.objects, container, name))
	if err != nil {
		s.t.Fatal(err)
	}
	got, err := os.ReadFile(filepath.Join(s.images, imageID, "disk-1.raw"))
	if err != nil || !bytes.Equal(got, want) {
		s.t.Errorf("image %s is not the object: %d bytes of %d, %v", imageID, len(got), len(want), err)
	}
}

// location is where the API has an object, or a container if there is no name.
func location(name string) string { return "/v2/AUTH_" + project + "/" + container + "/" + name }

// tokens are two of the same person. The first may end before its time.
type tokens struct {
	*localtokens.Tokens
	ended atomic.Bool
}

func newTokens(t *testing.T) *tokens {
	t.Helper()
	var entries []localtokens.Entry
	for _, text := range []string{token, nextToken} {
		entries = append(entries, localtokens.Entry{
			SHA256: localtokens.Digest(text), User: "ken", Project: project, Domain: "domain", Roles: []string{"member"},
		})
	}
	known, err := localtokens.New(entries)
	if err != nil {
		t.Fatal(err)
	}
	return &tokens{Tokens: known}
}

func (t *tokens) Authenticate(ctx context.Context, text string) (*auth.Identity, error) {
	if text == token && t.ended.Load() {
		return nil, auth.ErrNoIdentity
	}
	return t.Tokens.Authenticate(ctx, text)
}
