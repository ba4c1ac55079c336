package swiftstore

import (
	"context"
	"errors"
	"iter"
	"net/http"
	"strings"
	"sync"
	"time"

	"vmimport/storage"
)

const (
	// parallel is how many parts are removed at the same time.
	parallel = 8
	// maxRounds is how often a list of parts is asked for until it shows none.
	maxRounds = 5
)

// Discard implements storage.Target. An object goes before its parts. The container of
// parts goes too, if the service made it and nothing is left in it.
func (s *Store) Discard(ctx context.Context, up storage.Upload, names ...string) error {
	w, err := s.writer(ctx, up, names...)
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range names {
		_, err := w.remove(ctx, w.object(name))
		if err == nil {
			err = w.sweep(ctx, name, nil)
		}
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return w.dropSegments(ctx)
}

// Settle implements storage.Target. It removes parts that are in no object, if Join has not
// seen them. What the upload wrote keeps saying so.
func (s *Store) Settle(ctx context.Context, up storage.Upload, names ...string) error {
	w, err := s.writer(ctx, up, names...)
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range names {
		errs = append(errs, w.prune(ctx, name))
	}
	return errors.Join(errs...)
}

// prune removes the parts of an object of the upload that its manifest does not name. If
// the object is none of the upload's, everything stays.
func (w *writer) prune(ctx context.Context, name string) error {
	f, err := w.look(ctx, w.object(name))
	if err != nil || f == nil || !f.own || !f.static {
		return err
	}
	entries, err := (&expansion{account: w.account}).fetch(ctx, f.at, f.etag)
	if err != nil {
		return err
	}
	keep := make(map[string]bool)
	for _, e := range entries {
		keep[e.at.name] = true
	}
	return w.sweep(ctx, name, keep)
}

// sweep removes the upload's parts of an object but those to keep.
func (w *writer) sweep(ctx context.Context, name string, keep map[string]bool) error {
	for range maxRounds {
		var parts []string
		for below, err := range w.names(ctx, w.segments(), w.dir(name)) {
			if err != nil {
				return err
			}
			if w.isPart(below, name) && !keep[below] {
				parts = append(parts, below)
			}
		}
		// What a list still shows may be gone, and what is there may be another's.
		removed, err := w.removeParts(ctx, parts)
		if removed == 0 || err != nil {
			return err
		}
	}
	return storage.ErrUnavailable.Because(errors.New("remove parts: there are more each time"))
}

// removeParts removes those of the parts that the upload made, and returns how many these
// were.
func (w *writer) removeParts(ctx context.Context, names []string) (removed int, err error) {
	var (
		wg   sync.WaitGroup
		mu   sync.Mutex
		errs []error
	)
	turn := make(chan struct{}, parallel)
	for _, name := range names {
		turn <- struct{}{}
		wg.Go(func() {
			defer func() { <-turn }()
			ok, err := w.remove(ctx, place{container: w.segments(), name: name})
			mu.Lock()
			defer mu.Unlock()
			if ok {
				removed++
			}
			if err != nil && len(errs) < parallel { // they are mostly alike
				errs = append(errs, err)
			}
		})
	}
	wg.Wait()
	return removed, errors.Join(errs...)
}

var errTooLate = storage.ErrUnavailable.Because(errors.New("remove object: it took too long since it was seen"))

// remove removes what lies under a name, if the upload made it, and reports whether it did.
// Of a large object it is the manifest alone.
//
// Swift has no condition for a removal. So it is not asked for one on the strength of an old
// look: a worker that was stopped in between, and taken for dead, could remove what somebody
// else has stored since.
func (w *writer) remove(ctx context.Context, at place) (bool, error) {
	const op = "remove object"
	// By the wall clock, and not that of timers: it goes on while the machine sleeps.
	begun := time.Now().Round(0)
	ctx, cancel := context.WithTimeoutCause(ctx, w.store.removal, errTooLate)
	defer cancel()
	f, err := w.look(ctx, at)
	if f == nil || err != nil || !f.own {
		return false, err
	}
	if time.Since(begun) > w.store.removal {
		return false, errTooLate // and the timer has not fired yet
	}
	answer, err := w.send(ctx, request{op: op, method: http.MethodDelete, path: f.at.path(), query: strings.TrimPrefix(f.at.query(""), "&")})
	if err != nil {
		return false, err
	}
	discard(answer)
	if code := answer.StatusCode; code/100 != 2 && code != http.StatusNotFound {
		return false, denied(op, code)
	}
	return true, nil
}

// dropSegments removes the container of parts, if the service made it and nothing is in it.
func (w *writer) dropSegments(ctx context.Context) error {
	const op = "remove container of parts"
	header, err := w.lookAtContainer(ctx, w.segments())
	if errors.Is(err, storage.ErrNoContainer) {
		return nil
	}
	if err != nil || header.Get(containerMark) == "" {
		return err
	}
	answer, err := w.send(ctx, request{op: op, method: http.MethodDelete, path: escape(w.segments(), false)})
	if err != nil {
		return err
	}
	discard(answer)
	code := answer.StatusCode
	if code/100 == 2 || code == http.StatusNotFound || code == http.StatusConflict { // which says that it is not empty
		return nil
	}
	return denied(op, code)
}

// names gives the names in a container that begin with prefix, in their order. A container
// that is not there has none.
func (w *writer) names(ctx context.Context, container, prefix string) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		for marker := ""; ; {
			page, err := w.page(ctx, container, prefix, marker)
			if errors.Is(err, storage.ErrNoObject) {
				return
			}
			if err != nil {
				yield("", err)
				return
			}
			if len(page) == 0 {
				return
			}
			for _, l := range page {
				if l.Name <= marker || !strings.HasPrefix(l.Name, prefix) {
					yield("", storage.ErrUnavailable.Because(errors.New("list parts: the list is not in order")))
					return
				}
				if marker = l.Name; !yield(marker, nil) {
					return
				}
			}
		}
	}
}
