package servers

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
)

// volume is what block storage says of one.
type volume struct {
	ID       string `json:"id"`
	Name     string `json:"name"`
	Status   string `json:"status"`
	Bootable string `json:"bootable"` // "true" or "false"
	Updated  moment `json:"updated_at"`
	device   string // where the server sees it, as compute knows it
}

// uploading is the status of a volume of which an image is being made.
const uploading = "uploading"

func (c *Cloud) volume(ctx context.Context, id string) (*volume, error) {
	var answer struct {
		Volume volume `json:"volume"`
	}
	if !anID.MatchString(id) {
		return nil, ErrBootVolume.Saw("%q is no id of a volume", id)
	}
	_, err := c.do(ctx, call{service: TypeBlockStorage, method: http.MethodGet, path: "volumes/" + id, ok: http.StatusOK, into: &answer})
	answer.Volume.ID = id
	return &answer.Volume, err
}

// bootVolume finds the volume that s boots from, or takes the one that the customer
// has named. It does not guess.
func (c *Cloud) bootVolume(ctx context.Context, s *Server, named string) (*volume, error) {
	switch {
	case named != "" && !slices.Contains(s.Volumes, named):
		return nil, ErrBootVolume.Saw("%q is not one of its volumes, which are: %s", named, strings.Join(s.Volumes, ", "))
	case named != "":
		return c.volume(ctx, named)
	case len(s.Volumes) == 0:
		return nil, ErrBootVolume.Saw("the cloud shows no volume of it")
	case len(s.Volumes) == 1:
		return c.volume(ctx, s.Volumes[0])
	}
	devices, err := c.devices(ctx, s.ID)
	if err != nil {
		return nil, err
	}
	var all []*volume
	for _, id := range s.Volumes {
		v, err := c.volume(ctx, id)
		if err != nil {
			return nil, err
		}
		v.device = devices[id]
		all = append(all, v)
	}
	if v := boots(all); v != nil {
		return v, nil
	}
	var list []string
	for _, v := range all {
		list = append(list, fmt.Sprintf("%s %q at %q, bootable: %s", v.ID, v.Name, v.device, v.Bootable))
	}
	return nil, ErrBootVolume.Saw("%s", strings.Join(list, "; "))
}

// devices returns where a server sees its volumes, by their ids.
func (c *Cloud) devices(ctx context.Context, id string) (map[string]string, error) {
	var answer struct {
		Attachments []struct {
			Volume string `json:"volumeId"`
			Device string `json:"device"`
		} `json:"volumeAttachments"`
	}
	_, err := c.do(ctx, call{service: TypeCompute, method: http.MethodGet, path: "servers/" + id + "/os-volume_attachments", ok: http.StatusOK, into: &answer})
	devices := map[string]string{}
	for _, a := range answer.Attachments {
		devices[a.Volume] = a.Device
	}
	return devices, err
}

// boots returns the only bootable volume at a server's first disk; if nothing is known
// of where they are, the only bootable one; nil if there is no such, or several. A data
// disk may be bootable, too, as one that was made of an image is.
func boots(all []*volume) *volume {
	bootable := slices.DeleteFunc(slices.Clone(all), func(v *volume) bool { return v.Bootable != "true" })
	first := slices.DeleteFunc(slices.Clone(bootable), func(v *volume) bool {
		return !slices.Contains([]string{"/dev/vda", "/dev/sda", "/dev/xvda", "/dev/hda"}, v.device)
	})
	switch {
	case len(first) == 1:
		return first[0]
	case len(first) == 0 && len(bootable) == 1 && bootable[0].device == "":
		return bootable[0]
	}
	return nil
}
