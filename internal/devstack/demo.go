package devstack

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"

	"vmimport/internal/client"
	"vmimport/internal/secret"
	"vmimport/tasks"
)

// Demo is the service's main job once: a disk file is uploaded, imported with
// its SHA-1, and compared with the image that came of it.
type Demo struct {
	Image string // path of a raw disk image; empty makes one in the data directory
	// Observer is told how the import goes on.
	Observer client.Observer
	// Say prints a line for people.
	Say func(format string, args ...any)
}

// Shown is what a Demo has shown.
type Shown struct {
	Import *client.Import // as it ended
	Source string         // path of the disk that was uploaded
	Image  string         // path of the registered disk, equal to Source; empty if Import did not succeed
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
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open image: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	switch {
	case err != nil:
		return nil, fmt.Errorf("open image: %w", err)
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("open image: %s is no regular file", path)
	}
	imp, err := d.push(ctx, s, f, info)
	if err != nil {
		return nil, err
	}
	shown := &Shown{Import: imp, Source: path}
	if imp.State != tasks.Succeeded {
		return shown, nil
	}
	image := filepath.Join(s.Images, imp.ID, "disk-1.raw")
	if err := equalDisks(ctx, path, image); err != nil {
		return nil, err
	}
	d.Say("the registered image equals the source, byte for byte")
	shown.Image = image
	return shown, nil
}

func (d *Demo) push(ctx context.Context, s *Stack, f *os.File, info os.FileInfo) (*client.Import, error) {
	c := s.Credentials
	api, err := client.New(client.Options{Endpoint: c.Endpoint, ObjectsURL: c.ObjectsURL, Token: secret.New(c.Token)})
	if err != nil {
		return nil, err
	}
	// Whatever the file is called, the object's name declares a raw disk.
	object := client.Object{Container: c.Container, Name: "demo.raw"}
	return api.Push(ctx, client.Job{
		File: f, Size: info.Size(), To: object,
		Request: client.Registration{
			Name:     "demo",
			Location: client.Gen3.Location(c.ProjectID, object),
			OSType:   "ubuntu",
		},
	}, d.Observer)
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

// equalDisks compares a source file with a registered image, which may be longer
// by the zeros that fill its last sector.
func equalDisks(ctx context.Context, source, image string) error {
	a, err := os.Open(source)
	if err != nil {
		return fmt.Errorf("compare: %w", err)
	}
	defer a.Close()
	b, err := os.Open(image)
	if err != nil {
		return fmt.Errorf("compare: %w", err)
	}
	defer b.Close()
	bufA, bufB := make([]byte, 1<<20), make([]byte, 1<<20)
	for off := int64(0); ; off += int64(len(bufA)) {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		n, errA := a.ReadAt(bufA, off)
		m, errB := b.ReadAt(bufB, off)
		if err := errors.Join(notEOF(errA), notEOF(errB)); err != nil {
			return fmt.Errorf("compare: %w", err)
		}
		padding := bufB[min(n, m):m]
		if m < n || !bytes.Equal(bufA[:n], bufB[:n]) || len(padding) >= sector || len(bytes.Trim(padding, "\x00")) > 0 {
			return fmt.Errorf("the registered image differs from the source near byte %d", off)
		}
		if errA != nil && errB != nil {
			return nil
		}
	}
}

func notEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}
