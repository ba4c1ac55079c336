package httpapi

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/labstack/echo/v4"
)

// pipes is a listener without a network, so that time can be simulated.
type pipes struct {
	conns  chan net.Conn
	closed chan struct{}
}

func newPipes() *pipes { return &pipes{make(chan net.Conn), make(chan struct{})} }

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error   { close(p.closed); return nil }
func (p *pipes) Addr() net.Addr { return &net.TCPAddr{} }

// dial returns the client's end of a new connection.
func (p *pipes) dial() net.Conn {
	client, server := net.Pipe()
	p.conns <- server
	return client
}

// receiver is a dialect with one route that takes a body of any length.
type receiver struct{}

func (receiver) Mount(e *echo.Echo) {
	e.PUT("/object", func(c echo.Context) error {
		n, err := io.Copy(io.Discard, c.Request().Body)
		if err != nil {
			return err
		}
		return c.String(http.StatusCreated, fmt.Sprint(n))
	})
}

func (receiver) WriteError(c echo.Context, _ error) error {
	return c.String(http.StatusRequestTimeout, "")
}

// streaming is a dialect with a stream of bytes: it writes what is large, and then waits.
type streaming struct{ stub }

func (d streaming) Mount(e *echo.Echo) {
	d.stub.Mount(e)
	e.GET("/stream", func(c echo.Context) error {
		c.Response().WriteHeader(http.StatusOK)
		_, err := c.Response().Write(make([]byte, 1<<10))
		if err == nil {
			err = http.NewResponseController(c.Response().Writer).Flush()
		}
		if err == nil {
			<-c.Request().Context().Done()
		}
		return nil
	})
	e.GET("/stream/late", func(c echo.Context) error {
		<-c.Request().Context().Done()
		return context.Cause(c.Request().Context())
	})
}

func (streaming) Streams(route string) bool { return strings.HasPrefix(route, "/stream") }

// serve runs test with a server in simulated time, and stops it at the end.
func serve(t *testing.T, test func(t *testing.T, l *pipes, stop func() error)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := New(Options{FJcloud: []Region{{Dialect: streaming{stub{"s"}}}}, Objects: receiver{}})
		l := newPipes()
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- s.Serve(ctx, l) }()
		stopped := false
		stop := func() error { stopped = true; cancel(); return <-ended }
		test(t, l, stop)
		if !stopped {
			if err := stop(); err != nil {
				t.Error(err)
			}
		}
	})
}

// answer reads one answer and how long it took to come.
func answer(t *testing.T, c net.Conn) (status int, body string, after time.Duration) {
	t.Helper()
	start := time.Now()
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatalf("no answer after %v: %v", time.Since(start), err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(text), time.Since(start)
}

func TestSlowClients(t *testing.T) {
	t.Parallel()
	t.Run("header", func(t *testing.T) {
		t.Parallel()
		serve(t, func(t *testing.T, l *pipes, _ func() error) {
			c := l.dial()
			defer c.Close()
			_, _ = io.WriteString(c, "GET /name HTTP/1.1\r\nHost: a\r\nX-A: ")
			start := time.Now()
			if _, err := io.ReadAll(c); err != nil {
				t.Fatal(err)
			}
			if after := time.Since(start); after < headerTimeout || after > headerTimeout+time.Second {
				t.Errorf("cut after %v", after)
			}
		})
	})
	for _, tt := range []struct{ name, head string }{
		{"body that is read", "POST /read HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nx"},
		{"body that nobody reads", "GET /name HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nx"},
		{"body of an unknown path", "POST /nothing HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nx"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			serve(t, func(t *testing.T, l *pipes, _ func() error) {
				c := l.dial()
				defer c.Close()
				_, _ = io.WriteString(c, tt.head)
				if _, _, after := answer(t, c); after > 31*time.Second {
					t.Errorf("answered after %v", after)
				}
			})
		})
	}
	t.Run("object that stalls", func(t *testing.T) {
		t.Parallel()
		serve(t, func(t *testing.T, l *pipes, _ func() error) {
			c := l.dial()
			defer c.Close()
			_, _ = io.WriteString(c, "PUT /object HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nx")
			if status, _, after := answer(t, c); status != http.StatusRequestTimeout || after < time.Minute || after > time.Minute+time.Second {
				t.Errorf("%d after %v", status, after)
			}
		})
	})
	t.Run("object that takes a day", func(t *testing.T) {
		t.Parallel()
		serve(t, func(t *testing.T, l *pipes, _ func() error) {
			c := l.dial()
			defer c.Close()
			const bytes = 24 * 60 * 2
			_, _ = fmt.Fprintf(c, "PUT /object HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n", bytes)
			for range bytes {
				time.Sleep(30 * time.Second) // simulated
				_, _ = io.WriteString(c, "x")
			}
			if status, body, _ := answer(t, c); status != http.StatusCreated || body != fmt.Sprint(bytes) {
				t.Errorf("%d %s", status, body)
			}
		})
	})
	t.Run("answer that takes too long", func(t *testing.T) {
		t.Parallel()
		serve(t, func(t *testing.T, l *pipes, _ func() error) {
			c := l.dial()
			defer c.Close()
			_, _ = io.WriteString(c, "GET /wait HTTP/1.1\r\nHost: a\r\n\r\n")
			if status, _, after := answer(t, c); status != http.StatusTeapot || after != time.Minute {
				t.Errorf("%d after %v", status, after)
			}
		})
	})
	t.Run("stream that does not begin", func(t *testing.T) {
		t.Parallel()
		serve(t, func(t *testing.T, l *pipes, _ func() error) {
			c := l.dial()
			defer c.Close()
			_, _ = io.WriteString(c, "GET /stream/late HTTP/1.1\r\nHost: a\r\n\r\n")
			if status, _, after := answer(t, c); status != http.StatusTeapot || after != time.Minute {
				t.Errorf("%d after %v", status, after)
			}
		})
	})
	t.Run("stream that goes on", func(t *testing.T) {
		t.Parallel()
		serve(t, func(t *testing.T, l *pipes, stop func() error) {
			c := l.dial()
			defer c.Close()
			_, _ = io.WriteString(c, "GET /stream HTTP/1.1\r\nHost: a\r\n\r\n")
			stopped := make(chan error, 1)
			time.AfterFunc(time.Hour, func() { stopped <- stop() })
			if status, body, after := answer(t, c); status != http.StatusOK || len(body) != 1<<10 || after != time.Hour {
				t.Errorf("%d, %d bytes, after %v", status, len(body), after)
			}
			if err := <-stopped; err != nil {
				t.Error(err)
			}
		})
	})
	t.Run("stream that nobody reads", func(t *testing.T) {
		t.Parallel()
		serve(t, func(t *testing.T, l *pipes, _ func() error) {
			c := l.dial()
			defer c.Close()
			_, _ = io.WriteString(c, "GET /stream HTTP/1.1\r\nHost: a\r\n\r\n")
			time.Sleep(streamTimeout + time.Second) // simulated
			if _, err := io.ReadAll(c); err != nil {
				t.Error(err)
			}
		})
	})
	t.Run("stream that nobody reads at the stop", func(t *testing.T) {
		t.Parallel()
		serve(t, func(t *testing.T, l *pipes, stop func() error) {
			c := l.dial()
			defer c.Close()
			_, _ = io.WriteString(c, "GET /stream HTTP/1.1\r\nHost: a\r\n\r\n")
			time.Sleep(time.Second) // simulated
			start := time.Now()
			if err := stop(); err != nil || time.Since(start) > 2*time.Second {
				t.Errorf("%v after %v", err, time.Since(start))
			}
		})
	})
	t.Run("connection without a request at the stop", func(t *testing.T) {
		t.Parallel()
		serve(t, func(t *testing.T, l *pipes, stop func() error) {
			defer l.dial().Close()
			half := l.dial()
			defer half.Close()
			_, _ = io.WriteString(half, "GET /name HTTP/1.1\r\n")
			start := time.Now()
			if err := stop(); err != nil || time.Since(start) > 2*time.Second {
				t.Errorf("%v after %v", err, time.Since(start))
			}
		})
	})
	t.Run("client that comes back", func(t *testing.T) {
		t.Parallel()
		serve(t, func(t *testing.T, l *pipes, _ func() error) {
			c := l.dial()
			defer c.Close()
			for range 5 { // no deadline of one request reaches into the next
				_, _ = io.WriteString(c, "POST /read HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc")
				if status, body, _ := answer(t, c); status != http.StatusOK || body != "3" {
					t.Fatalf("%d %s", status, body)
				}
				time.Sleep(100 * time.Second) // simulated
			}
		})
	})
}

func TestStop(t *testing.T) {
	t.Parallel()
	t.Run("waits for requests under way", func(t *testing.T) {
		t.Parallel()
		serve(t, func(t *testing.T, l *pipes, stop func() error) {
			c := l.dial()
			defer c.Close()
			_, _ = io.WriteString(c, "PUT /object HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nx")
			synctest.Wait()
			stopped := make(chan error, 1)
			go func() { stopped <- stop() }()
			time.Sleep(10 * time.Second) // simulated, less than the grace
			_, _ = io.WriteString(c, "y")
			if status, body, _ := answer(t, c); status != http.StatusCreated || body != "2" {
				t.Errorf("%d %s", status, body)
			}
			if err := <-stopped; err != nil {
				t.Error(err)
			}
		})
	})
	t.Run("cuts off those that do not end", func(t *testing.T) {
		t.Parallel()
		serve(t, func(t *testing.T, l *pipes, stop func() error) {
			c := l.dial()
			defer c.Close()
			_, _ = io.WriteString(c, "PUT /object HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nx")
			synctest.Wait()
			start := time.Now()
			err := stop()
			if after := time.Since(start); err == nil || after != 15*time.Second {
				t.Errorf("%v after %v", err, after)
			}
		})
	})
}

// A header too large is answered before any handler, in text: there is no
// request yet that a dialect could answer.
func TestHugeHeaders(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ bytes, status int }{{60 << 10, 200}, {1 << 20, 431}} {
		serve(t, func(t *testing.T, l *pipes, _ func() error) {
			c := l.dial()
			defer c.Close()
			go func() {
				_, _ = io.WriteString(c, "GET /name HTTP/1.1\r\nHost: a\r\nX-Auth-Token: "+strings.Repeat("t", tt.bytes)+"\r\n\r\n")
			}()
			if status, _, _ := answer(t, c); status != tt.status {
				t.Errorf("%d bytes: %d", tt.bytes, status)
			}
		})
	}
}
