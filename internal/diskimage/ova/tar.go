package ova

import (
	"archive/tar"
	"errors"
	"io"
	"strings"
	"unicode"
	"unicode/utf8"

	"vmimport/internal/diskimage"
)

const (
	blockBytes = 512
	// headBytes is one read of headers. It covers the end of a member, its
	// padding, and the headers of the next one with its pax records.
	headBytes = 4 << 10
	// maxHeaderBytes is what all headers of an archive may have. 64 members with
	// pax records of a KiB each have half of it.
	maxHeaderBytes = 256 << 10
	// maxTailBytes is the most padding behind the end of an archive. tar pads to
	// records of 10240 bytes unless it is told to use longer ones.
	maxTailBytes = 1 << 20
)

// directory is the table of contents of an archive.
type directory struct {
	members []member
	closed  bool // the blocks of zeros that end an archive were seen
}

type member struct {
	name         string
	offset, size int64
}

// find returns the member of exactly that name.
func (dir *directory) find(name string) (member, bool) {
	for _, m := range dir.members {
		if m.name == name {
			return m, true
		}
	}
	return member{}, false
}

func (dir *directory) withSuffix(suffix string) []member {
	var found []member
	for _, m := range dir.members {
		if strings.HasSuffix(strings.ToLower(m.name), suffix) {
			found = append(found, m)
		}
	}
	return found
}

// readDirectory reads all headers of an archive, which holds regular files with
// plain names and nothing else, and is followed by nothing but zeros.
func readDirectory(f *diskimage.File) (*directory, error) {
	h := &headers{f: f}
	r := tar.NewReader(h)
	dir := &directory{}
	end := int64(0) // of the last member with its padding
	for {
		head, err := r.Next()
		if errors.Is(err, io.EOF) {
			dir.closed = h.at > end
			return dir, checkTail(f, min(end, h.at), h.at)
		}
		if err != nil {
			return nil, h.failed(err, len(dir.members))
		}
		m, err := dir.check(f, head, h.at)
		if err != nil {
			return nil, err
		}
		dir.members = append(dir.members, m)
		end = m.offset + (m.size+blockBytes-1)&^(blockBytes-1)
	}
}

// check takes in the next member, whose data begins at offset. Its header is what
// archive/tar has made of ustar, GNU and pax headers together.
func (dir *directory) check(f *diskimage.File, head *tar.Header, offset int64) (member, error) {
	m := member{strings.TrimPrefix(head.Name, "./"), offset, head.Size}
	n := len(dir.members)
	_, known := dir.find(m.name)
	switch {
	case n == maxMembers:
		return m, diskimage.ErrUnsupported.Saw("more than %d members in the archive", maxMembers)
	case head.Typeflag != tar.TypeReg:
		return m, diskimage.ErrUnsupported.Saw("member %d is of type %#x, not a regular file", n, head.Typeflag)
	case sparse(head):
		return m, diskimage.ErrUnsupported.Saw("member %d is stored sparsely", n)
	case !plain(m.name):
		return m, diskimage.ErrCorrupt.Saw("member %d has a name that is no plain relative path", n)
	case known:
		return m, diskimage.ErrCorrupt.Saw("member %d has the name of an earlier one", n)
	case !f.Has(offset, m.size):
		return m, diskimage.ErrTruncated.Saw("member %d has %d bytes at %d, the file ends at %d", n, m.size, offset, f.Size())
	}
	return m, nil
}

// sparse reports whether a member has holes that the archive does not hold. Its
// Size is then that of the expanded file. GNU tar has a type for it, which check
// refuses, and three generations of pax records.
func sparse(head *tar.Header) bool {
	for key := range head.PAXRecords {
		if strings.HasPrefix(key, "GNU.sparse.") {
			return true
		}
	}
	return false
}

// plain reports whether name is a relative path that stays where it is, on any
// system, and that can be printed.
func plain(name string) bool {
	if name == "" || len(name) > maxNameBytes || name[0] == '/' || !printable(name) || strings.Contains(name, `\`) {
		return false
	}
	for part := range strings.SplitSeq(name, "/") {
		if part == ".." {
			return false
		}
	}
	return true
}

func printable(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) })
}

// checkTail wants zeros behind the last member: from its end up to where
// archive/tar took them for the end of the archive, and on. Without it, what looks
// like a small archive could be a large file of something else.
func checkTail(f *diskimage.File, from, end int64) error {
	n := f.Size() - from
	if n > maxTailBytes {
		return diskimage.ErrTrailing.Saw("%d bytes behind the last member, which ends at %d", n, from)
	}
	tail, err := f.Read("the end of the archive", from, n)
	if err != nil {
		return err
	}
	for i, b := range tail {
		switch at := from + int64(i); {
		case b == 0:
		case at < end: // an extended header, and nothing that it would extend
			return diskimage.ErrTruncated.Saw("the archive ends at %d, within the header of a member", end)
		default:
			return diskimage.ErrTrailing.Saw("data at %d, the archive ends at %d", at, end)
		}
	}
	return nil
}

// headers is an archive as archive/tar wants it: a stream whose reader seeks over
// what it does not need. It reads ahead a little, for each read may be a request
// to a store far away, and gives out no more than maxHeaderBytes: archive/tar
// follows any number of extended headers, of up to 1 MiB each.
type headers struct {
	f     *diskimage.File
	at    int64  // where the next Read begins
	ahead []byte // what was read of the file
	from  int64  // and from where on
	given int
	err   error // ours, and not an opinion of archive/tar
}

// Read implements io.Reader.
func (h *headers) Read(p []byte) (int, error) {
	if h.at >= h.f.Size() {
		return 0, io.EOF
	}
	if h.at < h.from || h.at >= h.from+int64(len(h.ahead)) {
		n := min(headBytes, h.f.Size()-h.at)
		h.ahead, h.err = h.f.Read("the headers of the archive", h.at, n)
		if h.err != nil {
			return 0, h.err
		}
		h.from = h.at
	}
	n := copy(p, h.ahead[h.at-h.from:])
	h.at += int64(n)
	if h.given += n; h.given > maxHeaderBytes {
		h.err = diskimage.ErrUnsupported.Saw("more than %d bytes of headers in the archive", maxHeaderBytes)
		return 0, h.err
	}
	return n, nil
}

// Seek implements io.Seeker as far as archive/tar uses it: forward, from where it
// is.
func (h *headers) Seek(offset int64, whence int) (int64, error) {
	if whence != io.SeekCurrent || !h.f.Has(h.at, offset) {
		h.err = diskimage.ErrTruncated.Saw("%d bytes at %d, the file ends at %d", offset, h.at, h.f.Size())
		return 0, h.err
	}
	h.at += offset
	return h.at, nil
}

// failed says what an error of archive/tar behind the n-th member means.
func (h *headers) failed(err error, n int) error {
	switch {
	case h.err != nil:
		return h.err
	case errors.Is(err, io.ErrUnexpectedEOF):
		return diskimage.ErrTruncated.Saw("the file ends in the header of member %d", n)
	default:
		return diskimage.ErrCorrupt.Saw("the header of member %d at %d is invalid", n, h.at)
	}
}
