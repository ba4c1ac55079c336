package openstacktest

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"vmimport/internal/client"
	"vmimport/tasks"
)

// oddNames are names of objects that somewhere mean something else. Several of them
// become one another when they are decoded, or encoded, once too often.
var oddNames = []string{
	"a b", "a+b", "a%20b", "a%2520b", "a%2Bb",
	"a/b", "a%2Fb", "deep/er/and/deeper/still",
	"100%", "%00", `"quoted" and 'quoted'`, `back\slash`,
	"key=value&key;v=1", "a,b:c@d", "$HOME {project} <b> * [1] ^|~`",
	"日本語 ディスク", "u\u0308 and ü", "🖥️ \u202egnp",
	".hidden", "..two..", strings.Repeat("x", 1000),
}

// An object is the one with that very name, whatever the name is made of.
func TestNames(t *testing.T) {
	t.Parallel()
	in := install(t, settings{})
	in.start("worker", settings{})
	api := in.client(cloud.Alpha)
	alice := customerOf(t, cloud.Alpha)

	type object struct {
		customer
		name string
		disk []byte
	}
	var objects []object
	add := func(container, name string) {
		o := object{*alice, name, random(byte(len(objects)), 4<<10)}
		o.container = container
		o.put(name, o.disk)
		objects = append(objects, o)
	}
	for _, name := range oddNames {
		add(alice.container, name+".raw")
	}
	for _, suffix := range []string{" +%20%2F", "=&;'\" 日本"} {
		container := alice.container + suffix
		alice.putIn(container, "", nil)
		add(container, "disk of "+suffix+".raw")
	}
	var ids []tasks.ID
	for _, o := range objects {
		r := o.request(o.name)
		r.Name, r.Checksum = "odd", sha1Of(o.disk)
		ids = append(ids, in.register(api, r))
	}
	for i, o := range objects {
		imp := in.wantImported(api, ids[i], 2*time.Minute, o.disk)
		if want := o.location(o.name); imp.Location != want {
			t.Errorf("status says that the location was %q, want %q", imp.Location, want)
		}
	}
}

// What nobody can mean by a location is refused, and looks up nothing.
func TestBadNames(t *testing.T) {
	t.Parallel()
	in := install(t, settings{})
	alice := customerOf(t, cloud.Alpha)
	alice.put("disk.raw", random(1, 4<<10))
	project := "/v2/AUTH_" + cloud.Alpha.ProjectID
	for location, code := range map[string]string{
		project + "/" + alice.container + "/disk%2eraw":            "40004",
		project + "/" + alice.container + "/none.raw":              "40014",
		project + "/" + alice.container + "/Disk.raw":              "40014",
		project + "/" + alice.container + "//disk.raw":             "40004",
		project + "/" + alice.container + "/../disk.raw":           "40004",
		project + "/" + alice.container + "/disk.raw?x=.raw":       "40004",
		project + "/" + alice.container + "/disk.raw#.raw":         "40004",
		project + "/" + alice.container + "/":                      "40004",
		project + "/" + strings.ToLower(alice.container) + "/.raw": "40014",
		cloud.SwiftURL + project + "/x/disk.raw":                   "40004",
	} {
		_, err := in.client(cloud.Alpha).Register(t.Context(), client.Registration{Name: "n", OSType: "ubuntu", Location: location})
		if !client.HasCode(err, code) {
			t.Errorf("%s: %v, want %s", location, err, code)
		}
	}
	// Glance keeps no name of an image with characters beyond U+FFFF.
	r := alice.request("disk.raw")
	r.Name = "disk 💾"
	if _, err := in.client(cloud.Alpha).Register(t.Context(), r); !client.HasCode(err, "40002") {
		t.Errorf("a name that Glance does not take: %v", err)
	}
	if resp, _ := alice.do(http.MethodHead, alice.container, "disk.raw", "", nil); resp.StatusCode != http.StatusOK {
		t.Errorf("the object is %s in the end", resp.Status)
	}
}
