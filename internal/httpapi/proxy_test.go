package httpapi

import (
	"crypto/tls"
	"net/http/httptest"
	"net/netip"
	"testing"

	"github.com/labstack/echo/v4"
)

func TestEncrypted(t *testing.T) {
	t.Parallel()
	told := Encrypted([]netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")})
	for _, tc := range []struct {
		peer, proto string
		tls, want   bool
	}{
		{"10.1.2.3:80", "https", false, true},
		{"[::ffff:10.1.2.3]:80", "https", false, true},
		{"10.1.2.3:80", "http", false, false},
		{"10.1.2.3:80", "", false, false},
		{"192.0.2.1:80", "https", false, false}, // whoever says so
		{"192.0.2.1:80", "", true, true},
		{"@", "https", false, false}, // a socket of the file system
	} {
		r := httptest.NewRequest("GET", "/", nil)
		r.RemoteAddr = tc.peer
		r.Header.Set(echo.HeaderXForwardedProto, tc.proto)
		if tc.tls {
			r.TLS = &tls.ConnectionState{}
		}
		if got := told(echo.New().NewContext(r, httptest.NewRecorder())); got != tc.want {
			t.Errorf("%+v: %v", tc, got)
		}
	}
}
