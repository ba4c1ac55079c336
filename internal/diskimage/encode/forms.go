package encode

import (
	"context"
	"io"
	"sync"

	"vmimport/internal/diskimage/qcow2"
	"vmimport/internal/diskimage/vmdk"
)

// gzipUnit is what a member of a gzip file holds: large enough for compression to be as good
// as in one piece, small enough for cores to share a part of the file.
const gzipUnit = 1 << 20

// HeadBytes is how long the head of a file is, which Encoder.Finish returns: 0 for all but
// QCOW2. size is that of the disk, one that New accepts.
func HeadBytes(form Form, size int64) int64 {
	if form == QCOW2 {
		return qcow2.StreamHeadBytes(size)
	}
	return 0
}

// Bound is the most bytes that an encoder writes between two Cuts that are span bytes of the
// disk apart, of which the first may be the start. What Finish writes is counted if the disk
// ends there, and the head never is. size is one that New accepts.
func Bound(form Form, size, span int64) int64 {
	span = min(span, size)
	switch form {
	case Gzip: // of the first and the last member, a part may be cut off
		return (span/gzipUnit+2)*maxMember(0) + maxDeflated(span)
	case VMDK:
		return vmdk.MaxStreamFileBytes(size, divide(span, vmdk.GrainBytes))
	case QCOW2:
		return qcow2.MaxStreamFileBytes(size, divide(span, qcow2.ClusterBytes(size)))
	}
	return span
}

func newGzip(ctx context.Context, out io.Writer, opt Options) (Encoder, error) {
	t := traits{unit: gzipUnit, maxPacked: maxMember(gzipUnit), anywhere: true, newPacker: func() packer { return newDeflater().sparseMember }}
	return newFile(ctx, out, opt, t, func(out io.Writer) (layout, error) {
		if opt.At > 0 && opt.Offset == 0 || len(opt.State) > 0 {
			return nil, ErrState
		}
		return &members{out, opt.Size}, nil
	})
}

// members is the layout of a gzip file.
type members struct {
	out  io.Writer
	size int64
}

// Put implements layout.
func (m *members) Put(_ int64, member []byte) error {
	_, err := m.out.Write(member)
	return err
}

// State implements layout: there is nothing to know.
func (m *members) State(int64) ([]byte, error) { return nil, nil }

// Finish implements layout. A file without a member is none.
func (m *members) Finish() ([]byte, error) {
	if m.size > 0 {
		return nil, nil
	}
	return nil, m.Put(0, newDeflater().member(nil, nil))
}

// sparseMember is member. Members of zeros alone are copied: large parts of disks are.
func (d *deflater) sparseMember(dst, src []byte) []byte {
	if len(src) == gzipUnit && zeros(src) {
		return append(dst, zeroMember()...)
	}
	return d.member(dst, src)
}

var zeroMember = sync.OnceValue(func() []byte { return newDeflater().member(nil, make([]byte, gzipUnit)) })

func newVMDK(ctx context.Context, out io.Writer, opt Options) (Encoder, error) {
	t := traits{unit: vmdk.GrainBytes, maxPacked: maxZlib(vmdk.GrainBytes), sparse: true, padded: true, newPacker: func() packer { return newDeflater().zlib }}
	return newFile(ctx, out, opt, t, func(out io.Writer) (layout, error) {
		if opt.At == 0 {
			return vmdk.NewStreamWriter(out, opt.Size)
		}
		return vmdk.ResumeStreamWriter(out, opt.Size, divide(opt.At, t.unit), opt.Offset, opt.State)
	})
}

func newQCOW2(ctx context.Context, out io.Writer, opt Options) (Encoder, error) {
	t := traits{unit: qcow2.ClusterBytes(opt.Size), sparse: true, padded: true}
	return newFile(ctx, out, opt, t, func(out io.Writer) (layout, error) {
		if opt.At == 0 {
			return qcow2.NewStreamWriter(out, opt.Size)
		}
		return qcow2.ResumeStreamWriter(out, opt.Size, divide(opt.At, t.unit), opt.Offset, opt.State)
	})
}
