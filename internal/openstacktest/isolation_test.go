package openstacktest

import (
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"vmimport/internal/client"
	env "vmimport/internal/testenv/openstack"
	"vmimport/tasks"
)

// wantAnswer checks status and code of an answer.
func wantAnswer(t testing.TB, what string, a answer, status int, code string) {
	t.Helper()
	if a.status != status || a.code() != code {
		t.Errorf("%s: %d %s, want %d %s", what, a.status, a.body, status, code)
	}
}

// Who may do something here is decided by the token alone: its project, its domain and
// its roles.
func TestTokens(t *testing.T) {
	t.Parallel()
	in := install(t, settings{cacheTokens: time.Second})
	list := func(token string) answer {
		t.Helper()
		return call(t, in.api, http.MethodGet, "/v1/imageimport", token, "")
	}
	good := tokenOf(t, cloud.Alpha, env.ProjectScope)
	wantAnswer(t, "a good token", list(good), http.StatusOK, "")
	wantAnswer(t, "no token", list(""), http.StatusUnauthorized, "40101")
	wantAnswer(t, "a token that is none", list("gAAAAABnonsense"), http.StatusUnauthorized, "40101")
	wantAnswer(t, "a token cut short", list(good[:len(good)-1]), http.StatusUnauthorized, "40101")
	wantAnswer(t, "a very long token", list(strings.Repeat("a", 17<<10)), http.StatusUnauthorized, "40101")
	wantAnswer(t, "a token for a domain", list(tokenOf(t, cloud.Alpha, env.DomainScope)), http.StatusBadRequest, "40005")
	wantAnswer(t, "a token for nothing", list(tokenOf(t, cloud.Alpha, env.Unscoped)), http.StatusBadRequest, "40005")
	wantAnswer(t, "a reader's token", list(tokenOf(t, cloud.Reader, env.ProjectScope)), http.StatusForbidden, "40301")
	if a := list(""); a.header.Get("WWW-Authenticate") == "" {
		t.Errorf("401 does not say how to be known: %v", a.header)
	}

	if err := cloud.Revoke(t.Context(), good); err != nil {
		t.Fatal(err)
	}
	revoked := time.Now()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for list(good).status == http.StatusOK {
		// The answer of the moment before may have been about the second before that.
		if time.Since(revoked) > 10*time.Second {
			t.Fatal("a revoked token still opens the API")
		}
		<-tick.C
	}
	t.Logf("a revoked token was taken for another %s", time.Since(revoked).Round(time.Millisecond))
	wantAnswer(t, "a revoked token", list(good), http.StatusUnauthorized, "40101")
}

// What is one customer's does not exist for others.
func TestIsolation(t *testing.T) {
	t.Parallel()
	way := slowly(t, 2<<20)
	in := install(t, settings{swift: way.URL})
	in.start("worker", settings{swift: way.URL})
	byProject := in.start("api", settings{listScope: "project"})
	alice, bob := customerOf(t, cloud.Alpha), customerOf(t, cloud.Beta)
	disk := random(30, 8<<20)
	alice.put("disk.raw", disk)
	own := in.client(cloud.Alpha)
	id := in.register(own, alice.request("disk.raw"))

	t.Run("objects", func(t *testing.T) {
		// The same under bob's own name would be a link to alice's object, or an object
		// of a container of that name.
		bob.link(bob.container, "link.raw", alice, "disk.raw")
		api := in.client(cloud.Beta)
		refusal := func(location, s3 string) string {
			t.Helper()
			_, err := api.Register(t.Context(), client.Registration{Name: "theft", OSType: "ubuntu", Location: location, S3Location: s3})
			e, ok := errors.AsType[*client.Error](err)
			if !ok {
				t.Fatalf("%s%s: %v", location, s3, err)
			}
			return e.Code + " " + e.Message
		}
		existing, missing := refusal(alice.location("disk.raw"), ""), refusal(alice.location("none.raw"), "")
		if existing != missing || !strings.HasPrefix(existing, "40004 ") {
			t.Errorf("bob learns of alice's objects: %q, of missing ones %q", existing, missing)
		}
		missing = refusal(bob.location("none.raw"), "")
		for what, got := range map[string]string{
			"a link to alice's object":      refusal(bob.location("link.raw"), ""),
			"alice's container, by S3":      refusal("", "/"+alice.container+"/disk.raw"),
			"nobody's container, by S3":     refusal("", "/none/disk.raw"),
			"alice's container, as his own": refusal(strings.Replace(alice.location("disk.raw"), cloud.Alpha.ProjectID, cloud.Beta.ProjectID, 1), ""),
		} {
			if got != missing || !strings.HasPrefix(got, "40014 ") {
				t.Errorf("%s: %q, of a missing object %q", what, got, missing)
			}
		}
	})
	t.Run("imports", func(t *testing.T) {
		status, cancel := "/v1/imageimport/"+string(id)+"/status", "/v1/imageimport/"+string(id)+"/cancel"
		bobs, carols := tokenOf(t, cloud.Beta, env.ProjectScope), tokenOf(t, cloud.Gamma, env.ProjectScope)
		// bob's domain is alice's.
		wantAnswer(t, "bob looks", call(t, in.api, http.MethodGet, status, bobs, ""), http.StatusOK, "")
		wantAnswer(t, "bob cancels", call(t, in.api, http.MethodPost, cancel, bobs, ""), http.StatusNotFound, "40401")
		wantAnswer(t, "bob looks, by project", call(t, byProject, http.MethodGet, status, bobs, ""), http.StatusNotFound, "40401")
		wantAnswer(t, "bob cancels, by project", call(t, byProject, http.MethodPost, cancel, bobs, ""), http.StatusNotFound, "40401")
		wantAnswer(t, "carol looks", call(t, in.api, http.MethodGet, status, carols, ""), http.StatusNotFound, "40401")
		wantAnswer(t, "carol cancels", call(t, in.api, http.MethodPost, cancel, carols, ""), http.StatusNotFound, "40401")
		alices := tokenOf(t, cloud.Alpha, env.ProjectScope)
		for _, l := range []struct {
			who, token string
			seen       bool
			answer     answer
		}{
			{"alice", alices, true, call(t, in.api, http.MethodGet, "/v1/imageimport", alices, "")},
			{"bob", bobs, true, call(t, in.api, http.MethodGet, "/v1/imageimport", bobs, "")},
			{"carol", carols, false, call(t, in.api, http.MethodGet, "/v1/imageimport", carols, "")},
			{"alice, by project", alices, true, call(t, byProject, http.MethodGet, "/v1/imageimport", alices, "")},
			{"bob, by project", bobs, false, call(t, byProject, http.MethodGet, "/v1/imageimport", bobs, "")},
		} {
			if seen := strings.Contains(l.answer.body, string(id)); seen != l.seen || l.answer.status != http.StatusOK {
				t.Errorf("%s lists %d %s, want the import in it: %t", l.who, l.answer.status, l.answer.body, l.seen)
			}
		}
	})
	imp := in.wantImported(own, id, time.Minute, disk)
	t.Run("images", func(t *testing.T) {
		if body, status := get(t, cloud.Beta, cloud.GlanceURL+"/v2/images/"+imp.ID); status != http.StatusNotFound {
			t.Errorf("bob sees alice's image: %d: %s", status, body)
		}
		// Nor does it help bob to ask for it by its id.
		bob.put("disk.raw", disk)
		r := bob.request("disk.raw")
		r.ID = imp.ID
		if _, err := in.client(cloud.Beta).Register(t.Context(), r); !client.HasCode(err, "40015") {
			t.Errorf("bob asks for the id of alice's image: %v", err)
		}
		wantImage(t, imp, disk)
	})
	if err := own.Cancel(t.Context(), tasks.ID("no such import")); !client.HasCode(err, client.CodeUnknownImport) {
		t.Errorf("cancel of nothing: %v", err)
	}
}
