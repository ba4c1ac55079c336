//go:build !linux

package devstack

import "os/exec"

// dieWithParent has no counterpart here: a kill -9 of this process leaves cmd.
func dieWithParent(*exec.Cmd) {}
