package clustertest

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/uuid"

	"vmimport/internal/client"
	"vmimport/internal/diskimage/imagetest"
	"vmimport/storage/dirstore"
	"vmimport/tasks"
)

// BenchmarkWorkerMemory measures the most memory that a worker with 4 imports
// at once ever uses, for objects of two sizes: it must not grow with them.
func BenchmarkWorkerMemory(b *testing.B) {
	const (
		imports = 4
		limit   = 256 << 20
	)
	for _, gib := range []int64{1, 8} {
		b.Run(fmt.Sprintf("%dGiB", gib), func(b *testing.B) {
			for b.Loop() {
				c := startCluster(b, settings{apis: 1, workers: 1, concurrency: imports})
				tn := c.tenants[0]
				o := c.store.putSparse(tn.bucket(), "large.raw", gib<<30)
				var ids []tasks.ID
				for n := range imports {
					ids = append(ids, tn.register(fmt.Sprint("import ", n), o))
				}
				for _, id := range ids {
					end := tn.await(id, 10*time.Minute, func(imp *tasks.Task) bool { return imp.State.Final() })
					if end.State != tasks.Succeeded {
						b.Fatalf("import is %s: %v", end.State, end.Failure)
					}
				}
				c.checkPeak(b, limit)
			}
		})
	}
}

// checkPeak reports the most memory that the worker ever used.
func (c *cluster) checkPeak(b *testing.B, limit int64) {
	b.Helper()
	peak, err := c.workers[0].PeakMemory()
	if err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(peak)/(1<<20), "peak-MiB")
	if peak > limit {
		b.Errorf("the worker used up to %d MiB, want at most %d", peak>>20, limit>>20)
	}
}

// BenchmarkExportMemory measures the same of a worker with exports: of raw images that become
// gzip, and of compressed ones that are read in the guest's order and become VMDK.
func BenchmarkExportMemory(b *testing.B) {
	const (
		size  = 1 << 30
		limit = 208 << 20 // as for imports
		more  = 40 << 20  // for each export
	)
	guest := filepath.Join(b.TempDir(), "guest.raw")
	imagetest.Disk(b, guest, size)
	packed := imagetest.Convert(b, guest, "qcow2", "", "-c")
	for _, kind := range []struct{ to, format, path string }{
		{"cloud", "raw", guest},
		{"vmware", "qcow2", packed},
	} {
		for _, exports := range []int{1, 4} {
			b.Run(fmt.Sprintf("%s/exports=%d", kind.to, exports), func(b *testing.B) {
				for b.Loop() {
					c := startCluster(b, settings{apis: 1, workers: 1, concurrency: exports, directory: true})
					tn := c.tenants[0]
					store, err := dirstore.New(filepath.Join(c.objects, "{project}"))
					if err == nil {
						err = store.MakeContainer(tn.project, container)
					}
					if err != nil {
						b.Fatal(err)
					}
					var ids []tasks.ID
					for n := range exports {
						ids = append(ids, tn.export(c.putImage(tn, fmt.Sprint("image ", n), kind.format, kind.path), kind.to))
					}
					for _, id := range ids {
						end, err := tn.api().WaitForExport(b.Context(), id, 100*time.Millisecond, client.ExportObserver{})
						if err != nil || end.State != tasks.Succeeded {
							b.Fatalf("export: %+v, %v\n%s", end, err, c.explain(id))
						}
					}
					c.checkPeak(b, limit+int64(exports)*more)
				}
			})
		}
	}
}

// putImage makes the file at path the disk of an image, as an import does.
func (c *cluster) putImage(tn *tenant, name, format, path string) (id string) {
	c.t.Helper()
	id = uuid.NewString()
	dir := filepath.Join(c.images, id)
	record, err := json.Marshal(map[string]any{
		"id": id, "name": name, "owner": tn.project, "status": "active",
		"disk_format": format, "container_format": "bare", "min_ram": 0, "min_disk": 0,
	})
	if err == nil {
		err = os.MkdirAll(dir, 0o700)
	}
	if err == nil {
		err = os.Link(path, filepath.Join(dir, "disk-1."+format))
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "image.json"), record, 0o600)
	}
	if err != nil {
		c.t.Fatal(err)
	}
	return id
}

// export asks for an export when nothing is expected to go wrong.
func (t *tenant) export(imageID, to string) tasks.ID {
	t.cluster.t.Helper()
	id, err := t.api().Export(t.cluster.t.Context(), client.ExportRequest{
		ImageID: imageID, StorageContainer: client.Gen3.ContainerLocation(t.project, container), ImageTo: to,
	})
	if err != nil {
		t.cluster.t.Fatal(err)
	}
	return id
}
