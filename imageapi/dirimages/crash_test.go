package dirimages_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"vmimport/imageapi"
	"vmimport/imageapi/dirimages"
	"vmimport/internal/fault"
)

// Workers die and stop as processes, so these tests run the test binary again
// as a worker, which one environment variable tells what to do.
const workerEnv = "VMIMPORT_TEST_DIRIMAGES_WORKER"

func TestMain(m *testing.M) {
	if job := os.Getenv(workerEnv); job != "" {
		if err := work(job, os.Args[1], os.Args[2]); err != nil {
			fmt.Println("error", fault.CodeOf(err), err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

const (
	crashSize  = 4 << 20
	crashChunk = 64 << 10
)

// crashContent is what every worker of these tests writes.
func crashContent() []byte {
	b := make([]byte, crashSize)
	rand.NewChaCha8([32]byte{1}).Read(b)
	clear(b[1<<20 : 1<<20+3*crashChunk])
	return b
}

// work is the worker. It says on stdout what it does, line by line.
func work(job, root, importID string) error {
	ctx := context.Background()
	images, err := dirimages.New(root, dirimages.Options{})
	if err != nil {
		return err
	}
	switch job {
	case "copy": // one image: each line is an offset that is durable
		u, err := images.Begin(ctx, spec(importID, 1))
		if err != nil {
			return err
		}
		w, _, err := u.Disk(ctx, imageapi.DiskSpec{Number: 1, Size: crashSize})
		if err != nil {
			return err
		}
		b := crashContent()
		for at := 0; at < crashSize; at += crashChunk {
			if _, err := w.WriteAt(b[at:at+crashChunk], int64(at)); err != nil {
				return err
			}
			if err := w.Sync(); err != nil {
				return err
			}
			fmt.Println("synced", at+crashChunk)
		}
		if err := w.Close(); err != nil {
			return err
		}
		return u.Publish(ctx, []imageapi.DiskFacts{{VirtualSize: crashSize}})

	case "stall": // half an image; then, when told so, junk everywhere, and Publish
		u, err := images.Begin(ctx, spec(importID, 1))
		if err != nil {
			return err
		}
		w, _, err := u.Disk(ctx, imageapi.DiskSpec{Number: 1, Size: crashSize})
		if err != nil {
			return err
		}
		if _, err := w.WriteAt(crashContent()[:crashSize/2], 0); err != nil {
			return err
		}
		if err := w.Sync(); err != nil {
			return err
		}
		fmt.Println("synced", crashSize/2)
		if _, err := bufio.NewReader(os.Stdin).ReadString('\n'); err != nil {
			return err
		}
		if _, err := w.WriteAt(bytes.Repeat([]byte("junk"), crashSize/4), 0); err != nil {
			return err
		}
		if err := w.Close(); err != nil {
			return err
		}
		return u.Publish(ctx, []imageapi.DiskFacts{{VirtualSize: crashSize}})

	case "many": // small images, one after the other, without an end
		for i := 0; ; i++ {
			s := spec(importID+strconv.Itoa(i), 1)
			s.ImageID = "image-" + strconv.Itoa(i)
			fmt.Println("image", i)
			if err := copyImage(ctx, images, s, smallContent(s.ImportID)); err != nil {
				return err
			}
		}

	case "compete": // as many as stdin has lines, each when its line comes
		for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
			s := spec(importID+lines.Text(), 1)
			s.ImageID = "image-" + lines.Text()
			err := copyImage(ctx, images, s, smallContent(s.ImportID))
			if err != nil && !errors.Is(err, imageapi.ErrTaken) {
				return err
			}
			fmt.Println("code", fault.CodeOf(err))
		}
		return nil
	}
	return fmt.Errorf("no such job: %s", job)
}

func smallContent(importID string) []byte {
	return bytes.Repeat([]byte(importID+"\n"), 3000)
}

// worker is a running worker process.
type worker struct {
	*testing.T
	cmd   *exec.Cmd
	in    io.WriteCloser
	lines *bufio.Scanner
}

func start(t *testing.T, job, root, importID string) *worker {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], root, importID)
	cmd.Env = append(os.Environ(), workerEnv+"="+job)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return &worker{T: t, cmd: cmd, in: in, lines: bufio.NewScanner(out)}
}

// next returns what stands behind the given word in the next line.
func (w *worker) next(word string) string {
	w.Helper()
	if !w.lines.Scan() {
		w.Fatalf("the worker has ended: %v", w.lines.Err())
	}
	rest, ok := strings.CutPrefix(w.lines.Text(), word+" ")
	if !ok {
		w.Fatalf("the worker says %q", w.lines.Text())
	}
	return rest
}

func (w *worker) number(word string) int {
	w.Helper()
	n, err := strconv.Atoi(w.next(word))
	if err != nil {
		w.Fatal(err)
	}
	return n
}

func (w *worker) say(line string) {
	w.Helper()
	if _, err := fmt.Fprintln(w.in, line); err != nil {
		w.Fatal(err)
	}
}

func (w *worker) signal(s os.Signal) {
	w.Helper()
	if err := w.cmd.Process.Signal(s); err != nil {
		w.Fatal(err)
	}
}

// kill ends the worker without warning, and returns the last line it still said.
func (w *worker) kill() (last string) {
	w.Helper()
	w.signal(syscall.SIGKILL)
	for w.lines.Scan() {
		last = w.lines.Text()
	}
	_ = w.cmd.Wait()
	return last
}

// The worker is killed at some point of the copy; the next attempt goes on from
// the last offset that the first one knew to be durable.
func TestKilledWhileWriting(t *testing.T) {
	b := crashContent()
	for _, lines := range []int{1, 7, 20, 40, 63} {
		t.Run(fmt.Sprintf("after %d chunks", lines), func(t *testing.T) {
			t.Parallel()
			root := t.TempDir()
			images := open(t, root)
			w := start(t, "copy", root, importID)
			var reached int
			for range lines {
				reached = w.number("synced")
			}
			w.kill()
			if _, err := images.Get(t.Context(), imageID); err == nil {
				// It came to its end before the signal.
				if !bytes.Equal(readDisk(t, root, imageID, 1), b) {
					t.Fatal("the published disk differs")
				}
				return
			}
			u, err := images.Begin(t.Context(), spec(importID, 2))
			if err != nil {
				t.Fatalf("Begin: %v", err)
			}
			defer u.Close()
			d, ok, err := u.Disk(t.Context(), imageapi.DiskSpec{Number: 1, Size: crashSize, Resume: int64(reached)})
			if err != nil || !ok {
				t.Fatalf("Disk from %d: ok %v, %v", reached, ok, err)
			}
			if _, err := d.WriteAt(b[reached:], int64(reached)); err != nil {
				t.Fatalf("WriteAt: %v", err)
			}
			if err := d.Close(); err != nil {
				t.Fatalf("Close: %v", err)
			}
			publish(t, u, imageapi.DiskFacts{VirtualSize: crashSize})
			if !bytes.Equal(readDisk(t, root, imageID, 1), b) {
				t.Error("the disk differs")
			}
			if left := leftovers(t, root); len(left) > 0 {
				t.Errorf("left: %q", left)
			}
		})
	}
}

// Workers are killed wherever they happen to be between Begin and the end of
// Publish. Every image that is visible is whole, and a next attempt finishes
// the one that is not.
func TestKilledWhilePublishing(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	images := open(t, root)
	for round := range 15 {
		prefix := fmt.Sprintf("round-%d-", round)
		w := start(t, "many", root, prefix)
		last := w.number("image")
		for range round % 4 {
			last = w.number("image")
		}
		if line := w.kill(); line != "" {
			if _, err := fmt.Sscanf(line, "image %d", &last); err != nil {
				t.Fatalf("the worker says %q", line)
			}
		}
		for i := range last + 1 {
			s := spec(prefix+strconv.Itoa(i), 2)
			s.ImageID = "image-" + strconv.Itoa(i)
			img, err := images.Get(t.Context(), s.ImageID)
			switch {
			case errors.Is(err, imageapi.ErrNoImage) && i == last:
				if err := copyImage(t.Context(), images, s, smallContent(s.ImportID)); err != nil {
					t.Fatalf("next attempt: %v", err)
				}
			case err != nil:
				t.Fatalf("Get(%s): %v", s.ImageID, err)
			case img.ImportID != s.ImportID:
				t.Fatalf("the image is of %s", img.ImportID)
			}
			if !bytes.Equal(readDisk(t, root, s.ImageID, 1), smallContent(s.ImportID)) {
				t.Fatalf("%s differs", s.ImageID)
			}
			if err := images.Remove(t.Context(), s.ImportID, s.ImageID); err != nil {
				t.Fatalf("Remove: %v", err)
			}
		}
		if left := names(t, root); len(left) != 1 {
			t.Fatalf("left: %q", left)
		}
		if left := leftovers(t, root); len(left) > 0 {
			t.Fatalf("left: %q", left)
		}
	}
}

// A worker is stopped, taken for dead, and wakes up again after another has
// begun, or has published.
func TestZombie(t *testing.T) {
	b := crashContent()
	for name, wakeBefore := range map[string]bool{"wakes during the next attempt": true, "wakes after the next attempt": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			root := t.TempDir()
			images := open(t, root)
			zombie := start(t, "stall", root, importID)
			reached := zombie.number("synced")
			zombie.signal(syscall.SIGSTOP)

			wake := func() {
				zombie.signal(syscall.SIGCONT)
				zombie.say("go on")
				if said := zombie.next("error"); !strings.HasPrefix(said, "shut_out ") {
					t.Errorf("the zombie's Publish: %s", said)
				}
				_ = zombie.cmd.Wait()
			}
			u, err := images.Begin(t.Context(), spec(importID, 2))
			if err != nil {
				t.Fatalf("Begin: %v", err)
			}
			defer u.Close()
			w, ok, err := u.Disk(t.Context(), imageapi.DiskSpec{Number: 1, Size: crashSize, Resume: int64(reached)})
			if err != nil || ok {
				t.Fatalf("Disk: ok %v, %v; want nothing of a file that is still being written", ok, err)
			}
			if _, err := w.WriteAt(b[:crashSize/2], 0); err != nil {
				t.Fatalf("WriteAt: %v", err)
			}
			if wakeBefore {
				wake()
			}
			if _, err := w.WriteAt(b[crashSize/2:], crashSize/2); err != nil {
				t.Fatalf("WriteAt: %v", err)
			}
			if err := w.Close(); err != nil {
				t.Fatalf("Close: %v", err)
			}
			publish(t, u, imageapi.DiskFacts{VirtualSize: crashSize})
			if !wakeBefore {
				wake()
			}
			if !bytes.Equal(readDisk(t, root, imageID, 1), b) {
				t.Error("the disk differs")
			}
			if left := leftovers(t, root); len(left) > 0 {
				t.Errorf("left: %q", left)
			}
		})
	}
}

// Two workers publish the same image ids for different imports, at the same
// time. One of them gets each.
func TestProcessesCompete(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	a, b := start(t, "compete", root, "a-"), start(t, "compete", root, "b-")
	won := make(map[string]int)
	for i := range 25 {
		n := strconv.Itoa(i)
		a.say(n)
		b.say(n)
		winner := ""
		for w, prefix := range map[*worker]string{a: "a-", b: "b-"} {
			switch code := w.next("code"); code {
			case "":
				if winner != "" {
					t.Fatalf("image %d: both have it", i)
				}
				winner = prefix
			case "image_id_in_use":
			default:
				t.Fatalf("image %d: %s", i, code)
			}
		}
		if winner == "" {
			t.Fatalf("image %d: neither has it", i)
		}
		won[winner]++
		if !bytes.Equal(readDisk(t, root, "image-"+n, 1), smallContent(winner+n)) {
			t.Fatalf("image %d differs", i)
		}
	}
	t.Logf("won: %v", won)
	for _, w := range []*worker{a, b} {
		w.in.Close()
		if err := w.cmd.Wait(); err != nil {
			t.Error(err)
		}
	}
	// What the losers staged is theirs to remove.
	images := open(t, root)
	if _, err := images.Sweep(t.Context(), func(string) (bool, error) { return false, nil }); err != nil {
		t.Fatal(err)
	}
	if left := names(t, filepath.Join(root, ".staging")); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
}
