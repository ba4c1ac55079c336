package dirstore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"

	"vmimport/storage"
)

// staged matches the directory of a staging, or of one that is being removed, and finds the
// upload's id in it.
var staged = regexp.MustCompile(`^` + regexp.QuoteMeta(tempPrefix) + `[0-9a-f]{32}-([A-Za-z0-9-]{1,128})(?:\.[A-Z2-7]+)?$`)

// Sweep removes what is staged for uploads that are no longer unfinished, and leaves
// their objects: it is a safety net for a crash between the end of a task and its Settle.
// unfinished is asked about an upload after its staging was seen, so that one
// that begins meanwhile is not mistaken. Sweep stops at the first error and returns how
// many stagings it has removed.
func (s *Store) Sweep(ctx context.Context, unfinished func(uploadID string) (bool, error)) (removed int, err error) {
	for name, err := range s.projects() {
		if err != nil {
			return removed, err
		}
		root, err := s.openRoot(containerLocation(name, "x"))
		if errors.Is(err, storage.ErrNoObject) {
			continue
		}
		if err != nil {
			return removed, err
		}
		n, err := sweepUploads(ctx, root, unfinished)
		_ = root.Close() // nothing is written through it
		if removed += n; err != nil {
			return removed, err
		}
	}
	return removed, nil
}

// sweepUploads is Sweep for one project.
func sweepUploads(ctx context.Context, root *os.Root, unfinished func(string) (bool, error)) (removed int, err error) {
	dirs, err := fs.Glob(root.FS(), "*/"+tempPrefix+"*")
	if err != nil {
		return 0, storage.ErrUnavailable.Because(err)
	}
	for _, dir := range dirs {
		if ctx.Err() != nil {
			return removed, fmt.Errorf("sweep uploads: %w", context.Cause(ctx))
		}
		match := staged.FindStringSubmatch(path.Base(dir))
		if match == nil {
			continue
		}
		if live, err := unfinished(match[1]); err != nil {
			return removed, fmt.Errorf("sweep uploads: %w", err)
		} else if live {
			continue
		}
		if err := removeStage(root, dir); err != nil {
			return removed, translateWrite(err)
		}
		removed++
	}
	return removed, nil
}

// projects lists the projects that have a root, by the names that Location has for them;
// any name will do where all share one.
func (s *Store) projects() iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		above, below, perProject := strings.Cut(s.root, project)
		if !perProject {
			yield("", nil)
			return
		}
		dir, prefix := filepath.Split(above)
		suffix, _, _ := strings.Cut(below, string(filepath.Separator))
		entries, err := os.ReadDir(dir)
		if err != nil {
			yield("", storage.ErrUnavailable.Because(err))
			return
		}
		for _, e := range entries {
			name, ok := strings.CutPrefix(e.Name(), prefix)
			name, fits := strings.CutSuffix(name, suffix)
			if !ok || !fits || name == "" {
				continue
			}
			// Only what is a directory, and open to us, can hold a project's objects.
			if list(s.rootOf(name)) == nil && !yield(name, nil) {
				return
			}
		}
	}
}
