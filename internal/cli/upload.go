package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"vmimport/internal/client"
)

// stored is the result of upload.
type stored struct {
	Location  string `json:"location,omitempty"` // if the project is known
	Container string `json:"container"`
	Object    string `json:"object"`
	Bytes     int64  `json:"bytes"`
	SHA1      string `json:"sha1"`
}

func (a *app) uploadCommand() *cobra.Command {
	var to objectFlags
	var sha1Only bool
	cmd := &cobra.Command{
		Use:   "upload FILE",
		Short: "Put a file into object storage and print its SHA-1",
		Long: `Puts FILE into object storage in one PUT, hashing it on the way, and prints the
location and the SHA-1 that import wants. A missing container is created. If the
connection fails the file is sent again from its start, a few times.`,
		Args: fileArg,
		RunE: func(cmd *cobra.Command, args []string) error {
			if sha1Only {
				return a.hash(cmd.Context(), args[0])
			}
			return a.upload(cmd.Context(), args[0], to)
		},
	}
	to.bind(cmd.Flags(), a.env)
	cmd.Flags().BoolVar(&sha1Only, "sha1-only", false, "print the SHA-1 and send nothing")
	return cmd
}

func (a *app) upload(ctx context.Context, file string, to objectFlags) error {
	object, err := to.of(file)
	if err != nil {
		return err
	}
	out := stored{Container: object.Container, Object: object.Name}
	if a.projectID != "" {
		if out.Location, err = a.location(object); err != nil {
			return err
		}
	}
	c, err := a.objectsClient()
	if err != nil {
		return err
	}
	f, size, err := openFile(file)
	if err != nil {
		return err
	}
	defer f.Close()
	out.Bytes = size

	p := a.progress()
	obs := p.Observer()
	if out.SHA1, err = c.Upload(ctx, object, f, size, obs.Uploading); err == nil {
		obs.Uploaded(out.SHA1)
	}
	if stopErr := p.Stop(); err == nil {
		err = stopErr
	}
	if err != nil {
		return stopped(ctx, err)
	}
	return a.print(out, table{
		{"location", out.Location}, {"container", out.Container}, {"object", out.Object},
		{"bytes", fmt.Sprint(out.Bytes)}, {"sha1", out.SHA1},
	})
}

func (a *app) hash(ctx context.Context, file string) error {
	f, size, err := openFile(file)
	if err != nil {
		return err
	}
	defer f.Close()
	p := a.progress()
	sum, err := client.SHA1(ctx, f, size, func(t client.Transfer) { p.transfer("hash", t) })
	if stopErr := p.Stop(); err == nil {
		err = stopErr
	}
	if err != nil {
		return err
	}
	return a.print(struct {
		Bytes int64  `json:"bytes"`
		SHA1  string `json:"sha1"`
	}{size, sum}, table{{"bytes", fmt.Sprint(size)}, {"sha1", sum}})
}

// objectFlags say where a file goes, or where it is.
type objectFlags struct{ container, object string }

func (f *objectFlags) bind(flags *pflag.FlagSet, env Env) {
	flags.StringVar(&f.container, "container", env.Getenv("VMIMPORT_CONTAINER"), "container of the object")
	flags.StringVar(&f.object, "object", "", "name of the object, may have slashes (default: base name of FILE)")
}

// of returns the object for a file, which gives it its name if no flag does.
func (f objectFlags) of(file string) (client.Object, error) {
	if f.container == "" {
		return client.Object{}, Usagef("no container: set VMIMPORT_CONTAINER or --container")
	}
	o := client.Object{Container: f.container, Name: f.object}
	if o.Name == "" {
		o.Name = filepath.Base(file)
	}
	if err := o.Check(); err != nil {
		return o, Usagef("%w", err)
	}
	return o, nil
}

// objectsClient is client for the commands that send files.
func (a *app) objectsClient() (*client.Client, error) {
	if a.objectsURL == "" {
		return nil, Usagef("no object storage: set VMIMPORT_OBJECTS_URL or --objects-url")
	}
	return a.client()
}

// openFile opens a regular file, which alone can be read again after a failure
// and has a length to announce.
func openFile(name string) (*os.File, int64, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, 0, err
	}
	info, err := f.Stat()
	switch {
	case err != nil:
	case !info.Mode().IsRegular():
		err = fmt.Errorf("open %s: not a regular file", name)
	case info.Size() == 0:
		err = fmt.Errorf("open %s: the file is empty", name)
	}
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	return f, info.Size(), nil
}

// stopped explains an interrupted upload. Stores keep no part of an object, but
// the last byte may have arrived just before the interrupt.
func stopped(ctx context.Context, err error) error {
	if ctx.Err() == nil {
		return err
	}
	return &Exit{Code: ExitInterrupted, Err: errors.New("interrupted; the upload was stopped before the store had confirmed it")}
}
