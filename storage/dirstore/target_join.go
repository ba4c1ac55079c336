package dirstore

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"

	"vmimport/storage"
)

// assemble returns the name of a file that is the whole object, durable and written no more.
func (st *stage) assemble(ctx context.Context, list []storage.Part, made string) (file string, err error) {
	if file := st.sealed(made); file != "" {
		return file, nil
	}
	// Locked before the records are read: from then on no part is put into data.
	s, err := st.lockMain(0, 0)
	if err != nil {
		return "", translateWrite(err)
	}
	defer func() {
		if err != nil && s != nil {
			st.giveUp(s)
		}
	}()
	records, err := st.parts()
	if err != nil {
		return "", translateWrite(err)
	}
	parts, inPlace, err := pick(records, list)
	if err != nil {
		return "", err
	}
	if s != nil && !inPlace {
		s.close()
		s = nil
	}
	if s == nil {
		s, err = st.newSpot()
	} else {
		err = st.forget(records, parts)
	}
	if err != nil {
		return "", translateWrite(err)
	}
	if err := st.complete(ctx, s, parts, made); err != nil {
		return "", err
	}
	s.close()
	return s.name, nil
}

// pick returns the records of the parts in a list, and whether those in data lie where they
// are in the object.
func pick(records map[string]stored, list []storage.Part) (parts []stored, inPlace bool, err error) {
	inPlace = true
	for _, p := range list {
		r, ok := records[partKey(p)]
		if !ok || r.Size != p.Size {
			return nil, false, storage.ErrPart.Saw("part %d", p.Number)
		}
		r.Offset = p.Offset
		parts = append(parts, r)
		inPlace = inPlace && (r.File != mainFile || r.in(mainFile))
	}
	return parts, inPlace, nil
}

// forget removes the records of all in data but these parts, of which some may come to lie
// there.
func (st *stage) forget(records map[string]stored, parts []stored) error {
	keep := make(map[string]bool, len(parts))
	for _, r := range parts {
		keep[partKey(r.Part)] = true
	}
	for key, r := range records {
		if r.File != mainFile || keep[key] {
			continue
		}
		if err := st.root.Remove(partPrefix + key); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return syncDir(st.root, ".")
}

// complete makes a file the whole object, of parts that are in it and others.
func (st *stage) complete(ctx context.Context, s *spot, parts []stored, made string) error {
	info, err := s.file.Stat()
	if err != nil {
		return translateWrite(err)
	}
	var size int64
	for _, r := range parts {
		size = r.Offset + r.Size
		switch {
		case !r.in(s.name):
			err = st.copyIn(ctx, s, r)
		case info.Size() < size:
			err = storage.ErrPart.Saw("part %d", r.Number)
		}
		if err != nil {
			return err
		}
	}
	if err = s.file.Truncate(size); err == nil {
		err = st.seal(s, made)
	}
	if err != nil {
		return translateWrite(fmt.Errorf("join parts: %w", err))
	}
	return nil
}

// copyIn copies a part to where it is in the object.
func (st *stage) copyIn(ctx context.Context, to *spot, r stored) error {
	from, err := st.root.Open(r.File)
	if errors.Is(err, fs.ErrNotExist) {
		return storage.ErrPart.Saw("part %d", r.Number).Because(err)
	}
	if err != nil {
		return translateWrite(err)
	}
	defer from.Close()
	return copyPart(ctx, to.file, r.Offset, r.Part, io.NewSectionReader(from, r.At, r.Size))
}

// seal makes a file durable, and notes that it is the whole object.
func (st *stage) seal(s *spot, made string) error {
	if err := s.file.Sync(); err != nil {
		return err
	}
	info, err := s.file.Stat()
	if err != nil {
		return err
	}
	return st.save(wholePrefix+s.name, whole{made, knownBy(info)})
}

// sealed returns the file that an earlier Join of the same list has sealed and not
// published, or "".
func (st *stage) sealed(made string) string {
	wholes, err := load[whole](st, wholePrefix)
	if err != nil {
		return ""
	}
	for file, w := range wholes {
		if info, err := st.root.Lstat(file); err == nil && w.Made == made && w.Object == knownBy(info) {
			return file
		}
	}
	return ""
}

// listSum tells one list of parts from another.
func listSum(list []storage.Part) string {
	h := sha256.New()
	for _, p := range list {
		fmt.Fprintf(h, "%s %d\n", partKey(p), p.Size)
	}
	return "parts-" + hex.EncodeToString(h.Sum(nil))
}

// contentSum tells the content of one small object from that of another.
func contentSum(content []byte) string {
	sum := sha256.Sum256(content)
	return "content-" + hex.EncodeToString(sum[:])
}

// tidy removes all but the record by which the published object is known. Records of parts
// go before their bytes.
func (st *stage) tidy(object fs.FileInfo) error {
	wholes, err := load[whole](st, wholePrefix)
	if err != nil {
		return err
	}
	entries, err := fs.ReadDir(st.root.FS(), ".")
	if err != nil {
		return err
	}
	remove := func(which func(name string) bool) (err error) {
		for _, e := range entries {
			if which(e.Name()) {
				if rmErr := st.root.Remove(e.Name()); !errors.Is(rmErr, fs.ErrNotExist) {
					err = errors.Join(err, rmErr)
				}
			}
		}
		return err
	}
	isPart := func(name string) bool { return strings.HasPrefix(name, partPrefix) }
	if err := errors.Join(remove(isPart), syncDir(st.root, ".")); err != nil {
		return err
	}
	return remove(func(name string) bool {
		file, ok := strings.CutPrefix(name, wholePrefix)
		return !isPart(name) && !(ok && wholes[file].Object == knownBy(object))
	})
}
