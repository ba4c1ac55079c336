package pipeline

import (
	"context"
	"io"
	"slices"
	"sync"
	"testing"

	"vmimport/imageapi"
	"vmimport/internal/fault"
	"vmimport/storage"
	"vmimport/storage/storagetest"
	"vmimport/tasks"
)

// streaming is what an image service is asked for that can only read images from their front.
type streaming struct {
	t    *testing.T
	mu   sync.Mutex
	head int // ranges that are a part of a file
	all  int // those that are all of it
	open int // bodies
}

// streamingOf makes an image service such a one.
func streamingOf(r *exportRig) *streaming {
	s := &streaming{t: r.t}
	r.source.wrap = s.file
	return s
}

func (s *streaming) file(f imageapi.File) imageapi.File {
	facts := f.Facts()
	facts.Streams = true
	return exchanged{File: f, facts: facts, read: func(ctx context.Context, off, n int64) (io.ReadCloser, error) {
		body, err := f.ReadRange(ctx, off, n)
		if err != nil {
			return nil, err
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		s.open++
		if n == f.Size() {
			s.all++
		} else {
			s.head++
		}
		if off != 0 {
			s.t.Errorf("a range begins at %d", off)
		}
		return &streamed{body, s}, nil
	}}
}

type streamed struct {
	io.ReadCloser
	s *streaming
}

func (b *streamed) Close() error {
	b.s.mu.Lock()
	defer b.s.mu.Unlock()
	b.s.open--
	return b.ReadCloser.Close()
}

// want checks how often files were read since the last call, and that nothing is open.
func (s *streaming) want(head, all int) {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.head != head || s.all != all || s.open != 0 {
		s.t.Errorf("%d heads and %d files were read, %d are open; want %d and %d", s.head, s.all, s.open, head, all)
	}
	s.head, s.all = 0, 0
}

func TestExportStreams(t *testing.T) {
	for _, tt := range []struct {
		name, format string
		form         tasks.Form
		head         int // of the image, when the export is asked for
	}{
		{"raw, packed", "raw", tasks.FormCloud, 0},
		{"raw as VMDK", "raw", tasks.FormVMDK, 0},
		{"raw as QCOW2", "raw", tasks.FormQCOW2, 0},
		{"qcow2, packed", "qcow2", tasks.FormCloud, 1},
		{"qcow2 as it is", "qcow2", tasks.FormQCOW2, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newExportRig(t)
			content := disk(1, exportSize)
			imageID := r.image(tt.format, content)
			s := streamingOf(r)
			spec := r.ask(imageID, tt.form)
			s.want(tt.head, 0)
			r.handle(spec)
			r.wantExport(spec, content)
			s.want(0, 1)
		})
	}
}

// A worker is killed, or drains. The next one passes over what is stored.
func TestExportStreamsGoesOn(t *testing.T) {
	for _, format := range []string{"raw", "qcow2"} {
		for _, cause := range []error{tasks.ErrClaimLost, tasks.ErrDraining} {
			t.Run(format+", "+cause.Error(), func(t *testing.T) {
				r := newExportRig(t)
				content := disk(1, exportSize)
				imageID := r.image(format, content)
				s := streamingOf(r)
				spec := r.ask(imageID, tasks.FormCloud)
				s.want(s.head, 0)
				r.target.putPart = func(ctx context.Context, p storage.Part) error {
					if p.Number != 3 { // they count from 1 here
						return nil
					}
					<-ctx.Done()
					return context.Cause(ctx)
				}
				ctx, kill := context.WithCancelCause(t.Context())
				ended := make(chan struct{})
				go func() {
					defer close(ended)
					if _, err := r.runner().Handle(ctx, spec.Ref()); err != nil {
						t.Error(err)
					}
				}()
				r.wait("two parts", func() bool {
					cp, ok := r.checkpointOf(spec)
					return ok && len(cp.Parts) >= 2
				})
				kill(cause)
				<-ended
				if cause == tasks.ErrClaimLost {
					r.expire(spec)
				}
				s.want(0, 1)

				r.target.putPart, r.target.stored = nil, nil
				counted := &counter{}
				r.opt.Observe = counted
				r.handle(spec)
				r.wantExport(spec, content)
				s.want(0, 1)
				from := r.get(spec).Attempts[1].FromBytes
				if from != 2*markEvery || slices.Contains(r.target.stored, 1) || slices.Contains(r.target.stored, 2) {
					t.Errorf("went on from %d, stored again: %v", from, r.target.stored)
				}
				// What is passed over does not count.
				if most := r.get(spec).Export.Bytes - from; counted.received.Load() > most {
					t.Errorf("%d bytes were read, want %d", counted.received.Load(), most)
				}
			})
		}
	}
}

// A connection that breaks is made again, from the front.
func TestExportStreamsTriesAgain(t *testing.T) {
	r := newExportRig(t)
	content := disk(1, exportSize)
	imageID := r.image("raw", content)
	s := streamingOf(r)
	r.source.wrap = func(f imageapi.File) imageapi.File {
		f = s.file(f)
		return exchanged{File: f, facts: f.Facts(), read: storagetest.Break(f, storagetest.CutBody, 2*markEvery+5, 2, nil).ReadRange}
	}
	spec := r.ask(imageID, tasks.FormVMDK)
	r.handle(spec)
	r.wantExport(spec, content)
	s.want(0, 3)
	if a := r.get(spec).Attempts; len(a) != 1 {
		t.Errorf("attempts %+v", a)
	}
}

// A file that has to be read in another order than its own is refused, at once or when the
// image has gone to another store meanwhile.
func TestExportStreamsRefused(t *testing.T) {
	r := newExportRig(t)
	imageID := r.image("qcow2", disk(1, diskSize))
	accepted := r.ask(imageID, tasks.FormVMDK)
	s := streamingOf(r)
	err := r.register(newExport(imageID, tasks.FormVMDK))
	if f := fault.Of(err); f.Code != "image_ranges_unsupported" || f.Kind != fault.Invalid || f.Remedy == "" {
		t.Errorf("got %v", err)
	}
	r.handle(accepted)
	r.wantNoFiles(accepted, tasks.Failed, "image_ranges_unsupported")
	s.want(s.head, 0)
}
