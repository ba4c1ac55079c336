package openstack

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"time"
)

// Each request has a connection of its own, so that none is left behind.
var httpClient = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: time.Minute}

// Scope is what a token is good for.
type Scope int

// The scopes.
const (
	ProjectScope Scope = iota // the user's project
	DomainScope               // the user's domain, in which only Alpha has a role
	Unscoped
)

// Token returns a new token of the user.
func (c *Cloud) Token(ctx context.Context, u *User, scope Scope) (string, error) {
	return c.TokenAt(ctx, c.KeystoneURL, u, scope)
}

// TokenAt is Token, from the Keystone of that URL, such as StartShortLived's.
func (c *Cloud) TokenAt(ctx context.Context, keystoneURL string, u *User, scope Scope) (string, error) {
	t, err := c.login(ctx, keystoneURL, u, scope)
	if err != nil {
		return "", fmt.Errorf("token of %s: %w", u.Name, err)
	}
	return t.id, nil
}

// issued is a new token.
type issued struct {
	id      string
	User    struct{ ID string }
	Project struct{ ID string }
}

// object is one of JSON.
type object map[string]any

func (c *Cloud) login(ctx context.Context, keystoneURL string, u *User, scope Scope) (*issued, error) {
	domain := object{"id": u.DomainID}
	auth := object{"identity": object{
		"methods":  []string{"password"},
		"password": object{"user": object{"name": u.Name, "password": u.Password, "domain": domain}},
	}}
	switch scope {
	case ProjectScope:
		auth["scope"] = object{"project": object{"name": u.ProjectName, "domain": domain}}
	case DomainScope:
		auth["scope"] = object{"domain": domain}
	case Unscoped:
		auth["scope"] = "unscoped"
	}
	var answer struct{ Token issued }
	header, err := call(ctx, http.MethodPost, keystoneURL+"/auth/tokens", nil, object{"auth": auth}, &answer)
	if err != nil {
		return nil, err
	}
	answer.Token.id = header.Get("X-Subject-Token")
	return &answer.Token, nil
}

// Revoke makes Keystone refuse a token from now on. Swift and Glance remember for
// some minutes whom they have let in.
func (c *Cloud) Revoke(ctx context.Context, token string) error {
	header := http.Header{"X-Auth-Token": {token}, "X-Subject-Token": {token}}
	if _, err := call(ctx, http.MethodDelete, c.KeystoneURL+"/auth/tokens", header, nil, nil); err != nil {
		return fmt.Errorf("revoke a token: %w", err)
	}
	return nil
}

// EC2Key makes an access key for the user's project. Swift takes it for S3, at
// SwiftURL and in the cloud's region.
func (c *Cloud) EC2Key(ctx context.Context, u *User) (access, secret string, err error) {
	token, err := c.Token(ctx, u, ProjectScope)
	if err != nil {
		return "", "", err
	}
	var answer struct {
		Credential struct{ Access, Secret string }
	}
	path := "/users/" + u.UserID + "/credentials/OS-EC2"
	if err := c.keystone(ctx, http.MethodPost, path, token, object{"tenant_id": u.ProjectID}, &answer); err != nil {
		return "", "", fmt.Errorf("access key of %s: %w", u.Name, err)
	}
	return answer.Credential.Access, answer.Credential.Secret, nil
}

// Env returns the variables with which the stock clients act for the user, and a
// PATH on which the clients and the Python that they need come first.
func (c *Cloud) Env(u *User) []string {
	return []string{
		"OS_AUTH_URL=" + c.KeystoneURL, "OS_IDENTITY_API_VERSION=3", "OS_REGION_NAME=" + c.Region,
		"OS_USERNAME=" + u.Name, "OS_PASSWORD=" + u.Password, "OS_USER_DOMAIN_NAME=" + u.Domain,
		"OS_PROJECT_NAME=" + u.ProjectName, "OS_PROJECT_DOMAIN_NAME=" + u.Domain,
		"PATH=" + systemPath + ":" + os.Getenv("PATH"),
	}
}

// Command returns the command of a stock client, swift, openstack or glance, that
// acts for the user and sees nothing else of the caller's environment.
func (c *Cloud) Command(ctx context.Context, u *User, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "/usr/bin/"+name, args...)
	cmd.Env = append(c.Env(u), "HOME="+c.Dir, "LANG=C.UTF-8")
	return cmd
}

// keystone makes a request of Keystone's API.
func (c *Cloud) keystone(ctx context.Context, method, path, token string, body, answer any) error {
	_, err := call(ctx, method, c.KeystoneURL+path, http.Header{"X-Auth-Token": {token}}, body, answer)
	return err
}

// refusal is an answer that is no success.
type refusal struct {
	method, url string
	status      int
	body        []byte
}

func (r *refusal) Error() string {
	return fmt.Sprintf("%s %s: %d %s: %.300s", r.method, r.url, r.status, http.StatusText(r.status), r.body)
}

// call sends body as JSON and reads the answer from JSON; either may be nil. An
// answer that is no success is an error, a *refusal.
func call(ctx context.Context, method, url string, header http.Header, body, answer any) (http.Header, error) {
	var r io.Reader = http.NoBody
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return nil, err
		}
		r = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, url, r)
	if err != nil {
		return nil, err
	}
	if header != nil {
		req.Header = header.Clone()
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := httpClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", method, url, err)
	}
	if resp.StatusCode/100 != 2 {
		return nil, &refusal{method, url, resp.StatusCode, b}
	}
	if answer != nil {
		if err := json.Unmarshal(b, answer); err != nil {
			return nil, fmt.Errorf("%s %s: %w", method, url, err)
		}
	}
	return resp.Header, nil
}
