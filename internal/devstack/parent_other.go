//go:build unix && !linux

package devstack

import (
	"os/exec"
	"syscall"
)

// dieWithParent keeps a Ctrl-C meant for this process from reaching cmd. Unlike
// on Linux, a kill -9 of this process leaves cmd.
func dieWithParent(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
}
