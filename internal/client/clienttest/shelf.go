package clienttest

import (
	"fmt"
	"net/http"
	"slices"
	"strconv"

	"vmimport/internal/client"
	"vmimport/tasks"
)

// shelf keeps the tasks of one kind, and answers the calls that both kinds have. Who
// calls it has the mutex of its Service.
type shelf struct {
	kind      tasks.Kind
	most      int      // length of a list
	requested string   // code of a second cancel
	records   []record // oldest first
}

type record struct {
	id       tasks.ID
	steps    []client.Task // the first is what a status call answers
	canceled bool
}

func newShelf(kind tasks.Kind, most int, requested string) *shelf {
	return &shelf{kind: kind, most: most, requested: requested}
}

func (s *shelf) add(id tasks.ID, steps []client.Task) {
	s.records = append(s.records, record{id: id, steps: steps})
}

// register adds a task and answers with its id.
func (s *shelf) register(w http.ResponseWriter, steps []client.Task) {
	id := tasks.ID(fmt.Sprintf("00000000-0000-4000-8000-%012d", len(s.records)+1))
	s.add(id, steps)
	answer(w, http.StatusCreated, map[string]tasks.ID{string(s.kind) + "_id": id})
}

func (s *shelf) list(w http.ResponseWriter, r *http.Request) {
	start, limit := 0, s.most
	for name, v := range map[string]*int{"start": &start, "limit": &limit} {
		if text := r.FormValue(name); text != "" {
			var err error
			if *v, err = strconv.Atoi(text); err != nil || *v < 0 {
				refuse(w, http.StatusBadRequest, "40035", "Query parameter '"+name+"' has invalid value.")
				return
			}
		}
	}
	entries := []any{}
	for _, rec := range slices.Backward(s.records) {
		entries = append(entries, rec.entry())
	}
	start = min(start, len(entries))
	entries = entries[start:min(len(entries), start+min(limit, s.most))]
	answer(w, http.StatusOK, map[string][]any{string(s.kind) + "s": entries})
}

// entry is the record's line in a list.
func (rec *record) entry() any {
	switch now := rec.steps[0].(type) {
	case *client.Export:
		return client.ExportEntry{ExportID: rec.id, State: now.State, ImageID: now.ImageID, RequestTime: now.RequestTime}
	default:
		return client.Entry{ImportID: rec.id, State: now.Summary().State}
	}
}

// find returns a record, or answers that there is none.
func (s *shelf) find(w http.ResponseWriter, r *http.Request) *record {
	i := slices.IndexFunc(s.records, func(rec record) bool { return string(rec.id) == r.PathValue("id") })
	if i < 0 {
		refuse(w, http.StatusNotFound, "40401", "Invalid "+string(s.kind)+"_id.")
		return nil
	}
	return &s.records[i]
}

func (s *shelf) status(w http.ResponseWriter, r *http.Request) {
	if rec := s.find(w, r); rec != nil {
		now := rec.steps[0]
		if len(rec.steps) > 1 {
			rec.steps = rec.steps[1:]
		}
		answer(w, http.StatusOK, now)
	}
}

func (s *shelf) cancel(w http.ResponseWriter, r *http.Request) {
	rec := s.find(w, r)
	switch {
	case rec == nil:
	case rec.canceled:
		refuse(w, http.StatusBadRequest, s.requested, "A cancel of this "+string(s.kind)+" was already accepted.")
	case rec.steps[0].Summary().State.Final():
		refuse(w, http.StatusNotFound, "40402", "The "+string(s.kind)+" has already finished.")
	default:
		rec.canceled = true
		now := rec.steps[0]
		rec.steps = []client.Task{inState(now, tasks.Cancelling), inState(now, tasks.Canceled)}
		w.WriteHeader(http.StatusAccepted)
	}
}

func (s *shelf) retry(w http.ResponseWriter, r *http.Request) {
	rec := s.find(w, r)
	switch {
	case rec == nil:
	case rec.steps[0].Summary().State != tasks.Failed:
		refuse(w, http.StatusBadRequest, client.CodeNotFailed, "Only what has failed can be tried again.")
	default:
		now := rec.steps[0]
		rec.steps = []client.Task{inState(now, tasks.Queued), inState(now, tasks.Succeeded)}
		w.WriteHeader(http.StatusAccepted)
	}
}

// inState returns a copy of a task in another state.
func inState(t client.Task, state tasks.State) client.Task {
	switch t := t.(type) {
	case *client.Export:
		e := *t
		e.State = state
		return &e
	default:
		imp := *t.(*client.Import)
		imp.State = state
		return &imp
	}
}

// pointer is what makes a task of a T.
type pointer[T any] interface {
	*T
	client.Task
}

// stepsOf returns copies of what a test has decided.
func stepsOf[T any, P pointer[T]](steps []T) []client.Task {
	var out []client.Task
	for _, step := range steps {
		out = append(out, P(&step))
	}
	return out
}

// planned is stepsOf backwards.
func planned[T any, P pointer[T]](plan []client.Task) []T {
	var out []T
	for _, step := range plan {
		out = append(out, *step.(P))
	}
	return out
}
