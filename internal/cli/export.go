package cli

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"vmimport/internal/client"
	"vmimport/tasks"
)

func (a *app) exportCommand() *cobra.Command {
	var to exportFlags
	var wait bool
	var interval time.Duration
	cmd := &cobra.Command{
		Use:   "export IMAGE",
		Short: "Ask for the export of an image and print the export's id",
		Long: `Asks for the export of an image, named by its id, into a container of object
storage. Nothing that is there is replaced: if an object has one of the names that
are to be written, the export is refused. A missing container is created if
VMIMPORT_OBJECTS_URL or --objects-url is set. Prints the id of the export; with
--wait, watches it, and prints the objects.

What is written of an image called web01:
  --for cloud   web01.img.gz or web01.qcow2.gz, and web01.json, of which an
                import in another region makes the same image
  --for vmware  web01.vmdk, web01.ovf and web01.mf
  --for kvm     web01.qcow2`,
		Args: exportArg,
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := to.of(a, args[0])
			if err != nil {
				return err
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			id, err := c.Export(cmd.Context(), r)
			return a.exports().registered(cmd.Context(), c, id, err, wait, interval)
		},
		SuggestionsMinimumDistance: 2,
	}
	to.bind(cmd.Flags())
	cmd.Flags().BoolVar(&wait, "wait", false, "watch the export until it has ended")
	bindInterval(cmd.Flags(), &interval)
	exports := a.exports()
	cmd.AddCommand(exports.listCommand(), exports.statusCommand(), exports.watchCommand(), exports.cancelCommand(), exports.retryCommand())
	return cmd
}

// exportArg is the argument of the commands that take one image.
func exportArg(cmd *cobra.Command, args []string) error {
	if len(args) != 1 || args[0] == "" {
		return Usagef("%s takes the id of one image", cmd.Name())
	}
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		return Usagef("%q is no id of an image; did you mean %s?", args[0], strings.Join(near, " or "))
	}
	return nil
}

// exportFlags say where an image goes, and as what.
type exportFlags struct{ container, purpose string }

// purposes are what an image can be exported for, the default first.
var purposes = []string{"cloud", "vmware", "kvm"}

func (f *exportFlags) bind(flags *pflag.FlagSet) {
	flags.StringVar(&f.container, "to", "", "name of the container that the objects are written into")
	flags.StringVar(&f.purpose, "for", purposes[0], "what the image is exported for: "+strings.Join(purposes, ", "))
}

func (f *exportFlags) check() error {
	if f.container == "" {
		return Usagef("no container: set --to")
	}
	if !slices.Contains(purposes, f.purpose) {
		return Usagef("--for is one of %s, not %q", strings.Join(purposes, ", "), f.purpose)
	}
	return nil
}

// of returns the request to export an image.
func (f *exportFlags) of(a *app, image string) (client.ExportRequest, error) {
	r := client.ExportRequest{ImageID: image}
	if err := f.check(); err != nil {
		return r, err
	}
	if f.purpose != purposes[0] {
		r.ImageTo = f.purpose
	}
	profile, err := a.regionProfile()
	r.StorageContainer = profile.ContainerLocation(a.projectID, f.container)
	return r, err
}

// exports are the commands about exports.
func (a *app) exports() *kind[*client.Export, client.ExportEntry] {
	return &kind[*client.Export, client.ExportEntry]{
		app: a, name: tasks.KindExport, group: "vmimport export", made: "objects", begins: "export prints",
		get: (*client.Client).ExportStatus, stop: (*client.Client).CancelExport, again: (*client.Client).RetryExport, requested: client.CodeExportCancelRequested, all: (*client.Client).ListExports,
		wait: func(c *client.Client, ctx context.Context, id tasks.ID, interval time.Duration, p *Progress) (*client.Export, error) {
			return c.WaitForExport(ctx, id, interval, p.ExportObserver())
		},
		table: exportTable,
		next:  nextImport,
		heads: []string{"EXPORT", "STATUS", "IMAGE", "REQUESTED"},
		line: func(e client.ExportEntry) []string {
			return []string{string(e.ExportID), string(e.State), e.ImageID, e.RequestTime}
		},

		longHeads: []string{"EXPORT", "STATUS", "PROGRESS", "NAME", "IMAGE", "CONTAINER"},
		longLine: func(e *client.Export) []string {
			return []string{string(e.ExportID), string(e.State), fmt.Sprintf("%d%%", e.Progress), e.ImageName, e.ImageID, e.StorageContainer}
		},
	}
}

// exportTable tells what is known about an export, a line for each thing.
func exportTable(e *client.Export) table {
	x := e.Extra
	t := append(standing(e),
		[]string{"image", e.ImageID},
		[]string{"name", e.ImageName},
		[]string{"container", e.StorageContainer},
		[]string{"for", e.ImageTo()},
	)
	t = append(t, moved(e)...)
	t = append(t, []string{"source format", x.SourceFormat}, []string{"capacity", capacity(x.VirtualSize)}, []string{"checksum", x.Checksum})
	for _, o := range x.Objects {
		t = append(t, []string{"object", o.Name, exactly(o.Bytes)})
	}
	return slices.Concat(t, outcome(e), attempts(e))
}

// nextImport returns the command that imports what was exported for another region.
func nextImport(e *client.Export) []string {
	_, at, ok := client.ParseLocation(e.StorageContainer)
	if !ok || len(e.Extra.Objects) == 0 || e.ImageTo() != purposes[0] {
		return nil
	}
	command := "vmimport import --container " + ShellWord(at.Container) + " --object " + ShellWord(e.Extra.Objects[0].Name)
	if e.Extra.Checksum != "" {
		command += " --checksum " + e.Extra.Checksum
	}
	return []string{command + "   in the region where it shall run"}
}
