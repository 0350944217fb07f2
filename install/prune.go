package install

import (
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/nodeprep/nodeprep/internal/host"
)

// pruneAll removes generations beyond the wanted number, originals that nothing refers
// to any more, and downloads that are not what is installed. What it is killed in the
// middle of it does anew: each generation's record goes last.
func (r *run) pruneAll() error {
	entries, err := r.root.ReadDir(StateDir + "/generations")
	if err != nil && !isAbsent(err) {
		return err
	}
	var numbers []int
	for _, e := range entries {
		if n, ok := parseCount(e.Name()); ok {
			numbers = append(numbers, n)
		}
	}
	slices.Sort(numbers)
	var faults []error
	needed := map[string]bool{} // originals that a rollback would want
	old := max(len(numbers)-max(r.plan.state.Generations, 0), 0)
	var drop []Kept
	for i, n := range numbers {
		rec, err := readJournal(r.root, generation(StateDir, n, "record.json"))
		if err != nil {
			faults = append(faults, err)
		}
		if rec == nil && n == r.j.From {
			rec = &r.j
		}
		if rec == nil {
			rec = &Journal{}
		}
		for _, c := range rec.Changes {
			if c.Kept == nil || c.Kept.Path == "" {
				continue
			}
			if i >= old {
				needed[c.Kept.Path] = true
			} else {
				drop = append(drop, *c.Kept)
			}
		}
		if i >= old {
			receipt, err := readReceiptFile(r.root, generation(StateDir, n, "receipt.json"))
			if err != nil {
				faults = append(faults, err)
			}
			for _, own := range receipt.Owned {
				if own.Before != nil {
					needed[own.Before.Path] = true
				}
			}
		}
	}
	now, err := ReadReceipt(r.root)
	if err != nil {
		return errors.Join(append(faults, err)...)
	}
	for _, rec := range []*Receipt{now, r.plan.receipt} {
		if rec == nil {
			continue
		}
		for _, own := range rec.Owned {
			switch {
			case own.Before == nil || own.Before.Path == "":
			case rec == now:
				needed[own.Before.Path] = true
			default:
				drop = append(drop, *own.Before)
			}
		}
	}
	for _, k := range drop {
		if needed[k.Path] {
			continue
		}
		real, err := r.keptAt(&k)
		if err != nil {
			faults = append(faults, err)
			continue
		}
		faults = append(faults, r.w.remove(real))
	}
	for _, n := range numbers[:old] {
		for _, top := range r.j.Tops {
			dir, err := r.root.Locate(generation(top, n, ""))
			if err == nil {
				err = r.w.removeTree(dir)
			}
			faults = append(faults, err)
		}
	}
	return errors.Join(append(faults, r.pruneCache(now))...)
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
