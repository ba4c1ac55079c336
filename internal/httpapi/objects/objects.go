// Package objects serves the useful part of the Swift object API over a store
// that can be written, so that an installation without an object store can be
// filled by plain HTTP, under the very paths that the location of an import
// names.
//
//	PUT, GET, HEAD          /v2/AUTH_<project>/<container>
//	PUT, GET, HEAD, DELETE  /v2/AUTH_<project>/<container>/<object>
//
// and the same under /v1. Names are percent-encoded in the path, and decoded
// exactly once. A caller reaches its own project only. Objects of any size
// stream through without being held. Large-object manifests, metadata and
// copying on the server are not offered, and a request that asks for one of
// them is refused, since doing something else would look like success.
package objects

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/labstack/echo/v4"

	"vmimport/internal/auth"
	"vmimport/internal/fault"
	"vmimport/storage"
)

// API is the object API. Its Mount and WriteError make it a dialect of the
// server.
type API struct {
	store   storage.Writable
	tokens  auth.TokenAuthenticator
	digests digests
}

// New returns the API of a store.
func New(store storage.Writable, tokens auth.TokenAuthenticator) *API {
	return &API{store: store, tokens: tokens}
}

// Mount adds the routes to e.
func (a *API) Mount(e *echo.Echo) {
	for _, version := range []string{"/v1", "/v2"} {
		container := version + "/AUTH_:project/:container"
		e.PUT(container, a.own(a.makeContainer))
		e.Match([]string{http.MethodGet, http.MethodHead}, container, a.own(a.list))
		object := container + "/*"
		e.PUT(object, a.own(a.put))
		e.Match([]string{http.MethodGet, http.MethodHead}, object, a.own(a.get))
		e.DELETE(object, a.own(a.remove))
	}
}

type handler func(c echo.Context, loc storage.Location) error

// own finds out which names a request means, and lets in whose they are.
func (a *API) own(next handler) echo.HandlerFunc {
	return func(c echo.Context) error {
		who, err := a.tokens.Authenticate(c.Request().Context(), c.Request().Header.Get("X-Auth-Token"))
		if err != nil {
			return fmt.Errorf("authenticate: %w", err)
		}
		loc, err := locationOf(c.Request().URL)
		if err != nil {
			return err
		}
		if who.ProjectID == "" || loc.Project != who.ProjectID {
			return errForeign
		}
		return next(c, loc)
	}
}

// locationOf reads /<version>/AUTH_<project>/<container>[/<object>]. It starts
// from the path as it was sent: in a decoded one, a slash may be part of a name.
func locationOf(u *url.URL) (storage.Location, error) {
	_, rest, _ := strings.Cut(strings.TrimPrefix(u.EscapedPath(), "/"), "/AUTH_")
	project, rest, _ := strings.Cut(rest, "/")
	container, object, _ := strings.Cut(rest, "/")
	loc := storage.Location{API: "swift"}
	for _, part := range []struct {
		to   *string
		text string
	}{{&loc.Project, project}, {&loc.Container, container}, {&loc.Name, object}} {
		var err error
		if *part.to, err = url.PathUnescape(part.text); err != nil {
			return loc, errName
		}
	}
	checked := loc
	if object == "" {
		checked.Name = "-" // only the container is named, and there is no object to check
	}
	if !checked.Valid() {
		return loc, errName
	}
	return loc, nil
}

func (a *API) makeContainer(c echo.Context, loc storage.Location) error {
	// Swift answers 202 for a container that is there already. The store does
	// not tell, and 201 is a success to every client.
	if err := a.store.MakeContainer(loc.Project, loc.Container); err != nil {
		return fmt.Errorf("make container: %w", err)
	}
	return c.NoContent(http.StatusCreated)
}

func (a *API) put(c echo.Context, loc storage.Location) error {
	if loc.Name == "" { // a container, named with a slash at the end
		return a.makeContainer(c, loc)
	}
	r := c.Request()
	for _, header := range []string{"X-Object-Manifest", "X-Copy-From"} {
		if r.Header.Get(header) != "" {
			return errManifest
		}
	}
	if r.URL.Query().Has("multipart-manifest") {
		return errManifest
	}
	want := storage.Announced{Size: r.ContentLength, MD5: strings.ToLower(strings.Trim(r.Header.Get("Etag"), `"`))}

	finish := a.digests.begin(loc)
	body := &sticky{Reader: r.Body}
	md5, err := a.store.Put(r.Context(), loc, body, want)
	if err != nil {
		finish("", "")
		return fmt.Errorf("store object: %w", uploadError(err, body.err, want))
	}
	stat, err := a.store.Stat(loc)
	if err != nil {
		md5 = "" // replaced or removed already, and so not to be remembered
	}
	finish(md5, stat.Version)
	c.Response().Header().Set("Etag", md5)
	return c.NoContent(http.StatusCreated)
}

// sticky remembers what a body failed with.
type sticky struct {
	io.Reader
	err error
}

func (s *sticky) Read(p []byte) (int, error) {
	n, err := s.Reader.Read(p)
	if err != nil && err != io.EOF {
		s.err = err
	}
	return n, err
}

// uploadError tells apart whose fault it is that an upload ended.
func uploadError(err, bodyErr error, want storage.Announced) error {
	switch {
	case errors.Is(bodyErr, os.ErrDeadlineExceeded):
		return errTimeout
	case bodyErr != nil:
		return errCutShort
	case fault.CodeOf(err) == "upload_incomplete" && want.MD5 != "":
		return errETag
	}
	return err
}

func (a *API) get(c echo.Context, loc storage.Location) error {
	if loc.Name == "" {
		return a.list(c, loc)
	}
	object, err := a.store.Open(c.Request().Context(), loc)
	if err != nil {
		return fmt.Errorf("open object: %w", err)
	}
	h := c.Response().Header()
	h.Set(echo.HeaderContentType, echo.MIMEOctetStream)
	var modified time.Time
	if stat, err := a.store.Stat(loc); err == nil && stat.Version == object.Version() {
		modified = stat.ModTime
	}
	if md5 := a.digests.of(loc, object.Version()); md5 != "" {
		h.Set("Etag", `"`+md5+`"`)
	}
	content := &seeker{ctx: c.Request().Context(), object: object}
	defer content.Close()
	http.ServeContent(bareETag{c.Response()}, c.Request(), "", modified, content)
	return content.err
}

// bareETag sends the ETag as Swift does, without the quotes that net/http wants
// to see when it evaluates conditions.
type bareETag struct{ http.ResponseWriter }

func (w bareETag) WriteHeader(status int) {
	if h := w.Header(); h.Get("Etag") != "" {
		h.Set("Etag", strings.Trim(h.Get("Etag"), `"`))
	}
	w.ResponseWriter.WriteHeader(status)
}

func (a *API) remove(c echo.Context, loc storage.Location) error {
	if loc.Name == "" {
		return echo.ErrMethodNotAllowed
	}
	if err := a.store.Delete(loc); err != nil {
		return fmt.Errorf("delete object: %w", err)
	}
	return c.NoContent(http.StatusNoContent)
}

// maxListed is the length of a list, as in Swift; marker asks for the next one.
const maxListed = 10000

type listEntry struct {
	Name         string `json:"name"`
	Bytes        int64  `json:"bytes"`
	ContentType  string `json:"content_type"`
	LastModified string `json:"last_modified"`
}

func (a *API) list(c echo.Context, loc storage.Location) error {
	all, err := a.store.List(c.Request().Context(), loc.Project, loc.Container)
	if err != nil {
		return fmt.Errorf("list container: %w", err)
	}
	var used int64
	for _, e := range all {
		used += e.Size
	}
	h := c.Response().Header()
	h.Set("X-Container-Object-Count", strconv.Itoa(len(all)))
	h.Set("X-Container-Bytes-Used", strconv.FormatInt(used, 10))
	if c.Request().Method == http.MethodHead {
		return c.NoContent(http.StatusNoContent)
	}

	limit := maxListed
	if text := c.QueryParam("limit"); text != "" {
		n, err := strconv.ParseUint(text, 10, 31)
		if err != nil || n > maxListed {
			return errLimit
		}
		limit = int(n)
	}
	marker, prefix := c.QueryParam("marker"), c.QueryParam("prefix")
	entries, names := []listEntry{}, &strings.Builder{}
	for _, e := range all {
		if e.Name <= marker || !strings.HasPrefix(e.Name, prefix) {
			continue
		}
		if len(entries) == limit {
			break
		}
		entries = append(entries, listEntry{
			e.Name, e.Size, echo.MIMEOctetStream, e.ModTime.UTC().Format("2006-01-02T15:04:05.000000"),
		})
		names.WriteString(e.Name + "\n")
	}
	if c.QueryParam("format") == "json" || strings.HasPrefix(c.Request().Header.Get(echo.HeaderAccept), echo.MIMEApplicationJSON) {
		return c.JSON(http.StatusOK, entries)
	}
	if len(entries) == 0 {
		return c.NoContent(http.StatusNoContent)
	}
	return c.String(http.StatusOK, names.String())
}
