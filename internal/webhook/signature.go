// Package webhook tells receivers that the configuration names of what happens to tasks: each
// change of a state is an HTTP request, signed as the Standard Webhooks specification has it
// (https://www.standardwebhooks.com), delivered at least once and for each tenant in order.
package webhook

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"iter"
	"net/http"
	"strconv"
	"strings"
	"time"

	"vmimport/internal/secret"
)

// The headers of a delivery.
const (
	headerID        = "webhook-id"
	headerTimestamp = "webhook-timestamp"
	headerSignature = "webhook-signature"
)

const (
	// keyPrefix marks a secret that is base64 of the key.
	keyPrefix = "whsec_"
	// minKeyBytes is what the specification asks of a key that is base64, and
	// minTextLength what we ask of one that is text, of which not every bit counts.
	minKeyBytes   = 24
	minTextLength = 32
	// scheme is HMAC-SHA-256.
	scheme = "v1"
)

// Key returns the key that a secret stands for: what follows "whsec_", decoded from base64,
// or else the text itself. Too short a key is an error, which does not quote it.
func Key(text secret.Text) (secret.Text, error) {
	encoded, ok := strings.CutPrefix(text.Reveal(), keyPrefix)
	if !ok {
		if len(text.Reveal()) < minTextLength {
			return secret.Text{}, fmt.Errorf("the secret has fewer than %d characters", minTextLength)
		}
		return text, nil
	}
	key, err := base64.StdEncoding.DecodeString(encoded)
	if err != nil {
		return secret.Text{}, errors.New("the secret is not base64 behind " + keyPrefix)
	}
	if len(key) < minKeyBytes {
		return secret.Text{}, fmt.Errorf("the secret has fewer than %d bytes", minKeyBytes)
	}
	return secret.New(string(key)), nil
}

// Sign sets the headers that say who sends body, and when.
func Sign(h http.Header, key secret.Text, id string, at time.Time, body []byte) {
	timestamp := strconv.FormatInt(at.Unix(), 10)
	h.Set(headerID, id)
	h.Set(headerTimestamp, timestamp)
	h.Set(headerSignature, scheme+","+base64.StdEncoding.EncodeToString(digest(key, id, timestamp, body)))
}

func digest(key secret.Text, id, timestamp string, body []byte) []byte {
	mac := hmac.New(sha256.New, []byte(key.Reveal()))
	mac.Write([]byte(id + "." + timestamp + "."))
	mac.Write(body)
	return mac.Sum(nil)
}

// tolerance is how far the clocks of sender and receiver may be apart. Older requests may
// be somebody's recording.
const tolerance = 5 * time.Minute

// Errors of Verify.
var (
	ErrSignature = errors.New("webhook: no signature fits")
	ErrTimestamp = errors.New("webhook: the time stamp is missing, or too far from now")
)

// Verify reports whether a request comes from somebody who has the key, and was made about
// now. A receiver calls it with the body as it came. It still has to pass over an id that
// it has seen before.
func Verify(key secret.Text, h http.Header, body []byte, now time.Time) error {
	timestamp := h.Get(headerTimestamp)
	seconds, err := strconv.ParseInt(timestamp, 10, 64)
	if err != nil || now.Sub(time.Unix(seconds, 0)).Abs() > tolerance {
		return ErrTimestamp
	}
	want := digest(key, h.Get(headerID), timestamp, body)
	for got := range signatures(h.Get(headerSignature)) {
		if hmac.Equal(got, want) {
			return nil
		}
	}
	return ErrSignature
}

// signatures yields those of our scheme in a header: there may be others, and several while
// a key is being replaced.
func signatures(header string) iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		for one := range strings.FieldsSeq(header) {
			encoded, ok := strings.CutPrefix(one, scheme+",")
			if !ok {
				continue
			}
			if s, err := base64.StdEncoding.DecodeString(encoded); err == nil && !yield(s) {
				return
			}
		}
	}
}
