// Package portal is the customers' web page: imports and exports as they go on, what
// has become of them, and forms for new ones.
//
// It is a client of the region's own API, called inside the process with the caller's
// token, and has no rights and no rules of its own: what the API refuses, it refuses
// for the same reason and in the same words. The token lies in a cookie that no script
// can read, and the server remembers nothing between two requests.
//
// Pages are complete without script. The script moves the bars, checks while somebody
// types, and asks in a dialog where otherwise a page asks. Nothing is loaded from
// elsewhere.
package portal

import (
	"cmp"
	"errors"
	"net/http"
	"time"

	"github.com/labstack/echo/v4"
	"github.com/rs/zerolog"

	"vmimport/tasks"
)

// Options of a Portal. API is required.
type Options struct {
	// Region is shown on every page.
	Region string
	// API answers the calls of the region's API, and what they need of a request's Host.
	API http.Handler
	// Offers is what the forms offer.
	Offers Offers
	// Events is the path of the stream of all events; "": "/v1/events".
	Events string
	// Secure reports whether the browser reached the service by TLS, at a proxy that is
	// trusted or here; nil: echo.Context.IsTLS.
	Secure func(echo.Context) bool
	// Now is time.Now if nil.
	Now func() time.Time
}

// Offers is what a region offers to those who fill in forms. The API decides; this
// keeps the forms from offering what it would refuse.
type Offers struct {
	// LocationVersion is what a location begins with, "v1" or "v2".
	LocationVersion string
	// S3Locations says that an image may also be named as /bucket/object.
	S3Locations bool
	// Hypervisors are what images may come from; the first is what the API takes if
	// nothing is said, and with one alone nothing is asked.
	Hypervisors []Hypervisor
	// DiskExtensions are what the objects of data disks may end with.
	DiskExtensions []string
	// OSTypes are the values of os_type.
	OSTypes []string
	// CancelImports says that imports can be canceled. Exports always can.
	CancelImports bool
	// Exports says that there are exports.
	Exports bool
}

// Hypervisor is a value of image_from, and what the objects of such images may end with.
type Hypervisor struct {
	Name       string // "vmware" or "kvm"
	Extensions []string
}

// Portal serves the pages of one region.
type Portal struct {
	opts  Options
	pages map[language]pages
	csrf  *http.CrossOriginProtection
}

// New returns a Portal.
func New(opts Options) *Portal {
	opts.Events = cmp.Or(opts.Events, "/v1/events")
	if opts.Secure == nil {
		opts.Secure = echo.Context.IsTLS
	}
	if opts.Now == nil {
		opts.Now = time.Now
	}
	return &Portal{opts: opts, pages: parsePages(), csrf: http.NewCrossOriginProtection()}
}

// Paths of the pages that others lead to.
const (
	root       = "/portal/"
	signInPath = root + "sign-in"
)

// kind is what the pages of imports and those of exports differ in.
type kind struct {
	tasks.Kind
	path string // of the list
	api  string // of the API's list
	all  string // member of the API's list that holds it
}

var (
	imports = kind{tasks.KindImport, root + "imports", "/v1/imageimport", "imports"}
	exports = kind{tasks.KindExport, root + "exports", "/v1/imageexport", "exports"}
)

func (k kind) page(id tasks.ID) string { return k.path + "/" + string(id) }

// Mount adds the routes to e.
func (p *Portal) Mount(e *echo.Echo) {
	get := func(path string, h echo.HandlerFunc) {
		e.Match([]string{http.MethodGet, http.MethodHead}, path, p.guarded(h))
	}
	post := func(path string, h echo.HandlerFunc) { e.POST(path, p.guarded(h)) }
	toImports := func(c echo.Context) error { return c.Redirect(http.StatusSeeOther, imports.path) }

	get("/portal", toImports)
	get(root, toImports)
	get(root+"*", func(echo.Context) error { return errNoPage })
	get(root+"assets/:file", p.asset)
	get(signInPath, p.signInPage)
	post(signInPath, p.signIn)
	post(root+"sign-out", p.signOut)
	post(root+"language", p.chooseLanguage)
	e.GET(eventsPath, p.guarded(p.events))

	get(imports.path+"/new", p.signedIn(p.importForm))
	post(imports.path, p.signedIn(p.registerImport))
	kinds := []kind{imports}
	if p.opts.Offers.Exports {
		kinds = append(kinds, exports)
		get(exports.path+"/new", p.signedIn(p.exportForm))
		post(exports.path, p.signedIn(p.registerExport))
	}
	for _, k := range kinds {
		get(k.path, p.signedIn(p.listOf(k)))
		get(k.path+"/:id", p.signedIn(p.detailOf(k)))
		post(k.path+"/:id/retry", p.signedIn(p.retryOf(k)))
		if p.cancels(k) {
			get(k.path+"/:id/cancel", p.signedIn(p.askCancelOf(k)))
			post(k.path+"/:id/cancel", p.signedIn(p.cancelOf(k)))
		}
	}
}

// cancels reports whether tasks of a kind can be canceled.
func (p *Portal) cancels(k kind) bool { return k == exports || p.opts.Offers.CancelImports }

// Errors of the portal itself.
var (
	errNoPage   = errors.New("no such page")
	errNoToken  = errors.New("nobody is signed in")
	errForeign  = errors.New("the request does not come from the portal")
	errFormBody = errors.New("the form cannot be read")
)

// WriteError answers with a page that says what is wrong. Where the token is
// missing or has ended, that is the page to sign in.
func (p *Portal) WriteError(c echo.Context, err error) error {
	p.protect(c)
	status, words := http.StatusInternalServerError, "error.internal"
	said, refused := errors.AsType[*apiError](err)
	routed, _ := errors.AsType[*echo.HTTPError](err)
	switch {
	case errors.Is(err, errNoToken), refused && said.Status == http.StatusUnauthorized:
		return p.askToSignIn(c)
	case refused:
		return p.apiErrorPage(c, said)
	case errors.Is(err, errNoPage):
		status, words = http.StatusNotFound, "error.no_page"
	case errors.Is(err, errForeign):
		status, words = http.StatusForbidden, "error.foreign"
	case errors.Is(err, errFormBody):
		status, words = http.StatusBadRequest, "error.form"
	case routed != nil && routed.Code == http.StatusMethodNotAllowed:
		status, words = http.StatusMethodNotAllowed, "error.method"
	default:
		zerolog.Ctx(c.Request().Context()).Error().Err(err).Msg("portal")
	}
	return p.errorPage(c, status, words, "")
}

// apiErrorPage shows what the API said.
func (p *Portal) apiErrorPage(c echo.Context, said *apiError) error {
	words := "error.internal"
	switch {
	case said.Status == http.StatusNotFound:
		words = "error.no_task"
	case said.Status == http.StatusForbidden:
		words = "error.forbidden"
	case said.Status == http.StatusServiceUnavailable, said.Status == http.StatusTooManyRequests:
		words = "error.unavailable"
	case said.Status == http.StatusBadRequest:
		words = "error.refused"
	}
	if said.RetryAfter != "" {
		c.Response().Header().Set(echo.HeaderRetryAfter, said.RetryAfter)
	}
	return p.errorPage(c, said.Status, words, said.Message)
}

// errorBody is what an error's page shows.
type errorBody struct {
	Words     string // key of the heading; with ".hint" behind it, of what to do
	Original  string // the API's own sentence
	RequestID string
	Passing   bool // trying again helps
}

func (p *Portal) errorPage(c echo.Context, status int, words, original string) error {
	return p.render(c, status, "error", p.words(c).text(words), errorBody{
		Words: words, Original: original,
		RequestID: c.Response().Header().Get(echo.HeaderXRequestID),
		Passing:   status >= http.StatusInternalServerError || status == http.StatusTooManyRequests,
	})
}
