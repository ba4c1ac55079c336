package swiftstore_test

import (
	"crypto/md5"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"strconv"
	"strings"
	"testing"
)

// This is what the fake knows of writing.

// makeContainer makes a container of project p1, with a header in pairs.
func (f *fake) makeContainer(name string, header ...string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	h := http.Header{}
	for i := 0; i < len(header); i += 2 {
		h.Set(header[i], header[i+1])
	}
	f.made["AUTH_p1/"+name+"/"] = h
}

func (f *fake) removeContainer(name string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.made, "AUTH_p1/"+name+"/")
}

// setAccount gives the account of project p1 a header.
func (f *fake) setAccount(name, value string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	h := f.made["AUTH_p1/"].Clone()
	if h == nil {
		h = http.Header{}
	}
	h.Set(name, value)
	f.made["AUTH_p1/"] = h
}

// has reports whether there is a container, which ends with a slash. f.mu is held.
func (f *fake) has(container string) bool { return f.made[container] != nil || !f.empty(container) }

func (f *fake) empty(container string) bool {
	for path := range f.objects {
		if strings.HasPrefix(path, container) {
			return false
		}
	}
	return true
}

// describe writes the header of an account or a container.
func (f *fake) describe(w http.ResponseWriter, path string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	maps.Copy(w.Header(), f.made[path])
}

func (f *fake) container(w http.ResponseWriter, r *http.Request, path string) {
	f.describe(w, path)
	f.mu.Lock()
	defer f.mu.Unlock()
	there := f.has(path)
	switch {
	case r.Method == http.MethodPut:
		f.made[path] = http.Header{}
		for name, values := range r.Header {
			if strings.HasPrefix(name, "X-Container-Meta-") || name == "X-Storage-Policy" {
				f.made[path][name] = values
			}
		}
		w.WriteHeader(http.StatusCreated)
	case !there:
		w.WriteHeader(http.StatusNotFound)
	case r.Method == http.MethodHead:
		w.WriteHeader(http.StatusNoContent)
	case r.Method != http.MethodDelete:
		w.WriteHeader(http.StatusMethodNotAllowed)
	case !f.empty(path):
		w.WriteHeader(http.StatusConflict)
	default:
		delete(f.made, path)
		w.WriteHeader(http.StatusNoContent)
	}
}

// putObject stores what a request brings. The conditions are looked at twice: before the
// body is read, as Swift does, and when it is stored.
func (f *fake) putObject(w http.ResponseWriter, r *http.Request, path string) {
	container := strings.Join(strings.SplitN(path, "/", 3)[:2], "/") + "/"
	refused := func() int {
		f.mu.Lock()
		defer f.mu.Unlock()
		switch {
		case !f.has(container):
			return http.StatusNotFound
		case r.Header.Get("If-None-Match") == "*" && f.objects[path] != nil:
			return http.StatusPreconditionFailed
		}
		return 0
	}
	if status := refused(); status != 0 {
		w.WriteHeader(status)
		return
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		w.WriteHeader(499)
		return
	}
	static := r.URL.Query().Get("multipart-manifest") == "put"
	etag := fmt.Sprintf("%x", md5.Sum(body))
	if static {
		var problems [][2]string
		if body, etag, problems = f.validate(strings.SplitN(path, "/", 2)[0], body); len(problems) > 0 {
			f.answerLate(w, r, http.StatusBadRequest, "", problems)
			return
		}
	}
	status := http.StatusCreated
	if want := r.Header.Get("ETag"); want != "" && want != etag {
		status = http.StatusUnprocessableEntity
	} else if s := refused(); s != 0 {
		status = s
	} else {
		f.mu.Lock()
		o := f.newStored(body)
		for name, values := range r.Header {
			if strings.HasPrefix(name, "X-Object-Meta-") || name == "Content-Type" {
				o.header[name] = values
			}
		}
		if static {
			o.header.Set("X-Static-Large-Object", "True")
		}
		f.objects[path] = o
		f.mu.Unlock()
	}
	if static {
		f.answerLate(w, r, status, etag, nil)
		return
	}
	w.Header().Set("ETag", etag)
	w.WriteHeader(status)
}

// validate checks the parts of a manifest as it is sent, and returns it as it is stored.
func (f *fake) validate(account string, sent []byte) (manifest []byte, etag string, problems [][2]string) {
	var segments []struct {
		Path string `json:"path"`
		ETag string `json:"etag"`
		Size int    `json:"size_bytes"`
	}
	if err := json.Unmarshal(sent, &segments); err != nil {
		f.t.Errorf("manifest %q: %v", sent, err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	sum := md5.New()
	var entries []fields
	for _, s := range segments {
		o := f.objects[account+s.Path]
		switch {
		case o == nil:
			problems = append(problems, [2]string{s.Path, "404 Not Found"})
			continue
		case o.etag != s.ETag:
			problems = append(problems, [2]string{s.Path, "Etag Mismatch"})
		case len(o.content) != s.Size:
			problems = append(problems, [2]string{s.Path, "Size Mismatch"})
		}
		_, _ = io.WriteString(sum, o.etag)
		entries = append(entries, fields{"name": s.Path, "bytes": len(o.content), "hash": o.etag, "content_type": "x/y"})
	}
	manifest, err := json.Marshal(entries)
	if err != nil {
		f.t.Error(err)
	}
	return manifest, fmt.Sprintf("%x", sum.Sum(nil)), problems
}

// answerLate answers the sender of a manifest, with signs of life before if asked.
func (f *fake) answerLate(w http.ResponseWriter, r *http.Request, status int, etag string, problems [][2]string) {
	if problems == nil {
		problems = [][2]string{}
	}
	text := fields{"Errors": problems}
	if r.URL.Query().Get("heartbeat") != "on" {
		w.Header().Set("ETag", `"`+etag+`"`)
		w.WriteHeader(status)
	} else {
		text["Response Status"] = strconv.Itoa(status) + " " + http.StatusText(status)
		text["Response Body"] = ""
		if status == http.StatusCreated {
			text["Etag"] = `"` + etag + `"`
		}
		w.WriteHeader(http.StatusAccepted)
		_, _ = io.WriteString(w, "  \r\n\r\n")
	}
	_ = json.NewEncoder(w).Encode(text)
}

func (f *fake) deleteObject(w http.ResponseWriter, r *http.Request, path string) {
	q := r.URL.Query()
	if q.Has("multipart-manifest") {
		f.t.Errorf("DELETE %s: Swift would remove whatever the manifest names", r.RequestURI)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	status := http.StatusNoContent
	if f.objects[path] == nil {
		status = http.StatusNotFound
	}
	delete(f.objects, path)
	if id := q.Get("version-id"); id != "" {
		delete(f.objects, path+"@"+id)
	}
	w.WriteHeader(status)
}

// listedPart is what a manifest says of a part.
type listedPart struct {
	Name  string `json:"name"`
	Hash  string `json:"hash"`
	Bytes int    `json:"bytes"`
}

// manifest reads a manifest.
func (f *fake) manifest(path string) []listedPart {
	f.mu.Lock()
	o := f.objects["AUTH_p1/"+path]
	f.mu.Unlock()
	return o.manifest(f.t)
}

func (o *stored) manifest(t *testing.T) (parts []listedPart) {
	if err := json.Unmarshal(o.content, &parts); err != nil {
		t.Errorf("manifest %.100q: %v", o.content, err)
	}
	return parts
}
