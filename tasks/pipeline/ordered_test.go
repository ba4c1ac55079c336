package pipeline

import (
	"context"
	"fmt"
	"slices"
	"testing"

	"vmimport/imageapi"
	"vmimport/internal/diskimage/imagetest"
	"vmimport/internal/scratch"
	"vmimport/tasks"
)

// ordered is an image service that wants each disk from its front to its end.
type ordered struct{ imageapi.Images }

type orderedUpload struct{ imageapi.Upload }

type orderedDisk struct {
	imageapi.DiskWriter
	end int64
}

func (o ordered) Begin(ctx context.Context, spec imageapi.Spec) (imageapi.Upload, error) {
	u, err := o.Images.Begin(ctx, spec)
	if err != nil {
		return nil, err
	}
	return orderedUpload{u}, nil
}

func (orderedUpload) Streams() bool { return true }

func (u orderedUpload) Disk(ctx context.Context, d imageapi.DiskSpec) (imageapi.DiskWriter, bool, error) {
	w, ok, err := u.Upload.Disk(ctx, d)
	return &orderedDisk{DiskWriter: w}, ok, err
}

func (d *orderedDisk) WriteAt(p []byte, off int64) (int, error) {
	if off < d.end {
		return 0, fmt.Errorf("a write at %d behind one to %d", off, d.end)
	}
	d.end = off + int64(len(p))
	return d.DiskWriter.WriteAt(p, off)
}

// A service that needs order gets it, with a spool only where there is none.
func TestOrderedService(t *testing.T) {
	r := newRig(t)
	r.images = ordered{r.images}
	guests := imagetest.Guests(t)
	spools := 0
	reserve := r.opt.Spool
	r.opt.Spool = func(n int64) (Spool, error) {
		spools++
		return reserve(n)
	}
	for _, v := range variants {
		for _, target := range []string{"raw", "qcow2"} {
			r.target, spools = target, 0
			t.Logf("%s to %s", v.name, target)
			spec := r.acceptImage(v.declared, v.pack(t, guests[1].Path))
			r.handle(spec)
			r.wantGuests(spec, guests[1].Path)
			want := 0
			spooled := slices.Contains([]string{"QCOW2 in gzip", "VHDX in gzip", "VDI in gzip", "VHD dynamic in gzip", "VMDK sparse in gzip"}, v.name)
			if target == "qcow2" || v.name == "QCOW2 in no order" || spooled {
				want++
			}
			if spooled {
				want++
			}
			// qemu-img compresses on all cores and writes what is ready first.
			if anyOrder := v.name == "QCOW2 compressed" || v.name == "QCOW2 zstd"; spools != want && !anyOrder {
				t.Errorf("%s to %s: %d spools, want %d", v.name, target, spools, want)
			}
		}
	}
}

// Without scratch space an import waits for some, having read nothing of its body.
func TestNoScratch(t *testing.T) {
	r := newRig(t)
	guest := imagetest.Guests(t)[2].Path
	reserve := r.opt.Spool
	r.opt.Spool = func(int64) (Spool, error) { return nil, scratch.ErrFull }
	counted := &counter{}
	r.opt.Observe = counted
	object := inGzip(byQemu("qcow2", ""))(t, guest)
	spec := r.acceptImage("qcow2.gz", object)
	if outcome := r.handle(spec); outcome != tasks.OutcomeRetry {
		t.Fatalf("outcome %q", outcome)
	}
	if counted.received.Load() > 0 {
		t.Errorf("%d bytes of the object were read", counted.received.Load())
	}
	if cause := r.get(spec).Attempts[0].Cause; cause.Code != "scratch_full" || cause.Remedy == "" {
		t.Errorf("cause %+v", cause)
	}
	r.opt.Spool = reserve
	r.handle(spec)
	r.wantGuests(spec, guest)
}
