package openstack

import (
	"fmt"
	"net/http"
	"time"

	"vmimport/internal/outbound"
)

// Client returns a client for requests that Call is not for: those with a body that
// comes once. It follows no redirect. answer bounds the wait between the end of the
// body and the answer.
func (c *Cloud) Client(answer time.Duration) (*http.Client, error) {
	transport, err := outbound.Transport(outbound.Options{CAFile: c.opt.CAFile, AnswerTimeout: answer})
	if err != nil {
		return nil, fmt.Errorf("openstack: %w", err)
	}
	// A server that refuses a request says so before the body is sent, if it can. uwsgi,
	// which never says that the body may come, makes each upload wait for as long as this.
	transport.ExpectContinueTimeout = 200 * time.Millisecond
	return &http.Client{Transport: transport, CheckRedirect: noRedirect}, nil
}
