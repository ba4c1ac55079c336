package webhook

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"time"

	"vmimport/tasks"
)

// The types of events.
const (
	typeState = "state" // a task has come to a state
	typeReset = "reset" // what was next is not kept any more
)

// event is the body of a delivery.
type event struct {
	// ID is the same for all deliveries of the same event.
	ID     string       `json:"id"`
	Type   string       `json:"type"`
	Tenant tasks.Tenant `json:"tenant"`
	*change
}

// change is what an event of typeState has besides.
type change struct {
	Dialect  string         `json:"dialect"`
	Region   string         `json:"region"`
	Project  string         `json:"project"`
	Kind     tasks.Kind     `json:"kind"`
	TaskID   tasks.ID       `json:"task_id"`
	Name     string         `json:"name"`
	State    tasks.State    `json:"state"`
	Progress int            `json:"progress"`
	Attempt  tasks.Epoch    `json:"attempt"`
	At       time.Time      `json:"at"`
	Failure  *tasks.Failure `json:"failure,omitempty"`
}

func stateEvent(tenant tasks.Tenant, c *tasks.Change) event {
	return event{
		ID: eventID(typeState, tenant, c.Mark), Type: typeState, Tenant: tenant,
		change: &change{
			Dialect: c.Dialect, Region: c.Region, Project: c.Project,
			Kind: c.Kind, TaskID: c.ID, Name: c.Name,
			State: c.State, Progress: c.Progress, Attempt: c.Epoch, At: c.At.UTC(), Failure: c.Failure,
		},
	}
}

// resetEvent tells that what followed a mark is lost.
func resetEvent(tenant tasks.Tenant, mark string) event {
	return event{ID: eventID(typeReset, tenant, mark), Type: typeReset, Tenant: tenant}
}

// eventID names an event. Marks are unique within a tenant only, and names of tenants may
// hold anything; an id is a part of what is signed, whose parts are told apart by dots.
func eventID(kind string, tenant tasks.Tenant, mark string) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s\x00%s\x00%s", kind, tenant, mark))
	return "evt_" + hex.EncodeToString(sum[:16])
}

func (e event) body() ([]byte, error) {
	b, err := json.Marshal(e)
	if err != nil {
		return nil, fmt.Errorf("event %s: %w", e.ID, err)
	}
	return b, nil
}
