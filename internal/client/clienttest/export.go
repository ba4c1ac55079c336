package clienttest

import (
	"encoding/json"
	"net/http"
	"strings"

	"vmimport/internal/client"
	"vmimport/tasks"
)

// export accepts any image, which is called web01, for a container that is there. As
// the real service does, it refuses a second export of it to the same container unless
// the first has failed or was canceled.
func (s *Service) export(w http.ResponseWriter, r *http.Request) {
	var body struct {
		ImageID          string               `json:"image_id"`
		StorageContainer string               `json:"storage_container"`
		Details          client.ExportDetails `json:"details"`
	}
	if json.NewDecoder(r.Body).Decode(&body) != nil {
		refuse(w, http.StatusBadRequest, "40016", "The request body is not a JSON object.")
		return
	}
	req := client.ExportRequest{ImageID: body.ImageID, StorageContainer: body.StorageContainer, ImageTo: body.Details.ImageTo}
	container, own := strings.CutPrefix(req.StorageContainer, "/v2/AUTH_"+Project+"/")
	switch {
	case !own:
		refuse(w, http.StatusBadRequest, "40004", "Parameter 'storage_container' has invalid value.")
		return
	case !s.containers[container]:
		refuse(w, http.StatusBadRequest, "40008", "The container does not exist.")
		return
	case s.occupied(req):
		refuse(w, http.StatusBadRequest, "40009", "Another export of the image goes to that container.")
		return
	}
	steps := Exports("web01")
	if plan := s.plans[req.ImageID]; plan != nil {
		steps = planned[client.Export](plan)
	}
	for i := range steps {
		steps[i].ImageID, steps[i].StorageContainer = req.ImageID, req.StorageContainer
		steps[i].Details = &body.Details
	}
	s.requested = append(s.requested, req)
	s.exports.register(w, stepsOf(steps))
}

// occupied reports whether the image is in the container, or on its way there.
func (s *Service) occupied(req client.ExportRequest) bool {
	for _, rec := range s.exports.records {
		e := rec.steps[0].(*client.Export)
		gone := e.State == tasks.Failed || e.State == tasks.Canceled
		if e.ImageID == req.ImageID && e.StorageContainer == req.StorageContainer && !gone {
			return true
		}
	}
	return false
}

// Exports are the steps of an export that succeeds, for another region.
func Exports(name string) []client.Export {
	const sum = "2fd4e1c67a2d28fced849ee1bb76e7391b93eb12"
	return []client.Export{
		{State: tasks.Queued, ImageName: name},
		{State: tasks.Processing, ImageName: name, Progress: 40, Extra: client.ExportExtra{
			Run: client.Run{Stage: tasks.StageCopying, DoneBytes: 40, TotalBytes: 100, Attempt: 1}}},
		{State: tasks.Succeeded, ImageName: name, Progress: 100, Extra: client.ExportExtra{
			Run: client.Run{DoneBytes: 100, TotalBytes: 100, Attempt: 1}, SourceFormat: "raw", VirtualSize: 10 << 30, Checksum: sum,
			Objects: []client.ExportedObject{{Name: name + ".img.gz", Bytes: 3 << 20, SHA1: sum}, {Name: name + ".json", Bytes: 412}},
		}},
	}
}
