package openstacktest

import (
	"net/http"
	"testing"
	"time"

	env "vmimport/internal/testenv/openstack"
)

// An import may last longer than any token.
func TestShortTokens(t *testing.T) {
	t.Parallel()
	const life = 6 * time.Second
	keystone, err := cloud.StartShortLived(t.Context(), life)
	if err != nil {
		t.Fatal(err)
	}
	f := newFaulty(t, faultyBytes/int64(3*life/time.Second), settings{keystone: keystone})
	f.worker()
	first, err := cloud.TokenAt(t.Context(), keystone, cloud.Service, env.ProjectScope)
	if err != nil {
		t.Fatal(err)
	}
	imp := f.wantImported(f.api, f.register(f.api, f.request), 2*time.Minute, f.disk)
	if took := imp.Extra.FinishedAt.Sub(imp.Extra.RequestedAt); took < 2*life || imp.Extra.Attempt != 1 {
		t.Errorf("the import took %s and %d attempts, so little was tested", took, imp.Extra.Attempt)
	}
	service := *f.alice
	service.token = first
	if resp, _ := service.do(http.MethodHead, f.alice.container, "disk.raw", "", nil); resp.StatusCode != http.StatusUnauthorized {
		t.Errorf("a token that is as old as the import is taken: %s", resp.Status)
	}
}
