package pipeline

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"

	"vmimport/internal/diskimage"
	"vmimport/internal/diskimage/decode"
	"vmimport/internal/fault"
	"vmimport/storage"
	"vmimport/tasks"
)

// checkpoint is the point from which the next attempt can go on: the objects that
// were finished, how far the next one got, and what its decoder needs from there.
type checkpoint struct {
	Done      []tasks.DiskResult   `json:"done"`
	Mark      *storage.Mark        `json:"mark"`
	Positions []diskimage.Position `json:"positions"`
	// Decoder is decode.Version of who wrote the disks: another one might write
	// something else, or the same in other places.
	Decoder int `json:"decoder"`
}

// loadCheckpoint reads what an earlier attempt saved. What it cannot read, such as
// the words of another version, is removed from the record as well: it must not
// outlive what this attempt is about to write, for an attempt that can read it
// would take the one for the other.
func (a importing) loadCheckpoint(ctx context.Context, saved []byte) (cp checkpoint, err error) {
	if len(saved) == 0 {
		return cp, nil
	}
	dec := json.NewDecoder(bytes.NewReader(saved))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&cp); err != nil || cp.Mark == nil || len(cp.Positions) == 0 || cp.Decoder != decode.Version || len(cp.Done) >= len(a.task.Disks) {
		a.log.Warn().Err(err).Msg("checkpoint of another version is dropped")
		return checkpoint{}, a.dropCheckpoint(ctx)
	}
	return cp, nil
}

// point is a mark with what the decoder needs to go on from it.
type point struct {
	mark      storage.Mark
	positions []diskimage.Position
}

// saver makes marks durable and then records them, beside the transfer and never in
// its way: while it is busy, a newer mark takes the place of an older.
type saver struct {
	copy   *objectCopy
	points chan point
	ended  chan struct{}

	mu    sync.Mutex
	notes map[int64][]diskimage.Position // by where the decoder had them
}

func startSaver(ctx context.Context, c *objectCopy) *saver {
	s := &saver{copy: c, points: make(chan point, 1), ended: make(chan struct{}), notes: map[int64][]diskimage.Position{}}
	go s.run(ctx)
	return s
}

// note keeps the decoder's positions at an offset for when all others have got there.
func (s *saver) note(off int64, positions []diskimage.Position) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.notes[off] = positions
}

// recall returns what was noted at an offset, and forgets that and all before it.
func (s *saver) recall(off int64) []diskimage.Position {
	s.mu.Lock()
	defer s.mu.Unlock()
	positions := s.notes[off]
	for at := range s.notes {
		if at <= off {
			delete(s.notes, at)
		}
	}
	return positions
}

// offer does not block. Its calls do not overlap, so that nobody else can take
// the place that it has made.
func (s *saver) offer(m storage.Mark) {
	p := point{m, s.recall(m.Offset)}
	if p.positions == nil {
		return // the decoder was not asked at that offset
	}
	select {
	case <-s.points:
	default:
	}
	s.points <- p
}

func (s *saver) stop() {
	close(s.points)
	<-s.ended
}

func (s *saver) run(ctx context.Context) {
	defer close(s.ended)
	for p := range s.points {
		if !goesOn(ctx) {
			continue
		}
		err := s.save(context.WithoutCancel(ctx), p)
		switch {
		case fault.KindOf(err) == fault.Fenced:
			s.copy.heart.stop(tasks.ErrClaimLost)
		case err != nil:
			// It only makes a later attempt start further back; a disk that
			// cannot be synced is found by its Close.
			s.copy.log.Warn().Err(err).Msg("checkpoint not saved")
		}
	}
}

// goesOn is whether another attempt will begin where this one ends.
func goesOn(ctx context.Context) bool {
	cause := context.Cause(ctx)
	return cause == nil || errors.Is(cause, tasks.ErrDraining) || errors.Is(cause, tasks.ErrTaskLost)
}

func (s *saver) save(ctx context.Context, p point) error {
	for _, t := range s.copy.targets {
		if err := t.w.Sync(); err != nil {
			return err
		}
	}
	b, err := json.Marshal(checkpoint{Done: s.copy.finished, Mark: &p.mark, Positions: p.positions, Decoder: decode.Version})
	if err != nil {
		return fmt.Errorf("encode checkpoint: %w", err)
	}
	reached := p.mark.Offset
	for _, d := range s.copy.finished {
		reached += d.ObjectBytes
	}
	ctx, cancel := context.WithTimeout(ctx, s.copy.r.opt.Lease)
	defer cancel()
	return s.copy.saveCheckpoint(ctx, b, reached)
}
