package cli

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"vmimport/internal/client"
	"vmimport/tasks"
)

// kind is what the commands about imports and those about exports differ in. T is a
// task as it stands, E its line in a list.
type kind[T interface {
	comparable
	client.Task
}, E interface{ Identity() tasks.ID }] struct {
	*app
	name   tasks.Kind
	group  string // what is typed before the names of the commands
	made   string // what is made
	begins string // who prints ids

	get       func(*client.Client, context.Context, tasks.ID) (T, error)
	stop      func(*client.Client, context.Context, tasks.ID) error
	again     func(*client.Client, context.Context, tasks.ID) error
	requested string // code of a second stop
	all       func(*client.Client, context.Context) iter.Seq2[E, error]
	wait      func(*client.Client, context.Context, tasks.ID, time.Duration, *Progress) (T, error)

	table func(T) table    // all that is known
	next  func(T) []string // commands that come next

	// Lists, each with its headings.
	heads, longHeads []string
	line             func(E) []string
	longLine         func(T) []string
}

func (k *kind[T, E]) statusCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "status ID",
		Short: fmt.Sprintf("Show an %s as it stands", k.name),
		Long: fmt.Sprintf(`Shows an %s as it stands: state, progress and %s, its place in the queue if it
waits, what became of each attempt, and if it failed the reason and what can be
done. ID is what %s, and list shows.`, k.name, k.made, k.begins),
		Args: k.arg,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := k.client()
			if err != nil {
				return err
			}
			task, err := k.get(c, cmd.Context(), tasks.ID(args[0]))
			if err != nil {
				return err
			}
			return k.print(task, k.table(task))
		},
	}
}

func (k *kind[T, E]) watchCommand() *cobra.Command {
	var interval time.Duration
	cmd := &cobra.Command{
		Use:   "watch ID",
		Short: fmt.Sprintf("Watch an %s until it has ended", k.name),
		Long: fmt.Sprintf(`Watches an %[1]s until it has ended, and prints the %[2]s. Stopping it does
nothing to the %[1]s.`, k.name, k.made),
		Args: k.arg,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := k.client()
			if err != nil {
				return err
			}
			return k.follow(cmd.Context(), c, tasks.ID(args[0]), interval, k.progress())
		},
	}
	bindInterval(cmd.Flags(), &interval)
	return cmd
}

func (k *kind[T, E]) cancelCommand() *cobra.Command {
	var interval time.Duration
	var wait bool
	cmd := &cobra.Command{
		Use:   "cancel ID",
		Short: fmt.Sprintf("Ask for an %s to stop", k.name),
		Long: fmt.Sprintf(`Asks for an %[1]s to stop. That cannot be withdrawn. With --wait it returns
when everything that the %[1]s had made is removed, with 0; an %[1]s for which
a cancel was asked before is then simply waited for.`, k.name),
		Args: k.arg,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := k.client()
			if err != nil {
				return err
			}
			return k.cancel(cmd.Context(), c, tasks.ID(args[0]), wait, interval)
		},
	}
	cmd.Flags().BoolVar(&wait, "wait", false, fmt.Sprintf("wait until the %s has ended", k.name))
	bindInterval(cmd.Flags(), &interval)
	return cmd
}

func (k *kind[T, E]) retryCommand() *cobra.Command {
	var interval time.Duration
	var wait bool
	cmd := &cobra.Command{
		Use:   "retry ID",
		Short: fmt.Sprintf("Have a failed %s tried again", k.name),
		Long: fmt.Sprintf(`Has an %[1]s tried again that has failed. It keeps its id, and goes on from where
it was if that is kept: status shows until when. Otherwise it begins again. With
--wait, watches it, and prints the %[2]s.`, k.name, k.made),
		Args: k.arg,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := k.client()
			if err != nil {
				return err
			}
			return k.retry(cmd.Context(), c, tasks.ID(args[0]), wait, interval)
		},
	}
	cmd.Flags().BoolVar(&wait, "wait", false, fmt.Sprintf("watch the %s until it has ended", k.name))
	bindInterval(cmd.Flags(), &interval)
	return cmd
}

func (k *kind[T, E]) retry(ctx context.Context, c *client.Client, id tasks.ID, wait bool, interval time.Duration) error {
	if err := k.again(c, ctx, id); err != nil {
		return err
	}
	if wait {
		return k.follow(ctx, c, id, interval, k.progress())
	}
	if k.json {
		return writeJSON(k.env.Stdout, map[string]any{idMember(k.name): id, "retry": "accepted"})
	}
	_, err := fmt.Fprintf(k.env.Stdout, "retry of %s accepted\n", clean(string(id)))
	return err
}

func (k *kind[T, E]) listCommand() *cobra.Command {
	var limit int
	var full bool
	cmd := &cobra.Command{
		Use:   "list",
		Short: fmt.Sprintf("List the %ss, newest first", k.name),
		Long: fmt.Sprintf(`Lists the %[1]ss that the token's project can see, newest first. The API lists
little more than ids and states; --long asks for each %[1]s.`, k.name),
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if limit < 0 {
				return Usagef("--limit must not be negative")
			}
			c, err := k.client()
			if err != nil {
				return err
			}
			return k.list(cmd.Context(), c, limit, full)
		},
	}
	cmd.Flags().IntVarP(&limit, "limit", "n", 100, "how many; 0 lists all")
	cmd.Flags().BoolVarP(&full, "long", "l", false, fmt.Sprintf("show name, progress and more of each %s", k.name))
	return cmd
}

// arg is the argument of the commands that take one task.
func (k *kind[T, E]) arg(cmd *cobra.Command, args []string) error {
	if len(args) != 1 || args[0] == "" {
		return Usagef("%s takes the id of one %s", cmd.Name(), k.name)
	}
	return nil
}

// idMember is what JSON calls the id of a task.
func idMember(name tasks.Kind) string { return string(name) + "_id" }

func (k *kind[T, E]) cancel(ctx context.Context, c *client.Client, id tasks.ID, wait bool, interval time.Duration) error {
	err := k.stop(c, ctx, id)
	if err != nil && !(wait && client.HasCode(err, k.requested)) {
		return err
	}
	if wait {
		err := k.follow(ctx, c, id, interval, k.progress())
		if e, ok := errors.AsType[*Exit](err); ok && e.Code == ExitCanceled {
			return nil // what was asked for
		}
		return err
	}
	if k.json {
		return writeJSON(k.env.Stdout, map[string]any{idMember(k.name): id, "cancel": "accepted"})
	}
	_, err = fmt.Fprintf(k.env.Stdout, "cancel of %s accepted\n", clean(string(id)))
	return err
}

// registered is the rest of a command that has asked for a task: err is what came of
// that.
func (k *kind[T, E]) registered(ctx context.Context, c *client.Client, id tasks.ID, err error, wait bool, interval time.Duration) error {
	if err != nil {
		return k.unregistered(ctx, err)
	}
	if !wait {
		if k.json {
			return writeJSON(k.env.Stdout, map[string]tasks.ID{idMember(k.name): id})
		}
		_, err := fmt.Fprintln(k.env.Stdout, clean(string(id)))
		return err
	}
	p := k.progress()
	p.registered(k.name, id)
	return k.follow(ctx, c, id, interval, p)
}

// unregistered explains a request for a task that failed.
func (k *kind[T, E]) unregistered(ctx context.Context, err error) error {
	if !errors.Is(err, client.ErrUncertain) {
		return err
	}
	e := &Exit{Code: ExitError, Err: err, Hints: []string{k.group + " list --long   to see whether it was"}}
	if ctx.Err() != nil {
		e.Code = ExitInterrupted
	}
	return e
}

// follow watches a task until it has ended, and reports how.
func (k *kind[T, E]) follow(ctx context.Context, c *client.Client, id tasks.ID, interval time.Duration, p *Progress) error {
	task, err := k.look(ctx, c, id, interval, p)
	if err != nil {
		return err
	}
	return k.ended(task)
}

// look watches a task until it has ended. An error says that this was not seen.
func (k *kind[T, E]) look(ctx context.Context, c *client.Client, id tasks.ID, interval time.Duration, p *Progress) (T, error) {
	task, err := k.wait(c, ctx, id, interval, p)
	if stopErr := p.Stop(); err == nil {
		err = stopErr
	}
	if err == nil {
		return task, nil
	}
	var none T
	if e, ok := errors.AsType[*client.Error](err); ok && task == none && e.Status/100 == 4 {
		return task, err // there was nothing to watch
	}
	return task, k.goesOn(ctx, id, err)
}

// goesOn is the error of a watch that ended before the task did.
func (k *kind[T, E]) goesOn(ctx context.Context, id tasks.ID, err error) error {
	e := &Exit{Code: ExitError, Err: err, Kind: k.name, ID: id, Hints: []string{
		fmt.Sprintf("%s watch %s    to go on watching", k.group, id),
		fmt.Sprintf("%s cancel %s   to stop the %s", k.group, id, k.name),
	}}
	if ctx.Err() != nil {
		e.Code, e.Err = ExitInterrupted, fmt.Errorf("interrupted; the %s goes on", k.name)
	}
	return e
}

// ended prints what a finished task made. With --json the last event said it.
func (k *kind[T, E]) ended(task T) error {
	if err := Outcome(task); err != nil || k.json {
		return err
	}
	if err := k.print(task, k.table(task)); err != nil {
		return err
	}
	k.progress().next(k.next(task)...)
	return nil
}

func (k *kind[T, E]) list(ctx context.Context, c *client.Client, limit int, full bool) error {
	entries := []E{} // not nil, which JSON would show as null
	for e, err := range k.all(c, ctx) {
		if err != nil {
			return err
		}
		entries = append(entries, e)
		if len(entries) == limit {
			break
		}
	}
	if !full {
		return printList(k.app, k.name, entries, k.heads, k.line)
	}
	all, err := k.ask(ctx, c, entries)
	if err != nil {
		return err
	}
	return printList(k.app, k.name, all, k.longHeads, k.longLine)
}

// parallelStatuses keeps a long list quick without being a burden.
const parallelStatuses = 8

// ask returns what the entries of a list stand for.
func (k *kind[T, E]) ask(ctx context.Context, c *client.Client, entries []E) ([]T, error) {
	all := make([]T, len(entries))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(parallelStatuses)
	for i, e := range entries {
		group.Go(func() (err error) {
			all[i], err = k.get(c, ctx, e.Identity())
			if client.HasCode(err, client.CodeUnknownImport) {
				return nil // expired since it was listed
			}
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	var none T
	return slices.DeleteFunc(all, func(task T) bool { return task == none }), nil
}

func printList[L any](a *app, name tasks.Kind, lines []L, heads []string, line func(L) []string) error {
	if a.json {
		return writeJSON(a.env.Stdout, map[string][]L{string(name) + "s": lines})
	}
	rows := table{heads}
	for _, l := range lines {
		rows = append(rows, line(l))
	}
	return a.printTable(rows)
}
