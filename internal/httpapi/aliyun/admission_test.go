package aliyun_test

import (
	"net/http"
	"slices"
	"strconv"
	"sync"
	"testing"

	"vmimport/internal/httpapi/aliyun"
	"vmimport/tasks"
)

// count is how many imports an account ever made in a region.
func (r *rig) count(t testing.TB, region string, account tasks.Tenant) int {
	t.Helper()
	_, total, err := r.store.Find(t.Context(), tasks.Scope{Region: region, Tenant: "aliyun:" + account, Dialect: aliyun.Name}, tasks.Query{})
	if err != nil {
		t.Fatal(err)
	}
	return total
}

func TestClientTokenReplay(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	p := oneDisk("ClientToken", "once", "ImageName", "web")
	first := r.call(t, "ImportImage", p)
	wantOK(t, first)

	// What the request's own parameters are is not changed by how it was signed, nor by
	// what is sent empty. The name is in use by now.
	for what, a := range map[string]reply{
		"the same":           r.call(t, "ImportImage", p),
		"the other scheme":   r.callACS3(t, alphaKey, "ImportImage", p),
		"another key":        r.callAs(t, sessionKey, "ImportImage", p),
		"empty parameter":    r.call(t, "ImportImage", p.with("Description", "")),
		"parameters for all": r.call(t, "ImportImage", p.with("OwnerId", "1", "ResourceOwnerAccount", "x")),
	} {
		if a.status != http.StatusOK || a.text("TaskId") != first.text("TaskId") || a.text("ImageId") != first.text("ImageId") {
			t.Errorf("%s: %d %s", what, a.status, a.body)
		}
		if a.text("RequestId") == first.text("RequestId") {
			t.Errorf("%s: the request id of the first", what)
		}
	}
	for what, q := range map[string]params{
		"other value":       p.with("ImageName", "web2"),
		"further parameter": p.with("Description", "x"),
		"unknown parameter": p.with("Unknown", "x"),
		"shifted":           p.with("ImageNam", "e"),
		"dry run":           p.with("DryRun", "true"),
	} {
		if a := r.call(t, "ImportImage", q); a.status != 400 || a.code() != "IdempotentParameterMismatch" {
			t.Errorf("%s: %d %s", what, a.status, a.body)
		}
	}
	if n := r.count(t, hangzhou, alpha); n != 1 {
		t.Errorf("%d imports, want 1", n)
	}

	// Tokens are of one account and region, and differ by case.
	others := []reply{
		r.callAs(t, betaKey, "ImportImage", p),
		r.call(t, "ImportImage", p.with("RegionId", beijing, "DiskDeviceMapping.1.OSSBucket", "north")),
		r.call(t, "ImportImage", p.with("ClientToken", "ONCE", "ImageName", "web3")),
	}
	for i, a := range others {
		if a.status != http.StatusOK || a.text("TaskId") == first.text("TaskId") {
			t.Errorf("other %d: %d %s", i, a.status, a.body)
		}
	}
}

// A replay is answered as long as the token lives, whatever became of the source and the
// account's quota since.
func TestClientTokenReplayAfterTheEnd(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	p := oneDisk("ClientToken", "once", "ImageName", "web", "ResourceGroupId", "rg-one")
	task, image := r.imported(t, p)
	r.work(t, task).succeed(t)
	account := r.accounts[alphaKey.ID].Caller.Account
	account.Roles, account.Buckets, account.ResourceGroups, account.Images = nil, nil, nil, 1
	again, sameImage := r.imported(t, p)
	if again != task || sameImage != image {
		t.Errorf("%s, %s; want %s, %s", again, sameImage, task, image)
	}
}

func TestClientTokenAtTheSameMoment(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	p := oneDisk("ClientToken", "once", "ImageName", "web")
	answers := make([]reply, 6)
	var group sync.WaitGroup
	for i := range answers {
		group.Go(func() { answers[i] = r.call(t, "ImportImage", p) })
	}
	group.Wait()
	for i, a := range answers {
		if a.status != http.StatusOK || a.text("TaskId") != answers[0].text("TaskId") || a.text("ImageId") != answers[0].text("ImageId") {
			t.Errorf("answer %d: %d %s", i, a.status, a.body)
		}
	}
	if n := r.count(t, hangzhou, alpha); n != 1 {
		t.Errorf("%d imports, want 1", n)
	}
}

// Of requests for one name at the same moment, one is accepted.
func TestNameAtTheSameMoment(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	codes := make([]string, 6)
	var group sync.WaitGroup
	for i := range codes {
		group.Go(func() {
			codes[i] = r.call(t, "ImportImage", oneDisk("ImageName", "web", "ClientToken", strconv.Itoa(i))).code()
		})
	}
	group.Wait()
	slices.Sort(codes)
	if got := slices.Compact(codes); !slices.Equal(got, []string{"", "InvalidImageName.Duplicated"}) || r.count(t, hangzhou, alpha) != 1 {
		t.Errorf("%q, %d imports", got, r.count(t, hangzhou, alpha))
	}
}

// A refused request does not use its token up.
func TestClientTokenOfRefusedRequest(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	account := r.accounts[alphaKey.ID].Caller.Account
	task, _ := r.imported(t, oneDisk("ImageName", "taken"))
	account.Images = 1
	for _, pairs := range [][]string{
		{"DiskDeviceMapping.1.OSSObject", "missing.raw"},
		{"ImageName", "taken"},
		{"DiskDeviceMapping.1.Format", "ISO"},
		{}, // the quota
	} {
		a := r.call(t, "ImportImage", oneDisk("ClientToken", "once").with(pairs...))
		if a.status < 400 || a.status >= 500 {
			t.Errorf("%q: %d %s", pairs, a.status, a.body)
		}
	}
	account.Images = 2
	wantCode(t, r.call(t, "ImportImage", oneDisk("ClientToken", "once", "DryRun", "true")), 400, "DryRunOperation")
	if other, _ := r.imported(t, oneDisk("ClientToken", "once")); other == task {
		t.Error("the token led to another import")
	}
}

func TestDryRun(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	account := r.accounts[alphaKey.ID].Caller.Account
	dry := oneDisk("DryRun", "true", "ImageName", "web", "ClientToken", "once")
	for range 2 {
		wantCode(t, r.call(t, "ImportImage", dry), 400, "DryRunOperation")
	}
	if r.objects.looks != 2 || r.count(t, hangzhou, alpha) != 0 {
		t.Errorf("looked %d times, made %d imports; want 2, 0", r.objects.looks, r.count(t, hangzhou, alpha))
	}
	wantCode(t, r.call(t, "ImportImage", dry.with("DiskDeviceMapping.1.OSSObject", "missing")), 400, "InvalidOSSObject.NotFound")
	r.imported(t, oneDisk("ImageName", "web", "ClientToken", "once"))
	wantCode(t, r.call(t, "ImportImage", dry.with("ClientToken", "")), 400, "InvalidImageName.Duplicated")
	account.Images = 1
	wantCode(t, r.call(t, "ImportImage", oneDisk("DryRun", "true")), 403, "QuotaExceed.Image")
	account.Images, account.Snapshots = 0, 1
	wantCode(t, r.call(t, "ImportImage", oneDisk("DryRun", "true")), 403, "QuotaExceed.Snapshot")
}

// Name and quota of an import that comes to nothing, and those of a deleted image, are
// free again.
func TestQuotaIsGivenBack(t *testing.T) {
	t.Parallel()
	for what, end := range map[string]func(t *testing.T, r *rig, task, image string){
		"failed": func(t *testing.T, r *rig, task, _ string) {
			w := r.work(t, task)
			if err := r.store.Condemn(t.Context(), w.held, tasks.Failure{Code: "checksum_mismatch"}); err != nil {
				t.Fatal(err)
			}
			w.fail(t, tasks.Failure{Code: "checksum_mismatch", Message: "No."})
		},
		"canceled while waiting": func(t *testing.T, r *rig, task, _ string) {
			wantOK(t, r.call(t, "CancelTask", params{"RegionId": hangzhou, "TaskId": task}))
		},
		"canceled while working": func(t *testing.T, r *rig, task, _ string) {
			w := r.work(t, task)
			wantOK(t, r.call(t, "CancelTask", params{"RegionId": hangzhou, "TaskId": task}))
			w.canceled(t)
		},
		"deleted": func(t *testing.T, r *rig, task, image string) {
			r.work(t, task).succeed(t)
			wantOK(t, r.call(t, "DeleteImage", params{"RegionId": hangzhou, "ImageId": image}))
		},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			account := r.accounts[alphaKey.ID].Caller.Account
			account.Images, account.Snapshots = 1, 2
			p := oneDisk(append(disks(2), "ImageName", "web")...)
			task, image := r.imported(t, p)
			wantCode(t, r.call(t, "ImportImage", oneDisk()), 403, "QuotaExceed.Image")
			wantCode(t, r.callAs(t, importerKey, "ImportImage", p), 400, "InvalidImageName.Duplicated")
			// Another account's, and another region's, are not affected.
			wantOK(t, r.callAs(t, betaKey, "ImportImage", p))
			wantOK(t, r.call(t, "ImportImage", p.with("RegionId", beijing, "DiskDeviceMapping.1.OSSBucket", "north", "DiskDeviceMapping.2.OSSBucket", "north")))
			end(t, r, task, image)
			r.imported(t, p)
		})
	}
}
