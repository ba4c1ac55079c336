package app

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/rs/zerolog"

	"vmimport/internal/config"
	"vmimport/internal/webhook"
	"vmimport/tasks"
)

func hook(t *testing.T, id, key string) config.Webhook {
	t.Helper()
	name := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(name, []byte(key+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return config.Webhook{ID: id, URL: "https://portal.example.test/hooks", SecretFile: name, States: []string{"failed"}, Tenants: []string{"d1"}}
}

func TestWebhooks(t *testing.T) {
	t.Parallel()
	h := hook(t, "portal", strings.Repeat("k", 32))
	r, err := receiverOf(h)
	if err != nil || r.States[0] != tasks.Failed || r.Tenants[0] != "d1" || r.Secret.Reveal() != strings.Repeat("k", 32) {
		t.Errorf("%+v, %v", r, err)
	}
	w, err := newWebhooks(nil, []config.Webhook{h, hook(t, "billing", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")}, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	registry := newRegistry(w.collectors()...)
	w.Tried("portal", webhook.Delivered)
	w.Tried("portal", webhook.GivenUp)
	w.Lagging("portal", time.Now().Add(time.Hour)) // by a clock that is ahead
	w.Lagging("billing", time.Time{})
	want := `
# HELP vmimport_webhook_deliveries_total Events sent to receivers: delivered, failed and to be sent again, or given up.
# TYPE vmimport_webhook_deliveries_total counter
vmimport_webhook_deliveries_total{outcome="delivered",receiver="billing"} 0
vmimport_webhook_deliveries_total{outcome="delivered",receiver="portal"} 1
vmimport_webhook_deliveries_total{outcome="failed",receiver="billing"} 0
vmimport_webhook_deliveries_total{outcome="failed",receiver="portal"} 0
vmimport_webhook_deliveries_total{outcome="given_up",receiver="billing"} 0
vmimport_webhook_deliveries_total{outcome="given_up",receiver="portal"} 1
# HELP vmimport_webhook_lag_seconds Age of the oldest event that this process has yet to deliver to the receiver; 0 in those that do not send to it.
# TYPE vmimport_webhook_lag_seconds gauge
vmimport_webhook_lag_seconds{receiver="billing"} 0
vmimport_webhook_lag_seconds{receiver="portal"} 0
`
	if err := testutil.GatherAndCompare(registry, strings.NewReader(want), "vmimport_webhook_deliveries_total", "vmimport_webhook_lag_seconds"); err != nil {
		t.Error(err)
	}
	w.Lagging("billing", time.Now().Add(-time.Hour))
	if lag := testutil.ToFloat64(w.lags[1]); lag < 3600 || lag > 3660 {
		t.Errorf("lag %v", lag)
	}
}

func TestWebhooksRefused(t *testing.T) {
	t.Parallel()
	missing := hook(t, "portal", "")
	missing.SecretFile += "-of-another"
	plain := hook(t, "portal", strings.Repeat("k", 32))
	plain.URL = "http://portal.example.test/"
	for name, h := range map[string]config.Webhook{"no secret": missing, "a short secret": hook(t, "portal", "hidden"), "http": plain} {
		if _, err := newWebhooks(nil, []config.Webhook{h}, zerolog.Nop()); err == nil || strings.Contains(err.Error(), "hidden") || !strings.Contains(err.Error(), "portal") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestNoWebhooks(t *testing.T) {
	t.Parallel()
	w, err := newWebhooks(nil, nil, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Run(t.Context()); err != nil { // at once
		t.Error(err)
	}
}
