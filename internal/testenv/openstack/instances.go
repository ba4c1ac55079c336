package openstack

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"
)

// Instance is what Nova says about a server of a customer's.
type Instance struct {
	ID, Name, Status string
	TaskState        string `json:"OS-EXT-STS:task_state"` // "" at rest
	Volumes          []struct {
		ID string
	} `json:"os-extended-volumes:volumes_attached"`
	Fault struct{ Message string } // of Status ERROR
}

// CreateServer makes an image of content in the user's project, called "base of" and the
// name, and a server of it, which runs when it returns. The metadata may be nil.
func (n *Compute) CreateServer(ctx context.Context, u *User, name string, content []byte, metadata map[string]string) (id string, err error) {
	token, err := n.cloud.Token(ctx, u, ProjectScope)
	if err != nil {
		return "", err
	}
	about := object{"name": "base of " + name, "disk_format": "raw", "container_format": "bare"}
	image, err := n.cloud.createImage(ctx, token, about)
	if err != nil {
		return "", fmt.Errorf("create the image of server %s: %w", name, err)
	}
	if err := n.cloud.uploadImage(ctx, token, image, content); err != nil {
		return "", fmt.Errorf("upload the image of server %s: %w", name, err)
	}
	return n.boot(ctx, token, object{"name": name, "imageRef": image}, metadata)
}

// CreateVolumeServer makes a volume of content in the user's project, called "disk of"
// and the name, and a server that boots from it, which runs when it returns. The
// metadata may be nil.
func (n *Compute) CreateVolumeServer(ctx context.Context, u *User, name string, content []byte, metadata map[string]string) (id string, v *Volume, err error) {
	token, err := n.cloud.Token(ctx, u, ProjectScope)
	if err != nil {
		return "", nil, err
	}
	v = n.Volumes.Create(u, "disk of "+name, content)
	root := object{"uuid": v.ID, "source_type": "volume", "destination_type": "volume", "boot_index": 0}
	id, err = n.boot(ctx, token, object{"name": name, "block_device_mapping_v2": []object{root}}, metadata)
	return id, v, err
}

// bootTimeout is how long a server may take to run. On idle cores it is 2 s.
const bootTimeout = 2 * time.Minute

func (n *Compute) boot(ctx context.Context, token string, server object, metadata map[string]string) (id string, err error) {
	server["flavorRef"], server["networks"] = n.flavor, "none"
	if metadata != nil {
		server["metadata"] = metadata
	}
	var answer struct{ Server Instance }
	if err := n.call(ctx, http.MethodPost, "/servers", token, object{"server": server}, &answer); err != nil {
		return "", fmt.Errorf("create server %s: %w", server["name"], err)
	}
	id = answer.Server.ID
	err = poll(ctx, bootTimeout, func(ctx context.Context) (bool, error) {
		s, err := n.instance(ctx, token, id)
		if err == nil && s.Status == "ERROR" {
			err = errors.New(s.Fault.Message)
		}
		return err == nil && s.Status == "ACTIVE", err
	})
	if err != nil {
		return "", fmt.Errorf("boot server %s: %w", server["name"], err)
	}
	return id, nil
}

// Server returns what Nova tells its administrator about any project's server.
func (n *Compute) Server(ctx context.Context, id string) (*Instance, error) {
	token, err := n.cloud.Token(ctx, n.cloud.Admin, ProjectScope)
	if err != nil {
		return nil, err
	}
	return n.instance(ctx, token, id)
}

func (n *Compute) instance(ctx context.Context, token, id string) (*Instance, error) {
	var answer struct{ Server Instance }
	if err := n.call(ctx, http.MethodGet, "/servers/"+id, token, nil, &answer); err != nil {
		return nil, err
	}
	return &answer.Server, nil
}

// Disk returns the path of the file that is the server's disk, if it has no volume. The
// hypervisor has it from boot to end, starts with the bytes of the server's image, and
// reads it for each image of the server: a QCOW2 gives such an image, all else a raw one.
// Without the file, making an image fails.
func (n *Compute) Disk(server string) string { return n.cloud.path("nova/disks/" + server) }

// createImage makes an image in Glance without bytes, and returns its id.
func (c *Cloud) createImage(ctx context.Context, token string, properties object) (id string, err error) {
	var answer struct{ ID string }
	_, err = call(ctx, http.MethodPost, c.GlanceURL+"/v2/images", http.Header{"X-Auth-Token": {token}}, properties, &answer)
	return answer.ID, err
}

func (c *Cloud) uploadImage(ctx context.Context, token, id string, content []byte) error {
	url := c.GlanceURL + "/v2/images/" + id + "/file"
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, url, bytes.NewReader(content))
	if err != nil {
		return err
	}
	req.Header = http.Header{"X-Auth-Token": {token}, "Content-Type": {"application/octet-stream"}}
	resp, err := httpClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusNoContent {
		return &refusal{method: http.MethodPut, url: url, status: resp.StatusCode}
	}
	return nil
}

func (c *Cloud) deleteImage(ctx context.Context, token, id string) error {
	_, err := call(ctx, http.MethodDelete, c.GlanceURL+"/v2/images/"+id, http.Header{"X-Auth-Token": {token}}, nil, nil)
	return err
}
