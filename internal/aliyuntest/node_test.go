package aliyuntest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"vmimport/internal/diskimage/imagetest"
)

// line is a step of the script node/life.js.
type line struct {
	Client, Step string
	Answer       any
	Code         string
	Status       int
	Message      string
}

// at returns what a path such as "Images.Image.0.Size" leads to in the answer, printed;
// "none" if there is nothing. A list is its length.
func (l *line) at(path string) string {
	at := l.Answer
	for name := range strings.SplitSeq(path, ".") {
		switch in := at.(type) {
		case map[string]any:
			at = in[name]
		case []any:
			i, err := strconv.Atoi(name)
			if err != nil || i >= len(in) {
				return "none"
			}
			at = in[i]
		default:
			return "none"
		}
	}
	switch v := at.(type) {
	case nil:
		return "none"
	case []any:
		return strconv.Itoa(len(v))
	}
	return fmt.Sprint(at)
}

// steps are what each client must see, in this order: a refusal as status, code and the
// end of the message, or parts of an answer. A step that polls tells no status.
var steps = []struct {
	step, refusal string
	answer        map[string]string
}{
	{step: "regions", answer: map[string]string{"Regions.Region": "1", "Regions.Region.0.RegionId": region, "Regions.Region.0.LocalName": "China (Hangzhou)"}},
	{step: "dry run", refusal: "400 DryRunOperation"},
	{step: "import", answer: map[string]string{"RegionId": region}},
	{step: "available", answer: map[string]string{
		"TotalCount": "1", "Images.Image": "1", "Images.Image.0.Progress": "100%", "Images.Image.0.Size": "40", "Images.Image.0.OSType": "linux",
		"Images.Image.0.Platform": "Ubuntu", "Images.Image.0.Description": "sp ace*~+&=%/漢!'()", "Images.Image.0.IsCopied": "false", "Images.Image.0.ImageOwnerAlias": "self",
		"Images.Image.0.Tags.Tag": "1", "Images.Image.0.Tags.Tag.0.TagKey": "env", "Images.Image.0.Tags.Tag.0.TagValue": "prod",
		"Images.Image.0.DiskDeviceMappings.DiskDeviceMapping":                   "2",
		"Images.Image.0.DiskDeviceMappings.DiskDeviceMapping.0.ImportOSSObject": "dir/system disk+1.raw",
		"Images.Image.0.DiskDeviceMappings.DiskDeviceMapping.1.Format":          "QCOW2",
		"Images.Image.0.DiskDeviceMappings.DiskDeviceMapping.1.Size":            "5",
	}},
	{step: "again with the token", answer: map[string]string{"RegionId": region}},
	{step: "another with the token", refusal: "400 IdempotentParameterMismatch"},
	{step: "duplicate", refusal: "400 InvalidImageName.Duplicated"},
	{step: "tasks", answer: map[string]string{
		"TotalCount": "1", "PageSize": "5", "TaskSet.Task": "1", "TaskSet.Task.0.TaskStatus": "Finished", "TaskSet.Task.0.SupportCancel": "false",
	}},
	{step: "task", answer: map[string]string{
		"TaskStatus": "Finished", "TaskProcess": "100%", "SupportCancel": "false", "TotalCount": "2", "SuccessCount": "2", "FailedCount": "0",
		"OperationProgressSet.OperationProgress.1.RelatedItemSet.RelatedItem": "4",
	}},
	{step: "no such image", answer: map[string]string{"TotalCount": "0", "Images.Image": "0"}},
	{step: "bad name", refusal: "400 InvalidImageName.Malformed"},
	{step: "bad size", refusal: "400 InvalidImageSize"},
	{step: "no bucket", refusal: "400 MissingParameter"},
	{step: "no object", refusal: "400 InvalidOSSObject.NotFound"},
	{step: "bad region", refusal: "400 RegionId.NotFound"},
	{step: "long import"},
	{step: "under way", answer: map[string]string{"SupportCancel": "true"}},
	{step: "delete under way", refusal: "403 ImageIsImporting"},
	{step: "cancel"},
	{step: "cancel twice", refusal: "403 InvalidTaskId.IncorrectTaskStatus"},
	{step: "canceled", answer: map[string]string{"SupportCancel": "false"}},
	{step: "name is free"},
	{step: "available, too", answer: map[string]string{"Images.Image.0.DiskDeviceMappings.DiskDeviceMapping": "1"}},
	{step: "delete"},
	{step: "deleted", refusal: "0 InvalidImageId.NotFound"},
	{step: "wrong secret", refusal: "400 SignatureDoesNotMatch"},
	{step: "unknown key", refusal: "404 InvalidAccessKeyId.NotFound"},
	{step: "session", answer: map[string]string{"RegionId": region}},
	{step: "wrong token", refusal: "400 InvalidSecurityToken.Malformed"},
}

// The vendor's clients for JavaScript go through the same life, all at once.
func TestNode(t *testing.T) {
	t.Parallel()
	s := serve(t)
	s.putEndless()
	system, data := s.guests()
	seen := map[string][]line{}
	for _, l := range s.runNode() {
		seen[l.Client] = append(seen[l.Client], l)
	}
	for _, client := range []string{"generated", "generic-GET", "generic-POST"} {
		lines := seen[client]
		if len(lines) != len(steps) {
			t.Errorf("%s went %d steps of %d", client, len(lines), len(steps))
			continue
		}
		for i, want := range steps {
			l := &lines[i]
			refused := ""
			if l.Code != "" {
				refused = fmt.Sprintf("%d %s", l.Status, l.Code)
			}
			if l.Step != want.step || refused != want.refusal {
				t.Errorf("%s: %s: %s %s, want %s: %s", client, l.Step, refused, l.Message, want.step, want.refusal)
			}
			for path, value := range want.answer {
				if got := l.at(path); got != value {
					t.Errorf("%s: %s: %s is %s, want %s", client, l.Step, path, got, value)
				}
			}
			if id := l.at("RequestId"); refused == "" && !requestForm.MatchString(id) {
				t.Errorf("%s: %s: request id %s", client, l.Step, id)
			}
		}
		made, image, again := &lines[2], &lines[3], &lines[4]
		id := made.at("ImageId")
		if !imageForm.MatchString(id) || !taskForm.MatchString(made.at("TaskId")) || image.at("Images.Image.0.ImageId") != id ||
			again.at("ImageId") != id || again.at("TaskId") != made.at("TaskId") || image.at("Images.Image.0.ImageName") != client+"-映像かな" {
			t.Errorf("%s: made %v, again %v", client, made.Answer, again.Answer)
			continue
		}
		imagetest.SameFile(t, s.disk(id, 1), system)
		imagetest.SameFile(t, s.disk(id, 2), data)
	}
}

// runNode runs the script, and returns what it printed.
func (s *service) runNode() []line {
	s.t.Helper()
	node, err := exec.LookPath("node")
	if err != nil {
		s.t.Fatal("node is not installed: run make deps-node")
	}
	// Looking at what node will read also tells go test what the result depends on.
	for _, name := range []string{"life.js", "package-lock.json", "node_modules/.package-lock.json"} {
		if _, err := os.Stat(filepath.Join("node", name)); err != nil {
			s.t.Fatalf("the clients for JavaScript are not installed: run make deps-node (%v)", err)
		}
	}
	cmd := exec.CommandContext(s.t.Context(), node, "life.js")
	cmd.Dir = "node"
	// Nothing of the environment, which may name a proxy or other credentials.
	const session = "blue-session"
	cmd.Env = []string{
		"HOST=" + s.host, "REGION=" + region, "BUCKET=" + bucket, "KEY=blue", "SECRET=" + secretOf("blue"),
		"SESSION=" + session, "SESSION_SECRET=" + secretOf(session), "SESSION_TOKEN=" + tokenOf(session),
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil || stderr.Len() > 0 {
		s.t.Errorf("node: %v\n%s", err, &stderr)
	}
	var lines []line
	for text := range bytes.Lines(out) {
		var l line
		if err := json.Unmarshal(text, &l); err != nil {
			s.t.Fatalf("node printed %s: %v", text, err)
		}
		lines = append(lines, l)
	}
	return lines
}
