package app

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"vmimport/internal/audit"
	"vmimport/internal/config"
	"vmimport/internal/fault"
	"vmimport/internal/outbound"
	"vmimport/internal/scratch"
	"vmimport/internal/secret"
	"vmimport/internal/webhook"
)

// maxSkew is how far clocks may be apart before logs cannot be read together and
// object stores come near to refusing signatures. Imports go by Redis's clock.
const maxSkew = 30 * time.Second

// skewOf is how far another clock was from this machine's, when it was read between two times,
// and how much of that is sure.
func skewOf(there, before, after time.Time) (skew, sure time.Duration) {
	half := after.Sub(before) / 2
	skew = there.Sub(before.Add(half)).Abs()
	return skew, skew - half
}

// machine looks at what the process finds where it runs.
func (d *diagnosis) machine(cfg *config.Config) {
	d.look("scratch", "Correct worker.scratch, or make room there.", func(context.Context) (string, error) { return scratchRoom(cfg) })
	d.look("open files", "Raise the limit for the service's user (LimitNOFILE of systemd, ulimits of a container).",
		func(context.Context) (string, error) { return openFiles(cfg) })
	if path := cfg.Audit.Path; path != "" {
		d.look("audit log", "Correct audit.path, or let the service's user write there.", func(context.Context) (string, error) { return "", audit.CheckFile(path) })
	}
}

// scratchRoom also tells which images would not fit, which is no fault where none are expected.
func scratchRoom(cfg *config.Config) (string, error) {
	message, err := scratch.Check(cfg.Worker.Scratch)
	if err != nil {
		return "", err
	}
	free, err := freeBytes(cfg.Worker.Scratch)
	if err != nil {
		return "", err
	}
	for _, rc := range cfg.Regions {
		if int64(rc.MaxDisk) > int64(free) {
			return message + fmt.Sprintf("; a disk of %s (max_disk) would not fit, if it has to wait here", byteCount(rc.MaxDisk)), nil
		}
	}
	return message, nil
}

const (
	// filesOfProcess is what a process opens for itself and for its callers.
	filesOfProcess = 1024
	// filesOfTask is what a task opens besides its range requests.
	filesOfTask = 16
)

// openFiles compares the limit of this process with what a worker or API of the configuration
// comes to.
func openFiles(cfg *config.Config) (string, error) {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return "", fmt.Errorf("read the limit of open files: %w", err)
	}
	// The process raises its own limit as far as it may.
	may, need := limit.Max, uint64(filesOfProcess+cfg.Worker.Concurrency*(cfg.Worker.Parallel+filesOfTask))
	if may < need {
		return "", fmt.Errorf("this user may open %d, and the service comes to %d", may, need)
	}
	return fmt.Sprintf("up to %d", may), nil
}

// byteCount is a size as people read it.
type byteCount int64

func (b byteCount) String() string {
	for _, u := range []struct {
		bits uint
		name string
	}{{40, "TiB"}, {30, "GiB"}, {20, "MiB"}} {
		if b >= 1<<u.bits {
			return fmt.Sprintf("%d %s", b>>u.bits, u.name)
		}
	}
	return fmt.Sprintf("%d bytes", int64(b))
}

// freeBytes is what is free at path, or where it would be made.
func freeBytes(path string) (byteCount, error) {
	var space syscall.Statfs_t
	path, err := filepath.Abs(path)
	for err == nil {
		if err = syscall.Statfs(path, &space); !errors.Is(err, fs.ErrNotExist) {
			break
		}
		path, err = filepath.Dir(path), nil
	}
	if err != nil {
		return 0, &os.PathError{Op: "ask for free space of", Path: path, Err: err}
	}
	return byteCount(int64(space.Bavail) * space.Bsize), nil
}

// serverClock compares clocks with a server that says the time in its answers. One that does not
// is no finding.
func (d *diagnosis) serverClock(check, address, caFile string) {
	ctx, cancel := context.WithTimeout(d.ctx, diagnoseTimeout)
	defer cancel()
	before := time.Now()
	there, err := dateOf(ctx, address, caFile)
	if err != nil {
		return
	}
	after := time.Now()
	d.look(check, "Synchronise the clocks of this machine and of that server.", func(context.Context) (string, error) {
		skew, sure := skewOf(there, before, after)
		if sure > maxSkew {
			return "", fmt.Errorf("this machine's clock and the server's differ by %s", skew.Round(time.Second))
		}
		return "differs by " + max(sure, 0).Round(time.Second).String(), nil
	})
}

// dateOf asks a server for no more than an answer, which has the time in it.
func dateOf(ctx context.Context, address, caFile string) (time.Time, error) {
	transport, err := outbound.Transport(outbound.Options{CAFile: caFile})
	if err != nil {
		return time.Time{}, err
	}
	defer transport.CloseIdleConnections()
	request, err := http.NewRequestWithContext(ctx, http.MethodHead, address, nil)
	if err != nil {
		return time.Time{}, err
	}
	answer, err := transport.RoundTrip(request) // which follows no redirects
	if err != nil {
		return time.Time{}, err
	}
	_ = answer.Body.Close() // empty
	return http.ParseTime(answer.Header.Get("Date"))
}

// errPrivate is the refusal of an address that a receiver must not have.
var errPrivate = fault.New(fault.Denied, "receiver_private", "The address of the receiver is none of the public internet.").
	Try("Correct the webhook's url; for a receiver of your own network set allow_private.")

func (d *diagnosis) webhook(wc config.Webhook) {
	at := "webhook " + wc.ID
	if !d.look(at+": secret", "Correct the webhook's secret_file: 32 characters at least.", func(context.Context) (string, error) {
		text, err := secret.FromFile(wc.SecretFile)
		if err == nil {
			_, err = webhook.Key(text)
		}
		return "", err
	}) {
		return
	}
	d.look(at+": receiver", "Start the receiver, or correct the webhook's url and ca_file.", func(ctx context.Context) (string, error) {
		err := greet(ctx, wc)
		if errors.Is(err, outbound.ErrNotPublic) {
			err = errPrivate
		}
		return "", err
	})
}

// greet connects to a receiver as a delivery would, and sends it nothing. Its errors do not
// quote the URL, whose query may be a secret.
func greet(ctx context.Context, wc config.Webhook) error {
	u, err := url.Parse(wc.URL)
	if err != nil || u.Hostname() == "" {
		return errors.New("the url has no host")
	}
	transport, err := outbound.Transport(outbound.Options{CAFile: wc.CAFile, PublicOnly: !wc.AllowPrivate})
	if err != nil {
		return err
	}
	port := map[string]string{"http": "80", "https": "443"}[u.Scheme]
	conn, err := transport.DialContext(ctx, "tcp", net.JoinHostPort(u.Hostname(), cmp.Or(u.Port(), port)))
	if err != nil {
		return err
	}
	defer conn.Close()
	if u.Scheme != "https" {
		return nil
	}
	secure := transport.TLSClientConfig.Clone()
	secure.ServerName = u.Hostname()
	return tls.Client(conn, secure).HandshakeContext(ctx)
}
