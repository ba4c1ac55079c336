package aliyun

import (
	"errors"
	"fmt"
	"slices"
	"strconv"

	"vmimport/tasks"
)

// taskAction is what all tasks here are of.
const taskAction = "ImportImage"

// cancelTask answers CancelTask.
func (cl *call) cancelTask() (any, error) {
	id, err := cl.taskID()
	if err != nil {
		return nil, err
	}
	switch _, err := cl.d.service.Cancel(cl, cl.scope(), id); {
	case errors.Is(err, tasks.ErrUnknown):
		return nil, errTaskUnknown
	case errors.Is(err, tasks.ErrFinished), errors.Is(err, tasks.ErrCancelRequested):
		return nil, errTaskStatus
	case err != nil:
		return nil, fmt.Errorf("cancel task: %w", err)
	}
	return cl.base(), nil
}

// taskID reads the parameter TaskId.
func (cl *call) taskID() (tasks.ID, error) {
	id := cl.params["TaskId"]
	switch {
	case id == "":
		return "", missing("TaskId")
	case !isTask(id):
		return "", errTaskUnknown
	}
	return tasks.ID(id), nil
}

type tasksAnswer struct {
	base
	RegionId string
	page
	TotalCount int
	TaskSet    struct{ Task []taskEntry }
}

// taskEntry is what lists tell of a task.
type taskEntry struct {
	TaskId, TaskAction, TaskStatus string
	SupportCancel                  string // "true" or "false"; generated clients have it as text
	CreationTime, FinishedTime     string
	ResourceId                     string
}

// describeTasks answers DescribeTasks.
func (cl *call) describeTasks() (any, error) {
	at, ok := cl.params.page()
	if !ok {
		return nil, errParameter.because("PageNumber is at least 1, and PageSize from 1 to %d.", maxList)
	}
	q, err := cl.tasksQuery()
	if err != nil {
		return nil, err
	}
	found, total, err := cl.find(q, at)
	if err != nil {
		return nil, err
	}
	answer := tasksAnswer{base: cl.base(), RegionId: cl.region.ID, page: at, TotalCount: total}
	answer.TaskSet.Task = make([]taskEntry, 0, len(found))
	for _, imp := range found {
		answer.TaskSet.Task = append(answer.TaskSet.Task, taskEntry{
			TaskId: string(imp.ID), TaskAction: taskAction, TaskStatus: states[imp.Phase()].task, SupportCancel: supportsCancel(imp),
			CreationTime: formatTime(imp.RequestedAt, shortTime), FinishedTime: formatTime(imp.FinishedAt, shortTime), ResourceId: imageOf(imp),
		})
	}
	return answer, nil
}

// find returns a part of what q selects; nil selects nothing.
func (cl *call) find(q *tasks.Query, at page) (found []*tasks.Task, total int, err error) {
	if q == nil {
		return nil, 0, nil
	}
	found, total, err = cl.d.service.Find(cl, cl.scope(), at.of(*q))
	if err != nil {
		return nil, 0, fmt.Errorf("list imports: %w", err)
	}
	return found, total, nil
}

// tasksQuery reads what DescribeTasks is to list; nil is nothing.
func (cl *call) tasksQuery() (*tasks.Query, error) {
	q := &tasks.Query{}
	taskIDs, ok := cl.params.list("TaskIds")
	if !ok {
		return nil, errParameter.because("TaskIds are at most %d, separated by commas.", maxList)
	}
	if taskIDs != nil {
		q.IDs = selected(taskIDs, func(id string) (tasks.ID, bool) { return tasks.ID(id), isTask(id) })
	}
	resources, malformed := cl.params.numbers("ResourceIds")
	if malformed != "" || len(resources) > maxList {
		return nil, errParameter.because("ResourceIds are at most %d, numbered from 1.", maxList)
	}
	if len(resources) > 0 {
		var images []string
		for _, n := range resources {
			images = append(images, cl.params["ResourceIds."+strconv.Itoa(n)])
		}
		of := selected(images, taskOfImage)
		if q.IDs != nil {
			of = slices.DeleteFunc(of, func(id tasks.ID) bool { return !slices.Contains(q.IDs, id) })
		}
		q.IDs = of
	}

	created, ok := cl.params.span("StartTime", "EndTime")
	if !ok {
		return nil, errParameter.because("StartTime and EndTime are of the form 2006-01-02T15:04:05Z, in UTC.")
	}
	if created != (span{}) {
		q.Match = func(imp *tasks.Task) bool { return created.holds(imp.RequestedAt) }
	}

	if phase, ok := filterable[cl.params["TaskStatus"]]; ok {
		q.Phases = []tasks.Phase{phase}
	}
	// There are tasks of this kind only.
	if _, ok := oneOf(cl.params["TaskAction"], taskAction, "IMPORT_IMAGE"); !ok {
		return nil, nil
	}
	return q, nil
}

// filterable are the states that DescribeTasks filters by. Any other is as if it were left
// out.
var filterable = map[string]tasks.Phase{
	"Processing": tasks.PhaseWorking,
	"Finished":   tasks.PhaseSucceeded,
	"Failed":     tasks.PhaseFailed,
}

// selected returns the imports that ids are of. It is not nil: ids that are none select
// nothing, not all.
func selected(ids []string, importOf func(string) (tasks.ID, bool)) []tasks.ID {
	selected := []tasks.ID{}
	for _, id := range ids {
		if imp, ok := importOf(id); ok {
			selected = append(selected, imp)
		}
	}
	return selected
}
