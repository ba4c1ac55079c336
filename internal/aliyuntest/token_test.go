package aliyuntest

import (
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/aliyun/alibaba-cloud-sdk-go/sdk"
	"github.com/aliyun/alibaba-cloud-sdk-go/sdk/auth/credentials"
	"github.com/aliyun/alibaba-cloud-sdk-go/services/ecs"
)

// tokenRequest is the same each time, and has a token.
func tokenRequest() *ecs.ImportImageRequest {
	r := importRequest("web01", "disk.raw")
	r.ClientToken = "token"
	return r
}

// Six at once with one token: one import, and whoever is not told of it is told to wait.
func TestClientToken(t *testing.T) {
	t.Parallel()
	s := serve(t)
	s.putHole("disk.raw", 1<<20)
	c := s.as("blue")
	var clients [6]*client
	for i := range clients {
		clients[i] = s.as("blue")
	}
	var answers [len(clients)]*ecs.ImportImageResponse
	var errs [len(clients)]error
	var wg sync.WaitGroup
	for i, c := range clients {
		wg.Go(func() { answers[i], errs[i] = c.ImportImage(tokenRequest()) })
	}
	wg.Wait()
	first, err := c.ImportImage(tokenRequest())
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{first.RequestId: true}
	for i, a := range answers {
		switch {
		case errs[i] != nil:
			if refusal(errs[i]) != "403 LastTokenProcessing" {
				t.Errorf("request %d: %v", i+1, errs[i])
			}
		case a.ImageId != first.ImageId || a.TaskId != first.TaskId:
			t.Errorf("request %d: %+v, want %+v", i+1, a, first)
		case seen[a.RequestId]:
			t.Errorf("request %d has the request id of another", i+1)
		default:
			seen[a.RequestId] = true
		}
	}
	if len(seen) == 1 {
		t.Error("not one of the six was told of the import")
	}
	if images := c.images(""); len(images) != 1 {
		t.Errorf("%d images", len(images))
	}

	c.available(first.ImageId)
	if again, err := c.ImportImage(tokenRequest()); err != nil || again.ImageId != first.ImageId || again.TaskId != first.TaskId {
		t.Errorf("repeated when all was over: %v, %v", again, err)
	}
}

// What a token is good for, and for whom.
func TestClientTokenScope(t *testing.T) {
	t.Parallel()
	s := serve(t)
	s.putHole("disk.raw", 1<<20)
	c := s.as("blue")
	// What was refused does not use a token up.
	refused := tokenRequest()
	refused.DryRun = "true"
	if _, err := c.ImportImage(refused); refusal(err) != "400 DryRunOperation" {
		t.Fatal(err)
	}
	first := c.mustImport(tokenRequest())
	other := tokenRequest()
	other.Description = "another"
	if _, err := c.ImportImage(other); refusal(err) != "400 IdempotentParameterMismatch" {
		t.Errorf("another request with the token: %v", err)
	}
	other = tokenRequest()
	other.ClientToken = "TOKEN"
	if _, err := c.ImportImage(other); refusal(err) != "400 InvalidImageName.Duplicated" {
		t.Errorf("the same request with another token: %v", err)
	}
	// Tokens are each account's own.
	green := tokenRequest()
	(*green.DiskDeviceMapping)[0].OSSBucket = "images-green"
	if a := s.as("green").mustImport(green); a.ImageId == first.ImageId {
		t.Error("two accounts share a token")
	}
}

// An answer that is lost on its way is asked for again by the SDK, which signs afresh with
// the same token, if it is told to retry; and by the user otherwise.
func TestLostAnswers(t *testing.T) {
	t.Parallel()
	s := serve(t)
	s.putHole("disk.raw", 1<<20)
	// Lost, or replaced by a gateway on the way.
	lost := func(*http.Response) (*http.Response, error) { return nil, errors.New("connection reset") }
	gateway := func(r *http.Response) (*http.Response, error) {
		r.StatusCode, r.Body = http.StatusBadGateway, io.NopCloser(strings.NewReader("<html>"))
		return r, nil
	}
	for name, tt := range map[string]struct {
		replace func(*http.Response) (*http.Response, error)
		retry   bool
	}{
		"lost-retried": {lost, true}, "gateway-retried": {gateway, true}, "lost": {lost, false}, "gateway": {gateway, false},
	} {
		c := s.client(credentials.NewAccessKeyCredential("blue", secretOf("blue")), sdk.NewConfig().WithAutoRetry(tt.retry))
		// No time limit: the SDK leaves open what it retries, and the timer would outlive the test.
		c.SetReadTimeout(-1)
		var ids []string
		c.wire.answer = func(r *http.Response) (*http.Response, error) {
			ids = append(ids, r.Header.Get("X-Acs-Request-Id"))
			body, err := io.ReadAll(r.Body)
			_ = r.Body.Close()
			if r.StatusCode != http.StatusOK || err != nil {
				t.Errorf("%s: request %d: %d %s %v", name, len(ids), r.StatusCode, body, err)
			}
			if len(ids) <= 2 {
				return tt.replace(r)
			}
			r.Body = io.NopCloser(strings.NewReader(string(body)))
			return r, nil
		}
		r := importRequest(name, "disk.raw")
		r.ClientToken = name
		a, err := c.ImportImage(r)
		if !tt.retry {
			for len(ids) < 3 && err != nil {
				a, err = c.ImportImage(r)
			}
		}
		if err != nil || len(ids) != 3 || ids[0] == ids[1] || ids[1] == ids[2] {
			t.Errorf("%s: after %d requests: %v", name, len(ids), err)
			continue
		}
		c.wire.answer = nil
		if images := c.imagesNamed(name); len(images) != 1 || images[0].ImageId != a.ImageId {
			t.Errorf("%s: %+v, want only %s", name, images, a.ImageId)
		}
	}
}
