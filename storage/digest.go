package storage

import (
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"encoding"
	"encoding/hex"
	"fmt"
	"hash"
	"slices"

	"vmimport/internal/fault"
)

// algorithms lists the digests that Fetch can compute. MD5 and SHA-1 are here
// because object stores and the import APIs speak them; they find damage, not
// forgery. The standard library can save and restore the state of all four.
var algorithms = map[string]func() hash.Hash{
	"sha1":   sha1.New,
	"md5":    md5.New,
	"sha256": sha256.New,
	"sha512": sha512.New,
}

// ErrBadMark means that a Mark does not fit the object or the digests asked
// for. Reading from the start always works.
var ErrBadMark = fault.New(fault.Internal, "bad_mark", "The saved point of an earlier attempt cannot be used.")

// digest is one running hash.
type digest struct {
	name string
	hash.Hash
}

// newDigests starts SHA-1 and the further digests, or takes them up where
// resume left them. SHA-1 is the first.
func newDigests(further []string, resume *Mark) ([]digest, error) {
	var ds []digest
	for _, name := range append([]string{"sha1"}, further...) {
		if slices.ContainsFunc(ds, func(d digest) bool { return d.name == name }) {
			continue
		}
		newHash, ok := algorithms[name]
		if !ok {
			return nil, fault.New(fault.Invalid, "unknown_digest", "There is no such digest.").Saw("%q", name)
		}
		d := digest{name, newHash()}
		if resume != nil && resume.Offset > 0 {
			if err := d.restore(resume.States[name]); err != nil {
				return nil, err
			}
		}
		ds = append(ds, d)
	}
	return ds, nil
}

// take hashes c. As the i-th digest it leaves its state where c ends in a Mark.
func (d digest) take(c *chunk, i int) (err error) {
	d.Write(c.data)
	if c.states != nil {
		c.states[i], err = d.state()
	}
	return err
}

// state returns what restore needs to go on from here.
func (d digest) state() ([]byte, error) {
	state, err := d.Hash.(encoding.BinaryMarshaler).MarshalBinary()
	if err != nil {
		return nil, fmt.Errorf("save the state of %s: %w", d.name, err)
	}
	return state, nil
}

func (d digest) restore(state []byte) error {
	if err := d.Hash.(encoding.BinaryUnmarshaler).UnmarshalBinary(state); err != nil {
		return fmt.Errorf("restore the state of %s: %w", d.name, ErrBadMark.Because(err))
	}
	return nil
}

// sums returns the digests in lower-case hex, by name.
func sums(ds []digest) map[string]string {
	m := make(map[string]string, len(ds))
	for _, d := range ds {
		m[d.name] = hex.EncodeToString(d.Sum(nil))
	}
	return m
}
