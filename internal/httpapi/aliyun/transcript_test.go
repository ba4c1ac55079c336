package aliyun_test

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"vmimport/internal/auth/aliyunsig/aliyunsigtest"
	"vmimport/tasks"
)

var update = flag.Bool("update", false, "write the answers of golden transcripts anew")

// keys of transcripts, by name.
var keys = map[string]aliyunsigtest.Key{
	"alpha": alphaKey, "reader": readerKey, "importer": importerKey, "session": sessionKey, "disabled": disabledKey,
	"beta": betaKey, "gamma": gammaKey,
	"wrong": {ID: alphaKey.ID, Secret: "not-it"}, "unknown": {ID: "LTAIunknown", Secret: "x"},
}

// TestTranscripts runs the files in testdata, each against a rig of its own. A line says by
// its first character what it is:
//
//	# a comment
//	! something that happens behind the API; see happen
//	> an action, the form of the answer, and further words; then a parameter on each line
//	< the answer that must come
//
// Further words are the name of a key (alpha unless told), and acs3 for the newer signature.
// go test -update writes the answers anew.
func TestTranscripts(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no transcripts: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			t.Parallel()
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			got := (&transcript{t: t, rig: newRig(t), workers: map[string]*worker{}}).replay(string(want))
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			wantLines, gotLines := strings.Split(string(want), "\n"), strings.Split(got, "\n")
			for i, line := range wantLines {
				if i >= len(gotLines) || line != gotLines[i] {
					t.Fatalf("%s:%d:\nwant %s\ngot  %s", file, i+1, line, strings.Join(gotLines[min(i, len(gotLines)):min(i+1, len(gotLines))], ""))
				}
			}
		})
	}
}

type transcript struct {
	t       *testing.T
	rig     *rig
	workers map[string]*worker
}

// replay returns the transcript as it happens now.
func (tr *transcript) replay(text string) string {
	var out strings.Builder
	var request []string
	for line := range strings.Lines(text + "\n") {
		line = strings.TrimSuffix(line, "\n")
		asked, ok := strings.CutPrefix(line, "> ")
		if ok {
			request = append(request, asked)
			out.WriteString(line + "\n")
			continue
		}
		if len(request) > 0 {
			out.WriteString(tr.exchange(request))
			request = nil
		}
		if strings.HasPrefix(line, "< ") {
			continue
		}
		out.WriteString(line + "\n")
		if words, ok := strings.CutPrefix(line, "! "); ok {
			tr.happen(strings.Fields(words))
		}
	}
	return strings.TrimSuffix(out.String(), "\n")
}

func (tr *transcript) exchange(lines []string) string {
	head, p := strings.Fields(lines[0]), params{}
	for _, line := range lines[1:] {
		name, value, _ := strings.Cut(line, "=")
		p[name] = value
	}
	action, form, key, acs3 := head[0], head[1], alphaKey, false
	for _, word := range head[2:] {
		if word == "acs3" {
			acs3 = true
			continue
		}
		key = keys[word]
	}
	p["Format"] = form
	var a reply
	if acs3 {
		a = tr.rig.callACS3(tr.t, key, action, p)
	} else {
		a = tr.rig.callAs(tr.t, key, action, p)
	}
	if id := a.header.Get("X-Acs-Request-Id"); id == "" || !strings.Contains(a.body, id) {
		tr.t.Errorf("the request id %q is not that of the answer %s", id, a.body)
	}
	text := fmt.Sprintf("%d %s\n%s", a.status, a.header.Get("Content-Type"), a.body)
	if retry := a.header.Get("Retry-After"); retry != "" {
		text = strings.Replace(text, "\n", "\nRetry-After: "+retry+"\n", 1)
	}
	return "< " + strings.ReplaceAll(text, "\n", "\n< ") + "\n"
}

// happen does what a line with an exclamation mark says:
//
//	claim N             a worker takes the task whose id ends in N
//	beat N PERCENT DISK it has come so far, and is at that disk
//	publish N, succeed N, fail N CODE DISK, release N, canceled N, removed N
//	wait DURATION
//	down, up            Redis answers no more, or again
func (tr *transcript) happen(words []string) {
	t := tr.t
	number := func(i int) int {
		n, err := strconv.Atoi(words[i])
		if err != nil {
			t.Fatalf("%v: %v", words, err)
		}
		return n
	}
	switch words[0] {
	case "claim":
		tr.workers[words[1]] = tr.rig.work(t, fmt.Sprintf("t-bp%018d", number(1)))
		return
	case "wait":
		d, err := time.ParseDuration(words[1])
		if err != nil {
			t.Fatal(err)
		}
		tr.rig.clock.add(d)
		return
	case "down":
		tr.rig.redis.SetError("LOADING")
		return
	case "up":
		tr.rig.redis.SetError("")
		return
	}
	w := tr.workers[words[1]]
	switch words[0] {
	case "beat":
		total := w.imp.TotalBytes()
		w.beat(t, tasks.Progress{Percent: number(2), Stage: tasks.StageCopying,
			Counters: tasks.Counters{Disk: number(3), DoneBytes: total * int64(number(2)) / 100, BytesPerSecond: 64 << 20}})
	case "publish":
		w.publishing(t)
	case "succeed":
		w.succeed(t)
	case "fail":
		w.fail(t, tasks.Failure{Code: words[2], Message: "It is wrong.", Evidence: "seen: this", Remedy: "Try another one.", Disk: number(3)})
	case "release":
		w.release(t)
	case "canceled":
		w.canceled(t)
	case "removed":
		w.removed(t)
	default:
		t.Fatalf("nothing is called %q", words[0])
	}
}
