package powercut

import (
	"encoding/binary"
	"fmt"
	"io"
	"strings"
)

// Flags say what an entry of the log is, besides a write: LOG_*_FLAG in the kernel's
// drivers/md/dm-log-writes.c.
type Flags uint64

// The kernel's flags. QEMU's blklogwrites knows the first four.
const (
	Flush    Flags = 1 << iota // all that was written before it is on the disk
	FUA                        // what it writes itself is on the disk at once
	Discard                    // its sectors' content may be forgotten; it has no data
	Mark                       // a note, without sectors
	Metadata                   // the file system calls it metadata
)

const known = Flush | FUA | Discard | Mark | Metadata

func (f Flags) String() string {
	if f == 0 {
		return "write"
	}
	var all []string
	for i, name := range []string{"flush", "fua", "discard", "mark", "metadata"} {
		if f&(1<<i) != 0 {
			all = append(all, name)
		}
	}
	if rest := f &^ known; rest != 0 {
		all = append(all, fmt.Sprintf("%#x", uint64(rest)))
	}
	return strings.Join(all, "|")
}

// Entry is one request that the disk got, in the order in which it was done with them.
type Entry struct {
	Offset, Length int64 // in bytes, on the disk
	Flags          Flags

	data int64 // in the log; not for discards
}

// writes says whether the entry changes what is on the disk.
func (e Entry) writes() bool { return e.Length > 0 && e.Flags&Mark == 0 }

// Log is a recording. Positions in it are numbers of entries: 0 is before the first one.
type Log struct {
	Entries []Entry
	r       io.ReaderAt
}

// The format, all little-endian: a super block (magic, version, number of entries, each 8
// bytes; sector size, 4 bytes) that fills the first sector; then for each entry a sector
// with its header (sector, number of sectors, flags, length of a mark's text, each 8
// bytes), and its data, which begins in the next sector.
const (
	magic      = 0x6a736677736872
	version    = 1
	superSize  = 28
	headerSize = 32
)

// super reads the super block: the number of entries and the size of a sector in bytes.
func super(r io.ReaderAt) (entries uint64, sector int64, err error) {
	var b [superSize]byte
	if _, err := r.ReadAt(b[:], 0); err != nil {
		return 0, 0, fmt.Errorf("read log: super block: %w", err)
	}
	if got := binary.LittleEndian.Uint64(b[0:]); got != magic {
		return 0, 0, fmt.Errorf("read log: not a log of writes: it begins with %#x, want %#x", got, uint64(magic))
	}
	if got := binary.LittleEndian.Uint64(b[8:]); got != version {
		return 0, 0, fmt.Errorf("read log: version %d, want %d", got, version)
	}
	sector = int64(binary.LittleEndian.Uint32(b[24:]))
	if sector < 512 || sector > 1<<20 || sector&(sector-1) != 0 {
		return 0, 0, fmt.Errorf("read log: sector size %d, want a power of two between 512 and 1 MiB", sector)
	}
	return binary.LittleEndian.Uint64(b[16:]), sector, nil
}

// Position is the number of entries that the log tells of, also while it is written: at
// least those up to the last flush. A log that saw no flush yet has none.
func Position(r io.ReaderAt) (int, error) {
	var first [8]byte
	if n, err := r.ReadAt(first[:], 0); err == io.EOF && n == 0 {
		return 0, nil
	}
	n, _, err := super(r)
	return int(n), err
}

// Read reads the entries of a log of that size in bytes, without their data, which r must
// have for as long as the log is used. It is an error if the log ends before the last
// entry that it tells of, or has a flag that nobody knows; what follows the last one that
// it tells of, as when its writer was killed, is not looked at.
func Read(r io.ReaderAt, size int64) (*Log, error) {
	n, sector, err := super(r)
	if err != nil {
		return nil, err
	}
	// Each entry takes a sector at least: a number beyond that is nonsense.
	if n > uint64(size/sector) {
		return nil, fmt.Errorf("read log: it tells of %d entries and has only %d sectors", n, size/sector)
	}
	l := &Log{r: r, Entries: make([]Entry, 0, n)}
	at := sector
	for i := range int(n) {
		var b [headerSize]byte
		if _, err := r.ReadAt(b[:], at); err != nil {
			return nil, fmt.Errorf("read log: entry %d of %d: %w", i, n, short(err))
		}
		first, count := binary.LittleEndian.Uint64(b[0:]), binary.LittleEndian.Uint64(b[8:])
		flags := Flags(binary.LittleEndian.Uint64(b[16:]))
		if flags&^known != 0 {
			return nil, fmt.Errorf("read log: entry %d of %d: unknown flags in %s", i, n, flags)
		}
		const most = 1 << 62
		if first > most/uint64(sector) || count > most/uint64(sector) {
			return nil, fmt.Errorf("read log: entry %d of %d: %d sectors at %d, which no disk has", i, n, count, first)
		}
		e := Entry{Offset: int64(first) * sector, Length: int64(count) * sector, Flags: flags, data: at + sector}
		at += sector
		if flags&Discard == 0 {
			if e.Length > size-at {
				return nil, fmt.Errorf("read log: entry %d of %d: its %d bytes end beyond the log's: %w", i, n, e.Length, io.ErrUnexpectedEOF)
			}
			at += e.Length
		}
		l.Entries = append(l.Entries, e)
	}
	return l, nil
}

func short(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// Boundaries are the positions from and to, and all between them, at which the disk had
// just promised to keep something: behind a flush, or behind a write that is one itself.
func (l *Log) Boundaries(from, to int) []int {
	var all []int
	for at := from; at <= to; at++ {
		if at == from || at == to || l.Entries[at-1].Flags&(Flush|FUA) != 0 {
			all = append(all, at)
		}
	}
	return all
}

// Flushes counts the flushes from a position up to another.
func (l *Log) Flushes(from, to int) int {
	n := 0
	for _, e := range l.Entries[from:to] {
		if e.Flags&Flush != 0 {
			n++
		}
	}
	return n
}
