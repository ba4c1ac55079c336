package pipeline

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"sync"

	"vmimport/internal/diskimage/encode"
	"vmimport/internal/fault"
	"vmimport/storage"
	"vmimport/tasks"
)

// exportCheckpoint is the point from which the next attempt on an export can go on.
type exportCheckpoint struct {
	// Encoder is encode.Version of who wrote the parts. It matters until all are there.
	Encoder int `json:"encoder"`
	// Mark is how far the image was read, and State what its encoder needs from there.
	Mark  *storage.Mark `json:"mark,omitempty"`
	State []byte        `json:"state,omitempty"`
	// Offset is how long the file was by then, and Sums are the states of its digests; none if
	// it is not written in order.
	Offset int64             `json:"offset,omitempty"`
	Sums   map[string][]byte `json:"sums,omitempty"`
	// Parts are stored, and all of the file up to Offset but for its head.
	Parts []storage.Part `json:"parts"`
	// Whole is the object, once all its parts are stored.
	Whole *tasks.ObjectResult `json:"whole,omitempty"`
}

// loadCheckpoint reads what an earlier attempt saved, as that of an import does.
func (a exporting) loadCheckpoint(ctx context.Context, saved []byte) (cp exportCheckpoint, err error) {
	if len(saved) == 0 {
		return cp, nil
	}
	dec := json.NewDecoder(bytes.NewReader(saved))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&cp); err != nil || (cp.Mark == nil) == (cp.Whole == nil) || cp.Mark != nil && cp.Encoder != encode.Version {
		a.log.Warn().Err(err).Msg("checkpoint of another version is dropped")
		return exportCheckpoint{}, a.dropCheckpoint(ctx)
	}
	return cp, nil
}

// savePoint records cp, which is about that many bytes of the image.
func (a exporting) savePoint(ctx context.Context, cp exportCheckpoint, reached int64) error {
	cp.Encoder = encode.Version
	if cp.Whole != nil {
		cp = exportCheckpoint{Encoder: cp.Encoder, Parts: cp.Parts, Whole: cp.Whole}
	}
	b, err := json.Marshal(cp)
	if err != nil {
		return fmt.Errorf("encode checkpoint: %w", err)
	}
	return a.saveCheckpoint(ctx, b, reached)
}

// exportSaver records how far an export has got: where a part was cut, the image's digests
// have a mark, and the store has all parts up to there. These three come from three
// goroutines, in any order.
type exportSaver struct {
	exporting
	parts *partWriter
	kick  chan struct{}
	ended chan struct{}

	mu   sync.Mutex
	cuts []exportCut // by where they are
}

// exportCut is the end of a part.
type exportCut struct {
	place
	at    int64 // in the image
	state []byte
	mark  *storage.Mark // nil until it has come
}

func startExportSaver(ctx context.Context, a exporting, parts *partWriter) *exportSaver {
	s := &exportSaver{exporting: a, parts: parts, kick: make(chan struct{}, 1), ended: make(chan struct{})}
	parts.onDone = s.look
	go s.run(ctx)
	return s
}

// cut notes the end of a part, where the encoder was in that state.
func (s *exportSaver) cut(at int64, state []byte) error {
	here, err := s.parts.here()
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cuts = append(s.cuts, exportCut{place: here, at: at, state: state})
	return nil
}

// mark is a storage.Options.OnMark. The encoder has taken all up to the mark by then.
func (s *exportSaver) mark(m storage.Mark) {
	s.mu.Lock()
	for i := range s.cuts {
		if s.cuts[i].at == m.Offset {
			s.cuts[i].mark = &m
		}
	}
	s.mu.Unlock()
	s.look()
}

// look has run look for something to save. It does not block.
func (s *exportSaver) look() {
	select {
	case s.kick <- struct{}{}:
	default:
	}
}

// stop is called when nothing comes any more.
func (s *exportSaver) stop() {
	close(s.kick)
	<-s.ended
}

func (s *exportSaver) run(ctx context.Context) {
	defer close(s.ended)
	for range s.kick {
		cp, ok := s.latest()
		if !ok || !goesOn(ctx) {
			continue
		}
		err := s.save(context.WithoutCancel(ctx), cp)
		switch {
		case fault.KindOf(err) == fault.Fenced:
			s.heart.stop(tasks.ErrClaimLost)
		case err != nil: // it only makes a later attempt start further back
			s.log.Warn().Err(err).Msg("checkpoint not saved")
		}
	}
}

func (s *exportSaver) save(ctx context.Context, cp exportCheckpoint) error {
	ctx, cancel := context.WithTimeout(ctx, s.r.opt.Lease)
	defer cancel()
	return s.savePoint(ctx, cp, cp.Mark.Offset)
}

// latest returns the furthest cut that can be gone on from, and forgets it and all before.
func (s *exportSaver) latest() (cp exportCheckpoint, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := len(s.cuts) - 1; i >= 0; i-- {
		c := s.cuts[i]
		if c.mark == nil {
			continue
		}
		if parts, stored := s.parts.upTo(c.parts); stored {
			s.cuts = s.cuts[i+1:]
			return exportCheckpoint{Mark: c.mark, State: c.state, Offset: c.offset, Sums: c.sums, Parts: parts}, true
		}
	}
	return cp, false
}
