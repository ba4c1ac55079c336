package devstack

import (
	"os/exec"
	"syscall"
)

// dieWithParent has the kernel end cmd when this process ends, even by kill -9,
// and keeps a Ctrl-C meant for this process from reaching it.
func dieWithParent(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM, Setpgid: true}
}
