// Package aliyun speaks the RPC API of Alibaba Cloud ECS (version 2014-05-26) as far as
// it is about importing images: ImportImage, the actions about its tasks and its
// images, and DescribeRegions.
//
// It decides what a request means and in which words it is answered; every rule that the
// dialects share is the Service's. An account sees and changes what it imported through
// this dialect, in the region that a request names. See docs/design/0011-aliyun.md.
package aliyun

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/google/uuid"
	"github.com/labstack/echo/v4"
	"github.com/rs/zerolog"
	"golang.org/x/time/rate"

	"vmimport/internal/audit"
	"vmimport/internal/auth/aliyunsig"
	"vmimport/internal/auth/ram"
	"vmimport/tasks"
)

// Service is what the dialect needs of tasks.Service.
type Service interface {
	Admit(ctx context.Context, spec *tasks.Spec, quota tasks.Quota) (*tasks.Task, error)
	Inspect(ctx context.Context, spec *tasks.Spec) error
	Accept(ctx context.Context, spec *tasks.Spec, quota tasks.Quota) (imp *tasks.Task, fresh bool, err error)
	Get(ctx context.Context, scope tasks.Scope, id tasks.ID) (*tasks.Task, error)
	Find(ctx context.Context, scope tasks.Scope, q tasks.Query) (found []*tasks.Task, total int, err error)
	Cancel(ctx context.Context, scope tasks.Scope, id tasks.ID) (tasks.State, error)
	DeleteImage(ctx context.Context, scope tasks.Scope, id tasks.ID) error
}

// Name is what a record made through this dialect has as its Dialect.
const Name = "aliyun"

// Version is that of the API.
const Version = "2014-05-26"

// Region is one that requests may name.
type Region struct {
	ID string
	// Endpoint is what DescribeRegions says: a host, with its port if that is not
	// the scheme's; empty: the host that the request was sent to.
	Endpoint string
	// LocalNames are names for people, by language: zh-CN, en-US, ja. Where there is
	// none it is the ID.
	LocalNames map[string]string
	// NoImports is set where the region is known, but images cannot be imported.
	NoImports bool
	// Formats are those that ImportImage accepts, as in the parameter: RAW, VHD, QCOW2.
	Formats []string
	// SystemDisk and DataDisk bound DiskImageSize.
	SystemDisk, DataDisk Sizes
	TargetFormat         string // that images are stored in
	// ImageID returns an id that the region's image service takes, for the image that
	// customers know under another; nil: it takes that.
	ImageID func(public string) string
}

// Sizes is a range in GiB, both ends included.
type Sizes struct{ Min, Max int64 }

// Options of a Dialect.
type Options struct {
	Regions  []Region
	Accounts ram.Directory
	Verifier *aliyunsig.Verifier
	// RequestsPerSecond is what an account may ask of this process, with Burst at
	// once. 0: no bound.
	RequestsPerSecond float64
	Burst             int

	// NewID makes what ids of tasks and images end in: 20 lower-case letters or
	// digits; nil: random ones.
	NewID func() string
	// NewRequestID makes upper-case UUIDs; nil: random ones.
	NewRequestID func() string
}

// Dialect is the API of all regions.
type Dialect struct {
	service Service
	opts    Options
	regions map[string]*Region

	mu    sync.Mutex
	rates map[string]*rate.Limiter // by account
}

// New returns the dialect.
func New(service Service, opts Options) (*Dialect, error) {
	if opts.NewID == nil {
		opts.NewID = newID
	}
	if opts.NewRequestID == nil {
		opts.NewRequestID = func() string { return strings.ToUpper(uuid.NewString()) }
	}
	d := &Dialect{service: service, opts: opts, regions: map[string]*Region{}, rates: map[string]*rate.Limiter{}}
	for i := range opts.Regions {
		r := &opts.Regions[i]
		switch {
		case r.ID == "" || d.regions[r.ID] != nil:
			return nil, fmt.Errorf("aliyun: region id %q is empty or used twice", r.ID)
		case len(r.Formats) == 0 || r.SystemDisk.Max < r.SystemDisk.Min || r.DataDisk.Max < r.DataDisk.Min:
			return nil, fmt.Errorf("aliyun: region %s accepts no image", r.ID)
		}
		d.regions[r.ID] = r
	}
	return d, nil
}

// Mount adds the route to e.
func (d *Dialect) Mount(e *echo.Echo) { e.Any("/", d.serve) }

// call is one request.
type call struct {
	context.Context
	d         *Dialect
	http      *http.Request
	requestID string
	form      form
	action    string
	params    params
	caller    *ram.Caller
	rate      *rate.Limiter // of the caller's account; nil: no bound
	region    *Region       // set for all actions but DescribeRegions
}

// scope is what the caller sees and may change.
func (cl *call) scope() tasks.Scope {
	return tasks.Scope{Region: cl.region.ID, Tenant: tenantOf(cl.caller.Account), Dialect: Name}
}

// tenantOf is the account in records: called so as no domain of the other dialect is.
func tenantOf(a *ram.Account) tasks.Tenant { return tasks.Tenant(Name + ":" + a.ID) }

// base begins an answer to the call.
func (cl *call) base() base { return base{cl.requestID} }

// permitted reports whether policies let the caller do this with all that it is about.
func (cl *call) permitted() bool {
	region := "*"
	if r := cl.d.regions[cl.params["RegionId"]]; r != nil {
		region = r.ID // and nothing that a caller made up to look like more
	}
	prefix := "acs:ecs:" + region + ":" + cl.caller.Account.ID + ":"
	return !slices.ContainsFunc(cl.resources(), func(r string) bool { return !cl.caller.May("ecs:"+cl.action, prefix+r) })
}

// resources names what the call is about, in the words of policies. As with the vendor,
// only actions on images can be permitted for some of them.
func (cl *call) resources() []string {
	switch cl.action {
	case "ImportImage":
		return []string{"image/*"}
	case "DeleteImage":
		return []string{"image/" + cl.params["ImageId"]}
	case "DescribeImages":
		ids, _ := cl.params.list("ImageId")
		if len(ids) == 0 {
			return []string{"image/*"}
		}
		// One by one: a pattern that fits the first must not let the others through.
		for i := range ids {
			ids[i] = "image/" + ids[i]
		}
		return ids
	}
	return []string{"*"}
}

// An action answers a call. What it returns is encoded as it is, in either form.
type action struct {
	do func(*call) (answer any, err error)
	// refusal is what a caller is told who may not do it.
	refusal *problem
	// unknownRegion is what a caller is told who names a region that is none; nil: the
	// action is about no region.
	unknownRegion *problem
	// noted is what the audit log calls it. What changes nothing is noted only if it is refused.
	noted   string
	changes bool
}

var actions = map[string]action{
	"ImportImage":           {(*call).importImage, errMayNotImport, errImportRegion, "import.register", true},
	"CancelTask":            {(*call).cancelTask, errMayNot, errTaskRegion, "import.cancel", true},
	"DescribeTasks":         {(*call).describeTasks, errMayNot, errTaskRegion, "import.list", false},
	"DescribeTaskAttribute": {(*call).describeTaskAttribute, errMayNot, errTaskRegion, "import.show", false},
	"DescribeImages":        {(*call).describeImages, errMayNot, errRegion, "image.list", false},
	"DeleteImage":           {(*call).deleteImage, errMayNot, errRegion, "image.delete", true},
	"DescribeRegions":       {(*call).describeRegions, errMayNot, nil, "region.list", false},
}

// callKey is under which the server's context holds the call, for WriteError.
const callKey = "vmimport.aliyun.call"

func (d *Dialect) serve(c echo.Context) error {
	r := c.Request()
	if isBrowser(r) {
		return echo.ErrNotFound
	}
	cl := &call{Context: r.Context(), d: d, http: r, requestID: d.opts.NewRequestID(), form: formOf(r, nil)}
	c.Set(callKey, cl)
	annotate(c, "aliyun_request_id", cl.requestID)
	answer, err := cl.answer(c)
	if err != nil {
		return err
	}
	return cl.write(c, http.StatusOK, cl.action+"Response", answer)
}

// isBrowser reports whether a request is somebody's who looks what is here.
func isBrowser(r *http.Request) bool {
	if r.Method != http.MethodGet && r.Method != http.MethodHead || r.URL.RawQuery != "" || r.ContentLength != 0 {
		return false
	}
	for name := range r.Header {
		if strings.HasPrefix(name, "X-Acs-") {
			return false
		}
	}
	return !strings.HasPrefix(r.Header.Get(echo.HeaderAuthorization), "ACS3-")
}

// answer makes the checks that come before those of the action, in the order that
// clients may rely on, and then does the action.
func (cl *call) answer(c echo.Context) (any, error) {
	body, err := readBody(cl.http.Body)
	if err != nil {
		return nil, err
	}
	signed, err := aliyunsig.Parse(cl.http, body)
	cl.form, cl.params = formOf(cl.http, signed), signed.Params
	if err != nil {
		return nil, err
	}
	if err := cl.form.check(); err != nil {
		return nil, err
	}
	note := audit.From(cl)
	note.AccessKey = signed.KeyID
	if err := cl.d.opts.Verifier.Verify(cl, signed, func() error { return cl.identify(c, signed.KeyID) }); err != nil {
		if p := problemOf(err); p != errThrottled && p.status < http.StatusInternalServerError {
			note.Action = audit.SignInRefused
		}
		return nil, err
	}
	note.Tenant, note.Project, note.User = string(tenantOf(cl.caller.Account)), cl.caller.Account.Project, cl.caller.ARN()
	// Counted now: somebody else's repetition of a request must not use up the bound.
	if cl.rate != nil && !cl.rate.Allow() {
		return nil, errThrottled
	}
	act, ok := actions[signed.Action]
	switch {
	case !ok:
		note.Action = "unknown"
		return nil, errAction
	case signed.Version != Version:
		return nil, errVersion
	}
	cl.action = signed.Action
	annotate(c, "action", cl.action)
	note.Region, note.ID = cl.params["RegionId"], cmp.Or(cl.params["TaskId"], cl.params["ImageId"])
	if act.changes {
		note.Action = act.noted
	}
	if !cl.permitted() {
		note.Action = act.noted
		return nil, act.refusal
	}
	if act.unknownRegion != nil {
		if err := cl.findRegion(act.unknownRegion); err != nil {
			return nil, err
		}
	}
	return act.do(cl)
}

// identify finds the caller, who has proved to have the key. Who has asked too much is told
// so before the nonce is remembered, for the store's memory would have no bound otherwise.
func (cl *call) identify(c echo.Context, keyID string) error {
	credential, ok := cl.d.opts.Accounts.Credential(keyID)
	if !ok { // taken out since
		return errKeyUnknown
	}
	cl.caller = &credential.Caller
	annotate(c, "account", cl.caller.Account.ID)
	cl.rate = cl.d.rateOf(cl.caller.Account.ID)
	if cl.rate != nil && cl.rate.Tokens() < 1 {
		return errThrottled
	}
	return nil
}

func (cl *call) findRegion(unknown *problem) error {
	id := cl.params["RegionId"]
	if id == "" {
		return missing("RegionId")
	}
	region := cl.d.regions[id]
	if region == nil || !cl.caller.Account.Enabled(id) {
		return unknown
	}
	cl.region = region
	return nil
}

// rateOf returns what bounds an account; nil: nothing does.
func (d *Dialect) rateOf(account string) *rate.Limiter {
	if d.opts.RequestsPerSecond <= 0 {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	l := d.rates[account]
	if l == nil {
		l = rate.NewLimiter(rate.Limit(d.opts.RequestsPerSecond), max(d.opts.Burst, 1))
		d.rates[account] = l
	}
	return l
}

// readBody reads a body that the server has bounded in size and time.
func readBody(r io.Reader) ([]byte, error) {
	body, err := io.ReadAll(r)
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return nil, errParameter.because("The body of the request is too long.")
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return nil, errParameter.because("The body of the request did not arrive in time.")
	}
	if err != nil {
		return nil, errParameter.because("The body of the request is cut short.")
	}
	return body, nil
}

// annotate adds a fact to the line that the server logs about the request.
func annotate(c echo.Context, key, value string) {
	zerolog.Ctx(c.Request().Context()).UpdateContext(func(l zerolog.Context) zerolog.Context {
		return l.Str(key, value)
	})
}
