package aliyun_test

import (
	"fmt"
	"strings"
	"sync"
	"testing"

	"vmimport/internal/audit"
	"vmimport/internal/auth/aliyunsig/aliyunsigtest"
)

// notes is an audit log in memory.
type notes struct {
	mu      sync.Mutex
	records []audit.Record
}

func (n *notes) Add(r audit.Record) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.records = append(n.records, r)
	return nil
}

// take returns what was noted since the last time.
func (n *notes) take() []audit.Record {
	n.mu.Lock()
	defer n.mu.Unlock()
	taken := n.records
	n.records = nil
	return taken
}

// What changes something is noted, and so is every refusal for who asks; what only looks is not.
func TestAudit(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	task, _ := r.imported(t, oneDisk())
	forged := alphaKey
	forged.Secret = "not the secret"
	of := func(key aliyunsigtest.Key, who, action, id string, outcome audit.Outcome, status int, fault string) audit.Record {
		return audit.Record{Dialect: "aliyun", Outcome: outcome, Status: status, Entry: audit.Entry{
			Tenant: "aliyun:" + alpha, Project: "p-" + alpha, User: "acs:ram::" + alpha + ":" + who, AccessKey: key.ID,
			Region: hangzhou, Action: action, ID: id, Fault: fault,
		}}
	}
	stranger := func(key string, status int, fault string) audit.Record {
		return audit.Record{Dialect: "aliyun", Outcome: audit.Refused, Status: status, Entry: audit.Entry{AccessKey: key, Action: audit.SignInRefused, Fault: fault}}
	}
	if got := r.noted.take(); len(got) != 1 || plain(got[0]) != of(alphaKey, "root", "import.register", task, audit.Accepted, 200, "") {
		t.Errorf("import: %+v", got)
	}
	unknown := of(alphaKey, "root", "unknown", "", audit.Refused, 403, "InvalidAction")
	unknown.Region = ""
	for name, tt := range map[string]struct {
		key    aliyunsigtest.Key
		action string
		params params
		want   *audit.Record
	}{
		"cancel":        {alphaKey, "CancelTask", params{"RegionId": hangzhou, "TaskId": task}, new(of(alphaKey, "root", "import.cancel", task, audit.Accepted, 200, ""))},
		"delete":        {alphaKey, "DeleteImage", params{"RegionId": hangzhou, "ImageId": "m-none"}, new(of(alphaKey, "root", "image.delete", "m-none", audit.Refused, 404, "InvalidImageId.NotFound"))},
		"not permitted": {readerKey, "CancelTask", params{"RegionId": hangzhou, "TaskId": task}, new(of(readerKey, "user/reader", "import.cancel", task, audit.Refused, 403, "Forbidden.RAM"))},
		"not permitted to look": {importerKey, "DescribeTasks", params{"RegionId": hangzhou},
			new(of(importerKey, "user/importer", "import.list", "", audit.Refused, 403, "Forbidden.RAM"))},
		"looks":           {readerKey, "DescribeTasks", params{"RegionId": hangzhou}, nil},
		"unknown region":  {readerKey, "DescribeTasks", params{"RegionId": "moon"}, nil},
		"unknown action":  {alphaKey, "RunInstances", params{}, &unknown},
		"unknown key":     {aliyunsigtest.Key{ID: "LTAInobody", Secret: "x"}, "DescribeRegions", params{}, new(stranger("LTAInobody", 404, "InvalidAccessKeyId.NotFound"))},
		"disabled key":    {disabledKey, "DescribeRegions", params{}, new(stranger(disabledKey.ID, 403, "Forbidden.AccessKeyDisabled"))},
		"wrong signature": {forged, "DescribeRegions", params{}, new(stranger(alphaKey.ID, 400, "SignatureDoesNotMatch"))},
		"hostile":         {alphaKey, "CancelTask", params{"RegionId": hangzhou, "TaskId": "\x1b[31m\n"}, new(of(alphaKey, "root", "import.cancel", "\ufffd[31m\ufffd", audit.Refused, 400, "InvalidTaskId.NotFound"))},
	} {
		r.callAs(t, tt.key, tt.action, tt.params)
		got := r.noted.take()
		switch {
		case tt.want == nil && len(got) == 0:
		case tt.want == nil || len(got) != 1 || plain(got[0]) != *tt.want:
			t.Errorf("%s: %+v, want %+v", name, got, tt.want)
		case got[0].RequestID == "" || got[0].Time.IsZero():
			t.Errorf("%s: %+v", name, got[0])
		}
		if text := fmt.Sprint(got); strings.Contains(text, tt.key.Secret) && len(tt.key.Secret) > 3 {
			t.Errorf("%s: the secret is in %s", name, text)
		}
	}
}

// plain is a record without what is another each time.
func plain(r audit.Record) audit.Record {
	return audit.Record{Dialect: r.Dialect, Entry: r.Entry, Outcome: r.Outcome, Status: r.Status}
}
