package openstacktest

import (
	"errors"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/uuid"

	"vmimport/imageapi"
	"vmimport/imageapi/glance"
	"vmimport/internal/auth/keystone"
	"vmimport/internal/openstack"
	"vmimport/internal/secret"
	env "vmimport/internal/testenv/openstack"
	"vmimport/storage"
	"vmimport/storage/swiftstore"
)

// A user without the role admin can do all that the service does, under the policy for
// Glance that the documentation offers, and under the defaults of later releases.
func TestMinimalRoles(t *testing.T) {
	t.Parallel()
	policy, err := filepath.Abs("../../etc/openstack/glance-policy.yaml")
	if err != nil {
		t.Fatal(err)
	}
	strict, err := cloud.StartStrictGlance(t.Context(), policy)
	if err != nil {
		t.Fatal(err)
	}
	as := service(t, func(o *openstack.Options) {
		o.Username, o.Password = cloud.Minimal.Name, secret.New(cloud.Minimal.Password)
		o.Endpoints = map[string]string{openstack.Image: strict}
	})

	tokens, err := keystone.New(as, keystone.Options{})
	if err != nil {
		t.Fatal(err)
	}
	token, err := cloud.Token(t.Context(), cloud.Alpha, env.ProjectScope)
	if err != nil {
		t.Fatal(err)
	}
	if who, err := tokens.Authenticate(t.Context(), token); err != nil || who.ProjectID != cloud.Alpha.ProjectID {
		t.Errorf("Authenticate: %+v, %v", who, err)
	}

	objects, err := swiftstore.New(swiftstore.Options{Cloud: as})
	if err != nil {
		t.Fatal(err)
	}
	if err := objects.Check(t.Context()); err != nil {
		t.Errorf("Swift: %v", err)
	}
	loc := storage.Location{API: "swift", Project: cloud.Alpha.ProjectID, Container: "none", Name: "none"}
	if _, err := objects.Open(t.Context(), loc); !errors.Is(err, storage.ErrNoObject) {
		t.Errorf("Open in another's account: %v", err)
	}

	images, err := glance.New(glance.Options{Cloud: as, Patience: 15 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer images.Close()
	lifeOfAnImage(t, images)
}

// lifeOfAnImage begins an image, gives it up, begins it again under the same id, hands
// it to alpha, recognises it, and removes it.
func lifeOfAnImage(t *testing.T, images *glance.Images) {
	t.Helper()
	ctx := t.Context()
	content := make([]byte, 1<<20)
	spec := imageapi.Spec{
		ImageID: uuid.NewString(), KeepID: true, ImportID: uuid.NewString(), Attempt: 1,
		Name: "minimal", Owner: cloud.Alpha.ProjectID, Format: "raw", OSType: "ubuntu",
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	write := func() imageapi.Upload {
		t.Helper()
		u, err := images.Begin(ctx, spec)
		must(err)
		w, _, err := u.Disk(ctx, imageapi.DiskSpec{Number: 1, Size: int64(len(content))})
		must(err)
		_, err = w.WriteAt(content, 0)
		must(err)
		must(w.Close())
		return u
	}
	must(write().Close())
	must(images.Remove(ctx, spec.ImportID, spec.ImageID))
	if image := show(t, spec.ImageID); image["vmimport_parked"] != "true" || image["owner"] != cloud.Service.ProjectID {
		t.Errorf("after Remove: %v", image)
	}
	spec.ImportID = uuid.NewString()
	u := write()
	must(u.Publish(ctx, []imageapi.DiskFacts{{VirtualSize: int64(len(content)), Properties: map[string]string{"source_format": "raw"}}}))
	must(u.Close())
	image := show(t, spec.ImageID)
	if image["status"] != "active" || image["owner"] != cloud.Alpha.ProjectID || image["vmimport_parked"] != nil || image["os_hidden"] != false {
		t.Errorf("after Publish: %v", image)
	}
	if got, err := images.Get(ctx, spec.ImageID); err != nil || got.ImportID != spec.ImportID {
		t.Errorf("Get: %+v, %v", got, err)
	}
	must(images.Remove(ctx, spec.ImportID, spec.ImageID))
	if image := show(t, spec.ImageID); image != nil {
		t.Errorf("after Remove: %v", image)
	}
}
