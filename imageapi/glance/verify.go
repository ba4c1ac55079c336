package glance

import (
	"context"
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"time"

	"github.com/gophercloud/gophercloud/v2"
	"github.com/gophercloud/gophercloud/v2/openstack/image/v2/imagedata"
)

// defaultAlgo is Glance's own default: hashing_algorithm in its configuration.
const defaultAlgo = "sha512"

// algorithms are those of Glance's that are known here.
var algorithms = map[string]func() hash.Hash{
	"sha512": sha512.New,
	"sha384": sha512.New384,
	"sha256": sha256.New,
	"sha1":   sha1.New,
	"md5":    md5.New,
}

// digest hashes what is sent.
type digest struct {
	hash.Hash
	algo string
}

func newDigest(algo string) digest { return digest{algorithms[algo](), algo} }

func (d digest) hex() string { return hex.EncodeToString(d.Sum(nil)) }

// verify compares what Glance says it has stored with what was written.
func (d *disk) verify(ctx context.Context, r *record) error {
	if r.Status != active {
		return errUnavailable.Because(fmt.Errorf("verify image: it is %s", r.Status))
	}
	if r.Size != d.size {
		return errAltered.Because(fmt.Errorf("it has %d bytes of %d", r.Size, d.size))
	}
	stored := r.HashValue
	if r.HashAlgo != d.digest.algo {
		// A Glance that is set up in another way says so with its first image.
		if algorithms[r.HashAlgo] != nil {
			d.upload.images.algo.Store(&r.HashAlgo)
		}
		var err error
		if stored, err = d.upload.images.rehash(ctx, r.ID, newDigest(d.digest.algo)); err != nil {
			return err
		}
	}
	if stored != d.digest.hex() {
		return errAltered.Because(fmt.Errorf("its %s is %s, and was %s", d.digest.algo, stored, d.digest.hex()))
	}
	return nil
}

// rehash reads an image back from Glance, and returns its digest in hex.
func (i *Images) rehash(ctx context.Context, imageID string, into digest) (string, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	stall := time.AfterFunc(i.opt.AnswerTimeout, func() { cancel(errStalled) })
	defer cancel(nil)
	defer stall.Stop()
	err := i.call(ctx, "read image back", func(c *gophercloud.ServiceClient) error {
		c.HTTPClient = *i.client
		result := imagedata.Download(ctx, c, imageID)
		if result.Err != nil {
			return result.Err
		}
		defer result.Body.Close()
		into.Reset()
		_, err := io.Copy(into, progress{result.Body, func() { stall.Reset(i.opt.AnswerTimeout) }})
		return err
	})
	return into.hex(), err
}

// progress is a reader that tells when there was something to read.
type progress struct {
	io.Reader
	made func()
}

func (p progress) Read(b []byte) (int, error) {
	n, err := p.Reader.Read(b)
	p.made()
	return n, err
}
