package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// trust knows whose files may say what is run.
type trust struct {
	uid      int                   // ours; root is trusted besides
	readOnly func(dir string) bool // whether nobody here can write to the file system of a directory
}

// readOnly is true of a ConfigMap in a container: the directory is everybody's to write to, by its mode alone.
func readOnly(dir string) bool {
	const flag = 1 // ST_RDONLY, and what other systems have for it
	var st unix.Statfs_t
	return unix.Statfs(dir, &st) == nil && st.Flags&flag != 0
}

// check refuses an open file that somebody else can write or put another in the place of: supervise.yaml names programs that
// run as whoever reads it. A file that was put there by whoever may write to its directory is theirs, and refused as such.
func (t trust) check(f *os.File, path string) error {
	st, err := f.Stat()
	if err != nil {
		return err
	}
	const why = "what it names runs as you"
	if uid, ok := t.others(st); ok {
		return fmt.Errorf("%s belongs to user %d, and %s: read it, then make it yours with chown, or copy it", path, uid, why)
	}
	if m := st.Mode().Perm(); m&0o022 != 0 {
		return fmt.Errorf("%s can be written by others than you (mode %#o), and %s: chmod go-w %[1]s", path, m, why)
	}
	if st.Mode().IsRegular() { // the link to a pipe, as a shell makes it of <(…), leads nowhere
		if err := t.way(st, path); err != nil {
			return err
		}
	}
	for range maxLinks {
		dir, _ := filepath.Split(path)
		in, err := os.Stat(dir)
		if err != nil {
			return err
		}
		if uid, ok := t.others(in); ok {
			return fmt.Errorf("%s is in a directory of user %d, who can put another there, and %s: copy it to one of yours", path, uid, why)
		}
		if in.Mode()&0o002 != 0 && in.Mode()&fs.ModeSticky == 0 && !t.readOnly(dir) {
			return fmt.Errorf("%s is in a directory that everybody can write to (mode %#o), and %s: chmod o-w %s", path, in.Mode().Perm(), why, dir)
		}
		link, err := os.Readlink(path)
		if err != nil {
			return nil // it is the file itself
		}
		if path = link; !filepath.IsAbs(link) {
			path = dir + link // not cleaned: dir may be a link itself, and link begin with ..
		}
	}
	return nil
}

const maxLinks = 40 // as Linux follows

// way refuses a path on which somebody else's link is, who says with it which file is meant: it may be ours, as in a checkout,
// and its text another's. What the path leads to must be the file that was opened.
func (t trust) way(file fs.FileInfo, path string) error {
	at, rest, links, link := "/", path, 0, ""
	for {
		var name string
		name, rest, _ = strings.Cut(strings.TrimLeft(rest, "/"), "/")
		next := filepath.Join(at, name) // at holds no link: .. is its parent
		st, err := os.Lstat(next)
		if errors.Is(err, fs.ErrNotExist) && link != "" && removed(file) {
			// A link of the system to an open file, which leads there though it has no name: as /dev/stdin after <<.
			if in, serr := os.Stat(link); serr == nil && os.SameFile(in, file) && removed(in) {
				return nil
			}
		}
		if err != nil {
			return err
		}
		switch uid, others := t.others(st); {
		case st.Mode()&fs.ModeSymlink == 0:
			if at = next; rest != "" {
				continue
			}
			if !os.SameFile(st, file) {
				return fmt.Errorf("%s was replaced while it was opened", path)
			}
			return nil
		case others:
			return fmt.Errorf("%s is a link of user %d, who can have it lead elsewhere, and what %s names runs as you: name the file that it leads to", next, uid, path)
		case links == maxLinks:
			return fmt.Errorf("%s: %w", path, syscall.ELOOP)
		}
		links++
		link = next
		to, err := os.Readlink(next)
		if err != nil {
			return err
		}
		if filepath.IsAbs(to) {
			at = "/"
		}
		rest = to + "/" + rest
	}
}

func removed(st fs.FileInfo) bool { return st.Sys().(*syscall.Stat_t).Nlink == 0 }

// others tells whose a file is that is neither ours nor root's.
func (t trust) others(st fs.FileInfo) (uid uint32, ok bool) {
	uid = st.Sys().(*syscall.Stat_t).Uid
	return uid, uid != 0 && int(uid) != t.uid
}
