// Package servers is the customer's side of the cloud that a server runs in: it
// stops a server, has an image made of it, and starts it again.
//
// What it does can be broken off at any moment and done again: a server that is
// stopped is not stopped twice, and an image that is being made is found and waited
// for. Nothing that a cloud says is passed on unread. The description of a server
// holds the metadata that its owner gave it, passwords among them, so answers are
// taken apart for a few known members and then dropped; neither they nor the errors
// of the client library, which quote them, get into an error, a log or a result.
package servers

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"vmimport/internal/outbound"
	"vmimport/internal/secret"
)

// Options say where a cloud is and who the customer is there. What they leave out is
// taken from Getenv, under the names that the OpenStack client gives it.
type Options struct {
	AuthURL string // of Keystone, with or without its /v3; empty: OS_AUTH_URL

	// Token is one that the customer has; it cannot be renewed. Without it, and
	// without OS_TOKEN, one is asked for with the application credential or the
	// password of the environment.
	Token secret.Text
	// ProjectID is the project that a token must be for; empty: any.
	ProjectID string

	Region    string            // of the catalogue; empty: OS_REGION_NAME, or the only one
	Interface string            // "public" (also if empty), "internal" or "admin"; empty: OS_INTERFACE
	Endpoints map[string]string // by type of service; go before the catalogue's
	CAFile    string            // certificates to trust besides the system's, PEM; empty: OS_CACERT

	Getenv func(string) string // nil: nothing is set
	HTTP   *http.Client        // nil: one of its own, for which proxy variables count

	PowerTimeout  time.Duration // longest wait for a server to stop or start; zero: 15 min
	ImageTimeout  time.Duration // longest wait for an image, its turn included; zero: 24 h
	AnswerTimeout time.Duration // for each request; zero: 30 s
}

// Types of services, as in Options.Endpoints.
const (
	TypeCompute      = "compute"
	TypeBlockStorage = "block-storage"
	TypeImage        = "image"
)

// Cloud is one cloud as one of its customers sees it. It is for one goroutine at a
// time.
type Cloud struct {
	opt     Options
	client  http.Client
	session *session
}

// Open finds out who the customer is, and refuses a token that is for no project: all
// else that is asked of a cloud is about a project's own.
//
// Errors are faults, those about the Options with CodeSettings.
func Open(ctx context.Context, o Options) (*Cloud, error) {
	if o.Getenv == nil {
		o.Getenv = func(string) string { return "" }
	}
	o.AuthURL = cmp.Or(o.AuthURL, o.Getenv("OS_AUTH_URL"))
	o.Region = cmp.Or(o.Region, o.Getenv("OS_REGION_NAME"))
	o.CAFile = cmp.Or(o.CAFile, o.Getenv("OS_CACERT"))
	// Older settings name the interface as Keystone's version 2 did: "publicURL".
	o.Interface = cmp.Or(o.Interface, strings.TrimSuffix(o.Getenv("OS_INTERFACE"), "URL"), "public")
	o.Token = cmp.Or(o.Token, secret.New(o.Getenv("OS_TOKEN")))
	o.PowerTimeout = cmp.Or(o.PowerTimeout, 15*time.Minute)
	o.ImageTimeout = cmp.Or(o.ImageTimeout, 24*time.Hour)
	o.AnswerTimeout = cmp.Or(o.AnswerTimeout, 30*time.Second)
	o.Endpoints = maps.Clone(o.Endpoints)
	if err := o.check(); err != nil {
		return nil, err
	}
	o.AuthURL = strings.TrimSuffix(strings.TrimRight(o.AuthURL, "/"), "/v2.0")
	o.AuthURL = strings.TrimSuffix(o.AuthURL, "/v3") + "/v3/"
	client, err := o.client()
	if err != nil {
		return nil, err
	}
	c := &Cloud{opt: o, client: client}
	return c, c.authenticate(ctx)
}

// ProjectID returns the project whose servers these are.
func (c *Cloud) ProjectID() string { return c.session.project }

// Token returns the token that the cloud has taken last, for other services of it.
func (c *Cloud) Token() secret.Text { return c.session.token }

func (o *Options) check() error {
	switch {
	case o.AuthURL == "":
		return errSettings.Saw("there is no address of the identity service").Try("Set OS_AUTH_URL or --auth-url.")
	case !plainURL(o.AuthURL):
		return errSettings.Saw("the address of the identity service is no plain http or https URL").Try("Correct OS_AUTH_URL or --auth-url.")
	case !slices.Contains([]string{"public", "internal", "admin"}, o.Interface):
		return errSettings.Saw("the interface is not public, internal or admin").Try("Correct OS_INTERFACE.")
	}
	for _, service := range slices.Sorted(maps.Keys(o.Endpoints)) {
		if u := o.Endpoints[service]; u != "" && !plainURL(u) {
			return errSettings.Saw("the address of %s is no plain http or https URL", service)
		}
	}
	return nil
}

// plainURL reports whether a path may be added to s. Its password, if it had one,
// would end up in errors.
func plainURL(s string) bool {
	u, err := url.Parse(s)
	return err == nil && (u.Scheme == "http" || u.Scheme == "https") && u.Host != "" &&
		u.User == nil && u.RawQuery == "" && !u.ForceQuery && u.Fragment == ""
}

// client returns the HTTP client, which follows no redirect: a token goes where the
// customer or the catalogue says.
func (o *Options) client() (http.Client, error) {
	var client http.Client
	if o.HTTP != nil {
		client = *o.HTTP
	}
	if client.Transport == nil {
		roots, err := o.roots()
		if err != nil {
			return client, errSettings.Saw("%v", err).Try("Correct OS_CACERT.")
		}
		client.Transport = &http.Transport{
			Proxy:           http.ProxyFromEnvironment,
			TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
			// Requests are seconds apart. And what a server says after its answer
			// would be quoted in the log, were the connection kept.
			DisableKeepAlives: true,
		}
	}
	client.Transport = outbound.ShortErrors(client.Transport)
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return client, nil
}

// roots returns the certificates to trust; nil stands for the system's.
func (o *Options) roots() (*x509.CertPool, error) {
	if o.CAFile == "" {
		return nil, nil
	}
	pem, err := os.ReadFile(o.CAFile)
	if err != nil {
		return nil, fmt.Errorf("certificates: %w", err)
	}
	roots, err := x509.SystemCertPool()
	if err != nil {
		return nil, fmt.Errorf("system certificates: %w", err)
	}
	if !roots.AppendCertsFromPEM(pem) {
		return nil, errors.New("the file of certificates has none")
	}
	return roots, nil
}
