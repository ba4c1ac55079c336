package devstack

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"vmimport/internal/diskimage"
	"vmimport/internal/diskimage/formats"
	"vmimport/internal/httpapi/fjcloud"
)

// source is the file that a demo uploads.
type source struct {
	file *os.File
	size int64
	// declared is what the object's name has to say: what the file's says, if that
	// is true, else what was found.
	declared diskimage.Declared
	image    *formats.Source
	err      error // why there is no image
}

// openSource opens a disk image. One that nothing can be made of is opened, too: it is
// for the service to refuse it, in its own words.
func openSource(path string) (*source, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open image: %w", err)
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is no regular file", path)
	}
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("open image: %w", err)
	}
	s := &source{file: f, size: info.Size(), declared: declaredBy(path)}
	in := diskimage.NewFile(f, s.size)
	if s.image, s.err = formats.Open(in, s.declared, formats.Limits{}); s.err == nil && s.declared.Format != "" {
		return s, nil
	}
	if found, err := formats.Open(in, diskimage.Declared{}, formats.Limits{}); err == nil {
		s.image, s.err, s.declared = found, nil, diskimage.ParseDeclared(found.String())
	} else if s.declared.Format == "" {
		s.declared.Format = diskimage.Raw
	}
	return s, nil
}

func (s *source) close() { _ = s.file.Close() }

// declaredBy is what a file's name says, or nothing.
func declaredBy(path string) diskimage.Declared {
	name, packed := strings.CutSuffix(strings.ToLower(filepath.Base(path)), ".gz")
	format := diskimage.Format(fjcloud.Formats[filepath.Ext(name)])
	return diskimage.Declared{Format: format, Gzip: packed && format != ""}
}

// lines describe the disks, a line each.
func (s *source) lines() []string {
	if s.err != nil {
		return nil
	}
	var lines []string
	for i, d := range s.image.Disks {
		line := filepath.Base(s.file.Name())
		if len(s.image.Disks) > 1 {
			line += fmt.Sprintf(", disk %d", i+1)
		}
		switch {
		case d.Gzip: // what it is, only all of it shows
			line += fmt.Sprintf(": %s in gzip", s.declared.Format)
		case d.Variant != string(d.Format):
			line += fmt.Sprintf(": %s (%s)", d.Format, d.Variant)
		default:
			line += fmt.Sprintf(": %s", d.Format)
		}
		if d.Size > 0 {
			line += fmt.Sprintf(", virtual size %d bytes", d.Size)
		}
		lines = append(lines, line)
	}
	return lines
}

// diskPath is where disk i of an image is, from 0.
func diskPath(dir string, i int) string { return filepath.Join(dir, fmt.Sprintf("disk-%d.raw", i+1)) }

// equal compares the source with the disks of an image, which are in dir.
//
// It takes other ways than the import did: it reads in the order of each disk, not in
// that of the object, and unpacks gzip first, with another library, into a file that it
// makes and removes in scratch.
func (s *source) equal(ctx context.Context, dir, scratch string) error {
	if s.err != nil {
		return fmt.Errorf("compare: %w", s.err)
	}
	image := s.image
	if s.declared.Gzip {
		unpacked, size, err := s.unpack(ctx, scratch)
		if err != nil {
			return fmt.Errorf("compare: %w", err)
		}
		defer unpacked.Close()
		if image, err = formats.Open(diskimage.NewFile(unpacked, size), diskimage.Declared{Format: s.declared.Format}, formats.Limits{}); err != nil {
			return fmt.Errorf("compare: %w", err)
		}
	}
	for i, d := range image.Disks {
		if err := equalDisk(ctx, d.Disk, image.File(i), diskPath(dir, i)); err != nil {
			return fmt.Errorf("compare disk %d: %w", i+1, err)
		}
	}
	return nil
}

// unpack unpacks a gzip file into one without a name.
func (s *source) unpack(ctx context.Context, dir string) (*os.File, int64, error) {
	in, err := gzip.NewReader(io.NewSectionReader(s.file, 0, s.size))
	if err != nil {
		return nil, 0, err
	}
	out, err := os.CreateTemp(dir, "demo-unpacked-")
	if err != nil {
		return nil, 0, err
	}
	err = os.Remove(out.Name())
	var size int64
	for err == nil {
		if err = context.Cause(ctx); err != nil {
			break
		}
		var n int64
		n, err = io.CopyN(out, in, compareBytes)
		size += n
	}
	if !errors.Is(err, io.EOF) {
		return nil, 0, errors.Join(err, out.Close())
	}
	return out, size, nil
}

// compareBytes is how much is compared at a time.
const compareBytes = 1 << 20

// equalDisk compares the disk d, which is in f, with the raw file at path.
func equalDisk(ctx context.Context, d *diskimage.Disk, f *diskimage.File, path string) error {
	raw, err := os.Open(path)
	if err != nil {
		return err
	}
	defer raw.Close()
	info, err := raw.Stat()
	if err != nil {
		return err
	}
	if info.Size() != d.Size {
		return fmt.Errorf("the registered image has %d bytes, the disk of the source %d", info.Size(), d.Size)
	}
	c := &comparison{ctx: ctx, raw: raw}
	if err := eachPiece(d, f, c.data); err != nil {
		return err
	}
	return c.zeros(d.Size)
}

// eachPiece calls visit for what the image has of its disk, in the disk's order. What
// is left out reads as zeros; the last piece may end behind the disk.
func eachPiece(d *diskimage.Disk, f *diskimage.File, visit func(off int64, p []byte) error) error {
	if d.Map == nil {
		parser := d.Parser(diskimage.Position{})
		return diskimage.Walk(f, parser, func(p diskimage.Piece) error {
			if !p.Packed {
				return visit(p.Guest, p.Data)
			}
			unit := make([]byte, p.Length)
			if err := parser.Unpack(unit, p.Data); err != nil {
				return err
			}
			return visit(p.Guest, unit)
		})
	}
	buf := make([]byte, compareBytes)
	for e, err := range d.Map.Extents(0) {
		if err != nil {
			return err
		}
		if e.Packed {
			src, err := f.Read("compressed data", e.File, e.Stored)
			if err != nil {
				return err
			}
			unit := make([]byte, e.Length)
			if err := d.Map.Unpack(unit, src); err != nil {
				return err
			}
			if err := visit(e.Guest, unit); err != nil {
				return err
			}
			continue
		}
		for at := int64(0); at < e.Length; at += compareBytes {
			p := buf[:min(compareBytes, e.Length-at)]
			if err := f.ReadInto("data", e.File+at, p); err != nil {
				return err
			}
			if err := visit(e.Guest+at, p); err != nil {
				return err
			}
		}
	}
	return nil
}

// comparison is a raw disk that is compared from its front to its end.
type comparison struct {
	ctx context.Context
	raw *os.File
	at  int64 // up to where it is as it should be
	buf [compareBytes]byte
}

// data compares a piece at off, and what is before it with zeros.
func (c *comparison) data(off int64, p []byte) error {
	if err := c.zeros(off); err != nil {
		return err
	}
	for len(p) > 0 {
		b := c.buf[:min(len(c.buf), len(p))]
		n, err := c.raw.ReadAt(b, c.at)
		if err != nil && !errors.Is(err, io.EOF) { // a piece may end behind the disk
			return err
		}
		if !bytes.Equal(b[:n], p[:n]) {
			return fmt.Errorf("the registered image differs from the source near byte %d", c.at)
		}
		c.at += int64(n)
		if n < len(b) {
			return nil
		}
		p = p[n:]
	}
	return nil
}

// zeros looks for something else than zeros up to an offset, and not into holes.
func (c *comparison) zeros(to int64) error {
	for c.at < to {
		if err := context.Cause(c.ctx); err != nil {
			return err
		}
		data, err := c.raw.Seek(c.at, unix.SEEK_DATA)
		switch {
		case errors.Is(err, unix.ENXIO) || err == nil && data >= to: // a hole, as far as it goes
			c.at = to
			return nil
		case err != nil:
			return err
		}
		b := c.buf[:min(int64(len(c.buf)), to-data)]
		if _, err := c.raw.ReadAt(b, data); err != nil {
			return err
		}
		if len(bytes.TrimLeft(b, "\x00")) > 0 {
			return fmt.Errorf("the registered image differs from the source near byte %d, where the source has zeros", data)
		}
		c.at = data + int64(len(b))
	}
	return context.Cause(c.ctx)
}
