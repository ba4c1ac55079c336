package clustertest

import (
	"fmt"
	"testing"
	"time"

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
					end := tn.await(id, 10*time.Minute, func(imp *tasks.Import) bool { return imp.State.Final() })
					if end.State != tasks.Succeeded {
						b.Fatalf("import is %s: %v", end.State, end.Failure)
					}
				}
				peak, err := c.workers[0].PeakMemory()
				if err != nil {
					b.Fatal(err)
				}
				b.ReportMetric(float64(peak)/(1<<20), "peak-MiB")
				if peak > limit {
					b.Errorf("the worker used up to %d MiB, want at most %d", peak>>20, limit>>20)
				}
			}
		})
	}
}
