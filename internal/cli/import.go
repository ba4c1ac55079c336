package cli

import (
	"errors"
	"path"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"vmimport/internal/client"
)

func (a *app) importCommand() *cobra.Command {
	var from objectFlags
	var req requestFlags
	var location, s3Location, checksum string
	var wait bool
	var interval time.Duration
	cmd := &cobra.Command{
		Use:   "import",
		Short: "Ask for the import of an object and print the import's id",
		Long: `Asks for the import of an object in object storage. The object is named by
--location or --s3-location as the API wants it, or by --container and --object.
Prints the id of the import; with --wait, watches it and prints the image.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := a.source(location, s3Location, from)
			if err != nil {
				return err
			}
			if r, err = req.of(r); err != nil {
				return err
			}
			r.Checksum = checksum
			c, err := a.client()
			if err != nil {
				return err
			}
			id, err := c.Register(cmd.Context(), r)
			return a.imports().registered(cmd.Context(), c, id, err, wait, interval)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&location, "location", "", "object, as /v2/AUTH_<project>/<container>/<object>, nothing encoded")
	flags.StringVar(&s3Location, "s3-location", "", "object, as /<bucket>/<object>")
	flags.StringVar(&checksum, "checksum", "", "SHA-1 of the object, 40 hex digits; without it nothing is compared")
	flags.BoolVar(&wait, "wait", false, "watch the import until it has ended")
	from.bind(flags, a.env)
	flags.Lookup("object").Usage = "name of the object, may have slashes"
	req.bind(flags)
	bindInterval(flags, &interval)
	return cmd
}

// source returns a registration that names the object.
func (a *app) source(location, s3Location string, from objectFlags) (client.Registration, error) {
	given := 0
	for _, s := range []string{location, s3Location, from.object} {
		if s != "" {
			given++
		}
	}
	if given != 1 {
		return client.Registration{}, Usagef("import takes exactly one of --location, --s3-location and --object")
	}
	if from.object == "" {
		return client.Registration{Location: location, S3Location: s3Location}, nil
	}
	object, err := from.of("")
	if err != nil {
		return client.Registration{}, err
	}
	location, err = a.location(object)
	return client.Registration{Location: location}, err
}

// requestFlags are the members of a registration that import and push share.
type requestFlags struct {
	name, osType, id, imageFrom string
	minRAM, minDisk             int64
	expansion                   bool
}

// osTypes are the values of the API's gen3 profile. The service decides; the
// list is for the help.
var osTypes = strings.Join([]string{
	"ubuntu", "rocky", "rhel7", "rhel8",
	"win2016SE_ja", "win2019SE", "win2016SE_SQL2016SE", "win2019SE_SQL2019SE",
}, ", ")

func (f *requestFlags) bind(flags *pflag.FlagSet) {
	flags.StringVar(&f.name, "name", "", "name of the image (default: of the object, without its extension;\nof an exported image the name that it had)")
	flags.StringVar(&f.osType, "os-type", "", "guest system, not needed for exported images, one of\n"+osTypes)
	flags.StringVar(&f.id, "id", "", "UUID for the image (default: a new one; of an exported image the one\nthat it had, if it is free)")
	flags.Int64Var(&f.minRAM, "min-ram", 0, "memory that a server of the image needs, in MB")
	flags.Int64Var(&f.minDisk, "min-disk", 0, "disk that a server of the image needs, in GB")
	flags.StringVar(&f.imageFrom, "image-from", "", "hypervisor that the image comes from, vmware or kvm\n(default: kvm for .qcow2, else the service's)")
	flags.BoolVar(&f.expansion, "expansion", false, "the object is an exported image of expansion storage, a data disk")
}

// of completes a registration that names its object.
//
// An image that was exported from the cloud has its name and its guest system
// in a metadata object; a data disk has no guest system, and its name is not
// taken from there. For others the guest system is not guessed: it decides
// about drivers and licences.
func (f *requestFlags) of(r client.Registration) (client.Registration, error) {
	r.Name, r.OSType, r.ID, r.MinRAM, r.MinDisk, r.Expansion = f.name, f.osType, f.id, f.minRAM, f.minDisk, f.expansion
	if r.Expansion && (r.OSType != "" || r.MinRAM != 0 || r.MinDisk != 0 || f.imageFrom != "") {
		return r, Usagef("--expansion takes no --os-type, --min-ram, --min-disk and --image-from: no server starts from a data disk")
	}
	object := path.Base(r.Location + r.S3Location) // one of them is empty
	inside, compressed := strings.CutSuffix(object, ".gz")
	ext := path.Ext(inside)
	exported := compressed && (ext == ".img" || ext == ".qcow2")
	if r.OSType == "" && !exported && !r.Expansion {
		return r, &Exit{
			Code: ExitUsage, Err: errors.New("--os-type is missing: it says what the guest is, and a wrong one may not boot"),
			Hints: []string{"one of " + osTypes},
		}
	}
	if r.Name == "" && (!exported || r.Expansion) {
		r.Name = strings.TrimSuffix(inside, ext)
	}
	switch {
	case f.imageFrom != "":
		r.Details = &client.Details{ImageFrom: f.imageFrom}
	case path.Ext(object) == ".qcow2":
		r.Details = &client.Details{ImageFrom: "kvm"}
	}
	return r, nil
}

func bindInterval(flags *pflag.FlagSet, interval *time.Duration) {
	flags.DurationVar(interval, "interval", 2*time.Second, "longest time between two looks")
}
