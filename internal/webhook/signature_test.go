package webhook

import (
	"encoding/base64"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"vmimport/internal/secret"
)

// The example that the libraries of Standard Webhooks are tested with.
const (
	exampleID        = "msg_p5jXN8AQM9LWM0D4loKWxJek"
	exampleBody      = `{"test": 2432232314}`
	exampleSignature = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
)

var exampleTime = time.Unix(1614265330, 0)

func key(t testing.TB, text string) secret.Text {
	t.Helper()
	k, err := Key(secret.New(text))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestSign(t *testing.T) {
	t.Parallel()
	h := http.Header{}
	Sign(h, key(t, testSecret.Reveal()), exampleID, exampleTime, []byte(exampleBody))
	if h.Get("webhook-id") != exampleID || h.Get("webhook-timestamp") != "1614265330" || h.Get("webhook-signature") != exampleSignature {
		t.Errorf("headers %v", h)
	}
}

func TestVerify(t *testing.T) {
	t.Parallel()
	signed := func(change ...string) http.Header {
		h := http.Header{}
		Sign(h, key(t, testSecret.Reveal()), exampleID, exampleTime, []byte(exampleBody))
		for i := 0; i < len(change); i += 2 {
			h.Set(change[i], change[i+1])
		}
		return h
	}
	other := "v1," + base64.StdEncoding.EncodeToString(make([]byte, 32))
	for _, tc := range []struct {
		name   string
		header http.Header
		body   string
		after  time.Duration
		want   error
	}{
		{name: "as it was sent", header: signed()},
		{name: "a little late", header: signed(), after: tolerance},
		{name: "with a slow clock", header: signed(), after: -tolerance},
		{name: "one of several", header: signed("webhook-signature", "v2,x "+other+"  v1a,abc v1,!! "+exampleSignature)},
		{name: "replayed", header: signed(), after: tolerance + time.Second, want: ErrTimestamp},
		{name: "from the future", header: signed(), after: -tolerance - time.Second, want: ErrTimestamp},
		{name: "another body", header: signed(), body: exampleBody + " ", want: ErrSignature},
		{name: "another id", header: signed("webhook-id", "msg_1"), want: ErrSignature},
		{name: "another time", header: signed("webhook-timestamp", "1614265331"), want: ErrSignature},
		{name: "another signature", header: signed("webhook-signature", other), want: ErrSignature},
		{name: "another scheme", header: signed("webhook-signature", strings.Replace(exampleSignature, "v1", "v1a", 1)), want: ErrSignature},
		{name: "an empty one", header: signed("webhook-signature", "v1,"), want: ErrSignature},
		{name: "no signature", header: signed("webhook-signature", ""), want: ErrSignature},
		{name: "no time", header: signed("webhook-timestamp", ""), want: ErrTimestamp},
		{name: "no number", header: signed("webhook-timestamp", "yesterday"), want: ErrTimestamp},
		{name: "far off", header: signed("webhook-timestamp", "-9223372036854775808"), want: ErrTimestamp},
		{name: "nothing", header: http.Header{}, want: ErrTimestamp},
	} {
		body := exampleBody
		if tc.body != "" {
			body = tc.body
		}
		if err := Verify(key(t, testSecret.Reveal()), tc.header, []byte(body), exampleTime.Add(tc.after)); err != tc.want {
			t.Errorf("%s: %v", tc.name, err)
		}
	}
}

func TestKey(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("k", minTextLength)
	for text, want := range map[string]string{
		long: long,
		"whsec_" + base64.StdEncoding.EncodeToString([]byte(long[:minKeyBytes])): long[:minKeyBytes],
	} {
		if got := key(t, text).Reveal(); got != want {
			t.Errorf("the key of %s is %q", text, got)
		}
	}
	for _, text := range []string{"", long[1:], "whsec_", "whsec_" + long[1:] + "!", "whsec_" + base64.StdEncoding.EncodeToString([]byte(long[:minKeyBytes-1]))} {
		if k, err := Key(secret.New(text)); err == nil || !k.IsZero() || text != "" && strings.Contains(err.Error(), text) && text != "whsec_" {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func FuzzVerify(f *testing.F) {
	f.Add(exampleID, int64(1614265330), exampleSignature, exampleBody)
	f.Add("", int64(0), "v1, v1,= v1a,x \t", "")
	k := key(f, testSecret.Reveal())
	f.Fuzz(func(t *testing.T, id string, at int64, signature, body string) {
		h := http.Header{}
		h.Set(headerID, id)
		h.Set(headerTimestamp, strconv.FormatInt(at, 10))
		h.Set(headerSignature, signature)
		now := time.Unix(at, 0)
		known := Verify(k, h, []byte(body), now) == nil
		Sign(h, k, id, now, []byte(body))
		right := h.Get(headerSignature)
		if known && !strings.Contains(signature, strings.TrimPrefix(right, "v1,")) {
			t.Errorf("%q was taken for a signature", signature)
		}
		h.Set(headerSignature, "v1a,"+signature+" "+right)
		if err := Verify(k, h, []byte(body), now); err != nil {
			t.Errorf("%q: %v", signature, err)
		}
	})
}
