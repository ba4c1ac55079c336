// Command api serves vmimport's HTTP APIs.
package main

import (
	"os"

	"vmimport/internal/app"
)

func main() {
	os.Exit(app.Main(app.RunAPI, os.Args, os.Getenv, os.Stdout, os.Stderr))
}
