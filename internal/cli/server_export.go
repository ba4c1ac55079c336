package cli

import (
	"cmp"
	"context"
	"errors"
	"iter"
	"time"

	"github.com/spf13/cobra"

	"vmimport/internal/client"
	"vmimport/internal/servers"
	"vmimport/tasks"
)

func (a *app) serverExportCommand() *cobra.Command {
	var at cloudFlags
	var to exportFlags
	var l leaving
	cmd := &cobra.Command{
		Use:   "export ID",
		Short: "Stop a server, have an image made of it, and export that",
		Long: `Stops a server, has an image made of its system disk, exports the image into a
container of object storage, and prints the objects and the command that imports
them elsewhere. See server stop, server image and export, which do one step each.

Interrupted at any point, the same command goes on from there: what is done, or
under way, is not done again. That goes for an export that has succeeded, too.
With --new another image is made, each time that the command is run.

The import service is asked with the token that the cloud is asked with.`,
		Args: serverArg,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := cmp.Or(to.check(), a.hasService()); err != nil {
				return err
			}
			return l.again(cmd.Context(), a.withCloud(cmd.Context(), at, func(c *servers.Cloud, p *steps) (err error) {
				l.app, l.cloud, l.p, l.server = a, c, p, args[0]
				if a.projectID == "" {
					a.projectID = c.ProjectID()
				}
				if l.request, err = to.of(a, ""); err != nil {
					return err
				}
				return l.leave(cmd.Context())
			}))
		},
	}
	at.bind(cmd.Flags(), a.env)
	to.bind(cmd.Flags())
	l.want.bind(cmd.Flags())
	cmd.Flags().BoolVar(&l.startAgain, "start-again", false, "start the server when the image is active")
	bindYes(cmd.Flags(), &l.yes)
	bindInterval(cmd.Flags(), &l.interval)
	return cmd
}

// leaving is a server on its way out.
type leaving struct {
	*app
	cloud   *servers.Cloud
	service *client.Client
	p       *steps

	server          string // its id
	want            imageFlags
	request         client.ExportRequest // its image is known when it is there
	yes, startAgain bool
	interval        time.Duration
}

// leave takes all the steps that have not been taken.
func (l *leaving) leave(ctx context.Context) error {
	if err := l.reach(ctx); err != nil {
		return err
	}
	if err := l.image(ctx); err != nil {
		return err
	}
	status, startErr := l.start(ctx)
	if ctx.Err() != nil {
		return startErr
	}
	e, err := l.export(ctx)
	if err == nil {
		err = Outcome(e)
	}
	if err != nil {
		return errors.Join(err, startErr)
	}
	next := nextImport(e)
	if status == "" && !l.want.live {
		next = append(next, "vmimport server start "+l.server+"   to use the server again")
	}
	return errors.Join(l.p.result(l.app, exportedServer{l.server, e, status}, next...), startErr)
}

// reach asks the import service for something small: it would be late to find out that
// it is not there when the server has been stopped.
func (l *leaving) reach(ctx context.Context) (err error) {
	if l.service, err = l.clientOf(l.cloud.Token()); err != nil {
		return err
	}
	next, stop := iter.Pull2(l.service.ListExports(ctx))
	defer stop()
	_, err, _ = next()
	return err
}

// image sees to it that there is an image of the stopped server.
func (l *leaving) image(ctx context.Context) error {
	img, err := l.cloud.FindImage(ctx, l.server, l.want.options())
	if err != nil {
		return serverError(ctx, err, "interrupted")
	}
	if img != nil && !l.want.fresh || l.want.live {
		l.step("stop", skipped, "")
	} else {
		l.step("stop", begun, "")
		if err := l.mayStop(l.yes); err != nil {
			return err
		}
		if _, err := l.stopServer(ctx, l.cloud, l.server, l.yes, l.p); err != nil {
			return err
		}
		l.step("stop", done, "")
	}
	l.step("image", begun, "")
	if img, err = l.imageServer(ctx, l.cloud, l.server, l.want, l.p); err != nil {
		return err
	}
	l.request.ImageID = img.ID
	l.step("image", done, "")
	return nil
}

// start starts the server if it is wanted, and returns its status then.
func (l *leaving) start(ctx context.Context) (status string, err error) {
	if !l.startAgain {
		return "", nil
	}
	l.step("start", begun, "")
	s, err := l.startServer(ctx, l.cloud, l.server, l.p)
	if err != nil {
		return "", err
	}
	l.step("start", done, "")
	return s.Status, nil
}

// export sees to it that the image is exported, and watches that.
func (l *leaving) export(ctx context.Context) (*client.Export, error) {
	// The token that came with the command may be old by now.
	var err error
	if l.service, err = l.clientOf(l.cloud.Token()); err != nil {
		return nil, err
	}
	id, err := l.exported(ctx)
	if err != nil {
		return nil, err
	}
	if id == "" {
		id, err = l.service.Export(ctx, l.request)
		if errors.Is(err, client.ErrUncertain) && ctx.Err() == nil {
			if found, lookErr := l.exported(ctx); lookErr == nil && found != "" {
				id, err = found, nil
			}
		}
	}
	if err != nil {
		return nil, l.exports().unregistered(ctx, err)
	}
	l.p.rest()
	l.step("export", begun, id)
	l.p.registered(tasks.KindExport, id)
	e, err := l.exports().look(ctx, l.service, id, l.interval, l.p.Progress)
	if err == nil && e.State == tasks.Succeeded {
		l.step("export", done, id)
	}
	return e, err
}

// exported returns the export that was asked for before, unless it has failed or was
// canceled; "" if there is none.
func (l *leaving) exported(ctx context.Context) (tasks.ID, error) {
	wanted := client.Export{}
	if l.request.ImageTo != "" {
		wanted.Details = &client.ExportDetails{ImageTo: l.request.ImageTo}
	}
	for entry, err := range l.service.ListExports(ctx) {
		if err != nil {
			return "", err
		}
		switch {
		case entry.ImageID != l.request.ImageID:
			continue
		case entry.State == tasks.Failed || entry.State == tasks.Cancelling || entry.State == tasks.Canceled:
			continue
		}
		e, err := l.service.ExportStatus(ctx, entry.ExportID)
		switch {
		case client.HasCode(err, client.CodeUnknownImport): // expired since it was listed
		case err != nil:
			return "", err
		case e.StorageContainer == l.request.StorageContainer && e.ImageTo() == wanted.ImageTo():
			return e.ExportID, nil
		}
	}
	return "", nil
}

// again says after an interrupt how to go on.
func (l *leaving) again(ctx context.Context, err error) error {
	if err == nil || ctx.Err() == nil {
		return err
	}
	e, ok := errors.AsType[*Exit](err)
	if !ok {
		e = &Exit{Code: ExitInterrupted, Err: errors.New("interrupted")}
	}
	same := "the same command   to go on from here"
	if l.want.fresh && l.request.ImageID != "" {
		same = "the same command without --new   to go on from here"
	}
	e.Hints = append([]string{same}, e.Hints...)
	return e
}

// States of a step.
const (
	begun   = "begun"
	done    = "done"
	skipped = "skipped" // it is not needed
)

// stepEvent says how far server export is.
type stepEvent struct {
	Event    string   `json:"event"` // "step"
	Step     string   `json:"step"`  // "stop", "image", "start" or "export"
	State    string   `json:"state"`
	ServerID string   `json:"server_id"`
	ImageID  string   `json:"image_id,omitempty"`
	ExportID tasks.ID `json:"export_id,omitempty"`
}

// step writes the event; people see what the steps themselves show.
func (l *leaving) step(name, state string, export tasks.ID) {
	if l.p.events != nil {
		l.p.event(stepEvent{"step", name, state, l.server, l.request.ImageID, export})
	}
}

// exportedServer is the result of server export.
type exportedServer struct {
	ServerID string `json:"server_id"`
	*client.Export
	ServerStatus string `json:"server_status,omitempty"` // if it was started again
}

func (r exportedServer) table() table {
	return append(table{{"server", r.ServerID}, {"server status", r.ServerStatus}}, exportTable(r.Export)...)
}
