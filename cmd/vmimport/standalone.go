package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

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
DIR/objects/images. Imported are raw disks, named *.raw or *.img; each image is
a directory in DIR/images.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx := cmd.Context()
			stack, err := devstack.Start(ctx, devstack.Options{
				Listen: listen, Data: data, Log: app.NewLogger(env.Stderr, level, "standalone"),
			})
			if err != nil {
				return interrupted(ctx, err)
			}
			fmt.Fprintf(env.Stderr, `vmimport is up at %s, with its data in %s
For clients in another shell:   set -a; . %s; set +a
Then, for instance:             %s push disk.raw --os-type ubuntu
`, stack.Credentials.Endpoint, stack.Data, cli.ShellWord(filepath.Join(stack.Data, "credentials.env")), cli.ShellWord(os.Args[0]))
			return stack.Run(ctx)
		},
	}
	cmd.Flags().StringVar(&listen, "listen", "127.0.0.1:8080", "`host:port` of the API; port 0 takes a free one")
	cmd.Flags().StringVar(&data, "data", "vmimport-data", "`directory` for everything")
	cmd.Flags().StringVar(&level, "log-level", "info", "debug, info, warn or error")
	return cmd
}

// interrupted gives an error that comes of a signal its exit code.
func interrupted(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return &cli.Exit{Code: cli.ExitInterrupted, Err: errors.New("interrupted")}
	}
	return err
}
