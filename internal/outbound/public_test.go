package outbound_test

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"sync/atomic"
	"testing"

	"vmimport/internal/outbound"
)

func TestPublic(t *testing.T) {
	t.Parallel()
	for address, want := range map[string]bool{
		"8.8.8.8":             true,
		"100.63.255.255":      true,
		"100.128.0.0":         true,
		"172.15.255.255":      true,
		"172.32.0.0":          true,
		"223.255.255.255":     true,
		"2606:4700::1111":     true,
		"2001:200::1":         true,
		"::ffff:8.8.8.8":      true,
		"64:ff9b::8.8.8.8":    true,
		"0.0.0.0":             false,
		"0.1.2.3":             false,
		"10.0.0.1":            false,
		"100.64.0.0":          false,
		"100.127.255.255":     false,
		"127.0.0.1":           false,
		"127.255.255.254":     false,
		"169.254.169.254":     false, // metadata of clouds
		"172.16.0.1":          false,
		"172.31.255.255":      false,
		"192.0.0.192":         false,
		"192.0.2.1":           false,
		"192.88.99.1":         false,
		"192.168.1.1":         false,
		"198.18.0.1":          false,
		"198.19.255.255":      false,
		"198.51.100.7":        false,
		"203.0.113.7":         false,
		"224.0.0.1":           false,
		"239.255.255.255":     false,
		"240.0.0.1":           false,
		"255.255.255.255":     false,
		"::":                  false,
		"::1":                 false,
		"::8.8.8.8":           false,
		"::ffff:127.0.0.1":    false,
		"::ffff:10.0.0.1":     false,
		"64:ff9b::127.0.0.1":  false,
		"64:ff9b::10.1.2.3":   false,
		"64:ff9b:1::8.8.8.8":  false,
		"100::1":              false,
		"2001::8.8.8.8":       false,
		"2001:2::1":           false,
		"2001:db8::1":         false,
		"2002:7f00:1::1":      false,
		"2002:808:808::1":     false,
		"3fff::1":             false,
		"5f00::1":             false,
		"fc00::1":             false,
		"fdff::1":             false,
		"fe80::1":             false,
		"fe80::1%eth0":        false,
		"fec0::1":             false,
		"ff02::1":             false,
		"2606:4700::1111%eth": true,
	} {
		if got := outbound.Public(netip.MustParseAddr(address)); got != want {
			t.Errorf("Public(%s) is %v", address, got)
		}
	}
	if outbound.Public(netip.Addr{}) {
		t.Error("no address is public")
	}
}

// fickle is a name server of one name, which tells another address every time.
type fickle struct {
	addresses []netip.Addr
	asked     atomic.Int64
}

// resolver returns a resolver that asks f and nobody else.
func (f *fickle) resolver() *net.Resolver {
	return &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) {
		client, server := net.Pipe()
		go func() {
			defer server.Close()
			f.answer(server)
		}()
		return client, nil
	}}
}

// answer answers questions of one connection, in the form that DNS has over TCP.
func (f *fickle) answer(conn net.Conn) {
	for {
		var length uint16
		if binary.Read(conn, binary.BigEndian, &length) != nil {
			return
		}
		question := make([]byte, length)
		if _, err := io.ReadFull(conn, question); err != nil {
			return
		}
		end := 12 // of the name, behind the header
		for question[end] != 0 {
			end += int(question[end]) + 1
		}
		kind := binary.BigEndian.Uint16(question[end+1:])
		answer := append([]byte{question[0], question[1], 0x81, 0x80, 0, 1, 0, 0, 0, 0, 0, 0}, question[12:end+5]...)
		if kind == 1 { // A
			n := int(f.asked.Add(1)) - 1
			address := f.addresses[min(n, len(f.addresses)-1)].As4()
			answer[7] = 1
			answer = append(answer, 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4)
			answer = append(answer, address[:]...)
		}
		if _, err := conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(answer))), answer...)); err != nil {
			return
		}
	}
}

// TestAddressIsCheckedAtConnectTime: a name that stood for a public address when somebody
// looked is of no use if it leads to a private one now.
func TestAddressIsCheckedAtConnectTime(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		t.Error("a private server was reached")
	}))
	t.Cleanup(server.Close)
	at, err := url.Parse(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	names := &fickle{addresses: []netip.Addr{netip.MustParseAddr("8.8.8.8"), netip.MustParseAddr("127.0.0.1")}}
	resolver := names.resolver()
	seen, err := resolver.LookupNetIP(t.Context(), "ip4", "hooks.example.test")
	if err != nil || len(seen) != 1 || !outbound.Public(seen[0]) {
		t.Fatalf("first look: %v, %v", seen, err)
	}
	c := client(t, outbound.Options{PublicOnly: true, Resolver: resolver})
	_, err = c.Get("http://hooks.example.test:" + at.Port() + "/")
	if !errors.Is(err, outbound.ErrNotPublic) {
		t.Errorf("second look: %v", err)
	}
	if n := names.asked.Load(); n != 2 {
		t.Errorf("the name was looked up %d times", n)
	}
}

func TestPrivateAddresses(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	t.Cleanup(server.Close)
	at, err := url.Parse(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	for _, host := range []string{"127.0.0.1", "[::ffff:127.0.0.1]", "0.0.0.0"} {
		u := "http://" + host + ":" + at.Port() + "/"
		if _, err := client(t, outbound.Options{PublicOnly: true}).Get(u); !errors.Is(err, outbound.ErrNotPublic) {
			t.Errorf("%s: %v", host, err)
		}
	}
	resp, err := client(t, outbound.Options{}).Get(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
}

func TestShortErrors(t *testing.T) {
	t.Parallel()
	const long = outbound.MaxErrorBytes + 1
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/error" {
			w.WriteHeader(http.StatusBadGateway)
		}
		_, _ = w.Write(make([]byte, long))
	}))
	t.Cleanup(server.Close)
	c := client(t, outbound.Options{})
	c.Transport = outbound.ShortErrors(c.Transport)
	t.Cleanup(c.CloseIdleConnections)
	for path, want := range map[string]int{"/": long, "/error": outbound.MaxErrorBytes} {
		resp, err := c.Get(server.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || len(body) != want {
			t.Errorf("%s: %d bytes, %v", path, len(body), err)
		}
	}
}
