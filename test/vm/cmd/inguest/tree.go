package main

import (
	"bufio"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// tree writes a line for all there is under the roots, without crossing into other file
// systems: path, type and mode, owner, and what is there: a target or a size and a
// digest. What the system itself came with is megabytes that nobody here writes to: in
// place of the digest it has times, with that of the last change of its inode, which no
// program can set.
//
// With times all files have them, and folders too, and none a digest: a folder's tells
// that a name came or went, even when it is gone again.
func tree(w io.Writer, roots []string, skip map[string]bool, times bool) (err error) {
	out := bufio.NewWriter(w)
	defer func() { err = errors.Join(err, out.Flush()) }()
	for _, root := range roots {
		top, err := os.Lstat(root)
		if err != nil {
			return err
		}
		device := top.Sys().(*syscall.Stat_t).Dev
		err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			if skip[path] {
				if d.IsDir() {
					return filepath.SkipDir
				}
				return nil
			}
			info, err := d.Info()
			if err != nil {
				return err
			}
			stat := info.Sys().(*syscall.Stat_t)
			if stat.Dev != device {
				return filepath.SkipDir
			}
			what := ""
			switch {
			case times || info.Mode().IsRegular() && system(path):
				what = fmt.Sprintf("%d inode %d mtime %s ctime %s", info.Size(), stat.Ino, stamp(stat.Mtim), stamp(stat.Ctim))
			case info.Mode().IsRegular():
				sum, err := sum(path)
				if err != nil {
					return err
				}
				what = fmt.Sprintf("%d %s mtime %s", info.Size(), sum, stamp(stat.Mtim))
			case info.Mode()&fs.ModeSymlink != 0:
				target, err := os.Readlink(path)
				if err != nil {
					return err
				}
				what = "-> " + target
			}
			_, err = fmt.Fprintf(out, "%s %s %d:%d %s\n", path, info.Mode(), stat.Uid, stat.Gid, what)
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// system says whether a path is one of those that the distribution's packages fill.
func system(path string) bool {
	return strings.HasPrefix(path, "/boot/") || strings.HasPrefix(path, "/usr/") && !strings.HasPrefix(path, "/usr/local/")
}

func stamp(t syscall.Timespec) string {
	return time.Unix(t.Unix()).UTC().Format("2006-01-02T15:04:05.000000000")
}

func sum(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return fmt.Sprintf("%x", h.Sum(nil)[:8]), nil
}
