package aliyuntest

import (
	"strings"
	"testing"

	sdkerrors "github.com/aliyun/alibaba-cloud-sdk-go/sdk/errors"
	"github.com/aliyun/alibaba-cloud-sdk-go/services/ecs"
)

// importFrom asks for an image of an object in any bucket.
func importFrom(bucket, object string) *ecs.ImportImageRequest {
	r := importRequest("web01", object)
	(*r.DiskDeviceMapping)[0].OSSBucket = bucket
	return r
}

func TestRights(t *testing.T) {
	t.Parallel()
	s := serve(t)
	s.putHole("disk.raw", 1<<20)
	for about, tt := range map[string]struct {
		key, bucket, want string
	}{
		"a user who may only read":       {"blue-reader", bucket, "400 Forbbiden"},
		"an account without the role":    {"no-role", "images-no-role", "403 NoSetRoletoECSServiceAcount"},
		"an account that may not import": {"not-enabled", bucket, "400 Forbbiden"},
	} {
		if _, err := s.as(tt.key).ImportImage(importFrom(tt.bucket, "disk.raw")); refusal(err) != tt.want {
			t.Errorf("%s: %v, want %s", about, err, tt.want)
		}
	}
	owner, reader, other := s.as("blue"), s.as("blue-reader"), s.as("green")
	made := owner.mustImport(importRequest("web01", "disk.raw"))
	owner.available(made.ImageId)

	// The reader sees what the account has, and changes nothing.
	if images := reader.images(made.ImageId); len(images) != 1 {
		t.Errorf("the reader sees %+v", images)
	}
	if task := reader.task(made.TaskId); task.TaskStatus != "Finished" {
		t.Errorf("the reader sees %s", task.GetHttpContentString())
	}
	if got := refusal(reader.cancel(made.TaskId)); got != "403 Forbidden.RAM" {
		t.Errorf("canceled by the reader: %s", got)
	}
	if got := refusal(reader.delete(made.ImageId)); got != "403 Forbidden.RAM" {
		t.Errorf("deleted by the reader: %s", got)
	}

	// Another account sees nothing of it, and may use the name.
	if images := other.images(""); len(images) != 0 {
		t.Errorf("another account sees %+v", images)
	}
	if tasks, err := other.DescribeTasks(ecs.CreateDescribeTasksRequest()); err != nil || tasks.TotalCount != 0 {
		t.Errorf("another account sees %v, %v", tasks, err)
	}
	if got := refusal(other.delete(made.ImageId)); got != "404 InvalidImageId.NotFound" {
		t.Errorf("deleted by another account: %s", got)
	}
	theirs := other.mustImport(importFrom("images-green", "disk.raw"))
	other.available(theirs.ImageId)

	// Whether another account has a bucket of a name is not told.
	var told []string
	for _, name := range []string{"images-green", "images-nobody"} {
		_, err := owner.ImportImage(importFrom(name, "disk.raw"))
		refused, ok := err.(*sdkerrors.ServerError)
		if !ok {
			t.Fatal(err)
		}
		told = append(told, refusal(err)+refused.Message()+refused.Recommend())
	}
	if told[0] != told[1] {
		t.Errorf("%q", told)
	}
}

func TestQuotas(t *testing.T) {
	t.Parallel()
	s := serve(t)
	s.putHole("disk.raw", 1<<20)
	c := s.as("small")
	request := func(name string, disks int) *ecs.ImportImageRequest {
		r := importFrom("images-small", "disk.raw")
		r.ImageName = name
		for len(*r.DiskDeviceMapping) < disks {
			*r.DiskDeviceMapping = append(*r.DiskDeviceMapping, (*r.DiskDeviceMapping)[0])
		}
		return r
	}
	refused := func(r *ecs.ImportImageRequest, want string) {
		t.Helper()
		if _, err := c.ImportImage(r); refusal(err) != want {
			t.Errorf("%s: %v, want %s", r.ImageName, err, want)
		}
	}
	refused(request("four", 4), "403 QuotaExceed.Snapshot")
	first := c.mustImport(request("first", 2))
	refused(request("second", 2), "403 QuotaExceed.Snapshot")
	second := c.mustImport(request("second", 1))
	refused(request("third", 1), "403 QuotaExceed.Image")
	c.available(first.ImageId)
	c.available(second.ImageId)
	refused(request("third", 1), "403 QuotaExceed.Image")
	if err := c.delete(first.ImageId); err != nil {
		t.Fatal(err)
	}
	c.available(c.mustImport(request("third", 2)).ImageId)
}

// What an operator changes of the accounts holds soon after, without a restart; a mistake
// in the file changes nothing.
func TestAccountsChange(t *testing.T) {
	t.Parallel()
	s := serve(t)
	s.putHole("disk.raw", 1<<20)
	c := s.as("no-role")
	attempt := func() string {
		r := importFrom("images-no-role", "disk.raw")
		r.DryRun = "true"
		_, err := c.ImportImage(r)
		return refusal(err)
	}
	becomes := func(want string) {
		t.Helper()
		until(t, "the answer was "+want, func() bool { return attempt() == want })
	}
	const lacking = "keys: [{id: no-role, secret: secret-of-no-role}]"
	if got := attempt(); got != "403 NoSetRoletoECSServiceAcount" {
		t.Errorf("without the role: %s", got)
	}
	s.setAccounts(strings.Replace(accounts, lacking, lacking+importRole, 1))
	becomes("400 DryRunOperation")
	mistrusted := strings.Replace(importRole, "ecs.aliyuncs.com", "fc.aliyuncs.com", 1)
	s.setAccounts(strings.Replace(accounts, lacking, lacking+mistrusted, 1))
	becomes("403 NoSetRoletoECSServiceAcount")
	narrow := strings.Replace(importRole, "AliyunECSImageImportRolePolicy",
		`{Version: "1", Statement: {Effect: Allow, Action: ["oss:GetObject", "oss:GetBucketLocation"], Resource: ["acs:oss:*:*:images-no-role", "acs:oss:*:*:images-no-role/*"]}}`, 1)
	s.setAccounts(strings.Replace(accounts, lacking, lacking+narrow, 1))
	becomes("400 DryRunOperation")
	s.setAccounts("accounts: {")
	// The file is looked at when somebody asks.
	until(t, "the mistake was logged", func() bool {
		if got := attempt(); got != "400 DryRunOperation" {
			t.Fatalf("after a mistake in the file: %s", got)
		}
		return strings.Contains(s.log.String(), "cannot be used")
	})
	s.setAccounts(strings.Replace(accounts, lacking, "keys: [{id: no-role, secret: secret-of-no-role, enabled: false}]", 1))
	becomes("403 Forbidden.AccessKeyDisabled")
	s.setAccounts(strings.Replace(accounts, lacking, "keys: []", 1))
	becomes("404 InvalidAccessKeyId.NotFound")
}
