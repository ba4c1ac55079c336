package fjcloud_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"go.uber.org/goleak"

	"vmimport/internal/auth"
	"vmimport/internal/events"
	"vmimport/internal/httpapi"
	"vmimport/internal/httpapi/fjcloud"
	"vmimport/tasks"
)

// serveEnv has the tests' binary serve streams in place of testing.
const serveEnv = "VMIMPORT_TEST_SERVE_STREAMS"

func TestMain(m *testing.M) {
	if os.Getenv(serveEnv) != "" {
		if err := serveStreams(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	goleak.VerifyTestMain(m)
}

// busy is a journal of tenants of which each has four tasks that run on and on.
type busy struct {
	*fakeJournal
	began time.Time
}

func (b busy) Running(_ context.Context, tenant tasks.Tenant, _ int) ([]*tasks.Task, error) {
	var list []*tasks.Task
	for i := range 4 {
		list = append(list, &tasks.Task{
			Spec:  tasks.Spec{ID: tasks.ID(fmt.Sprintf("c0ffee00-0000-4000-8000-00000000000%d", i)), Region: "r", Dialect: fjcloud.Name, Owner: tasks.Owner{Tenant: tenant, Project: "p"}},
			State: tasks.Processing, Stage: tasks.StageCopying, Epoch: 1, Counters: tasks.Counters{DoneBytes: time.Since(b.began).Microseconds()},
		})
	}
	return list, nil
}

// everybody lets in each token, as the domain of that name.
type everybody struct{}

func (everybody) Authenticate(_ context.Context, token string) (*auth.Identity, error) {
	return &auth.Identity{ProjectID: "p", DomainID: token}, nil
}

// serveStreams serves until its standard input ends.
func serveStreams() error {
	hub := events.New(busy{newFakeJournal(), time.Now()}, events.Options{})
	defer hub.Close()
	d, err := fjcloud.New("r", newFakeService(), everybody{}, fjcloud.Options{Events: hub})
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(l.Addr())
	ctx, stop := context.WithCancel(context.Background())
	go func() { _, _ = io.Copy(io.Discard, os.Stdin); stop() }()
	return httpapi.New(httpapi.Options{FJcloud: []httpapi.Region{{ID: "r", Dialect: d}}, Log: zerolog.New(os.Stderr).Level(zerolog.WarnLevel)}).Serve(ctx, l)
}

// used returns the memory of a process in MiB, and the processor time that it has taken.
func used(t *testing.T, pid int) (rss int, cpu time.Duration) {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if fields := strings.Fields(line); fields[0] == "VmRSS:" {
			kib, _ := strconv.Atoi(fields[1])
			rss = kib >> 10
		}
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	for _, f := range fields[11:13] { // utime and stime, in hundredths of a second
		n, _ := strconv.Atoi(f)
		cpu += time.Duration(n) * 10 * time.Millisecond
	}
	return rss, cpu
}

// 500 streams over real connections, each of which is told of four imports once a second.
func TestFiveHundredStreams(t *testing.T) {
	for _, tenants := range []int{1, 10} {
		t.Run(fmt.Sprintf("of %d tenants", tenants), func(t *testing.T) {
			const streams, rounds = 500, 4
			server := exec.CommandContext(t.Context(), os.Args[0])
			server.Env, server.Stderr = append(os.Environ(), serveEnv+"=1"), os.Stderr
			stdin, err := server.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			stdout, err := server.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := server.Start(); err != nil {
				t.Fatal(err)
			}
			address, err := bufio.NewReader(stdout).ReadString('\n')
			if err != nil {
				t.Fatal(err)
			}

			var begun, told, ended sync.WaitGroup
			for i := range streams {
				conn, err := net.Dial("tcp", strings.TrimSpace(address))
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				fmt.Fprintf(conn, "GET /v1/events HTTP/1.1\r\nHost: r\r\nX-Auth-Token: tenant-%d\r\n\r\n", i%tenants)
				begun.Add(1)
				told.Add(1)
				ended.Go(func() { follow(conn, 4, 4*rounds, begun.Done, told.Done) })
			}
			begun.Wait()
			_, before := used(t, server.Process.Pid)
			start := time.Now()
			told.Wait()
			rss, after := used(t, server.Process.Pid)
			load := (after - before).Seconds() / time.Since(start).Seconds()
			t.Logf("%d MiB, %.1f %% of a core", rss, load*100)
			if rss >= 100 && !raceEnabled {
				t.Errorf("%d MiB", rss)
			}
			if load > 0.5 && !raceEnabled {
				t.Errorf("%.0f %% of a core", load*100)
			}
			start = time.Now()
			_ = stdin.Close()
			if err := server.Wait(); err != nil || time.Since(start) > 5*time.Second {
				t.Errorf("stopped after %v: %v", time.Since(start), err)
			}
			ended.Wait()
		})
	}
}

// follow reads a stream to its end, and calls begun and told when so many events have come.
func follow(conn net.Conn, few, many int, begun, told func()) {
	begun, told = sync.OnceFunc(begun), sync.OnceFunc(told)
	defer begun()
	defer told()
	n := 0
	for lines := bufio.NewScanner(conn); lines.Scan(); {
		if lines.Text() != "event: progress" {
			continue
		}
		if n++; n == few {
			begun()
		}
		if n == many {
			told()
		}
	}
}
