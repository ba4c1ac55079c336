package aliyuntest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"vmimport/internal/devstack"
	"vmimport/internal/diskimage/imagetest"
)

const (
	region = devstack.AliyunRegion
	bucket = "images"
)

// importRole is what an account needs for the service to read its buckets.
const importRole = `
    roles:
      - name: AliyunECSImageImportDefaultRole
        trust: {Version: "1", Statement: {Effect: Allow, Action: "sts:AssumeRole", Principal: {Service: [ecs.aliyuncs.com]}}}
        policies: [AliyunECSImageImportRolePolicy]
`

// accounts are those of every service, unless a test replaces the file. The secret of a
// key is secretOf its id, and the token of a session tokenOf it.
const accounts = `
accounts:
  - id: "1001"
    import: true
    keys: [{id: blue, secret: secret-of-blue}, {id: blue-disabled, secret: secret-of-blue-disabled, enabled: false}]
    users:
      - {name: reader, keys: [{id: blue-reader, secret: secret-of-blue-reader}], policies: [AliyunECSReadOnlyAccess]}
    sessions:
      - {id: blue-session, secret: secret-of-blue-session, token: token-of-blue-session, expires: "2100-01-01T00:00:00Z"}
      - {id: blue-expired, secret: secret-of-blue-expired, token: token-of-blue-expired, expires: "2020-01-01T00:00:00Z"}
    resource_groups: [rg-blue]
    buckets: [{name: images, region: cn-hangzhou}, {name: images-north, region: cn-beijing, container: images}]
` + importRole + `
  - id: "1002"
    import: true
    keys: [{id: green, secret: secret-of-green}]
    buckets: [{name: images-green, region: cn-hangzhou, container: images}]
` + importRole + `
  - id: "1003"
    import: true
    keys: [{id: no-role, secret: secret-of-no-role}]
    buckets: [{name: images-no-role, region: cn-hangzhou, container: images}]
  - id: "1004"
    import: false
    keys: [{id: not-enabled, secret: secret-of-not-enabled}]
  - id: "1005"
    import: true
    quotas: {images: 2, snapshots: 3}
    keys: [{id: small, secret: secret-of-small}]
    buckets: [{name: images-small, region: cn-hangzhou, container: images}]
` + importRole

func secretOf(keyID string) string { return "secret-of-" + keyID }
func tokenOf(keyID string) string  { return "token-of-" + keyID }

// service is the whole service on a directory of its own.
type service struct {
	t     *testing.T
	stack *devstack.Stack
	host  string // host:port
	log   *journal
}

// serve starts a service that lives as long as the test.
func serve(t *testing.T) *service {
	t.Helper()
	data := t.TempDir()
	err := errors.Join(
		os.WriteFile(filepath.Join(data, "accounts.yaml"), []byte(accounts), 0o600),
		os.WriteFile(filepath.Join(data, "credentials.env"), fmt.Appendf(nil, "ALIYUN_ACCESS_KEY_ID=blue\nALIYUN_ACCESS_KEY_SECRET=%s\n", secretOf("blue")), 0o600),
	)
	if err != nil {
		t.Fatal(err)
	}
	s := &service{t: t, log: &journal{}}
	if s.stack, err = devstack.Start(t.Context(), devstack.Options{Listen: "127.0.0.1:0", Data: data, Log: zerolog.New(s.log)}); err != nil {
		t.Fatal(err)
	}
	s.host = strings.TrimPrefix(s.stack.Credentials.AliyunEndpoint, "http://")
	ctx, stop := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- s.stack.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-served; err != nil {
			t.Errorf("the service ended with %v", err)
		}
		if strings.Contains(s.log.String(), "secret-of-") || strings.Contains(s.log.String(), "token-of-") {
			t.Error("the log holds a secret")
		}
	})
	return s
}

// setAccounts replaces the file of accounts, as an operator would.
func (s *service) setAccounts(content string) {
	s.t.Helper()
	path := filepath.Join(s.stack.Data, "accounts.yaml")
	err := os.WriteFile(path+".new", []byte(content), 0o600)
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	if err != nil {
		s.t.Fatal(err)
	}
}

// object returns where an object lies.
func (s *service) object(name string) string {
	return filepath.Join(s.stack.Data, "objects", bucket, name)
}

// put copies a file into the bucket.
func (s *service) put(name, path string) {
	s.t.Helper()
	b, err := os.ReadFile(path)
	if err == nil {
		err = os.MkdirAll(filepath.Dir(s.object(name)), 0o700)
	}
	if err == nil {
		err = os.WriteFile(s.object(name), b, 0o600)
	}
	if err != nil {
		s.t.Fatal(err)
	}
}

// guests puts two disks into the bucket, one raw and one packed, and returns the paths of
// what must become of them.
func (s *service) guests() (raw, packed string) {
	s.t.Helper()
	for _, g := range imagetest.Guests(s.t) {
		switch g.Name {
		case "ext4":
			raw = g.Path
		case "text":
			packed = g.Path
		}
	}
	s.put("dir/system disk+1.raw", raw)
	s.put("data.qcow2", imagetest.Convert(s.t, packed, "qcow2", ""))
	return raw, packed
}

// putHole puts a raw disk that is one hole into the bucket.
func (s *service) putHole(name string, size int64) {
	s.t.Helper()
	f, err := os.Create(s.object(name))
	if err != nil {
		s.t.Fatal(err)
	}
	if err := errors.Join(f.Truncate(size), f.Close()); err != nil {
		s.t.Fatal(err)
	}
}

func truncate(t *testing.T, path string, size int64) {
	t.Helper()
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
}

// putDamaged puts a QCOW2 image into the bucket that has good tables, and compressed
// clusters that are nonsense.
func (s *service) putDamaged(name string) {
	s.t.Helper()
	_, data := s.guests()
	b, err := os.ReadFile(imagetest.Convert(s.t, data, "qcow2", "", "-c"))
	if err == nil {
		copy(b[len(b)-8<<10:], bytes.Repeat([]byte{0xff}, 4<<10))
		err = os.WriteFile(s.object(name), b, 0o600)
	}
	if err != nil {
		s.t.Fatal(err)
	}
}

// endless is an object whose import takes minutes, though it takes no space: as long as a
// test needs one that is being imported.
const endless = "endless.raw"

func (s *service) putEndless() { s.putHole(endless, 400<<30) }

// disk is where a disk of an image lies, counted from 1.
func (s *service) disk(imageID string, number int) string {
	return filepath.Join(s.stack.Images, imageID, fmt.Sprintf("disk-%d.raw", number))
}

// until asks again and again until the answer is yes, for a minute at most.
func until(t *testing.T, what string, yes func() bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(time.Minute)
	for !yes() {
		select {
		case <-tick.C:
		case <-limit:
			t.Fatal("it took too long until " + what)
		}
	}
}

// journal is a buffer that is written to and read at the same time.
type journal struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.buf.Write(p)
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.buf.String()
}
