package cli

import (
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"vmimport/internal/client"
	"vmimport/tasks"
)

func (a *app) eventsCommand() *cobra.Command {
	var opt client.EventsOptions
	var kind string
	cmd := &cobra.Command{
		Use:   "events",
		Short: "Show what happens to imports and exports, as it happens",
		Long: `Prints a line whenever an import or export that the token's project can see comes
to another state: time, kind, id, state, progress and name, and why if it failed.
It goes on until it is interrupted. If the connection is lost it is made again, and
no state is missed. With --json it prints the events themselves, progress among
them; --after goes on behind the mark of one.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if opt.Kind = tasks.Kind(kind); !slices.Contains([]tasks.Kind{"", tasks.KindImport, tasks.KindExport}, opt.Kind) {
				return Usagef("--kind is import or export, not %q", kind)
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			opt.Trouble = func(err error) {
				if !a.quiet {
					fmt.Fprintf(a.env.Stderr, "no answer, asking again: %s\n", clean(err.Error()))
				}
			}
			for e, err := range c.Events(cmd.Context(), opt) {
				if err == nil {
					err = a.printEvent(e)
				}
				if err != nil {
					return err
				}
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&kind, "kind", "", "only these: import or export")
	cmd.Flags().StringVar(&opt.After, "after", "", "go on behind the event of this mark")
	return cmd
}

func (a *app) printEvent(e *client.Event) error {
	if a.json {
		return writeJSON(a.env.Stdout, e)
	}
	switch e.Type {
	case client.EventReset:
		if !a.quiet {
			fmt.Fprintln(a.env.Stderr, "what happened before is no longer kept; see list")
		}
		return nil
	case client.EventState:
	default:
		return nil
	}
	line := fmt.Sprintf("%s  %s  %s  %-10s  %3d%%  %s", e.At.UTC().Format(time.RFC3339), e.Kind, e.ID, e.State, e.Progress, e.Name)
	if f := e.Failure; f != nil {
		line += ": " + f.Fault().Sentences()
	}
	_, err := fmt.Fprintln(a.env.Stdout, clean(line))
	return err
}
