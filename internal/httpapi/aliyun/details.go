package aliyun

import (
	"crypto/rand"
	"encoding/base32"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"vmimport/tasks"
)

// details are what a record keeps of a request for the answers of later ones, beyond what
// tasks.Spec has: its Details.
type details struct {
	Description     string `json:"description,omitempty"`
	Architecture    string `json:"architecture"`
	Platform        string `json:"platform"`
	BootMode        string `json:"boot_mode"`
	LicenseType     string `json:"license_type,omitempty"`
	ResourceGroupID string `json:"resource_group_id,omitempty"`
	NvmeSupport     string `json:"nvme_support,omitempty"`
	ImdsSupport     string `json:"imds_support,omitempty"`
	Tags            []tag  `json:"tags,omitempty"`
	Disks           []disk `json:"disks"` // one for each of tasks.Spec.Disks
}

type tag struct {
	Key   string `json:"key"`
	Value string `json:"value"`
}

// disk is what was asked for. The object's own place may be another: see ram.Bucket.
type disk struct {
	Bucket string `json:"bucket"`
	Object string `json:"object"`
	Format string `json:"format,omitempty"` // as asked for, in any casing; empty: detect
	GiB    int64  `json:"gib,omitempty"`    // as asked for; 0: what the image has
	Device string `json:"device"`
}

func detailsOf(imp *tasks.Task) (*details, error) {
	var d details
	if err := json.Unmarshal(imp.Details, &d); err != nil {
		return nil, fmt.Errorf("decode details of import %s: %w", imp.ID, err)
	}
	if len(d.Disks) != len(imp.Disks) {
		return nil, fmt.Errorf("decode details of import %s: %d disks", imp.ID, len(d.Disks))
	}
	return &d, nil
}

// gib is the size of disk i in GiB: as asked for, or that of the image, rounded up, but no
// less than the smallest disk has. Of an image that only all of the object tells the size
// of, it is known when the import has come to its end.
func (d *details) gib(imp *tasks.Task, i int) int64 {
	if n := d.Disks[i].GiB; n > 0 {
		return n
	}
	size := imp.Disks[i].VirtualBytes
	if imp.Result != nil {
		size = max(size, slices.Max(imp.Result.Disks[i].VirtualSizes))
	}
	return max((size+gibibyte-1)/gibibyte, smallestDisk)
}

// smallestDisk is the least size of a disk, in GiB.
const smallestDisk = 5

// A task and its image have ids that end in the same 20 letters and digits.
const (
	taskPrefix  = "t-"
	imagePrefix = "m-"
	idLength    = 20
)

// newID returns 20 random lower-case letters and digits: 100 bits.
func newID() string {
	var b [13]byte
	_, _ = rand.Read(b[:]) // never fails
	return strings.ToLower(base32.HexEncoding.EncodeToString(b[:]))[:idLength]
}

// taskOfImage returns the task, and so the import, that an image comes from; ok is false
// for what is no id of an image.
func taskOfImage(imageID string) (id tasks.ID, ok bool) {
	rest, ok := strings.CutPrefix(imageID, imagePrefix)
	if !ok || !wellFormed(rest) {
		return "", false
	}
	return tasks.ID(taskPrefix + rest), true
}

// imageOf returns the id that customers know an import's image under.
func imageOf(imp *tasks.Task) string {
	return imagePrefix + strings.TrimPrefix(string(imp.ID), taskPrefix)
}

// isTask reports whether s has the form of a task's id.
func isTask(s string) bool {
	rest, ok := strings.CutPrefix(s, taskPrefix)
	return ok && wellFormed(rest)
}

// wellFormed reports whether s has the form of what NewID makes.
func wellFormed(s string) bool {
	return len(s) == idLength && strings.Trim(s, alphabet) == ""
}

const alphabet = "0123456789abcdefghijklmnopqrstuvwxyz"
