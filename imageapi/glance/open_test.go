package glance

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/uuid"

	"vmimport/imageapi"
	"vmimport/internal/fault"
	"vmimport/internal/openstack"
	"vmimport/internal/secret"
	"vmimport/storage"
)

var _ storage.Object = (*file)(nil)

// stock gives Glance an active image of a customer's, and returns its id.
func (r *rig) stock(b []byte, more map[string]any) string {
	id := uuid.NewString()
	values := map[string]any{"owner": "customer", "name": "snap", "size": len(b), "disk_format": "qcow2", "container_format": "bare"}
	maps.Copy(values, more)
	r.glance.put(id, values)
	r.glance.mu.Lock()
	defer r.glance.mu.Unlock()
	r.glance.rows[id].data = b
	return id
}

func (r *rig) open(id string) imageapi.File {
	r.Helper()
	f, err := r.images.Open(r.Context(), id)
	if err != nil {
		r.Fatalf("Open: %v", err)
	}
	return f
}

func readAll(ctx context.Context, f imageapi.File, off, n int64) ([]byte, error) {
	body, err := f.ReadRange(ctx, off, n)
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(body)
	return b, errors.Join(err, body.Close())
}

// What can be opened.
func TestOpen(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		values map[string]any
		want   error
	}{
		"a customer's":         {nil, nil},
		"a public one":         {map[string]any{"owner": "other", "visibility": "public"}, nil},
		"of the service":       {map[string]any{"owner": own}, nil},
		"was imported":         {map[string]any{propImport: "x"}, nil},
		"pretends to be made":  {map[string]any{propImport: "x", propAttempt: "1"}, nil},
		"no owner":             {map[string]any{"owner": nil}, nil},
		"being made":           {map[string]any{"owner": own, propImport: "x", propAttempt: "1"}, imageapi.ErrNoImage},
		"being sent":           {map[string]any{"owner": own, propImport: "x", propAttempt: "1", "status": saving}, imageapi.ErrNoImage},
		"parked":               {map[string]any{"owner": own, propParked: yes, "status": queued, "size": nil}, imageapi.ErrNoImage},
		"deleted":              {map[string]any{"status": "deleted"}, imageapi.ErrNoImage},
		"deleted soon":         {map[string]any{"status": "pending_delete"}, imageapi.ErrNoImage},
		"without data":         {map[string]any{"status": queued, "size": nil}, imageapi.ErrNotReady},
		"saving":               {map[string]any{"status": saving, "size": nil}, imageapi.ErrNotReady},
		"being imported":       {map[string]any{"status": "importing"}, imageapi.ErrNotReady},
		"killed":               {map[string]any{"status": "killed"}, imageapi.ErrNotReady},
		"deactivated":          {map[string]any{"status": "deactivated"}, imageapi.ErrNotReady},
		"of a server's volume": {map[string]any{"size": 0, "block_device_mapping": `[{"snapshot_id": "s"}]`}, errNoData},
		"without a size":       {map[string]any{"size": nil}, errNoData},
		"too many properties":  {map[string]any{"p": strings.Repeat("p", imageapi.MaxRecordBytes)}, fault.New(fault.Invalid, "image_record_too_large", "")},
		"an odd member":        {map[string]any{"os_type": 7}, errUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, Options{})
			id := r.stock(noise(10, 1), tt.values)
			f, err := r.images.Open(t.Context(), id)
			wantError(t, "Open", err, tt.want)
			if err != nil {
				return
			}
			if got, err := readAll(t.Context(), f, 0, 10); err != nil || !bytes.Equal(got, noise(10, 1)) {
				t.Errorf("%q, %v", got, err)
			}
		})
	}
}

func TestOpenVersion(t *testing.T) {
	t.Parallel()
	r := newRig(t, Options{})
	seen := map[string]string{}
	for name, more := range map[string]map[string]any{
		"as it is": nil, "another like it": nil, "with a hash": {"os_hash_algo": "sha512", "os_hash_value": "ab"}, "of another algorithm": {"os_hash_algo": "sha256", "os_hash_value": "ab"},
		"with an MD5": {"checksum": "ab"}, "of another size": {"size": 11},
	} {
		size, _ := more["size"].(int)
		id := r.stock(noise(max(10, size), 1), more)
		v := r.open(id).Version()
		if other, ok := seen[v]; ok || v == "" || len(v) > 256 {
			t.Errorf("%s: version %q, as %q", name, v, other)
		}
		seen[v] = name
		r.glance.set(id, "name", "renamed")
		if now := r.open(id).Version(); now != v {
			t.Errorf("%s: version %q became %q with the name", name, v, now)
		}
	}
}

// Whatever else Glance, or what is before it, may answer than the range.
func TestOpenOddAnswers(t *testing.T) {
	t.Parallel()
	content := noise(1000, 1)
	answer := func(status int, span string, b []byte) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			if span != "" {
				w.Header().Set("Content-Range", span)
			}
			w.WriteHeader(status)
			_, _ = w.Write(b)
		}
	}
	const right = "bytes 10-19/1000"
	for name, tt := range map[string]struct {
		answer http.HandlerFunc
		want   error
	}{
		"right":                    {answer(206, right, content[10:20]), nil},
		"all of it":                {answer(200, "", content), errNoRanges},
		"as long, but not it":      {answer(200, "", content[:10]), errNoRanges},
		"a store without ranges":   {func(w http.ResponseWriter, _ *http.Request) { say(w, 400, "Getting images randomly") }, errNoRanges},
		"another range":            {answer(206, "bytes 11-20/1000", content[11:21]), errUnavailable},
		"of another image":         {answer(206, "bytes 10-19/1001", content[10:20]), errUnavailable},
		"of an unknown length":     {answer(206, "bytes 10-19/*", content[10:20]), errUnavailable},
		"no range":                 {answer(206, "", content[10:20]), errUnavailable},
		"too much":                 {answer(206, right, content[10:21]), errUnavailable},
		"too little":               {answer(206, right, content[10:19]), errUnavailable},
		"no data":                  {answer(204, "", nil), errUnavailable},
		"a redirect":               {func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Location", "/"); w.WriteHeader(302) }, errUnavailable},
		"not allowed":              {func(w http.ResponseWriter, _ *http.Request) { say(w, 403, "deactivated") }, errForbidden},
		"not found, though it is":  {func(w http.ResponseWriter, _ *http.Request) { say(w, 404, "nginx") }, errUnavailable},
		"a shorter image":          {func(w http.ResponseWriter, _ *http.Request) { say(w, 416, "Invalid start") }, errUnavailable},
		"the store is away":        {func(w http.ResponseWriter, _ *http.Request) { say(w, 503, "") }, errUnavailable},
		"the token is always bad":  {func(w http.ResponseWriter, _ *http.Request) { say(w, 401, "") }, errUnavailable},
		"no answer":                {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, errUnavailable},
		"cut short":                {cutShort(right, content[10:15], 10), io.ErrUnexpectedEOF},
		"nothing of it":            {cutShort(right, nil, 10), io.ErrUnexpectedEOF},
		"in chunks of any length":  {chunked(right, content[10:20]), errUnavailable},
		"an answer without an end": {func(w http.ResponseWriter, _ *http.Request) { say(w, 500, strings.Repeat("x", 100_000)) }, errUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, Options{})
			f := r.open(r.stock(content, nil))
			r.glance.mu.Lock()
			r.glance.before = func(w http.ResponseWriter, req *http.Request) bool {
				if strings.HasSuffix(req.URL.Path, "/file") {
					tt.answer(w, req)
					return true
				}
				return false
			}
			r.glance.mu.Unlock()
			got, err := readAll(t.Context(), f, 10, 10)
			wantError(t, "ReadRange", err, tt.want)
			if err == nil && !bytes.Equal(got, content[10:20]) {
				t.Errorf("got %q", got)
			}
		})
	}
}

// cutShort announces more than it sends.
func cutShort(span string, b []byte, announced int) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Range", span)
		w.Header().Set("Content-Length", fmt.Sprint(announced))
		w.WriteHeader(http.StatusPartialContent)
		_, _ = w.Write(b)
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}
}

func chunked(span string, b []byte) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Range", span)
		w.WriteHeader(http.StatusPartialContent)
		_ = http.NewResponseController(w).Flush()
		_, _ = w.Write(b)
	}
}

// A store that can only read from the front gives each range, and is told from others.
func TestOpenStreams(t *testing.T) {
	t.Parallel()
	for name, refuse := range map[string]func(r *rig){
		"as Glance does": func(r *rig) { r.glance.frontOnly = true },
		"by ignoring ranges": func(r *rig) {
			r.glance.before = func(_ http.ResponseWriter, req *http.Request) bool {
				req.Header.Del("Range")
				return false
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, Options{})
			refuse(r)
			for _, size := range []int64{1, 1000, 1 << 20} {
				b := noise(int(size), 1)
				id := r.stock(b, nil)
				f := r.open(id)
				if !f.Facts().Streams {
					t.Fatal("Streams is false")
				}
				before := r.glance.asked("GET /" + id + "/file")
				spans := [][2]int64{{0, size}, {0, 1}, {size - 1, 1}, {size / 2, 1}, {size / 3, size / 2}}
				for _, span := range spans[:min(int64(len(spans)), size+2)] {
					off, n := span[0], span[1]
					if got, err := readAll(t.Context(), f, off, n); err != nil || !bytes.Equal(got, b[off:off+n]) {
						t.Errorf("%d+%d of %d: %d bytes, %v", off, n, size, len(got), err)
					}
				}
				if got := r.glance.asked("GET /"+id+"/file") - before; got > len(spans) {
					t.Errorf("%d requests", got)
				}
			}
		})
	}
	r := newRig(t, Options{})
	for _, size := range []int{1, 1000} {
		if r.open(r.stock(noise(size, 1), nil)).Facts().Streams {
			t.Errorf("Streams is true of a store with ranges, for %d bytes", size)
		}
	}
}

// What Open itself may be told when it asks for the first byte.
func TestOpenProbe(t *testing.T) {
	t.Parallel()
	refuse := func(status int) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { say(w, status, "") }
	}
	for name, tt := range map[string]struct {
		answer http.HandlerFunc
		delete bool
		want   error
	}{
		"another range":       {answer: func(w http.ResponseWriter, r *http.Request) { chunked("bytes 0-0/1000", []byte("a"))(w, r) }, want: errUnavailable},
		"the store is away":   {answer: refuse(503), want: errUnavailable},
		"the data is missing": {answer: refuse(404), want: errUnavailable},
		"just deleted":        {answer: refuse(404), delete: true, want: imageapi.ErrNoImage},
		"not allowed":         {answer: refuse(403), want: errForbidden},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, Options{})
			id := r.stock(noise(1000, 1), nil)
			r.glance.before = func(w http.ResponseWriter, req *http.Request) bool {
				if !strings.HasSuffix(req.URL.Path, "/file") {
					return false
				}
				if tt.delete {
					r.glance.mu.Lock()
					r.glance.rows[id].deleted = true
					r.glance.mu.Unlock()
				}
				tt.answer(w, req)
				return true
			}
			_, err := r.images.Open(t.Context(), id)
			wantError(t, "Open", err, tt.want)
		})
	}
}

// Skipping to a range fails as reading does.
func TestOpenStreamsSkipping(t *testing.T) {
	t.Parallel()
	content := noise(1000, 1)
	left := errors.New("the user left")
	for name, tt := range map[string]struct {
		announced int
		silent    bool
		want      error
	}{
		"cut short":            {announced: 1000, want: io.ErrUnexpectedEOF},
		"of another length":    {announced: 999, want: errUnavailable},
		"canceled in the skip": {announced: 1000, silent: true, want: left},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, Options{})
			r.glance.frontOnly = true
			f := r.open(r.stock(content, nil))
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			r.glance.mu.Lock()
			r.glance.before = func(w http.ResponseWriter, req *http.Request) bool {
				if !strings.HasSuffix(req.URL.Path, "/file") {
					return false
				}
				w.Header().Set("Content-Length", fmt.Sprint(tt.announced))
				_, _ = w.Write(content[:100])
				_ = http.NewResponseController(w).Flush()
				if tt.silent {
					cancel(left)
					<-req.Context().Done()
				}
				panic(http.ErrAbortHandler)
			}
			r.glance.mu.Unlock()
			_, err := readAll(ctx, f, 500, 10)
			wantError(t, "ReadRange", err, tt.want)
		})
	}
}

// An image that has gone to a store without ranges is opened anew by another attempt.
func TestOpenLosesRanges(t *testing.T) {
	t.Parallel()
	r := newRig(t, Options{})
	b := noise(1000, 1)
	f := r.open(r.stock(b, nil))
	r.glance.mu.Lock()
	r.glance.frontOnly = true
	r.glance.mu.Unlock()
	if got, err := readAll(t.Context(), f, 0, 1000); err != nil || !bytes.Equal(got, b) {
		t.Errorf("all: %d bytes, %v", len(got), err)
	}
	_, err := readAll(t.Context(), f, 0, 999)
	wantError(t, "a part", err, errNoRanges)
	if fault.KindOf(err) != fault.Unavailable {
		t.Errorf("a part: %v would not be tried again", err)
	}
}

// A token may end between two ranges.
func TestOpenTokenEnds(t *testing.T) {
	t.Parallel()
	r := newRig(t, Options{})
	b := noise(1000, 1)
	f := r.open(r.stock(b, nil))
	r.glance.mu.Lock()
	r.glance.refused[fmt.Sprintf("token-%d", r.glance.tokens)] = true
	tokens := r.glance.tokens
	r.glance.mu.Unlock()
	for range 2 {
		if got, err := readAll(t.Context(), f, 10, 20); err != nil || !bytes.Equal(got, b[10:30]) {
			t.Errorf("%d bytes, %v", len(got), err)
		}
	}
	r.glance.mu.Lock()
	defer r.glance.mu.Unlock()
	if r.glance.tokens != tokens+1 {
		t.Errorf("%d new tokens, want one", r.glance.tokens-tokens)
	}
}

// A range obeys its context also where Glance falls silent: before its answer, or within.
func TestOpenCanceledWhileSilent(t *testing.T) {
	t.Parallel()
	for name, begun := range map[string]bool{"before the answer": false, "within": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, Options{})
			f := r.open(r.stock(noise(1000, 1), nil))
			silent := make(chan struct{})
			r.glance.mu.Lock()
			r.glance.before = func(w http.ResponseWriter, req *http.Request) bool {
				if begun {
					w.Header().Set("Content-Range", "bytes 1-500/1000")
					w.Header().Set("Content-Length", "500")
					w.WriteHeader(http.StatusPartialContent)
					_ = http.NewResponseController(w).Flush()
				}
				close(silent)
				select {
				case <-r.glance.over:
				case <-req.Context().Done():
				}
				return true
			}
			r.glance.mu.Unlock()
			left := errors.New("the user left")
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			ended := make(chan error)
			go func() {
				_, err := readAll(ctx, f, 1, 500)
				ended <- err
			}()
			<-silent
			cancel(left)
			wantError(t, "read", <-ended, left)
		})
	}
}

// All that an export does: with retries, in parallel, and compared with Glance's hash.
func TestOpenFetch(t *testing.T) {
	t.Parallel()
	r := newRig(t, Options{})
	b := noise(3_000_001, 1)
	u := r.begin(r.spec)
	if err := r.send(u, b); err != nil {
		t.Fatal(err)
	}
	f := r.open(r.spec.ImageID)
	failed := false
	r.glance.mu.Lock()
	r.glance.before = func(w http.ResponseWriter, req *http.Request) bool {
		r.glance.mu.Lock()
		fail := !failed && strings.HasPrefix(req.Header.Get("Range"), "bytes=131072-")
		failed = failed || fail
		r.glance.mu.Unlock()
		if fail {
			say(w, http.StatusBadGateway, "")
		}
		return fail
	}
	r.glance.mu.Unlock()
	facts := f.Facts()
	got := make([]byte, len(b))
	sums, err := storage.Fetch(t.Context(), f, storage.Options{
		Pool: storage.NewPool(4<<20, 64<<10), Digests: []string{facts.HashName}, Backoff: storage.Backoff{Base: 1, Max: 1},
	}, func(off int64, p []byte) error { copy(got[off:], p); return nil })
	if err != nil || !bytes.Equal(got, b) || !failed {
		t.Fatalf("%d bytes, failed once: %v, %v", len(got), failed, err)
	}
	if facts.HashName != "sha512" || facts.Hash != sums["sha512"] {
		t.Errorf("hash %s %s, computed %s", facts.HashName, facts.Hash, sums["sha512"])
	}

	r.glance.mu.Lock()
	row := r.glance.rows[r.spec.ImageID]
	row.deleted = true
	r.glance.mu.Unlock()
	_, err = storage.Fetch(t.Context(), f, storage.Options{Pool: storage.NewPool(4<<20, 64<<10)})
	wantError(t, "Fetch of an image that is gone", err, imageapi.ErrGone)
}

// Nothing of an image can be asked for while Keystone is away.
func TestOpenWithoutIdentity(t *testing.T) {
	t.Parallel()
	r := newRig(t, Options{})
	f := r.open(r.stock(noise(1000, 1), nil))
	away := httptest.NewServer(nil)
	away.Close()
	cloud, err := openstack.New(openstack.Options{AuthURL: away.URL + "/v3", Username: "vmimport", Password: secret.New("password"), Project: "service"})
	if err != nil {
		t.Fatal(err)
	}
	r.images.cloud = cloud
	_, err = readAll(t.Context(), f, 1, 2)
	wantError(t, "ReadRange", err, openstack.ErrIdentity)
	_, err = r.images.Open(t.Context(), uuid.NewString())
	wantError(t, "Open", err, openstack.ErrIdentity)
}
