// Command serve starts a cloud for a look by hand, and stops it when it is interrupted:
//
//	go run ./internal/testenv/openstack/serve [-compute]
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"vmimport/internal/testenv/openstack"
)

func main() {
	compute := flag.Bool("compute", false, "start Nova as well")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := serve(ctx, *compute); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func serve(ctx context.Context, compute bool) error {
	began := time.Now()
	c, err := openstack.Start(ctx)
	if err != nil {
		return err
	}
	defer c.Stop()
	if compute {
		if _, err := c.StartCompute(ctx); err != nil {
			return err
		}
	}
	fmt.Printf("# Up in %s, in %s. Paste one block into a shell.\n", time.Since(began).Round(100*time.Millisecond), c.Dir)
	for _, u := range []*openstack.User{c.Alpha, c.Beta, c.Service, c.Admin} {
		fmt.Printf("\n# %s of project %s in domain %s\n", u.Name, u.ProjectName, u.Domain)
		for _, v := range c.Env(u) {
			if name, value, _ := strings.Cut(v, "="); strings.HasPrefix(name, "OS_") {
				fmt.Printf("export %s='%s'\n", name, value)
			}
		}
	}
	fmt.Printf("\n# Interrupt to stop.\n")
	<-ctx.Done()
	return nil
}
