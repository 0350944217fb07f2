package release

import (
	"encoding/binary"
	"fmt"
	"io"
	"os"

	"github.com/klauspost/compress/zstd"
)

// Sizes estimates, without unpacking, how many bytes the members of a file at hand
// take: from gzip's trailer (RFC 1952, ISIZE) or zstd's frame header, else four times
// its size; of a tar or a program its own size. An older bundle counts in full, so the
// estimate is rather too high. It verifies nothing.
func Sizes(l Located) (packed, unpacked int64, err error) {
	f, err := os.Open(l.Path)
	if err != nil {
		return 0, 0, fmt.Errorf("measure %s: %w", l.File, err)
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return 0, 0, fmt.Errorf("measure %s: %w", l.File, err)
	}
	packed = fi.Size()
	head := make([]byte, 512)
	n, err := f.ReadAt(head, 0)
	if err != nil && err != io.EOF {
		return packed, 0, fmt.Errorf("measure %s: %w", l.File, err)
	}
	const usual = 4
	switch head = head[:n]; sniff(head) {
	case "gzip":
		var tail [4]byte
		if _, err := f.ReadAt(tail[:], packed-4); err != nil {
			return packed, usual * packed, nil // unpacking says what is wrong
		}
		// The trailer is that of the last of several streams, modulo 4 GiB. What does not
		// compress, or was not to be, is a little longer packed: five bytes a block (RFC
		// 1951, 3.2.4), and a header.
		if size := int64(binary.LittleEndian.Uint32(tail[:])); size+size>>10+64 >= packed {
			return packed, min(size, defaultLimits().unpacked), nil
		}
		return packed, usual * packed, nil
	case "zstd":
		var h zstd.Header
		if h.Decode(head) == nil && h.HasFCS && h.FrameContentSize < uint64(defaultLimits().unpacked) {
			return packed, int64(h.FrameContentSize), nil
		}
		return packed, usual * packed, nil
	}
	return packed, packed, nil
}
