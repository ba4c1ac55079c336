package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"vmimport/internal/client"
	"vmimport/tasks"
)

func (a *app) statusCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "status ID",
		Short: "Show an import as it stands",
		Long: `Shows an import as it stands: state, progress and image, and if it failed the
reason and what can be done. ID is what import and push print, and list shows.`,
		Args: importArg,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			imp, err := c.Status(cmd.Context(), tasks.ID(args[0]))
			if err != nil {
				return err
			}
			return a.print(imp, importTable(imp))
		},
	}
}

func (a *app) watchCommand() *cobra.Command {
	var interval time.Duration
	cmd := &cobra.Command{
		Use:   "watch ID",
		Short: "Watch an import until it has ended",
		Long: `Watches an import until it has ended, and prints the image. Stopping it does
nothing to the import.`,
		Args: importArg,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			return a.follow(cmd.Context(), c, tasks.ID(args[0]), interval, a.progress())
		},
	}
	bindInterval(cmd.Flags(), &interval)
	return cmd
}

func (a *app) cancelCommand() *cobra.Command {
	var interval time.Duration
	var wait bool
	cmd := &cobra.Command{
		Use:   "cancel ID",
		Short: "Ask for an import to stop",
		Long: `Asks for an import to stop. That cannot be withdrawn. With --wait it returns
when everything that the import had made is removed, with 0; an import for which
a cancel was asked before is then simply waited for.`,
		Args: importArg,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			return a.cancel(cmd.Context(), c, tasks.ID(args[0]), wait, interval)
		},
	}
	cmd.Flags().BoolVar(&wait, "wait", false, "wait until the import has ended")
	bindInterval(cmd.Flags(), &interval)
	return cmd
}

func (a *app) cancel(ctx context.Context, c *client.Client, id tasks.ID, wait bool, interval time.Duration) error {
	err := c.Cancel(ctx, id)
	if err != nil && !(wait && client.HasCode(err, client.CodeCancelRequested)) {
		return err
	}
	if wait {
		err := a.follow(ctx, c, id, interval, a.progress())
		if e, ok := errors.AsType[*Exit](err); ok && e.Code == ExitCanceled {
			return nil // what was asked for
		}
		return err
	}
	if a.json {
		return writeJSON(a.env.Stdout, map[string]any{"import_id": id, "cancel": "accepted"})
	}
	_, err = fmt.Fprintf(a.env.Stdout, "cancel of %s accepted\n", clean(string(id)))
	return err
}

// follow watches an import until it has ended, and reports how.
func (a *app) follow(ctx context.Context, c *client.Client, id tasks.ID, interval time.Duration, p *Progress) error {
	imp, err := c.WaitFor(ctx, id, interval, p.Observer())
	if stopErr := p.Stop(); err == nil {
		err = stopErr
	}
	if err != nil {
		if e, ok := errors.AsType[*client.Error](err); ok && imp == nil && e.Status/100 == 4 {
			return err // there was nothing to watch
		}
		return goesOn(ctx, id, err)
	}
	return a.ended(imp)
}

// ended prints what a finished import made. With --json the last event said it.
func (a *app) ended(imp *client.Import) error {
	if err := Outcome(imp); err != nil || a.json {
		return err
	}
	return a.print(imp, importTable(imp))
}

func (a *app) listCommand() *cobra.Command {
	var limit int
	var full bool
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the imports, newest first",
		Long: `Lists the imports that the token's project can see, newest first. The API lists
ids and states only; --long asks for each import.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if limit < 0 {
				return Usagef("--limit must not be negative")
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			entries := []client.Entry{} // not nil, which JSON would show as null
			for e, err := range c.List(cmd.Context()) {
				if err != nil {
					return err
				}
				entries = append(entries, e)
				if len(entries) == limit {
					break
				}
			}
			if full {
				return a.printFull(cmd.Context(), c, entries)
			}
			return a.printEntries(entries)
		},
	}
	cmd.Flags().IntVarP(&limit, "limit", "n", 100, "how many; 0 lists all")
	cmd.Flags().BoolVarP(&full, "long", "l", false, "show name, progress and image of each")
	return cmd
}

func (a *app) printEntries(entries []client.Entry) error {
	if a.json {
		return writeJSON(a.env.Stdout, map[string][]client.Entry{"imports": entries})
	}
	rows := table{{"IMPORT", "STATUS"}}
	for _, e := range entries {
		rows = append(rows, []string{string(e.ImportID), string(e.State)})
	}
	return a.printTable(rows)
}

// parallelStatuses keeps a long list quick without being a burden.
const parallelStatuses = 8

func (a *app) printFull(ctx context.Context, c *client.Client, entries []client.Entry) error {
	imports := make([]*client.Import, len(entries))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(parallelStatuses)
	for i, e := range entries {
		group.Go(func() (err error) {
			imports[i], err = c.Status(ctx, e.ImportID)
			if client.HasCode(err, client.CodeUnknownImport) {
				return nil // expired since it was listed
			}
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	imports = slices.DeleteFunc(imports, func(imp *client.Import) bool { return imp == nil })
	if a.json {
		return writeJSON(a.env.Stdout, map[string][]*client.Import{"imports": imports})
	}
	rows := table{{"IMPORT", "STATUS", "PROGRESS", "NAME", "IMAGE"}}
	for _, imp := range imports {
		rows = append(rows, []string{string(imp.ImportID), string(imp.State), fmt.Sprintf("%d%%", imp.Progress), imp.Name, imp.ID})
	}
	return a.printTable(rows)
}

// table is text in columns.
type table [][]string

// importTable tells what is known about an import, a line for each thing.
func importTable(imp *client.Import) table {
	x := imp.Extra
	var billing client.Billing
	if imp.BillingInfo != nil {
		billing = *imp.BillingInfo
	}
	t := table{
		{"import", string(imp.ImportID)},
		{"status", string(imp.State)},
		{"progress", fmt.Sprintf("%d%%", imp.Progress)},
		{"stage", string(x.Stage)},
		{"name", imp.Name},
		{"image", imp.ID},
		{"location", imp.Location + imp.S3Location},
		{"checksum", imp.Checksum},
		{"os type", cmp.Or(imp.OSType, billing.OSType)},
		{"base image", billing.BaseImageID},
	}
	if x.TotalBytes > 0 {
		t = append(t, []string{"bytes", fmt.Sprintf("%d of %d", x.DoneBytes, x.TotalBytes)})
	}
	t = append(t, []string{"source format", x.SourceFormat})
	if x.VirtualSize > 0 {
		t = append(t, []string{"capacity", exactly(x.VirtualSize)})
	}
	if x.Disks > 0 {
		t = append(t, []string{"disks", fmt.Sprint(x.Disks)})
	}
	if x.Attempt > 1 {
		t = append(t, []string{"attempt", fmt.Sprint(x.Attempt)})
	}
	for _, name := range slices.Sorted(maps.Keys(x.Digests)) {
		t = append(t, []string{name, x.Digests[name]})
	}
	return append(t,
		[]string{"requested", formatTime(x.RequestedAt)},
		[]string{"finished", formatTime(x.FinishedAt)},
		[]string{"error", imp.Reason()},
		[]string{"remedy", x.Remedy},
	)
}

func formatTime(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339)
}

// print prints a result: doc with --json, else the rows that have a value.
func (a *app) print(doc any, rows table) error {
	if a.json {
		return writeJSON(a.env.Stdout, doc)
	}
	return a.printTable(slices.DeleteFunc(rows, func(row []string) bool { return row[1] == "" }))
}

func (a *app) printTable(rows table) error {
	w := tabwriter.NewWriter(a.env.Stdout, 0, 0, 2, ' ', 0)
	for _, row := range rows {
		for i, cell := range row {
			if i > 0 {
				fmt.Fprint(w, "\t")
			}
			fmt.Fprint(w, clean(cell))
		}
		fmt.Fprintln(w)
	}
	return w.Flush()
}
