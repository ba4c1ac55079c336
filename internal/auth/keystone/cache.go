package keystone

import (
	"container/list"
	"time"
)

// cache holds lookups that are over. When it is full the oldest goes: all of one
// cache last equally long, or less, so that is the one with the least left to it.
type cache struct {
	max   int
	byKey map[digest]*list.Element
	byAge *list.List // of *entry, the oldest first
}

type entry struct {
	key   digest
	value *lookup
	until time.Time
}

func newCache(max int) cache {
	return cache{max: max, byKey: map[digest]*list.Element{}, byAge: list.New()}
}

// get returns what is held for key at that time, or nil.
func (c *cache) get(key digest, now time.Time) *lookup {
	e, ok := c.byKey[key]
	if !ok {
		return nil
	}
	if !now.Before(e.Value.(*entry).until) {
		c.remove(e)
		return nil
	}
	return e.Value.(*entry).value
}

// put holds value for key until then.
func (c *cache) put(key digest, value *lookup, until time.Time) {
	if e, ok := c.byKey[key]; ok {
		c.remove(e)
	}
	for c.byAge.Len() >= c.max {
		c.remove(c.byAge.Front())
	}
	c.byKey[key] = c.byAge.PushBack(&entry{key, value, until})
}

func (c *cache) remove(e *list.Element) {
	delete(c.byKey, e.Value.(*entry).key)
	c.byAge.Remove(e)
}
