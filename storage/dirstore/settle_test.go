package dirstore

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"vmimport/storage"
)

// A file is pinned once its last change is a tick old, and given up if that
// never comes: as long as it is fresh, a change might not show.
func TestOpenWaitsForAFileToRest(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		restsAfter int // looks
		want       error
	}{
		"at rest":     {0, nil},
		"soon":        {3, nil},
		"just before": {settleTries - 1, nil},
		"never":       {settleTries, storage.ErrChanged},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			store, err := New(t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			if err := os.MkdirAll(filepath.Join(store.root, "c"), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(store.root, "c", "file"), []byte("x"), 0o644); err != nil {
				t.Fatal(err)
			}
			loc := storage.Location{API: "swift", Container: "c", Name: "file"}
			st, err := store.look(loc)
			if err != nil {
				t.Fatal(err)
			}
			looks := 0
			store.now = func() time.Time {
				looks++
				if looks <= test.restsAfter {
					return time.Unix(0, st.ctime).Add(tick - 1)
				}
				return time.Unix(0, st.ctime).Add(tick)
			}
			if _, err := store.Open(t.Context(), loc); !errors.Is(err, test.want) {
				t.Errorf("%v; want %v", err, test.want)
			}
			if want := min(test.restsAfter+1, settleTries); looks != want {
				t.Errorf("%d looks, want %d", looks, want)
			}
		})
	}
}
