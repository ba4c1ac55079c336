package glance

import (
	"bytes"
	"context"
	"crypto/sha512"
	"errors"
	"io"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"
)

func noise(n int, seed uint64) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)}).Read(b)
	return b
}

// take reads what a body gives in one go.
func take(t testing.TB, b *body, n int) []byte {
	t.Helper()
	p := make([]byte, n)
	k, err := b.Read(p)
	if err != nil {
		t.Fatalf("Read: %v", err)
	}
	return p[:k]
}

// A source that falls silent leaves enough for a byte every now and then; the last one
// waits for the end.
func TestBodyTrickles(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBody(2 * time.Second)
		want := noise(reserveBytes+3*trickleBytes, 1)
		if err := b.write(t.Context(), want); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		got := take(t, b, len(want))
		if len(got) != 3*trickleBytes || time.Since(began) != 0 {
			t.Fatalf("%d bytes after %v, want what is above the reserve at once", len(got), time.Since(began))
		}
		for len(got) < len(want)-1 {
			before := time.Now()
			piece := take(t, b, len(want))
			if silence := time.Since(before); silence != 2*time.Second || len(piece) > trickleBytes {
				t.Fatalf("%d bytes after %v", len(piece), silence)
			}
			got = append(got, piece...)
		}
		if len(got) != len(want)-1 {
			t.Fatalf("%d of %d bytes before the end is known", len(got), len(want))
		}
		if lasted := time.Since(began); lasted < 30*time.Minute {
			t.Errorf("the reserve lasts for %v", lasted)
		}
		last := make(chan []byte)
		go func() {
			rest, _ := io.ReadAll(b)
			last <- rest
		}()
		time.Sleep(time.Hour)
		select {
		case rest := <-last:
			t.Fatalf("%d bytes before the end is known", len(rest))
		default:
		}
		b.end()
		if got = append(got, <-last...); !bytes.Equal(got, want) || !b.sent() {
			t.Error("other bytes came out")
		}
	})
}

// Both sides wait for each other, and neither does so for ever.
func TestBodyWaits(t *testing.T) {
	t.Parallel()
	gone := errors.New("gone")
	for _, tt := range []struct {
		name string
		end  func(b *body, cancel context.CancelCauseFunc)
		want error // of write
	}{
		{"reader takes some", func(b *body, _ context.CancelCauseFunc) { _, _ = b.Read(make([]byte, 1)) }, nil},
		{"context ends", func(_ *body, cancel context.CancelCauseFunc) { cancel(gone) }, gone},
		{"given up", func(b *body, _ context.CancelCauseFunc) { b.giveUp(gone) }, gone},
		{"client is done", func(b *body, _ context.CancelCauseFunc) { _ = b.Close() }, errNoBody},
		{"given up twice", func(b *body, _ context.CancelCauseFunc) { b.giveUp(gone); _ = b.Close() }, gone},
	} {
		t.Run("write/"+tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b := newBody(time.Second)
				ctx, cancel := context.WithCancelCause(t.Context())
				defer cancel(nil)
				written := make(chan error, 1)
				go func() { written <- b.write(ctx, make([]byte, bufferBytes+1)) }()
				synctest.Wait()
				if len(written) > 0 {
					t.Fatal("more was taken than there is room for")
				}
				tt.end(b, cancel)
				if err := <-written; !errors.Is(err, tt.want) {
					t.Errorf("write: %v, want %v", err, tt.want)
				}
			})
		})
	}
	t.Run("read", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			b := newBody(time.Second)
			read := make(chan error, 1)
			go func() {
				_, err := b.Read(make([]byte, 1))
				read <- err
			}()
			time.Sleep(time.Hour) // there is nothing that could be kept alive with
			b.giveUp(gone)
			if err := <-read; !errors.Is(err, gone) {
				t.Errorf("Read: %v", err)
			}
			if err := b.write(t.Context(), []byte{1}); !errors.Is(err, gone) {
				t.Errorf("write: %v", err)
			}
			if n, err := b.Read(nil); n != 0 || err != nil {
				t.Errorf("Read of nothing = %d, %v", n, err)
			}
		})
	})
}

// Whatever the order of writes, reads and silences: what comes out is what went in,
// and the last byte only after the end.
func FuzzBody(f *testing.F) {
	f.Add([]byte{0x10, 0x81, 0x20, 0x82})
	f.Add([]byte{0x01, 0xc1, 0xc1, 0xc1, 0x01, 0xc1})
	f.Add([]byte{0xff, 0x7f, 0xff, 0x7f, 0x00, 0x80, 0x01})
	stream := noise(bufferBytes, 2)
	f.Fuzz(func(t *testing.T, steps []byte) {
		if len(steps) > 64 {
			return
		}
		b := newBody(time.Hour)
		var in, out int64 // a byte's value follows from its place
		check := func(p []byte) {
			for len(p) > 0 {
				at := int(out % int64(len(stream)))
				n := min(len(p), len(stream)-at)
				if !bytes.Equal(p[:n], stream[at:at+n]) {
					t.Fatalf("other bytes at %d", out)
				}
				out, p = out+int64(n), p[n:]
			}
		}
		buf := make([]byte, bufferBytes)
		for _, step := range steps {
			size := int(step&0x3f) * int(step&0x3f) * 1093 // up to all of the buffer and some more
			switch {
			case step&0x80 == 0:
				at := int(in % int64(len(stream)))
				in += int64(b.put(stream[at:min(len(stream), at+size)]))
			default:
				n, err := b.give(buf[:min(size, len(buf))], step&0x40 != 0)
				if err != nil {
					t.Fatal(err)
				}
				check(buf[:n])
			}
			if in > 0 && out >= in {
				t.Fatalf("%d of %d bytes came out before the end", out, in)
			}
		}
		if b.sent() {
			t.Error("sent before the end")
		}
		b.end()
		rest, err := io.ReadAll(b)
		if err != nil {
			t.Fatal(err)
		}
		check(rest)
		if in != out || !b.sent() {
			t.Errorf("%d bytes went in, and %d came out", in, out)
		}
	})
}

// The same with both sides at work.
func TestBodyBesideItself(t *testing.T) {
	t.Parallel()
	b := newBody(time.Millisecond)
	want := noise(3*bufferBytes+12345, 3)
	go func() {
		random := rand.New(rand.NewPCG(4, 5))
		for left := want; len(left) > 0; {
			n := min(len(left), 1+random.IntN(300_000))
			if b.write(t.Context(), left[:n]) != nil {
				return
			}
			left = left[n:]
		}
		b.end()
	}()
	if got, err := io.ReadAll(b); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d of %d bytes, %v", len(got), len(want), err)
	}
}

// BenchmarkBody measures what lies between the worker and the HTTP client, without and
// with the hash.
func BenchmarkBody(b *testing.B) {
	p := noise(256<<10, 6)
	for name, digest := range map[string]func([]byte){"copy": func([]byte) {}, "sha512": func(p []byte) { sha512.Sum512(p) }} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(p)))
			body := newBody(time.Hour)
			done := make(chan struct{})
			go func() {
				defer close(done)
				buf := make([]byte, 32<<10)
				for {
					if _, err := body.Read(buf); err != nil {
						return
					}
				}
			}()
			for b.Loop() {
				digest(p)
				if err := body.write(b.Context(), p); err != nil {
					b.Fatal(err)
				}
			}
			body.end()
			<-done
		})
	}
}
