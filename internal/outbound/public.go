package outbound

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"syscall"
)

// ErrNotPublic is why a connection was refused under Options.PublicOnly.
var ErrNotPublic = errors.New("the address is not of the public internet")

// reserved are the blocks of the IANA registries of special-purpose addresses (RFC 6890)
// that lead to no server of the public internet, or to one whose real address is another.
var reserved = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"),
	netip.MustParsePrefix("10.0.0.0/8"),
	netip.MustParsePrefix("100.64.0.0/10"), // carrier-grade NAT
	netip.MustParsePrefix("127.0.0.0/8"),
	netip.MustParsePrefix("169.254.0.0/16"),
	netip.MustParsePrefix("172.16.0.0/12"),
	netip.MustParsePrefix("192.0.0.0/24"),
	netip.MustParsePrefix("192.0.2.0/24"),
	netip.MustParsePrefix("192.88.99.0/24"), // relays of 6to4
	netip.MustParsePrefix("192.168.0.0/16"),
	netip.MustParsePrefix("198.18.0.0/15"),
	netip.MustParsePrefix("198.51.100.0/24"),
	netip.MustParsePrefix("203.0.113.0/24"),
	netip.MustParsePrefix("224.0.0.0/3"), // multicast, and what was never given out
	netip.MustParsePrefix("2001::/23"),   // Teredo, benchmarks and others
	netip.MustParsePrefix("2001:db8::/32"),
	netip.MustParsePrefix("2002::/16"), // 6to4
	netip.MustParsePrefix("3fff::/20"),
}

var (
	// unicast is all of IPv6 that is given out to networks.
	unicast = netip.MustParsePrefix("2000::/3")
	// translated holds addresses of IPv4 in their last 32 bits (RFC 6052).
	translated = netip.MustParsePrefix("64:ff9b::/96")
)

// Public reports whether an address is that of a server of the public internet: neither
// loopback, link-local, private, shared, multicast nor reserved, nor such an IPv4 address
// inside an IPv6 one.
func Public(a netip.Addr) bool {
	a = a.WithZone("").Unmap()
	if translated.Contains(a) {
		b := a.As16()
		a = netip.AddrFrom4([4]byte(b[12:]))
	}
	if !a.Is4() && !unicast.Contains(a) {
		return false
	}
	return !slices.ContainsFunc(reserved, func(p netip.Prefix) bool { return p.Contains(a) })
}

// refusePrivate is the ControlContext of a net.Dialer. It gets the address that is about to
// be connected to.
func refusePrivate(_ context.Context, _, address string, _ syscall.RawConn) error {
	at, err := netip.ParseAddrPort(address)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNotPublic, err)
	}
	if !Public(at.Addr()) {
		return ErrNotPublic
	}
	return nil
}
