package swiftstore

import "time"

// Hurry bounds for how long s waits for an answer when its caller has left, and for how long
// a look at an object is good for its removal.
func (s *Store) Hurry(limit time.Duration) { s.parting, s.removal = limit, limit }
