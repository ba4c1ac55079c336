package servers_test

import (
	"net/http"
	"strings"
	"testing"

	"vmimport/internal/secret"
	"vmimport/internal/servers"
	"vmimport/internal/servers/serverstest"
)

// FuzzSentence: of a refusal no more is shown than ids, actions and states.
func FuzzSentence(f *testing.F) {
	f.Add(409, serverstest.Fault(409, "conflictingRequest", "Instance "+server+" is locked"))
	f.Add(400, serverstest.Fault(400, "badRequest", "Invalid volume: Volume "+volume+" status must be available, but current status is: in-use."))
	f.Add(409, serverstest.Fault(409, "conflictingRequest", "Cannot 'stop' instance "+server+" while it is in vm_state stopped"))
	f.Add(400, `{"a":{"code":400,"message":"`+serverstest.AdminPass+`"}}`)
	f.Fuzz(func(t *testing.T, status int, body string) {
		said := servers.Sentence(status, []byte(body))
		if len(said) > 250 || strings.ContainsAny(said, "\n\x1b{}\"") || strings.Contains(said, serverstest.AdminPass) {
			t.Errorf("got %q", said)
		}
	})
}

// FuzzServer: no description of a server makes an error that quotes it.
func FuzzServer(f *testing.F) {
	f.Add(200, `{"server":{"id":"a","status":"ACTIVE","image":"","metadata":{"admin_pass":"`+serverstest.AdminPass+`"}}}`)
	f.Add(200, `{"server":{"id":"a","status":"SHUTOFF","image":{"id":"`+serverstest.AdminPass+`"},"created":"x"}}`)
	f.Add(200, `{"server":{"image":"`+serverstest.AdminPass+`"}}`)
	f.Add(404, serverstest.AdminPass)
	f.Fuzz(func(t *testing.T, status int, body string) {
		if status < 200 || status > 599 {
			return
		}
		cloud := serverstest.New()
		c, err := servers.Open(t.Context(), servers.Options{AuthURL: serverstest.AuthURL, Token: secret.New(serverstest.Token), HTTP: cloud.Client()})
		if err != nil {
			t.Fatal(err)
		}
		cloud.Reply("GET /compute/", 1, status, body)
		s, err := c.Server(t.Context(), server)
		if err != nil && strings.Contains(err.Error(), serverstest.AdminPass) || err == nil && (status != http.StatusOK || s.Status == "") {
			t.Errorf("got %+v, %v", s, err)
		}
	})
}
