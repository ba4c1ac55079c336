package portal

import (
	"net/http"
	"strings"

	"github.com/labstack/echo/v4"
)

// policy lets pages load what this server embeds, and nothing else from anywhere.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; " +
	"form-action 'self'; base-uri 'none'; frame-ancestors 'none'"

// protect sets what every answer says to the browser.
func (p *Portal) protect(c echo.Context) {
	h := c.Response().Header()
	h.Set("Content-Security-Policy", policy)
	// Not no-referrer: with that, forms have an Origin that is null, which is all that browsers
	// say of where a form comes from if there is no TLS.
	h.Set("Referrer-Policy", "same-origin")
	h.Set("X-Content-Type-Options", "nosniff")
	if p.opts.Secure(c) { // elsewhere browsers do not heed it, and complain
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
	}
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Permissions-Policy", "camera=(), geolocation=(), microphone=(), payment=(), usb=()")
	h.Set("X-Robots-Tag", "noindex")
	h.Set(echo.HeaderCacheControl, "no-store")
	h.Set(echo.HeaderVary, "Cookie, Accept-Language")
}

// guarded refuses what another site has made a browser send, and sets the headers.
func (p *Portal) guarded(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		p.protect(c)
		if err := p.csrf.Check(c.Request()); err != nil {
			return errForeign
		}
		return next(c)
	}
}

// signedIn lets in only who has a token. Whether it is still good is the API's to say.
func (p *Portal) signedIn(next func(echo.Context, *caller) error) echo.HandlerFunc {
	return func(c echo.Context) error {
		token, ok := p.token(c)
		if !ok {
			return errNoToken
		}
		return next(c, p.caller(c, token))
	}
}

// returnPath returns where to go after signing in, if it is a page of the portal that
// can be asked for, else the list.
//
// What a browser makes of a path with a backslash, a control character or two slashes
// in front is another site, so that none of these is let through anywhere.
func returnPath(asked string) string {
	ok := strings.HasPrefix(asked, root) && len(asked) <= 512 &&
		!strings.HasPrefix(asked, signInPath) && !strings.Contains(asked, "//")
	dots := strings.ReplaceAll(strings.ToLower(asked), "%2e", ".") // which browsers take for a dot
	ok = ok && !strings.Contains(dots, "..")
	for _, b := range []byte(asked) {
		ok = ok && ' ' < b && b < 0x7f && b != '\\'
	}
	if !ok {
		return imports.path
	}
	return asked
}

// here is the path of the page that a request belongs to, to come back to.
func here(r *http.Request) string {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		// What was sent cannot be sent again; the page that it was about can be seen.
		path := strings.TrimSuffix(strings.TrimSuffix(r.URL.Path, "/cancel"), "/retry")
		return returnPath(path)
	}
	return returnPath(r.URL.RequestURI())
}
