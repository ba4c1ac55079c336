package cli

import (
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"vmimport/internal/client"
)

// table is text in columns.
type table [][]string

// standing, moved, outcome and attempts are the lines about a task that imports and exports have
// in common, in the order in which they are shown.
func standing(t client.Task) table {
	s := t.Summary()
	return table{
		{string(s.Kind), string(s.ID)},
		{"status", string(s.State)},
		{"progress", fmt.Sprintf("%d%%", s.Progress)},
		{"stage", string(s.Stage)},
		{"queue", place(s.Run)},
	}
}

// place tells where a task waits, if it does.
func place(r client.Run) string {
	if r.QueuePosition == 0 {
		return ""
	}
	text := fmt.Sprintf("number %d", r.QueuePosition)
	if !r.EstimatedStart.IsZero() {
		text += ", starts at about " + formatTime(r.EstimatedStart)
	}
	return text
}

func moved(t client.Task) table {
	s := t.Summary()
	var rows table
	if s.TotalBytes > 0 {
		rows = append(rows, []string{"bytes", fmt.Sprintf("%d of %d", s.DoneBytes, s.TotalBytes)})
	}
	if s.Attempt > 1 {
		rows = append(rows, []string{"attempt", fmt.Sprint(s.Attempt)})
	}
	return rows
}

func outcome(t client.Task) table {
	s := t.Summary()
	return table{
		{"requested", formatTime(s.RequestedAt)},
		{"finished", formatTime(s.FinishedAt)},
		{"error", s.Reason()},
		{"remedy", s.Remedy},
	}
}

// attempts tells what became of each.
func attempts(t client.Task) table {
	s := t.Summary()
	if s.Retried == 0 && len(s.Attempts) < 2 && s.State.Final() && s.KeptUntil.IsZero() {
		return nil // the one that there was ended as the task did
	}
	rows := table{{"kept until", formatTime(s.KeptUntil)}}
	if s.Retried > 0 {
		rows = append(rows, []string{"retried", fmt.Sprint(s.Retried)})
	}
	for _, a := range s.Attempts {
		text := fmt.Sprintf("%d, %s to %s, %s, %s read", a.Attempt, formatTime(a.StartedAt), formatTime(a.EndedAt), a.Outcome, formatBytes(max(0, a.DoneBytes-a.FromBytes)))
		if a.Message != "" {
			text += ": " + a.Message
		}
		if a.Evidence != "" {
			text += " (" + a.Evidence + ")"
		}
		rows = append(rows, []string{"attempt", text})
	}
	return rows
}

// capacity tells the size of a disk, if it is known.
func capacity(n int64) string {
	if n == 0 {
		return ""
	}
	return exactly(n)
}

func formatTime(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339)
}

// print prints a result: doc with --json, else the rows that have a value.
func (a *app) print(doc any, rows table) error {
	if a.json {
		return writeJSON(a.env.Stdout, doc)
	}
	return a.printTable(slices.DeleteFunc(rows, func(row []string) bool { return row[1] == "" }))
}

func (a *app) printTable(rows table) error {
	w := tabwriter.NewWriter(a.env.Stdout, 0, 0, 2, ' ', 0)
	for _, row := range rows {
		for i, cell := range row {
			if i > 0 {
				fmt.Fprint(w, "\t")
			}
			fmt.Fprint(w, clean(cell))
		}
		fmt.Fprintln(w)
	}
	return w.Flush()
}

// ShellWord quotes a word for a shell, if it needs that.
func ShellWord(word string) string {
	const plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-"
	if word != "" && strings.Trim(word, plain) == "" {
		return word
	}
	return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
}
