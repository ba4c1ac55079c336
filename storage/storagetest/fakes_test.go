package storagetest_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"vmimport/storage"
	"vmimport/storage/storagetest"
)

func TestMemory(t *testing.T) {
	t.Parallel()
	storagetest.Run(t, func(_ *testing.T, content []byte) storagetest.Subject {
		store := storagetest.NewMemory()
		loc := storage.Location{API: "s3", Project: "p", Container: "c", Name: "object"}
		store.Put(loc, content)
		return storagetest.Subject{
			Store:    store,
			Location: loc,
			Replace:  func(content []byte) { store.Put(loc, content) },
			Remove:   func() { store.Remove(loc) },
			Put: func(loc storage.Location, content []byte) error {
				store.Put(loc, content)
				return nil
			},
		}
	})
}

func readRange(ctx context.Context, obj storage.Object, off, n int64) ([]byte, error) {
	body, err := obj.ReadRange(ctx, off, n)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	return io.ReadAll(body)
}

func TestBreak(t *testing.T) {
	t.Parallel()
	broke := errors.New("broke")
	for _, tt := range []struct {
		name string
		how  storagetest.Fault
		want string
		err  error
	}{
		{"fail open", storagetest.FailOpen, "", broke},
		{"stall open", storagetest.StallOpen, "", context.DeadlineExceeded},
		{"fail body", storagetest.FailBody, "bc", broke},
		{"stall body", storagetest.StallBody, "bc", context.DeadlineExceeded},
		{"cut body", storagetest.CutBody, "bc", nil},
		{"long body", storagetest.LongBody, "bcdemore", nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				obj := storagetest.Break(storagetest.Object([]byte("abcdef")), tt.how, 3, 1, broke)
				ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
				defer cancel()
				if got, err := readRange(ctx, obj, 0, 3); string(got) != "abc" || err != nil {
					t.Errorf("a range before the fault: %q, %v", got, err)
				}
				if got, err := readRange(ctx, obj, 1, 4); string(got) != tt.want || !errors.Is(err, tt.err) {
					t.Errorf("the fault: %q, %v; want %q, %v", got, err, tt.want, tt.err)
				}
				if got, err := readRange(t.Context(), obj, 1, 4); string(got) != "bcde" || err != nil {
					t.Errorf("after the fault: %q, %v", got, err)
				}
			})
		})
	}
}

func TestPaced(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const size = 3 << 20
		obj := storagetest.Paced(size, time.Second, 1<<20)
		began := time.Now()
		all, err := readRange(t.Context(), obj, 0, size)
		if err != nil || time.Since(began) != 4*time.Second {
			t.Fatalf("took %v, %v", time.Since(began), err)
		}
		body, err := obj.ReadRange(t.Context(), size/2+1, 1000)
		if err != nil {
			t.Fatal(err)
		}
		if err := iotest.TestReader(body, all[size/2+1:][:1000]); err != nil {
			t.Error(err)
		}
		if bytes.Equal(all[:1<<20], all[1<<20:][:1<<20]) {
			t.Error("pieces of a power of two are alike")
		}
		ctx, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond)
		defer cancel()
		if _, err := readRange(ctx, obj, 0, size); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("read on after the end of the context: %v", err)
		}
	})
}
