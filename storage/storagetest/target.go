package storagetest

import (
	"bytes"
	"context"
	"crypto/md5" //nolint:gosec // not for secrecy: what Swift calls an ETag
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"

	"vmimport/storage"
)

// TargetSubject is a target under test, with a container that is there and empty. Its
// functions end the test if they fail.
type TargetSubject struct {
	Target storage.Target

	// Another returns a second client of the same store, as another process has one.
	Another func(t *testing.T) storage.Target

	Project, Container string

	// MakeContainer makes a further container of the project.
	MakeContainer func(name string)

	// Put stores a customer's object in the container, and Read gets an object as customers do.
	Put  func(name string, content []byte)
	Read func(name string) (content []byte, ok bool)

	// RemovePart removes a part behind the target's back. Nil for a store where nobody can.
	RemovePart func(up storage.Upload, name string, number int)

	// Leftovers lists, by any names, all that the store holds for the project beside the
	// objects that its customer sees, what these are made of, and the containers made by
	// MakeContainer: parts of no object, staged bytes, helpers' containers.
	Leftovers func() []string
}

// RunTarget tests everything that storage.Target asks for, but what Run does. open returns a
// new store, or a new place in one. Goroutines that stay are for the caller to look for, when
// all tests have ended.
func RunTarget(t *testing.T, open func(t *testing.T) TargetSubject) {
	for _, test := range []struct {
		name string
		run  func(*target)
	}{
		{"AnyOrder", (*target).anyOrder},
		{"Concurrent", (*target).concurrent},
		{"ManyParts", (*target).manyParts},
		{"PartAgain", (*target).partAgain},
		{"SamePartAtOnce", (*target).samePartAtOnce},
		{"DamagedBodies", (*target).damagedBodies},
		{"DamagedKeepsEarlier", (*target).damagedKeepsEarlier},
		{"CanceledWithinBody", (*target).canceledWithinBody},
		{"CanceledBefore", (*target).canceledBefore},
		{"JoinAgain", (*target).joinAgain},
		{"JoinAtOnce", (*target).joinAtOnce},
		{"PartBesideJoin", (*target).partBesideJoin},
		{"JoinOfOthers", (*target).joinOfOthers},
		{"PartAfterJoin", (*target).partAfterJoin},
		{"AnotherGoesOn", (*target).anotherGoesOn},
		{"OtherCuts", (*target).otherCuts},
		{"FurtherParts", (*target).furtherParts},
		{"MissingPart", (*target).missingPart},
		{"RemovedPart", (*target).removedPart},
		{"JoinOverOthers", (*target).joinOverOthers},
		{"JoinRace", (*target).joinRace},
		{"PutNew", (*target).putNew},
		{"PutNewOverOthers", (*target).putNewOverOthers},
		{"PutNewRace", (*target).putNewRace},
		{"Vacant", (*target).vacant},
		{"NoContainer", (*target).noContainer},
		{"DiscardParts", (*target).discardParts},
		{"DiscardObjects", (*target).discardObjects},
		{"DiscardNotOthers", (*target).discardNotOthers},
		{"DiscardRemade", (*target).discardRemade},
		{"Settle", (*target).settle},
		{"Names", (*target).names},
		{"NamesApart", (*target).namesApart},
		{"ContainersApart", (*target).containersApart},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			c := &target{T: t, TargetSubject: open(t)}
			test.run(c)
			c.end()
		})
	}
}

// target is one test on one subject.
type target struct {
	*testing.T
	TargetSubject
	uploads []storage.Upload
	touched []string // all names that the test has used
}

// upload returns the n-th upload of the test.
func (c *target) upload(n int) storage.Upload {
	return c.uploadTo(n, c.Container)
}

func (c *target) uploadTo(n int, container string) storage.Upload {
	up := storage.Upload{
		ID:        fmt.Sprintf("6f0b1c2d-0000-4c2a-9a53-%012d", n),
		Project:   c.Project,
		Container: container,
	}
	if !slices.Contains(c.uploads, up) {
		c.uploads = append(c.uploads, up)
	}
	return up
}

// name notes a name, so that what lies under it is removed in the end.
func (c *target) name(name string) string {
	c.touched = append(c.touched, name)
	return name
}

// end discards all uploads of the test, after which nothing may be left.
func (c *target) end() {
	c.Helper()
	for _, up := range c.uploads {
		c.must(c.Target.Discard(c.Context(), up, c.touched...))
	}
	c.nothingLeft("in the end")
}

func (c *target) nothingLeft(when string) {
	c.Helper()
	if left := c.Leftovers(); len(left) > 0 {
		c.Errorf("%s there are still %q", when, left)
	}
}

func (c *target) must(err error) {
	c.Helper()
	if err != nil {
		c.Fatal(err)
	}
}

func (c *target) want(err, want error, what string) {
	c.Helper()
	if !errors.Is(err, want) {
		c.Errorf("%s: %v; want %v", what, err, want)
	}
}

// reads compares what a customer reads; nil content is no object.
func (c *target) reads(name string, want []byte) {
	c.Helper()
	got, ok := c.Read(name)
	if ok != (want != nil) || !bytes.Equal(got, want) {
		c.Errorf("%.60q is now %d bytes %.20q (found %v); want %d bytes %.20q", name, len(got), got, ok, len(want), want)
	}
}

// file is content, cut into parts.
type file struct {
	content []byte
	parts   []storage.Part
}

// cut returns content that differs by seed, in parts of these sizes.
func cut(seed uint64, sizes ...int64) file {
	var f file
	for i, size := range sizes {
		off := int64(len(f.content))
		f.content = append(f.content, noise(int(size), seed<<16+uint64(i))...)
		f.parts = append(f.parts, storage.Part{Number: i, Offset: off, Size: size, MD5: hexMD5(f.content[off:])})
	}
	return f
}

func hexMD5(b []byte) string {
	sum := md5.Sum(b) //nolint:gosec // see the import
	return hex.EncodeToString(sum[:])
}

func (f file) body(i int) io.Reader {
	p := f.parts[i]
	return bytes.NewReader(f.content[p.Offset : p.Offset+p.Size])
}

// store stores parts of f, in this order; all of them if none is named.
func (c *target) store(to storage.Target, up storage.Upload, name string, f file, order ...int) {
	c.Helper()
	if len(order) == 0 {
		for i := range f.parts {
			order = append(order, i)
		}
	}
	for _, i := range order {
		if err := to.PutPart(c.Context(), up, name, f.parts[i], f.body(i)); err != nil {
			c.Fatalf("part %d of %.60q: %v", i, name, err)
		}
	}
}

// joined stores and joins a whole file.
func (c *target) joined(up storage.Upload, name string, f file) {
	c.Helper()
	c.store(c.Target, up, name, f)
	c.must(c.Target.Join(c.Context(), up, name, f.parts))
	c.reads(name, f.content)
}

func (c *target) anyOrder() {
	f := cut(1, 1, 3<<20, 65_537, 2<<20, 7)
	for n, order := range [][]int{{0, 1, 2, 3, 4}, {4, 3, 2, 1, 0}, {2, 4, 1, 3, 0}} {
		up, name := c.upload(n), c.name(fmt.Sprint("web-", n))
		c.store(c.Target, up, name, f, order...)
		c.reads(name, nil)
		c.must(c.Target.Join(c.Context(), up, name, f.parts))
		c.reads(name, f.content)
		obj, err := c.Target.Open(c.Context(), up.At(name))
		c.must(err)
		if got, err := read(c.Context(), obj, 0, obj.Size()); err != nil || !bytes.Equal(got, f.content) {
			c.Errorf("opened: %d bytes, %v; want %d", len(got), err, len(f.content))
		}
	}
}

func (c *target) concurrent() {
	up, other := c.upload(1), c.Another(c.T)
	files := map[string]file{c.name("disks/web.vmdk"): cut(1, 1<<20, 1, 300_000, 2<<20), c.name("disks/db.vmdk"): cut(2, 5, 1<<20, 70_000)}
	var wg sync.WaitGroup
	for name, f := range files {
		for i, p := range f.parts {
			to := []storage.Target{c.Target, other}[i%2]
			wg.Go(func() {
				if err := to.PutPart(c.Context(), up, name, p, f.body(i)); err != nil {
					c.Errorf("part %d of %s: %v", i, name, err)
				}
			})
		}
	}
	wg.Wait()
	for name, f := range files {
		wg.Go(func() {
			if err := c.Target.Join(c.Context(), up, name, f.parts); err != nil {
				c.Errorf("join %s: %v", name, err)
			}
		})
	}
	wg.Wait()
	for name, f := range files {
		c.reads(name, f.content)
	}
}

// manyParts: the order is that of the numbers, and not of the numerals.
func (c *target) manyParts() {
	c.joined(c.upload(1), c.name("web"), cut(1, slices.Repeat([]int64{3}, 12)...))
}

func (c *target) partAgain() {
	up, name := c.upload(1), c.name("web")
	old, f := cut(1, 1000, 1<<20, 500), cut(2, 1000, 1<<20, 500)
	c.store(c.Target, up, name, old)
	c.store(c.Target, up, name, f, 1, 1, 0)
	c.reads(name, nil)
	c.must(c.Target.Join(c.Context(), up, name, []storage.Part{f.parts[0], f.parts[1], old.parts[2]}))
	c.reads(name, slices.Concat(f.content[:1000+1<<20], old.content[1000+1<<20:]))
	c.must(c.Target.Settle(c.Context(), up, name))
	c.nothingLeft("after Settle")
	up, name = c.upload(2), c.name("db")
	c.store(c.Target, up, name, old)
	c.store(c.Another(c.T), up, name, f)
	c.must(c.Target.Join(c.Context(), up, name, old.parts))
	c.reads(name, old.content)
}

// samePartAtOnce: several may store a part of one number. Each is stored whole.
func (c *target) samePartAtOnce() {
	up, name := c.upload(1), c.name("web")
	var files []file
	var wg sync.WaitGroup
	for n := range 4 {
		f := cut(uint64(n), 1<<20)
		files = append(files, f)
		to := []storage.Target{c.Target, c.Another(c.T)}[n%2]
		wg.Go(func() {
			if err := to.PutPart(c.Context(), up, name, f.parts[0], f.body(0)); err != nil {
				c.Error(err)
			}
		})
	}
	wg.Wait()
	for n, f := range files {
		var want error
		if n > 0 {
			want = storage.ErrObjectExists
		}
		c.want(c.Target.Join(c.Context(), up, name, f.parts), want, "join")
		c.reads(name, files[0].content)
	}
}

// damaged are bodies that are not what was announced.
func damaged(f file) map[string]io.Reader {
	b := f.content
	return map[string]io.Reader{
		"other bytes": bytes.NewReader(append(bytes.Clone(b[:len(b)-1]), b[len(b)-1]+1)),
		"short":       bytes.NewReader(b[:len(b)-1]),
		"empty":       bytes.NewReader(nil),
		"long":        bytes.NewReader(append(bytes.Clone(b), 0)),
		"twice":       io.MultiReader(bytes.NewReader(b), bytes.NewReader(b)),
		"failing":     io.MultiReader(bytes.NewReader(b[:len(b)/2]), failing{io.ErrUnexpectedEOF}),
		"failing end": io.MultiReader(bytes.NewReader(b), failing{errors.New("the disk broke")}),
	}
}

// failing is a body that fails at once.
type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

// damagedBodies: nothing is stored, and not only nothing that can be joined.
func (c *target) damagedBodies() {
	f := cut(1, 200_000)
	for what, body := range damaged(f) {
		name := c.name("web " + what)
		c.want(c.Target.PutPart(c.Context(), c.upload(1), name, f.parts[0], body), storage.ErrPart, what)
		c.want(c.Target.Join(c.Context(), c.upload(1), name, f.parts), storage.ErrPart, what+", join")
		c.want(c.Target.Vacant(c.Context(), c.upload(2), name), nil, what+", vacant for another")
		c.reads(name, nil)
	}
}

func (c *target) damagedKeepsEarlier() {
	up, name := c.upload(1), c.name("web")
	old, f := cut(1, 200_000), cut(2, 200_000)
	c.store(c.Target, up, name, old)
	for what, body := range damaged(f) {
		c.want(c.Target.PutPart(c.Context(), up, name, f.parts[0], body), storage.ErrPart, what)
	}
	c.must(c.Target.Join(c.Context(), up, name, old.parts))
	c.reads(name, old.content)
}

func (c *target) canceledWithinBody() {
	up, name, f := c.upload(1), c.name("web"), cut(1, 3<<20)
	gone := errors.New("the user left")
	ctx, cancel := context.WithCancelCause(c.Context())
	body := io.MultiReader(bytes.NewReader(f.content[:1<<20]), calling(func() { cancel(gone) }), bytes.NewReader(f.content[1<<20:]))
	c.want(c.Target.PutPart(ctx, up, name, f.parts[0], body), gone, "part")
	c.want(c.Target.Join(c.Context(), up, name, f.parts), storage.ErrPart, "join")
	c.want(c.Target.Vacant(c.Context(), c.upload(2), name), nil, "vacant for another")
	c.joined(up, name, f)
}

// calling is an empty body that calls a function.
type calling func()

func (f calling) Read([]byte) (int, error) {
	f()
	return 0, io.EOF
}

func (c *target) canceledBefore() {
	up, name, f := c.upload(1), c.name("web"), cut(1, 100)
	c.joined(up, c.name("kept"), f)
	c.store(c.Target, up, name, f)
	gone := errors.New("the user left")
	ctx, cancel := context.WithCancelCause(c.Context())
	cancel(gone)
	for what, err := range map[string]error{
		"vacant":  c.Target.Vacant(ctx, up, name),
		"part":    c.Target.PutPart(ctx, up, name, f.parts[0], f.body(0)),
		"join":    c.Target.Join(ctx, up, name, f.parts),
		"put new": c.Target.PutNew(ctx, up, name, []byte("x")),
		"discard": c.Target.Discard(ctx, up, "kept"),
		"settle":  c.Target.Settle(ctx, up, "kept"),
	} {
		c.want(err, gone, what)
	}
	c.reads(name, nil)
	c.reads("kept", f.content)
	c.must(c.Target.Join(c.Context(), up, name, f.parts))
	c.reads(name, f.content)
}

// unusual are names that a store might take for something else.
var unusual = []string{
	"dir/web 01", " lead", "trail ", "100%", "a%2Fb", "a+b", "web?x=1", "web#1", "ü", "日本語/ウェブ.qcow2",
	"deep/er/est/web.img.gz", ".hidden", "...", "{project}", `back\slash`, strings.Repeat("n", 200), strings.Repeat("語", 66) + "/web",
}
