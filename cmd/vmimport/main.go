// Command vmimport is the command line of the service, and with standalone and
// demo the service itself.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"vmimport/internal/cli"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // so that a second signal ends the program at once
	env := cli.OSEnv()
	os.Exit(cli.Main(ctx, env, standaloneCommand(env), demoCommand(env), doctorCommand(env)))
}
