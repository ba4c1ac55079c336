package dirstore

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"
	"syscall"

	"vmimport/internal/fault"
	"vmimport/storage"
)

// How uploads are staged
//
// What an upload has under way for one name is in a directory that no name of an object
// leads to:
//
//	<container>/.vmimport-upload-<hash of the name>-<upload>/
//	    data                  parts, each where it is in the object
//	    data-<random>         a part, or an object, that must not be written into data
//	    part-<number>-<MD5>   says where the bytes of a part are
//	    whole-<file>          says that a file is an object, of what, and how to know it again
//
// A part is there as soon as its record is, and that is written after the bytes are on disk.
// So Join need not read them: it copies into data what lies elsewhere, cuts it to its length,
// and links it to the object's name.
//
// Processes do not wait for each other. One that was stopped, and was taken for dead, may go
// on at any time, in the midst of a write. Therefore a range of data is written only under a
// lock of just that range, and never again once a record speaks of it. Who does not get the
// range writes a file of its own, and so does a Join that does not get all of data; one that
// does first removes the records of what it may write over. A part that is copied from where
// it was stored is compared with its MD5. The kernel drops the locks of those that die.
//
// The published file keeps no name in the staging: its removal by Settle would change the
// file's ctime, and with it the version that readers have pinned. The upload knows its
// object by inode, length and mtime, noted before it is published. Should the inode be freed
// and become that of a customer's file, then that one has a later mtime.

const (
	mainFile    = "data"
	partPrefix  = "part-"
	wholePrefix = "whole-"
	trashMark   = "." // no upload's id has one
)

// uploadID is what an upload may be called.
var uploadID = regexp.MustCompile(`^[A-Za-z0-9-]{1,128}$`)

var errBadUpload = fault.New(fault.Internal, "bad_upload_id", "The upload has no id that can be stored.")

// stagePrefix begins the directories of all that is staged for a name.
func stagePrefix(name string) string {
	sum := sha256.Sum256([]byte(name))
	return tempPrefix + hex.EncodeToString(sum[:16]) + "-"
}

func stageName(up storage.Upload, name string) string { return stagePrefix(name) + up.ID }

// stage is what an upload has staged for one name. Its errors are those of the file system,
// unless they say otherwise.
type stage struct {
	root *os.Root
	dir  string // in the container
}

func openStage(container *os.Root, up storage.Upload, name string) (*stage, error) {
	dir := stageName(up, name)
	root, err := container.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	return &stage{root, dir}, nil
}

func (st *stage) close() { _ = st.root.Close() } // nothing is written through it

// removeStage removes a staging, beginning with its name: who still writes there does so
// in vain. What cannot be removed now is left to Sweep.
func removeStage(container *os.Root, dir string) error {
	trash := dir
	if !strings.Contains(strings.TrimPrefix(path.Base(dir), tempPrefix), trashMark) {
		trash += trashMark + rand.Text()
		if err := container.Rename(dir, trash); errors.Is(err, fs.ErrNotExist) {
			return nil
		} else if err != nil {
			return err
		}
	}
	_ = container.RemoveAll(trash)
	return nil
}

// holdsParts reports whether a part lies in a staging.
func holdsParts(container *os.Root, dir string) (bool, error) {
	entries, err := fs.ReadDir(container.FS(), dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, storage.ErrUnavailable.Because(err)
	}
	return slices.ContainsFunc(entries, func(e fs.DirEntry) bool { return strings.HasPrefix(e.Name(), partPrefix) }), nil
}

// stored is the record of a part.
type stored struct {
	storage.Part
	File string `json:"file"` // in the staging
	At   int64  `json:"at"`   // offset in File
}

// in reports whether the part lies in a file, where it is in the object.
func (r stored) in(file string) bool { return r.File == file && r.At == r.Offset }

// whole is the record of an object.
type whole struct {
	Made   string `json:"made"` // a hash of what it was made of
	Object known  `json:"object"`
}

// known is what a file is known by from its publication until Settle.
type known struct {
	Inode   uint64 `json:"inode"`
	Size    int64  `json:"size"`
	ModTime int64  `json:"mtime"` // ns since 1970
}

func knownBy(info fs.FileInfo) known {
	k := known{Size: info.Size(), ModTime: info.ModTime().UnixNano()}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		k.Inode = st.Ino
	}
	return k
}

// origin returns the record of an object, or nil if the upload has not made it.
func (st *stage) origin(object fs.FileInfo) (*whole, error) {
	wholes, err := load[whole](st, wholePrefix)
	for _, w := range wholes {
		if object.Mode().IsRegular() && w.Object == knownBy(object) {
			return &w, nil
		}
	}
	return nil, err
}

// load reads all records whose names begin with prefix, by the rest of these names. What
// cannot be decoded is no record.
func load[T any](st *stage, prefix string) (map[string]T, error) {
	entries, err := fs.ReadDir(st.root.FS(), ".")
	if err != nil {
		return nil, err
	}
	records := make(map[string]T)
	for _, e := range entries {
		key, ok := strings.CutPrefix(e.Name(), prefix)
		if !ok {
			continue
		}
		b, err := st.root.ReadFile(e.Name())
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed since
		}
		if err != nil {
			return nil, err
		}
		var r T
		if json.Unmarshal(b, &r) == nil {
			records[key] = r
		}
	}
	return records, nil
}

// save makes a record durable, in place of an earlier one.
func (st *stage) save(name string, record any) error {
	b, err := json.Marshal(record)
	if err != nil {
		return err
	}
	temp := "new-" + rand.Text()
	f, err := st.root.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o640)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = st.root.Rename(temp, name)
	}
	if err != nil {
		_ = st.root.Remove(temp)
		return err
	}
	return syncDir(st.root, ".")
}

// partKey is what tells a part from others.
func partKey(p storage.Part) string { return fmt.Sprintf("%04d-%s", p.Number, strings.ToLower(p.MD5)) }

// parts returns the records of all parts, by their keys.
func (st *stage) parts() (map[string]stored, error) { return load[stored](st, partPrefix) }

// spot is where bytes are written: in a file of this call alone, or in a range of data that
// it has locked.
type spot struct {
	file *os.File
	name string
	at   int64
}

// close drops the lock, too, even if a program that this process is just starting
// has a copy of the descriptor.
func (s *spot) close() {
	unlock(s.file)
	_ = s.file.Close() // synced before, if it matters
}

func newName() string { return mainFile + "-" + rand.Text() }

func (st *stage) newSpot() (*spot, error) {
	name := newName()
	f, err := st.root.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o640)
	if err != nil {
		return nil, err
	}
	return &spot{file: f, name: name}, nil
}

// giveUp removes what was written to a spot. In data it can stay: there is no record of it.
func (st *stage) giveUp(s *spot) {
	s.close()
	if s.name != mainFile {
		_ = st.root.Remove(s.name)
	}
}

// lockMain locks n bytes of data, or all of it if n is zero. It returns nil if another has
// a lock there, or data is an object already.
func (st *stage) lockMain(off, n int64) (*spot, error) {
	f, err := st.root.OpenFile(mainFile, os.O_RDWR|os.O_CREATE, 0o640)
	if err != nil {
		return nil, err
	}
	s := &spot{file: f, name: mainFile, at: off}
	if lock(f, off, n) {
		// Looked at under the lock, since a Join has it while it decides.
		_, err := st.root.Lstat(wholePrefix + mainFile)
		named, statErr := st.root.Lstat(mainFile)
		opened, openErr := f.Stat()
		if errors.Is(err, fs.ErrNotExist) && statErr == nil && openErr == nil && os.SameFile(named, opened) {
			return s, nil
		}
	}
	s.close()
	return nil, nil
}

// spotFor returns where a part can be written.
func (st *stage) spotFor(p storage.Part) (*spot, error) {
	s, err := st.lockMain(p.Offset, p.Size)
	if err != nil {
		return nil, err
	}
	if s == nil {
		return st.newSpot()
	}
	parts, err := st.parts()
	if err != nil {
		s.close()
		return nil, err
	}
	for _, r := range parts {
		if r.File == mainFile && r.At < p.Offset+p.Size && p.Offset < r.At+r.Size {
			s.close()
			return st.newSpot()
		}
	}
	return s, nil
}

// fill writes a part to a spot, and its record when that is on disk.
func (st *stage) fill(ctx context.Context, s *spot, p storage.Part, body io.Reader) error {
	if err := copyPart(ctx, s.file, s.at, p, body); err != nil {
		return err
	}
	if err := s.file.Sync(); err != nil {
		return translateWrite(fmt.Errorf("store part: %w", err))
	}
	// If the part was there before, its earlier file stays: another may be joining that.
	if err := st.save(partPrefix+partKey(p), stored{p, s.name, s.at}); err != nil {
		return translateWrite(fmt.Errorf("store part: %w", err))
	}
	return nil
}

// copyPart writes a part's bytes at an offset of a file, and nothing beside them. It fails
// with storage.ErrPart if they are not the part's.
func copyPart(ctx context.Context, f *os.File, at int64, p storage.Part, body io.Reader) error {
	_, err := receive(ctx, io.NewOffsetWriter(f, at), body, storage.Announced{Size: p.Size, MD5: p.MD5})
	switch {
	case err != nil && ctx.Err() != nil:
		return fmt.Errorf("store part: %w", context.Cause(ctx))
	case errors.Is(err, ErrUpload):
		return storage.ErrPart.Because(err)
	}
	return err
}
