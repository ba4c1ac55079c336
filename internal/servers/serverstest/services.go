package serverstest

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"
)

func (c *Cloud) serve(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, i := range c.images { // and with them their volumes
		c.advance(i)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /identity/v3/auth/tokens", c.showToken)
	mux.HandleFunc("POST /identity/v3/auth/tokens", c.giveToken)
	base := "/compute/v2/" + Project
	mux.HandleFunc("GET "+base+"/servers/{id}", c.showServer)
	mux.HandleFunc("GET "+base+"/servers/{id}/os-volume_attachments", c.showAttachments)
	mux.HandleFunc("POST "+base+"/servers/{id}/action", c.serverAction)
	base = "/volume/v2/" + Project
	mux.HandleFunc("GET "+base+"/volumes/{id}", c.showVolume)
	mux.HandleFunc("POST "+base+"/volumes/{id}/action", c.uploadVolume)
	mux.HandleFunc("GET /image/v2/images", c.listImages)
	mux.HandleFunc("GET /image/v2/images/{id}", c.showImage)
	mux.HandleFunc("PATCH /image/v2/images/{id}", c.patchImage)
	if !strings.HasPrefix(r.URL.Path, "/identity/") && r.Header.Get("X-Auth-Token") != c.token {
		refuse(w, http.StatusUnauthorized, "unauthorized", "The request you have made requires authentication.")
		return
	}
	mux.ServeHTTP(w, r)
}

func (c *Cloud) tokenBody(scope map[string]any) map[string]any {
	endpoint := func(kind, url string) map[string]any {
		return map[string]any{"type": kind, "endpoints": []map[string]any{
			{"interface": "public", "region": "jp-east-1", "region_id": "jp-east-1", "url": "http://cloud.test" + url},
			{"interface": "internal", "region": "jp-east-1", "url": "http://inside.test" + url},
		}}
	}
	token := map[string]any{"user": map[string]string{"id": "u1", "name": "alice"}, "catalog": []any{
		endpoint("compute", "/compute/v2/"+Project), endpoint("volumev2", "/volume/v2/"+Project), endpoint("image", "/image"),
	}}
	maps.Copy(token, scope)
	return map[string]any{"token": token}
}

func (c *Cloud) showToken(w http.ResponseWriter, r *http.Request) {
	domain := map[string]any{"id": "d1", "name": "contract01"}
	subject := r.Header.Get("X-Subject-Token")
	scopes := map[string]map[string]any{
		c.token:           {"project": map[string]any{"id": Project, "name": "web", "domain": domain}},
		TokenUnscoped:     {},
		TokenDomain:       {"domain": domain},
		TokenActsAsDomain: {"is_domain": true, "project": map[string]any{"id": "d1", "name": "contract01", "domain": nil}},
	}
	if scope, ok := scopes[subject]; ok && r.Header.Get("X-Auth-Token") == subject {
		answer(w, http.StatusOK, c.tokenBody(scope))
		return
	}
	refuse(w, http.StatusUnauthorized, "error", "no such token %s", subject)
}

func (c *Cloud) giveToken(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	if !strings.Contains(string(body), `"`+Password+`"`) {
		refuse(w, http.StatusUnauthorized, "error", "wrong: %s", body)
		return
	}
	w.Header().Set("X-Subject-Token", c.token)
	answer(w, http.StatusCreated, c.tokenBody(map[string]any{"project": map[string]any{"id": Project}}))
}

// advance ends what a server was at, if it is time.
func (s *Server) advance() {
	if s.next != "" && !time.Now().Before(s.done) {
		s.Status, s.Task, s.next = s.next, "", ""
	}
}

// find returns the server of a request, or says that there is none.
func (c *Cloud) find(w http.ResponseWriter, r *http.Request) *Server {
	s := c.servers[r.PathValue("id")]
	if s == nil {
		refuse(w, http.StatusNotFound, "itemNotFound", "Instance %s could not be found.", r.PathValue("id"))
		return nil
	}
	s.advance()
	return s
}

func (c *Cloud) showServer(w http.ResponseWriter, r *http.Request) {
	s := c.find(w, r)
	if s == nil {
		return
	}
	attached := []map[string]string{}
	for _, v := range s.Volumes {
		attached = append(attached, map[string]string{"id": v})
	}
	server := map[string]any{
		"id": s.ID, "name": s.Name, "tenant_id": s.Project, "status": s.Status, "created": "2026-01-02T03:04:05Z",
		"metadata": map[string]string{"admin_pass": AdminPass}, "adminPass": AdminPass,
		"image": "", "flavor": map[string]string{"id": "1102"}, "OS-EXT-AZ:availability_zone": "jp-east-1a",
		"OS-EXT-STS:vm_state": strings.ToLower(s.Status), "OS-EXT-STS:power_state": 1, "OS-EXT-STS:task_state": nil,
		"os-extended-volumes:volumes_attached": attached,
	}
	if s.Image != "" {
		server["image"] = map[string]any{"id": s.Image, "links": []any{}}
	}
	if s.Task != "" {
		server["OS-EXT-STS:task_state"] = s.Task
	}
	answer(w, http.StatusOK, map[string]any{"server": server})
}

func (c *Cloud) showAttachments(w http.ResponseWriter, r *http.Request) {
	s := c.find(w, r)
	if s == nil {
		return
	}
	list := []map[string]string{}
	for i, v := range s.Volumes {
		a := map[string]string{"id": v, "volumeId": v, "serverId": s.ID}
		if i < len(s.Devices) {
			a["device"] = s.Devices[i]
		}
		list = append(list, a)
	}
	answer(w, http.StatusOK, map[string]any{"volumeAttachments": list})
}

func (c *Cloud) serverAction(w http.ResponseWriter, r *http.Request) {
	s := c.find(w, r)
	if s == nil {
		return
	}
	var body map[string]struct {
		Name     string            `json:"name"`
		Metadata map[string]string `json:"metadata"`
	}
	_ = json.NewDecoder(r.Body).Decode(&body)
	if image, ok := body["createImage"]; ok {
		c.snapshot(w, s, image.Name, image.Metadata)
		return
	}
	verb, from, to, task := "stop", "ACTIVE", "SHUTOFF", "powering-off"
	if _, ok := body["os-start"]; ok {
		verb, from, to, task = "start", "SHUTOFF", "ACTIVE", "powering-on"
	}
	switch {
	case s.Locked:
		refuse(w, http.StatusConflict, "conflictingRequest", "Instance %s is locked", s.ID)
	case s.Status != from:
		refuse(w, http.StatusConflict, "conflictingRequest", "Cannot '%s' instance %s while it is in vm_state %s", verb, s.ID, strings.ToLower(s.Status))
	case s.Task != "":
		refuse(w, http.StatusConflict, "conflictingRequest", "Cannot '%s' instance %s while it is in task_state %s", verb, s.ID, s.Task)
	default:
		if !s.Stuck {
			s.Task, s.next, s.done = task, to, time.Now().Add(c.PowerTakes)
		}
		w.WriteHeader(http.StatusAccepted)
	}
}

func (c *Cloud) snapshot(w http.ResponseWriter, s *Server, name string, metadata map[string]string) {
	properties := map[string]string{"instance_uuid": s.ID}
	if base := c.images[s.Image]; base != nil {
		maps.Copy(properties, base.Properties)
		properties["instance_uuid"] = s.ID
	}
	maps.Copy(properties, metadata)
	if id, ok := c.make(w, name, properties, ""); ok {
		w.Header().Set("Location", "http://inside.test/image/images/"+id)
		w.WriteHeader(http.StatusAccepted)
	}
}

// make begins an image, if the limit allows.
func (c *Cloud) make(w http.ResponseWriter, name string, properties map[string]string, volume string) (string, bool) {
	recent := []time.Time{}
	for _, i := range c.images {
		if time.Since(i.Created) < time.Hour && i.Owner == Project {
			recent = append(recent, i.Created)
		}
	}
	if c.Limit > 0 && len(recent) >= c.Limit {
		oldest := slices.MinFunc(recent, time.Time.Compare)
		w.Header().Set("Retry-After", fmt.Sprint(int(time.Until(oldest.Add(time.Hour)).Seconds())+1))
		refuse(w, http.StatusTooManyRequests, "overLimit", "This request was rate-limited.")
		return "", false
	}
	id := fmt.Sprintf("00000000-0000-0000-0000-%012d", len(c.images)+1)
	c.images[id] = &Image{ID: id, Name: name, Status: "queued", Owner: Project, Created: time.Now().UTC(), Properties: properties, volume: volume}
	return id, true
}

// advance makes an image what it should be by now. When its bytes are there, its
// properties are again what they were when these began to come, as Glance does it.
func (c *Cloud) advance(i *Image) {
	age := time.Since(i.Created)
	if i.Status == "queued" && age >= c.QueuedFor {
		i.Status, i.atStart, i.saved = "saving", maps.Clone(i.Properties), true
	}
	if i.Status == "saving" && i.saved && age >= c.QueuedFor+c.SavingFor {
		i.Status, i.Properties = "active", i.atStart
		if v := c.volumes[i.volume]; v != nil {
			v.Status, v.Updated = "in-use", time.Now()
		}
	}
}

func (c *Cloud) showVolume(w http.ResponseWriter, r *http.Request) {
	v := c.volumes[r.PathValue("id")]
	if v == nil {
		refuse(w, http.StatusNotFound, "itemNotFound", "Volume %s could not be found.", r.PathValue("id"))
		return
	}
	answer(w, http.StatusOK, map[string]any{"volume": map[string]any{
		"id": v.ID, "name": v.Name, "status": v.Status, "bootable": fmt.Sprint(v.Bootable), "updated_at": v.Updated.UTC().Format("2006-01-02T15:04:05.000000"),
	}})
}

func (c *Cloud) uploadVolume(w http.ResponseWriter, r *http.Request) {
	var body struct {
		Upload struct {
			Name  string `json:"image_name"`
			Disk  string `json:"disk_format"`
			Force bool   `json:"force"`
		} `json:"os-volume_upload_image"`
	}
	_ = json.NewDecoder(r.Body).Decode(&body)
	v := c.volumes[r.PathValue("id")]
	if v == nil || !body.Upload.Force || v.Status != "in-use" || body.Upload.Disk != "raw" {
		refuse(w, http.StatusBadRequest, "badRequest", "Invalid volume: Volume %s status must be available or in-use", r.PathValue("id"))
		return
	}
	id, ok := c.make(w, body.Upload.Name, maps.Clone(v.Properties), v.ID)
	if !ok {
		return
	}
	v.Status, v.Updated = "uploading", time.Now()
	answer(w, http.StatusAccepted, map[string]any{"os-volume_upload_image": map[string]any{"id": v.ID, "image_id": id, "status": "uploading"}})
}

func (i *Image) document() map[string]any {
	doc := map[string]any{"id": i.ID, "name": i.Name, "status": i.Status, "owner": i.Owner, "created_at": i.Created.UTC().Format(time.RFC3339)}
	for k, v := range i.Properties {
		doc[k] = v
	}
	return doc
}

func (c *Cloud) showImage(w http.ResponseWriter, r *http.Request) {
	i := c.images[r.PathValue("id")]
	if i == nil {
		http.Error(w, "<html>No image found "+AdminPass, http.StatusNotFound)
		return
	}
	answer(w, http.StatusOK, i.document())
}

// listImages has pages of two.
func (c *Cloud) listImages(w http.ResponseWriter, r *http.Request) {
	list := slices.SortedFunc(maps.Values(c.images), func(a, b *Image) int {
		if d := b.Created.Compare(a.Created); d != 0 {
			return d
		}
		return strings.Compare(b.ID, a.ID)
	})
	query := r.URL.Query()
	marker := query.Get("marker")
	for _, control := range []string{"marker", "limit", "sort_key", "sort_dir"} {
		query.Del(control)
	}
	page, next := []map[string]any{}, ""
	for _, i := range list {
		doc := i.document()
		matches := true
		for key := range query {
			matches = matches && fmt.Sprint(doc[key]) == query.Get(key)
		}
		switch {
		case marker != "":
			if i.ID == marker {
				marker = ""
			}
		case matches && len(page) == 2:
			next = "/v2/images?elsewhere"
		case matches:
			page = append(page, doc)
		}
	}
	body := map[string]any{"images": page}
	if next != "" {
		body["next"] = next
	}
	answer(w, http.StatusOK, body)
}

func (c *Cloud) patchImage(w http.ResponseWriter, r *http.Request) {
	i := c.images[r.PathValue("id")]
	var changes []struct{ Op, Path, Value string }
	err := json.NewDecoder(r.Body).Decode(&changes)
	if i == nil || err != nil || r.Header.Get("Content-Type") != "application/openstack-images-v2.1-json-patch" {
		http.Error(w, "no", http.StatusBadRequest)
		return
	}
	i.Properties = maps.Clone(i.Properties)
	if i.Properties == nil {
		i.Properties = map[string]string{}
	}
	for _, change := range changes {
		i.Properties[strings.TrimPrefix(change.Path, "/")] = change.Value
	}
	answer(w, http.StatusOK, i.document())
}
