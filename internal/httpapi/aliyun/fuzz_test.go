package aliyun

import (
	"strings"
	"testing"
	"time"

	"vmimport/internal/auth/ram"
	"vmimport/tasks"
)

// FuzzListParameters reads parameters of the lists. Whatever they are, the outcome is a
// problem, or a query within bounds whose filter can be asked.
func FuzzListParameters(f *testing.F) {
	for _, seed := range []string{
		"PageNumber=2&PageSize=100", "PageSize=0", "TaskIds=t-1,t-2", `TaskIds=["t-bp000000000000000001"]`, "ResourceIds.1=m-1",
		"StartTime=2026-03-01T12:00Z&EndTime=2026-03-01T12:00:00Z", "Status=ALL", "Status=Creating,Waiting", "ImageName=*a**b*",
		"Tag.1.Key=a&Tag.1.Value=b", "Tag.1.key=a", "Filter.1.Key=CreationStartTime&Filter.1.Value=2026-03-01T12:00Z",
		"OSType=linux&Architecture=arm64&ResourceGroupId=rg", "TaskStatus=Processing&TaskAction=IMPORT_IMAGE", "ImageOwnerAlias=system",
	} {
		f.Add(seed)
	}
	imp := &tasks.Task{Spec: tasks.Spec{
		ID: "t-bp000000000000000001", Name: "aab", OSType: "linux", RequestedAt: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC),
		Disks: make([]tasks.Disk, 1), Details: []byte(`{"architecture": "arm64", "disks": [{}], "tags": [{"key": "a", "value": "b"}]}`),
	}}
	f.Fuzz(func(t *testing.T, text string) {
		p := params{}
		for pair := range strings.SplitSeq(text, "&") {
			name, value, _ := strings.Cut(pair, "=")
			p[name] = value
		}
		cl := &call{params: p, caller: &ram.Caller{Account: &ram.Account{ID: "1"}}, region: &Region{ID: "r"}, d: &Dialect{}}
		at, okPage := p.page()
		for _, read := range []func() (*tasks.Query, error){cl.tasksQuery, cl.imagesQuery} {
			q, err := read()
			if _, known := err.(*problem); err != nil && !known {
				t.Fatalf("%q: %v", text, err)
			}
			if err != nil || q == nil || !okPage {
				continue
			}
			page := at.of(*q)
			if page.Start < 0 || page.Limit < 1 || page.Limit > maxList || len(q.IDs) > maxList || len(q.Phases) == len(phases) {
				t.Fatalf("%q: %+v", text, page)
			}
			if q.Match != nil {
				q.Match(imp)
			}
		}
	})
}

// FuzzPattern holds the matching of names against a slower and plainer one.
func FuzzPattern(f *testing.F) {
	for _, seed := range [][2]string{{"", ""}, {"*", ""}, {"a*", "abc"}, {"*c", "abc"}, {"a*b*c", "aXbYc"}, {"a*a", "a"}, {"**", "x"}, {"ab*ba", "aba"}, {"*b*b*", "b"}} {
		f.Add(seed[0], seed[1])
	}
	f.Fuzz(func(t *testing.T, wanted, text string) {
		if len(wanted) > 12 || len(text) > 24 {
			return // the plain one is exponential
		}
		if got, want := newPattern(wanted).match(text), plainMatch(wanted, text); got != want {
			t.Fatalf("%q matches %q: %v", wanted, text, got)
		}
	})
}

func plainMatch(wanted, text string) bool {
	switch {
	case wanted == "":
		return text == ""
	case wanted[0] == '*':
		return plainMatch(wanted[1:], text) || text != "" && plainMatch(wanted, text[1:])
	}
	return text != "" && wanted[0] == text[0] && plainMatch(wanted[1:], text[1:])
}
