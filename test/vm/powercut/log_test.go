package powercut

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// request is an entry of a log that a test makes up.
type request struct {
	sector, sectors uint64
	flags           Flags
	fill            byte   // of its data
	text            string // of a mark
}

// made is a log as the kernel and QEMU write it.
func made(sector int, requests ...request) []byte {
	log := make([]byte, sector)
	binary.LittleEndian.PutUint64(log[0:], magic)
	binary.LittleEndian.PutUint64(log[8:], version)
	binary.LittleEndian.PutUint64(log[16:], uint64(len(requests)))
	binary.LittleEndian.PutUint32(log[24:], uint32(sector))
	for _, r := range requests {
		head := make([]byte, sector)
		binary.LittleEndian.PutUint64(head[0:], r.sector)
		binary.LittleEndian.PutUint64(head[8:], r.sectors)
		binary.LittleEndian.PutUint64(head[16:], uint64(r.flags))
		binary.LittleEndian.PutUint64(head[24:], uint64(len(r.text)))
		copy(head[headerSize:], r.text)
		log = append(log, head...)
		if r.flags&Discard == 0 {
			log = append(log, bytes.Repeat([]byte{r.fill}, int(r.sectors)*sector)...)
		}
	}
	return log
}

func read(t *testing.T, log []byte) *Log {
	t.Helper()
	l, err := Read(bytes.NewReader(log), int64(len(log)))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// disk is a disk image in memory.
type disk []byte

func (d disk) WriteAt(p []byte, at int64) (int, error) {
	if at+int64(len(p)) > int64(len(d)) {
		return 0, io.ErrShortWrite
	}
	return copy(d[at:], p), nil
}

// blocks names the content of each block of a disk: one letter, or ? for several.
func (d disk) blocks() string {
	var s strings.Builder
	for b := range slices.Chunk(d, Block) {
		switch {
		case bytes.Count(b, b[:1]) != len(b):
			s.WriteByte('?')
		case b[0] == 0:
			s.WriteByte('.')
		default:
			s.WriteByte(b[0])
		}
	}
	return s.String()
}

func TestReadFindsEveryEntry(t *testing.T) {
	for _, sector := range []int{512, 4096} {
		log := made(sector,
			request{sector: 8, sectors: 2, fill: 'a'},
			request{flags: Mark, text: "here"},
			request{sector: 16, sectors: 100000, flags: Discard},
			request{flags: Flush},
			request{sector: 3, sectors: 1, flags: FUA | Metadata, fill: 'b'},
		)
		size := int64(sector)
		want := []Entry{
			{Offset: 8 * size, Length: 2 * size},
			{Flags: Mark},
			{Offset: 16 * size, Length: 100000 * size, Flags: Discard},
			{Flags: Flush},
			{Offset: 3 * size, Length: size, Flags: FUA | Metadata},
		}
		got := read(t, log).Entries
		if diff := cmp.Diff(want, got, cmpopts.IgnoreUnexported(Entry{})); diff != "" {
			t.Errorf("sectors of %d bytes (-want +got):\n%s", sector, diff)
		}
	}
}

func TestReadRefuses(t *testing.T) {
	good := made(512, request{sector: 8, sectors: 2, fill: 'a'}, request{flags: Flush}, request{sector: 1, sectors: 8, fill: 'b'})
	edit := func(at int, value uint64) []byte {
		log := bytes.Clone(good)
		binary.LittleEndian.PutUint64(log[at:], value)
		return log
	}
	for name, c := range map[string]struct {
		log  []byte
		says string
	}{
		"nothing at all":           {nil, "super block"},
		"half a super block":       {good[:16], "super block"},
		"another file":             {edit(0, 7), "not a log of writes"},
		"a later version":          {edit(8, 2), "version 2"},
		"a strange sector size":    {edit(24, 100), "sector size 100"},
		"more entries than space":  {edit(16, 1<<40), "1099511627776 entries"},
		"a last entry cut off":     {good[:len(good)-1], "entry 2 of 3"},
		"a last entry's head only": {good[:len(good)-8*512], "entry 2 of 3"},
		"a last entry without":     {good[:len(good)-9*512], "entry 2 of 3"},
		"an entry more than it has": {func() []byte {
			return edit(16, 4)
		}(), "entry 3 of 4"},
		"an unknown flag":       {edit(512+16, 1<<9|uint64(FUA)), "entry 0 of 3: unknown flags in fua|0x200"},
		"a write of everything": {edit(512+8, 1<<60), "entry 0 of 3"},
		"a write to nowhere":    {edit(512, 1<<63), "entry 0 of 3"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Read(bytes.NewReader(c.log), int64(len(c.log)))
			if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v, want an error that says %q", err, c.says)
			}
		})
	}
	_, err := Read(bytes.NewReader(good[:len(good)-1]), int64(len(good)-1))
	if !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("got %v for a log that was cut off, want %v", err, io.ErrUnexpectedEOF)
	}
}

// A machine that was killed leaves half an entry that the super block does not tell of.
func TestReadLeavesOutWhatIsNotToldOf(t *testing.T) {
	log := made(512, request{sector: 8, sectors: 2, fill: 'a'}, request{flags: Flush}, request{sector: 1, sectors: 8, fill: 'b'})
	binary.LittleEndian.PutUint64(log[16:], 2)
	if got := len(read(t, log[:len(log)-700]).Entries); got != 2 {
		t.Errorf("got %d entries, want 2", got)
	}
}

func TestPosition(t *testing.T) {
	for name, c := range map[string]struct {
		log  []byte
		want int
		bad  bool
	}{
		"before the first flush": {nil, 0, false},
		"some entries":           {made(512, request{flags: Flush}, request{flags: Flush}), 2, false},
		"another file":           {[]byte(strings.Repeat("no log ", 100)), 0, true},
	} {
		got, err := Position(bytes.NewReader(c.log))
		if got != c.want || (err != nil) != c.bad {
			t.Errorf("%s: got %d, %v", name, got, err)
		}
	}
}

func TestBoundaries(t *testing.T) {
	l := read(t, made(512,
		request{sector: 0, sectors: 1},
		request{flags: Flush},
		request{sector: 0, sectors: 1},
		request{sector: 0, sectors: 1, flags: FUA},
		request{flags: Mark},
		request{sector: 0, sectors: 1, flags: Flush | FUA},
		request{sector: 0, sectors: 1},
	))
	if diff := cmp.Diff([]int{0, 2, 4, 6, 7}, l.Boundaries(0, 7)); diff != "" {
		t.Errorf("all (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]int{3, 4, 5}, l.Boundaries(3, 5)); diff != "" {
		t.Errorf("of a part (-want +got):\n%s", diff)
	}
	if got := l.Flushes(0, 7); got != 2 {
		t.Errorf("got %d flushes, want 2", got)
	}
}

const perBlock = Block / 512

// at makes a write of whole blocks.
func at(block, blocks uint64, fill byte, flags Flags) request {
	return request{sector: block * perBlock, sectors: blocks * perBlock, fill: fill, flags: flags}
}

// What is kept for sure after each entry of a log, one letter a block.
func TestAnImageHasWhatTheDiskPromised(t *testing.T) {
	for name, c := range map[string]struct {
		log  []request
		want []string // after no entry, one, two...
	}{
		"a write is lost until it is flushed": {
			[]request{at(0, 2, 'a', 0), at(1, 1, 'b', 0), {flags: Flush}, at(0, 1, 'c', 0), {flags: Flush}},
			[]string{"....", "....", "....", "ab..", "ab..", "cb.."},
		},
		"a forced write is kept, those before it are not": {
			[]request{at(0, 1, 'a', 0), at(1, 1, 'b', FUA), {flags: Flush}},
			[]string{"....", "....", ".b..", "ab.."},
		},
		"a forced write over one that is lost": {
			[]request{at(0, 2, 'a', 0), at(0, 1, 'b', FUA), at(2, 1, 'c', FUA)},
			[]string{"....", "....", "b...", "b.c."},
		},
		"a flush that writes keeps what was before it": {
			[]request{at(0, 1, 'a', 0), at(1, 1, 'b', Flush), {flags: Flush}},
			[]string{"....", "....", "a...", "ab.."},
		},
		"a forced flush that writes": {
			[]request{at(0, 1, 'a', 0), at(1, 1, 'b', Flush|FUA), at(2, 1, 'c', 0)},
			[]string{"....", "....", "ab..", "ab.."},
		},
		"a discard": {
			[]request{at(0, 4, 'a', 0), {flags: Flush}, at(1, 2, 0, Discard), {flags: Flush}},
			[]string{"....", "....", "aaaa", "aaaa", "a..a"},
		},
		"a mark": {
			[]request{{flags: Mark, text: "nothing"}, {flags: Flush}},
			[]string{"....", "....", "...."},
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := read(t, made(512, c.log...))
			begun := make(disk, 4*Block)
			m := NewImage(l, begun)
			for i, want := range c.want {
				if err := m.Advance(i); err != nil {
					t.Fatal(err)
				}
				got := slices.Clone(begun)
				if err := l.Rest(got, i, i, nil); err != nil {
					t.Fatal(err)
				}
				if got.blocks() != want {
					t.Errorf("after %d entries: got %s, want %s", i, got.blocks(), want)
				}
			}
		})
	}
}

func TestAnImageDoesNotGoBack(t *testing.T) {
	l := read(t, made(512, at(0, 1, 'a', 0), request{flags: Flush}, at(0, 1, 'b', 0), request{flags: Flush}))
	m := NewImage(l, make(disk, Block))
	if err := m.Advance(4); err != nil {
		t.Fatal(err)
	}
	if err := m.Advance(2); err == nil {
		t.Error("the image went back to an earlier entry")
	}
}

func TestAnyBlockMayBeKept(t *testing.T) {
	// The first write begins and ends within blocks, as no file system's does.
	l := read(t, made(512,
		at(3, 1, 'z', 0), request{flags: Flush},
		request{sector: 4, sectors: 2 * perBlock, fill: 'a'},
		at(1, 1, 'b', 0),
		at(3, 1, 'y', FUA),
		request{flags: Flush},
	))
	rest := func(keep func() bool) (d disk) {
		d = make(disk, 4*Block)
		m := NewImage(l, d)
		if err := m.Advance(2); err != nil {
			t.Fatal(err)
		}
		if err := l.Rest(d, 2, 5, keep); err != nil {
			t.Fatal(err)
		}
		return d
	}
	seen := make(map[string]bool)
	for choice := range 1 << 5 {
		bit := 0
		seen[rest(func() bool { bit++; return choice>>(bit-1)&1 == 1 }).blocks()] = true
	}
	want := make(map[string]bool)
	for _, first := range []string{".", "?"} {
		for _, second := range []string{".", "a", "b"} {
			for _, third := range []string{".", "?"} {
				for _, last := range []string{"z", "y"} {
					want[first+second+third+last] = true
				}
			}
		}
	}
	if diff := cmp.Diff(want, seen); diff != "" {
		t.Errorf("disks that there may be (-want +got):\n%s", diff)
	}
	if a, b := rest(Some(rand.New(rand.NewPCG(1, 2)))), rest(Some(rand.New(rand.NewPCG(1, 2)))); !bytes.Equal(a, b) {
		t.Error("one seed gave two disks")
	}
}

func TestWritesOfManyBlocks(t *testing.T) {
	const blocks = 700 // more than one buffer
	l := read(t, made(512, at(1, blocks, 'a', 0), request{flags: Flush}))
	d := make(disk, (blocks+2)*Block)
	if err := NewImage(l, d).Advance(2); err != nil {
		t.Fatal(err)
	}
	if want := "." + strings.Repeat("a", blocks) + "."; d.blocks() != want {
		t.Errorf("got %s", d.blocks())
	}
}
