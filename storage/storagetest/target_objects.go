package storagetest

import (
	"errors"
	"fmt"
	"sync"

	"vmimport/storage"
)

func (c *target) joinAgain() {
	up, name, f := c.upload(1), c.name("dir/web"), cut(1, 1000, 70_000, 1)
	c.joined(up, name, f)
	for _, to := range []storage.Target{c.Target, c.Another(c.T)} {
		c.want(to.Join(c.Context(), up, name, f.parts), nil, "join again")
		c.want(to.Vacant(c.Context(), up, name), nil, "vacant")
	}
	c.reads(name, f.content)
}

// joinAtOnce: a worker that was taken for dead joins beside its successor.
func (c *target) joinAtOnce() {
	up, name, f := c.upload(1), c.name("dir/web"), cut(1, 1000, 1<<20, 1)
	c.store(c.Target, up, name, f)
	var wg sync.WaitGroup
	for n := range 4 {
		to := []storage.Target{c.Target, c.Another(c.T)}[n%2]
		wg.Go(func() {
			// The first to end may have removed parts that another is about to look for.
			if err := to.Join(c.Context(), up, name, f.parts); err != nil && !errors.Is(err, storage.ErrPart) {
				c.Error(err)
			}
		})
	}
	wg.Wait()
	c.want(c.Target.Join(c.Context(), up, name, f.parts), nil, "join again")
	c.reads(name, f.content)
}

// partBesideJoin: it stores other bytes under a number that its successor joins just then.
func (c *target) partBesideJoin() {
	for n := range 8 {
		up, name := c.upload(n), c.name(fmt.Sprint("web-", n))
		f, late := cut(1, 1000, 70_000), cut(2, 1000, 70_000)
		c.store(c.Target, up, name, f)
		var wg sync.WaitGroup
		for i := range late.parts {
			other := c.Another(c.T)
			wg.Go(func() {
				if err := other.PutPart(c.Context(), up, name, late.parts[i], late.body(i)); err != nil && !errors.Is(err, storage.ErrUnavailable) {
					c.Errorf("part %d: %v", i, err)
				}
			})
		}
		c.want(c.Target.Join(c.Context(), up, name, f.parts), nil, "join")
		wg.Wait()
		c.reads(name, f.content)
		c.must(c.Target.Settle(c.Context(), up, name))
		c.reads(name, f.content)
		c.nothingLeft("after Settle")
	}
}

// joinOfOthers: an object that is there is not taken for one of other parts, though both are
// the upload's.
func (c *target) joinOfOthers() {
	up, f, later := c.upload(1), cut(1, 1000, 70_000), cut(2, 1000, 70_000)
	large, small := c.name("dir/web"), c.name("dir/small")
	c.joined(up, large, f)
	c.must(c.Target.PutNew(c.Context(), up, small, f.content[:1000]))
	for _, to := range []storage.Target{c.Target, c.Another(c.T)} {
		for _, name := range []string{large, small} {
			c.store(to, up, name, later)
			c.want(to.Join(c.Context(), up, name, later.parts), storage.ErrObjectExists, "join over "+name)
			c.want(to.PutNew(c.Context(), up, name, later.content), storage.ErrObjectExists, "put new over "+name)
			c.want(to.Vacant(c.Context(), up, name), nil, "vacant: "+name)
		}
		c.want(to.Join(c.Context(), up, large, f.parts), nil, "join again")
		c.want(to.PutNew(c.Context(), up, small, f.content[:1000]), nil, "put new again")
	}
	c.want(c.Target.Join(c.Context(), up, large, f.parts[:1]), storage.ErrObjectExists, "join of some")
	c.reads(large, f.content)
	c.reads(small, f.content[:1000])
	c.must(c.Target.Discard(c.Context(), up, large, small))
	c.reads(large, nil)
	c.reads(small, nil)
	c.nothingLeft("after Discard")
}

// partAfterJoin: a worker dies between Join and its record, and the next one does the last
// parts once more.
func (c *target) partAfterJoin() {
	up, name, f, later := c.upload(1), c.name("web"), cut(1, 1000, 70_000, 1), cut(2, 1000, 70_000, 2)
	c.joined(up, name, f)
	other := c.Another(c.T)
	c.store(other, up, name, f, 2)
	c.reads(name, f.content)
	c.want(other.Join(c.Context(), up, name, f.parts), nil, "join again")
	c.reads(name, f.content)
	c.store(other, up, name, later, 1, 2)
	c.reads(name, f.content)
	c.want(other.Join(c.Context(), up, name, later.parts), storage.ErrObjectExists, "join of other parts")
	c.reads(name, f.content)
	c.must(c.Target.Settle(c.Context(), up, name))
	c.reads(name, f.content)
	c.nothingLeft("after Settle")
}

// anotherGoesOn: what one process has stored, the next one need not.
func (c *target) anotherGoesOn() {
	up, name, f := c.upload(1), c.name("web"), cut(1, 70_000, 1<<20, 1, 5000)
	c.store(c.Target, up, name, f, 1, 3)
	other := c.Another(c.T)
	c.want(other.Join(c.Context(), up, name, f.parts), storage.ErrPart, "join of a half")
	c.store(other, up, name, f, 2, 0)
	c.must(other.Join(c.Context(), up, name, f.parts))
	c.reads(name, f.content)
}

// otherCuts: the next attempt goes on from a checkpoint, and cuts its parts elsewhere.
func (c *target) otherCuts() {
	up, name := c.upload(1), c.name("web")
	f := cut(1, 1000, 5000, 300_000, 40)
	c.store(c.Target, up, name, f)
	again := file{content: f.content, parts: f.parts[:1:1]}
	for i, off := 1, int64(1000); off < int64(len(f.content)); i++ {
		size := min(int64(70_001*i), int64(len(f.content))-off)
		again.parts = append(again.parts, storage.Part{Number: i, Offset: off, Size: size, MD5: hexMD5(f.content[off : off+size])})
		off += size
	}
	for i := len(again.parts) - 1; i > 0; i-- {
		c.store(c.Another(c.T), up, name, again, i)
	}
	c.must(c.Target.Join(c.Context(), up, name, again.parts))
	c.reads(name, f.content)
	c.want(c.Target.Join(c.Context(), up, name, f.parts), storage.ErrObjectExists, "join of the former cuts")
	c.must(c.Target.Settle(c.Context(), up, name))
	c.reads(name, f.content)
	c.nothingLeft("after Settle")
}

func (c *target) furtherParts() {
	up, name, f := c.upload(1), c.name("web"), cut(1, 1000, 70_000, 1, 1<<20)
	c.store(c.Target, up, name, f)
	c.must(c.Target.Join(c.Context(), up, name, f.parts[:2]))
	c.reads(name, f.content[:71_000])
	c.must(c.Target.Settle(c.Context(), up, name))
	c.nothingLeft("after Settle")
	c.reads(name, f.content[:71_000])
}

func (c *target) missingPart() {
	up, f, other := c.upload(1), cut(1, 1000, 70_000, 1), cut(2, 1000, 70_000, 1)
	for i := range f.parts {
		name := c.name(fmt.Sprint("web-", i))
		for j := range f.parts {
			if j != i {
				c.store(c.Target, up, name, f, j)
			}
		}
		c.want(c.Target.Join(c.Context(), up, name, f.parts), storage.ErrPart, "a part is missing")
		c.store(c.Target, up, name, other, i)
		c.want(c.Target.Join(c.Context(), up, name, f.parts), storage.ErrPart, "a part is another")
		c.reads(name, nil)
		c.store(c.Target, up, name, f, i)
		c.must(c.Target.Join(c.Context(), up, name, f.parts))
		c.reads(name, f.content)
	}
	c.want(c.Target.Join(c.Context(), up, c.name("nothing"), f.parts), storage.ErrPart, "no part is there")
	c.reads("nothing", nil)
}

func (c *target) removedPart() {
	if c.RemovePart == nil {
		return
	}
	up, name, f := c.upload(1), c.name("dir/web 01"), cut(1, 1000, 70_000, 1)
	c.store(c.Target, up, name, f)
	c.RemovePart(up, name, 1)
	c.want(c.Target.Join(c.Context(), up, name, f.parts), storage.ErrPart, "join")
	c.reads(name, nil)
	c.joined(up, name, f)
}

func (c *target) joinOverOthers() {
	up, name, f := c.upload(1), c.name("dir/web"), cut(1, 1000, 2000)
	c.store(c.Target, up, name, f)
	c.Put(name, []byte("the customer's"))
	for range 2 {
		c.want(c.Target.Join(c.Context(), up, name, f.parts), storage.ErrObjectExists, "join over a customer's")
	}
	c.reads(name, []byte("the customer's"))
	c.must(c.Target.Discard(c.Context(), up, name))
	c.reads(name, []byte("the customer's"))
	c.nothingLeft("after Discard")
}

// joinRace: nothing but Join itself decides who gets a name.
func (c *target) joinRace() {
	name := c.name("dir/web")
	const racers = 4
	files := make([]file, racers)
	errs := make([]error, racers)
	for n := range racers {
		files[n] = cut(uint64(n), 1000, 70_000)
		c.store(c.Target, c.upload(n), name, files[n])
	}
	c.race(errs, func(to storage.Target, n int) error {
		return to.Join(c.Context(), c.uploads[n], name, files[n].parts)
	})
	c.oneWins(name, errs, func(n int) []byte { return files[n].content })
}

func (c *target) putNewRace() {
	name := c.name("dir/web.json")
	errs := make([]error, 4)
	content := func(n int) []byte { return noise(100+n, uint64(n)) }
	for n := range errs {
		c.upload(n)
	}
	c.race(errs, func(to storage.Target, n int) error {
		return to.PutNew(c.Context(), c.uploads[n], name, content(n))
	})
	c.oneWins(name, errs, content)
}

// race has all do the same at once, on two clients.
func (c *target) race(errs []error, do func(to storage.Target, n int) error) {
	clients := []storage.Target{c.Target, c.Another(c.T)}
	var wg sync.WaitGroup
	start := make(chan struct{})
	for n := range errs {
		wg.Go(func() {
			<-start
			errs[n] = do(clients[n%2], n)
		})
	}
	close(start)
	wg.Wait()
}

// oneWins: the others fail, and take nothing with them.
func (c *target) oneWins(name string, errs []error, content func(n int) []byte) {
	c.Helper()
	winner := -1
	for n, err := range errs {
		switch {
		case err == nil && winner < 0:
			winner = n
		case err == nil:
			c.Errorf("%d and %d have won", winner, n)
		default:
			c.want(err, storage.ErrObjectExists, "loser")
		}
	}
	if winner < 0 {
		c.Fatal("nobody has won")
	}
	c.reads(name, content(winner))
	for n := range errs {
		if n != winner {
			c.must(c.Target.Discard(c.Context(), c.uploads[n], name))
		}
	}
	c.reads(name, content(winner))
	c.must(c.Target.Discard(c.Context(), c.uploads[winner], name))
	c.reads(name, nil)
}

func (c *target) putNew() {
	up, name := c.upload(1), c.name("dir/web.json")
	c.must(c.Target.PutNew(c.Context(), up, name, []byte("{}")))
	c.reads(name, []byte("{}"))
	for _, to := range []storage.Target{c.Target, c.Another(c.T)} {
		c.want(to.PutNew(c.Context(), up, name, []byte("{}")), nil, "again")
		c.want(to.PutNew(c.Context(), up, name, []byte(`{"a":1}`)), storage.ErrObjectExists, "again, otherwise")
		c.reads(name, []byte("{}"))
	}
	empty := c.name("empty")
	c.must(c.Target.PutNew(c.Context(), up, empty, nil))
	c.reads(empty, []byte{})
}

func (c *target) putNewOverOthers() {
	f := cut(1, 1000, 2000)
	c.Put(c.name("customer's"), []byte("old"))
	c.joined(c.upload(1), c.name("large"), f)
	c.must(c.Target.PutNew(c.Context(), c.upload(1), c.name("small"), []byte("first")))
	for name, content := range map[string][]byte{"customer's": []byte("old"), "large": f.content, "small": []byte("first")} {
		c.want(c.Target.PutNew(c.Context(), c.upload(2), name, []byte("new")), storage.ErrObjectExists, name)
		c.reads(name, content)
		c.must(c.Target.Discard(c.Context(), c.upload(2), name))
		c.reads(name, content)
	}
}
