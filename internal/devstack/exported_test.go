package devstack

import (
	"bytes"
	"compress/gzip"
	"crypto/sha1" // the API's choice of hash
	"encoding/hex"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/google/uuid"

	"vmimport/internal/client"
	"vmimport/tasks"
)

// An exported image tells all that is asked for by itself: the location is enough.
func TestExportedImage(t *testing.T) {
	t.Parallel()
	w := serve(t, t.TempDir())
	disk := bytes.Repeat([]byte("a sector of a disk that compresses well; "), 100<<10)
	disk = disk[:len(disk)&^511]
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	if _, err := z.Write(disk); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	w.put("web01.img.gz", packed.Bytes())
	const request = `{"location": %q}`
	refused := w.refused("POST", "/v1/imageimport", fmt.Sprintf(request, w.location("web01.img.gz")))
	if refused.status != 400 || refused.member(t, "error_code") != "40017" {
		t.Fatalf("without metadata: %d %s", refused.status, refused.body)
	}
	original := uuid.NewString()
	w.put("web01.json", []byte(`{"id": "`+original+`", "name": "web01", "min_ram": 512, "min_disk": "1", "os_type": "rhel6", "base_image_id": "b-1"}`))

	register := func(path, body string) *client.Import {
		a := w.do("POST", path, body)
		if a.status != 201 {
			t.Fatalf("%s: %d %s", path, a.status, a.body)
		}
		id, _ := a.member(t, "import_id").(string)
		return w.ended(tasks.ID(id))
	}
	sum := sha1.Sum(packed.Bytes())
	first := register("/v1/imageimport", fmt.Sprintf(request, w.location("web01.img.gz")))
	if first.State != tasks.Succeeded || first.ID != original || first.Name != "web01" || first.MinRAM != "512" || first.MinDisk != "1" || first.OSType != "" ||
		first.BillingInfo == nil || *first.BillingInfo != (client.Billing{OSType: "rhel6", BaseImageID: "b-1"}) ||
		first.Extra.Digests["sha1"] != hex.EncodeToString(sum[:]) {
		t.Errorf("first import: %+v", first)
	}
	// The id is an image's now, and so the next one gets another.
	second := register("/v1/expansionstorageimageimport", strings.Replace(fmt.Sprintf(request, w.location("web01.img.gz")), "{", `{"name": "data", `, 1))
	if second.State != tasks.Succeeded || second.ID == original || second.Name != "data" || second.OSType != "" || second.BillingInfo != nil || second.MinDisk != "0" {
		t.Errorf("second import: %+v", second)
	}
	for _, imp := range []*client.Import{first, second} {
		if got, err := os.ReadFile(w.image(imp.ID)); err != nil || !bytes.Equal(got, disk) {
			t.Errorf("disk of %s: %d bytes, want %d: %v", imp.Name, len(got), len(disk), err)
		}
	}
}
