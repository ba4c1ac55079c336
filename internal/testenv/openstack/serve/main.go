// Command serve starts a cloud for a look by hand, and stops it when it is interrupted:
//
//	go run ./internal/testenv/openstack/serve
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"vmimport/internal/testenv/openstack"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := serve(ctx); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func serve(ctx context.Context) error {
	began := time.Now()
	c, err := openstack.Start(ctx)
	if err != nil {
		return err
	}
	defer c.Stop()
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
