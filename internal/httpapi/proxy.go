package httpapi

import (
	"net/http"
	"net/netip"
	"slices"

	"github.com/labstack/echo/v4"
)

// Encrypted returns what tells whether the client reached the service by TLS: here, or at one of
// proxies, whose X-Forwarded-Proto is believed.
func Encrypted(proxies []netip.Prefix) func(echo.Context) bool {
	return func(c echo.Context) bool {
		return c.IsTLS() || from(c.Request(), proxies) && c.Request().Header.Get(echo.HeaderXForwardedProto) == "https"
	}
}

// from reports whether the peer of a request's connection is one of proxies.
func from(r *http.Request, proxies []netip.Prefix) bool {
	peer, err := netip.ParseAddrPort(r.RemoteAddr)
	return err == nil && slices.ContainsFunc(proxies, func(p netip.Prefix) bool { return p.Contains(peer.Addr().Unmap()) })
}
