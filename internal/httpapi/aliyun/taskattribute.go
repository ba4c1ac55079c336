package aliyun

import (
	"cmp"
	"errors"
	"fmt"
	"strings"

	"vmimport/tasks"
)

type taskAnswer struct {
	base
	RegionId, TaskId, TaskAction, TaskStatus string
	TaskProcess                              string
	SupportCancel                            string
	CreationTime, FinishedTime               string

	TotalCount, SuccessCount, FailedCount int
	OperationProgressSet                  struct{ OperationProgress []operation }
}

// operation is the import of one disk.
type operation struct {
	OperationStatus     string
	ErrorCode, ErrorMsg string // empty without an error
	RelatedItemSet      struct{ RelatedItem []relatedItem }
}

type relatedItem struct{ Name, Value string }

// describeTaskAttribute answers DescribeTaskAttribute.
func (cl *call) describeTaskAttribute() (any, error) {
	id, err := cl.taskID()
	if err != nil {
		return nil, err
	}
	imp, err := cl.d.service.Get(cl, cl.scope(), id)
	if errors.Is(err, tasks.ErrUnknown) {
		return nil, errTaskUnknown
	}
	if err != nil {
		return nil, fmt.Errorf("describe task: %w", err)
	}
	more, err := detailsOf(imp)
	if err != nil {
		return nil, err
	}
	answer := taskAnswer{
		base: cl.base(), RegionId: cl.region.ID, TaskId: string(imp.ID), TaskAction: taskAction, TaskStatus: states[imp.Phase()].task,
		TaskProcess: percent(imp.Progress), SupportCancel: supportsCancel(imp),
		CreationTime: formatTime(imp.RequestedAt, shortTime), FinishedTime: formatTime(imp.FinishedAt, shortTime),
		TotalCount: len(imp.Disks),
	}
	for i := range imp.Disks {
		op := operationOf(imp, more, i)
		switch op.OperationStatus {
		case "Success":
			answer.SuccessCount++
		case "Failed":
			answer.FailedCount++
		}
		answer.OperationProgressSet.OperationProgress = append(answer.OperationProgressSet.OperationProgress, op)
	}
	return answer, nil
}

// operationOf tells how disk i fares. As disks are imported all or none, none has
// succeeded before the end; and of one that failed, those before it were in order.
func operationOf(imp *tasks.Task, more *details, i int) operation {
	var op operation
	switch imp.Phase() {
	case tasks.PhaseSucceeded:
		op.OperationStatus = "Success"
	case tasks.PhaseCanceled:
		op.OperationStatus, op.ErrorMsg = "Failed", "The task was canceled."
	case tasks.PhaseFailed:
		op.OperationStatus, op.ErrorCode, op.ErrorMsg = failedOperation(imp, i+1)
	default:
		op.OperationStatus = "Processing"
	}
	disk := more.Disks[i]
	op.RelatedItemSet.RelatedItem = []relatedItem{
		{"OSSBucket", disk.Bucket},
		{"OSSObject", disk.Object},
		{"ImageFormat", formatOf(imp, more, i)},
		{"ImageId", imageOf(imp)},
	}
	return op
}

// failedOperation tells of disk number of an import that has failed.
func failedOperation(imp *tasks.Task, number int) (status, code, message string) {
	why, culprit := imp.Failure.Fault(), imp.Failure.Disk
	switch {
	case number < cmp.Or(culprit, imp.Counters.Disk):
		return "Success", "", ""
	case culprit > 0 && number > culprit:
		return "Failed", errImportFailed.code, fmt.Sprintf("It was not imported, as disk %d failed.", culprit)
	}
	return "Failed", problemOfFailure(why).code, why.Sentences()
}

// formatOf is the format of disk i: as asked for, else as found.
func formatOf(imp *tasks.Task, more *details, i int) string {
	return cmp.Or(more.Disks[i].Format, strings.ToUpper(imp.Disks[i].Detected))
}
