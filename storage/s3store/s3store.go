// Package s3store reads objects from stores that speak the S3 API.
//
// It asks with the service's own key, so it decides itself which buckets a
// project may name: those whose names begin with the project's prefix. An object
// is pinned by its ETag, which every range is asked for under (If-Match) and
// which every answer must repeat, together with exactly the range asked for.
//
// It never retries and follows no redirect: retries belong to storage.Fetch, and
// the only address it talks to is the configured one.
package s3store

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"vmimport/internal/outbound"
	"vmimport/internal/secret"
	"vmimport/storage"
)

// project is replaced in the bucket prefix by the location's project.
const project = "{project}"

// DefaultBucketPrefix is the prefix of Options that name none.
const DefaultBucketPrefix = project + "-"

// Options say where a store is and what of it is whose.
type Options struct {
	// Endpoint is the store's URL, with scheme and host and no path.
	Endpoint string

	// Region goes into the signatures; empty is "us-east-1", which most stores
	// of one region accept.
	Region string

	// AccessKey and Secret are the service's own; both are required.
	AccessKey string
	Secret    secret.Text

	// PathStyle puts the bucket into the path, as most stores on premises need
	// it. Otherwise it becomes part of the host name.
	PathStyle bool

	// BucketPrefix tells the buckets of a project: for the API "swift" the
	// bucket is the prefix and then the container; for "s3" the bucket is named
	// in full and must begin with the prefix. Empty is DefaultBucketPrefix.
	//
	// It must hold "{project}", followed at once by "-", "." or "_", which no
	// project may then hold in its id: else "a-b" could be the project "a" or
	// "a-b".
	BucketPrefix string

	// SharedBuckets lets every project name every bucket that begins with
	// BucketPrefix, which then need not hold "{project}" and may be empty. Who
	// may read what must have been decided before.
	SharedBuckets bool

	// CAFile holds certificates, in PEM, to trust besides the system's.
	CAFile string

	// AnswerTimeout bounds the wait for the first byte of an answer; zero is
	// 30 s. The body after it may take any time; only its reader can tell.
	AnswerTimeout time.Duration
}

// Store is one S3 endpoint. It is safe for concurrent use.
type Store struct {
	client *minio.Core
	prefix string
}

// New returns the store that o describes. It makes no request.
func New(o Options) (*Store, error) {
	endpoint, err := url.Parse(o.Endpoint)
	switch {
	case err != nil:
		return nil, fmt.Errorf("s3 endpoint: %w", err)
	case endpoint.Scheme != "http" && endpoint.Scheme != "https", endpoint.Host == "",
		strings.Trim(endpoint.Path, "/") != "", endpoint.RawQuery != "", endpoint.Fragment != "", endpoint.User != nil:
		return nil, fmt.Errorf("s3 endpoint %q: want http or https, a host, and nothing else", endpoint.Redacted())
	case o.AccessKey == "" || o.Secret.IsZero():
		return nil, errors.New("s3: access key and secret are both needed")
	}
	prefix, err := o.prefix()
	if err != nil {
		return nil, err
	}
	transport, err := outbound.Transport(outbound.Options{CAFile: o.CAFile, AnswerTimeout: o.AnswerTimeout})
	if err != nil {
		return nil, fmt.Errorf("s3: %w", err)
	}
	lookup := minio.BucketLookupDNS
	if o.PathStyle {
		lookup = minio.BucketLookupPath
	}
	region := o.Region
	if region == "" {
		region = "us-east-1" // left empty, the client would ask the store before the first request
	}
	client, err := minio.NewCore(endpoint.Host, &minio.Options{
		Creds:        credentials.NewStaticV4(o.AccessKey, o.Secret.Reveal(), ""),
		Secure:       endpoint.Scheme == "https",
		Transport:    transport,
		Region:       region,
		BucketLookup: lookup,
		MaxRetries:   1, // the one try
	})
	if err != nil {
		return nil, fmt.Errorf("s3 endpoint: %w", err)
	}
	return &Store{client: client, prefix: prefix}, nil
}

func (o *Options) prefix() (string, error) {
	prefix := o.BucketPrefix
	if prefix == "" && !o.SharedBuckets {
		prefix = DefaultBucketPrefix
	}
	_, after, found := strings.Cut(prefix, project)
	switch {
	case !found && !o.SharedBuckets:
		return "", fmt.Errorf("s3 bucket prefix %q: without %s, all projects could read each other's buckets", prefix, project)
	case found && (after == "" || !strings.Contains("-._", after[:1])):
		return "", fmt.Errorf("s3 bucket prefix %q: %s must be followed by one of - . _", prefix, project)
	case strings.Contains(after, project):
		return "", fmt.Errorf("s3 bucket prefix %q: only one %s can be replaced", prefix, project)
	}
	return prefix, nil
}

// Open implements storage.Store.
func (s *Store) Open(ctx context.Context, loc storage.Location) (storage.Object, error) {
	bucket, ok := s.bucket(loc)
	if !ok {
		return nil, storage.ErrNoObject
	}
	info, err := s.client.StatObject(ctx, bucket, loc.Name, minio.StatObjectOptions{})
	if err != nil {
		return nil, translate(ctx, "open object", s.explain(ctx, bucket, loc.Name, err), storage.ErrNoObject)
	}
	if info.ETag == "" || info.Size < 0 {
		return nil, storage.ErrUnavailable.Because(errors.New("open object: the answer has no ETag or no length"))
	}
	return &object{client: s.client, bucket: bucket, name: loc.Name, size: info.Size, etag: info.ETag, versionID: info.VersionID}, nil
}

// explain asks for a byte of an object whose HEAD was refused, and returns that
// refusal: an answer to HEAD has no body that could tell a customer's missing
// object or right from a key of the service's that has run out.
func (s *Store) explain(ctx context.Context, bucket, name string, refusal error) error {
	status := minio.ToErrorResponse(refusal).StatusCode
	switch status {
	case http.StatusForbidden, http.StatusBadRequest, http.StatusNotFound:
	default:
		return refusal
	}
	var opts minio.GetObjectOptions
	if err := opts.SetRange(0, 0); err != nil {
		return err
	}
	body, _, _, err := s.client.GetObject(ctx, bucket, name, opts)
	if err == nil {
		_ = body.Close()
	}
	if minio.ToErrorResponse(err).StatusCode == status {
		return err
	}
	return refusal
}

// bucket returns the bucket that loc means, if its project may name it.
func (s *Store) bucket(loc storage.Location) (string, bool) {
	if !loc.Valid() {
		return "", false
	}
	// Ceph reads "tenant:bucket" as a bucket of another tenant.
	if strings.Contains(loc.Container, ":") {
		return "", false
	}
	prefix := s.prefix
	if before, after, found := strings.Cut(prefix, project); found {
		if loc.Project == "" || strings.Contains(loc.Project, after[:1]) || strings.Contains(loc.Project, ":") {
			return "", false
		}
		prefix = before + loc.Project + after
	}
	if loc.API == "s3" {
		return loc.Container, strings.HasPrefix(loc.Container, prefix)
	}
	return prefix + loc.Container, true
}

// object is an object under one ETag.
type object struct {
	client       *minio.Core
	bucket, name string
	size         int64
	etag         string // without quotes
	versionID    string // empty unless the bucket is versioned
}

func (o *object) Size() int64 { return o.size }

// Version is a digest, since neither ETags nor version ids are bounded.
func (o *object) Version() string {
	return fmt.Sprintf("%x", sha256.Sum256(fmt.Appendf(nil, "%q %q %d", o.etag, o.versionID, o.size)))
}

func (o *object) ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	const op = "read object"
	if off < 0 || n <= 0 || off > o.size-n {
		return nil, fmt.Errorf("%s: range %d+%d is not within its %d bytes", op, off, n, o.size)
	}
	var opts minio.GetObjectOptions
	if err := errors.Join(opts.SetMatchETag(o.etag), opts.SetRange(off, off+n-1)); err != nil {
		return nil, storage.ErrUnavailable.Because(fmt.Errorf("%s: %w", op, err))
	}
	raw, info, header, err := o.client.GetObject(ctx, o.bucket, o.name, opts)
	if err != nil {
		return nil, translate(ctx, op, err, storage.ErrChanged)
	}
	if err := o.checkAnswer(info, header, off, n); err != nil {
		_ = raw.Close() // unread, it takes its connection along
		return nil, err
	}
	return &body{ctx: ctx, raw: raw, left: n}, nil
}

// checkAnswer compares an answer's header with what was asked for. A proxy or
// cache that ignores If-Match or Range shows here.
func (o *object) checkAnswer(info minio.ObjectInfo, header http.Header, off, n int64) error {
	if info.ETag != o.etag || info.VersionID != "" && info.VersionID != o.versionID {
		return storage.ErrChanged.Because(fmt.Errorf("read object: asked for ETag %q and version %q, got %q and %q", o.etag, o.versionID, info.ETag, info.VersionID))
	}
	got, want := header.Get("Content-Range"), fmt.Sprintf("bytes %d-%d/%d", off, off+n-1, o.size)
	if got != want || info.Size >= 0 && info.Size != n {
		return storage.ErrUnavailable.Because(fmt.Errorf("read object: asked for %q, got %q with %d bytes", want, got, info.Size))
	}
	return nil
}

// body gives exactly as many bytes as were asked for, or an error.
type body struct {
	ctx  context.Context // of the range, which the body belongs to
	raw  io.ReadCloser
	left int64
	err  error // ended every later Read
}

func (b *body) Read(p []byte) (int, error) {
	if b.err == nil && b.ctx.Err() != nil {
		b.err = fmt.Errorf("read object: %w", context.Cause(b.ctx)) // even if bytes are buffered
	}
	if b.err != nil || len(p) == 0 {
		return 0, b.err
	}
	n, err := b.raw.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	if b.left == 0 && err == nil {
		// The end is looked for before the last bytes are given out: a reader
		// that counts would not come back for it.
		err = b.expectEnd()
	}
	switch {
	case err == nil:
		return n, nil
	case err == io.EOF && b.left == 0:
		b.err = io.EOF
		return n, io.EOF
	case err == io.EOF:
		err = io.ErrUnexpectedEOF
	}
	b.err = translate(b.ctx, "read object", err, storage.ErrChanged)
	return 0, b.err
}

// expectEnd returns io.EOF if the answer ends here.
func (b *body) expectEnd() error {
	n, err := io.ReadFull(b.raw, make([]byte, 1))
	if n > 0 {
		return errors.New("the answer is longer than the range")
	}
	return err
}

func (b *body) Close() error {
	if err := b.raw.Close(); err != nil {
		return fmt.Errorf("close object: %w", err)
	}
	return nil
}
