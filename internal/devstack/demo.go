package devstack

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"

	"vmimport/internal/client"
	"vmimport/internal/diskimage"
	"vmimport/internal/secret"
	"vmimport/tasks"
)

// Demo is the service's main job once: a disk image is uploaded, imported with
// its SHA-1, and compared with the disks that came of it.
type Demo struct {
	Image string // path of a disk image of any format; empty makes one in the data directory
	// Observer is told how the import goes on.
	Observer client.Observer
	// Say prints a line for people.
	Say func(format string, args ...any)
}

// Shown is what a Demo has shown.
type Shown struct {
	Import *client.Import // as it ended
	Source string         // path of the image that was uploaded
	Image  string         // path of the registered system disk, equal to that in Source; empty if Import did not succeed
}

// Run runs the demo against a Stack that is being served. Whether the import
// succeeded is in what it returns; an image that differs is an error.
func (d *Demo) Run(ctx context.Context, s *Stack) (*Shown, error) {
	path := d.Image
	if path == "" {
		path = filepath.Join(s.Data, "demo-disk.raw")
		if err := makeSampleDisk(path); err != nil {
			return nil, err
		}
		d.Say("made a sample disk of %d MiB: %s", sampleBytes>>20, path)
	}
	src, err := openSource(path)
	if err != nil {
		return nil, err
	}
	defer src.close()
	for _, line := range src.lines() {
		d.Say("%s", line)
	}
	imp, err := d.push(ctx, s, src)
	if err != nil {
		return nil, err
	}
	shown := &Shown{Import: imp, Source: path}
	if imp.State != tasks.Succeeded {
		return shown, nil
	}
	dir := filepath.Join(s.Images, imp.ID)
	if err := src.equal(ctx, dir, s.Data); err != nil {
		return nil, err
	}
	d.Say("the registered image, of %d bytes, equals the source, byte for byte", imp.Extra.VirtualSize)
	shown.Image = diskPath(dir, 0)
	return shown, nil
}

func (d *Demo) push(ctx context.Context, s *Stack, src *source) (*client.Import, error) {
	c := s.Credentials
	api, err := client.New(client.Options{Endpoint: c.Endpoint, ObjectsURL: c.ObjectsURL, Token: secret.New(c.Token)})
	if err != nil {
		return nil, err
	}
	// Whatever the file is called, the object's name declares what is in it.
	object := client.Object{Container: c.Container, Name: "demo." + src.declared.String()}
	request := client.Registration{Name: "demo", Location: client.Gen3.Location(c.ProjectID, object), OSType: "ubuntu"}
	switch src.declared {
	case diskimage.Declared{Format: diskimage.QCOW2}:
		request.Details = &client.Details{ImageFrom: "kvm"}
	case diskimage.Declared{Format: diskimage.QCOW2, Gzip: true}:
		// That is what the cloud exports, with metadata beside it.
		const empty = "{}"
		if _, err := api.Upload(ctx, client.Object{Container: c.Container, Name: "demo.json"}, strings.NewReader(empty), int64(len(empty)), nil); err != nil {
			return nil, err
		}
	}
	return api.Push(ctx, client.Job{File: src.file, Size: src.size, To: object, Request: request}, d.Observer)
}

// The sample disk: an MBR with one partition, some data, holes, and something
// in the very last sector.
const (
	sampleBytes = 256 << 20
	sampleData  = 32 << 20 // of what does not compress, at two places
	sector      = 512
)

func makeSampleDisk(path string) (err error) {
	f, err := os.Create(path)
	if err != nil {
		return fmt.Errorf("make sample disk: %w", err)
	}
	defer func() {
		if cerr := f.Close(); err == nil && cerr != nil {
			err = fmt.Errorf("make sample disk: %w", cerr)
		}
	}()
	mbr := make([]byte, sector)
	entry := mbr[446:462]
	entry[0], entry[4] = 0x80, 0x83 // bootable, Linux
	binary.LittleEndian.PutUint32(entry[8:], 2048)
	binary.LittleEndian.PutUint32(entry[12:], sampleBytes/sector-2048)
	mbr[510], mbr[511] = 0x55, 0xaa
	noise := make([]byte, sampleData)
	if _, err := io.ReadFull(rand.NewChaCha8([32]byte{'v', 'm'}), noise); err != nil {
		return fmt.Errorf("make sample disk: %w", err)
	}
	for _, w := range []struct {
		off  int64
		data []byte
	}{{0, mbr}, {2048 * sector, noise}, {sampleBytes / 2, noise}, {sampleBytes - sector, noise[:sector]}} {
		if _, err := f.WriteAt(w.data, w.off); err != nil {
			return fmt.Errorf("make sample disk: %w", err)
		}
	}
	return nil
}
