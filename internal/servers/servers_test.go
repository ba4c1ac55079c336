package servers_test

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"vmimport/internal/fault"
	"vmimport/internal/secret"
	"vmimport/internal/servers"
	"vmimport/internal/servers/serverstest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	server = serverstest.ServerID
	volume = serverstest.VolumeID
	action = "POST /compute/.*/action"
	upload = "POST /volume/.*/action"
)

// bench is a cloud, who looks at it, and all that this one was told.
type bench struct {
	*serverstest.Cloud
	t      testing.TB
	c      *servers.Cloud
	states []servers.State
	ctx    context.Context
}

// inTime runs f with a cloud, in a time of its own.
func inTime(t *testing.T, f func(b *bench), change ...func(*servers.Options)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		b := &bench{Cloud: serverstest.New(), t: t, ctx: t.Context()}
		o := servers.Options{AuthURL: serverstest.AuthURL, Token: secret.New(serverstest.Token), HTTP: b.Client()}
		for _, c := range change {
			c(&o)
		}
		c, err := servers.Open(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		b.c = c
		f(b)
		for _, s := range b.states {
			b.secretless(s)
		}
	})
}

func (b *bench) report(s servers.State) { b.states = append(b.states, s) }

// secretless fails if v shows the secret of the servers, in whatever way it is printed.
func (b *bench) secretless(v any) {
	b.t.Helper()
	doc, _ := json.Marshal(v)
	all := fmt.Sprintf("%v %+v %#v %s", v, v, v, doc)
	if err, ok := v.(error); ok {
		for ; err != nil; err = errors.Unwrap(err) {
			all += fmt.Sprintf("%+v %#v", err, err)
		}
		all += fault.Of(v.(error)).Sentences()
	}
	for _, s := range []string{serverstest.AdminPass, serverstest.Token, serverstest.Password} {
		if strings.Contains(all, s) {
			b.t.Errorf("a secret in %s", all)
		}
	}
}

// wants compares an error with the one that is wanted.
func (b *bench) wants(err, want error, words ...string) {
	b.t.Helper()
	if !errors.Is(err, want) || want == nil && err != nil {
		b.t.Errorf("got error %v, want %v", err, want)
	}
	if err == nil {
		return
	}
	b.secretless(err)
	for _, word := range words {
		if !strings.Contains(err.Error()+fault.Of(err).Remedy, word) {
			b.t.Errorf("%v lacks %q", err, word)
		}
	}
}

// wantCalls compares how often something was asked.
func (b *bench) wantCalls(what string, want int) {
	b.t.Helper()
	if n := b.Calls(what); n != want {
		b.t.Errorf("%d calls of %s, want %d", n, what, want)
	}
}

// troubles returns what the states say was in the way.
func (b *bench) troubles() string {
	var all strings.Builder
	for _, s := range b.states {
		all.WriteString(s.Trouble)
	}
	return all.String()
}

func TestOpen(t *testing.T) {
	t.Parallel()
	password := map[string]string{"OS_USERNAME": "alice", "OS_PASSWORD": serverstest.Password, "OS_USER_DOMAIN_NAME": "contract01", "OS_PROJECT_ID": serverstest.Project}
	with := func(changes ...string) map[string]string {
		env := map[string]string{}
		for k, v := range password {
			env[k] = v
		}
		for i := 0; i < len(changes); i += 2 {
			env[changes[i]] = changes[i+1]
		}
		return env
	}
	for name, tt := range map[string]struct {
		token, project string
		env            map[string]string
		want           string // code of the fault
		says           string
	}{
		"token":                      {token: serverstest.Token},
		"token of the environment":   {env: map[string]string{"OS_TOKEN": serverstest.Token}},
		"token and its project":      {token: serverstest.Token, project: serverstest.Project},
		"token and another project":  {token: serverstest.Token, project: "p9", want: "project_mismatch", says: serverstest.Project},
		"unscoped":                   {token: serverstest.TokenUnscoped, want: "token_unscoped", says: "a project as its scope"},
		"domain":                     {token: serverstest.TokenDomain, want: "token_domain_scoped", says: `"contract01"`},
		"a project that is a domain": {token: serverstest.TokenActsAsDomain, want: "token_domain_scoped", says: `"contract01"`},
		"expired":                    {token: "old", want: "token_refused", says: "Get a new token"},
		"not a token":                {token: "a\nb", want: "token_refused"},
		"password":                   {env: password},
		"password, project by name":  {env: with("OS_PROJECT_ID", "", "OS_PROJECT_NAME", "web", "OS_PROJECT_DOMAIN_ID", "d1")},
		"password, tenant by name":   {env: with("OS_PROJECT_ID", "", "OS_TENANT_NAME", "web")},
		"password, user by id":       {env: with("OS_USERNAME", "", "OS_USER_ID", "u1")},
		"password, domain by id":     {env: with("OS_USER_DOMAIN_ID", "d1")},
		"password, project by flag":  {env: with("OS_PROJECT_ID", ""), project: serverstest.Project},
		"password, another project":  {env: password, project: "p9", want: "project_mismatch"},
		"wrong password":             {env: with("OS_PASSWORD", "wrong"), want: "credentials_refused"},
		"no user":                    {env: with("OS_USERNAME", ""), want: "cloud_settings", says: "OS_USERNAME"},
		"no project":                 {env: with("OS_PROJECT_ID", ""), want: "cloud_settings", says: "OS_PROJECT_ID"},
		"a domain for a project":     {env: with("OS_PROJECT_ID", "", "OS_DOMAIN_NAME", "contract01"), want: "cloud_settings", says: "a domain is no scope"},
		"credential":                 {env: map[string]string{"OS_APPLICATION_CREDENTIAL_ID": "c1", "OS_APPLICATION_CREDENTIAL_SECRET": serverstest.Password}},
		"credential by name": {env: map[string]string{"OS_APPLICATION_CREDENTIAL_NAME": "c", "OS_USERNAME": "alice", "OS_USER_DOMAIN_ID": "d1",
			"OS_APPLICATION_CREDENTIAL_SECRET": serverstest.Password}},
		"credential without secret": {env: map[string]string{"OS_APPLICATION_CREDENTIAL_ID": "c1"}, want: "cloud_settings"},
		"nobody":                    {env: map[string]string{"OS_CLOUD": "mine"}, want: "cloud_settings", says: "clouds.yaml is not read"},
		"old interface name":        {token: serverstest.Token, env: map[string]string{"OS_INTERFACE": "publicURL"}},
		"wrong interface":           {token: serverstest.Token, env: map[string]string{"OS_INTERFACE": "x"}, want: "cloud_settings"},
		"no certificates":           {token: serverstest.Token, env: map[string]string{"OS_AUTH_URL": "http://u:p@x"}, want: "cloud_settings"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cloud := serverstest.New()
			b := &bench{Cloud: cloud, t: t}
			o := servers.Options{Token: secret.New(tt.token), ProjectID: tt.project, HTTP: cloud.Client(), Getenv: func(k string) string {
				if v, ok := tt.env[k]; ok || k != "OS_AUTH_URL" {
					return v
				}
				return serverstest.AuthURL
			}}
			c, err := servers.Open(t.Context(), o)
			if fault.CodeOf(err) != tt.want {
				t.Fatalf("got %v, want %s", err, tt.want)
			}
			b.wantCalls("[A-Z]* /(compute|volume|image)", 0)
			if err != nil {
				b.secretless(err)
				if text := fault.Of(err).Sentences(); !strings.Contains(text, tt.says) {
					t.Errorf("%q lacks %q", text, tt.says)
				}
				return
			}
			if c.ProjectID() != serverstest.Project {
				t.Errorf("project %q", c.ProjectID())
			}
			if _, err := c.Server(t.Context(), server); err != nil {
				t.Error(err)
			}
			b.secretless(err)
		})
	}
}

func TestOpenSettings(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*servers.Options){
		"no address":          func(o *servers.Options) { o.AuthURL = "" },
		"no URL":              func(o *servers.Options) { o.AuthURL = "keystone:5000" },
		"a query":             func(o *servers.Options) { o.AuthURL += "?a" },
		"an endpoint":         func(o *servers.Options) { o.Endpoints = map[string]string{servers.TypeCompute: "nova"} },
		"missing CA file":     func(o *servers.Options) { o.CAFile, o.HTTP = "missing.pem", nil },
		"CA file without any": func(o *servers.Options) { o.CAFile, o.HTTP = "servers.go", nil },
	} {
		o := servers.Options{AuthURL: serverstest.AuthURL, Token: secret.New(serverstest.Token), HTTP: serverstest.New().Client()}
		change(&o)
		if _, err := servers.Open(t.Context(), o); fault.CodeOf(err) != "cloud_settings" {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAddressesOfIdentity(t *testing.T) {
	t.Parallel()
	for _, u := range []string{"/v3", "/v3/", "", "/", "/v2.0"} {
		cloud := serverstest.New()
		u = strings.TrimSuffix(serverstest.AuthURL, "/v3") + u
		if _, err := servers.Open(t.Context(), servers.Options{AuthURL: u, Token: secret.New(serverstest.Token), HTTP: cloud.Client()}); err != nil {
			t.Errorf("%s: %v", u, err)
		}
	}
}

func TestIdentityIsOdd(t *testing.T) {
	t.Parallel()
	tokens := "[A-Z]+ /identity/"
	for name, tt := range map[string]struct {
		odd  func(*serverstest.Cloud)
		want error
	}{
		"down":         {func(c *serverstest.Cloud) { c.Reply(tokens, 9, 503, serverstest.AdminPass) }, servers.ErrUnavailable},
		"unreachable":  {func(c *serverstest.Cloud) { c.Lose(tokens, 9, false) }, servers.ErrUnavailable},
		"not Keystone": {func(c *serverstest.Cloud) { c.Reply(tokens, 9, 405, "<html>") }, servers.ErrUnavailable},
		"elsewhere": {func(c *serverstest.Cloud) { c.Reply(tokens, 9, 302, "", "Location", "http://thief.test") },
			servers.ErrUnavailable},
		"no JSON":     {func(c *serverstest.Cloud) { c.Reply(tokens, 9, 200, serverstest.AdminPass) }, servers.ErrUnavailable},
		"other JSON":  {func(c *serverstest.Cloud) { c.Reply(tokens, 9, 200, `{"token":[]}`) }, servers.ErrUnavailable},
		"empty":       {func(c *serverstest.Cloud) { c.Reply(tokens, 9, 200, `{}`) }, servers.ErrUnscoped},
		"not allowed": {func(c *serverstest.Cloud) { c.Reply(tokens, 9, 403, serverstest.Fault(403, "error", "no")) }, servers.ErrToken},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cloud := serverstest.New()
			tt.odd(cloud)
			_, err := servers.Open(t.Context(), servers.Options{AuthURL: serverstest.AuthURL, Token: secret.New(serverstest.Token), HTTP: cloud.Client()})
			b := &bench{Cloud: cloud, t: t}
			b.wants(err, tt.want)
			b.wantCalls(".*thief", 0)
		})
	}
}

func TestEndpoints(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		change func(*servers.Options)
		want   error
		says   string
	}{
		"the region":     {func(o *servers.Options) { o.Region = "jp-east-1" }, nil, ""},
		"another region": {func(o *servers.Options) { o.Region = "jp-west-9" }, servers.ErrCatalogue, `in region "jp-west-9"`},
		"no admin":       {func(o *servers.Options) { o.Interface = "admin" }, servers.ErrCatalogue, "admin"},
		"set": {func(o *servers.Options) {
			o.Interface = "admin"
			o.Endpoints = map[string]string{servers.TypeCompute: "http://cloud.test/compute/v2/" + serverstest.Project + "/"}
		}, nil, ""},
	} {
		t.Run(name, func(t *testing.T) {
			inTime(t, func(b *bench) {
				_, err := b.c.Server(b.ctx, server)
				b.wants(err, tt.want, tt.says)
			}, tt.change)
		})
	}
}

func TestSeveralRegions(t *testing.T) {
	t.Parallel()
	cloud := serverstest.New()
	cloud.Reply("GET /identity/", 1, http.StatusOK, `{"token":{"project":{"id":"p"},"catalog":[{"type":"compute","endpoints":[
		{"interface":"public","region":"west","url":"http://a.test"},{"interface":"public","region":"east","url":"http://b.test"}]}]}}`)
	c, err := servers.Open(t.Context(), servers.Options{AuthURL: serverstest.AuthURL, Token: secret.New(serverstest.Token), HTTP: cloud.Client()})
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.Server(t.Context(), server)
	(&bench{Cloud: cloud, t: t}).wants(err, servers.ErrCatalogue, "east, west")
}

func TestServer(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		of   serverstest.Server
		want string
	}{
		"of a volume": {serverstest.Server{Name: "web01", Volumes: []string{volume, "v2"}}, "web01 ACTIVE  true  [" + volume + " v2]"},
		"of an image": {serverstest.Server{Name: "db", Status: "SHUTOFF", Image: "i1", Task: "image_uploading"}, "db SHUTOFF image_uploading false i1 []"},
	} {
		t.Run(name, func(t *testing.T) {
			inTime(t, func(b *bench) {
				tt.of.ID = server
				b.AddServer(tt.of)
				s, err := b.c.Server(b.ctx, server)
				b.wants(err, nil)
				b.secretless(s)
				if got := fmt.Sprint(s.Name, " ", s.Status, " ", s.TaskState, " ", s.FromVolume, " ", s.ImageID, " ", s.Volumes); got != tt.want {
					t.Errorf("got %s, want %s", got, tt.want)
				}
				if s.Created.IsZero() || s.Power != 1 || s.VMState == "" {
					t.Errorf("got %+v", s)
				}
			})
		})
	}
}

func TestServerIsOdd(t *testing.T) {
	t.Parallel()
	show := "GET /compute/"
	for name, tt := range map[string]struct {
		id   string
		odd  func(*bench)
		want error
		says string
	}{
		"unknown":           {"9", func(*bench) {}, servers.ErrServerUnknown, serverstest.Project},
		"a name":            {"web 01", func(*bench) {}, servers.ErrServerID, "not the name"},
		"a path":            {"../images", func(*bench) {}, servers.ErrServerID, ""},
		"another project's": {server, func(b *bench) { b.AddServer(serverstest.Server{ID: server, Project: "p9"}) }, servers.ErrServerUnknown, "another project"},
		"not allowed":       {server, func(b *bench) { b.Reply(show, 9, 403, serverstest.Fault(403, "forbidden", serverstest.AdminPass)) }, servers.ErrDenied, ""},
		"token ended":       {server, func(b *bench) { b.RenewToken() }, servers.ErrToken, "new token"},
		"down":              {server, func(b *bench) { b.Reply(show, 9, 502, serverstest.AdminPass) }, servers.ErrUnavailable, "502"},
		"lost":              {server, func(b *bench) { b.Lose(show, 9, false) }, servers.ErrUnavailable, "connection failed"},
		"no JSON":           {server, func(b *bench) { b.Reply(show, 9, 200, serverstest.AdminPass) }, servers.ErrUnavailable, "form"},
		"a number for id":   {server, func(b *bench) { b.Reply(show, 9, 200, `{"server":{"id":12345}}`) }, servers.ErrUnavailable, "form"},
		"a text for image":  {server, func(b *bench) { b.Reply(show, 9, 200, `{"server":{"image":"`+serverstest.AdminPass+`"}}`) }, servers.ErrUnavailable, "form"},
		"empty":             {server, func(b *bench) { b.Reply(show, 9, 200, `{}`) }, servers.ErrUnavailable, "form"},
		"a redirect":        {server, func(b *bench) { b.Reply(show, 9, 301, "", "Location", "http://thief.test") }, servers.ErrRefused, "301"},
		"a refusal in full": {server, func(b *bench) {
			b.Reply(show, 9, 400, `{"server":{"metadata":{"admin_pass":"`+serverstest.AdminPass+`"}}}`)
		}, servers.ErrRefused, "400"},
		"a refusal in words": {server, func(b *bench) {
			b.Reply(show, 9, 400, serverstest.Fault(400, "badRequest", "bad "+serverstest.AdminPass))
		}, servers.ErrRefused, "400"},
		"an endless refusal": {server, func(b *bench) { b.Reply(show, 9, 400, strings.Repeat(serverstest.AdminPass, 1<<16)) }, servers.ErrRefused, "400"},
	} {
		t.Run(name, func(t *testing.T) {
			inTime(t, func(b *bench) {
				tt.odd(b)
				_, err := b.c.Server(b.ctx, tt.id)
				b.wants(err, tt.want, tt.says)
			})
		})
	}
}

func TestPasswordRenewsTheToken(t *testing.T) {
	t.Parallel()
	env := map[string]string{"OS_USERNAME": "alice", "OS_PASSWORD": serverstest.Password, "OS_PROJECT_ID": serverstest.Project}
	inTime(t, func(b *bench) {
		b.On("GET /compute/", 1, func() {})
		b.On("GET /compute/", 1, b.RenewToken)
		s, err := b.c.Stop(b.ctx, server, b.report)
		b.wants(err, nil)
		if !s.Stopped() {
			t.Errorf("got %+v", s)
		}
		b.wantCalls("POST /identity/", 2)
	}, func(o *servers.Options) {
		o.Token, o.Getenv = secret.Text{}, func(k string) string { return env[k] }
	})
}

func TestAnswerTakesTooLong(t *testing.T) {
	t.Parallel()
	slow := func() { time.Sleep(time.Minute) }
	inTime(t, func(b *bench) {
		b.On("GET /compute/", 1, slow)
		_, err := b.c.Server(b.ctx, server)
		b.wants(err, servers.ErrUnavailable, "it took too long")
	})
	inTime(t, func(b *bench) {
		b.On("GET /compute/", 1, slow)
		ctx, cancel := context.WithCancelCause(b.ctx)
		defer cancel(nil)
		gone := errors.New("gone")
		time.AfterFunc(10*time.Second, func() { cancel(gone) })
		_, err := b.c.Server(ctx, server)
		b.wants(err, gone)
	})
}

// The client that is used where none is given.
func TestOverTLS(t *testing.T) {
	t.Parallel()
	cloud := serverstest.New()
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		resp, err := cloud.RoundTrip(r)
		if err != nil {
			t.Error(err)
			return
		}
		defer resp.Body.Close()
		w.WriteHeader(resp.StatusCode)
		_, _ = io.Copy(w, resp.Body)
	}))
	s.Config.ErrorLog = log.New(io.Discard, "", 0) // of the handshake that fails
	s.StartTLS()
	t.Cleanup(s.Close)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	b := &bench{Cloud: cloud, t: t}
	o := servers.Options{AuthURL: s.URL + "/identity", Token: secret.New(serverstest.Token)}
	_, err := servers.Open(t.Context(), o)
	b.wants(err, servers.ErrUnavailable, "certificate")
	o.Getenv = func(k string) string { return map[string]string{"OS_CACERT": ca}[k] }
	_, err = servers.Open(t.Context(), o)
	b.wants(err, nil)
	s.Close()
	_, err = servers.Open(t.Context(), o)
	b.wants(err, servers.ErrUnavailable, "connection refused")
}
