package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"vmimport/internal/client"
	"vmimport/internal/diskimage"
	"vmimport/internal/diskimage/inspect"
)

// importable are the formats that an import takes, each with the extensions that
// declare it.
var importable = []struct {
	format     diskimage.Format
	extensions []string
}{
	{diskimage.QCOW2, []string{".qcow2"}},
	{diskimage.VMDK, []string{".vmdk"}},
	{diskimage.Raw, []string{".raw", ".img"}},
	{diskimage.VHD, []string{".vhd"}},
	{diskimage.VHDX, []string{".vhdx"}},
	{diskimage.VDI, []string{".vdi"}},
	{diskimage.OVA, []string{".ova"}},
}

const compressed = ".gz"

func (a *app) inspectCommand() *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use:   "inspect FILE|LOCATION",
		Short: "Say what a disk image is, and whether it could be imported",
		Long: `Says what a disk image is: its format, its disks and their partitions, and
whether an import would take it. It reads headers and tables and none of the
data, so it is quick, and damage in the data stays unseen.

LOCATION is an object, as /v2/AUTH_<project>/<container>/<object> or the same
with /v1; anything else is a FILE.

Exits with 0 if the image could be imported, and with 3 if an import would fail.`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 || args[0] == "" {
				return Usagef("%s takes one file or location", cmd.Name())
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			declared, err := parseFormat(format)
			if err != nil {
				return err
			}
			return a.inspect(cmd.Context(), args[0], declared)
		},
	}
	cmd.Flags().StringVar(&format, "format", "", "what the image must be, such as qcow2 or qcow2.gz (default: whatever it is)")
	return cmd
}

func parseFormat(s string) (diskimage.Declared, error) {
	d := diskimage.ParseDeclared(s)
	var known []string
	for _, f := range importable {
		if s == "" || f.format == d.Format {
			return d, nil
		}
		known = append(known, string(f.format))
	}
	return d, Usagef("--format is one of %s, also with %s, and not %q", strings.Join(known, ", "), compressed, s)
}

// inspected is the result of inspect.
type inspected struct {
	File     string `json:"file,omitempty"`
	Location string `json:"location,omitempty"`
	*inspect.Report
}

func (a *app) inspect(ctx context.Context, name string, declared diskimage.Declared) error {
	out := inspected{File: name}
	var f *diskimage.File
	if project, object, ok := client.ParseLocation(name); ok {
		out = inspected{Location: name}
		r, err := a.openObject(ctx, project, object)
		if err != nil {
			return err
		}
		f = diskimage.NewFile(r, r.Size())
	} else {
		r, size, err := openFile(name)
		if err != nil {
			return err
		}
		defer r.Close()
		f = diskimage.NewFile(interruptible{ctx, r}, size)
	}
	var err error
	if out.Report, err = inspect.Inspect(ctx, f, inspect.Options{Declared: declared}); err != nil {
		return fmt.Errorf("inspect %s: %w", name, err)
	}
	if note := misnamed(name, out.Report); note != "" {
		out.Warnings = append(out.Warnings, note)
	}
	if a.json {
		err = writeJSON(a.env.Stdout, out)
	} else {
		err = a.printTable(inspectedTable(out))
	}
	if err == nil && !out.Importable {
		err = &Exit{Code: ExitFailed, Err: errors.New("an import would fail: " + out.Refusal.Code)}
	}
	return err
}

// openObject opens an object of the project that the settings are for.
func (a *app) openObject(ctx context.Context, project string, o client.Object) (*client.ObjectReader, error) {
	if err := o.Check(); err != nil {
		return nil, Usagef("%w", err)
	}
	c, err := a.objectsClient()
	if err != nil {
		return nil, err
	}
	if own := path.Base(a.objectsURL); strings.HasPrefix(own, "AUTH_") && own != "AUTH_"+project {
		return nil, Usagef("the location is of another project than VMIMPORT_OBJECTS_URL")
	}
	return c.OpenObject(ctx, o)
}

// interruptible is a file that cannot be read any more when ctx is over.
type interruptible struct {
	ctx  context.Context
	file io.ReaderAt
}

func (r interruptible) ReadAt(p []byte, off int64) (int, error) {
	if r.ctx.Err() != nil {
		return 0, context.Cause(r.ctx)
	}
	return r.file.ReadAt(p, off)
}

// misnamed says that the extension of an image that could be imported declares
// something else, or "".
func misnamed(name string, r *inspect.Report) string {
	inside, gzip := strings.CutSuffix(filepath.Base(name), compressed)
	ext := filepath.Ext(inside)
	found := diskimage.ParseDeclared(r.Format)
	for _, f := range importable {
		if !r.Importable || !slices.Contains(f.extensions, ext) {
			continue
		}
		// Within gzip nothing tells a fixed VHD from a raw disk but its end.
		agrees := f.format == found.Format || gzip && f.format == diskimage.VHD && found.Format == diskimage.Raw
		if agrees && gzip == found.Gzip {
			return ""
		}
		if gzip {
			ext += compressed
		}
		return fmt.Sprintf("The name ends in %s, and the contents are %s: an import goes by the name, and would refuse it.", ext, r.Format)
	}
	return ""
}

// inspectedTable tells what was found: the whole first, then each disk.
func inspectedTable(r inspected) table {
	verdict := "yes"
	var why inspect.Refusal
	if r.Refusal != nil {
		verdict, why = "no", *r.Refusal
	}
	rows := present(table{
		{"file", r.File},
		{"location", r.Location},
		{"importable", verdict},
		{"reason", why.Message},
		{"evidence", why.Evidence},
		{"remedy", why.Remedy},
		{"code", why.Code},
		{"format", r.Format},
		{"size", exactly(r.FileSize)},
	}, r.Warnings)
	for i, d := range r.Disks {
		rows = append(rows, nil)
		rows = append(rows, diskTable(i+1, d)...)
	}
	return rows
}

func diskTable(number int, d inspect.Disk) table {
	what := d.Format
	if d.Variant != "" && d.Variant != d.Format {
		what += " (" + d.Variant + ")"
	}
	capacity := "unknown until it is unpacked"
	if d.VirtualSize != nil {
		capacity = exactly(*d.VirtualSize)
	}
	var boot []string
	for _, firmware := range d.Boot {
		boot = append(boot, string(firmware))
	}
	rows := present(table{
		{"disk", fmt.Sprint(number)},
		{"member", d.Member},
		{"format", what},
		{"capacity", capacity},
		{"is read", d.Reads},
		{"partitions", string(d.PartitionTable)},
		{"boots by", strings.Join(boot, ", ")},
	}, d.Warnings)
	if len(d.Partitions) > 0 {
		rows = append(rows, nil, []string{"NUMBER", "START", "SIZE", "BOOTABLE", "TYPE"})
	}
	for _, p := range d.Partitions {
		kind, bootable := p.Type, "no"
		if p.TypeName != "" {
			kind = p.TypeName + " (" + p.Type + ")"
		}
		if p.Bootable {
			bootable = "yes"
		}
		rows = append(rows, []string{fmt.Sprint(p.Number), exactly(p.Start), exactly(p.Size), bootable, kind})
	}
	return rows
}

// present leaves out the rows without a value, and adds one for each warning.
func present(rows table, warnings []string) table {
	rows = slices.DeleteFunc(rows, func(row []string) bool { return row[1] == "" })
	for _, w := range warnings {
		rows = append(rows, []string{"warning", w})
	}
	return rows
}

// exactly tells a size so that it can be read, and to the byte.
func exactly(n int64) string {
	if n < 1024 {
		return fmt.Sprintf("%d bytes", n)
	}
	return fmt.Sprintf("%s (%d bytes)", formatBytes(n), n)
}
