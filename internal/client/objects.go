package client

import (
	"context"
	"crypto/sha1" // the API's choice of hash
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"
	"unicode"
)

const (
	// uploadTries bounds how often a file is sent from its start.
	uploadTries = 4
	// uploadPause precedes the second try and doubles for each further one.
	uploadPause = time.Second
	// uploadIdle ends a try in which no byte went out, or no answer came after
	// the last one. A store may take its time to make a large file durable.
	uploadIdle = 5 * time.Minute
)

// Object names an object by the literal names of its container and itself. The
// name may have slashes.
type Object struct {
	Container string
	Name      string
}

// Profile is the kind of region, which decides the form of a location.
type Profile string

// The profiles of the API.
const (
	Gen3    Profile = "gen3"
	Classic Profile = "classic"
)

// ProfileOf returns the profile of a region of the original service. Regions
// with other names count as Gen3.
func ProfileOf(region string) Profile {
	switch region {
	case "jp-east-1", "jp-east-2", "jp-west-1", "jp-west-2", "uk-1", "fi-1", "de-1", "es-1":
		return Classic
	}
	return Gen3
}

// Location returns what names o in a Registration. Nothing in it is encoded.
func (p Profile) Location(project string, o Object) string {
	return p.ContainerLocation(project, o.Container) + "/" + o.Name
}

// ContainerLocation returns what names a container in an ExportRequest.
func (p Profile) ContainerLocation(project, container string) string {
	version := "v2"
	if p == Classic {
		version = "v1"
	}
	return "/" + version + "/AUTH_" + project + "/" + container
}

// Check reports names that a location could not carry. It is worth calling
// before an upload that only serves an import.
func (o Object) Check() error {
	if o.Container == "" || o.Name == "" {
		return errors.New("object: the container or the name is empty")
	}
	if strings.Contains(o.Container, "/") {
		return fmt.Errorf("object: the container %q has a slash", o.Container)
	}
	for segment := range strings.SplitSeq(o.Container+"/"+o.Name, "/") {
		if segment == "" || segment == "." || segment == ".." ||
			strings.ContainsFunc(segment, func(r rune) bool { return r == '?' || r == '#' || unicode.IsControl(r) }) {
			return fmt.Errorf("object: %q cannot be part of a location", segment)
		}
	}
	return nil
}

// path percent-encodes each segment of the names, once.
func (o Object) path() string {
	segments := strings.Split(o.Name, "/")
	for i, s := range segments {
		segments[i] = url.PathEscape(s)
	}
	return "/" + url.PathEscape(o.Container) + "/" + strings.Join(segments, "/")
}

// Transfer is how far an upload or the hashing of a file has come.
type Transfer struct {
	Done, Total int64 // bytes; Done starts again with each Try
	Try         int   // from 1
}

// Upload sends the size bytes of src as one object and returns their SHA-1 in
// hex, computed from the very bytes that were sent: src is read once, unless a
// failed connection or a passing failure of the store makes Upload start again.
// A missing container is created. Until Upload succeeds the store shows no new
// object.
//
// progress, if not nil, is called after each read, from one goroutine at a time.
func (c *Client) Upload(ctx context.Context, o Object, src io.ReaderAt, size int64, progress func(Transfer)) (string, error) {
	if c.objects == "" {
		return "", errors.New("upload: no objects URL is configured")
	}
	if err := o.Check(); err != nil {
		return "", err
	}
	for try := 1; ; try++ {
		from := Transfer{Total: size, Try: try}
		sum, err := c.send(ctx, o, newHashed(src, from, progress))
		if e, ok := errors.AsType[*Error](err); ok && e.Status == http.StatusNotFound {
			// Asked for only now, since whoever may write into a container
			// need not have the right to create one.
			if err = c.createContainer(ctx, o.Container); err == nil {
				sum, err = c.send(ctx, o, newHashed(src, from, progress))
			}
		}
		if err == nil {
			return sum, nil
		}
		if ctx.Err() != nil {
			return "", fmt.Errorf("upload: %w", context.Cause(ctx))
		}
		again, asked := passing(err)
		if _, ok := errors.AsType[*fileError](err); ok || !again || try == uploadTries {
			return "", err
		}
		if err := pause(ctx, max(uploadPause<<(try-1), asked)); err != nil {
			return "", fmt.Errorf("upload: %w", err)
		}
	}
}

// send makes one try and returns the hash of what it sent.
func (c *Client) send(ctx context.Context, o Object, body *hashed) (string, error) {
	const op = "upload"
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	idle := time.AfterFunc(uploadIdle, func() { cancel(errIdle) })
	defer idle.Stop()
	body.onRead = func() { idle.Reset(uploadIdle) }

	req, err := http.NewRequestWithContext(ctx, http.MethodPut, c.objects+o.path(), body)
	if err != nil {
		return "", fmt.Errorf("%s: %w", op, err)
	}
	if req.ContentLength = body.at.Total; req.ContentLength == 0 {
		req.Body = http.NoBody // to net/http, 0 with a body means unknown
	}
	req.Header.Set("Content-Type", "application/octet-stream")
	// Lets the store refuse before gigabytes have gone out.
	req.Header.Set("Expect", "100-continue")
	_, err = c.do(op, req)
	sum, all, fileErr := body.finish()
	switch {
	case fileErr != nil:
		return "", fmt.Errorf("%s: %w", op, &fileError{fileErr})
	case err != nil && context.Cause(ctx) == errIdle:
		return "", fmt.Errorf("%s: %w", op, errIdle)
	case err == nil && !all:
		return "", fmt.Errorf("%s: the store answered before it had the whole file", op)
	}
	return sum, err
}

// fileError is a failure of the file that is sent, which no further try mends.
type fileError struct{ err error }

func (e *fileError) Error() string { return "read file: " + e.err.Error() }
func (e *fileError) Unwrap() error { return e.err }

var errIdle = fmt.Errorf("nothing moved for %v", uploadIdle)

func (c *Client) createContainer(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, c.objects+"/"+url.PathEscape(name), http.NoBody)
	if err != nil {
		return fmt.Errorf("create container: %w", err)
	}
	_, err = c.do("create container", req)
	return err
}

// SHA1 returns the hash, in hex, of the size bytes of src, as Upload does.
func SHA1(ctx context.Context, src io.ReaderAt, size int64, progress func(Transfer)) (string, error) {
	h := newHashed(src, Transfer{Total: size, Try: 1}, progress)
	for buf := make([]byte, 1<<20); ; {
		if ctx.Err() != nil {
			return "", fmt.Errorf("hash file: %w", context.Cause(ctx))
		}
		if _, err := h.Read(buf); err == io.EOF {
			sum, _, _ := h.finish()
			return sum, nil
		} else if err != nil {
			return "", fmt.Errorf("hash file: %w", err)
		}
	}
}

// hashed is the body of one request: a file that is hashed while it is read.
//
// The transport may still be reading when it has returned an answer, so all is
// under a mutex, and finish takes the file away from it.
type hashed struct {
	onRead   func() // may be nil, as progress
	progress func(Transfer)

	mu   sync.Mutex
	src  *io.SectionReader
	sum  hash.Hash
	at   Transfer
	err  error // of the file, not of the connection
	over bool
}

func newHashed(src io.ReaderAt, at Transfer, progress func(Transfer)) *hashed {
	return &hashed{progress: progress, src: io.NewSectionReader(src, 0, at.Total), sum: sha1.New(), at: at}
}

func (h *hashed) Read(p []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.over {
		return 0, io.ErrClosedPipe
	}
	n, err := h.src.Read(p)
	h.sum.Write(p[:n])
	h.at.Done += int64(n)
	if err == io.EOF && h.at.Done < h.at.Total {
		err = io.ErrUnexpectedEOF // the file became shorter
	}
	if err != nil && err != io.EOF {
		h.err = err
	}
	if n > 0 && h.onRead != nil {
		h.onRead()
	}
	if n > 0 && h.progress != nil {
		h.progress(h.at)
	}
	return n, err
}

// Close ends the request's use of the body; the file stays open.
func (h *hashed) Close() error { return nil }

// finish ends reading. It returns the hash of what was read, whether that was
// all, and what the file failed with.
func (h *hashed) finish() (sum string, all bool, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.over = true
	return hex.EncodeToString(h.sum.Sum(nil)), h.at.Done == h.at.Total, h.err
}
