package cli

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

const (
	mib = 1 << 20
	gib = 1 << 30
)

// step is a sample and when it comes, after the one before.
type step struct {
	after time.Duration
	Sample
}

func TestBarLine(t *testing.T) {
	t.Parallel()
	copying := func(percent int, done, rate int64) Sample {
		return Sample{Stage: "copying", Percent: percent, Done: done, Total: 4 * gib, Rate: rate, Attempt: 1, Moving: true}
	}
	secondTry := copying(10, 256*mib, 256*mib)
	secondTry.Attempt = 2
	for _, tt := range []struct {
		name    string
		steps   []step
		later   time.Duration // from the last step to the line
		columns int
		want    string
	}{
		{"queued", []step{{0, Sample{Stage: "queued"}}}, 0, 80,
			"queued       0% [--------------------------------------------------]"},
		{"all", []step{{0, copying(50, 2*gib, 256*mib)}}, 0, 80,
			"copying     50% [#########----------]  2.0/4.0 GiB   256.0 MiB/s   8s left"},
		{"wide", []step{{0, copying(50, 2*gib, 256*mib)}}, 0, 200,
			"copying     50% [#########################-------------------------]  2.0/4.0 GiB   256.0 MiB/s   8s left"},
		{"narrow", []step{{0, copying(50, 2*gib, 256*mib)}}, 0, 45,
			"copying     50% [######------]  2.0/4.0 GiB"},
		{"no room for details", []step{{0, copying(50, 2*gib, 256*mib)}}, 0, 36,
			"copying     50% [########---------]"},
		{"no room for a bar", []step{{0, copying(50, 2*gib, 256*mib)}}, 0, 24, "copying     50%"},
		{"no room", []step{{0, copying(50, 2*gib, 256*mib)}}, 0, 6, "copyi"},
		{"no column", []step{{0, copying(50, 2*gib, 256*mib)}}, 0, 1, ""},
		{"a log", []step{{0, copying(50, 2*gib, 256*mib)}}, 0, 0,
			"copying 50%, 2.0/4.0 GiB, 256.0 MiB/s, 8s left"},
		{"a measured rate", []step{{0, copying(0, 0, 0)}, {time.Second, copying(25, gib, 0)}}, 0, 0,
			"copying 25%, 1.0/4.0 GiB, 1.0 GiB/s, 3s left"},
		{"a rate that is not known yet", []step{{0, copying(0, 0, 0)}}, time.Second, 0,
			"copying 0%, 0.0/4.0 GiB"},
		{"a smoothed rate", []step{{0, copying(0, 0, 0)}, {time.Second, copying(25, gib, 0)}, {time.Second, copying(25, gib, 0)}}, 0, 0,
			"copying 25%, 1.0/4.0 GiB, 838.3 MiB/s, 4s left"},
		{"hours left", []step{{0, copying(0, 0, 256<<10)}}, 0, 0,
			"copying 0%, 0.0/4.0 GiB, 256.0 KiB/s, 4h33m left"},
		{"a short pause", []step{{0, copying(50, 2*gib, 256*mib)}}, 4 * time.Second, 0,
			"copying 50%, 2.0/4.0 GiB, 256.0 MiB/s, 8s left"},
		{"a stall", []step{{0, copying(50, 2*gib, 256*mib)}, {time.Second, copying(50, 2*gib, 256*mib)}}, 11 * time.Second, 0,
			"copying 50%, 2.0/4.0 GiB, stalled 12s"},
		{"after a stall", []step{{0, copying(25, gib, 0)}, {time.Minute, copying(50, 2*gib, 256*mib)}}, time.Second, 0,
			"copying 50%, 2.0/4.0 GiB, 256.0 MiB/s, 8s left"},
		{"nothing that could stall", []step{{0, Sample{Stage: "publishing", Percent: 99, Done: 4 * gib, Total: 4 * gib, Rate: mib}}}, time.Minute, 0,
			"publishing 99%, 4.0/4.0 GiB"},
		{"a second attempt from the start", []step{{0, copying(50, 2*gib, 256*mib)}, {time.Second, secondTry}}, 0, 0,
			"copying (attempt 2) 50%, 0.2/4.0 GiB, 256.0 MiB/s, 15s left"},
		{"percent falls", []step{{0, copying(50, 2*gib, 0)}, {time.Second, Sample{Stage: "queued", Percent: 49}}}, 0, 0,
			"queued 50%"},
		{"small file", []step{{0, Sample{Stage: "uploading", Percent: 50, Done: 1, Total: 1000, Moving: true}}}, 0, 0,
			"uploading 50%,    1/1000 B"},
		{"hostile stage", []step{{0, Sample{Stage: "\x1b[2J"}}}, 0, 0, "\uFFFD[2J 0%"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var m meter
			now := time.Unix(1_000_000, 0)
			for _, s := range tt.steps {
				now = now.Add(s.after)
				m.set(s.Sample, now)
			}
			if got := m.line(now.Add(tt.later), tt.columns); got != tt.want {
				t.Errorf("got\n%s\nwant\n%s", got, tt.want)
			}
		})
	}
}

// FuzzBarLine: no sample makes a line that is too long, or none at all.
func FuzzBarLine(f *testing.F) {
	f.Add("copying", 50, int64(1), int64(2), int64(3), 2, 80)
	f.Add("queued", -1, int64(-1), int64(-2), int64(-3), -1, 1)
	f.Fuzz(func(t *testing.T, stage string, percent int, done, total, rate int64, attempt, columns int) {
		columns = min(max(columns, 1), 500)
		var m meter
		now := time.Unix(1_000_000, 0)
		m.set(Sample{Stage: stage, Percent: percent, Done: done, Total: total, Rate: rate, Attempt: attempt, Moving: true}, now)
		line := m.line(now.Add(time.Second), columns)
		if n := len([]rune(line)); n >= columns {
			t.Errorf("%d columns for a terminal of %d: %q", n, columns, line)
		}
	})
}

func fixed(columns int) func() int { return func() int { return columns } }

func TestBarOnATerminal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out strings.Builder
		b := NewBar(&out, fixed(40))
		b.Set(Sample{Stage: "queued"})
		time.Sleep(250 * time.Millisecond)
		b.Set(Sample{Stage: "succeeded", Percent: 100})
		b.Stop()
		queued := "\rqueued       0% [---------------------]"
		want := strings.Repeat(queued, 3) + strings.Repeat("\rsucceeded  100% [#####################]", 2) + "\n"
		if out.String() != want {
			t.Errorf("got\n%q\nwant\n%q", out.String(), want)
		}
	})
}

func TestBarInALog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out strings.Builder
		b := NewBar(&out, nil)
		time.Sleep(500 * time.Millisecond) // so that no sample coincides with a line
		sample := Sample{Stage: "copying", Total: 100 * mib, Rate: 10 * mib, Attempt: 1, Moving: true}
		for second := range 8 {
			sample.Percent, sample.Done = second, int64(second)*mib
			b.Set(sample)
			time.Sleep(time.Second)
		}
		time.Sleep(7500 * time.Millisecond)
		b.Set(Sample{Stage: "failed", Percent: 7})
		b.Stop()
		want := strings.Join([]string{
			"copying 0%,   0.0/100.0 MiB, 10.0 MiB/s, 10s left",
			"copying 4%,   4.0/100.0 MiB, 10.0 MiB/s, 10s left",
			"copying 7%,   7.0/100.0 MiB, 10.0 MiB/s, 10s left",
			"copying 7%,   7.0/100.0 MiB, stalled 8s",
			"failed 7%", "",
		}, "\n")
		if out.String() != want {
			t.Errorf("got\n%s\nwant\n%s", out.String(), want)
		}
	})
}

func TestBarWithoutASample(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out strings.Builder
		b := NewBar(&out, fixed(80))
		time.Sleep(time.Second)
		b.Stop()
		if out.Len() > 0 {
			t.Errorf("got %q", out.String())
		}
	})
}

func TestFormatBytes(t *testing.T) {
	t.Parallel()
	for n, want := range map[int64]string{
		0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", mib - 1: "1023.9 KiB", mib: "1.0 MiB", 1536 * mib: "1.5 GiB",
		1 << 50: "1.0 PiB", 1<<62 - 1: "4.0 EiB",
	} {
		if got := formatBytes(n); got != want {
			t.Errorf("%d: got %s, want %s", n, got, want)
		}
	}
}
