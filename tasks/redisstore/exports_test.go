package redisstore

import (
	"encoding/json"
	"testing"

	"github.com/google/uuid"

	"vmimport/tasks"
)

// newExport is an export of a new image called web01.
func newExport(tenant tasks.Tenant) *tasks.Spec {
	return &tasks.Spec{
		ID:      tasks.ID(uuid.NewString()),
		Owner:   tasks.Owner{Tenant: tenant, Project: "alpha", User: "alice"},
		Dialect: "fjcloud", Region: region, Name: "web01", ImageID: uuid.NewString(),
		Export: &tasks.Export{
			Form: tasks.FormVMDK, Container: "backup", Format: "qcow2", Bytes: 1 << 20, VirtualBytes: 4 << 20, Version: "v1",
			Metadata: json.RawMessage(`{"name":"web01"}`),
		},
		RequestedAt: start,
	}
}

func scopeOfExport(spec *tasks.Spec) tasks.Scope {
	scope := scopeOf(spec)
	scope.Kind = tasks.KindExport
	return scope
}

// Exports and imports of one tenant share all but what shows them.
func TestKindsAreKeptApart(t *testing.T) {
	everywhere(t, func(t *testing.T, s *Store, clock *clock) {
		ctx := t.Context()
		imp, exp := newSpec("d1"), newExport("d1")
		imp.ImageID = exp.ImageID
		imp.UniqueName = true
		create(t, s, imp)
		got := create(t, s, exp)
		if got.Kind() != tasks.KindExport || got.ImageID != exp.ImageID || got.TotalBytes() != 4<<20 || string(got.Export.Metadata) != `{"name":"web01"}` {
			t.Errorf("new export is %+v", got)
		}
		for _, of := range []struct {
			own, other tasks.Scope
			id         tasks.ID
		}{
			{scopeOf(imp), scopeOfExport(imp), imp.ID},
			{scopeOfExport(exp), scopeOf(exp), exp.ID},
		} {
			for _, project := range []string{"alpha", ""} {
				of.own.Project, of.other.Project = project, project
				if list, err := s.List(ctx, of.own, 0, 10); err != nil || len(list) != 1 || list[0].ID != of.id {
					t.Errorf("list of %+v: %v, %v", of.own, list, err)
				}
				_, err := s.Get(ctx, of.other, of.id)
				wantErr(t, "Get in the other kind", err, tasks.ErrUnknown)
				_, err = s.Cancel(ctx, of.other, of.id)
				wantErr(t, "Cancel in the other kind", err, tasks.ErrUnknown)
				of.other.Dialect = ""
				_, err = s.Cancel(ctx, of.other, of.id)
				wantErr(t, "Cancel in the other kind, of any dialect", err, tasks.ErrUnknown)
			}
		}
		if load := survey(t, s, "d1", clock.now()); load.Waiting != 2 {
			t.Errorf("waiting are %d", load.Waiting)
		}
		if got, err := s.Cancel(ctx, scopeOfExport(exp), exp.ID); err != nil || got != tasks.Canceled {
			t.Errorf("Cancel: %s, %v", got, err)
		}
	})
}

func TestExportsToOnePlace(t *testing.T) {
	everywhere(t, func(t *testing.T, s *Store, clock *clock) {
		ctx := t.Context()
		first := newExport("d1")
		create(t, s, first)
		like := func(change func(*tasks.Spec)) *tasks.Spec {
			spec := newExport("d1")
			spec.ImageID = first.ImageID
			change(spec)
			return spec
		}
		for name, tt := range map[string]struct {
			change func(*tasks.Spec)
			want   error
		}{
			"all the same":                 {func(*tasks.Spec) {}, tasks.ErrNameExporting},
			"another image of that name":   {func(s *tasks.Spec) { s.ImageID = uuid.NewString() }, tasks.ErrNameExporting},
			"the image under another name": {func(s *tasks.Spec) { s.Name = "web02" }, tasks.ErrImageExporting},
			"another container":            {func(s *tasks.Spec) { s.Export.Container = "other" }, nil},
			"another project":              {func(s *tasks.Spec) { s.Owner.Project = "beta" }, nil},
			"another region":               {func(s *tasks.Spec) { s.Region = "jp-west-3" }, nil},
			"the name has a slash":         {func(s *tasks.Spec) { s.Export.Container, s.Name, s.ImageID = "x", "backup/web01", uuid.NewString() }, nil},
		} {
			_, _, err := s.Create(ctx, like(tt.change), tasks.Limits{})
			wantErr(t, name, err, tt.want)
		}
	})
}

// Whatever the end of an export is, its image and name are free again.
func TestEndedExportReservesNothing(t *testing.T) {
	everywhere(t, func(t *testing.T, s *Store, clock *clock) {
		for _, end := range []tasks.State{tasks.Succeeded, tasks.Failed, tasks.Canceled} {
			spec := newExport("d1")
			ctx := t.Context()
			create(t, s, spec)
			held := claim(t, s, spec.Ref()).Held
			var err error
			switch end {
			case tasks.Succeeded:
				result := &tasks.Result{Objects: []tasks.ObjectResult{{Name: "web01.vmdk", Bytes: 7, Digests: map[string]string{"sha1": "00"}}}}
				if err = s.BeginPublish(ctx, held, result); err == nil {
					err = s.Succeed(ctx, held, attemptOf(held, string(end)))
				}
			case tasks.Failed:
				err = s.Fail(ctx, held, tasks.Failure{Code: "x", Message: "X."}, attemptOf(held, string(end)), 0)
			case tasks.Canceled:
				if _, err = s.Cancel(ctx, scopeOfExport(spec), spec.ID); err == nil {
					err = s.Canceled(ctx, held, attemptOf(held, string(end)))
				}
			}
			if err != nil {
				t.Fatal(end, err)
			}
			again := newExport("d1")
			again.ImageID = spec.ImageID
			create(t, s, again)
			if _, err := s.Cancel(ctx, scopeOfExport(again), again.ID); err != nil {
				t.Fatal(err)
			}
			got, err := s.Get(ctx, scopeOfExport(spec), spec.ID)
			if err != nil || got.State != end {
				t.Errorf("%s: %+v, %v", end, got, err)
			}
			if end == tasks.Succeeded && (len(got.Result.Objects) != 1 || got.Result.Objects[0].Name != "web01.vmdk" || got.Progress != 100) {
				t.Errorf("result is %+v", got.Result)
			}
		}
		// Nothing of them outlives their records.
		clock.set(keep + 1)
		if n, err := s.Purge(t.Context(), "d1", 100, clock.now()); err != nil || n != 6 {
			t.Errorf("purged %d, %v", n, err)
		}
		if list, err := s.List(t.Context(), scopeOfExport(newExport("d1")), 0, 10); err != nil || len(list) != 0 {
			t.Errorf("left are %v, %v", list, err)
		}
		left, err := s.rdb.Keys(t.Context(), "vmimport:{d1}:*").Result()
		if err != nil || len(left) != 1 { // the counter
			t.Errorf("keys left: %v, %v", left, err)
		}
	})
}
