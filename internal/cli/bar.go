package cli

import (
	"fmt"
	"io"
	"math"
	"strings"
	"sync"
	"time"
)

const (
	redraw     = 100 * time.Millisecond // of a line on a terminal
	plainEvery = 5 * time.Second        // between lines elsewhere
	stallAfter = 5 * time.Second        // several beats of a worker, and looks at it
	smoothing  = 5 * time.Second        // time constant of the rate
	measure    = 200 * time.Millisecond // shortest time that a rate is taken over
)

// Sample is what a Bar shows: how far something is at one moment.
type Sample struct {
	Stage       string // what is being done, in a word
	Percent     int    // 0 to 100
	Done, Total int64  // bytes, of this attempt; Total 0 leaves them out
	Rate        int64  // bytes per second as someone measured it; 0: the Bar measures
	Attempt     int    // shown from the second on
	// Moving says that bytes should be moving, so that a rate and the time left
	// make sense, and standing still is a stall.
	Moving bool
}

// Bar shows how far something is: as one line that is drawn again and again on
// a terminal, else as a line every few seconds and for each new stage.
//
// What it shows is true: the percentage never falls, even when a new attempt
// begins again; bytes and rate are the attempt's own; and a transfer that
// stands still is called stalled, rather than given the rate it once had.
type Bar struct {
	w       io.Writer
	columns func() int
	quit    chan struct{}
	ended   chan struct{}

	mu    sync.Mutex
	meter meter
	last  string // line shown
}

// NewBar returns a Bar that shows on w what Set gives it, until Stop. columns
// reports the terminal's width, 0 if w is none; nil is the same as 0.
func NewBar(w io.Writer, columns func() int) *Bar {
	if columns == nil {
		columns = func() int { return 0 }
	}
	b := &Bar{w: w, columns: columns, quit: make(chan struct{}), ended: make(chan struct{})}
	go b.run()
	return b
}

func (b *Bar) run() {
	defer close(b.ended)
	every := plainEvery
	if b.columns() > 0 {
		every = redraw
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			b.mu.Lock()
			b.draw()
			b.mu.Unlock()
		case <-b.quit:
			return
		}
	}
}

// Set gives the Bar something new to show.
func (b *Bar) Set(s Sample) {
	b.mu.Lock()
	defer b.mu.Unlock()
	fresh := s.Stage != b.meter.now.Stage || s.Attempt != b.meter.now.Attempt
	b.meter.set(s, time.Now())
	if fresh {
		b.draw()
	}
}

// Stop draws a last time and leaves the line behind.
func (b *Bar) Stop() {
	close(b.quit)
	<-b.ended
	b.mu.Lock()
	defer b.mu.Unlock()
	b.draw()
	if b.last != "" && b.columns() > 0 {
		fmt.Fprintln(b.w)
	}
}

func (b *Bar) draw() {
	if b.meter.now.Stage == "" {
		return
	}
	columns := b.columns()
	line := b.meter.line(time.Now(), columns)
	switch {
	case columns > 0:
		// The last column stays free: some terminals wrap when it is written.
		fmt.Fprintf(b.w, "\r%-*s", columns-1, line)
	case line != b.last:
		fmt.Fprintln(b.w, line)
	}
	b.last = line
}

// meter turns samples into what is worth showing.
type meter struct {
	now     Sample
	percent int       // the highest so far
	rate    float64   // smoothed, bytes per second; 0: not known
	from    int64     // Done when the rate was last taken
	taken   time.Time // then
	moved   time.Time // when Done last changed
}

func (m *meter) set(s Sample, t time.Time) {
	last := m.now
	m.now = s
	m.percent = max(m.percent, min(s.Percent, 100))
	if s.Stage != last.Stage || s.Attempt != last.Attempt || s.Done < last.Done {
		m.rate, m.from, m.taken, m.moved = float64(s.Rate), s.Done, t, t
		return
	}
	if s.Done != last.Done {
		m.moved = t
	}
	dt := t.Sub(m.taken)
	if dt < measure {
		return
	}
	rate := float64(s.Done-m.from) / dt.Seconds()
	if s.Rate > 0 {
		rate = float64(s.Rate)
	}
	if m.rate == 0 {
		m.rate = rate
	} else {
		m.rate += (rate - m.rate) * (1 - math.Exp(-dt.Seconds()/smoothing.Seconds()))
	}
	m.from, m.taken = s.Done, t
}

// line renders m for a terminal of that width, or for a log if it is 0. What
// does not fit is left out, the least important first.
func (m *meter) line(t time.Time, columns int) string {
	stage := clean(m.now.Stage)
	if m.now.Attempt > 1 {
		stage += fmt.Sprintf(" (attempt %d)", m.now.Attempt)
	}
	details := m.details(t)
	if columns <= 0 {
		return fmt.Sprintf("%s %d%%%s", stage, m.percent, join(", %s", details))
	}
	head := fmt.Sprintf("%-10s %3d%%", stage, m.percent)
	const shortest = len(" [          ]")
	const field = "  %-12s" // wide enough that the line keeps still
	for len(details) > 0 && len(head)+shortest+len(join(field, details)) >= columns {
		details = details[:len(details)-1]
	}
	tail := join(field, details)
	if room := columns - 1 - len(head) - len(tail) - len(" []"); room >= shortest-len(" []") {
		full := min(room, 50) * m.percent / 100
		head += " [" + strings.Repeat("#", full) + strings.Repeat("-", min(room, 50)-full) + "]"
	}
	line := []rune(strings.TrimRight(head+tail, " "))
	return string(line[:min(len(line), max(0, columns-1))])
}

func (m *meter) details(t time.Time) []string {
	var out []string
	if m.now.Total > 0 {
		out = append(out, formatPart(m.now.Done, m.now.Total))
	}
	if !m.now.Moving {
		return out
	}
	if still := t.Sub(m.moved); still >= stallAfter {
		return append(out, "stalled "+formatDuration(still))
	}
	if m.rate < 1 {
		return out
	}
	out = append(out, formatBytes(int64(m.rate))+"/s")
	left := float64(m.now.Total-m.now.Done) / m.rate
	if left > 0 && left < (1000*time.Hour).Seconds() {
		out = append(out, formatDuration(time.Duration(left*float64(time.Second)))+" left")
	}
	return out
}

// join formats each part.
func join(format string, parts []string) string {
	var s strings.Builder
	for _, p := range parts {
		fmt.Fprintf(&s, format, p)
	}
	return s.String()
}

func formatDuration(d time.Duration) string {
	s := int64(math.Ceil(d.Seconds()))
	switch {
	case s < 60:
		return fmt.Sprintf("%ds", s)
	case s < 3600:
		return fmt.Sprintf("%dm%02ds", s/60, s%60)
	default:
		return fmt.Sprintf("%dh%02dm", s/3600, s/60%60)
	}
}

var units = []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"}

// scale returns the unit that n is best told in.
func scale(n int64) (unit string, size float64) {
	size = 1
	for _, unit = range units {
		if float64(n) < 1024*size {
			break
		}
		size *= 1024
	}
	return unit, size
}

func formatBytes(n int64) string {
	unit, size := scale(n)
	return formatIn(n, size) + " " + unit
}

// formatPart tells both in the unit of the whole, so that the line keeps still.
func formatPart(n, of int64) string {
	unit, size := scale(of)
	whole := formatIn(of, size)
	return fmt.Sprintf("%*s/%s %s", len(whole), formatIn(n, size), whole, unit)
}

func formatIn(n int64, size float64) string {
	if size == 1 {
		return fmt.Sprint(n)
	}
	return fmt.Sprintf("%.1f", math.Floor(float64(n)/size*10)/10)
}
