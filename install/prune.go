package install

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/nodeprep/nodeprep/internal/host"
)

// pruneAll removes generations beyond the wanted number, originals that nothing refers
// to any more, and downloads that are not what is installed. It goes by what there is
// and not by what was done, so that what it is killed in the middle of it does anew.
func (r *run) pruneAll() error {
	numbers, err := r.generationsAt(StateDir)
	if err != nil {
		return err
	}
	keep := numbers[max(len(numbers)-max(r.plan.state.Generations, 0), 0):]
	now, err := ReadReceipt(r.root)
	if err != nil {
		return err
	}
	needed, readable := r.originals(keep, now)
	var faults []error
	for _, top := range r.j.Tops {
		if readable {
			faults = append(faults, r.pruneOriginals(top, needed))
		}
		there, err := r.generationsAt(top)
		faults = append(faults, err)
		for _, n := range there {
			if !slices.Contains(keep, n) {
				faults = append(faults, r.dropGeneration(top, n))
			}
		}
	}
	return errors.Join(append(faults, r.pruneCache(now))...)
}

// generationsAt lists the generations of which something is kept in one place, in order.
func (r *run) generationsAt(top string) ([]int, error) {
	entries, err := r.root.ReadDir(path.Join(top, "generations"))
	if err != nil && !isAbsent(err) {
		return nil, err
	}
	var out []int
	for _, e := range entries {
		if n, ok := parseCount(e.Name()); ok {
			out = append(out, n)
		}
	}
	slices.Sort(out)
	return out, nil
}

// originals are the places of what was taken over and may have to be given back, by now's
// receipt or by generations. It is not readable when one of them cannot tell; that is
// said, and no reason to stop: the generation goes some day.
func (r *run) originals(keep []int, now *Receipt) (needed map[string]bool, readable bool) {
	needed, readable = map[string]bool{}, true
	note := func(err error) {
		if err != nil {
			readable = false
			r.left = append(r.left, fmt.Sprintf("originals that nobody needs may stay: %v", err))
		}
	}
	add := func(k *Kept) {
		if k != nil && k.Kind != KindLink {
			at, err := keptAt(r.root, k)
			note(err)
			needed[at] = true
		}
	}
	own := func(rec *Receipt) {
		if rec != nil {
			for i := range rec.Owned {
				add(rec.Owned[i].Before)
			}
		}
	}
	own(now)
	for _, n := range keep {
		rec, err := readJournal(r.root, generation(StateDir, n, "record.json"))
		note(err)
		if rec == nil && n == r.j.From {
			rec = &r.j
		}
		if rec != nil {
			for i := range rec.Changes {
				add(rec.Changes[i].Kept)
			}
		}
		was, err := readReceiptFile(r.root, generation(StateDir, n, "receipt.json"))
		note(err)
		own(&was)
	}
	return needed, readable
}

// pruneOriginals removes originals in one place that are not needed.
func (r *run) pruneOriginals(top string, needed map[string]bool) error {
	dir, err := r.root.Locate(path.Join(top, "original"))
	if err != nil {
		return err
	}
	if fi, err := lstat(dir); err != nil || fi == nil || !fi.IsDir() {
		return err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	var faults []error
	for _, e := range entries {
		if p := filepath.Join(dir, e.Name()); !needed[p] && !e.IsDir() {
			faults = append(faults, r.w.remove(p))
		}
	}
	return errors.Join(faults...)
}

// pruneCache removes downloads that are not of what is installed.
func (r *run) pruneCache(now *Receipt) error {
	entries, err := r.root.ReadDir(CacheDir)
	if err != nil {
		if isAbsent(err) {
			return nil
		}
		return err
	}
	dir, err := r.root.Resolve(CacheDir)
	if err != nil {
		return err
	}
	var faults []error
	left := len(entries)
	for _, e := range entries {
		used := now != nil && slices.ContainsFunc(now.Artifacts, func(a Installed) bool { return a.SHA256 != "" && strings.HasPrefix(e.Name(), a.SHA256+"-") })
		if used || e.IsDir() {
			continue
		}
		faults = append(faults, r.w.remove(filepath.Join(dir, e.Name())))
		left--
	}
	if left == 0 {
		_, err := r.w.rmdirUnused(dir)
		faults = append(faults, err)
	}
	return errors.Join(faults...)
}

// readReceiptFile reads the receipt of an older generation; the first has none.
func readReceiptFile(root *host.Root, p string) (Receipt, error) {
	var rec Receipt
	data, err := readOwn(root, p)
	if isAbsent(err) {
		return rec, nil
	}
	if err != nil {
		return rec, err
	}
	if err := json.Unmarshal(data, &rec); err != nil {
		return rec, fmt.Errorf("read %s: %w", p, err)
	}
	if err := rec.check(); err != nil {
		return Receipt{}, fmt.Errorf("read %s: %w", p, err)
	}
	return rec, nil
}
