package devstack

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"vmimport/internal/client"
	"vmimport/tasks"
)

func TestRegisterMinimum(t *testing.T) {
	t.Parallel()
	w := serve(t, t.TempDir())
	w.putSparse("web01.raw", 64<<20)
	a := w.do("POST", "/v1/imageimport", `{"name": "web01", "location": "`+w.location("web01.raw")+`", "os_type": "rocky"}`)
	var body map[string]string
	if err := json.Unmarshal([]byte(a.body), &body); err != nil || a.status != 201 || len(body) != 1 || uuid.Validate(body["import_id"]) != nil {
		t.Fatalf("%d %s, %v", a.status, a.body, err)
	}
	first, err := w.api.Status(t.Context(), tasks.ID(body["import_id"]))
	if err != nil {
		t.Fatal(err)
	}
	if uuid.Validate(first.ID) != nil || first.Name != "web01" || first.OSType != "rocky" || first.DiskFormat != "raw" || first.ContainerFormat != "bare" ||
		first.Location != w.location("web01.raw") || first.MinRAM != "0" || first.MinDisk != "0" || first.Checksum != "" {
		t.Errorf("first status %+v", first)
	}
	if last := w.ended(first.ImportID); last.State != tasks.Succeeded || last.Progress != 100 || last.ID != first.ID {
		t.Errorf("last status %+v", last)
	}
	w.equal("web01.raw", first.ID)
	if got := blocks(t, w.image(first.ID)); got > 64<<10 {
		t.Errorf("an image that is a hole but for 1.5 KiB takes %d bytes", got)
	}
	w.nothingStaged()
}

func TestRegisterFull(t *testing.T) {
	t.Parallel()
	w := serve(t, t.TempDir())
	content := bytes.Repeat([]byte("not a multiple of 512"), 10000)
	sum, err := w.api.Upload(t.Context(), client.Object{Container: container, Name: "dir/Ω 100%.img"}, bytes.NewReader(content), int64(len(content)), nil)
	if err != nil {
		t.Fatal(err)
	}
	want := client.Registration{
		Name: " web 01, “système” ", Location: w.location("dir/Ω 100%.img"), Checksum: strings.ToUpper(sum), ID: uuid.NewString(),
		MinRAM: 2048, MinDisk: 40, Details: &client.Details{ImageFrom: "kvm"},
	}
	imp := w.ended(w.register(want))
	if imp.State != tasks.Succeeded || imp.Name != want.Name || imp.Location != want.Location || imp.Checksum != want.Checksum || imp.ID != want.ID ||
		imp.MinRAM != "2048" || imp.MinDisk != "40" || imp.Details == nil || *imp.Details != *want.Details || imp.Extra.Digests["sha1"] != sum {
		t.Errorf("%+v", imp)
	}
	w.equal("dir/Ω 100%.img", want.ID)
	var record map[string]any
	b, err := os.ReadFile(filepath.Join(w.stack.Images, want.ID, "image.json"))
	if err == nil {
		err = json.Unmarshal(b, &record)
	}
	if err != nil {
		t.Fatal(err)
	}
	for member, value := range map[string]any{
		"id": want.ID, "name": want.Name, "status": "active", "owner": w.stack.Credentials.ProjectID, "os_type": "ubuntu",
		"disk_format": "raw", "container_format": "bare", "min_ram": 2048.0, "min_disk": 40.0, "size": float64(len(content)+511) - float64((len(content)+511)%512),
	} {
		if record[member] != value {
			t.Errorf("image.json: %s is %v, want %v", member, record[member], value)
		}
	}
	// The id is in use now.
	a := w.refused("POST", "/v1/imageimport", `{"name": "b", "os_type": "ubuntu", "location": "`+want.Location+`", "id": "`+want.ID+`"}`)
	if code := a.member(t, "error_code"); code != "40015" {
		t.Errorf("a second import under the same image id: %s", a.body)
	}
}

func TestRefusedRegistrations(t *testing.T) {
	t.Parallel()
	w := serve(t, t.TempDir())
	w.put("web01.raw", make([]byte, 4096))
	w.put("web01.xyz", make([]byte, 4096))
	w.put("web01.RAW", make([]byte, 4096))
	c := w.stack.Credentials
	good := w.location("web01.raw")
	register := func(location, more string) string {
		return `{"name": "web01", "os_type": "ubuntu", "location": "` + location + `"` + more + `}`
	}
	for name, tt := range map[string]struct {
		body   string
		status int
		code   string
	}{
		"version of classic":    {register(strings.Replace(good, "/v2/", "/v1/", 1), ""), 400, "40004"},
		"URL":                   {register(c.Endpoint+good, ""), 400, "40004"},
		"two slashes":           {register("/"+good, ""), 400, "40004"},
		"foreign project":       {register(strings.Replace(good, c.ProjectID, "0123456789abcdef0123456789abcdef", 1), ""), 400, "40004"},
		"no object":             {register(w.location("web02.raw"), ""), 400, "40014"},
		"no container":          {register(strings.Replace(good, "/images/", "/imagez/", 1), ""), 400, "40014"},
		"unknown extension":     {register(w.location("web01.xyz"), ""), 400, "40004"},
		"extension in capitals": {register(w.location("web01.RAW"), ""), 400, "40004"},
		"dot segments":          {register(w.location("../images/web01.raw"), ""), 400, "40004"},
		"encoded dot segments":  {register(w.location("%2e%2e/images/web01.raw"), ""), 400, "40014"},
		"NUL in a name":         {register(w.location(`web\u0000.raw`), ""), 400, "40004"},
		"both locations":        {register(good, `, "s3_location": "/images/web01.raw"`), 400, "40004"},
		"no location":           {`{"name": "web01", "os_type": "ubuntu"}`, 400, "40003"},
		"no name":               {`{"location": "` + good + `", "os_type": "ubuntu"}`, 400, "40001"},
		"control character":     {strings.Replace(register(good, ""), `"web01"`, `"a\u001b[2Jb"`, 1), 400, "40002"},
		"no OS type":            {`{"name": "web01", "location": "` + good + `"}`, 400, "40010"},
		"OS type in capitals":   {strings.Replace(register(good, ""), "ubuntu", "Ubuntu", 1), 400, "40011"},
		"historic OS type":      {strings.Replace(register(good, ""), "ubuntu", "centos", 1), 400, "40011"},
		"short checksum":        {register(good, `, "checksum": "abc"`), 400, "40006"},
		"id that is no UUID":    {register(good, `, "id": "../../etc"`), 400, "40007"},
		"negative memory":       {register(good, `, "min_ram": -1`), 400, "40008"},
		"fraction of a disk":    {register(good, `, "min_disk": 1.5`), 400, "40009"},
		"conversion declined":   {register(good, `, "conversion": false`), 400, "40012"},
		"strange details":       {register(good, `, "details": []`), 400, "40013"},
		"array":                 {`[]`, 400, "40016"},
		"nothing":               {``, 400, "40016"},
	} {
		a := w.refused("POST", "/v1/imageimport", tt.body)
		if a.status != tt.status || a.member(t, "error_code") != tt.code {
			t.Errorf("%s: %d %s, want %d %s", name, a.status, a.body, tt.status, tt.code)
		}
	}
	for _, token := range []string{"", "wrong", c.OperatorToken, c.Token + "0"} {
		if a := w.refused("POST", "/v1/imageimport", register(good, ""), "X-Auth-Token", token); a.status != 401 {
			t.Errorf("token %q: %d", token, a.status)
		}
	}
	if a := w.do("GET", "/v1/imageimport", ""); a.status != 200 || strings.TrimSpace(a.body) != `{"imports":[]}` {
		t.Errorf("something was registered: %s", a.body)
	}
}

func TestWrongChecksum(t *testing.T) {
	t.Parallel()
	w := serve(t, t.TempDir())
	w.putSparse("web01.raw", 32<<20)
	imp := w.ended(w.register(client.Registration{Location: "web01.raw", Checksum: strings.Repeat("a", 40)}))
	if imp.State != tasks.Failed || imp.ErrorMessage == "" || imp.Extra.FailureCode != "checksum_mismatch" || imp.Progress > 99 {
		t.Errorf("%+v", imp)
	}
	if _, err := os.Stat(filepath.Dir(w.image(imp.ID))); !os.IsNotExist(err) {
		t.Errorf("there is an image: %v", err)
	}
	w.nothingStaged()
	if a := w.refused("POST", "/v1/imageimport/"+string(imp.ImportID)+"/cancel", ""); a.status != 404 || a.member(t, "error_code") != "40402" {
		t.Errorf("cancel of a finished import: %d %s", a.status, a.body)
	}
	// The id of an image that did not come to be is free again.
	if again := w.ended(w.register(client.Registration{Location: "web01.raw", ID: imp.ID})); again.State != tasks.Succeeded {
		t.Errorf("second import under the id: %+v", again)
	}
}

func TestListWindows(t *testing.T) {
	t.Parallel()
	w := serve(t, t.TempDir())
	w.put("web01.raw", make([]byte, 4096))
	const n = 105
	var want []tasks.ID // newest first
	for range n {
		want = append([]tasks.ID{w.register(client.Registration{Location: "web01.raw"})}, want...)
	}
	list := func(query string) (ids []tasks.ID) {
		var body struct {
			Imports []struct {
				ImportID tasks.ID `json:"import_id"`
				Status   string   `json:"status"`
			} `json:"imports"`
		}
		a := w.do("GET", "/v1/imageimport"+query, "a body that nobody reads")
		if err := json.Unmarshal([]byte(a.body), &body); err != nil || a.status != 200 {
			t.Fatalf("%s: %d %s, %v", query, a.status, a.body, err)
		}
		for _, e := range body.Imports {
			if e.Status != "/v1/imageimport/"+string(e.ImportID)+"/status" {
				t.Errorf("status path %q", e.Status)
			}
			ids = append(ids, e.ImportID)
		}
		return ids
	}
	for query, ids := range map[string][]tasks.ID{
		"": want[:100], "?limit=100": want[:100], "?limit=1000": want[:100], "?limit=7": want[:7], "?start=100": want[100:],
		"?start=90&limit=100": want[90:], "?start=105": nil, "?start=99999999999999999999": nil, "?start=0&limit=1&x=y": want[:1],
	} {
		if got := list(query); !slices.Equal(got, ids) {
			t.Errorf("%q: %d imports, want %d of them", query, len(got), len(ids))
		}
	}
	var joined []tasks.ID
	for start := 0; start < n; start += 20 {
		joined = append(joined, list(fmt.Sprintf("?start=%d&limit=20", start))...)
	}
	if !slices.Equal(joined, want) {
		t.Error("windows do not join")
	}
	for query, code := range map[string]string{
		"?start=-1": "40035", "?start=": "40035", "?start=x": "40035", "?start=1.0": "40035", "?start=%zz": "40035", "?start=%00": "40035",
		"?limit=0": "40036", "?limit=-1": "40036", "?limit=ten": "40036", "?limit=%20": "40036",
	} {
		if a := w.refused("GET", "/v1/imageimport"+query, ""); a.status != 400 || a.member(t, "error_code") != code {
			t.Errorf("%q: %d %s", query, a.status, a.body)
		}
	}
}

// A cancel stops an import of any size within two seconds, once, and leaves
// nothing of it.
func TestCancel(t *testing.T) {
	t.Parallel()
	w := serve(t, t.TempDir())
	w.putSparse("web01.raw", 4<<30)
	imageID := uuid.NewString()
	id := w.register(client.Registration{Location: "web01.raw", ID: imageID})
	before := w.running(id)

	const rivals = 20
	var wg sync.WaitGroup
	answers := make([]answer, rivals)
	start := make(chan struct{})
	for i := range rivals {
		wg.Go(func() {
			<-start
			answers[i] = w.do("POST", "/v1/imageimport/"+string(id)+"/cancel", "")
		})
	}
	close(start)
	wg.Wait()
	accepted := time.Now() // or some time before
	count := map[int]int{}
	for _, a := range answers {
		count[a.status]++
		if a.status == 400 && a.member(t, "error_code") != "40037" || a.status == 202 && a.body != "" {
			t.Errorf("%d %s", a.status, a.body)
		}
	}
	if count[202] != 1 || count[400] != rivals-1 {
		t.Fatalf("answers by status: %v", count)
	}
	progress := before.Progress
	last := w.until(id, func(imp *client.Import) bool {
		if imp.Progress < progress {
			t.Errorf("progress fell from %d to %d", progress, imp.Progress)
		}
		progress = imp.Progress
		if imp.State != tasks.Cancelling && imp.State != tasks.Canceled {
			t.Errorf("state %s after a cancel", imp.State)
		}
		return imp.State.Final()
	})
	if took := time.Since(accepted); last.State != tasks.Canceled || took > 2*time.Second {
		t.Errorf("%s after %s", last.State, took)
	}
	w.nothingStaged()
	if _, err := os.Stat(filepath.Dir(w.image(imageID))); !os.IsNotExist(err) {
		t.Errorf("there is an image: %v", err)
	}
	if a := w.refused("POST", "/v1/imageimport/"+string(id)+"/cancel", ""); a.status != 400 || a.member(t, "error_code") != "40037" {
		t.Errorf("cancel of a canceled import: %d %s", a.status, a.body)
	}
	if a := w.refused("POST", "/v1/imageimport/"+uuid.NewString()+"/cancel", ""); a.status != 404 || a.member(t, "error_code") != "40401" {
		t.Errorf("cancel of nothing: %d %s", a.status, a.body)
	}
	keys, err := w.redis().Keys(t.Context(), "vmimport:{*").Result()
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(keys)
	const p = "vmimport:{default}:"
	want := []string{
		p + "attempts:" + string(id), p + "ended", p + "import:" + string(id), p + "journal",
		p + "list:" + Region + ":fjcloud", p + "list:" + Region + ":fjcloud:of:" + w.stack.Credentials.ProjectID, p + "seq",
	}
	if !slices.Equal(keys, want) {
		t.Errorf("keys left %q, want %q", keys, want)
	}
}

func TestProgressIsTrue(t *testing.T) {
	t.Parallel()
	w := serve(t, t.TempDir())
	w.putSparse("web01.raw", 1<<30)
	id := w.register(client.Registration{Location: "web01.raw"})
	progress := 0
	w.until(id, func(imp *client.Import) bool {
		if imp.Progress < progress || (imp.Progress == 100) != (imp.State == tasks.Succeeded) {
			t.Errorf("%s at %d %% after %d %%", imp.State, imp.Progress, progress)
		}
		progress = imp.Progress
		return imp.State == tasks.Succeeded
	})
}

// What older clients send besides is taken and forgotten, and the tokens are
// where they belong only.
func TestSecretsStayInside(t *testing.T) {
	t.Parallel()
	data := t.TempDir()
	w := serve(t, data)
	w.putSparse("web01.raw", 8<<20)
	password := base64.StdEncoding.EncodeToString([]byte("correct horse battery staple"))
	secrets := []string{password, "u53rn4m3-of-the-caller", "d0m41n-of-the-caller", "l1c3nce-of-the-caller", "k3y-of-the-caller", "n35ted-of-the-caller"}
	obsolete := fmt.Sprintf(`, "disk_format": "raw", "container_format": "bare", "ovf_location": "", "is_public": false, "activate": true, "conversion": "true",
		"password": %q, "user_name": %q, "domain_name": %q, "domain": %[3]q, "license": %q, "key": %q, "properties": {"a": {"password": %q}}`,
		secrets[0], secrets[1], secrets[2], secrets[3], secrets[4], secrets[5])
	for _, more := range []string{obsolete, obsolete + `, "checksum": "` + strings.Repeat("0", 40) + `"`} {
		a := w.do("POST", "/v1/imageimport", `{"name": "web01", "os_type": "ubuntu", "location": "`+w.location("web01.raw")+`"`+more+`}`)
		if a.status != http.StatusCreated {
			t.Fatalf("%d %s", a.status, a.body)
		}
		id := a.member(t, "import_id").(string)
		w.ended(tasks.ID(id))
		w.do("GET", "/v1/imageimport/"+id+"/status", "")
	}
	w.refused("POST", "/v1/imageimport", `{"name": "web01", "os_type": "ubuntu", "location": "`+w.location("none.raw")+`"`+obsolete+`}`)
	w.refused("POST", "/v1/imageimport", `{"name": "web01"`+obsolete)
	w.refused("POST", "/v1/imageimport?password="+password, `{"name": "web01"`+obsolete)
	w.do("GET", "/v1/imageimport", "")
	w.do("GET", "/metrics", "", "Authorization", "Bearer "+w.stack.Credentials.OperatorToken)
	w.stop() // so that all is written

	c := w.stack.Credentials
	places := map[string]string{"the log": w.log.String(), "an answer": w.seen.String()}
	for _, name := range files(t, data) {
		path := filepath.Join(data, name)
		if info, err := os.Stat(path); err != nil || !info.Mode().IsRegular() || strings.HasSuffix(name, ".raw") {
			continue // disks hold no words
		}
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		places[name] = string(b)
	}
	if !slices.ContainsFunc(files(t, data), func(name string) bool {
		return strings.HasSuffix(name, ".aof") && strings.Contains(places[name], "web01")
	}) {
		t.Error("the records are not among what is searched")
	}
	for place, text := range places {
		for _, s := range append(secrets, c.Token, c.OperatorToken) {
			if place != "/"+credentialsFile && strings.Contains(text, s) {
				t.Errorf("%s holds the secret %q", place, s)
			}
		}
	}
}
