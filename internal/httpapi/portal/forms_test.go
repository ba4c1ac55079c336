package portal

import (
	"encoding/json"
	"net/http"
	"net/url"
	"strings"
	"testing"
)

var importValues = url.Values{
	"disk": {"system"}, "name": {" web 01 "}, "image_from": {"kvm"}, "location": {" /v2/AUTH_" + project + "/c/web01.qcow2 "}, "s3_location": {""},
	"checksum": {"2fd4e1c67a2d28fced849ee1bb76e7391b93eb12"}, "id": {""}, "min_ram": {"2048"}, "min_disk": {""}, "os_type": {"rocky"},
}

func with(values url.Values, pairs ...string) url.Values {
	v := url.Values{}
	for name, value := range values {
		v[name] = value
	}
	for i := 0; i < len(pairs); i += 2 {
		v.Set(pairs[i], pairs[i+1])
	}
	return v
}

func TestRegister(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		path, api, body string
		values          url.Values
	}{
		"import": {"/portal/imports", "/v1/imageimport", `{"name":" web 01 ","location":"/v2/AUTH_` + project + `/c/web01.qcow2","checksum":"2fd4e1c67a2d28fced849ee1bb76e7391b93eb12","min_ram":2048,"os_type":"rocky","details":{"image_from":"kvm"}}`, importValues},
		"data disk": {"/portal/imports", "/v1/expansionstorageimageimport", `{"name":"d","location":"/v2/AUTH_x/c/d.img.gz"}`,
			with(importValues, "disk", "data", "name", "d", "location", "/v2/AUTH_x/c/d.img.gz", "checksum", "", "min_ram", "nonsense")},
		"exported": {"/portal/imports", "/v1/imageimport", `{"location":"/v2/AUTH_x/c/d.img.gz"}`, url.Values{"location": {"/v2/AUTH_x/c/d.img.gz"}}},
		"export": {"/portal/exports", "/v1/imageexport", `{"image_id":"5b","storage_container":"/v2/AUTH_x/c","details":{"image_to":"kvm"}}`,
			url.Values{"image_id": {"5b "}, "storage_container": {"/v2/AUTH_x/c"}, "image_to": {"kvm"}}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			member := "import_id"
			if tc.path == exports.path {
				member = "export_id"
			}
			r.api.on("POST "+tc.api, 201, map[string]string{member: taskB})
			w := r.do(http.MethodPost, tc.path, tc.values)
			if w.Code != http.StatusSeeOther || w.Header().Get("Location") != tc.path+"/"+taskB {
				t.Fatalf("%d to %q: %s", w.Code, w.Header().Get("Location"), w.Body)
			}
			if got := r.api.bodies[0]; got != tc.body {
				t.Errorf("sent %s\nwant %s", got, tc.body)
			}
		})
	}
}

// TestRefused checks that what the API says stands at the field that it is about, with
// all that was entered.
func TestRefused(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		kind        kind
		code, field string
	}{
		{imports, "40001", "name"}, {imports, "40002", "name"}, {imports, "40003", "location"}, {imports, "40004", "location"},
		{imports, "40006", "checksum"}, {imports, "40007", "id"}, {imports, "40008", "min_ram"}, {imports, "40009", "min_disk"},
		{imports, "40010", "os_type"}, {imports, "40011", "os_type"}, {imports, "40013", "image_from"}, {imports, "40014", "location"},
		{imports, "40015", "id"}, {imports, "40017", "location"}, {imports, "40012", ""}, {imports, "40016", ""},
		{exports, "40001", "image_id"}, {exports, "40002", "image_id"}, {exports, "40003", "storage_container"}, {exports, "40004", "storage_container"},
		{exports, "40006", "image_id"}, {exports, "40007", "image_id"}, {exports, "40008", "storage_container"}, {exports, "40009", "storage_container"},
		{exports, "40011", "image_to"}, {exports, "40012", ""},
	} {
		t.Run(string(tc.kind.Kind)+tc.code, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			r.api.on("POST "+tc.kind.api, 400, said(tc.code, "Said <so>."))
			for lang := range catalogs {
				w := r.do(http.MethodPost, tc.kind.path, importValues, "Accept-Language", string(lang))
				body := w.Body.String()
				checkHTML(t, tc.code, body)
				wantText(t, w, "Said <so>.")
				if !strings.Contains(body, `id="summary" role="alert" tabindex="-1" data-focus`) {
					t.Errorf("no summary: %s", body)
				}
				if tc.field != "" && (!strings.Contains(body, `<a href="#`+tc.field+`">`) || !strings.Contains(body, `id="`+tc.field+`-wrong"><span>`)) {
					t.Errorf("nothing stands at %s: %s", tc.field, body)
				}
				if tc.kind == imports && !strings.Contains(body, `value=" web 01 "`) {
					t.Error("the name is lost")
				}
			}
		})
	}
}

func TestRefusedS3(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.api.on("POST /v1/imageimport", 400, said("40014", "It is not there."))
	body := r.do(http.MethodPost, "/portal/imports", with(importValues, "location", "", "s3_location", "/b/o.vmdk")).Body.String()
	if !strings.Contains(body, `id="s3_location-wrong"><span>It is not there.`) {
		t.Error(body)
	}
}

func TestRefusedAltogether(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	w := r.do(http.MethodPost, "/portal/imports", with(importValues, "min_ram", "-1", "min_disk", "1.5"))
	wantText(t, w, "A whole number from 0 to 2147483647.")
	if len(r.api.bodies) != 1 || strings.Count(w.Body.String(), `aria-invalid="true"`) != 2 {
		t.Errorf("%d calls: %s", len(r.api.bodies), w.Body)
	}
	w = r.do(http.MethodPost, "/portal/imports", importValues, "Cookie", tokenCookie+"=ended")
	wantText(t, w, "Your token has ended", "What you entered is kept.")
	if !strings.Contains(w.Body.String(), `value=" web 01 "`) {
		t.Error("the name is lost")
	}
	w = r.do(http.MethodPost, "/portal/imports", url.Values{}, "Content-Type", "application/x-www-form-urlencoded; charset=%%%")
	if w.Code >= 500 {
		t.Errorf("a form that is none: %d", w.Code)
	}
	r.api.on("POST /v1/imageimport", 503, said("50301", "Later."))
	if w = r.do(http.MethodPost, "/portal/imports", importValues); w.Code != 503 {
		t.Errorf("away: %d", w.Code)
	}
	wantText(t, w, "Later.")
}

func TestActions(t *testing.T) {
	t.Parallel()
	for _, action := range []string{"/portal/imports/" + taskA + "/cancel", "/portal/imports/" + taskA + "/retry", "/portal/exports/" + taskA + "/cancel", "/portal/exports/" + taskA + "/retry"} {
		r := newRig(t)
		api := "POST " + strings.NewReplacer("/portal/imports", "/v1/imageimport", "/portal/exports", "/v1/imageexport").Replace(action)
		r.api.answers[api] = func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusAccepted) }
		w := r.do(http.MethodPost, action, url.Values{})
		if want := action[:strings.LastIndex(action, "/")]; w.Code != http.StatusSeeOther || w.Header().Get("Location") != want {
			t.Errorf("%s: %d to %q", action, w.Code, w.Header().Get("Location"))
		}
		r.api.on(api, 404, said("40402", "It has already finished."))
		w = r.do(http.MethodPost, action, url.Values{})
		wantText(t, w, "It has already finished.")
		checkHTML(t, action, w.Body.String())
	}
	r := newRig(t)
	if w := r.get("/portal/imports/" + taskB + "/cancel"); w.Header().Get("Location") != "/portal/imports/"+taskB {
		t.Errorf("to cancel what has failed: %d", w.Code)
	}
}

func FuzzImportForm(f *testing.F) {
	f.Add("disk=data&name=a&location=%2Fv2&min_ram=1")
	f.Add("min_ram=99999999999999999999&min_disk=-1&os_type=%00")
	r := newRig(f)
	r.api.on("POST /v1/imageimport", 400, said("40004", "No."))
	r.api.on("POST /v1/expansionstorageimageimport", 400, said("40004", "No."))
	f.Fuzz(func(t *testing.T, query string) {
		values, err := url.ParseQuery(query)
		if err != nil {
			return
		}
		r.api.mu.Lock()
		r.api.calls, r.api.bodies = nil, nil
		r.api.mu.Unlock()
		w := r.do(http.MethodPost, "/portal/imports", values)
		if w.Code >= 500 {
			t.Fatalf("%d: %s", w.Code, w.Body)
		}
		checkHTML(t, query, w.Body.String())
		for _, body := range r.api.bodies {
			if body != "" && !json.Valid([]byte(body)) {
				t.Errorf("sent %s", body)
			}
		}
	})
}
