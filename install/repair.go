package install

import (
	"errors"
	"fmt"
	"io/fs"
	"syscall"
)

// Repair gives an unpacked file its permissions and owner back. What is in it is as it
// was unpacked, so that neither the release nor a restart is needed.
type Repair struct {
	// Path is as the state names it, Real with its directories' links followed.
	Path string `json:"path"`
	Real string `json:"real"`
	// Mode, UID and GID are those of before.
	Mode fs.FileMode `json:"mode"`
	UID  uint32      `json:"uid"`
	GID  uint32      `json:"gid"`

	// to is how it shall be.
	to *Owned
}

// recordRepairs looks for a last time whether the files are as they were planned for.
func (r *run) recordRepairs() error {
	for i := range r.plan.Items {
		it := &r.plan.Items[i]
		if !it.repair {
			continue
		}
		now, err := lstat(it.real)
		if err != nil {
			return err
		}
		if !sameStat(r.plan.seen[it.real], now) {
			return fmt.Errorf("repair %s: somebody else changed it meanwhile", it.Path)
		}
		st := now.Sys().(*syscall.Stat_t)
		r.j.Repairs = append(r.j.Repairs, Repair{
			Path: it.Path, Real: r.shown(it.real), Mode: permissions(now.Mode()), UID: st.Uid, GID: st.Gid, to: it.own,
		})
	}
	return nil
}

func (r *run) repairAll() error {
	for i := range r.j.Repairs {
		p := &r.j.Repairs[i]
		if err := r.setMode(r.abs(p.Real), p.to.Mode, p.to.UID, p.to.GID); err != nil {
			return fmt.Errorf("repair %s: %w", p.Path, err)
		}
	}
	return nil
}

// revertRepairs leaves alone what was not repaired: it may be that nobody can.
func (r *run) revertRepairs() error {
	var faults []error
	for i := len(r.j.Repairs) - 1; i >= 0; i-- {
		p := &r.j.Repairs[i]
		if err := r.setMode(r.abs(p.Real), p.Mode, p.UID, p.GID); err != nil {
			faults = append(faults, fmt.Errorf("put back mode and owner of %s: %w", p.Path, err))
		}
	}
	return errors.Join(faults...)
}

// setMode sets owner and mode, in this order, since chown(2) clears setuid, where they
// differ, and makes them durable.
func (r *run) setMode(real string, mode fs.FileMode, uid, gid uint32) error {
	fi, err := lstat(real)
	if err != nil {
		return err
	}
	if fi == nil || !fi.Mode().IsRegular() && !fi.IsDir() {
		return fmt.Errorf("%s is no longer a file", r.shown(real))
	}
	st := fi.Sys().(*syscall.Stat_t)
	chown := st.Uid != uid || st.Gid != gid
	if !chown && permissions(fi.Mode()) == mode {
		return nil
	}
	if chown {
		if err := r.w.lchown(real, uid, gid); err != nil {
			return err
		}
	}
	if err := r.w.chmod(real, mode); err != nil {
		return err
	}
	return r.w.sync(real)
}
