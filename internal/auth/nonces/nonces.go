// Package nonces remembers in Redis which nonces of signed requests have been used, for all
// servers and over their restarts. What Redis itself forgets when it dies depends on its
// settings, which are those that records need, too.
package nonces

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"

	"vmimport/internal/auth/aliyunsig"
	"vmimport/internal/fault"
)

// Store implements aliyunsig.Nonces. It is safe for concurrent use.
type Store struct{ rdb redis.UniversalClient }

var _ aliyunsig.Nonces = (*Store)(nil)

// New returns the nonces in rdb, a Redis of version 7 or later.
func New(rdb redis.UniversalClient) *Store { return &Store{rdb} }

// Use implements aliyunsig.Nonces.
func (s *Store) Use(ctx context.Context, keyID, nonce string, ttl time.Duration) (bool, error) {
	// The client sends a command again when the connection broke before the answer. The
	// first one may have been carried out: who finds their own word there was first.
	mine := rand.Text()
	before, err := s.rdb.SetArgs(ctx, redisKey(keyID, nonce), mine, redis.SetArgs{Mode: "NX", Get: true, TTL: ttl}).Result()
	switch {
	case errors.Is(err, redis.Nil):
		return true, nil
	case errors.Is(err, context.Canceled):
		return false, fmt.Errorf("remember nonce: %w", err)
	case err != nil:
		return false, fault.Wrap(fmt.Errorf("remember nonce: %w", err), fault.Unavailable, "store_unavailable", "The record store is not available.")
	}
	return before == mine, nil
}

// redisKey is of one length and free of what clients choose. No key id has a zero byte: it
// is text of the accounts' file by the time that it comes here.
func redisKey(keyID, nonce string) string {
	sum := sha256.Sum256([]byte(keyID + "\x00" + nonce))
	return "vmimport:nonce:" + hex.EncodeToString(sum[:])
}
