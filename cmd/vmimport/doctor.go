package main

import (
	"encoding/json"
	"errors"
	"fmt"

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
names: Redis and whether it is set up to keep what it accepts, the clock, and
each region's object store and image service. Nothing is changed.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := config.Load(path, env.Getenv)
			if err == nil {
				err = cfg.Validate()
			}
			if err != nil {
				return err
			}
			findings := app.Diagnose(cmd.Context(), cfg)
			if asJSON, _ := cmd.Flags().GetBool("json"); asJSON {
				enc := json.NewEncoder(env.Stdout)
				enc.SetIndent("", "  ")
				err = enc.Encode(map[string]any{"findings": findings})
			} else {
				printFindings(env, findings)
			}
			for _, f := range findings {
				if !f.OK && err == nil {
					err = errUnhealthy
				}
			}
			return err
		},
	}
	cmd.Flags().StringVar(&path, "config", env.Getenv("VMIMPORT_CONFIG"), "configuration `file`; default $VMIMPORT_CONFIG")
	return cmd
}

func printFindings(env cli.Env, findings []app.Finding) {
	for _, f := range findings {
		word := "ok"
		if !f.OK {
			word = "FAIL"
		}
		fmt.Fprintf(env.Stdout, "%-5s %s", word, f.Check)
		if f.Message != "" {
			fmt.Fprintf(env.Stdout, ": %s", f.Message)
		}
		fmt.Fprintln(env.Stdout)
		if f.Remedy != "" {
			fmt.Fprintf(env.Stdout, "      %s\n", f.Remedy)
		}
	}
}
