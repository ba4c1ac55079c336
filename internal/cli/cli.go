// Package cli is the command line: one command for each call of the REST
// dialect, and push, which is all about an import in one.
//
// Results go to stdout; progress, notes and errors go to stderr. With --json
// stdout carries JSON documents only, whose members are as stable as the API's.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"vmimport/internal/client"
	"vmimport/internal/secret"
)

// Exit codes. They are part of the interface, and listed in the help.
const (
	ExitOK          = 0
	ExitError       = 1
	ExitUsage       = 2
	ExitFailed      = 3 // the import or export failed, or the image of a server
	ExitCanceled    = 4 // the import or export was canceled
	ExitInterrupted = 130
)

const long = `vmimport puts disk images into object storage and asks an import service to
make bootable images of them, or to write images into object storage.

Environment (flags win):
  VMIMPORT_ENDPOINT     address of the service
  VMIMPORT_TOKEN        token that is scoped to a project; there is no flag for
                        it, since everyone on the machine can read command lines
                        (--token-file reads it from a file)
  VMIMPORT_PROJECT_ID   id of that project
  VMIMPORT_REGION       region; decides the default of --profile
  VMIMPORT_OBJECTS_URL  address that the project's containers lie under
  VMIMPORT_CONTAINER    default of --container
  OS_*                  of the cloud's openrc file, for the server commands

Exit codes:
  0    done
  1    error: refused, no answer, or a file that cannot be read
  2    wrong usage, or a setting is missing
  3    the import or export failed; inspect: an import would fail; server: the
       server is in the state ERROR, or the cloud could not make the image
  4    the import or export was canceled
  130  interrupted; an import or export that was registered goes on`

// Env is what a command line gets from the system.
type Env struct {
	Args           []string // without the program's name
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	Getenv         func(string) string
	// Columns is the width of the terminal that Stderr is, 0 if it is none.
	// It is asked before each redraw.
	Columns func() int
	HTTP    *http.Client // nil: the client's default
}

// OSEnv returns the process's own Env.
func OSEnv() Env {
	columns := func() int { return terminalColumns(os.Stderr) }
	if os.Getenv("TERM") == "dumb" {
		columns = func() int { return 0 }
	}
	return Env{
		Args: os.Args[1:], Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
		Getenv: os.Getenv, Columns: columns,
	}
}

// Main runs a command line until it has ended or ctx has, prints its error, and
// returns the exit code. See New for extra.
func Main(ctx context.Context, env Env, extra ...*cobra.Command) int {
	root := New(env, extra...)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return ExitOK
	}
	code := exitCode(ctx, err)
	asJSON, _ := root.PersistentFlags().GetBool("json")
	describe(err, code).print(env.Stderr, asJSON)
	return code
}

func exitCode(ctx context.Context, err error) int {
	if e, ok := errors.AsType[*Exit](err); ok {
		return e.Code
	}
	if ctx.Err() != nil {
		return ExitInterrupted
	}
	return ExitError
}

// New returns the root command with all commands of this package and extra.
//
// Commands return errors and leave printing them to Main. They find --json and
// --quiet among their flags.
func New(env Env, extra ...*cobra.Command) *cobra.Command {
	a := &app{env: env}
	root := &cobra.Command{
		Use:           "vmimport",
		Short:         "Import and export VM disk images",
		Long:          long,
		SilenceErrors: true, // printed by Main
		SilenceUsage:  true,
		RunE: func(cmd *cobra.Command, args []string) error {
			// Cobra's own check of the command's name knows no usage error.
			if len(args) == 0 {
				return Usagef("no command; see '%s --help'", cmd.Name())
			}
			if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
				return Usagef("unknown command %q; did you mean %s?", args[0], strings.Join(near, " or "))
			}
			return Usagef("unknown command %q; see '%s --help'", args[0], cmd.Name())
		},
		Args:                       cobra.ArbitraryArgs,
		SuggestionsMinimumDistance: 2,
	}
	root.SetArgs(append([]string{}, env.Args...)) // nil would mean os.Args
	root.SetIn(env.Stdin)
	root.SetOut(env.Stdout)
	root.SetErr(env.Stderr)
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return Usagef("%w; see '%s --help'", err, cmd.CommandPath())
	})

	flags := root.PersistentFlags()
	flags.BoolVar(&a.json, "json", false, "print JSON on stdout; commands that wait print one event per line")
	flags.BoolVarP(&a.quiet, "quiet", "q", false, "print no progress and no notes")
	flags.StringVar(&a.endpoint, "endpoint", env.Getenv("VMIMPORT_ENDPOINT"), "address of the service")
	flags.StringVar(&a.tokenFile, "token-file", "", "read the token from this file, or from stdin if -")
	flags.StringVar(&a.projectID, "project-id", env.Getenv("VMIMPORT_PROJECT_ID"), "project that the token is scoped to")
	flags.StringVar(&a.region, "region", env.Getenv("VMIMPORT_REGION"), "region of the service")
	flags.StringVar(&a.profile, "profile", "", "kind of region, gen3 or classic: locations start with /v2 or /v1\n(default by region, else gen3)")
	flags.StringVar(&a.objectsURL, "objects-url", env.Getenv("VMIMPORT_OBJECTS_URL"), "address that the project's containers lie under")

	imports := a.imports()
	root.AddCommand(a.pushCommand(), a.uploadCommand(), a.importCommand(), imports.listCommand(),
		imports.statusCommand(), imports.watchCommand(), imports.cancelCommand(), imports.retryCommand(), a.eventsCommand(), a.exportCommand(), a.inspectCommand(), a.serverCommand(), a.versionCommand())
	for _, cmd := range extra {
		if check := cmd.Args; check != nil { // cobra's own checks know no usage error
			cmd.Args = func(cmd *cobra.Command, args []string) error {
				if err := check(cmd, args); err != nil {
					return Usagef("%w", err)
				}
				return nil
			}
		}
		root.AddCommand(cmd)
	}
	return root
}

// app is what the commands share: the system and the global flags.
type app struct {
	env Env

	json, quiet bool

	endpoint, tokenFile        string
	projectID, region, profile string
	objectsURL                 string
}

// client returns the client that the flags and the environment describe.
func (a *app) client() (*client.Client, error) {
	if err := a.hasService(); err != nil {
		return nil, err
	}
	token, err := a.token()
	if err != nil {
		return nil, err
	}
	return a.clientOf(token)
}

func (a *app) hasService() error {
	if a.endpoint == "" {
		return Usagef("no service: set VMIMPORT_ENDPOINT or --endpoint")
	}
	return nil
}

// clientOf is client with a token from elsewhere.
func (a *app) clientOf(token secret.Text) (*client.Client, error) {
	c, err := client.New(client.Options{Endpoint: a.endpoint, ObjectsURL: a.objectsURL, Token: token, HTTP: a.env.HTTP})
	if err != nil {
		return nil, Usagef("%w", err)
	}
	return c, nil
}

func (a *app) token() (secret.Text, error) {
	var token secret.Text
	var err error
	switch a.tokenFile {
	case "":
		token = secret.New(a.env.Getenv("VMIMPORT_TOKEN"))
	case "-":
		var b []byte
		if b, err = io.ReadAll(io.LimitReader(a.env.Stdin, 1<<16)); err == nil {
			token = secret.New(strings.TrimSpace(string(b)))
		}
	default:
		token, err = secret.FromFile(a.tokenFile)
	}
	if err != nil {
		return token, fmt.Errorf("token: %w", err)
	}
	if token.IsZero() {
		return token, Usagef("no token: set VMIMPORT_TOKEN or --token-file")
	}
	return token, nil
}

// location names o as the region's profile wants it.
func (a *app) location(o client.Object) (string, error) {
	profile, err := a.regionProfile()
	return profile.Location(a.projectID, o), err
}

// regionProfile returns the region's profile, for locations of the project.
func (a *app) regionProfile() (client.Profile, error) {
	if a.projectID == "" {
		return "", Usagef("no project: set VMIMPORT_PROJECT_ID or --project-id")
	}
	profile := client.Profile(a.profile)
	switch profile {
	case "":
		profile = client.ProfileOf(a.region)
	case client.Gen3, client.Classic:
	default:
		return "", Usagef("--profile is gen3 or classic, not %q", a.profile)
	}
	return profile, nil
}

// progress returns the Progress that the flags ask for.
func (a *app) progress() *Progress {
	return NewProgress(a.env, a.json, a.quiet)
}

func fileArg(cmd *cobra.Command, args []string) error {
	if len(args) != 1 || args[0] == "" {
		return Usagef("%s takes one file", cmd.Name())
	}
	return nil
}

func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return Usagef("%s takes no arguments, but has %q", cmd.Name(), args[0])
	}
	return nil
}
