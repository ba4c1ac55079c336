package imageapi_test

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"vmimport/imageapi"
	"vmimport/internal/fault"
)

func TestFactsOf(t *testing.T) {
	t.Parallel()
	got, err := imageapi.FactsOf([]byte(`{
		"id": "i", "name": "web 01", "owner": "p", "status": "active", "size": 9007199254740993, "virtual_size": null,
		"disk_format": "qcow2", "container_format": "bare", "min_ram": 512, "min_disk": 20, "os_type": "ubuntu",
		"base_image_id": "b", "hw_firmware_type": "uefi", "tags": ["a"],
		"self": "/v2/images/i", "file": "/v2/images/i/file", "schema": "/v2/schemas/image",
		"locations": [{"url": "swift+https://user:password@store/i"}], "direct_url": "rbd://i", "stores": "fast",
		"os_glance_failed_import": "", "vmimport_import_id": "x", "vmimport_attempt": "1"
	}`))
	if err != nil {
		t.Fatal(err)
	}
	const record = `{"base_image_id":"b","container_format":"bare","disk_format":"qcow2","hw_firmware_type":"uefi","id":"i",` +
		`"min_disk":20,"min_ram":512,"name":"web 01","os_type":"ubuntu","owner":"p","size":9007199254740993,"status":"active","tags":["a"],"virtual_size":null}`
	want := imageapi.Facts{
		ImageID: "i", Name: "web 01", Owner: "p", Format: "qcow2", ContainerFormat: "bare",
		MinRAM: 512, MinDisk: 20, OSType: "ubuntu", Record: json.RawMessage(record),
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v\nrecord %s", got, want, got.Record)
	}
}

func TestHashOfFacts(t *testing.T) {
	t.Parallel()
	sum := func(n int) string { return strings.Repeat("aB", n) }
	for _, tt := range []struct {
		algo, value, checksum string
		name, hash            string
	}{
		{"sha512", sum(64), sum(16), "sha512", strings.ToLower(sum(64))},
		{"sha256", sum(32), "", "sha256", strings.ToLower(sum(32))},
		{"md5", sum(16), "", "md5", strings.ToLower(sum(16))},
		{"sha384", sum(48), sum(16), "md5", strings.ToLower(sum(16))},
		{"sha512", sum(63), sum(16), "md5", strings.ToLower(sum(16))},
		{"sha512", strings.Repeat("x", 128), "", "", ""},
		{"sha3", "", "", "", ""},
		{"", "", "no hash", "", ""},
		{"", "", "", "", ""},
	} {
		f, err := imageapi.FactsOf(fmt.Appendf(nil, `{"os_hash_algo": %q, "os_hash_value": %q, "checksum": %q}`, tt.algo, tt.value, tt.checksum))
		if err != nil || f.HashName != tt.name || f.Hash != tt.hash {
			t.Errorf("%+v: got %q %q, %v", tt, f.HashName, f.Hash, err)
		}
	}
	f, err := imageapi.FactsOf([]byte(`{"os_hash_algo": null, "os_hash_value": null, "checksum": null, "name": null}`))
	if err != nil || f.HashName != "" || f.Hash != "" {
		t.Errorf("without a hash: %+v, %v", f, err)
	}
}

// A customer's property is no fact, however like one its name is.
func TestFactsOfPropertiesLikeThem(t *testing.T) {
	t.Parallel()
	f, err := imageapi.FactsOf([]byte(`{"id": "i", "owner": null, "Owner": "o", "OWNER": "o", "\u017fize": 7, "ID": "j", "Checksum": "` + strings.Repeat("ab", 16) + `", "Min_RAM": 7}`))
	if err != nil || f.ImageID != "i" || f.Owner != "" || f.Hash != "" || f.MinRAM != 0 {
		t.Errorf("got %+v, %v", f, err)
	}
}

func FuzzFactsOf(f *testing.F) {
	f.Add([]byte(`{"id": "i", "name": null, "min_ram": 1, "checksum": "00", "locations": [{"url": "u"}], "vmimport_x": {}, "tags": ["<"]}`))
	f.Add([]byte(`{"id": 1e400}`))
	f.Add([]byte(`{"a": {"a": [[[]]]}, "a": "\ud800", "self": 1}`))
	f.Fuzz(func(t *testing.T, shown []byte) {
		facts, err := imageapi.FactsOf(shown)
		if err != nil {
			return
		}
		var members map[string]json.RawMessage
		if err := json.Unmarshal(facts.Record, &members); err != nil || members == nil || len(facts.Record) > imageapi.MaxRecordBytes {
			t.Fatalf("record %.200q of %d bytes: %v", facts.Record, len(facts.Record), err)
		}
		for name := range members {
			if name == "locations" || name == "direct_url" || strings.HasPrefix(name, "vmimport_") {
				t.Errorf("the record has %q", name)
			}
		}
		if (facts.HashName == "") != (facts.Hash == "") || facts.Hash != strings.ToLower(facts.Hash) {
			t.Errorf("hash %q %q", facts.HashName, facts.Hash)
		}
		// An import reads the record back.
		if again, err := imageapi.FactsOf(facts.Record); err != nil || !reflect.DeepEqual(again, facts) {
			t.Errorf("got %+v, read back %+v, %v", facts, again, err)
		}
	})
}

func TestFactsThatCannotBe(t *testing.T) {
	t.Parallel()
	property := func(n int) []byte { return fmt.Appendf(nil, `{"id": "i", "p": %q}`, strings.Repeat("p", n)) }
	const around = len(`{"id":"i","p":""}`)
	if f, err := imageapi.FactsOf(property(imageapi.MaxRecordBytes - around)); err != nil || len(f.Record) != imageapi.MaxRecordBytes {
		t.Errorf("a record of the greatest length: %d bytes, %v", len(f.Record), err)
	}
	if _, err := imageapi.FactsOf(property(imageapi.MaxRecordBytes - around + 1)); fault.CodeOf(err) != "image_record_too_large" || fault.KindOf(err) != fault.Invalid {
		t.Errorf("a longer record: %v", err)
	}
	for _, shown := range []string{"", "null", "[]", "7", `{"min_ram": "much"}`, `{"name": 7}`, `{"name": "a"`} {
		if f, err := imageapi.FactsOf([]byte(shown)); err == nil {
			t.Errorf("%q: got %+v", shown, f)
		}
	}
}
