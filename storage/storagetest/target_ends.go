package storagetest

import (
	"slices"

	"vmimport/storage"
)

func (c *target) vacant() {
	own, foreign, f := c.upload(1), c.upload(2), cut(1, 1000, 2000)
	free, taken := c.name("free"), c.name("dir/customer's")
	parts, large, small := c.name("dir/parts"), c.name("large"), c.name("small")
	check := func(what string, want error, names ...string) {
		c.Helper()
		for _, to := range []storage.Target{c.Target, c.Another(c.T)} {
			c.want(to.Vacant(c.Context(), own, names...), want, what)
		}
	}
	check("no name", nil)
	check("an empty container", nil, free, taken, parts, large, small)
	c.Put(taken, []byte("x"))
	check("a customer's object", storage.ErrObjectExists, taken)
	check("one free, one taken", storage.ErrObjectExists, free, taken)
	check("beside it", nil, free, parts, large, small)

	c.store(c.Target, own, parts, f, 1)
	c.joined(own, large, f)
	c.must(c.Target.PutNew(c.Context(), own, small, []byte("x")))
	check("own parts and objects", nil, parts, large, small)
	for _, name := range []string{parts, large, small} {
		c.want(c.Target.Vacant(c.Context(), foreign, name), storage.ErrObjectExists, "another's "+name)
	}
	c.store(c.Target, foreign, free, f, 1)
	check("another's parts", storage.ErrObjectExists, parts, free)
	c.must(c.Target.Discard(c.Context(), foreign, free))
	check("discarded parts", nil, free, parts)
}

// noContainer: what cannot be there need not be removed.
func (c *target) noContainer() {
	up, name := c.uploadTo(1, c.Container+"-none"), c.name("web")
	c.want(c.Target.Vacant(c.Context(), up, name), storage.ErrNoContainer, "vacant")
	c.want(c.Target.Discard(c.Context(), up, name), nil, "discard")
	c.want(c.Target.Settle(c.Context(), up, name), nil, "settle")
}

func (c *target) discardParts() {
	up, f := c.upload(1), cut(1, 1000, 70_000)
	one, two := c.name("dir/web"), c.name("dir/db")
	c.want(c.Target.Discard(c.Context(), up, one, two), nil, "of nothing")
	c.want(c.Target.Discard(c.Context(), up), nil, "of no name")
	c.store(c.Target, up, one, f)
	c.store(c.Target, up, two, f, 1)
	c.store(c.Target, c.upload(2), one, f)
	for range 2 {
		c.want(c.Another(c.T).Discard(c.Context(), up, one), nil, "of parts")
	}
	c.want(c.Target.Join(c.Context(), up, one, f.parts), storage.ErrPart, "join of discarded parts")
	c.store(c.Target, up, two, f, 0)
	c.want(c.Target.Join(c.Context(), up, two, f.parts), nil, "the other name")
	c.want(c.Target.Discard(c.Context(), up, one, two), nil, "of both")
	c.must(c.Target.Join(c.Context(), c.upload(2), one, f.parts))
	c.reads(one, f.content)
	c.reads(two, nil)
}

// discardObjects: it ends as if the upload had never been, wherever it stood.
func (c *target) discardObjects() {
	f := cut(1, 1000, 70_000)
	image, meta := c.name("dir/sub/web.img.gz"), c.name("dir/web.json")
	up := c.upload(1)
	steps := []func(){
		func() { c.must(c.Target.PutNew(c.Context(), up, meta, []byte("{}"))) },
		func() { c.store(c.Target, up, image, f, 1) },
		func() { c.store(c.Target, up, image, f, 0) },
		func() { c.must(c.Target.Join(c.Context(), up, image, f.parts)) },
		func() { c.store(c.Target, up, image, f, 1) },
	}
	for n := range len(steps) + 1 {
		for _, step := range steps[:n] {
			step()
		}
		for range 2 {
			c.want(c.Another(c.T).Discard(c.Context(), up, image, meta), nil, "discard")
		}
		c.reads(image, nil)
		c.reads(meta, nil)
		c.nothingLeft("after Discard")
		c.want(c.Target.Vacant(c.Context(), c.upload(2), image, meta), nil, "vacant")
	}
}

func (c *target) discardNotOthers() {
	up, f := c.upload(1), cut(1, 1000, 70_000)
	image, meta := c.name("dir/web.img.gz"), c.name("dir/web.json")
	c.Put(meta, []byte("the customer's"))
	c.Put("dir/beside", []byte("beside"))
	c.want(c.Target.Discard(c.Context(), up, image, meta), nil, "of nothing")
	c.want(c.Target.PutNew(c.Context(), up, meta, []byte("{}")), storage.ErrObjectExists, "put new")
	c.joined(c.upload(2), image, f)
	c.store(c.Target, up, image, f)
	c.want(c.Target.Join(c.Context(), up, image, f.parts), storage.ErrObjectExists, "join over another upload's")
	c.want(c.Target.Discard(c.Context(), up, image, meta), nil, "of parts")
	c.reads(image, f.content)
	c.reads(meta, []byte("the customer's"))
	c.reads("dir/beside", []byte("beside"))
	c.want(c.Target.Vacant(c.Context(), c.upload(2), image), nil, "the other upload")
}

// discardRemade: what a customer stored in the place of the upload's object is the customer's.
func (c *target) discardRemade() {
	up, f := c.upload(1), cut(1, 1000, 70_000)
	image, meta := c.name("web.img.gz"), c.name("web.json")
	c.joined(up, image, f)
	c.must(c.Target.PutNew(c.Context(), up, meta, []byte("{}")))
	c.Put(image, []byte("the customer's"))
	c.Put(meta, []byte("[]"))
	c.want(c.Target.Vacant(c.Context(), up, image), storage.ErrObjectExists, "vacant")
	c.want(c.Target.PutNew(c.Context(), up, meta, []byte("{}")), storage.ErrObjectExists, "put new")
	c.must(c.Target.Discard(c.Context(), up, image, meta))
	c.reads(image, []byte("the customer's"))
	c.reads(meta, []byte("[]"))
	c.nothingLeft("after Discard")
}

func (c *target) settle() {
	up, f := c.upload(1), cut(1, 1000, 70_000)
	image, meta := c.name("dir/web.img.gz"), c.name("dir/web.json")
	c.want(c.Target.Settle(c.Context(), up, image, meta), nil, "of nothing")
	c.must(c.Target.PutNew(c.Context(), up, meta, []byte("{}")))
	c.joined(up, image, f)
	obj, err := c.Target.Open(c.Context(), up.At(image))
	c.must(err)
	for range 2 {
		c.want(c.Another(c.T).Settle(c.Context(), up, image, meta), nil, "settle")
		c.nothingLeft("after Settle")
	}
	c.reads(image, f.content)
	c.reads(meta, []byte("{}"))
	// Who began to read the object before must not see a change.
	got, err := read(c.Context(), obj, 0, obj.Size())
	if err != nil || !slices.Equal(got, f.content) {
		c.Errorf("opened before Settle: %d bytes, %v", len(got), err)
	}
	c.want(c.Target.Vacant(c.Context(), c.upload(2), image), storage.ErrObjectExists, "vacant for another")
	c.want(c.Target.PutNew(c.Context(), c.upload(2), meta, []byte("x")), storage.ErrObjectExists, "put new by another")
	c.must(c.Target.Discard(c.Context(), c.upload(2), image, meta))
	c.reads(image, f.content)
}

func (c *target) names() {
	up, f := c.upload(1), cut(1, 1000, 2000)
	for i, name := range unusual {
		c.want(c.Target.Vacant(c.Context(), up, c.name(name)), nil, name)
		if i%2 == 0 {
			c.joined(up, name, f)
			continue
		}
		c.must(c.Target.PutNew(c.Context(), up, name, []byte(name)))
		c.reads(name, []byte(name))
	}
	for i, name := range unusual {
		want := f.content
		if i%2 == 1 {
			want = []byte(name)
		}
		c.reads(name, want)
	}
	c.must(c.Target.Settle(c.Context(), up, unusual...))
	c.nothingLeft("after Settle")
}

// namesApart: the parts of one name are never taken for those of another that begins like it.
func (c *target) namesApart() {
	one, two, f := c.upload(1), c.upload(2), cut(1, 1000, 2000)
	all := []string{c.name("web"), c.name("web.qcow2"), c.name("web/x"), c.name("web/x/0"), c.name("we")}
	for i, name := range all {
		c.store(c.Target, one, name, f)
		for j, other := range all {
			var want error
			if j <= i {
				want = storage.ErrObjectExists
			}
			c.want(c.Target.Vacant(c.Context(), two, other), want, name+", is vacant: "+other)
		}
	}
	c.must(c.Target.Discard(c.Context(), one, "web/x"))
	c.want(c.Target.Join(c.Context(), one, "web/x", f.parts), storage.ErrPart, "join of discarded parts")
	c.must(c.Target.Join(c.Context(), one, "web/x/0", f.parts))
	c.reads("web/x/0", f.content)
	c.must(c.Target.Discard(c.Context(), one, "web/x/0"))
	c.reads("web/x/0", nil)
	for _, name := range []string{"web", "we", "web.qcow2"} {
		c.want(c.Target.Join(c.Context(), one, name, f.parts), nil, name)
		c.reads(name, f.content)
	}
	c.store(c.Target, two, "web/x", f)
	c.must(c.Target.Discard(c.Context(), two, "web/x"))
	c.reads("web", f.content)
	c.must(c.Target.Discard(c.Context(), one, "we", "web"))
	c.reads("web", nil)
	c.reads("web.qcow2", f.content)
}

// containersApart: one upload's work in two containers is two uploads.
func (c *target) containersApart() {
	other := c.Container + "-2"
	c.MakeContainer(other)
	here, there, f := c.upload(1), c.uploadTo(1, other), cut(1, 1000, 2000)
	name := c.name("web")
	c.store(c.Target, there, name, f)
	c.want(c.Target.Vacant(c.Context(), c.upload(2), name), nil, "vacant beside parts in another container")
	c.want(c.Target.Join(c.Context(), here, name, f.parts), storage.ErrPart, "join of parts in another container")
	c.must(c.Target.Discard(c.Context(), here, name))
	c.must(c.Target.Join(c.Context(), there, name, f.parts))
	c.reads(name, nil)
	c.must(c.Target.Discard(c.Context(), here, name))
	c.want(c.Target.Vacant(c.Context(), c.uploadTo(2, other), name), storage.ErrObjectExists, "vacant in the other container")
}
