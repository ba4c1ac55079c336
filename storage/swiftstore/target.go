package swiftstore

import (
	"bytes"
	"context"
	"crypto/md5"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path"
	"regexp"
	"slices"
	"strings"

	"vmimport/storage"
)

var _ storage.Target = (*Store)(nil)

const (
	// segmentsSuffix makes the name of the container of parts, as other clients
	// of Swift do.
	segmentsSuffix = "_segments"

	// mark is the header that says which upload made an object.
	mark = "X-Object-Meta-Vmimport-Upload"

	opaque = "application/octet-stream"
)

// writer is an upload within its account.
type writer struct {
	*account
	up storage.Upload
}

// uploadID matches ids that mean the same in names and headers.
var uploadID = regexp.MustCompile(`^[0-9A-Za-z-]{1,64}$`)

// writer returns the writer of an upload. All names, and those of the parts, can be ones of Swift's.
func (s *Store) writer(ctx context.Context, up storage.Upload, names ...string) (*writer, error) {
	if !uploadID.MatchString(up.ID) || !plainID.MatchString(up.Project) {
		return nil, errors.New("swift: not the ids of an upload and a project")
	}
	w := &writer{up: up}
	if !up.At("x").Valid() || len(w.segments()) > maxContainerBytes {
		return nil, errName
	}
	for _, name := range names {
		if !up.At(name).Valid() || len(w.part(name, storage.Part{}).name)+hex.EncodedLen(md5.Size) > storage.MaxNameBytes {
			return nil, errName
		}
	}
	var err error
	w.account, err = s.account(ctx, up.Project)
	return w, err
}

// maxContainerBytes is the longest name of a container, by Swift's own settings.
const maxContainerBytes = 256

// object is the place of an object of the upload.
func (w *writer) object(name string) place { return place{container: w.up.Container, name: name} }

// segments is the container of parts.
func (w *writer) segments() string { return w.up.Container + segmentsSuffix }

// dir is what the names of all of the upload's parts of an object begin with.
func (w *writer) dir(name string) string { return name + "/" + w.up.ID + "/" }

// part is the place of a part. Other bytes have another: nothing that is stored for an
// object can damage it once it is joined.
func (w *writer) part(name string, p storage.Part) place {
	return place{container: w.segments(), name: fmt.Sprintf("%s%08d-%s", w.dir(name), p.Number, p.MD5)}
}

// partName matches what follows the upload's directory in the name of a part.
var partName = regexp.MustCompile(`^[0-9]{8}-[0-9a-f]{32}$`)

// isPart reports whether a name in the container of parts is that of one of the upload's parts.
func (w *writer) isPart(name, of string) bool {
	rest, ok := strings.CutPrefix(name, w.dir(of))
	return ok && partName.MatchString(rest)
}

// PutPart implements storage.Target. What is there already as it should be is not sent
// again. If body is an io.Seeker, it can be sent again with another token.
func (s *Store) PutPart(ctx context.Context, up storage.Upload, name string, p storage.Part, body io.Reader) error {
	sum, err := hex.DecodeString(p.MD5)
	if err != nil || len(sum) != md5.Size || p.Number < 0 || p.Number >= storage.MaxParts || p.Size <= 0 || p.Size > storage.MaxPartBytes {
		return fmt.Errorf("put part: number %d, %d bytes and MD5 %.64q make no part", p.Number, p.Size, p.MD5)
	}
	p.MD5 = hex.EncodeToString(sum) // in small letters, as Swift has it
	w, err := s.writer(ctx, up, name)
	if err != nil {
		return err
	}
	if err := w.afford(ctx, p.Size); err != nil {
		return err
	}
	sent := newContent(body, p.Size)
	o := newObject{
		op: "put part", at: w.part(name, p), contentType: opaque, content: sent, etag: p.MD5,
		stays: func(f *found) (bool, error) {
			if !f.plain() || f.etag != p.MD5 || f.size != p.Size {
				return false, nil
			}
			return true, sent.check(sum)
		},
	}
	return w.putPart(ctx, o)
}

// putPart puts a part, and makes the container of parts if there is none.
func (w *writer) putPart(ctx context.Context, o newObject) error {
	err := w.put(ctx, o)
	if !errors.Is(err, storage.ErrNoContainer) {
		return err
	}
	if err := w.makeSegments(ctx); err != nil {
		return err
	}
	err = w.put(ctx, o)
	if errors.Is(err, storage.ErrNoContainer) {
		// Proxies remember for some seconds that there was none; and another upload may have
		// removed it just now, when that had ended.
		return storage.ErrUnavailable.Because(errors.New("put part: the container of parts was made, and is not there"))
	}
	return err
}

// PutNew implements storage.Target.
func (s *Store) PutNew(ctx context.Context, up storage.Upload, name string, content []byte) error {
	w, err := s.writer(ctx, up, name)
	if err != nil {
		return err
	}
	if err := w.afford(ctx, int64(len(content))); err != nil {
		return err
	}
	etag := fmt.Sprintf("%x", md5.Sum(content))
	return w.put(ctx, newObject{
		op: "put object", at: w.object(name), contentType: typeOf(name),
		content: newContent(bytes.NewReader(content), int64(len(content))), etag: etag,
		stays: func(f *found) (bool, error) { return f.plain() && f.etag == etag, nil }, shared: true,
	})
}

// typeOf returns the content type of a small object.
func typeOf(name string) string {
	switch path.Ext(name) {
	case ".json":
		return "application/json"
	case ".ovf":
		return "application/xml"
	case ".mf":
		return "text/plain"
	}
	return opaque
}

// Join implements storage.Target. Swift looks at all parts before it stores the manifest,
// which can take a minute for many. Meanwhile it gives signs of life.
func (s *Store) Join(ctx context.Context, up storage.Upload, name string, parts []storage.Part) error {
	w, err := s.writer(ctx, up, name)
	if err != nil {
		return err
	}
	if len(parts) == 0 || len(parts) > storage.MaxParts {
		return fmt.Errorf("join parts: %d parts make no object", len(parts))
	}
	text, etag, err := w.manifest(name, parts)
	if err != nil {
		return fmt.Errorf("join parts: %w", err)
	}
	err = w.put(ctx, newObject{
		op: "join parts", at: w.object(name), query: "multipart-manifest=put&heartbeat=on", contentType: opaque,
		content: newContent(bytes.NewReader(text), int64(len(text))), etag: etag,
		stays: func(f *found) (bool, error) { return w.joins(ctx, f, etag) }, shared: true,
	})
	if err != nil {
		return err
	}
	return w.prune(ctx, name)
}

// joins reports whether what was found is a large object with that ETag. The manifest itself
// has another, which nobody can foretell: there are times in it.
func (w *writer) joins(ctx context.Context, f *found, etag string) (bool, error) {
	if !f.static {
		return false, nil
	}
	joined, err := w.head(ctx, "look at large object", f.at, asJoined, storage.ErrUnavailable)
	return joined.static && joined.etag == etag, err
}

// manifest makes the manifest of a static large object, and the ETag of that.
func (w *writer) manifest(name string, parts []storage.Part) (text []byte, etag string, err error) {
	type segment struct {
		Path string `json:"path"` // as it is, not percent-encoded
		ETag string `json:"etag"`
		Size int64  `json:"size_bytes"`
	}
	segments := make([]segment, len(parts))
	sum := md5.New()
	for i, p := range parts {
		p.MD5 = strings.ToLower(p.MD5)
		at := w.part(name, p)
		segments[i] = segment{Path: "/" + at.container + "/" + at.name, ETag: p.MD5, Size: p.Size}
		_, _ = io.WriteString(sum, segments[i].ETag) // never fails
	}
	text, err = json.Marshal(segments)
	return text, hex.EncodeToString(sum.Sum(nil)), err
}

// Vacant implements storage.Target. In the way are objects of the names, whatever they
// stand for, and all whose names continue one of them after a slash, in the container itself and in
// that of parts: there customers keep what they have split.
func (s *Store) Vacant(ctx context.Context, up storage.Upload, names ...string) error {
	w, err := s.writer(ctx, up, names...)
	if err != nil {
		return err
	}
	if _, err := w.lookAtContainer(ctx, up.Container); err != nil {
		return err
	}
	for _, name := range names {
		f, err := w.look(ctx, w.object(name))
		if err != nil {
			return err
		}
		if f != nil && !f.own {
			return w.inTheWay(f.at)
		}
	}
	for _, name := range names {
		if err := w.vacantBelow(ctx, name, names); err != nil {
			return err
		}
	}
	return nil
}

// vacantBelow fails if there are parts of an object that are not the upload's. The names
// are those of its objects.
func (w *writer) vacantBelow(ctx context.Context, name string, names []string) error {
	for _, container := range []string{w.up.Container, w.segments()} {
		for below, err := range w.names(ctx, container, name+"/") {
			if err != nil {
				return err
			}
			own := w.isPart(below, name)
			if container == w.up.Container {
				own = slices.Contains(names, below) // and looked at
			}
			if !own {
				return w.inTheWay(place{container: container, name: below})
			}
		}
	}
	return nil
}

// inTheWay returns the error for what lies where the upload's own is to be.
func (w *writer) inTheWay(at place) error {
	if at.container == w.up.Container {
		return storage.ErrObjectExists.Saw("%s", at.name)
	}
	return errPartsExist.Saw("%s in container %s", at.name, at.container)
}

// makeSegments makes the container of parts, if the container of the object is there.
// It says which upload made it.
func (w *writer) makeSegments(ctx context.Context) error {
	const op = "make container of parts"
	like, err := w.lookAtContainer(ctx, w.up.Container)
	if err != nil {
		return err
	}
	header := map[string]string{containerMark: w.up.ID}
	if policy := like.Get("X-Storage-Policy"); policy != "" {
		header["X-Storage-Policy"] = policy
	}
	answer, err := w.send(ctx, request{op: op, method: http.MethodPut, path: escape(w.segments(), false), header: header})
	if err != nil {
		return err
	}
	discard(answer)
	// Somebody may have made it just now, with another policy.
	if answer.StatusCode/100 == 2 || answer.StatusCode == http.StatusConflict {
		return nil
	}
	return denied(op, answer.StatusCode)
}

// containerMark is the header that says which upload made a container.
const containerMark = "X-Container-Meta-Vmimport-Upload"

// lookAtContainer returns what Swift says of a container.
func (w *writer) lookAtContainer(ctx context.Context, container string) (http.Header, error) {
	return w.lookAt(ctx, "look at container", escape(container, false))
}

// lookAt looks at a container, or at the account if path is empty.
func (w *writer) lookAt(ctx context.Context, op, path string) (http.Header, error) {
	answer, err := w.send(ctx, request{
		op: op, method: http.MethodHead, path: path,
		// As in Check: what ends the answer would be taken for the next one.
		header: map[string]string{"Connection": "close"},
	})
	if err != nil {
		return nil, err
	}
	discard(answer)
	if answer.StatusCode/100 != 2 {
		return nil, denied(op, answer.StatusCode)
	}
	return answer.Header, nil
}
