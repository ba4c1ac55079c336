package aliyun_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
	"github.com/rs/zerolog"

	"vmimport/internal/auth/aliyunsig"
	"vmimport/internal/auth/aliyunsig/aliyunsigtest"
	"vmimport/internal/auth/nonces"
	"vmimport/internal/auth/ram"
	"vmimport/internal/fault"
	"vmimport/internal/httpapi"
	"vmimport/internal/httpapi/aliyun"
	"vmimport/internal/secret"
	"vmimport/storage"
	"vmimport/tasks"
	"vmimport/tasks/redisstore"
)

const (
	hangzhou = "cn-hangzhou"
	beijing  = "cn-beijing"
	closed   = "cn-closed" // known, but images are not imported there

	alpha = "1000000000000001" // the account of most tests
	beta  = "2000000000000002" // another one that may import
	gamma = "3000000000000003" // one that may not
)

var start = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// Access keys, by who holds them.
var (
	alphaKey    = aliyunsigtest.Key{ID: "LTAIalpha", Secret: "alpha-secret"}         // the account itself
	readerKey   = aliyunsigtest.Key{ID: "LTAIreader", Secret: "reader-secret"}       // may describe
	importerKey = aliyunsigtest.Key{ID: "LTAIimporter", Secret: "importer-secret"}   // may import into Hangzhou
	sessionKey  = aliyunsigtest.Key{ID: "STS.session", Secret: "s3", Token: "token"} // temporary; may do all
	disabledKey = aliyunsigtest.Key{ID: "LTAIdisabled", Secret: "disabled-secret"}
	betaKey     = aliyunsigtest.Key{ID: "LTAIbeta", Secret: "beta-secret"}
	gammaKey    = aliyunsigtest.Key{ID: "LTAIgamma", Secret: "gamma-secret"}
)

// params are those of one request.
type params map[string]string

// with returns p with further parameters, given as name, value, name, value.
func (p params) with(pairs ...string) params {
	q := maps.Clone(p)
	for pair := range slices.Chunk(pairs, 2) {
		q[pair[0]] = pair[1]
	}
	return q
}

// rig is the real dialect, server, service and store, with stand-ins for Redis, the
// object store and the clock.
type rig struct {
	http.Handler
	store    *redisstore.Store
	redis    *miniredis.Miniredis
	accounts directory
	objects  *objects
	clock    *clock
	log      *lockedBuffer
	noted    *notes
	nonce    atomic.Int64
}

// newRig starts one. change may alter the dialect's options before.
func newRig(t testing.TB, change ...func(*aliyun.Options)) *rig {
	t.Helper()
	r := &rig{redis: miniredis.RunT(t), accounts: newDirectory(t), objects: newObjects(), clock: &clock{}, log: &lockedBuffer{}, noted: &notes{}}
	r.clock.add(0)
	rdb := redis.NewClient(&redis.Options{Addr: r.redis.Addr(), MaxRetries: -1})
	t.Cleanup(func() { _ = rdb.Close() })
	r.store = redisstore.New(rdb, redisstore.Options{Retention: 30 * 24 * time.Hour, Now: r.clock.now})
	service := tasks.NewService(r.store, r.objects, tasks.Policy{}, r.clock.now)
	r.mount(t, service, nonces.New(rdb), change...)
	return r
}

// mount puts a dialect over service in place of the one before.
func (r *rig) mount(t testing.TB, service aliyun.Service, used aliyunsig.Nonces, change ...func(*aliyun.Options)) {
	t.Helper()
	keys := func(id string) (aliyunsig.Key, bool) {
		c, ok := r.accounts[id]
		if !ok {
			return aliyunsig.Key{}, false
		}
		return aliyunsig.Key{Secret: c.Secret, Disabled: c.Disabled, SecurityToken: c.SecurityToken, Expires: c.Expires}, true
	}
	var ids, requests atomic.Int64
	opts := aliyun.Options{
		Regions:      regions(),
		Accounts:     r.accounts,
		Verifier:     aliyunsig.New(keys, used, r.clock.now),
		NewID:        func() string { return fmt.Sprintf("bp%018d", ids.Add(1)) },
		NewRequestID: func() string { return fmt.Sprintf("C0FFEE00-0000-4000-8000-%012d", requests.Add(1)) },
	}
	for _, c := range change {
		c(&opts)
	}
	d, err := aliyun.New(service, opts)
	if err != nil {
		t.Fatal(err)
	}
	r.Handler = httpapi.New(httpapi.Options{Aliyun: d, Log: zerolog.New(r.log), Audit: r.noted})
}

func regions() []aliyun.Region {
	all := []aliyun.Region{
		{ID: hangzhou, Endpoint: "ecs.cn-hangzhou.example.test", LocalNames: map[string]string{"zh-CN": "华东1(杭州)", "en-US": "China (Hangzhou)", "ja": "中国 (杭州)"}},
		{ID: beijing},
		{ID: closed, NoImports: true},
	}
	for i := range all {
		r := &all[i]
		r.Formats, r.TargetFormat = []string{"RAW", "VHD", "QCOW2"}, "raw"
		r.SystemDisk, r.DataDisk = aliyun.Sizes{Min: 5, Max: 500}, aliyun.Sizes{Min: 5, Max: 1000}
	}
	return all
}

// directory holds the accounts' keys by id. Tests alter it before they send anything.
type directory map[string]*ram.Credential

func (d directory) Credential(keyID string) (*ram.Credential, bool) {
	c, ok := d[keyID]
	return c, ok
}

func newDirectory(t testing.TB) directory {
	t.Helper()
	d := directory{}
	add := func(key aliyunsigtest.Key, caller ram.Caller) *ram.Credential {
		c := &ram.Credential{KeyID: key.ID, Secret: secret.New(key.Secret), SecurityToken: secret.New(key.Token), Caller: caller}
		d[key.ID] = c
		return c
	}
	a, b, g := newAccount(t, alpha), newAccount(t, beta), newAccount(t, gamma)
	g.MayImport = false
	add(alphaKey, ram.Caller{Account: a})
	add(readerKey, ram.Caller{Account: a, User: "reader", Policies: []*ram.Policy{policy(t, `{"Version": "1", "Statement": [
		{"Effect": "Allow", "Action": "ecs:Describe*", "Resource": "*"}]}`)}})
	add(importerKey, ram.Caller{Account: a, User: "importer", Policies: []*ram.Policy{policy(t, `{"Version": "1", "Statement": [
		{"Effect": "Allow", "Action": "ecs:*Image", "Resource": "acs:ecs:cn-hangzhou:*:image/*"}]}`)}})
	add(sessionKey, ram.Caller{Account: a, Role: "ci", Policies: []*ram.Policy{policy(t, `{"Version": "1", "Statement": [
		{"Effect": "Allow", "Action": "*", "Resource": "*"}]}`)}}).Expires = start.Add(time.Hour)
	add(disabledKey, ram.Caller{Account: a}).Disabled = true
	add(betaKey, ram.Caller{Account: b})
	add(gammaKey, ram.Caller{Account: g})
	return d
}

// newAccount has a bucket in either region, and the role that importing needs.
func newAccount(t testing.TB, id string) *ram.Account {
	t.Helper()
	bucket := func(name, region string) ram.Bucket {
		return ram.Bucket{Name: name, Region: region, API: "s3", Project: "p-" + id, Container: name + "-" + id}
	}
	return &ram.Account{
		ID: id, Name: "account " + id, Project: "p-" + id, MayImport: true,
		ResourceGroups: []string{"rg-one", "rg-two"},
		Buckets:        []ram.Bucket{bucket("images", hangzhou), bucket("north", beijing)},
		Roles: []ram.Role{{
			Name: "AliyunECSImageImportDefaultRole",
			Trust: policy(t, `{"Version": "1", "Statement": [{"Effect": "Allow", "Action": "sts:AssumeRole",
				"Principal": {"Service": ["ecs.aliyuncs.com"]}}]}`),
			Policies: []*ram.Policy{policy(t, `{"Version": "1", "Statement": [{"Effect": "Allow",
				"Action": ["oss:GetObject", "oss:GetBucketLocation"], "Resource": "*"}]}`)},
		}},
	}
}

func policy(t testing.TB, document string) *ram.Policy {
	t.Helper()
	p, err := ram.ParsePolicy([]byte(document))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// object is what the preflight finds.
type object struct {
	bytes, virtualBytes int64
	format              string
	err                 error // instead of all that
}

// objects is a tasks.Preflight over objects that are not there, by name. A name that it
// does not know is an image of 20 GiB, unless it begins with "missing".
type objects struct {
	mu     sync.Mutex
	byName map[string]object
	looks  int // how often Check was called
}

func newObjects() *objects { return &objects{byName: map[string]object{}} }

func (o *objects) put(name string, obj object) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.byName[name] = obj
}

// Check implements tasks.Preflight.
func (o *objects) Check(_ context.Context, spec *tasks.Spec) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.looks++
	for i := range spec.Disks {
		d := &spec.Disks[i]
		found, known := o.byName[d.Object.Name]
		switch {
		case found.err != nil:
			return &tasks.DiskError{Number: i + 1, Err: found.err}
		case !known && strings.HasPrefix(d.Object.Name, "missing"):
			return &tasks.DiskError{Number: i + 1, Err: storage.ErrNoObject}
		case !known:
			found = object{bytes: 4 << 30, virtualBytes: 20 << 30, format: "raw"}
		}
		if d.MaxBytes > 0 && found.virtualBytes > d.MaxBytes {
			return &tasks.DiskError{Number: i + 1, Err: fault.New(fault.Invalid, "disk_too_large", "The disk is larger than allowed.").
				Saw("%d bytes, at most %d are allowed", found.virtualBytes, d.MaxBytes)}
		}
		if d.Format != "" && d.Format != found.format {
			return &tasks.DiskError{Number: i + 1, Err: fault.New(fault.Invalid, "format_mismatch", "The object has another format than declared.").
				Saw("detected format: %s", found.format)}
		}
		d.Bytes, d.VirtualBytes, d.Detected, d.Version = found.bytes, found.virtualBytes, found.format, "v1"
	}
	return nil
}

// ReadObject implements tasks.Preflight.
func (o *objects) ReadObject(context.Context, string, tasks.Object, int64) ([]byte, error) {
	return nil, storage.ErrNoObject
}

// clock is the time for everybody.
type clock struct{ after atomic.Int64 }

func (c *clock) now() time.Time { return start.Add(time.Duration(c.after.Load())) }

func (c *clock) add(d time.Duration) { c.after.Add(int64(d)) }

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// reply is an answer.
type reply struct {
	status int
	header http.Header
	body   string
	json   map[string]any // of an answer in JSON
}

func newReply(t testing.TB, status int, header http.Header, body string) reply {
	t.Helper()
	a := reply{status: status, header: header, body: body}
	if body != "" && strings.HasPrefix(header.Get("Content-Type"), "application/json") {
		if err := json.Unmarshal([]byte(body), &a.json); err != nil {
			t.Errorf("the answer is no JSON: %v\n%s", err, body)
		}
	}
	return a
}

// text returns a member of the answer, by its path, as text: "TaskSet.Task.0.TaskId".
func (a reply) text(path string) string {
	var v any = a.json
	for step := range strings.SplitSeq(path, ".") {
		switch at := v.(type) {
		case map[string]any:
			v = at[step]
		case []any:
			var i int
			if _, err := fmt.Sscan(step, &i); err != nil || i >= len(at) {
				return ""
			}
			v = at[i]
		default:
			return ""
		}
	}
	if v == nil {
		return ""
	}
	return fmt.Sprint(v)
}

// code returns the Code of an error, and "" of a success.
func (a reply) code() string { return a.text("Code") }

// unsigned returns a request as generated clients send it, but for the signature.
func unsigned(p params) *http.Request {
	query := url.Values{"Version": {aliyun.Version}, "Format": {"JSON"}}
	for name, value := range p {
		query.Set(name, value)
	}
	return httptest.NewRequest(http.MethodPost, "http://ecs.example.test/?"+query.Encode(), http.NoBody)
}

// call sends an action of the account alpha, and wants the answer in JSON unless
// p has a Format.
func (r *rig) call(t testing.TB, action string, p params) reply {
	t.Helper()
	return r.callAs(t, alphaKey, action, p)
}

func (r *rig) callAs(t testing.TB, key aliyunsigtest.Key, action string, p params) reply {
	t.Helper()
	req := unsigned(p.with("Action", action))
	aliyunsigtest.SignRPC(t, req, key, r.newNonce(), r.clock.now())
	return r.send(t, req)
}

// callACS3 is call by the other scheme, in which Format is left out.
func (r *rig) callACS3(t testing.TB, key aliyunsigtest.Key, action string, p params) reply {
	t.Helper()
	query := url.Values{}
	for name, value := range p {
		query.Set(name, value)
	}
	req := httptest.NewRequest(http.MethodPost, "http://ecs.example.test/?"+query.Encode(), http.NoBody)
	aliyunsigtest.SignACS3(t, req, key, action, r.newNonce(), r.clock.now())
	return r.send(t, req)
}

func (r *rig) newNonce() string { return fmt.Sprintf("nonce-%d", r.nonce.Add(1)) }

func (r *rig) send(t testing.TB, req *http.Request) reply {
	t.Helper()
	rec := httptest.NewRecorder()
	r.ServeHTTP(rec, req)
	a := newReply(t, rec.Code, rec.Header(), rec.Body.String())
	wantWellFormed(t, a)
	return a
}

// wantCode fails the test unless the answer is that error.
func wantCode(t testing.TB, a reply, status int, code string) {
	t.Helper()
	if a.status != status || a.code() != code {
		t.Errorf("answered %d %s, want %d %s\n%s", a.status, a.code(), status, code, a.body)
	}
}

// wantOK fails the test unless the answer is a success.
func wantOK(t testing.TB, a reply) {
	t.Helper()
	if a.status != http.StatusOK {
		t.Fatalf("answered %d\n%s", a.status, a.body)
	}
}

// oneDisk are the parameters of a plain ImportImage.
func oneDisk(pairs ...string) params {
	return params{"RegionId": hangzhou, "DiskDeviceMapping.1.OSSBucket": "images", "DiskDeviceMapping.1.OSSObject": "web.raw"}.with(pairs...)
}

// imported sends an ImportImage that is accepted, and returns the ids.
func (r *rig) imported(t testing.TB, p params) (task, image string) {
	t.Helper()
	a := r.call(t, "ImportImage", p)
	wantOK(t, a)
	return a.text("TaskId"), a.text("ImageId")
}

// worker has an import's claim, and does with its record what tasks/pipeline does.
type worker struct {
	store *redisstore.Store
	held  tasks.Held
	imp   *tasks.Task
}

const lease = time.Minute

// work claims an import of alpha, which is then Processing (or goes on being removed).
func (r *rig) work(t testing.TB, task string) *worker {
	t.Helper()
	c, err := r.store.Claim(t.Context(), tasks.Ref{Tenant: "aliyun:" + alpha, ID: tasks.ID(task)}, "w1", lease)
	if err != nil {
		t.Fatalf("claim %s: %v", task, err)
	}
	return &worker{r.store, c.Held, c.Task}
}

func (w *worker) beat(t testing.TB, p tasks.Progress) {
	t.Helper()
	if _, err := w.store.Beat(t.Context(), w.held, p, lease); err != nil {
		t.Fatalf("beat: %v", err)
	}
}

// publishing brings the import beyond the point where it can be canceled.
func (w *worker) publishing(t testing.TB) {
	t.Helper()
	result := &tasks.Result{}
	for _, d := range w.imp.Disks {
		result.Disks = append(result.Disks, tasks.DiskResult{Format: d.Detected, ObjectBytes: d.Bytes, VirtualSizes: []int64{d.VirtualBytes}})
	}
	if err := w.store.BeginPublish(t.Context(), w.held, result); err != nil {
		t.Fatalf("begin publish: %v", err)
	}
}

func (w *worker) succeed(t testing.TB) {
	t.Helper()
	w.publishing(t)
	w.end(t, w.store.Succeed(t.Context(), w.held, w.attempt("succeeded")))
}

func (w *worker) fail(t testing.TB, why tasks.Failure) {
	t.Helper()
	w.end(t, w.store.Fail(t.Context(), w.held, why, w.attempt("failed"), 0))
}

// release gives the import back, for another attempt.
func (w *worker) release(t testing.TB) {
	t.Helper()
	w.end(t, w.store.Release(t.Context(), w.held, 0, w.attempt(tasks.OutcomeRetry)))
}

// canceled ends an import after its cancel was accepted.
func (w *worker) canceled(t testing.TB) {
	t.Helper()
	w.end(t, w.store.Canceled(t.Context(), w.held, w.attempt("canceled")))
}

// removed ends the removal of a deleted image.
func (w *worker) removed(t testing.TB) {
	t.Helper()
	w.end(t, w.store.Removed(t.Context(), w.held, w.attempt(tasks.OutcomeRemoved)))
}

func (w *worker) attempt(outcome string) tasks.Attempt {
	return tasks.Attempt{Epoch: w.held.Epoch, Worker: "w1", StartedAt: start, EndedAt: start, Outcome: outcome}
}

func (w *worker) end(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("end the work on %s: %v", w.held.ID, err)
	}
}
