package cli

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"vmimport/internal/fault"
	"vmimport/internal/servers"
)

func (a *app) serverCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "server",
		Short: "Stop a server, have an image made of it, and export that",
		Long: `Works on a server of the cloud that it is to leave: stops it, has an image made of
its system disk, exports that, and starts the server again. Each command goes on
where one before has ended, and says which comes next.

These commands ask the cloud itself; only export asks the import service too. They
use a token of the server's project, VMIMPORT_TOKEN or --token-file, or ask for one
with the OS_* variables of the cloud's openrc file.`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return Usagef("no command; see '%s --help'", cmd.CommandPath())
			}
			return Usagef("unknown command %q; see '%s --help'", args[0], cmd.CommandPath())
		},
	}
	cmd.AddCommand(a.serverStopCommand(), a.serverImageCommand(), a.serverExportCommand(), a.serverStartCommand())
	return cmd
}

func (a *app) serverStopCommand() *cobra.Command {
	var at cloudFlags
	var yes bool
	cmd := &cobra.Command{
		Use:   "stop ID",
		Short: "Stop a server and wait until it is shut off",
		Long: `Stops a server and waits until it is shut off. This is a forced stop; shutting the
guest down from inside is the gentle way. It asks before, unless --yes says so.
One that is shut off already is left as it is.`,
		Args: serverArg,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := a.mayStop(yes); err != nil {
				return err
			}
			return a.withCloud(cmd.Context(), at, func(c *servers.Cloud, p *steps) error {
				s, err := a.stopServer(cmd.Context(), c, args[0], yes, p)
				if err != nil {
					return err
				}
				return p.result(a, serverResult{s.ID, s.Name, s.Status}, nextImage(s.ID))
			})
		},
	}
	at.bind(cmd.Flags(), a.env)
	bindYes(cmd.Flags(), &yes)
	return cmd
}

func (a *app) serverStartCommand() *cobra.Command {
	var at cloudFlags
	cmd := &cobra.Command{
		Use:   "start ID",
		Short: "Start a server and wait until it is active",
		Long: `Starts a server and waits until it is active. It may be used again as soon as the
image of it exists.`,
		Args: serverArg,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withCloud(cmd.Context(), at, func(c *servers.Cloud, p *steps) error {
				s, err := a.startServer(cmd.Context(), c, args[0], p)
				if err != nil {
					return err
				}
				return p.result(a, serverResult{s.ID, s.Name, s.Status}, nextExport(s.ID))
			})
		},
	}
	at.bind(cmd.Flags(), a.env)
	return cmd
}

func (a *app) serverImageCommand() *cobra.Command {
	var at cloudFlags
	var want imageFlags
	var startAgain bool
	cmd := &cobra.Command{
		Use:   "image ID",
		Short: "Have an image made of a stopped server",
		Long: `Has an image made of a stopped server's system disk, waits until it is active, and
prints its id. If an image has been begun before, it waits for that one.

A cloud makes 4 images of a project in an hour; the command waits for its turn.`,
		Args: serverArg,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withCloud(cmd.Context(), at, func(c *servers.Cloud, p *steps) error {
				return a.image(cmd.Context(), c, args[0], want, startAgain, p)
			})
		},
	}
	at.bind(cmd.Flags(), a.env)
	want.bind(cmd.Flags())
	cmd.Flags().BoolVar(&startAgain, "start-again", false, "start the server when the image is active")
	return cmd
}

func (a *app) image(ctx context.Context, c *servers.Cloud, id string, want imageFlags, startAgain bool, p *steps) error {
	img, err := a.imageServer(ctx, c, id, want, p)
	if err != nil {
		return err
	}
	next := []string{nextExport(id), "vmimport server start " + id + "   to use the server again meanwhile"}
	out := imageResult{ImageID: img.ID, Name: img.Name, Status: img.Status, Created: formatTime(img.Created), Found: img.Found, ServerID: id}
	if startAgain {
		s, startErr := a.startServer(ctx, c, id, p)
		if startErr == nil {
			out.ServerStatus, next = s.Status, next[:1]
		}
		err = startErr
	}
	if printErr := p.result(a, out, next...); err == nil {
		err = printErr
	}
	return err
}

// serverArg is the argument of the commands that take one server.
func serverArg(cmd *cobra.Command, args []string) error {
	if len(args) != 1 || args[0] == "" {
		return Usagef("%s takes the id of one server", cmd.CommandPath())
	}
	return nil
}

func nextImage(id string) string  { return "vmimport server image " + id }
func nextExport(id string) string { return "vmimport server export " + id + " --to CONTAINER" }

// cloudFlags say where the cloud of a server is.
type cloudFlags struct {
	authURL, region string
	timeout         time.Duration
}

func (f *cloudFlags) bind(flags *pflag.FlagSet, env Env) {
	flags.StringVar(&f.authURL, "auth-url", env.Getenv("OS_AUTH_URL"), "address of the cloud's identity service")
	flags.StringVar(&f.region, "os-region", env.Getenv("OS_REGION_NAME"), "region of the cloud's catalogue")
	flags.DurationVar(&f.timeout, "timeout", 0, "longest wait (default: 15m for a server, 24h for an image)")
}

func bindYes(flags *pflag.FlagSet, yes *bool) {
	flags.BoolVarP(yes, "yes", "y", false, "stop the server without asking")
}

// imageFlags say which image is wanted of a server.
type imageFlags struct {
	name, volume      string
	fresh, live, fail bool
}

func (f *imageFlags) bind(flags *pflag.FlagSet) {
	flags.StringVar(&f.name, "name", "", "name of the image, and so of the exported file (default: the server's)")
	flags.StringVar(&f.volume, "volume", "", "id of the volume that the server boots from (default: it is found)")
	flags.BoolVar(&f.fresh, "new", false, "make another image, even if there is one")
	flags.BoolVar(&f.live, "live", false, "of a running server too; what it has not written is missing")
	flags.BoolVar(&f.fail, "no-wait", false, "fail if the cloud makes no more images of the project in this hour")
}

func (f *imageFlags) options() servers.ImageOptions {
	return servers.ImageOptions{Name: f.name, Volume: f.volume, New: f.fresh, Live: f.live, NoWait: f.fail}
}

// withCloud calls do with the cloud that the flags and the environment describe.
func (a *app) withCloud(ctx context.Context, f cloudFlags, do func(*servers.Cloud, *steps) error) error {
	if f.timeout < 0 {
		return Usagef("--timeout must not be negative")
	}
	o := servers.Options{
		AuthURL: f.authURL, Region: f.region, ProjectID: a.projectID, PowerTimeout: f.timeout, ImageTimeout: f.timeout,
		Getenv: a.env.Getenv, HTTP: a.env.HTTP,
		Endpoints: map[string]string{
			servers.TypeCompute:      a.env.Getenv("OS_COMPUTE_ENDPOINT_OVERRIDE"),
			servers.TypeBlockStorage: a.env.Getenv("OS_VOLUME_ENDPOINT_OVERRIDE"),
			servers.TypeImage:        a.env.Getenv("OS_IMAGE_ENDPOINT_OVERRIDE"),
		},
	}
	if a.tokenFile != "" || a.env.Getenv("VMIMPORT_TOKEN") != "" {
		var err error
		if o.Token, err = a.token(); err != nil {
			return err
		}
	}
	c, err := servers.Open(ctx, o)
	if err != nil {
		return serverError(ctx, err, "interrupted")
	}
	p := &steps{Progress: a.progress()}
	err = do(c, p)
	if stopErr := p.Stop(); err == nil {
		err = stopErr
	}
	return err
}

// mayStop refuses to stop a server if nobody has said so and nobody can be asked.
func (a *app) mayStop(yes bool) error {
	if yes || a.canAsk() {
		return nil
	}
	return Usagef("this is a forced stop, and there is no terminal to ask on: it needs --yes")
}

// canAsk reports whether a person is at both ends. What is no file is a person's, too.
func (a *app) canAsk() bool {
	f, ok := a.env.Stdin.(*os.File)
	return a.env.Columns() > 0 && a.tokenFile != "-" && (!ok || terminalColumns(f) > 0)
}

// stopServer stops a server, if it is not stopped and whoever is asked wants it.
func (a *app) stopServer(ctx context.Context, c *servers.Cloud, id string, yes bool, p *steps) (*servers.Server, error) {
	s, err := c.Server(ctx, id)
	if err == nil && !s.Stopped() && !yes {
		p.rest()
		if err := a.confirm(ctx, s); err != nil {
			return nil, err
		}
	}
	if err == nil {
		s, err = c.Stop(ctx, id, p.report)
	}
	if err != nil {
		return nil, serverError(ctx, err, "interrupted; a stop that was asked for goes on", "vmimport server stop "+id+"   to go on waiting")
	}
	return s, nil
}

func (a *app) startServer(ctx context.Context, c *servers.Cloud, id string, p *steps) (*servers.Server, error) {
	s, err := c.Start(ctx, id, p.report)
	if err != nil {
		return nil, serverError(ctx, err, "interrupted; a start that was asked for goes on", "vmimport server start "+id+"   to go on waiting")
	}
	return s, nil
}

// imageServer has an image made of a server, or waits for the one that was begun.
func (a *app) imageServer(ctx context.Context, c *servers.Cloud, id string, want imageFlags, p *steps) (*servers.Image, error) {
	img, err := c.Image(ctx, id, want.options(), p.report)
	if errors.Is(err, servers.ErrRunning) {
		return nil, &Exit{Code: ExitError, Err: err, Hints: []string{"vmimport server stop " + id, nextImage(id) + " --live   of the running server"}}
	}
	if err != nil {
		return nil, serverError(ctx, err, "interrupted; if the cloud has begun the image, it goes on", nextImage(id)+"   to go on waiting")
	}
	if img.Found {
		p.note("image %s was begun at %s; --new makes another", clean(img.ID), formatTime(img.Created))
	}
	return img, nil
}

// serverError decides the exit code of what went wrong in a cloud. The text and the
// hints are for an interrupt.
func serverError(ctx context.Context, err error, interrupted string, hints ...string) error {
	switch {
	case ctx.Err() != nil:
		return &Exit{Code: ExitInterrupted, Err: errors.New(interrupted), Hints: hints}
	case fault.CodeOf(err) == servers.CodeSettings || errors.Is(err, servers.ErrServerID):
		return &Exit{Code: ExitUsage, Err: err}
	case errors.Is(err, servers.ErrImageFailed) || errors.Is(err, servers.ErrServerError):
		return &Exit{Code: ExitFailed, Err: err}
	}
	return err
}

// confirm has a person type the name of the server that is to be stopped.
func (a *app) confirm(ctx context.Context, s *servers.Server) error {
	name := strings.TrimSpace(cmp.Or(clean(s.Name), s.ID))
	fmt.Fprintf(a.env.Stderr, `Server %s (%s) is %s.
This is a forced stop, like pulling the plug: what the guest has not written to its
disk is lost. Prepare the guest before, or shut it down from inside.
Type the server's name to go on: `, name, s.ID, clean(s.Status))
	// A read from a terminal cannot be broken off; the process ends with it.
	typed := make(chan string, 1)
	go func() {
		line, _ := bufio.NewReader(a.env.Stdin).ReadString('\n')
		typed <- strings.TrimSpace(line)
	}()
	select {
	case line := <-typed:
		if line != name {
			return &Exit{Code: ExitError, Err: errors.New("not confirmed; the server was not touched")}
		}
		return nil
	case <-ctx.Done():
		return &Exit{Code: ExitInterrupted, Err: errors.New("interrupted; the server was not touched")}
	}
}
