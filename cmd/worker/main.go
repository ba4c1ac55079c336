// Command worker runs the imports that vmimport's API has accepted.
package main

import (
	"os"

	"vmimport/internal/app"
)

func main() {
	os.Exit(app.Main(app.RunWorker, os.Args, os.Getenv, os.Stdout, os.Stderr))
}
