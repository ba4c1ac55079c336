// Package systemd checks the units as far as that can be done without systemd: that they agree with
// the configuration and the programs.
package systemd

import (
	"os"
	"strings"
	"testing"
	"time"

	"vmimport/internal/config"
)

// unit reads a unit file into its settings; a list is joined by blanks.
func unit(t *testing.T, name string) map[string]string {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	settings := map[string]string{}
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		key, value, ok := strings.Cut(line, "=")
		switch {
		case line == "" || line[0] == '#' || line[0] == '[':
		case !ok:
			t.Errorf("%s: %q is no setting", name, line)
		default:
			settings[key] = strings.TrimSpace(settings[key] + " " + value)
		}
	}
	return settings
}

func TestUnits(t *testing.T) {
	t.Parallel()
	known := map[string]bool{"VMIMPORT_CONFIG": true}
	for _, v := range config.Variables {
		known[v.Name] = true
	}
	for name, program := range map[string]string{"vmimport-api.service": "api", "vmimport-worker@.service": "worker"} {
		u := unit(t, name)
		if u["ExecStart"] != "/usr/bin/vmimport-"+program {
			t.Errorf("%s starts %s", name, u["ExecStart"])
		}
		if _, err := os.Stat("../../cmd/" + program + "/main.go"); err != nil {
			t.Error(err)
		}
		if u["User"] == "" || u["NoNewPrivileges"] != "yes" || u["ProtectSystem"] != "strict" || u["CapabilityBoundingSet"] != "" {
			t.Errorf("%s is not confined: %v", name, u)
		}
		for pair := range strings.FieldsSeq(u["Environment"]) {
			if v, _, _ := strings.Cut(pair, "="); !known[v] {
				t.Errorf("%s sets %s, which nobody reads", name, v)
			}
		}
	}
}

// A worker that is killed while it drains gives its imports back only when their claims run out.
func TestWorkerHasTimeToDrain(t *testing.T) {
	t.Parallel()
	u := unit(t, "vmimport-worker@.service")
	stop, err := time.ParseDuration(u["TimeoutStopSec"] + "s")
	if drain := config.Default().Worker.DrainTimeout; err != nil || stop <= drain+10*time.Second {
		t.Errorf("a worker is killed after %s, and may need %s", u["TimeoutStopSec"], drain)
	}
	// With its instance's name it has a port and scratch space of its own.
	for _, setting := range []string{"VMIMPORT_WORKER_LISTEN=127.0.0.1:%i", "VMIMPORT_WORKER_SCRATCH=/var/lib/vmimport/worker-%i"} {
		if !strings.Contains(u["Environment"], setting) {
			t.Errorf("no %s in %s", setting, u["Environment"])
		}
	}
	if u["StateDirectory"] != "vmimport/worker-%i" {
		t.Errorf("scratch space is %s", u["StateDirectory"])
	}
}
