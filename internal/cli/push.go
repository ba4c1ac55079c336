package cli

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"vmimport/internal/client"
	"vmimport/tasks"
)

func (a *app) pushCommand() *cobra.Command {
	var to objectFlags
	var req requestFlags
	var interval time.Duration
	cmd := &cobra.Command{
		Use:   "push FILE",
		Short: "Upload a file, import it and watch until the image is there",
		Long: `Puts FILE into object storage, hashing it on the way, asks for its import with
that SHA-1, watches it, and prints the image. Stopped during the upload it asks
for no import; stopped later it leaves the import going on.`,
		Args: fileArg,
		RunE: func(cmd *cobra.Command, args []string) error {
			object, err := to.of(args[0])
			if err != nil {
				return err
			}
			location, err := a.location(object)
			if err != nil {
				return err
			}
			r, err := req.of(client.Registration{Location: location})
			if err != nil {
				return err
			}
			return a.push(cmd.Context(), args[0], client.Job{To: object, Request: r, Interval: interval})
		},
	}
	to.bind(cmd.Flags(), a.env)
	req.bind(cmd.Flags())
	bindInterval(cmd.Flags(), &interval)
	return cmd
}

func (a *app) push(ctx context.Context, file string, job client.Job) error {
	c, err := a.objectsClient()
	if err != nil {
		return err
	}
	f, size, err := openFile(file)
	if err != nil {
		return err
	}
	defer f.Close()
	job.File, job.Size = f, size

	p := a.progress()
	obs := p.Observer()
	var uploaded bool
	var id tasks.ID
	obs.Uploaded = func(sum string) { uploaded = true; p.uploaded(sum) }
	obs.Registered = func(i tasks.ID) { id = i; p.registered(tasks.KindImport, i) }
	imp, err := c.Push(ctx, job, obs)
	if stopErr := p.Stop(); err == nil {
		err = stopErr
	}
	switch imports := a.imports(); {
	case err == nil:
		return imports.ended(imp)
	case !uploaded:
		return stopped(ctx, err)
	case id == "":
		return imports.unregistered(ctx, err)
	default:
		return imports.goesOn(ctx, id, err)
	}
}
