package keystone

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/gophercloud/gophercloud/v2"

	"vmimport/internal/auth"
	"vmimport/internal/fault"
	"vmimport/internal/openstack"
)

// answer is what Keystone says of a token that it knows.
type answer struct {
	who     auth.Identity
	expires time.Time // by Keystone's clock
}

const (
	subjectHeader = "X-Subject-Token"

	// A token without a catalogue takes less than a kilobyte, and some more for
	// each of many roles.
	maxAnswerBytes = 1 << 20
)

// ask asks Keystone about token; empty stands for the service's own. Its errors are
// those of Authenticate, and hold no token.
//
// A token of an application credential with access rules is not known to Keystone
// here, as it is said nowhere that this service obeys such rules.
func (a *Authenticator) ask(ctx context.Context, token string) (*answer, error) {
	var said *answer
	err := a.cloud.Identity(ctx, func(c *gophercloud.ServiceClient) error {
		subject := token
		if subject == "" {
			subject = c.Token()
		}
		resp, err := c.Get(ctx, c.ServiceURL("auth", "tokens")+"?nocatalog", nil, &gophercloud.RequestOpts{
			MoreHeaders:      map[string]string{subjectHeader: subject},
			OkCodes:          []int{http.StatusOK},
			KeepResponseBody: true,
		})
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		// Keystone lets proxies tell answers apart by X-Auth-Token, which here is
		// always the same. So one that caches could mix up the callers.
		if resp.Header.Get(subjectHeader) != subject {
			return errors.New("the answer is about another token")
		}
		body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswerBytes))
		if err != nil {
			return err
		}
		said, err = parse(body)
		return err
	})
	switch {
	case err == nil:
		return said, nil
	case fault.KindOf(err) == fault.Unavailable: // there is no token to ask with
		return nil, err
	case openstack.Unknown(err):
		return nil, auth.ErrNoIdentity
	case openstack.StatusOf(err) == http.StatusForbidden:
		return nil, ErrCannotValidate
	}
	return nil, openstack.ErrIdentity.Because(fmt.Errorf("validate token: %w", openstack.Cause(err)))
}

// parse reads the description of a token.
func parse(body []byte) (*answer, error) {
	var b struct {
		Token struct {
			ExpiresAt string `json:"expires_at"`
			IsDomain  bool   `json:"is_domain"`
			User      struct {
				ID string `json:"id"`
			} `json:"user"`
			Project struct {
				ID     string `json:"id"`
				Domain struct {
					ID string `json:"id"`
				} `json:"domain"`
			} `json:"project"`
			Roles []struct {
				Name string `json:"name"`
			} `json:"roles"`
		} `json:"token"`
	}
	if err := json.Unmarshal(body, &b); err != nil {
		return nil, fmt.Errorf("read answer: %w", err)
	}
	t := &b.Token
	expires, err := openstack.ParseTime(t.ExpiresAt)
	if err != nil {
		return nil, fmt.Errorf("read answer: %w", err)
	}
	if t.User.ID == "" {
		return nil, errors.New("read answer: the token is nobody's")
	}
	said := &answer{auth.Identity{UserID: t.User.ID}, expires}
	for _, role := range t.Roles {
		said.who.Roles = append(said.who.Roles, role.Name)
	}
	// A project that stands for a domain has none that it is in.
	if !t.IsDomain && t.Project.Domain.ID != "" && t.Project.ID != "" {
		said.who.ProjectID, said.who.DomainID = t.Project.ID, t.Project.Domain.ID
	}
	return said, nil
}

// validates reports whether a role is one of those that may ask about any token,
// unless an operator has changed Keystone's rules.
func validates(role string) bool {
	return strings.EqualFold(role, "admin") || strings.EqualFold(role, "service")
}
