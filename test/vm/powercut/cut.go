package powercut

import (
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
)

// Block is what a disk writes whole or not at all, in bytes: a file system's block. Of
// what was not flushed, any block may be kept and any lost.
const Block = 4096

// settled is what a disk keeps for sure that loses its power at a position: all entries
// before the first number returned, and the others named, which come behind it.
func (l *Log) settled(at int) (all int, others []int) {
	for all = at; all > 0; all-- {
		e := l.Entries[all-1]
		// A flush speaks of what came before it: what it writes itself is no safer than
		// any other write.
		if e.Flags&Flush != 0 && !e.writes() {
			break
		}
		if e.Flags&FUA != 0 && e.writes() {
			others = append(others, all-1)
		}
		if e.Flags&Flush != 0 {
			all--
			break
		}
	}
	slices.Reverse(others)
	return all, others
}

// Image is a raw disk image that follows a log: its file holds the disk's content from
// before the log began, and then what the disk keeps for sure at one position after the
// other. It is for one goroutine at a time.
type Image struct {
	log  *Log
	disk io.WriterAt
	done int // entries that are in the image
}

// NewImage begins with a disk as it was when its recording began.
func NewImage(l *Log, disk io.WriterAt) *Image { return &Image{log: l, disk: disk} }

// Advance writes all that the disk keeps for sure at a position that is not before the
// one of the last call, but for the writes that Rest tells of.
func (m *Image) Advance(at int) error {
	all, _ := m.log.settled(at)
	if all < m.done {
		return fmt.Errorf("rebuild disk at entry %d: it is already as of entry %d", at, m.done)
	}
	for ; m.done < all; m.done++ {
		if err := m.log.write(m.disk, m.done, nil); err != nil {
			return err
		}
	}
	return nil
}

// Rest writes, to a copy of an image that Advance brought to a position, what that left
// out: those writes behind the last flush that the disk keeps all the same, and of all
// others up to a later position those blocks that keep says yes to. With a nil keep none of
// those: the disk loses all that it may.
func (l *Log) Rest(disk io.WriterAt, at, upTo int, keep func() bool) error {
	all, others := l.settled(at)
	for i := all; i < max(at, upTo); i++ {
		sure := slices.Contains(others, i)
		if !sure && keep == nil {
			continue
		}
		choose := keep
		if sure {
			choose = nil
		}
		if err := l.write(disk, i, choose); err != nil {
			return err
		}
	}
	return nil
}

// Some is a keep for Rest, which keeps a block with a chance that is itself drawn: cuts
// with nearly all and with nearly none are seen as often as those in between.
func Some(r *rand.Rand) (keep func() bool) {
	chance := r.Float64()
	return func() bool { return r.Float64() < chance }
}

// write writes an entry to the disk: all of it, or those blocks that keep says yes to.
func (l *Log) write(disk io.WriterAt, i int, keep func() bool) error {
	e := l.Entries[i]
	if !e.writes() {
		return nil
	}
	buf := make([]byte, min(e.Length, 1<<20))
	for done := int64(0); done < e.Length; {
		// Up to the next border of a block where blocks are chosen from, else what the
		// buffer holds.
		n := min(e.Length-done, int64(len(buf)))
		if keep != nil {
			n = min(n, Block-(e.Offset+done)%Block)
			if !keep() {
				done += n
				continue
			}
		}
		part := buf[:n]
		if e.Flags&Discard != 0 {
			clear(part) // the kindest of what a disk may give back
		} else if _, err := l.r.ReadAt(part, e.data+done); err != nil {
			return fmt.Errorf("read log: data of entry %d: %w", i, short(err))
		}
		if _, err := disk.WriteAt(part, e.Offset+done); err != nil {
			return fmt.Errorf("rebuild disk: entry %d: %w", i, err)
		}
		done += n
	}
	return nil
}
