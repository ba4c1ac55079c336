package aliyun_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"vmimport/internal/auth/aliyunsig/aliyunsigtest"
	"vmimport/internal/httpapi/aliyun"
	"vmimport/tasks"
)

// names returns what a member of all elements of a list is, joined by spaces.
func (a reply) names(list, member string) string {
	var names []string
	for i := 0; a.text(list+"."+strconv.Itoa(i)+"."+member) != ""; i++ {
		names = append(names, a.text(list+"."+strconv.Itoa(i)+"."+member))
	}
	return strings.Join(names, " ")
}

// TestImageFilters has an image in each state, a minute apart, each with a name that tells it.
func TestImageFilters(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	next := func(name string, pairs ...string) *worker {
		r.clock.add(time.Minute)
		task, _ := r.imported(t, oneDisk("ImageName", name).with(pairs...))
		if name == "waiting" {
			return nil
		}
		return r.work(t, task)
	}
	next("available", "Tag.1.Key", "team", "Tag.1.Value", "web", "Tag.2.Key", "os").succeed(t)
	next("windows", "OSType", "Windows", "Platform", "Windows Server 2012", "ResourceGroupId", "rg-one").succeed(t)
	next("arm", "Architecture", "arm64", "Tag.1.Key", "team", "Tag.1.Value", "db").succeed(t)
	next("failed").fail(t, tasks.Failure{Code: "checksum_mismatch", Message: "Wrong."})
	canceled := next("canceled")
	wantOK(t, r.call(t, "CancelTask", params{"RegionId": hangzhou, "TaskId": string(canceled.held.ID)}))
	canceled.canceled(t)
	next("deleted").succeed(t)
	wantOK(t, r.call(t, "DeleteImage", params{"RegionId": hangzhou, "ImageId": image(6)}))
	next("creating")
	next("again").release(t)
	next("waiting")

	for _, test := range []struct{ query, want string }{
		{"", "arm windows available"},
		{"Status=Available", "arm windows available"},
		{"Status=available", "arm windows available"},
		{"Status=Waiting", "waiting"},
		{"Status=Creating", "again creating"},
		{"Status=CreateFailed", "canceled failed"},
		{"Status=UnAvailable", ""},
		{"Status=Deprecated,UnAvailable", ""},
		{"Status=Creating, Waiting", "waiting again creating"},
		{"Status=Creating,Waiting,Available,UnAvailable,CreateFailed", "waiting again creating canceled failed arm windows available"},
		{"Status=ALL", "waiting again creating canceled failed arm windows available"},

		{"ImageId=" + image(3), "arm"},
		{"ImageId=" + image(8), ""}, // it is Creating
		{"Status=ALL&ImageId=" + image(8), "again"},
		{"ImageId=" + image(1) + "," + image(2) + "," + image(4), "windows available"},
		{"ImageId=" + image(6), ""}, // deleted
		{"ImageId=centos_7.vhd", ""},
		{"ImageId=" + image(1) + "&ImageName=arm", ""},

		{"ImageName=arm", "arm"},
		{"ImageName=Arm", ""},
		{"ImageName=ar", ""},
		{"ImageName=*", "arm windows available"},
		{"ImageName=*a*", "arm available"},
		{"ImageName=a*e", "available"},
		{"ImageName=a*m*m", ""},
		{"Status=ALL&ImageName=*ail*", "failed available"},

		{"OSType=Windows", "windows"},
		{"OSType=linux", "arm available"},
		{"Architecture=arm64", "arm"},
		{"Architecture=i386", ""},
		{"Usage=none", "arm windows available"},
		{"Usage=instance", ""},
		{"ImageOwnerAlias=self", "arm windows available"},
		{"ImageOwnerAlias=system", ""},
		{"ImageOwnerAlias=others", ""},
		{"ImageOwnerAlias=marketplace", ""},
		{"ResourceGroupId=rg-one", "windows"},
		{"ResourceGroupId=rg-none", ""},

		{"Tag.1.Key=team", "arm available"},
		{"Tag.1.Key=Team", ""},
		{"Tag.1.key=team&Tag.1.value=db", "arm"},
		{"Tag.7.Key=team&Tag.7.Value=web&Tag.9.Key=os", "available"},
		{"Tag.1.Key=team&Tag.1.Value=db&Tag.2.Key=os", ""},

		{"Filter.1.Key=CreationStartTime&Filter.1.Value=2026-03-01T12:02Z", "arm windows"},
		{"Filter.1.Key=CreationStartTime&Filter.1.Value=2026-03-01T12:02:01Z", "arm"},
		{"Filter.1.Key=CreationEndTime&Filter.1.Value=2026-03-01T12:01Z", "available"},
		{"Filter.1.Key=CreationEndTime&Filter.1.Value=2026-03-01T12:01:00Z", "available"},
		{"Filter.1.Key=CreationEndTime&Filter.1.Value=2026-03-01T12:00:59Z", ""},
		{"Filter.1.Key=CreationStartTime&Filter.1.Value=2026-03-01T12:02Z&Filter.2.Key=CreationEndTime&Filter.2.Value=2026-03-01T12:02Z", "windows"},

		{"DryRun=false&ImageFamily=x&ShowExpired=true&SnapshotId=s-1&ActionType=CreateEcs&IsSupportIoOptimized=true&Foo=1", "arm windows available"},
		{"OwnerId=7&ResourceOwnerAccount=somebody", "arm windows available"},
		{"PageSize=2&PageNumber=2", "available"},
		{"PageSize=100&PageNumber=2147483647", ""},
		{"PageSize=1&PageNumber=2&ImageName=*", "windows"},
		{"PageNumber=2147483647&ImageName=*", ""},
	} {
		a := r.call(t, "DescribeImages", query(test.query).with("RegionId", hangzhou))
		if a.status != http.StatusOK || a.names("Images.Image", "ImageName") != test.want {
			t.Errorf("%s: %d %q, want %q\n%s", test.query, a.status, a.names("Images.Image", "ImageName"), test.want, a.body)
		}
	}
	for _, test := range []struct {
		query, code string
		status      int
	}{
		{"Status=", "", 200}, // as if it were not sent
		{"Status=,", "InvalidParamter", 400},
		{"ImageId=" + strings.Repeat("m-1,", 101), "InvalidParamter", 400},
		{"PageNumber=2147483648", "InvalidParamter", 400},
		{"PageNumber=99999999999999999999999", "InvalidParamter", 400},
		{"PageSize=+5", "InvalidParamter", 400},
		{"Filter.1.Key=CreationStartTime&Filter.1.Value=now", "InvalidParamter", 400},
		{"Filter.1.Key=CreationStartTime&Filter.1.Value=2026-03-01T12:00:00.5Z", "InvalidParamter", 400},
		{"Filter.1.Value=2026-03-01T12:00Z", "InvalidFilterKey.NotFound", 404},
		{tags(20), "", 200},
		{tags(21), "InvalidTagCount", 400},
		{"Tag.1.Value=x", "InvalidTag.Mismatch", 400},
	} {
		wantCode(t, r.call(t, "DescribeImages", query(test.query).with("RegionId", hangzhou)), test.status, test.code)
	}
}

func TestTaskFilters(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	for i := range 4 {
		r.clock.add(time.Minute)
		id, _ := r.imported(t, oneDisk())
		if i < 3 {
			w := r.work(t, id)
			switch i {
			case 0:
				w.succeed(t)
			case 1:
				w.fail(t, tasks.Failure{Code: "worker_crashed", Message: "Gone."})
			}
		}
	}
	// The tasks 1 to 4 are Finished, Failed, Processing and Waiting.
	for _, test := range []struct{ query, want string }{
		{"", "4 3 2 1"},
		{"TaskStatus=Finished", "1"},
		{"TaskStatus=Failed", "2"},
		{"TaskStatus=Processing", "3"},
		{"TaskStatus=Waiting", "4 3 2 1"}, // no filter
		{"TaskStatus=finished", "4 3 2 1"},
		{"TaskAction=ImportImage", "4 3 2 1"},
		{"TaskAction=IMPORT_IMAGE", "4 3 2 1"},
		{"TaskAction=ExportImage", ""},
		{"TaskIds=" + task(1), "1"},
		{"TaskIds=" + task(1) + "," + task(3), "3 1"},
		{`TaskIds=["` + task(1) + `", "` + task(4) + `"]`, "4 1"},
		{"TaskIds=[]", ""},
		{"TaskIds=t-1,what", ""},
		{"TaskIds=" + task(1) + "," + task(3) + "&TaskStatus=Finished", "1"},
		{"ResourceIds.1=" + image(2), "2"},
		{"ResourceIds.1=" + image(2) + "&ResourceIds.3=" + image(4) + "&ResourceIds.2=", "4 2"},
		{"ResourceIds.1=i-1", ""},
		{"ResourceIds.1=" + image(2) + "&ResourceIds.2=" + image(3) + "&TaskIds=" + task(1) + "," + task(3), "3"},
		{"ResourceIds.1=" + image(2) + "&TaskIds=" + task(1), ""},
		{"StartTime=2026-03-01T12:03:00Z", "4 3"},
		{"StartTime=2026-03-01T12:03Z", "4 3"},
		{"EndTime=2026-03-01T12:02Z", "2 1"},
		{"StartTime=2026-03-01T12:02:00Z&EndTime=2026-03-01T12:03:00Z", "3 2"},
		{"StartTime=2026-03-01T12:02:00Z&TaskStatus=Processing", "3"},
		{"PageSize=3", "4 3 2"},
		{"PageSize=3&PageNumber=2", "1"},
		{"PageSize=100&PageNumber=2147483647", ""},
	} {
		a := r.call(t, "DescribeTasks", query(test.query).with("RegionId", hangzhou))
		var got []string
		for id := range strings.FieldsSeq(a.names("TaskSet.Task", "TaskId")) {
			got = append(got, strings.TrimLeft(strings.TrimPrefix(id, "t-bp"), "0"))
		}
		if a.status != http.StatusOK || strings.Join(got, " ") != test.want {
			t.Errorf("%s: %d %q, want %q\n%s", test.query, a.status, got, test.want, a.body)
		}
	}
	for _, bad := range []string{
		"TaskIds=" + strings.Repeat("t-1,", 100) + "t-1", `TaskIds=["t-1"`, `TaskIds=[["t-1"]]`, "ResourceIds.0=m-1", "ResourceIds.01=m-1",
		numberedIDs(101), "StartTime=yesterday", "EndTime=2026-03-01T12:00:00+08:00", "PageNumber=1.0", "PageSize=1000",
	} {
		wantCode(t, r.call(t, "DescribeTasks", query(bad).with("RegionId", hangzhou)), 400, "InvalidParameter")
	}
	wantOK(t, r.call(t, "DescribeTasks", query(numberedIDs(100)).with("RegionId", hangzhou)))
}

// TestPagesJoin reads all pages while new imports arrive at the head of the list. What was
// there at first must come once, in order, except what the new ones push on to the next
// page, which comes twice.
func TestPagesJoin(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	const n = 300
	for range n {
		r.clock.add(time.Second)
		r.imported(t, oneDisk())
	}
	for _, test := range []struct{ action, list, id, status string }{
		{"DescribeTasks", "TaskSet.Task", "TaskId", ""},
		{"DescribeImages", "Images.Image", "ImageId", "Waiting"},
		{"DescribeImages", "Images.Image", "ImageId", "ALL"},
	} {
		p := params{"RegionId": hangzhou, "PageSize": "37", "Status": test.status}
		seen := []string{}
		total, arrived := 0, 0
		for page := 1; ; page++ {
			a := r.call(t, test.action, p.with("PageNumber", strconv.Itoa(page)))
			wantOK(t, a)
			ids := strings.Fields(a.names(test.list, test.id))
			if len(ids) == 0 {
				break
			}
			if total = int(a.json["TotalCount"].(float64)); total < n+arrived {
				t.Errorf("%s: page %d of %d in all, of which there are at least %d", test.action, page, total, n+arrived)
			}
			for i, id := range ids {
				// Only the first of a page may have been on the one before.
				if slices.Contains(seen, id) && i >= arrived {
					t.Errorf("%s: %s comes twice", test.action, id)
				}
			}
			seen = append(seen, slices.DeleteFunc(ids, func(id string) bool { return slices.Contains(seen, id) })...)
			if arrived = 0; page%2 == 0 {
				r.imported(t, oneDisk())
				arrived = 1
			}
		}
		if !slices.IsSortedFunc(seen, func(a, b string) int { return strings.Compare(b, a) }) || len(seen) < n {
			t.Errorf("%s: %d of at least %d, or out of order: %v", test.action, len(seen), n, seen)
		}
	}
}

// TestOthersSeeNothing is about accounts and regions, and what another dialect made.
func TestOthersSeeNothing(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	id, img := r.imported(t, oneDisk("ImageName", "mine"))
	r.work(t, id).succeed(t)
	spec := &tasks.Spec{
		ID: tasks.ID(task(99)), Owner: tasks.Owner{Tenant: "aliyun:" + alpha, Project: "p"}, Dialect: "fjcloud", Region: hangzhou, ImageID: "x",
		Disks: []tasks.Disk{{Bytes: 1}}, RequestedAt: start,
	}
	if _, _, err := r.store.Create(t.Context(), spec, tasks.Limits{}); err != nil {
		t.Fatal(err)
	}
	for _, from := range []struct {
		key                 aliyunsigtest.Key
		region, task, image string
	}{
		{betaKey, hangzhou, id, img},
		{alphaKey, beijing, id, img},
		{alphaKey, hangzhou, task(99), image(99)},
	} {
		p := params{"RegionId": from.region}
		wantCode(t, r.callAs(t, from.key, "CancelTask", p.with("TaskId", from.task)), 400, "InvalidTaskId.NotFound")
		wantCode(t, r.callAs(t, from.key, "DescribeTaskAttribute", p.with("TaskId", from.task)), 400, "InvalidTaskId.NotFound")
		wantCode(t, r.callAs(t, from.key, "DeleteImage", p.with("ImageId", from.image)), 404, "InvalidImageId.NotFound")
		wantCode(t, r.callAs(t, from.key, "DeleteImage", p.with("ImageId", from.image, "DryRun", "true")), 404, "InvalidImageId.NotFound")
		for _, q := range []params{p.with("TaskIds", from.task), p.with("ResourceIds.1", from.image)} {
			if a := r.callAs(t, from.key, "DescribeTasks", q); a.text("TotalCount") != "0" {
				t.Errorf("%s in %s sees the task: %s", from.key.ID, from.region, a.body)
			}
		}
		if a := r.callAs(t, from.key, "DescribeImages", p.with("ImageId", from.image, "Status", "ALL")); a.text("TotalCount") != "0" {
			t.Errorf("%s in %s sees the image: %s", from.key.ID, from.region, a.body)
		}
	}
	if a := r.call(t, "DescribeImages", params{"RegionId": hangzhou}); a.text("TotalCount") != "1" {
		t.Errorf("the account sees %s", a.body)
	}
	if a := r.call(t, "DescribeTasks", params{"RegionId": hangzhou}); a.text("TotalCount") != "1" {
		t.Errorf("the account sees %s", a.body)
	}
}

// TestRegionsOfAccount: what is not enabled for an account does not exist for it.
func TestRegionsOfAccount(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.accounts[betaKey.ID].Caller.Account.Regions = []string{beijing}
	if got := r.callAs(t, betaKey, "DescribeRegions", params{}).names("Regions.Region", "RegionId"); got != beijing {
		t.Errorf("regions %q", got)
	}
	wantCode(t, r.callAs(t, betaKey, "DescribeTasks", params{"RegionId": hangzhou}), 400, "InvalidRegionId.NotFound")
	wantCode(t, r.callAs(t, betaKey, "DescribeImages", params{"RegionId": hangzhou}), 404, "InvalidRegionId.NotFound")
	wantCode(t, r.callAs(t, betaKey, "ImportImage", oneDisk()), 400, "RegionId.NotFound")
	wantOK(t, r.callAs(t, betaKey, "DescribeTasks", params{"RegionId": beijing}))
}

// TestResources is about policies that permit an action for some images only.
func TestResources(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	for i := range 2 {
		id, _ := r.imported(t, oneDisk("ImageName", fmt.Sprintf("web%d", i)))
		r.work(t, id).succeed(t)
	}
	caller := &r.accounts[readerKey.ID].Caller
	caller.Policies = append(caller.Policies[:0:0], policy(t, `{"Version": "1", "Statement": [
		{"Effect": "Allow", "Action": "ecs:*", "Resource": "acs:ecs:cn-hangzhou:`+alpha+`:image/m-*1"}]}`))
	p := params{"RegionId": hangzhou}
	wantOK(t, r.callAs(t, readerKey, "DescribeImages", p.with("ImageId", image(1))))
	wantOK(t, r.callAs(t, readerKey, "DescribeImages", p.with("ImageId", " "+image(1)+","+image(1))))
	wantCode(t, r.callAs(t, readerKey, "DescribeImages", p), 403, "Forbidden.RAM")
	for _, both := range []string{image(1) + "," + image(2), image(2) + "," + image(1), `["` + image(2) + `","` + image(1) + `"]`} {
		wantCode(t, r.callAs(t, readerKey, "DescribeImages", p.with("ImageId", both)), 403, "Forbidden.RAM")
	}
	wantCode(t, r.callAs(t, readerKey, "DescribeImages", p.with("ImageId", image(1), "RegionId", beijing)), 403, "Forbidden.RAM")
	wantCode(t, r.callAs(t, readerKey, "DeleteImage", p.with("ImageId", image(2))), 403, "Forbidden.RAM")
	wantCode(t, r.callAs(t, readerKey, "DeleteImage", p.with("ImageId", image(1), "RegionId", "cn-hangzhou:"+alpha+":image/"+image(1))), 403, "Forbidden.RAM")
	wantCode(t, r.callAs(t, readerKey, "DescribeTasks", p), 403, "Forbidden.RAM")
	wantCode(t, r.callAs(t, readerKey, "ImportImage", oneDisk()), 400, "Forbbiden")
	wantCode(t, r.callAs(t, readerKey, "DeleteImage", p.with("ImageId", image(1), "DryRun", "true")), 400, "DryRunOperation")
	wantOK(t, r.callAs(t, readerKey, "DeleteImage", p.with("ImageId", image(1))))
	wantCode(t, r.call(t, "DeleteImage", p.with("ImageId", image(1), "DryRun", "true")), 400, "IncorrectImageStatus")
}

// TestThrottling counts what an account asks, not what a key does.
func TestThrottling(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(o *aliyun.Options) { o.RequestsPerSecond, o.Burst = 1e-9, 2 })
	wantOK(t, r.call(t, "DescribeRegions", params{}))
	wantOK(t, r.callAs(t, readerKey, "DescribeRegions", params{}))
	wantCode(t, r.call(t, "DescribeRegions", params{}), 400, "Throttling.User")
	wantCode(t, r.callAs(t, readerKey, "RunInstances", params{}), 400, "Throttling.User")
	wantOK(t, r.callAs(t, betaKey, "DescribeRegions", params{}))
	if used := len(r.redis.Keys()); used != 3 {
		t.Errorf("%d nonces are remembered of 3 requests that were let through", used)
	}
}

// TestThrottlingOfRepetitions: who repeats requests of others takes nothing away from them.
func TestThrottlingOfRepetitions(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(o *aliyun.Options) { o.RequestsPerSecond, o.Burst = 1e-9, 2 })
	req := func() *http.Request {
		req := httptest.NewRequest(http.MethodGet, "http://ecs.example.test/?Action=DescribeRegions&Format=JSON&Version="+aliyun.Version, nil)
		aliyunsigtest.SignRPC(t, req, alphaKey, "seen", r.clock.now())
		return req
	}
	wantOK(t, r.send(t, req()))
	for range 3 {
		wantCode(t, r.send(t, req()), 400, "SignatureNonceUsed")
	}
	wantOK(t, r.call(t, "DescribeRegions", params{}))
}

// task and image are the ids of the nth import of a rig.
func task(n int) string  { return fmt.Sprintf("t-bp%018d", n) }
func image(n int) string { return fmt.Sprintf("m-bp%018d", n) }

// query makes parameters of name=value&name=value, as written.
func query(text string) params {
	p := params{}
	for pair := range strings.SplitSeq(text, "&") {
		if name, value, ok := strings.Cut(pair, "="); ok {
			p[name] = value
		}
	}
	return p
}

func tags(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "Tag.%d.Key=k%d&", i+1, i)
	}
	return b.String()
}

func numberedIDs(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "ResourceIds.%d=%s&", i+1, image(i))
	}
	return b.String()
}
