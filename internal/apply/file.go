package apply

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/bot-bottle/supervise/internal/routes"
)

// ErrChanged is a file that is no longer what it was when it was read. It was not touched.
var ErrChanged = errors.New("changed by someone else in the meantime")

// ChangedError tells how. It unwraps to ErrChanged.
type ChangedError struct {
	Path string
	Want string // hex SHA-256; "" for no file
	Now  string
}

func (e *ChangedError) Error() string {
	return fmt.Sprintf("%s was %v: expected sha256 %s, found %s; it was left as it is", e.Path, ErrChanged, hashName(e.Want), hashName(e.Now))
}
func (e *ChangedError) Unwrap() error { return ErrChanged }

func hashName(sum string) string {
	if sum == "" {
		return "(no file)"
	}
	return sum
}

// resolve follows symlinks to the file that is to be replaced. The file itself may be missing, its directory may not.
func resolve(path string) (string, error) {
	if !filepath.IsAbs(path) {
		return "", fmt.Errorf("the path %q must be absolute", path)
	}
	real, err := filepath.EvalSymlinks(path)
	if err == nil || !errors.Is(err, fs.ErrNotExist) {
		return real, err
	}
	if _, err := os.Lstat(path); err == nil {
		return "", errors.New("the symlink points to nothing")
	}
	dir, err := filepath.EvalSymlinks(filepath.Dir(path))
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("there is no directory %s: create it, or correct supervise.yaml", filepath.Dir(path))
	}
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, filepath.Base(path)), nil
}

// readFile reads a regular file of at most routes.MaxFile bytes.
func readFile(real string) ([]byte, error) {
	f, err := os.OpenFile(real, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", real)
	}
	data, err := io.ReadAll(io.LimitReader(f, routes.MaxFile+1))
	if err != nil {
		return nil, err
	}
	if len(data) > routes.MaxFile {
		return nil, fmt.Errorf("%s is over the limit of %d bytes", real, routes.MaxFile)
	}
	return data, nil
}

// sum is the hash of a file, "" when there is none.
func sum(real string) (string, error) {
	data, err := readFile(real)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	return SHA256(data), nil
}

// write is one replacement of a file.
type write struct {
	kind   Kind
	path   string // for people
	real   string
	was    string                       // hash the file must have; "": it must not exist
	data   []byte                       // new content
	remove bool                         // the file, instead of writing data
	check  func(candidate string) error // of the candidate, before it is put in place; may be nil
}

// replace puts w.data in place of a file whose hash is w.was. It returns whether the file has been changed, which it
// may be together with an error. The candidate has a fixed name: whoever holds the target's lock owns it, and one that
// a crash left is replaced.
func (l *Local) replace(w write) (done bool, err error) {
	if err := l.step(w.kind, "write"); err != nil {
		return false, err
	}
	dir := filepath.Dir(w.real)
	tmp := filepath.Join(dir, ".supervise-tmp-"+filepath.Base(w.real))
	if !w.remove {
		if err := l.candidate(w, tmp); err != nil {
			return false, err
		}
		defer func() {
			if !done && !crashed(err) {
				err = errors.Join(err, ignoreMissing(os.Remove(tmp)))
			}
		}()
		if w.check != nil {
			if err := w.check(tmp); err != nil {
				return false, err
			}
		}
	}
	if err := l.step(w.kind, "rename"); err != nil {
		return false, err
	}
	now, err := sum(w.real)
	if err != nil {
		return false, err
	}
	if now != w.was {
		return false, &ChangedError{w.path, w.was, now}
	}
	switch {
	case w.remove:
		err = os.Remove(w.real)
	case w.was == "": // never over a file that appeared just now
		if err = os.Link(tmp, w.real); errors.Is(err, fs.ErrExist) {
			return false, &ChangedError{w.path, w.was, "(one just created)"}
		} else if err == nil {
			if err := os.Remove(tmp); err != nil {
				l.log.Warn("removing a temporary file", "kind", w.kind, "err", err)
			}
		}
	default:
		err = os.Rename(tmp, w.real)
	}
	if err != nil {
		return false, explain(err, w)
	}
	if err := l.step(w.kind, "sync"); err != nil {
		return true, err
	}
	if err := syncDir(dir); err != nil {
		return true, fmt.Errorf("syncing %s: %w", dir, err)
	}
	l.log.Info("wrote target", "kind", w.kind, "size", len(w.data))
	return true, nil
}

// candidate writes and syncs the new content under the name tmp, with the mode, owner and access list of the file it is to replace.
func (l *Local) candidate(w write, tmp string) error {
	if err := ignoreMissing(os.Remove(tmp)); err != nil {
		return explain(err, w)
	}
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return explain(err, w)
	}
	err = func() error {
		mode := fs.FileMode(0o644)
		if w.was != "" {
			old, err := os.Lstat(w.real)
			if err != nil {
				return err
			}
			mode = old.Mode().Perm()
			if err := keepOwner(f, old); err != nil {
				return err
			}
		}
		if err := f.Chmod(mode); err != nil { // after chown, which may clear bits
			return err
		}
		if w.was != "" {
			if err := keepAccessList(f, w.real); err != nil { // after chmod, which would change it
				return err
			}
		}
		if _, err := f.Write(w.data); err != nil {
			return err
		}
		return f.Sync()
	}()
	if err := errors.Join(err, f.Close()); err != nil {
		return errors.Join(explain(err, w), ignoreMissing(os.Remove(tmp)))
	}
	return nil
}

func keepOwner(f *os.File, old fs.FileInfo) error {
	o, ok := old.Sys().(*syscall.Stat_t)
	if !ok {
		return nil
	}
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if n, ok := info.Sys().(*syscall.Stat_t); ok && n.Uid == o.Uid && n.Gid == o.Gid {
		return nil
	}
	if err := f.Chown(int(o.Uid), int(o.Gid)); err != nil {
		return fmt.Errorf("keeping owner %d:%d: %w; run supervise as that user, or give the file to uid %d", o.Uid, o.Gid, err, os.Getuid())
	}
	return nil
}

const accessList = "system.posix_acl_access"

// keepAccessList gives f the access list of the file it is to replace. Where that has none, f may have one from the directory.
func keepAccessList(f *os.File, real string) error {
	if runtime.GOOS != "linux" {
		return nil // others have none under this name, and each its own error for that
	}
	list := make([]byte, 64<<10) // the largest attribute that Linux has
	n, err := unix.Lgetxattr(real, accessList, list)
	switch {
	case err == nil:
		err = unix.Fsetxattr(int(f.Fd()), accessList, list[:n], 0)
	case errors.Is(err, unix.ENODATA):
		err = unix.Fremovexattr(int(f.Fd()), accessList)
	}
	if err != nil && !errors.Is(err, unix.ENODATA) && !errors.Is(err, unix.ENOTSUP) {
		return fmt.Errorf("keeping the access list: %w", err)
	}
	return nil
}

// explain adds the mend to what the system says.
func explain(err error, w write) error {
	dir := filepath.Dir(w.real)
	switch {
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("%w: %s is mounted singly, so it cannot be replaced; mount the directory %s instead", err, w.path, dir)
	case errors.Is(err, unix.EROFS), errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w: the directory %s must be writable for uid %d, since a file is replaced by renaming another over it", err, dir, os.Getuid())
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return fmt.Errorf("%w: make room on the file system of %s", err, dir)
	}
	return err
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// crash is an error of Options.Step.
type crash struct{ err error }

func (c *crash) Error() string { return c.err.Error() }
func (c *crash) Unwrap() error { return c.err }

func crashed(err error) bool {
	_, ok := errors.AsType[*crash](err)
	return ok
}

func (l *Local) step(kind Kind, name string) error {
	if l.opts.Step == nil {
		return nil
	}
	if err := l.opts.Step(string(kind) + "." + name); err != nil {
		return &crash{err}
	}
	return nil
}
