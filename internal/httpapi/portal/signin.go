package portal

import (
	"errors"
	"net/http"
	"net/url"
	"strings"
	"unicode"

	"github.com/labstack/echo/v4"

	"vmimport/internal/secret"
)

const (
	tokenCookie    = "vmimport_token"
	languageCookie = "vmimport_language"

	// secured is what a cookie is called that no other host and no page without TLS can
	// set; see RFC 6265bis, section 4.1.3.2.
	secured = "__Host-"

	// maxCookieToken is what of a token fits into a cookie: browsers keep 4096 bytes,
	// with name and attributes.
	maxCookieToken = 3500
)

func (p *Portal) cookieName(c echo.Context) string {
	if p.opts.Secure(c) {
		return secured + tokenCookie
	}
	return tokenCookie
}

// token returns the token in the request's cookie.
func (p *Portal) token(c echo.Context) (secret.Text, bool) {
	cookie, err := c.Cookie(p.cookieName(c))
	if err != nil {
		return secret.Text{}, false
	}
	token, err := url.QueryUnescape(cookie.Value)
	if err != nil || token == "" || !sendable(token) {
		return secret.Text{}, false
	}
	return secret.New(token), true
}

// setCookie sets the session's cookie; an empty value removes it.
func (p *Portal) setCookie(c echo.Context, value string) {
	cookie := &http.Cookie{
		Name: p.cookieName(c), Value: value, Path: "/",
		HttpOnly: true, SameSite: http.SameSiteStrictMode, Secure: p.opts.Secure(c),
	}
	if value == "" {
		cookie.MaxAge = -1
	}
	c.SetCookie(cookie)
}

// sendable reports whether a token can stand in a header.
func sendable(token string) bool {
	return !strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r >= 0x7f })
}

// cleanToken returns what was meant to be pasted: terminals break long lines, and
// people take the header's name or the quotes with it.
func cleanToken(pasted string) string {
	token := strings.Map(func(r rune) rune {
		if unicode.IsSpace(r) || r == '\u200b' || r == '\ufeff' {
			return -1
		}
		return r
	}, pasted)
	for _, header := range []string{"X-Subject-Token:", "X-Auth-Token:"} {
		if len(token) > len(header) && strings.EqualFold(token[:len(header)], header) {
			token = token[len(header):]
		}
	}
	return strings.Trim(token, `"'`)
}

// signInBody is what the page to sign in shows.
type signInBody struct {
	Return string
	Wrong  string // key of what is wrong
	Said   string // by the API, where that tells more
	Ended  bool   // there was a token, and it is no good any more
}

// signInPage shows the form.
func (p *Portal) signInPage(c echo.Context) error {
	return p.showSignIn(c, signInBody{Return: returnPath(c.QueryParam("return")), Ended: c.QueryParam("ended") != ""})
}

// showSignIn answers with success even if something was wrong with the token: the page
// is what was asked for, and browsers report anything else as an error of the page.
func (p *Portal) showSignIn(c echo.Context, body signInBody) error {
	return p.render(c, http.StatusOK, "signin", p.words(c).text("signin.title"), body)
}

// signInAt is the address of the page that leads back to another.
func signInAt(back string) string { return signInPath + "?return=" + url.QueryEscape(returnPath(back)) }

// askToSignIn answers a request without a good token.
func (p *Portal) askToSignIn(c echo.Context) error {
	r := c.Request()
	_, ended := p.token(c)
	if ended {
		p.setCookie(c, "")
	}
	if !ended && r.Method == http.MethodGet && r.Header.Get("Sec-Fetch-Site") == "cross-site" {
		// Whoever follows a link from elsewhere, such as a mail, may well be signed in:
		// the browser leaves the cookie out until the page asks for itself.
		return p.render(c, http.StatusOK, "bounce", p.words(c).text("bounce.title"), here(r))
	}
	target := signInAt(here(r))
	if ended {
		target += "&ended=1"
	}
	return c.Redirect(http.StatusSeeOther, target)
}

// signIn tries the token, and keeps it if the API takes it.
func (p *Portal) signIn(c echo.Context) error {
	form, err := readForm(c)
	if err != nil {
		return err
	}
	token := cleanToken(form.Get("token"))
	body := signInBody{Return: returnPath(form.Get("return"))}
	value := url.QueryEscape(token)
	switch {
	case token == "":
		body.Wrong = "signin.missing"
	case !sendable(token):
		body.Wrong = "signin.characters"
	case len(value) > maxCookieToken:
		body.Wrong = "signin.too_long"
	}
	if body.Wrong != "" {
		return p.showSignIn(c, body)
	}
	err = p.caller(c, secret.New(token)).get(imports.api+"?limit=1", nil)
	if said, ok := errors.AsType[*apiError](err); ok {
		if body.Wrong = wrongToken(said); body.Wrong == "signin.unavailable" {
			body.Said = said.Message
		}
		return p.showSignIn(c, body)
	}
	if err != nil {
		return err
	}
	p.setCookie(c, value)
	return c.Redirect(http.StatusSeeOther, body.Return)
}

// wrongToken says why the API did not take a token.
func wrongToken(said *apiError) string {
	switch {
	case said.Code == "40005":
		return "signin.no_project"
	case said.Status == http.StatusUnauthorized:
		return "signin.refused"
	case said.Status == http.StatusForbidden:
		return "signin.no_role"
	}
	return "signin.unavailable"
}

func (p *Portal) signOut(c echo.Context) error {
	p.setCookie(c, "")
	return c.Redirect(http.StatusSeeOther, signInPath)
}

// chooseLanguage remembers a language, and goes back.
func (p *Portal) chooseLanguage(c echo.Context) error {
	form, err := readForm(c)
	if err != nil {
		return err
	}
	if chosen := language(form.Get("language")); catalogs[chosen] != nil {
		c.SetCookie(&http.Cookie{
			Name: languageCookie, Value: string(chosen), Path: root, MaxAge: 365 * 24 * 60 * 60,
			HttpOnly: true, SameSite: http.SameSiteLaxMode, Secure: p.opts.Secure(c),
		})
	}
	back := form.Get("return")
	if query, ok := strings.CutPrefix(back, signInPath+"?"); ok {
		// The one page that returnPath does not return to, so that nobody signs in in circles.
		values, _ := url.ParseQuery(query)
		return c.Redirect(http.StatusSeeOther, signInAt(values.Get("return")))
	}
	return c.Redirect(http.StatusSeeOther, returnPath(back))
}

// readForm reads a form that the server has bounded in size and time.
func readForm(c echo.Context) (url.Values, error) {
	r := c.Request()
	if err := r.ParseForm(); err != nil {
		return nil, errFormBody
	}
	return r.PostForm, nil
}
