package install

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/nodeprep/nodeprep/internal/diag"
	"github.com/nodeprep/nodeprep/internal/host"
)

// prune removes generations beyond the wanted number and originals that nothing
// refers to any more. A fault there is a warning: the run itself is done.
func (r *run) prune() {
	if err := r.pruneAll(); err != nil {
		r.res.Warnings.Warnf(diag.Origin{File: StateDir}, "", "old generations could not be removed: %v", err)
	}
}

func (r *run) pruneAll() error {
	state, err := r.root.Resolve(StateDir)
	if err != nil {
		return err
	}
	entries, err := r.root.ReadDir(StateDir + "/generations")
	if err != nil {
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
		rec, err := readRecord(r.root, generation(StateDir, n, "record.json"))
		if err != nil {
			faults = append(faults, err)
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
		} else if dir, err := r.root.Locate(generation(StateDir, n, "")); err != nil {
			faults = append(faults, err)
		} else {
			faults = append(faults, r.w.removeTree(dir))
		}
	}
	now, err := ReadReceipt(r.root)
	if err != nil {
		return errors.Join(append(faults, err)...)
	}
	for _, own := range now.Owned {
		if own.Before != nil {
			needed[own.Before.Path] = true
		}
	}
	if r.plan.receipt != nil {
		for _, own := range r.plan.receipt.Owned {
			if own.Before != nil && own.Before.Path != "" {
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
		r.dropEmpty(filepath.Dir(real), state)
	}
	return errors.Join(faults...)
}

// dropEmpty removes directories of kept files that became empty, up to nodeprep's own.
func (r *run) dropEmpty(dir, state string) {
	for strings.HasPrefix(dir, state+"/") || strings.Contains(r.shown(dir)+"/", "/"+keptDir+"/") {
		entries, err := os.ReadDir(dir)
		if err != nil && !isAbsent(err) || len(entries) > 0 {
			return
		}
		if r.w.rmdir(dir) != nil || filepath.Base(dir) == keptDir {
			return
		}
		dir = filepath.Dir(dir)
	}
}

func readRecord(root *host.Root, p string) (Record, error) {
	var rec Record
	data, err := root.ReadFile(p)
	if err != nil {
		return rec, err
	}
	if err := json.Unmarshal(data, &rec); err != nil {
		return rec, fmt.Errorf("read %s: %w", p, err)
	}
	var faults []error
	for i := range rec.Changes {
		c := &rec.Changes[i]
		faults = append(faults, checkPath(c.Path), checkPath(c.Real), c.Kept.check())
	}
	if err := errors.Join(faults...); err != nil {
		return Record{}, fmt.Errorf("read %s: %w", p, err)
	}
	return rec, nil
}

// readReceiptFile reads the receipt of an older generation; the first has none.
func readReceiptFile(root *host.Root, p string) (Receipt, error) {
	var rec Receipt
	data, err := root.ReadFile(p)
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
