package imageapi

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"vmimport/internal/fault"
)

var errRecord = fault.New(fault.Invalid, "image_record_too_large", "The image has more properties than can be exported.").
	Try("Remove properties from the image.")

// FactsOf reads what "Show image" of the Image service API v2 says of an image, and
// makes the record of it that may leave the service. An image with too many properties
// is an error of kind fault.Invalid.
func FactsOf(shown []byte) (Facts, error) {
	var members map[string]json.RawMessage
	if err := json.Unmarshal(shown, &members); err != nil {
		return Facts{}, fmt.Errorf("parse image: %w", err)
	}
	if members == nil {
		return Facts{}, errors.New("parse image: it is null")
	}
	maps.DeleteFunc(members, func(name string, _ json.RawMessage) bool { return stays(name) })
	record, err := json.Marshal(members)
	if err != nil {
		return Facts{}, fmt.Errorf("write image record: %w", err)
	}
	if len(record) > MaxRecordBytes {
		return Facts{}, errRecord.Saw("%d bytes as JSON; the most is %d", len(record), MaxRecordBytes)
	}
	f := Facts{Record: record}
	var algo, value, checksum string // the last is an MD5
	// One by one, since a struct would also take "Owner" for "owner".
	for name, into := range map[string]any{
		"id": &f.ImageID, "name": &f.Name, "owner": &f.Owner, "disk_format": &f.Format, "container_format": &f.ContainerFormat,
		"min_ram": &f.MinRAM, "min_disk": &f.MinDisk, "os_type": &f.OSType,
		"os_hash_algo": &algo, "os_hash_value": &value, "checksum": &checksum,
	} {
		if member, ok := members[name]; ok {
			if err := json.Unmarshal(member, into); err != nil {
				return Facts{}, fmt.Errorf("parse image: %s: %w", name, err)
			}
		}
	}
	if f.HashName, f.Hash = usable(algo, value); f.Hash == "" {
		f.HashName, f.Hash = usable("md5", checksum)
	}
	return f, nil
}

// local are members that mean something in one Glance only. The last three say where it
// keeps the data, perhaps with the store's password.
var local = []string{"self", "file", "schema", "stores", "direct_url", "locations"}

// stays reports whether a member is for the image service alone: ours, Glance's own, or
// one that is local.
func stays(name string) bool {
	return strings.HasPrefix(name, "vmimport_") || strings.HasPrefix(name, "os_glance_") || slices.Contains(local, name)
}

// hashBytes are the lengths of the hashes that Facts can have.
var hashBytes = map[string]int{"md5": 16, "sha256": 32, "sha512": 64}

// usable returns a hash in lower case, and nothing if it is none that Facts can have.
func usable(name, sum string) (string, string) {
	if b, err := hex.DecodeString(sum); err != nil || len(b) == 0 || len(b) != hashBytes[name] {
		return "", ""
	}
	return name, strings.ToLower(sum)
}
