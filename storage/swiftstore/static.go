package swiftstore

import (
	"bytes"
	"context"
	"crypto/md5"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"strconv"
	"strings"
)

// openStatic finds the parts of a static large object, whose manifest is at at.
func (o *object) openStatic(ctx context.Context, at place, found state) error {
	o.pins = append(o.pins, pin{at: at, query: asStored, was: found, looks: 1})
	e := expansion{account: o.account, known: make(map[place]manifest)}
	m, err := e.manifest(ctx, at, found.etag, 1)
	o.parts = m.parts
	return err
}

// expansion reads the manifests of one object. Its bounds are on all together: one
// small manifest can name others many times over.
type expansion struct {
	account *account
	known   map[place]manifest
	bytes   int64
}

// manifest is the manifest of a static large object.
type manifest struct {
	parts []part // without those of no bytes
	size  int64  // of all together
	etag  string // of the joined object
}

// manifest reads a manifest and those that it names. If it was seen before, etag is
// what it had then.
func (e *expansion) manifest(ctx context.Context, at place, etag string, depth int) (manifest, error) {
	if m, ok := e.known[at]; ok {
		return m, nil
	}
	if len(e.known) == maxManifests || depth > maxDepth {
		return manifest{}, errUnsupported.Saw("too many manifests within each other")
	}
	entries, err := e.fetch(ctx, at, etag)
	if err != nil {
		return manifest{}, err
	}
	var m manifest
	sum := md5.New()
	for _, entry := range entries {
		entry.addTo(sum)
		parts, err := e.parts(ctx, entry, depth)
		if err != nil {
			return manifest{}, err
		}
		m.parts = append(m.parts, parts...)
		if len(m.parts) > maxParts {
			return manifest{}, errTooMany
		}
	}
	if m.size, err = total(m.parts); err != nil {
		return manifest{}, err
	}
	m.etag = hex.EncodeToString(sum.Sum(nil))
	e.known[at] = m
	return m, nil
}

// parts returns what one entry of a manifest stands for.
func (e *expansion) parts(ctx context.Context, entry entry, depth int) ([]part, error) {
	if !entry.manifest {
		return cut([]part{{at: entry.at, etag: entry.etag, size: entry.size, n: entry.size, data: entry.data}}, entry.off, entry.n), nil
	}
	sub, err := e.manifest(ctx, entry.at, "", depth+1)
	if err != nil {
		return nil, err
	}
	// By its hash the outer manifest names all parts of the inner one, so that it
	// need not be looked at again.
	if sub.etag != entry.etag || sub.size != entry.size {
		return nil, errPart
	}
	return cut(sub.parts, entry.off, entry.n), nil
}

// fetch reads one manifest.
func (e *expansion) fetch(ctx context.Context, at place, etag string) ([]entry, error) {
	const op = "read manifest"
	r := request{
		op: op, method: http.MethodGet, path: at.path(), query: at.query(asStored),
		header: map[string]string{"X-Newest": "true"},
	}
	answer, err := e.account.send(ctx, r)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return nil, refused(op, answer.StatusCode, errPart)
	}
	found, err := stateOf(op, answer, errPart)
	switch {
	case err != nil:
		return nil, err
	case etag != "" && (found.etag != etag || !found.static):
		return nil, errReplaced
	case !found.static:
		return nil, errPart
	case found.size > maxManifestBytes-e.bytes:
		return nil, errUnsupported.Saw("manifests of more than %d bytes", maxManifestBytes)
	}
	body, err := io.ReadAll(io.LimitReader(answer.Body, maxManifestBytes-e.bytes+1))
	if err != nil {
		return nil, unanswered(ctx, op, err)
	}
	if e.bytes += int64(len(body)); e.bytes > maxManifestBytes {
		return nil, errUnsupported.Saw("manifests of more than %d bytes", maxManifestBytes)
	}
	entries, err := parseManifest(body)
	if err != nil {
		return nil, errUnsupported.Saw("a manifest that cannot be read").Because(fmt.Errorf("%s: %w", op, err))
	}
	return entries, nil
}

// entry is one segment that a manifest names: n bytes at off of an object.
type entry struct {
	at       place
	etag     string // of the object; of the joined one, if it is a manifest
	size     int64  // of the object
	off, n   int64
	manifest bool
	data     []byte // bytes within the manifest instead of an object
}

// addTo adds the entry to the hash that is the ETag of the joined object.
func (e *entry) addTo(sum hash.Hash) {
	switch {
	case e.data != nil:
		fmt.Fprintf(sum, "%x", md5.Sum(e.data))
	case e.n < e.size:
		fmt.Fprintf(sum, "%s:%d-%d;", e.etag, e.off, e.off+e.n-1)
	default:
		_, _ = io.WriteString(sum, e.etag) // never fails
	}
}

// parseManifest reads the manifest of a static large object as Swift stores it. It
// trusts nothing in it: that it came by way of Swift is known, and no more.
func parseManifest(text []byte) ([]entry, error) {
	d := json.NewDecoder(bytes.NewReader(text))
	if start, err := d.Token(); err != nil || start != json.Delim('[') {
		return nil, errors.New("want a list")
	}
	var entries []entry
	for d.More() {
		if len(entries) == maxParts {
			return nil, fmt.Errorf("more than %d entries", maxParts)
		}
		var raw segment
		if err := d.Decode(&raw); err != nil {
			return nil, fmt.Errorf("entry %d: %w", len(entries), err)
		}
		e, err := raw.entry()
		if err != nil {
			return nil, fmt.Errorf("entry %d: %w", len(entries), err)
		}
		entries = append(entries, e)
	}
	if _, err := d.Token(); err != nil {
		return nil, err
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, errors.New("something after the list")
	}
	return entries, nil
}

// segment is an entry as it stands in a manifest.
type segment struct {
	Name   *string `json:"name"` // "/container/object"
	Hash   string  `json:"hash"`
	Bytes  *int64  `json:"bytes"`
	Range  *string `json:"range"` // first and last byte, "0-99"
	SubSLO bool    `json:"sub_slo"`
	Data   *string `json:"data"` // in base64
}

func (s *segment) entry() (entry, error) {
	if s.Data != nil {
		data, err := base64.StdEncoding.DecodeString(*s.Data)
		if err != nil || len(data) == 0 || s.Name != nil {
			return entry{}, errors.New("data that cannot be read")
		}
		return entry{data: data, size: int64(len(data)), n: int64(len(data))}, nil
	}
	if s.Name == nil || s.Bytes == nil || *s.Bytes < 0 || !validETag(s.Hash) {
		return entry{}, errors.New("want name, bytes and hash")
	}
	at, ok := parsePath(strings.TrimPrefix(*s.Name, "/"))
	if !ok {
		return entry{}, fmt.Errorf("name %.200q", *s.Name)
	}
	e := entry{at: at, etag: s.Hash, size: *s.Bytes, n: *s.Bytes, manifest: s.SubSLO}
	if s.Range != nil {
		if e.off, e.n, ok = parseRange(*s.Range, e.size); !ok {
			return entry{}, fmt.Errorf("range %.100q of %d bytes", *s.Range, e.size)
		}
	}
	return e, nil
}

// parseRange reads "first-last" and returns the offset and length that it means.
func parseRange(text string, size int64) (off, n int64, ok bool) {
	a, b, _ := strings.Cut(text, "-")
	first, err := strconv.ParseUint(a, 10, 63)
	last, err2 := strconv.ParseUint(b, 10, 63)
	if err != nil || err2 != nil || first > last || last >= uint64(size) {
		return 0, 0, false
	}
	return int64(first), int64(last - first + 1), true
}
