package devstack

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"vmimport/internal/client"
	"vmimport/tasks"
)

// Whatever comes is answered as the dialect does, and never with 5xx.
func TestHostileRequests(t *testing.T) {
	t.Parallel()
	w := serve(t, t.TempDir())
	w.put("web01.raw", make([]byte, 4096))
	good := fmt.Sprintf(`"name": "web01", "os_type": "ubuntu", "location": %q`, w.location("web01.raw"))
	for name, body := range map[string]string{
		"5 MiB of blanks":       strings.Repeat(" ", 5<<20),
		"5 MiB in one member":   `{` + good + `, "x": "` + strings.Repeat("x", 5<<20) + `"}`,
		"100000 arrays":         strings.Repeat("[", 100000),
		"deep in a member":      `{` + good + `, "x": ` + strings.Repeat(`{"a":`, 5000) + "1" + strings.Repeat("}", 5000) + `}`,
		"member twice":          `{` + good + `, "name": "b"}`,
		"NUL":                   "{" + good + "\x00}",
		"NUL, escaped":          `{"name": "a\u0000b", "os_type": "ubuntu", "location": "` + w.location("web01.raw") + `"}`,
		"no UTF-8":              "{" + good + ", \"x\": \"\xff\xfe\"}",
		"half a surrogate pair": `{` + good + `, "x": "\ud800"}`,
		"number without end":    `{` + good + `, "min_ram": ` + strings.Repeat("9", 100000) + `}`,
		"power of ten":          `{` + good + `, "min_ram": 1e999999999}`,
		"two objects":           `{` + good + `}{` + good + `}`,
		"long name":             `{"name": "` + strings.Repeat("n", 256) + `", "os_type": "ubuntu", "location": "` + w.location("web01.raw") + `"}`,
		"long location":         `{"name": "n", "os_type": "ubuntu", "location": "` + w.location(strings.Repeat("l", 1<<18)+".raw") + `"}`,
		"name beyond a file's":  `{"name": "n", "os_type": "ubuntu", "location": "` + w.location(strings.Repeat("l", 300)+".raw") + `"}`,
		"absolute path":         `{"name": "n", "os_type": "ubuntu", "location": "` + w.location("/etc/passwd.raw") + `"}`,
		"upload under way":      `{"name": "n", "os_type": "ubuntu", "location": "` + w.location(".vmimport-upload-x.raw") + `"}`,
		"object of an object":   `{"name": "n", "os_type": "ubuntu", "location": "` + w.location("web01.raw/x.raw") + `"}`,
		"URL of S3":             `{"name": "n", "os_type": "ubuntu", "s3_location": "http://127.0.0.1/images/web01.raw"}`,
		"dots in S3":            `{"name": "n", "os_type": "ubuntu", "s3_location": "/../images/web01.raw"}`,
		"dots for a bucket":     `{"name": "n", "os_type": "ubuntu", "s3_location": "/./web01.raw"}`,
	} {
		if a := w.refused("POST", "/v1/imageimport", body); a.status != 400 {
			t.Errorf("%s: %d", name, a.status)
		}
	}
	for _, path := range []string{
		"/v1/imageimport/x/status", "/v1/imageimport/%00/status", "/v1/imageimport/..%2f..%2fx/status", "/v1/imageimport/%ff/status",
		"/v1/imageimport/" + strings.Repeat("0", 5000) + "/status", "/v1/imageimport/*/status", "/v1/imageimport/{a}:b/status", "/v1/nothing", "/v1/../healthz",
		"/%2e%2e/%2e%2e/etc/passwd", "//v1/imageimport", "/v1/imageimport/",
	} {
		if a := w.refused("GET", path, ""); a.status != 404 {
			t.Errorf("GET %s: %d", path, a.status)
		}
	}
	for _, method := range []string{"PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW"} {
		if a := w.refused(method, "/v1/imageimport", ""); a.status != 405 {
			t.Errorf("%s: %d", method, a.status)
		}
	}
	for _, path := range []string{"/metrics", "/monitoring/", "/monitoring/api/queues", "/monitoring/..%2f"} {
		for _, header := range [][2]string{{"Authorization", "Bearer " + w.stack.Credentials.Token}, {"Authorization", "Basic Og=="}, {"X", "y"}} {
			if a := w.refused("GET", path, "", header[:]...); a.status != 401 {
				t.Errorf("GET %s with %q: %d", path, header, a.status)
			}
		}
	}
	if a := w.do("GET", "/v1/imageimport", ""); strings.TrimSpace(a.body) != `{"imports":[]}` {
		t.Errorf("something was registered: %s", a.body)
	}
	if strings.Contains(w.log.String(), "panic") {
		t.Error("something panicked")
	}
}

// What no client library would send.
func TestHostileBytes(t *testing.T) {
	t.Parallel()
	w := serve(t, t.TempDir())
	token := "\r\nX-Auth-Token: " + w.stack.Credentials.Token
	for name, raw := range map[string]string{
		"no HTTP":              "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
		"NUL in the path":      "GET /v1/imageimport/\x00/status HTTP/1.1\r\nHost: x" + token + "\r\n\r\n",
		"dots in the path":     "GET /v1/../../etc/passwd HTTP/1.1\r\nHost: x" + token + "\r\n\r\n",
		"no host":              "GET /v1/imageimport HTTP/1.1" + token + "\r\n\r\n",
		"two lengths":          "POST /v1/imageimport HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nContent-Length: 3" + token + "\r\n\r\n{}x",
		"length and chunks":    "POST /v1/imageimport HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nTransfer-Encoding: chunked" + token + "\r\n\r\n{}\r\n",
		"negative length":      "POST /v1/imageimport HTTP/1.1\r\nHost: x\r\nContent-Length: -1" + token + "\r\n\r\n",
		"bad chunk":            "POST /v1/imageimport HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked" + token + "\r\n\r\nzz\r\n",
		"header of 100 KiB":    "GET /v1/imageimport HTTP/1.1\r\nHost: x\r\nX-Auth-Token: " + strings.Repeat("t", 100<<10) + "\r\n\r\n",
		"token of 20 KiB":      "GET /v1/imageimport HTTP/1.1\r\nHost: x\r\nX-Auth-Token: " + strings.Repeat("t", 20<<10) + "\r\n\r\n",
		"absolute form":        "GET http://169.254.169.254/latest/meta-data HTTP/1.1\r\nHost: x" + token + "\r\n\r\n",
		"tunnel":               "CONNECT 127.0.0.1:22 HTTP/1.1\r\nHost: x" + token + "\r\n\r\n",
		"PUT with NUL":         "PUT /v2/AUTH_x/images/a\x00b HTTP/1.1\r\nHost: x\r\nContent-Length: 1" + token + "\r\n\r\nx",
		"a new line in a name": "GET /v1/imageimport%0d%0aX-Evil:%20y HTTP/1.1\r\nHost: x" + token + "\r\n\r\n",
	} {
		conn, err := net.Dial("tcp", w.stack.ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Write([]byte(raw)); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if resp.StatusCode < 400 || resp.StatusCode >= 500 || resp.Header.Get("X-Evil") != "" {
			t.Errorf("%s: %s %v", name, resp.Status, resp.Header)
		}
		_, _ = resp.Body.Close(), conn.Close()
	}
}

// No name of an object leads out of the project's own.
func TestHostileObjects(t *testing.T) {
	t.Parallel()
	data := t.TempDir()
	w := serve(t, data)
	own := "/v2/AUTH_" + w.stack.Credentials.ProjectID
	before := slices.DeleteFunc(files(t, data), func(name string) bool { return strings.HasPrefix(name, "/redis/") })
	for _, path := range []string{
		own + "/images/..%2f..%2f..%2fevil.raw", own + "/images/%2e%2e/evil.raw", own + "/images/../evil.raw", own + "/..%2fimages/evil.raw", own + "/%2e%2e/evil.raw",
		own + "/images/a%2f..%2f..%2fevil.raw", own + "/images/.%2fevil.raw", own + "/images//evil.raw", own + "/images/%2fetc%2fevil.raw", own + "/images/a%00.raw",
		own + "/images/a%0a.raw", own + "/images/%ff.raw", own + "/images/.vmimport-upload-x", own + "/images/" + strings.Repeat("a", 300), own + "/images/" + strings.Repeat("a/", 600) + "b",
		own + "/none/evil.raw", "/v2/AUTH_other/images/evil.raw", "/v2/AUTH_/images/evil.raw", "/v2/AUTH_" + w.stack.Credentials.ProjectID + "%2f../images/evil.raw",
		"/v2/" + w.stack.Credentials.ProjectID + "/images/evil.raw", "/v3/AUTH_x/images/evil.raw",
	} {
		for _, method := range []string{"PUT", "GET", "DELETE"} {
			w.refused(method, path, "evil")
		}
	}
	w.refused("PUT", own+"/images/evil.raw", "evil", "X-Auth-Token", "wrong")
	w.refused("PUT", own+"/images/evil.raw", "evil", "Etag", strings.Repeat("0", 32))
	after := slices.DeleteFunc(files(t, data), func(name string) bool { return strings.HasPrefix(name, "/redis/") })
	if !slices.Equal(before, after) {
		t.Errorf("files were made: before %q, after %q", before, after)
	}
}

// Only regular files of the container itself can be imported, and of these only
// what is a raw disk.
func TestHostileFiles(t *testing.T) {
	t.Parallel()
	w := serve(t, t.TempDir())
	outside := filepath.Join(t.TempDir(), "secret.raw")
	if err := os.WriteFile(outside, make([]byte, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	w.put("real.raw", make([]byte, 4096))
	for name, target := range map[string]string{
		"passwd.raw": "/etc/passwd", "outside.raw": outside, "up.raw": "../../credentials.env", "self.raw": "self.raw", "inside.raw": "real.raw", "dir": filepath.Dir(outside),
	} {
		if err := os.Symlink(target, w.file(name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(filepath.Dir(outside), filepath.Join(w.stack.objects(), "linked")); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(w.file("pipe.raw"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(w.file("directory.raw"), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{
		"empty.raw": "",
		"html.raw":  "<!DOCTYPE html><html><body>404 Not Found</body></html>" + strings.Repeat(" ", 4096),
		"qcow2.raw": "QFI\xfb\x00\x00\x00\x03" + strings.Repeat("\x00", 4096),
		"vmdk.raw":  "KDMV\x01\x00\x00\x00" + strings.Repeat("\x00", 4096),
		"gzip.raw":  "\x1f\x8b\x08\x00" + strings.Repeat("\x00", 4096),
		"tiny.raw":  strings.Repeat("x", 511),
	} {
		w.put(name, []byte(content))
	}
	register := func(location string) answer {
		return w.refused("POST", "/v1/imageimport", fmt.Sprintf(`{"name": "web01", "os_type": "ubuntu", "location": %q}`, location))
	}
	for _, name := range []string{
		"passwd.raw", "outside.raw", "up.raw", "self.raw", "inside.raw", "dir/secret.raw", "pipe.raw", "directory.raw",
		"empty.raw", "html.raw", "qcow2.raw", "vmdk.raw", "gzip.raw", "tiny.raw",
	} {
		if a := register(w.location(name)); a.status != 400 || strings.Contains(a.body, w.stack.Data) {
			t.Errorf("%s: %d %s", name, a.status, a.body)
		}
	}
	register(strings.Replace(w.location("secret.raw"), "/images/", "/linked/", 1))
	// A file that is replaced by a link after it was accepted is not followed either.
	w.putSparse("later.raw", 256<<20)
	id := w.register(client.Registration{Location: "later.raw"})
	if err := os.Remove(w.file("later.raw")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, w.file("later.raw")); err != nil {
		t.Fatal(err)
	}
	if imp := w.ended(id); imp.State != tasks.Failed || imp.Extra.FailureCode != "object_changed" && imp.Extra.FailureCode != "object_not_found" {
		t.Errorf("%+v", imp)
	}
	w.nothingStaged()
}
