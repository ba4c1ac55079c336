package fault_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"testing"

	"vmimport/internal/fault"
)

var errFull = fault.New(fault.Unavailable, "store_full", "The store is full.")

func TestClassification(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		err       error
		kind      fault.Kind
		code      string
		retryable bool
	}{
		{nil, "", "", false},
		{io.EOF, fault.Internal, "internal_error", true},
		{fmt.Errorf("copy: %w", context.Canceled), fault.Canceled, "canceled", false},
		{context.DeadlineExceeded, fault.Internal, "internal_error", true},
		{errFull, fault.Unavailable, "store_full", true},
		{fmt.Errorf("write: %w", errFull.Saw("%d bytes", 7)), fault.Unavailable, "store_full", true},
		{errors.Join(io.EOF, errFull), fault.Unavailable, "store_full", true},
		{fault.Wrap(errFull, fault.Invalid, "outer", "Outer."), fault.Invalid, "outer", false},
		{fault.Wrap(context.Canceled, fault.Unavailable, "store_away", "Away."), fault.Unavailable, "store_away", true},
	} {
		if k := fault.KindOf(c.err); k != c.kind {
			t.Errorf("%v: kind %q, want %q", c.err, k, c.kind)
		}
		if code := fault.CodeOf(c.err); code != c.code {
			t.Errorf("%v: code %q, want %q", c.err, code, c.code)
		}
		if r := fault.Retryable(c.err); r != c.retryable {
			t.Errorf("%v: retryable %v", c.err, r)
		}
	}
}

func TestCopiesLeaveTheOriginalAlone(t *testing.T) {
	t.Parallel()
	e := errFull.Saw("%d bytes free", 0).Try("Delete something.").Because(io.ErrShortWrite)
	if !errors.Is(e, errFull) || !errors.Is(e, io.ErrShortWrite) || errors.Is(errFull, io.ErrShortWrite) {
		t.Error("a copy must be its original, with a cause of its own")
	}
	if errFull.Evidence != "" || errFull.Remedy != "" || errFull.Err != nil {
		t.Errorf("the original has changed: %+v", errFull)
	}
	if want := "store_full: The store is full. (0 bytes free): short write"; e.Error() != want {
		t.Errorf("%q, want %q", e.Error(), want)
	}
	if errors.Is(e, fault.New(fault.Unavailable, "another", "The store is full.")) {
		t.Error("another code is another error")
	}
}
