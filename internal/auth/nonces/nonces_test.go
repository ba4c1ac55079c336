package nonces_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"

	"vmimport/internal/auth/nonces"
	"vmimport/internal/fault"
	"vmimport/internal/testenv"
)

const ttl = 31 * time.Minute

// everywhere runs a test against a real Redis, and against the in-process one that
// standalone falls back to.
func everywhere(t *testing.T, test func(t *testing.T, rdb *redis.Client)) {
	t.Parallel()
	t.Run("redis", func(t *testing.T) {
		t.Parallel()
		test(t, testenv.StartRedis(t).Client())
	})
	t.Run("miniredis", func(t *testing.T) {
		t.Parallel()
		test(t, client(t, &redis.Options{Addr: miniredis.RunT(t).Addr()}))
	})
}

func client(t *testing.T, o *redis.Options) *redis.Client {
	rdb := redis.NewClient(o)
	t.Cleanup(func() { _ = rdb.Close() })
	return rdb
}

func use(t *testing.T, s *nonces.Store, keyID, nonce string) bool {
	t.Helper()
	fresh, err := s.Use(t.Context(), keyID, nonce, ttl)
	if err != nil {
		t.Fatal(err)
	}
	return fresh
}

func TestOnce(t *testing.T) {
	everywhere(t, func(t *testing.T, rdb *redis.Client) {
		s, other := nonces.New(rdb), nonces.New(rdb)
		for _, tt := range []struct {
			store        *nonces.Store
			keyID, nonce string
			fresh        bool
		}{
			{s, "k1", "n1", true},
			{s, "k1", "n1", false},
			{other, "k1", "n1", false},
			{s, "k1", "n2", true},
			{s, "k2", "n1", true},
			{s, "k1n", "1", true},
			{s, "k1", "N1", true},
			{s, "k1", strings.Repeat("漢", 40), true},
		} {
			if fresh := use(t, tt.store, tt.keyID, tt.nonce); fresh != tt.fresh {
				t.Errorf("%s %s: fresh %t", tt.keyID, tt.nonce, fresh)
			}
		}
	})
}

// A nonce is remembered for as long as asked from its first use, and then forgotten: it
// must neither come free early nor fill Redis for ever.
func TestTTL(t *testing.T) {
	everywhere(t, func(t *testing.T, rdb *redis.Client) {
		s := nonces.New(rdb)
		use(t, s, "k", "n")
		if _, err := s.Use(t.Context(), "k", "n", time.Millisecond); err != nil {
			t.Fatal(err)
		}
		keys, err := rdb.Keys(t.Context(), "*").Result()
		if err != nil || len(keys) != 1 || !strings.HasPrefix(keys[0], "vmimport:nonce:") {
			t.Fatalf("keys %v, %v", keys, err)
		}
		left, err := rdb.PTTL(t.Context(), keys[0]).Result()
		if err != nil || left > ttl || left < ttl-time.Minute {
			t.Errorf("%v left, %v", left, err)
		}
	})
}

func TestForgottenAfterTTL(t *testing.T) {
	t.Parallel()
	server := miniredis.RunT(t)
	s := nonces.New(client(t, &redis.Options{Addr: server.Addr()}))
	use(t, s, "k", "n")
	server.FastForward(ttl - time.Second)
	if use(t, s, "k", "n") {
		t.Error("forgotten a second early")
	}
	server.FastForward(time.Second)
	if !use(t, s, "k", "n") {
		t.Error("never forgotten")
	}
}

func TestOneOfManyWins(t *testing.T) {
	everywhere(t, func(t *testing.T, rdb *redis.Client) {
		s := nonces.New(rdb)
		var won atomic.Int32
		var all sync.WaitGroup
		start := make(chan struct{})
		for range 50 {
			all.Go(func() {
				<-start
				fresh, err := s.Use(t.Context(), "k", "n", ttl)
				if err != nil {
					t.Error(err)
				}
				if fresh {
					won.Add(1)
				}
			})
		}
		close(start)
		all.Wait()
		if won.Load() != 1 {
			t.Errorf("%d were told that they are first", won.Load())
		}
	})
}

// The answer to the first SET is lost with its connection, and the client sends the
// command again: that is still the first use.
func TestLostAnswer(t *testing.T) {
	everywhere(t, func(t *testing.T, rdb *redis.Client) {
		o := *rdb.Options()
		dial := net.Dialer{}
		var lost atomic.Bool
		broken := client(t, &redis.Options{MaxRetries: 3, Dialer: func(ctx context.Context, _, _ string) (net.Conn, error) {
			conn, err := dial.DialContext(ctx, o.Network, o.Addr)
			return &forgetful{Conn: conn, lost: &lost}, err
		}})
		if !use(t, nonces.New(broken), "k", "n") {
			t.Error("refused because of its own first attempt")
		}
		if !lost.Load() {
			t.Error("no answer was lost")
		}
		if use(t, nonces.New(broken), "k", "n") || use(t, nonces.New(rdb), "k", "n") {
			t.Error("a second use was taken for the first")
		}
	})
}

// forgetful loses the answer to the first SET of all connections that share lost.
type forgetful struct {
	net.Conn
	lost *atomic.Bool
	set  bool
}

func (f *forgetful) Write(b []byte) (int, error) {
	f.set = bytes.Contains(b, []byte("vmimport:nonce:"))
	return f.Conn.Write(b)
}

func (f *forgetful) Read(b []byte) (int, error) {
	n, err := f.Conn.Read(b)
	if f.set && err == nil && f.lost.CompareAndSwap(false, true) {
		_ = f.Conn.Close()
		return 0, io.ErrUnexpectedEOF
	}
	return n, err
}

func TestSurvivesACrashOfRedis(t *testing.T) {
	t.Parallel()
	server := testenv.StartRedis(t)
	s := nonces.New(server.Client())
	use(t, s, "k", "n")
	server.Kill()
	_, err := s.Use(t.Context(), "k", "other", ttl)
	if fault.KindOf(err) != fault.Unavailable || fault.CodeOf(err) != "store_unavailable" {
		t.Errorf("a dead Redis: %v", err)
	}
	server.Start()
	if use(t, s, "k", "n") {
		t.Error("the nonce was forgotten")
	}
	if !use(t, s, "k", "other") {
		t.Error("a use that failed before it reached Redis was remembered")
	}
}

func TestCallerGaveUp(t *testing.T) {
	t.Parallel()
	s := nonces.New(client(t, &redis.Options{Addr: miniredis.RunT(t).Addr()}))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	fresh, err := s.Use(ctx, "k", "n", ttl)
	if fresh || !errors.Is(err, context.Canceled) || fault.KindOf(err) != fault.Canceled {
		t.Errorf("%t, %v", fresh, err)
	}
}
