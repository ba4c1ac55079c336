package clustertest

import (
	"bytes"
	"crypto/sha1"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"vmimport/internal/testenv"
)

// container is what every tenant keeps its objects in.
const container = "images"

// object is a source of imports.
type object struct {
	key  string
	size int64
	sha1 string // empty if it was not computed
}

// objectStore is the S3 server, and an uploader for it.
type objectStore struct {
	*testenv.S3
	t    testing.TB
	core *minio.Core
}

func startObjectStore(t testing.TB) *objectStore {
	t.Helper()
	s := &objectStore{S3: testenv.StartS3(t), t: t}
	var err error
	s.core, err = minio.NewCore(strings.TrimPrefix(s.URL, "http://"), &minio.Options{
		Creds: credentials.NewStaticV4(s.AccessKey, s.SecretKey, ""), Region: s.Region, BucketLookup: minio.BucketLookupPath,
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// put uploads an object.
func (s *objectStore) put(bucket, key string, content []byte) *object {
	s.t.Helper()
	ctx := s.t.Context()
	ok, err := s.core.BucketExists(ctx, bucket)
	if err == nil && !ok {
		err = s.core.MakeBucket(ctx, bucket, minio.MakeBucketOptions{Region: s.Region})
	}
	if err == nil {
		_, err = s.core.PutObject(ctx, bucket, key, bytes.NewReader(content), int64(len(content)), "", "", minio.PutObjectOptions{})
	}
	if err != nil {
		s.t.Fatalf("upload %s: %v", key, err)
	}
	sum := sha1.Sum(content)
	return &object{key, int64(len(content)), hex.EncodeToString(sum[:])}
}

// Of a large object, one sparseData in sparseEvery bytes is data.
const (
	sparseEvery = 10 << 20
	sparseData  = 1 << 20
)

// putSparse makes a large object without moving all of it: a small one is
// uploaded, and its file made large behind the server's back. The server keeps
// the ETag of the upload, which does for an object that nobody replaces.
func (s *objectStore) putSparse(bucket, key string, size int64) *object {
	s.t.Helper()
	s.put(bucket, key, []byte("to be replaced"))
	f, err := os.OpenFile(filepath.Join(s.Root, bucket, key), os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		s.t.Fatal(err)
	}
	defer f.Close()
	data := random(rand.New(rand.NewPCG(1, uint64(size))), sparseData)
	err = f.Truncate(size)
	for off := int64(0); off < size && err == nil; off += sparseEvery {
		_, err = f.WriteAt(data[:min(sparseData, size-off)], off)
	}
	if err != nil {
		s.t.Fatal(err)
	}
	return &object{key: key, size: size}
}

// sum fills in the object's SHA-1.
func (s *objectStore) sum(bucket string, o *object) {
	s.t.Helper()
	var err error
	if o.sha1, err = sha1Of(filepath.Join(s.Root, bucket, o.key), o.size); err != nil {
		s.t.Fatal(err)
	}
}

// sha1Of hashes the first size bytes of a file and fails unless all that
// follows is zero, and less than a sector.
func sha1Of(path string, size int64) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha1.New()
	if _, err := io.CopyN(h, f, size); err != nil {
		return "", fmt.Errorf("read %s: %w", path, err)
	}
	rest, err := io.ReadAll(io.LimitReader(f, 512))
	if err != nil {
		return "", err
	}
	if len(rest) == 512 || len(bytes.Trim(rest, "\x00")) > 0 {
		return "", fmt.Errorf("%s has more than %d bytes", path, size)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// random returns n bytes that no disk format begins with.
func random(rng *rand.Rand, n int64) []byte {
	seed := [32]byte{}
	for i := range seed {
		seed[i] = byte(rng.Uint32())
	}
	b := make([]byte, n)
	_, _ = rand.NewChaCha8(seed).Read(b) // never fails
	return b
}

// withHoles puts zeros into most of the 64 KiB blocks of b.
func withHoles(rng *rand.Rand, b []byte) []byte {
	const block = 64 << 10
	for off := 0; off < len(b); off += block {
		if rng.IntN(5) < 3 {
			clear(b[off:min(off+block, len(b))])
		}
	}
	return b
}

// files describes all files below the store's root, to see whether any changed.
func (s *objectStore) files() map[string]string {
	s.t.Helper()
	found := map[string]string{}
	err := filepath.WalkDir(s.Root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		found[path] = fmt.Sprint(info.Size(), info.Mode(), info.ModTime())
		return nil
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return found
}
