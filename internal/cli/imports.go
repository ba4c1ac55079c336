package cli

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"vmimport/internal/client"
	"vmimport/tasks"
)

// imports are the commands about imports.
func (a *app) imports() *kind[*client.Import, client.Entry] {
	return &kind[*client.Import, client.Entry]{
		app: a, name: tasks.KindImport, group: "vmimport", made: "image", begins: "import and push print",
		get: (*client.Client).Status, stop: (*client.Client).Cancel, again: (*client.Client).Retry, requested: client.CodeCancelRequested, all: (*client.Client).List,
		wait: func(c *client.Client, ctx context.Context, id tasks.ID, interval time.Duration, p *Progress) (*client.Import, error) {
			return c.WaitFor(ctx, id, interval, p.Observer())
		},
		table: importTable,
		next:  func(*client.Import) []string { return nil },
		heads: []string{"IMPORT", "STATUS"},
		line:  func(e client.Entry) []string { return []string{string(e.ImportID), string(e.State)} },

		longHeads: []string{"IMPORT", "STATUS", "PROGRESS", "NAME", "IMAGE"},
		longLine: func(imp *client.Import) []string {
			return []string{string(imp.ImportID), string(imp.State), fmt.Sprintf("%d%%", imp.Progress), imp.Name, imp.ID}
		},
	}
}

// importTable tells what is known about an import, a line for each thing.
func importTable(imp *client.Import) table {
	x := imp.Extra
	var billing client.Billing
	if imp.BillingInfo != nil {
		billing = *imp.BillingInfo
	}
	t := append(standing(imp),
		[]string{"name", imp.Name},
		[]string{"image", imp.ID},
		[]string{"location", imp.Location + imp.S3Location},
		[]string{"checksum", imp.Checksum},
		[]string{"os type", cmp.Or(imp.OSType, billing.OSType)},
		[]string{"base image", billing.BaseImageID},
	)
	t = append(t, moved(imp)...)
	t = append(t, []string{"source format", x.SourceFormat}, []string{"capacity", capacity(x.VirtualSize)})
	if x.Disks > 0 {
		t = append(t, []string{"disks", fmt.Sprint(x.Disks)})
	}
	for _, name := range slices.Sorted(maps.Keys(x.Digests)) {
		t = append(t, []string{name, x.Digests[name]})
	}
	return slices.Concat(t, outcome(imp), attempts(imp))
}
