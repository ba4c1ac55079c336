// Package fjcloud speaks the VM image import and export API of FUJITSU Cloud: the
// REST calls that register an import (of a server's image, or of one of expansion
// storage) or an export, show it, list them and cancel one.
//
// It decides what a request means and in which words it is answered; every
// rule that the dialects share is the Service's. A caller sees the imports and
// exports of its domain (or of its project, by configuration) that came in through
// this dialect, each by the calls for its kind, and cancels those of its own project.
// What a request holds beyond the documented members, in older clients a password, is
// dropped unread.
package fjcloud

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"

	"github.com/google/uuid"
	"github.com/labstack/echo/v4"
	"github.com/rs/zerolog"
	"go.opentelemetry.io/otel/trace"

	"vmimport/internal/audit"
	"vmimport/internal/auth"
	"vmimport/internal/events"
	"vmimport/tasks"
)

// Service is what the dialect needs of tasks.Service.
type Service interface {
	Register(ctx context.Context, spec *tasks.Spec) (task *tasks.Task, fresh bool, err error)
	Get(ctx context.Context, scope tasks.Scope, id tasks.ID) (*tasks.Task, error)
	List(ctx context.Context, scope tasks.Scope, start, limit int) ([]*tasks.Task, error)
	Cancel(ctx context.Context, scope tasks.Scope, id tasks.ID) (tasks.State, error)
	Retry(ctx context.Context, scope tasks.Scope, id tasks.ID) error
	Position(ctx context.Context, t *tasks.Task) (*tasks.Position, error)
	ReadObject(ctx context.Context, region string, o tasks.Object, limit int64) ([]byte, error)
}

// Profile is the generation of a region: which calls and values it offers.
type Profile string

// The profiles.
const (
	Gen3    Profile = "gen3"    // jp-east-3, jp-west-3
	Classic Profile = "classic" // all regions before these
)

// ListScope says whose imports and exports a caller sees.
type ListScope string

// The scopes.
const (
	ListDomain  ListScope = "domain"  // those of every project of its domain
	ListProject ListScope = "project" // those of its own project
)

// Name is what a record made through this dialect has as its Dialect.
const Name = "fjcloud"

// Options of a Dialect. The zero value is a gen3 region that lists by domain.
type Options struct {
	Profile   Profile   // "": Gen3
	ListScope ListScope // "": ListDomain

	// Extensions of object names that are accepted beside the documented ones,
	// whatever hypervisor the image is said to come from, such as ".raw". Each
	// must be a key of Formats, or ".gz": that allows each accepted one, and
	// ".raw", with ".gz" behind it.
	Extensions []string
	// LegacyOSTypes accepts os_type values of releases long gone.
	LegacyOSTypes bool
	// TargetFormat is what images are stored as; "": "raw".
	TargetFormat string
	// RequiredRole is a role without which a token opens nothing; "": none.
	RequiredRole string

	// Events are what the streams of events tell; nil: there are none.
	Events *events.Hub

	// NewID makes the ids of imports, exports and images, canonical lower-case
	// UUIDs; nil: random ones.
	NewID func() string
}

// Formats says what an extension declares about an object, as tasks.Disk.Format.
// With ".gz" behind it, so has the format.
var Formats = map[string]string{
	".vmdk":  "vmdk",
	".qcow2": "qcow2",
	".raw":   "raw",
	".img":   "raw",
	".vhd":   "vhd",
	".vhdx":  "vhdx",
	".vdi":   "vdi",
	".ova":   "ova",
}

// Dialect is the API of one region.
type Dialect struct {
	region  string
	service Service
	tokens  auth.TokenAuthenticator
	opts    Options
	version string // in a location
}

// New returns the dialect of a region.
func New(region string, service Service, tokens auth.TokenAuthenticator, opts Options) (*Dialect, error) {
	opts.Profile = cmp.Or(opts.Profile, Gen3)
	opts.ListScope = cmp.Or(opts.ListScope, ListDomain)
	opts.TargetFormat = cmp.Or(opts.TargetFormat, "raw")
	if opts.NewID == nil {
		opts.NewID = uuid.NewString
	}
	d := &Dialect{region: region, service: service, tokens: tokens, opts: opts}
	switch opts.Profile {
	case Gen3:
		d.version = "v2"
	case Classic:
		d.version = "v1"
	default:
		return nil, fmt.Errorf("fjcloud: unknown profile %q", opts.Profile)
	}
	if opts.ListScope != ListDomain && opts.ListScope != ListProject {
		return nil, fmt.Errorf("fjcloud: unknown list scope %q", opts.ListScope)
	}
	if region == "" {
		return nil, errors.New("fjcloud: a region needs a name")
	}
	for _, ext := range opts.Extensions {
		if Formats[ext] == "" && ext != compressed {
			return nil, fmt.Errorf("fjcloud: no format is known for the extension %q", ext)
		}
	}
	return d, nil
}

// Mount adds the routes to e.
func (d *Dialect) Mount(e *echo.Echo) {
	e.POST(importsPath, d.authenticated("import.register", d.registerImage))
	e.POST("/v1/expansionstorageimageimport", d.authenticated("import.register", d.registerDataDisk))
	e.GET(importsPath, d.authenticated("", d.list))
	e.GET(importsPath+"/:import_id/status", d.authenticated("", d.status))
	e.GET(importsPath+"/:import_id/events", d.authenticated("", d.importEvents))
	if d.opts.Profile == Gen3 {
		e.POST(importsPath+"/:import_id/cancel", d.authenticated("import.cancel", d.cancel))
	}
	e.POST(importsPath+"/:import_id/retry", d.authenticated("import.retry", d.retry))
	e.POST(exportsPath, d.authenticated("export.register", d.registerExport))
	e.GET(exportsPath, d.authenticated("", d.listExports))
	e.GET(exportsPath+"/:export_id/status", d.authenticated("", d.exportStatus))
	e.GET(exportsPath+"/:export_id/events", d.authenticated("", d.exportEvents))
	e.POST(exportsPath+"/:export_id/cancel", d.authenticated("export.cancel", d.cancelExport))
	e.POST(exportsPath+"/:export_id/retry", d.authenticated("export.retry", d.retryExport))
	e.GET(eventsPath, d.authenticated("", d.allEvents))
}

const (
	tokenHeader = "X-Auth-Token"
	// maxTokenBytes is far above what an identity service issues, and keeps what it
	// is asked about short.
	maxTokenBytes = 16 << 10
	// projectHeader is in our answers: what the token is for, which clients of ours would
	// have to ask the identity service otherwise.
	projectHeader = "X-Project-Id"
)

// authenticated finds out who calls, and lets in those who may. action is what the audit
// log calls the call; "": it changes nothing, and is not noted.
func (d *Dialect) authenticated(action string, next func(echo.Context, *auth.Identity) error) echo.HandlerFunc {
	return func(c echo.Context) error {
		ctx := c.Request().Context()
		entry := audit.From(ctx)
		entry.Region = d.region
		who, err := d.identify(ctx, c.Request().Header.Get(tokenHeader))
		if who != nil {
			entry.Tenant, entry.Project, entry.User, entry.Action = who.DomainID, who.ProjectID, who.UserID, action
		}
		if err != nil {
			if errors.Is(err, auth.ErrNoIdentity) {
				entry.Action = audit.SignInRefused
			}
			return err
		}
		annotate(c, "project", who.ProjectID)
		c.Response().Header().Set(projectHeader, who.ProjectID)
		return next(c, who)
	}
}

// identify returns who has a token, with an error if they are not let in.
func (d *Dialect) identify(ctx context.Context, token string) (*auth.Identity, error) {
	if token == "" || len(token) > maxTokenBytes {
		return nil, auth.ErrNoIdentity
	}
	who, err := d.tokens.Authenticate(ctx, token)
	if err != nil {
		return nil, fmt.Errorf("authenticate: %w", err)
	}
	// Without a domain the caller would share the records of everybody
	// else who has none.
	if who.ProjectID == "" || who.DomainID == "" {
		return who, errNoProject
	}
	if role := d.opts.RequiredRole; role != "" && !slices.Contains(who.Roles, role) {
		return who, errNoRole
	}
	return who, nil
}

// annotate adds a fact to the line that the server logs about the request.
func annotate(c echo.Context, key, value string) {
	zerolog.Ctx(c.Request().Context()).UpdateContext(func(l zerolog.Context) zerolog.Context {
		return l.Str(key, value)
	})
}

// visible is what a caller may see.
func (d *Dialect) visible(who *auth.Identity, kind tasks.Kind) tasks.Scope {
	scope := d.owned(who, kind)
	if d.opts.ListScope == ListDomain {
		scope.Project = ""
	}
	return scope
}

// owned is what a caller may change.
func (d *Dialect) owned(who *auth.Identity, kind tasks.Kind) tasks.Scope {
	return tasks.Scope{Region: d.region, Tenant: tasks.Tenant(who.DomainID), Project: who.ProjectID, Dialect: Name, Kind: kind}
}

// ownerOf is the caller as the owner of what it asks for.
func ownerOf(who *auth.Identity) tasks.Owner {
	return tasks.Owner{Tenant: tasks.Tenant(who.DomainID), Project: who.ProjectID, User: who.UserID}
}

// idName is what paths, bodies and the log call the id of a task of a kind.
func idName(kind tasks.Kind) string { return string(kind) + "_id" }

// find returns the task that the path names, if it is in scope.
func (d *Dialect) find(c echo.Context, scope tasks.Scope) (*tasks.Task, error) {
	name := idName(scope.Kind)
	id, ok := canonicalUUID(c.Param(name))
	if !ok {
		return nil, tasks.ErrUnknown
	}
	annotate(c, name, id)
	audit.From(c.Request().Context()).ID = id
	task, err := d.service.Get(c.Request().Context(), scope, tasks.ID(id))
	if err != nil {
		return nil, fmt.Errorf("find %s: %w", scope.Kind, err)
	}
	return task, nil
}

func (d *Dialect) registerImage(c echo.Context, who *auth.Identity) error {
	return d.register(c, who, d.parseImage)
}

func (d *Dialect) registerDataDisk(c echo.Context, who *auth.Identity) error {
	return d.register(c, who, d.parseDataDisk)
}

func (d *Dialect) register(c echo.Context, who *auth.Identity, parse func(body []byte, project string) (*request, error)) error {
	body, err := readBody(c.Request().Body)
	if err != nil {
		return err
	}
	r, err := parse(body, who.ProjectID)
	if err != nil {
		return err
	}
	if r.metadata != nil {
		if err := d.complete(c.Request().Context(), r); err != nil {
			return err
		}
	}
	spec := r.spec
	spec.ID = tasks.ID(d.opts.NewID())
	spec.ImageIDGiven = spec.ImageID != "" && !r.keepsID
	if spec.ImageID == "" {
		spec.ImageID = d.opts.NewID()
	}
	spec.Owner = ownerOf(who)
	spec.Dialect = Name
	spec.Region = d.region
	spec.TargetFormat = d.opts.TargetFormat
	spec.RequestID = c.Response().Header().Get(echo.HeaderXRequestID)
	spec.Trace = traceparent(c.Request().Context())
	if spec.Details, err = json.Marshal(r.shown); err != nil {
		return fmt.Errorf("encode details of import: %w", err)
	}
	begins(c, tasks.KindImport, spec.ID)

	imp, _, err := d.service.Register(c.Request().Context(), spec)
	if r.keepsID && errors.Is(err, tasks.ErrImageIDInUse) {
		spec.ImageID = d.opts.NewID()
		imp, _, err = d.service.Register(c.Request().Context(), spec)
	}
	if err != nil {
		return fmt.Errorf("register import: %w", err)
	}
	c.Response().Header().Set(echo.HeaderLocation, statusPath(imp.ID))
	return c.JSON(http.StatusCreated, registeredBody{imp.ID})
}

func (d *Dialect) status(c echo.Context, who *auth.Identity) error {
	imp, err := d.find(c, d.visible(who, tasks.KindImport))
	if err != nil {
		return err
	}
	body, err := newStatusBody(imp, d.position(c, imp))
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, body)
}

func (d *Dialect) list(c echo.Context, who *auth.Identity) error {
	imports, err := d.listed(c, d.visible(who, tasks.KindImport), importList)
	if err != nil {
		return err
	}
	body := listBody{Imports: []listEntry{}}
	for _, imp := range imports {
		body.Imports = append(body.Imports, listEntry{imp.ID, imp.State, statusPath(imp.ID), newListedBody(imp)})
	}
	return c.JSON(http.StatusOK, body)
}

// listed returns what a request for a list selects of scope.
func (d *Dialect) listed(c echo.Context, scope tasks.Scope, l listing) ([]*tasks.Task, error) {
	start, limit, err := l.window(c.Request().URL.RawQuery)
	if err != nil {
		return nil, err
	}
	list, err := d.service.List(c.Request().Context(), scope, start, limit)
	if err != nil {
		return nil, fmt.Errorf("list %ss: %w", scope.Kind, err)
	}
	return list, nil
}

func (d *Dialect) cancel(c echo.Context, who *auth.Identity) error {
	return d.cancelIn(c, d.owned(who, tasks.KindImport))
}

// cancelIn cancels the task that the path names, if it is in scope.
func (d *Dialect) cancelIn(c echo.Context, scope tasks.Scope) error {
	task, err := d.find(c, scope)
	if err != nil {
		return err
	}
	// Which of two simultaneous requests is accepted is decided in here.
	if _, err := d.service.Cancel(c.Request().Context(), scope, task.ID); err != nil {
		return fmt.Errorf("cancel %s: %w", scope.Kind, err)
	}
	return c.NoContent(http.StatusAccepted)
}

func (d *Dialect) retry(c echo.Context, who *auth.Identity) error {
	return d.retryIn(c, d.owned(who, tasks.KindImport))
}

// retryIn has the task that the path names tried again, if it is in scope and has failed.
func (d *Dialect) retryIn(c echo.Context, scope tasks.Scope) error {
	task, err := d.find(c, scope)
	if err != nil {
		return err
	}
	if err := d.service.Retry(c.Request().Context(), scope, task.ID); err != nil {
		return fmt.Errorf("retry %s: %w", scope.Kind, err)
	}
	return c.NoContent(http.StatusAccepted)
}

// position returns where a task waits; nil if it does not, or if that cannot be told just now.
func (d *Dialect) position(c echo.Context, t *tasks.Task) *tasks.Position {
	if t.State != tasks.Queued {
		return nil
	}
	pos, err := d.service.Position(c.Request().Context(), t)
	if err != nil {
		zerolog.Ctx(c.Request().Context()).Debug().Err(err).Msg("no place in the queue")
		return nil
	}
	return pos
}

// begins notes which task a request began.
func begins(c echo.Context, kind tasks.Kind, id tasks.ID) {
	annotate(c, idName(kind), string(id))
	audit.From(c.Request().Context()).ID = string(id)
}

// traceparent returns the trace of a request as tasks.Spec has it.
func traceparent(ctx context.Context) string {
	span := trace.SpanContextFromContext(ctx)
	if !span.IsValid() {
		return ""
	}
	return fmt.Sprintf("00-%s-%s-%s", span.TraceID(), span.SpanID(), span.TraceFlags())
}

// canonicalUUID reports whether s has the form 8-4-4-4-12 in hex digits of
// either case, and returns it in lower case.
func canonicalUUID(s string) (string, bool) {
	if len(s) != 36 { // Parse also knows other forms, all of other lengths
		return "", false
	}
	id, err := uuid.Parse(s)
	return id.String(), err == nil
}
