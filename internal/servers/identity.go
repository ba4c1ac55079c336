package servers

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/gophercloud/gophercloud/v2"
	"github.com/gophercloud/gophercloud/v2/openstack/identity/v3/tokens"

	"vmimport/internal/secret"
)

// identity is the type of Keystone itself, which is not looked up.
const identity = "identity"

// session is a token and what came along with it.
type session struct {
	token     secret.Text
	project   string
	catalogue []tokens.CatalogEntry
}

// description is what Keystone says of a token.
type description struct {
	Token struct {
		IsDomain bool `json:"is_domain"`
		Project  struct {
			ID   string `json:"id"`
			Name string `json:"name"`
		} `json:"project"`
		Domain struct {
			ID   string `json:"id"`
			Name string `json:"name"`
		} `json:"domain"`
		Catalog []tokens.CatalogEntry `json:"catalog"`
	} `json:"token"`
}

// givenToken reports whether the customer has given a token, which nobody can renew.
func (c *Cloud) givenToken() bool { return !c.opt.Token.IsZero() }

// authenticate asks Keystone about the given token, or for one.
func (c *Cloud) authenticate(ctx context.Context) error {
	var said description
	token, r := c.opt.Token, call{service: identity, method: http.MethodGet, path: "auth/tokens", ok: http.StatusOK, into: &said}
	refused := ErrToken
	if c.givenToken() {
		// net/http would refuse it in the middle of the request.
		if strings.ContainsFunc(token.Reveal(), func(r rune) bool { return r <= ' ' || r > '~' }) {
			return ErrToken.Saw("it has characters that no token has")
		}
	} else {
		body, err := c.opt.tokenRequest()
		if err != nil {
			return err
		}
		r.method, r.body, r.ok, refused = http.MethodPost, body, http.StatusCreated, ErrCredentials
	}
	header, err := c.send(ctx, token, c.opt.AuthURL, r)
	switch status := statusOf(err); {
	case err == nil:
	case status == http.StatusUnauthorized || status == http.StatusForbidden || status == http.StatusNotFound && c.givenToken():
		return refused.Because(err)
	case status != 0 && status < 500:
		return ErrUnavailable.Because(err).Try("Correct OS_AUTH_URL or --auth-url, if it is not the address of Keystone's version 3.")
	default:
		return meaning(err)
	}
	if !c.givenToken() {
		token = secret.New(header.Get("X-Subject-Token"))
	}
	if token.IsZero() {
		return ErrUnavailable.Because(errors.New("identity: the answer has no token"))
	}
	if err := said.scope(c.opt.ProjectID); err != nil {
		return err
	}
	c.session = &session{token, said.Token.Project.ID, said.Token.Catalog}
	return nil
}

// scope refuses a token that is not for a project, or not for the wanted one.
func (d *description) scope(want string) error {
	t := &d.Token
	switch {
	case t.IsDomain:
		return ErrDomainScoped.Saw("its scope is the domain %q", cmp.Or(t.Project.Name, t.Domain.Name, t.Domain.ID))
	case t.Project.ID == "" && t.Domain.ID+t.Domain.Name != "":
		return ErrDomainScoped.Saw("its scope is the domain %q", cmp.Or(t.Domain.Name, t.Domain.ID))
	case t.Project.ID == "":
		return ErrUnscoped
	case want != "" && want != t.Project.ID:
		return ErrProject.Saw("the token is for %q", t.Project.ID)
	}
	return nil
}

// tokenRequest tells Keystone who the customer is, as the environment has it.
func (o *Options) tokenRequest() (map[string]any, error) {
	get := func(names ...string) string {
		for _, name := range names {
			if value := o.Getenv(name); value != "" {
				return value
			}
		}
		return ""
	}
	auth := gophercloud.AuthOptions{
		Username: get("OS_USERNAME"), UserID: get("OS_USER_ID"), DomainName: get("OS_USER_DOMAIN_NAME", "OS_DEFAULT_DOMAIN"), DomainID: get("OS_USER_DOMAIN_ID"),
		ApplicationCredentialID: get("OS_APPLICATION_CREDENTIAL_ID"), ApplicationCredentialName: get("OS_APPLICATION_CREDENTIAL_NAME"),
	}
	credential := auth.ApplicationCredentialID+auth.ApplicationCredentialName != ""
	switch {
	case credential:
		auth.ApplicationCredentialSecret = get("OS_APPLICATION_CREDENTIAL_SECRET")
		if auth.ApplicationCredentialSecret == "" {
			return nil, errSettings.Saw("an application credential has no secret").Try("Set OS_APPLICATION_CREDENTIAL_SECRET.")
		}
		if auth.ApplicationCredentialID != "" { // it says whose it is
			auth.Username, auth.UserID, auth.DomainName, auth.DomainID = "", "", "", ""
		}
	case get("OS_PASSWORD") == "":
		return nil, errSettings.Saw("there is no token, no password and no application credential").
			Try("Set VMIMPORT_TOKEN or --token-file to a token of the project (openstack token issue -f value -c id), or the OS_* variables of the cloud's openrc file; clouds.yaml is not read.")
	default:
		auth.Password = get("OS_PASSWORD")
		scope, err := o.projectScope(get)
		if err != nil {
			return nil, err
		}
		auth.Scope = scope
	}
	switch {
	case auth.UserID != "":
		auth.Username, auth.DomainName, auth.DomainID = "", "", "" // an id is unique
	case auth.DomainID != "":
		auth.DomainName = ""
	case auth.Username != "":
		auth.DomainName = cmp.Or(auth.DomainName, "Default")
	}
	scope, err := auth.ToTokenV3ScopeMap()
	if err != nil {
		return nil, errSettings.Saw("the OS_* variables name no project")
	}
	request, err := auth.ToTokenV3CreateMap(scope)
	if err != nil {
		return nil, errSettings.Saw("the OS_* variables name no user").Try("Set OS_USERNAME, and OS_USER_DOMAIN_NAME.")
	}
	return request, nil
}

// projectScope names the project that a token is asked for: never a domain alone.
func (o *Options) projectScope(get func(...string) string) (*gophercloud.AuthScope, error) {
	id, name := cmp.Or(get("OS_PROJECT_ID", "OS_TENANT_ID"), o.ProjectID), get("OS_PROJECT_NAME", "OS_TENANT_NAME")
	domainID := get("OS_PROJECT_DOMAIN_ID")
	switch {
	case id != "":
		return &gophercloud.AuthScope{ProjectID: id}, nil
	case name != "" && domainID != "":
		return &gophercloud.AuthScope{ProjectName: name, DomainID: domainID}, nil
	case name != "":
		domain := cmp.Or(get("OS_PROJECT_DOMAIN_NAME", "OS_USER_DOMAIN_NAME", "OS_DEFAULT_DOMAIN"), "Default")
		return &gophercloud.AuthScope{ProjectName: name, DomainName: domain}, nil
	}
	return nil, errSettings.Saw("there is no project to ask a token for").Try("Set OS_PROJECT_ID or --project-id; a domain is no scope for this.")
}

// catalogueTypes are the names that services have in catalogues, old ones included,
// the preferred first. All versions of block storage take the few calls made here.
var catalogueTypes = map[string][]string{
	TypeCompute:      {"compute"},
	TypeBlockStorage: {"volumev3", "block-storage", "volumev2", "volume"},
	TypeImage:        {"image"},
}

// endpoint finds a service, with a slash at the end.
func (c *Cloud) endpoint(service string) (string, error) {
	found := c.opt.Endpoints[service]
	for _, name := range catalogueTypes[service] {
		if found != "" {
			break
		}
		var err error
		if found, err = c.lookUp(name); err != nil {
			return "", err
		}
	}
	if found == "" {
		return "", ErrCatalogue.Saw("no %s endpoint of the %s service%s", c.opt.Interface, service, inRegion(c.opt.Region))
	}
	found = strings.TrimRight(found, "/")
	if service == TypeImage { // which catalogues name with a version, or without
		found = strings.TrimSuffix(strings.TrimSuffix(found, "/v1"), "/v2") + "/v2"
	}
	return found + "/", nil
}

func inRegion(region string) string {
	if region == "" {
		return ""
	}
	return fmt.Sprintf(" in region %q", region)
}

// lookUp returns the only endpoint of a type in the catalogue, "" if there is none.
func (c *Cloud) lookUp(name string) (string, error) {
	found, regions := "", []string{}
	for _, entry := range c.session.catalogue {
		if entry.Type != name {
			continue
		}
		for _, e := range entry.Endpoints {
			region := cmp.Or(e.RegionID, e.Region)
			if e.Interface != c.opt.Interface || c.opt.Region != "" && c.opt.Region != region || e.URL == found || !plainURL(e.URL) {
				continue
			}
			found, regions = e.URL, append(regions, region)
		}
	}
	if len(regions) > 1 {
		slices.Sort(regions)
		return "", ErrCatalogue.Saw("%s is in several regions: %s", name, strings.Join(slices.Compact(regions), ", "))
	}
	return found, nil
}
