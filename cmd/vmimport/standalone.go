package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"vmimport/internal/app"
	"vmimport/internal/cli"
	"vmimport/internal/devstack"
)

func standaloneCommand(env cli.Env) *cobra.Command {
	var listen, data, level string
	cmd := &cobra.Command{
		Use:   "standalone",
		Short: "Run the whole service in this process",
		Long: `Runs the API, one worker, a Redis, an object store and an image store out of one
directory, until interrupted. It needs no account and no other service; if
redis-server is installed, imports outlive a restart.

DIR/credentials.env says how to reach it; a shell can source it. Files get into
the object store by HTTP PUT (vmimport upload), or by being copied into
DIR/objects/images.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx := cmd.Context()
			stack, err := devstack.Start(ctx, devstack.Options{
				Listen: listen, Data: data, Log: app.NewLogger(env.Stderr, level, "standalone"),
			})
			if err != nil {
				return err
			}
			fmt.Fprintf(env.Stderr, "vmimport is up at %s\nportal developers and clients: . %s/credentials.env\n", stack.Credentials.Endpoint, data)
			return stack.Run(ctx)
		},
	}
	cmd.Flags().StringVar(&listen, "listen", "127.0.0.1:8080", "`host:port` of the API; port 0 takes a free one")
	cmd.Flags().StringVar(&data, "data", "vmimport-data", "`directory` for everything")
	cmd.Flags().StringVar(&level, "log-level", "info", "debug, info, warn or error")
	return cmd
}

func demoCommand(env cli.Env) *cobra.Command {
	var image, data string
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Import a disk from end to end, with nothing but this program",
		Long: `Starts the standalone service on a free port, uploads a disk image (a sample one,
unless --image names a raw disk), imports it through the HTTP API with its
SHA-1, compares the registered image with the source, and stops the service.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if data == "" {
				dir, err := os.MkdirTemp("", "vmimport-demo")
				if err != nil {
					return err
				}
				data = dir
			}
			asJSON, _ := cmd.Flags().GetBool("json")
			quiet, _ := cmd.Flags().GetBool("quiet")
			return runDemo(cmd.Context(), env, data, image, cli.NewProgress(env, asJSON, quiet))
		},
	}
	cmd.Flags().StringVar(&image, "image", "", "raw disk image `file`")
	cmd.Flags().StringVar(&data, "data", "", "`directory` for everything; a new temporary one by default")
	return cmd
}

func runDemo(ctx context.Context, env cli.Env, data, image string, progress *cli.Progress) (err error) {
	serving, stop := context.WithCancel(ctx)
	stack, err := devstack.Start(serving, devstack.Options{
		Listen: "127.0.0.1:0", Data: data, Log: app.NewLogger(env.Stderr, "error", "demo"),
	})
	if err != nil {
		stop()
		return err
	}
	served := make(chan error, 1)
	go func() { served <- stack.Run(serving) }()
	defer func() {
		stop()
		err = errors.Join(err, <-served)
	}()
	progress.Notef("vmimport is up at %s", stack.Credentials.Endpoint)
	demo := devstack.Demo{Image: image, Observer: progress.Observer(), Say: progress.Notef}
	imp, err := demo.Run(ctx, stack)
	if serr := progress.Stop(); err == nil {
		err = serr
	}
	if err != nil {
		return err
	}
	return cli.Outcome(imp)
}
