package storage

import (
	"testing"
	"time"
)

func TestBackoffDoublesUpToMax(t *testing.T) {
	t.Parallel()
	b := Backoff{Base: time.Second, Max: 5 * time.Second}
	for doublings, full := range []time.Duration{1, 2, 4, 5, 5, 5} {
		full *= time.Second
		for range 100 {
			if d := b.delay(doublings); d < full/2 || d > full {
				t.Errorf("pause %d is %v, want %v to %v", doublings, d, full/2, full)
			}
		}
	}
	if d := b.delay(1 << 20); d > b.Max {
		t.Errorf("a late pause is %v", d)
	}
}
