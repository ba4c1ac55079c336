package pipeline

import (
	"context"
	"crypto/md5" //nolint:gosec // not for secrecy: what Swift calls an ETag
	"crypto/sha1"
	"crypto/sha256"
	"encoding"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"slices"
	"sync"

	"vmimport/internal/diskimage/encode"
	"vmimport/internal/fault"
	"vmimport/storage"
	"vmimport/tasks"
)

const (
	// partsInFlight is how many parts of an export are being stored at a time. Each
	// waits in scratch space.
	partsInFlight = 3
	// partTries is how often a part is sent that a store did not take.
	partTries = 6
	// headNumber is that of the part at the front of a file which is written last.
	headNumber = 0
)

// partWriter takes the file of an export front to back, cuts it into parts and stores these,
// several at a time, while the next is written.
//
// Write, seal, leave and front are for one goroutine.
type partWriter struct {
	exporting
	ctx   context.Context
	fail  context.CancelCauseFunc // ends the attempt's work
	name  string                  // of the object
	room  int64                   // scratch space of one part
	slots chan struct{}
	wg    sync.WaitGroup

	open   Spool // of the part at hand; nil if nothing was written of it yet
	size   int64 // of that part
	sum    hash.Hash
	offset int64 // of the file, head included
	whole  bool  // the sums, if there are any, are of all bytes up to offset
	sums   map[string]hash.Hash

	head *storage.Part // stored last, at the front; nil if the file has none

	mu     sync.Mutex
	parts  []storage.Part // all sealed ones, numbered from 1
	stored []bool         // of parts
	done   int            // parts that are stored, without a gap
	onDone func()         // called without mu, when done has risen; set before the first part
}

// newPartWriter goes on behind what a checkpoint has.
func newPartWriter(ctx context.Context, fail context.CancelCauseFunc, a exporting, name string, cp exportCheckpoint) *partWriter {
	w := &partWriter{
		exporting: a, ctx: ctx, fail: fail, name: name, slots: make(chan struct{}, partsInFlight),
		offset: cp.Offset, whole: cp.Offset == 0 || len(cp.Sums) > 0, sums: sumsOf(a.task.Export),
		parts: slices.Clone(cp.Parts), done: len(cp.Parts),
	}
	w.stored = slices.Repeat([]bool{true}, len(cp.Parts))
	for name, state := range cp.Sums {
		if sum, ok := w.sums[name].(encoding.BinaryUnmarshaler); !ok || sum.UnmarshalBinary(state) != nil {
			w.whole = false
		}
	}
	return w
}

// sumsOf are the digests that are made of the file: the one that an import of it takes, and the one
// of a manifest. Of a file that is the image's there is one already.
func sumsOf(e *tasks.Export) map[string]hash.Hash {
	switch encodingOf(e).Form {
	case encode.Gzip:
		return map[string]hash.Hash{"sha1": sha1.New()}
	case encode.VMDK:
		return map[string]hash.Hash{"sha1": sha1.New(), "sha256": sha256.New()}
	}
	return nil
}

// leave leaves room at the front, for bytes that come last. There is no hash of a file that is
// not written in order.
func (w *partWriter) leave(n int64) {
	w.offset += n
	w.whole = n == 0
}

// Write implements io.Writer.
func (w *partWriter) Write(p []byte) (int, error) {
	if err := context.Cause(w.ctx); err != nil {
		return 0, err
	}
	if w.open == nil {
		var err error
		if w.open, err = w.reserve(w.room); err != nil {
			return 0, err
		}
		w.size, w.sum = 0, md5.New() //nolint:gosec // see the import
	}
	n, err := w.open.WriteAt(p, w.size)
	w.size += int64(n)
	w.offset += int64(n)
	w.sum.Write(p[:n])
	if w.whole {
		for _, sum := range w.sums {
			sum.Write(p[:n])
		}
	}
	return n, err
}

// reserve returns room for a part. If there is none it waits for that of its own parts.
func (w *partWriter) reserve(room int64) (Spool, error) {
	spool, err := w.r.opt.Spool(room)
	if fault.KindOf(err) != fault.Unavailable {
		return spool, err
	}
	w.wg.Wait()
	return w.r.opt.Spool(room)
}

// seal ends the part at hand, if there is one, and has it stored. It waits until few enough
// are under way.
func (w *partWriter) seal() error {
	if w.open == nil {
		return nil
	}
	spool := w.open
	w.open = nil
	p := storage.Part{
		Number: len(w.parts) + 1, Offset: w.offset - w.size, Size: w.size, MD5: hex.EncodeToString(w.sum.Sum(nil)),
	}
	w.mu.Lock()
	w.parts, w.stored = append(w.parts, p), append(w.stored, false)
	w.mu.Unlock()
	return w.store(p, spool)
}

// front stores the head of the file.
func (w *partWriter) front(head []byte) error {
	spool, err := w.reserve(int64(len(head)))
	if err != nil {
		return err
	}
	if _, err := spool.WriteAt(head, 0); err != nil {
		spool.Close()
		return err
	}
	sum := md5.Sum(head) //nolint:gosec // see the import
	w.head = &storage.Part{Number: headNumber, Size: int64(len(head)), MD5: hex.EncodeToString(sum[:])}
	return w.store(*w.head, spool)
}

// store stores a part in the background.
func (w *partWriter) store(p storage.Part, spool Spool) error {
	select {
	case w.slots <- struct{}{}:
	case <-w.ctx.Done():
		spool.Close()
		return context.Cause(w.ctx)
	}
	w.wg.Go(func() {
		defer spool.Close()
		err := w.send(p, spool)
		<-w.slots
		if err != nil {
			w.fail(fmt.Errorf("store part %d: %w", p.Number, err))
			return
		}
		w.note(p.Number)
	})
	return nil
}

// note takes note of a part that is stored.
func (w *partWriter) note(number int) {
	if number == headNumber {
		return
	}
	w.mu.Lock()
	w.stored[number-1] = true
	before := w.done
	for w.done < len(w.stored) && w.stored[w.done] {
		w.done++
	}
	risen := w.done > before
	w.mu.Unlock()
	if risen && w.onDone != nil {
		w.onDone()
	}
}

// send sends a part until the store has it.
func (w *partWriter) send(p storage.Part, spool Spool) error {
	for try := 1; ; try++ {
		err := w.region.Target.PutPart(w.ctx, w.upload(), w.name, p, io.NewSectionReader(spool, 0, p.Size))
		switch {
		case err == nil:
			return nil
		case w.ctx.Err() != nil:
			return context.Cause(w.ctx)
		case !fault.Retryable(err) || try == partTries:
			return err
		}
		w.heart.stats.Retries.Add(1)
		if err := w.r.opt.Fetch.Backoff.Wait(w.ctx, try); err != nil {
			return err
		}
	}
}

// wait waits until all parts are stored.
func (w *partWriter) wait() error {
	w.wg.Wait()
	return context.Cause(w.ctx)
}

// stop ends all that is under way.
func (w *partWriter) stop() {
	w.fail(nil)
	w.wg.Wait()
	if w.open != nil {
		w.open.Close()
		w.open = nil
	}
}

// all returns the parts of the file.
func (w *partWriter) all() []storage.Part {
	if w.head == nil {
		return w.parts
	}
	return append([]storage.Part{*w.head}, w.parts...)
}

// upTo returns the first n parts, once they are stored.
func (w *partWriter) upTo(n int) ([]storage.Part, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.done < n {
		return nil, false
	}
	return slices.Clone(w.parts[:n]), true
}

// place is what a checkpoint keeps of the writer, at the end of a part.
type place struct {
	offset int64
	parts  int
	sums   map[string][]byte
}

// here is for the goroutine that writes.
func (w *partWriter) here() (p place, err error) {
	p = place{offset: w.offset, parts: len(w.parts)}
	if !w.whole {
		return p, nil
	}
	p.sums = map[string][]byte{}
	for name, sum := range w.sums {
		if p.sums[name], err = sum.(encoding.BinaryMarshaler).MarshalBinary(); err != nil {
			return p, fmt.Errorf("keep digest %s: %w", name, err)
		}
	}
	return p, nil
}

// digests are those of the whole file, if it was written in order.
func (w *partWriter) digests() map[string]string {
	if !w.whole {
		return nil
	}
	digests := map[string]string{}
	for name, sum := range w.sums {
		digests[name] = hex.EncodeToString(sum.Sum(nil))
	}
	return digests
}
