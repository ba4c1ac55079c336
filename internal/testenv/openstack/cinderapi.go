package openstack

import (
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// handler answers as Cinder's API does, in the part of it that Nova uses and the upload
// of a volume.
func (v *Volumes) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) { v.versions(w, http.StatusMultipleChoices) })
	mux.HandleFunc("GET /v3/{$}", func(w http.ResponseWriter, _ *http.Request) { v.versions(w, http.StatusOK) })
	for pattern, h := range map[string]func(http.ResponseWriter, *http.Request, *Volume){
		"GET /volumes/{id}":         v.showVolume,
		"POST /volumes/{id}/action": v.actOnVolume,
	} {
		mux.HandleFunc(below(pattern), v.inProject(func(w http.ResponseWriter, r *http.Request) {
			if vol := v.volume(r.PathValue("project"), r.PathValue("id")); vol != nil {
				h(w, r, vol)
			} else {
				refuse(w, http.StatusNotFound, "Volume "+r.PathValue("id")+" could not be found.")
			}
		}))
	}
	for pattern, h := range map[string]func(http.ResponseWriter, *http.Request, *attachment){
		"GET /attachments/{id}":         v.showAttachment,
		"PUT /attachments/{id}":         v.connect,
		"POST /attachments/{id}/action": v.complete,
		"DELETE /attachments/{id}":      v.detach,
	} {
		mux.HandleFunc(below(pattern), v.inProject(func(w http.ResponseWriter, r *http.Request) {
			v.mu.Lock()
			defer v.mu.Unlock()
			if a := v.attachments[r.PathValue("id")]; a != nil && a.volume.ProjectID == r.PathValue("project") {
				h(w, r, a)
			} else {
				refuse(w, http.StatusNotFound, "Volume attachment could not be found.")
			}
		}))
	}
	mux.HandleFunc(below("POST /attachments"), v.inProject(v.attach))
	return mux
}

// below returns the pattern of what is in a project.
func below(pattern string) string { return strings.Replace(pattern, " ", " /v3/{project}", 1) }

// inProject has h answer those whose token is of the path's project.
func (v *Volumes) inProject(h http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		project, err := v.authenticate(r.Context(), r.Header.Get("X-Auth-Token"))
		if refused, ok := errors.AsType[*refusal](err); ok && refused.status == http.StatusNotFound {
			w.Header().Set("WWW-Authenticate", `Keystone uri="`+v.cloud.KeystoneURL+`"`)
			refuse(w, http.StatusUnauthorized, "The request you have made requires authentication.")
			return
		}
		if err != nil {
			refuse(w, http.StatusServiceUnavailable, "Keystone cannot be asked about the token.")
			return
		}
		if project != r.PathValue("project") {
			refuse(w, http.StatusBadRequest, "Malformed request url")
			return
		}
		h(w, r)
	}
}

// versions answers with the least version that Nova works with.
func (v *Volumes) versions(w http.ResponseWriter, status int) {
	links := []object{{"rel": "self", "href": v.server.URL + "/v3/"}}
	answer(w, status, object{"versions": []object{
		{"id": "v3.0", "status": "CURRENT", "version": "3.44", "min_version": "3.0", "links": links},
	}})
}

func (v *Volumes) volume(project, id string) *Volume {
	v.mu.Lock()
	defer v.mu.Unlock()
	if vol := v.volumes[id]; vol != nil && vol.ProjectID == project {
		return vol
	}
	return nil
}

func (v *Volumes) showVolume(w http.ResponseWriter, _ *http.Request, vol *Volume) {
	v.mu.Lock()
	defer v.mu.Unlock()
	attached := []object{}
	for _, a := range v.attachments {
		if a.volume == vol && a.status == "attached" {
			attached = append(attached, object{
				"id": vol.ID, "volume_id": vol.ID, "attachment_id": a.id, "server_id": a.server, "device": a.device, "host_name": nil,
			})
		}
	}
	answer(w, http.StatusOK, object{"volume": object{
		"id": vol.ID, "name": vol.Name, "description": nil, "status": vol.status, "size": vol.gibibytes(),
		"bootable": "true", "encrypted": false, "multiattach": false, "availability_zone": "nova", "volume_type": "__DEFAULT__",
		"snapshot_id": nil, "source_volid": nil, "metadata": object{}, "attachments": attached,
		"created_at": timestamp(vol.created), "updated_at": timestamp(vol.created), "os-vol-tenant-attr:tenant_id": vol.ProjectID,
	}})
}

// gibibytes is the volume's size as Cinder has sizes: whole GiB.
func (vol *Volume) gibibytes() int { return max(1, (len(vol.content)+1<<30-1)>>30) }

// actOnVolume uploads a volume as an image.
func (v *Volumes) actOnVolume(w http.ResponseWriter, r *http.Request, vol *Volume) {
	var body struct {
		Upload *struct {
			ImageName       string          `json:"image_name"`
			ContainerFormat string          `json:"container_format"`
			DiskFormat      string          `json:"disk_format"`
			Force           json.RawMessage // also the string "True"
		} `json:"os-volume_upload_image"`
	}
	if err := json.NewDecoder(r.Body).Decode(&body); err != nil || body.Upload == nil || body.Upload.ImageName == "" {
		refuse(w, http.StatusBadRequest, "Invalid input received: there is no such action.")
		return
	}
	if f := body.Upload.DiskFormat; f != "" && f != "raw" {
		refuse(w, http.StatusBadRequest, "Invalid disk_format: this one converts nothing.")
		return
	}
	u, status, retryAfter := vol.admit()
	if status != 0 {
		if retryAfter > 0 {
			w.Header().Set("Retry-After", strconv.Itoa(int(retryAfter.Seconds())))
		}
		refuse(w, status, "This request was rate-limited.")
		return
	}
	force, _ := strconv.ParseBool(strings.Trim(string(body.Upload.Force), `"`)) // absent is false
	if err := vol.beginUpload(force); err != nil {
		refuse(w, http.StatusBadRequest, "Invalid volume: "+err.Error())
		return
	}
	about := object{"name": body.Upload.ImageName, "disk_format": "raw", "container_format": "bare"}
	if u.SyncStatusReason != "" {
		about["sync_status_reason"] = u.SyncStatusReason
	}
	token := r.Header.Get("X-Auth-Token")
	image, err := v.cloud.createImage(r.Context(), token, about)
	if err != nil {
		v.mu.Lock()
		defer v.mu.Unlock()
		vol.rest()
		refuse(w, http.StatusInternalServerError, err.Error())
		return
	}
	v.uploads.Go(func() { v.upload(vol, u, token, image) })
	answer(w, http.StatusAccepted, object{"os-volume_upload_image": object{
		"id": vol.ID, "image_id": image, "image_name": body.Upload.ImageName, "status": "uploading", "size": vol.gibibytes(),
		"container_format": "bare", "disk_format": "raw", "display_description": nil, "volume_type": nil, "updated_at": timestamp(time.Now()),
	}})
}

// attach reserves a volume for a server.
func (v *Volumes) attach(w http.ResponseWriter, r *http.Request) {
	var body struct {
		Attachment struct {
			Volume string `json:"volume_uuid"`
			Server string `json:"instance_uuid"`
		}
	}
	if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
		refuse(w, http.StatusBadRequest, err.Error())
		return
	}
	vol := v.volume(r.PathValue("project"), body.Attachment.Volume)
	if vol == nil {
		refuse(w, http.StatusNotFound, "Volume "+body.Attachment.Volume+" could not be found.")
		return
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if vol.status != "available" {
		refuse(w, http.StatusBadRequest, "Invalid volume: it is "+vol.status)
		return
	}
	a := &attachment{id: newUUID(), server: body.Attachment.Server, volume: vol, status: "reserved"}
	v.attachments[a.id] = a
	vol.rest()
	v.showAttachment(w, r, a)
}

// showAttachment, like those below, is called with the lock.
func (v *Volumes) showAttachment(w http.ResponseWriter, _ *http.Request, a *attachment) {
	connection := object{}
	if a.status != "reserved" {
		connection = object{"driver_volume_type": "fake", "attachment_id": a.id}
	}
	answer(w, http.StatusOK, object{"attachment": object{
		"id": a.id, "volume_id": a.volume.ID, "instance": a.server, "status": a.status, "attach_mode": "rw",
		"attached_at": "", "detached_at": "", "connection_info": connection,
	}})
}

// connect notes where the server has its volume, and says how it gets to it.
func (v *Volumes) connect(w http.ResponseWriter, r *http.Request, a *attachment) {
	var body struct {
		Attachment struct{ Connector struct{ Mountpoint string } }
	}
	if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
		refuse(w, http.StatusBadRequest, err.Error())
		return
	}
	a.status, a.device = "attaching", body.Attachment.Connector.Mountpoint
	a.volume.rest()
	v.showAttachment(w, r, a)
}

// complete is the only action there is on attachments.
func (v *Volumes) complete(w http.ResponseWriter, _ *http.Request, a *attachment) {
	a.status = "attached"
	a.volume.rest()
	w.WriteHeader(http.StatusNoContent)
}

func (v *Volumes) detach(w http.ResponseWriter, _ *http.Request, a *attachment) {
	delete(v.attachments, a.id)
	a.volume.rest()
	answer(w, http.StatusOK, object{"attachments": []object{}})
}

// timestamp is a time as Cinder writes it, in UTC without saying so.
func timestamp(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000000") }

// refuse answers with an error in Cinder's form: its kind, and in that code and message.
func refuse(w http.ResponseWriter, status int, message string) {
	kind, ok := map[int]string{
		http.StatusBadRequest: "badRequest", http.StatusUnauthorized: "error", http.StatusNotFound: "itemNotFound",
		http.StatusRequestEntityTooLarge: "overLimitFault", http.StatusTooManyRequests: "overLimitFault",
	}[status]
	if !ok {
		kind = "computeFault" // Cinder's word for all others, inherited from Nova
	}
	answer(w, status, object{kind: object{"code": status, "message": message}})
}

// answer writes v as JSON.
func answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // fails if nobody listens any more
}
