package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"vmimport/internal/app"
	"vmimport/internal/cli"
	"vmimport/internal/devstack"
)

func demoCommand(env cli.Env) *cobra.Command {
	d := demo{env: env}
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Import a disk from end to end, with nothing but this program",
		Long: `Starts the standalone service on a free port, uploads a disk image (a sample one,
unless --image names another, of any format), imports it through the HTTP API
with its SHA-1, compares the registered disks with those in the image, and stops
the service. The object is given the extension that its contents need. It takes
space for a copy of the image and the disk, and for the latter twice if the image
is in gzip.

The path of the registered image goes to stdout. With --json the events of push
do, and at the end one more: "compared", with source, image and data directory.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			d.json, _ = cmd.Flags().GetBool("json")
			d.quiet, _ = cmd.Flags().GetBool("quiet")
			return interrupted(cmd.Context(), d.run(cmd.Context()))
		},
	}
	cmd.Flags().StringVar(&d.image, "image", "", "disk image `file`, of any format")
	cmd.Flags().StringVar(&d.data, "data", "", "`directory` for everything; a new temporary one by default,\nwhich is kept if the demo succeeds")
	return cmd
}

type demo struct {
	env         cli.Env
	image, data string
	json, quiet bool
}

func (d *demo) run(ctx context.Context) (err error) {
	temporary := d.data == ""
	if temporary {
		if d.data, err = os.MkdirTemp("", "vmimport-demo"); err != nil {
			return err
		}
		defer func() {
			if err != nil {
				err = errors.Join(err, os.RemoveAll(d.data))
			}
		}()
	}
	stack, err := devstack.Start(ctx, devstack.Options{
		Listen: "127.0.0.1:0", Data: d.data, Log: app.NewLogger(d.env.Stderr, "error", "demo"),
	})
	if err != nil {
		return err
	}
	shown, err := d.show(ctx, stack)
	if err != nil {
		return err
	}
	if err := cli.Outcome(shown.Import); err != nil {
		return err
	}
	if err := d.result(shown, stack); err != nil {
		return err
	}
	if temporary && !d.json && !d.quiet {
		fmt.Fprintf(d.env.Stderr, "to remove the image and all else that the demo made:  rm -r %s\n", cli.ShellWord(stack.Data))
	}
	return nil
}

// show runs the demo while the stack is served, and returns when that has ended.
func (d *demo) show(ctx context.Context, stack *devstack.Stack) (*devstack.Shown, error) {
	serving, stop := context.WithCancelCause(ctx)
	served := make(chan error, 1)
	go func() {
		err := stack.Run(serving)
		stop(errors.New("the service stopped"))
		served <- err
	}()
	progress := cli.NewProgress(d.env, d.json, d.quiet)
	progress.Notef("vmimport is up at %s", stack.Credentials.Endpoint)
	run := devstack.Demo{Image: d.image, Observer: progress.Observer(), Say: progress.Notef}
	shown, err := run.Run(serving, stack)
	err = errors.Join(err, progress.Stop())
	stop(nil)
	return shown, errors.Join(err, <-served)
}

func (d *demo) result(shown *devstack.Shown, stack *devstack.Stack) error {
	if !d.json {
		_, err := fmt.Fprintln(d.env.Stdout, shown.Image)
		return err
	}
	enc := json.NewEncoder(d.env.Stdout)
	enc.SetEscapeHTML(false)
	return enc.Encode(struct {
		Event  string `json:"event"`
		Source string `json:"source"`
		Image  string `json:"image"`
		Data   string `json:"data"`
	}{"compared", shown.Source, shown.Image, stack.Data})
}
