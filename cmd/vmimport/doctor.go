package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"vmimport/internal/app"
	"vmimport/internal/cli"
	"vmimport/internal/config"
)

// errUnhealthy is the error of a doctor who found something; what it was has
// been printed.
var errUnhealthy = errors.New("not everything is in order")

func doctorCommand(env cli.Env) *cobra.Command {
	var path string
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Check everything that the service's configuration depends on",
		Long: `Reads the configuration of the API and worker and checks every dependency that it
names: Redis, its version, memory and replicas, and whether it is set up to keep
what it accepts; whether the queue moves; scratch space, open files and the audit
log; each region's cloud, tokens, object store and image service; webhooks'
receivers and the collector of traces; and all clocks against this machine's.
Nothing is changed.

Run it as the user that the service runs as, on the machine that it runs on.
The exit code is 0 if everything is in order, else 1.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if path == "" {
				return cli.Usagef("no configuration: set VMIMPORT_CONFIG or --config")
			}
			// Below this level the Redis client's own words about each try are not shown.
			app.NewLogger(env.Stderr, "error", "doctor")
			findings := diagnose(cmd.Context(), path, env.Getenv)
			if err := cmd.Context().Err(); err != nil {
				return err
			}
			asJSON, _ := cmd.Flags().GetBool("json")
			if err := printFindings(env, findings, asJSON); err != nil {
				return err
			}
			if slices.ContainsFunc(findings, func(f app.Finding) bool { return !f.OK }) {
				return errUnhealthy
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&path, "config", env.Getenv("VMIMPORT_CONFIG"), "configuration `file`; default $VMIMPORT_CONFIG")
	return cmd
}

func diagnose(ctx context.Context, path string, getenv func(string) string) []app.Finding {
	cfg, err := config.Load(path, getenv)
	if err == nil {
		err = cfg.Validate()
	}
	if err != nil {
		return app.Misconfigured(err)
	}
	return app.Diagnose(ctx, cfg)
}

func printFindings(env cli.Env, findings []app.Finding, asJSON bool) error {
	if asJSON {
		enc := json.NewEncoder(env.Stdout)
		enc.SetEscapeHTML(false)
		return enc.Encode(map[string]any{"findings": findings})
	}
	for _, f := range findings {
		word := "ok"
		if !f.OK {
			word = "FAIL"
		}
		line := fmt.Sprintf("%-5s %s", word, f.Check)
		if f.Message != "" {
			line += ": " + f.Message
		}
		if f.Remedy != "" {
			line += "\n      " + f.Remedy
		}
		if _, err := fmt.Fprintln(env.Stdout, line); err != nil {
			return err
		}
	}
	return nil
}
