package httpapi

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"net/http"
	"strings"

	"github.com/labstack/echo/v4"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/rs/zerolog"

	"vmimport"
	"vmimport/internal/audit"
)

// mountOperations adds what is served for operators and machines.
func (f *frontend) mountOperations(e *echo.Echo) {
	get := func(path string, h echo.HandlerFunc, m ...echo.MiddlewareFunc) {
		e.Match([]string{http.MethodGet, http.MethodHead}, path, h, m...)
	}
	get("/healthz", func(c echo.Context) error {
		return c.JSON(http.StatusOK, map[string]string{"status": "ok"})
	})
	get("/readyz", f.ready)
	get("/openapi.yaml", func(c echo.Context) error {
		return c.Blob(http.StatusOK, "application/yaml", vmimport.OpenAPI)
	})

	metrics := echo.WrapHandler(promhttp.HandlerFor(f.opts.Registry, promhttp.HandlerOpts{}))
	if f.opts.OpenMetrics {
		get("/metrics", metrics)
	} else {
		get("/metrics", metrics, f.operatorsOnly)
	}
	if f.opts.Monitoring != nil {
		get("/monitoring", func(c echo.Context) error { return c.Redirect(http.StatusFound, "/monitoring/") })
		get("/monitoring/*", echo.WrapHandler(f.opts.Monitoring), f.operatorsOnly, noteMonitoring, monitoringPolicy)
	}
}

// ready runs all checks at once. The answer tells which of them fail; why is
// for the log, since the path is open to everybody.
func (f *frontend) ready(c echo.Context) error {
	ctx, stop := context.WithTimeout(c.Request().Context(), f.opts.CheckTimeout)
	defer stop()

	results := make([]chan error, len(f.opts.Checks))
	for i, check := range f.opts.Checks {
		results[i] = make(chan error, 1)
		go func() { results[i] <- check.Func(ctx) }()
	}

	body := struct {
		Status string            `json:"status"`
		Checks map[string]string `json:"checks"`
	}{"ready", map[string]string{}}
	status := http.StatusOK
	for i, check := range f.opts.Checks {
		var err error
		select {
		case err = <-results[i]:
		case <-ctx.Done(): // and maybe this check does not obey it
			select {
			case err = <-results[i]:
			default:
				err = ctx.Err()
			}
		}
		body.Checks[check.Name] = "ok"
		if err != nil {
			status, body.Status, body.Checks[check.Name] = http.StatusServiceUnavailable, "not ready", "failed"
			zerolog.Ctx(ctx).Warn().Err(err).Str("check", check.Name).Msg("not ready")
		}
	}
	return c.JSON(status, body)
}

// operatorsOnly asks for the operator token: as the password of HTTP Basic,
// whatever the user name, for browsers, or as a bearer token, for programs.
func (f *frontend) operatorsOnly(next echo.HandlerFunc) echo.HandlerFunc {
	want := sha256.Sum256([]byte(f.opts.OperatorToken.Reveal()))
	return func(c echo.Context) error {
		r := c.Request()
		_, given, ok := r.BasicAuth()
		if !ok {
			given, ok = strings.CutPrefix(r.Header.Get(echo.HeaderAuthorization), "Bearer ")
		}
		got := sha256.Sum256([]byte(given))
		if !ok || f.opts.OperatorToken.IsZero() || subtle.ConstantTimeCompare(got[:], want[:]) != 1 {
			c.Response().Header().Set(echo.HeaderWWWAuthenticate, `Basic realm="vmimport operators", charset="UTF-8"`)
			return echo.ErrUnauthorized
		}
		return next(c)
	}
}

// noteMonitoring notes what an operator looks at: records name customers and their images. The
// parts that the page is made of tell nothing.
func noteMonitoring(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		if page := c.Param("*"); !strings.HasPrefix(page, "static/") {
			entry := audit.From(c.Request().Context())
			entry.Action, entry.ID = "monitoring.view", page
		}
		return next(c)
	}
}

// monitoringPolicy confines asynqmon's pages to themselves: they need inline
// scripts and styles, and ask for fonts elsewhere, which they can do without.
func monitoringPolicy(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		h := c.Response().Header()
		h.Set(echo.HeaderContentSecurityPolicy, "default-src 'self'; script-src 'self' 'unsafe-inline'; "+
			"style-src 'self' 'unsafe-inline'; img-src 'self' data:; font-src 'self' data:; "+
			"object-src 'none'; base-uri 'self'; form-action 'none'; frame-ancestors 'none'")
		h.Set(echo.HeaderXFrameOptions, "DENY")
		h.Set(echo.HeaderReferrerPolicy, "no-referrer")
		return next(c)
	}
}
