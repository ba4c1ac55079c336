package testenv_test

import (
	"net/http"
	"sync"
	"testing"

	"vmimport/internal/testenv"
)

// Several servers may run at once, and none lets a stranger in.
func TestStartS3(t *testing.T) {
	t.Parallel()
	var servers [2]*testenv.S3
	for i := range servers {
		servers[i] = testenv.StartS3(t)
	}
	var wg sync.WaitGroup
	for _, s := range servers {
		wg.Go(func() {
			resp, err := http.Get(s.URL + "/")
			if err != nil {
				t.Error(err)
				return
			}
			if err := resp.Body.Close(); err != nil {
				t.Error(err)
			}
			if resp.StatusCode != http.StatusForbidden {
				t.Errorf("an unsigned list of buckets was answered with %s", resp.Status)
			}
		})
	}
	wg.Wait()
	if servers[0].URL == servers[1].URL || servers[0].Root == servers[1].Root {
		t.Errorf("the servers share something: %+v, %+v", servers[0], servers[1])
	}
}
