// Package ramfile is a directory of access keys that is a file, read anew when
// it changes. etc/aliyun-accounts.example.yaml tells its form.
//
// A change that cannot be read, or that is wrong, is reported and changes
// nothing: a typing error must not shut out all customers. Change the file by
// renaming another over it; one that is written in place may be read half.
//
// The file holds secrets as they are, since signatures cannot be checked with
// less. So it, and the files that it names, must be closed to all but their
// owner.
package ramfile

import (
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"vmimport/internal/auth/ram"
)

const (
	// interval is how often the file is looked at, if somebody asks.
	interval = time.Second
	// settled is the age from which a file's time of change tells one content
	// from the next. Two changes within one tick of a coarse clock look like one,
	// so that a younger file is read again.
	settled = 2 * time.Second
)

// Options of a Directory.
type Options struct {
	// OnError is told of a change that did not take effect, once for each. The
	// error names file and place, and no secret.
	OnError func(error)
	// OnReload is told of a change that did.
	OnReload func(Summary)
	// Now is the clock. Nil: time.Now.
	Now func() time.Time
}

// Directory implements ram.Directory. Looking at the file takes part in a
// lookup, at most once a second: there is nothing to start or close.
type Directory struct {
	path    string
	options Options
	current atomic.Pointer[content]
	looked  atomic.Int64 // at the file, in ns since 1970

	mu      sync.Mutex // held by the one that looks; nobody waits for it
	marks   []mark     // of the files that were read
	young   bool       // they had just been changed
	problem string     // reported last; empty when the files are in force
}

var _ ram.Directory = (*Directory)(nil)

// Open reads the file. It fails, naming all problems, if there is a mistake in
// it, or if others than its owner have access to it or a file that it names.
func Open(path string, o Options) (*Directory, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	// The process may change its directory; the file stays.
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("read accounts: %w", err)
	}
	d := &Directory{path: path, options: o}
	c, err := d.read(o.Now())
	if err != nil {
		return nil, err
	}
	d.current.Store(c)
	return d, nil
}

// Credential implements ram.Directory.
func (d *Directory) Credential(keyID string) (*ram.Credential, bool) {
	d.refresh()
	c, ok := d.current.Load().credentials[keyID]
	return c, ok
}

// Summary tells what is in force.
func (d *Directory) Summary() Summary {
	d.refresh()
	return d.current.Load().summary()
}

// refresh reads the files if they changed, unless that was looked into less than
// an interval ago or somebody else is at it.
func (d *Directory) refresh() {
	now := d.options.Now()
	since := now.Sub(time.Unix(0, d.looked.Load()))
	if since >= 0 && since < interval || !d.mu.TryLock() {
		return
	}
	defer d.mu.Unlock()
	changed := d.changed()
	if !changed && !d.young {
		d.looked.Store(now.UnixNano())
		return
	}
	c, err := d.read(now)
	switch {
	case err == nil:
		d.current.Store(c)
		if (changed || d.problem != "") && d.options.OnReload != nil {
			d.options.OnReload(c.summary())
		}
		d.problem = ""
	case changed || err.Error() != d.problem:
		d.problem = err.Error()
		if d.options.OnError != nil {
			d.options.OnError(err)
		}
	}
}

func (d *Directory) changed() bool {
	for _, m := range d.marks {
		if m.changed() {
			return true
		}
	}
	return false
}

// read reads the files, and remembers how they looked before.
func (d *Directory) read(now time.Time) (*content, error) {
	d.looked.Store(now.UnixNano())
	var f files
	c, err := load(d.path, &f)
	d.marks, d.young = f.marks, f.changedSince(now.Add(-settled))
	if err != nil {
		return nil, fmt.Errorf("read accounts: %s: %w", d.path, err)
	}
	return c, nil
}
