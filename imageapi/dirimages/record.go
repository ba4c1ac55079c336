package dirimages

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"strconv"
	"time"

	"vmimport/imageapi"
)

const (
	recordFile = "image.json"
	// removedFile is the record of an image that is being removed.
	removedFile = ".removed.json"
	// draftFile is there while an image is being written.
	draftFile = ".draft.json"

	// maxRecordBytes bounds what is read of a record; ours have a few KiB.
	maxRecordBytes = 1 << 20

	propertyPrefix = "vmimport_"
	importProperty = propertyPrefix + "import_id"
)

// glanceTime is the form of times in the Image service API v2.
const glanceTime = "2006-01-02T15:04:05Z"

// newRecord is an image as "Show image" of the Image service API v2 gives it,
// where further properties stand beside the others. Facts of a disk have the
// prefix vmimport_disk_<n>_. What Glance has and nobody knows here (checksum,
// os_hash_value) is left out: the hashes that were checked are the source's.
func newRecord(spec imageapi.Spec, sizes []int64, disks []imageapi.DiskFacts, now time.Time) map[string]any {
	rec := make(map[string]any)
	for _, properties := range []map[string]string{spec.WellKnown, spec.Properties} {
		for k, v := range properties {
			rec[k] = v
		}
	}
	for i, d := range disks {
		prefix := propertyPrefix + "disk_" + strconv.Itoa(i+1) + "_"
		for k, v := range d.Properties {
			rec[prefix+k] = v
		}
		rec[prefix+"virtual_size"] = strconv.FormatInt(d.VirtualSize, 10)
	}
	if spec.OSType != "" {
		rec["os_type"] = spec.OSType
	}
	// Last, so that no property can take the place of one of these.
	maps.Copy(rec, map[string]any{
		"id":               spec.ImageID,
		"name":             spec.Name,
		"status":           "active",
		"visibility":       "private",
		"protected":        false,
		"os_hidden":        false,
		"owner":            spec.Owner,
		"tags":             []string{},
		"container_format": "bare",
		"disk_format":      spec.Format,
		"size":             sizes[0],
		"virtual_size":     disks[0].VirtualSize,
		"min_ram":          spec.MinRAM,
		"min_disk":         spec.MinDisk,
		"created_at":       spec.CreatedAt.UTC().Format(glanceTime),
		"updated_at":       now.UTC().Format(glanceTime),
		"self":             "/v2/images/" + spec.ImageID,
		"file":             "/v2/images/" + spec.ImageID + "/file",
		"schema":           "/v2/schemas/image",
		importProperty:     spec.ImportID,
	})
	return rec
}

// record is what is read back of one.
type record struct {
	Owner    string `json:"owner"`
	ImportID string `json:"vmimport_import_id"`
}

func readRecord(dir *os.Root, name string) (record, error) {
	b, err := readRecordFile(dir, name)
	if err != nil {
		return record{}, err
	}
	var rec record
	if err := json.Unmarshal(b, &rec); err != nil {
		return record{}, fmt.Errorf("parse image record: %w", err)
	}
	return rec, nil
}

// readRecordFile returns all of a record, as long as that may be.
func readRecordFile(dir *os.Root, name string) ([]byte, error) {
	f, err := dir.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxRecordBytes))
}

// draft says what the disk files of an attempt are. It is what a later attempt
// needs to know before it goes on with them.
type draft struct {
	Format string            `json:"format"`
	Disks  map[int]diskDraft `json:"disks"`
}

type diskDraft struct {
	Size int64 `json:"size"`
	// Floor is from where the first writer of the file would have liked to go on
	// with another file, which was not here. The caller may still believe in that
	// number when the first writer dies, so only higher ones are known to be about
	// this file.
	Floor int64 `json:"floor"`
}

// readDraft returns the draft in an attempt's directory. One that is not there,
// that cannot be read or that is about another format is like none: the disks
// are written anew.
func readDraft(dir *os.Root, format string) draft {
	var d draft
	b, err := dir.ReadFile(draftFile)
	if err != nil || json.Unmarshal(b, &d) != nil || d.Format != format || d.Disks == nil {
		return draft{Format: format, Disks: make(map[int]diskDraft)}
	}
	return d
}

// writeJSON makes v the contents of a file, whole and durable. The file's name
// is durable when the directory is.
func writeJSON(dir *os.Root, name string, v any) (err error) {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	const temporary = ".new"
	f, err := dir.OpenFile(temporary, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, fileMode)
	if err != nil {
		return err
	}
	_, err = f.Write(append(b, '\n'))
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return dir.Rename(temporary, name)
}
