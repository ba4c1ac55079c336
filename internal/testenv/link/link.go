// Package link is a way to a server that has a bandwidth and can be cut.
package link

import (
	"context"
	"net"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/time/rate"
)

// Link is a way to a server. It has a bandwidth, can be cut, and counts what comes
// through. It forwards connections and knows nothing of HTTP, so that a request's Host
// stays as it was signed.
type Link struct {
	URL      string
	Received atomic.Int64 // bytes from the server

	to       string
	limiter  *rate.Limiter
	listener net.Listener

	mu    sync.Mutex
	down  bool
	conns map[net.Conn]struct{}
}

// Piece is how much is forwarded at a time: small enough for the pace to be
// even, and large enough to be cheap.
const Piece = 64 << 10

// Start starts a link to an address that lives as long as the test.
// bytesPerSecond is for all connections together; 0 is no limit.
func Start(t testing.TB, to string, bytesPerSecond int64) *Link {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	limit := rate.Inf
	if bytesPerSecond > 0 {
		limit = rate.Limit(bytesPerSecond)
	}
	l := &Link{
		URL: "http://" + ln.Addr().String(), to: to, listener: ln,
		limiter: rate.NewLimiter(limit, Piece), conns: map[net.Conn]struct{}{},
	}
	var wg sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	wg.Go(func() { l.accept(ctx, &wg) })
	t.Cleanup(func() {
		cancel()
		_ = ln.Close()
		l.Cut()
		wg.Wait()
	})
	return l
}

func (l *Link) accept(ctx context.Context, wg *sync.WaitGroup) {
	for {
		near, err := l.listener.Accept()
		if err != nil {
			return
		}
		wg.Go(func() { l.join(ctx, near) })
	}
}

// join forwards both ways until one side ends.
func (l *Link) join(ctx context.Context, near net.Conn) {
	defer near.Close()
	far, err := net.Dial("tcp", l.to)
	if err != nil {
		return
	}
	defer far.Close()
	defer l.drop(near, far)
	if !l.add(near, far) {
		return
	}
	up := make(chan struct{})
	go func() {
		defer close(up)
		defer far.Close()
		_ = forward(far, near, func(int) error { return nil })
	}()
	_ = forward(near, far, func(n int) error {
		l.Received.Add(int64(n))
		return l.limiter.WaitN(ctx, n)
	})
	_ = near.Close() // ends the other direction
	<-up
}

func forward(to, from net.Conn, each func(n int) error) error {
	buf := make([]byte, Piece)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			if err := each(n); err != nil {
				return err
			}
			if _, err := to.Write(buf[:n]); err != nil {
				return err
			}
		}
		if err != nil {
			return err
		}
	}
}

// add notes connections for Cut, and reports whether the link is up.
func (l *Link) add(conns ...net.Conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range conns {
		l.conns[c] = struct{}{}
	}
	return !l.down
}

func (l *Link) drop(conns ...net.Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range conns {
		delete(l.conns, c)
	}
}

// Cut breaks all connections, and new ones, until Mend.
func (l *Link) Cut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.down = true
	for c := range l.conns {
		_ = c.Close()
	}
}

// Mend lets new connections through again.
func (l *Link) Mend() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.down = false
}
