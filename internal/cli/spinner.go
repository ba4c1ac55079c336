package cli

import (
	"fmt"
	"io"
	"sync"
	"time"
)

const (
	turn        = 200 * time.Millisecond // of the spinner on a terminal
	remindEvery = time.Minute            // between two equal lines elsewhere
)

// spinner shows something that takes a time which nobody knows: as one line that is
// drawn again and again on a terminal, else as a line for each new text, and one now
// and then.
type spinner struct {
	w       io.Writer
	columns func() int
	quit    chan struct{}
	ended   chan struct{}

	mu    sync.Mutex
	text  string
	began time.Time
	turns int
}

// newSpinner returns a spinner that shows on w what set gives it, until stop.
func newSpinner(w io.Writer, columns func() int) *spinner {
	s := &spinner{w: w, columns: columns, quit: make(chan struct{}), ended: make(chan struct{}), began: time.Now()}
	go s.run()
	return s
}

func (s *spinner) run() {
	defer close(s.ended)
	every := remindEvery
	if s.columns() > 0 {
		every = turn
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			s.mu.Lock()
			s.turns++
			s.draw(string(`|/-\`[s.turns%4]))
			s.mu.Unlock()
		case <-s.quit:
			return
		}
	}
}

// set gives the spinner a new text.
func (s *spinner) set(text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if text != s.text {
		s.text = text
		s.draw("|")
	}
}

// stop leaves the last line behind.
func (s *spinner) stop() {
	close(s.quit)
	<-s.ended
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.text != "" && s.columns() > 0 {
		s.draw(" ")
		fmt.Fprintln(s.w)
	}
}

func (s *spinner) draw(hand string) {
	if s.text == "" {
		return
	}
	text, elapsed := clean(s.text), formatDuration(time.Since(s.began))
	columns := s.columns()
	if columns <= 0 {
		fmt.Fprintf(s.w, "%s, %s\n", text, elapsed)
		return
	}
	line := []rune(hand + " " + elapsed + "  " + text)
	// The last column stays free: some terminals wrap when it is written.
	fmt.Fprintf(s.w, "\r%-*s", columns-1, string(line[:min(len(line), columns-1)]))
}
