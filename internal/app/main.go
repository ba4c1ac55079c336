package app

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"syscall"

	"github.com/goccy/go-yaml"
	"github.com/rs/zerolog"

	"vmimport/internal/config"
)

// Version returns the version of the program: that of the module if it was
// installed as one, else the revision it was built from, else "unknown".
func Version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	if v := info.Main.Version; v != "" && v != "(devel)" {
		return v
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			return s.Value
		}
	}
	return "unknown"
}

// Run is what a server process does between its configuration and its end.
type Run func(ctx context.Context, cfg *config.Config, log zerolog.Logger) error

// RunAPI serves the API until ctx ends.
func RunAPI(ctx context.Context, cfg *config.Config, log zerolog.Logger) error {
	stop, err := startTracing(ctx, cfg.Tracing, "vmimport-api", log)
	if err != nil {
		return err
	}
	defer stop()
	api, err := NewAPI(cfg, APIOptions{}, log)
	if err != nil {
		return err
	}
	ln, err := net.Listen("tcp", cfg.Listen)
	if err != nil {
		return errors.Join(err, api.Close())
	}
	log.Info().Str("listen", ln.Addr().String()).Str("version", Version()).Msg("API is up")
	return api.Run(ctx, ln)
}

const (
	// spareMemory is what a worker process uses beside its buffers.
	spareMemory = 48 << 20
	// exportMemory is what an export uses beside these: its encoder and, of a disk that is read
	// in the guest's order, what is unpacked.
	exportMemory = 40 << 20
)

// RunWorker runs imports and exports until ctx ends.
func RunWorker(ctx context.Context, cfg *config.Config, log zerolog.Logger) error {
	// The buffers are most of the heap and never garbage. Without a limit the
	// collector would let the rest grow to the same size before it ran.
	debug.SetMemoryLimit(int64(cfg.Worker.Memory) + spareMemory + int64(cfg.Worker.Concurrency)*exportMemory)
	stop, err := startTracing(ctx, cfg.Tracing, "vmimport-worker", log)
	if err != nil {
		return err
	}
	defer stop()
	worker, err := NewWorker(cfg, log)
	if err != nil {
		return err
	}
	var ln net.Listener
	if cfg.Worker.Listen != "" {
		if ln, err = net.Listen("tcp", cfg.Worker.Listen); err != nil {
			return errors.Join(err, worker.Close())
		}
		log.Info().Str("listen", ln.Addr().String()).Str("version", Version()).Msg("worker is up")
	}
	return worker.Run(ctx, ln)
}

// Main is the main function of a server process, and returns its exit code: 0
// after an orderly stop by SIGINT or SIGTERM, 1 after an error, 2 for a wrong
// command line or configuration.
func Main(run Run, args []string, getenv func(string) string, stdout, stderr io.Writer) int {
	name := filepath.Base(args[0])
	flags := flag.NewFlagSet(name, flag.ContinueOnError)
	flags.SetOutput(stderr)
	path := flags.String("config", getenv("VMIMPORT_CONFIG"), "configuration `file`; default $VMIMPORT_CONFIG")
	listen := flags.String("listen", "", "listen on `host:port`, whatever the configuration says")
	show := flags.Bool("print-config", false, "print the effective configuration, without secrets, and exit")
	version := flags.Bool("version", false, "print the version and exit")
	switch err := flags.Parse(args[1:]); {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		return 2
	case *version:
		fmt.Fprintln(stdout, name, Version())
		return 0
	}
	cfg, err := config.Load(*path, getenv)
	if err == nil && *listen != "" {
		cfg.Listen, cfg.Worker.Listen = *listen, *listen
	}
	if err == nil {
		err = cfg.Validate()
	}
	if err != nil {
		fmt.Fprintf(stderr, "%s: %v\n", name, err)
		return 2
	}
	if *show {
		if err := yaml.NewEncoder(stdout).Encode(cfg); err != nil {
			return 1
		}
		return 0
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	log := NewLogger(stderr, cfg.Log.Level, name)
	if err := run(ctx, cfg, log); err != nil {
		log.Error().Err(err).Msg("ended")
		return 1
	}
	log.Info().Msg("stopped")
	return 0
}
