package vmdk

import (
	"sync"

	"vmimport/internal/diskimage"
	"vmimport/internal/inflate"
)

var decoders = sync.Pool{New: func() any { return new(inflate.Decoder) }}

// Unpack implements diskimage.Parser.
func (s *stream) Unpack(dst, src []byte) error {
	return s.unpack(dst, src, (*inflate.Decoder).Zlib)
}

// UnpackUnchecked implements diskimage.Checked.
func (s *stream) UnpackUnchecked(dst, src []byte) error {
	return s.unpack(dst, src, (*inflate.Decoder).ZlibUnchecked)
}

// unpack unpacks a grain. One that the end of the disk cuts is whole in the file (QEMU,
// VirtualBox) or as long as the disk goes (open-vmdk).
func (s *stream) unpack(dst, src []byte, zlib func(d *inflate.Decoder, dst, src []byte) (int, error)) error {
	d := decoders.Get().(*inflate.Decoder)
	defer decoders.Put(d)
	if int64(len(dst)) < s.grain {
		whole := make([]byte, s.grain)
		if _, err := zlib(d, whole, src); err == nil {
			copy(dst, whole)
			return nil
		}
	}
	if _, err := zlib(d, dst, src); err != nil {
		return diskimage.ErrCorrupt.Saw("a compressed grain cannot be unpacked").Because(err)
	}
	return nil
}
