package queue

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	maxNames     = 4096     // scanned in one mailbox; past it the mailbox is flooded
	maxListBytes = 32 << 20 // read in one listing of a mailbox, half of it at most of what is answered; past it the mailbox is flooded. 8 KiB a name
	graceBad     = 5 * time.Second
	presenceMax  = 90 * time.Second
	staleTemp    = time.Hour
)

// Fault is called before (done false) and after (done true) each step that leaves something on disk. It is for
// tests: an error stands for a step that was not done, or was done and its reply lost. Steps of one operation come in a
// fixed order, so that a test can number them.
type Fault func(step string, done bool) error

func (f Fault) do(step string, act func() error) error {
	if f != nil {
		if err := f(step, false); err != nil {
			return err
		}
	}
	if err := act(); err != nil {
		return err
	}
	if f != nil {
		return f(step, true)
	}
	return nil
}

// box is one bottle's directory, held open, and what both sides do in it. Names given to it are made by the
// functions of file.go or come from list; none has a slash except those under processed/.
//
// os.Root keeps every name inside, but follows a symlink that stays inside even with O_NOFOLLOW, and a blocking open of a
// FIFO never returns. So each file is looked at first, opened with O_NONBLOCK, and must then be the one looked at.
type box struct {
	slug  string
	path  string
	root  *os.Root
	dir   *os.File // the directory itself: to sync it, and to know it again
	sync  together // syncs it
	moved together // syncs processed/
	info  fs.FileInfo
	who   string // "sidecar" or "operator": begins the names of temps
	fault Fault
	aside func() // for tests: called between the two places where a response may be; nil: not
}

// newBox takes over root.
func newBox(root *os.Root, slug, who string, fault Fault) (*box, error) {
	dir, err := root.Open(".")
	if err != nil {
		root.Close()
		return nil, err
	}
	info, err := dir.Stat()
	if err != nil {
		dir.Close()
		root.Close()
		return nil, err
	}
	b := &box{slug: slug, path: root.Name(), root: root, dir: dir, info: info, who: who, fault: fault}
	b.sync.act, b.moved.act = dir.Sync, b.syncProcessed
	return b, nil
}

func (b *box) close() error { return errors.Join(b.dir.Close(), b.root.Close()) }

// current tells whether path still leads to this directory.
func (b *box) current(path string) bool {
	info, err := os.Stat(path)
	return err == nil && os.SameFile(info, b.info)
}

// list returns at most maxNames names.
func (b *box) list() (names []string, flooded bool, err error) {
	d, err := b.root.Open(".")
	if err != nil {
		return nil, false, err
	}
	defer d.Close()
	names, err = d.Readdirnames(maxNames + 1)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	if len(names) > maxNames {
		return names[:maxNames], true, err
	}
	return names, false, err
}

// lstat returns fs.ErrNotExist also when processed is not a directory.
func (b *box) lstat(name string) (fs.FileInfo, error) {
	if err := b.checkParent(name); err != nil {
		return nil, err
	}
	return b.root.Lstat(name)
}

func (b *box) checkParent(name string) error {
	if !strings.HasPrefix(name, processed+"/") {
		return nil
	}
	info, err := b.root.Lstat(processed)
	if err == nil && !info.IsDir() {
		err = fs.ErrNotExist
	}
	return err
}

func (b *box) exists(name string) (bool, error) {
	_, err := b.lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// read returns a regular file's content. Its error is fs.ErrNotExist, a *BadError when the file itself is in the way, or
// that of the directory.
func (b *box) read(name string) ([]byte, fs.FileInfo, error) {
	seen, err := b.lstat(name)
	if err != nil {
		return nil, nil, err
	}
	if !seen.Mode().IsRegular() {
		return nil, seen, b.bad(name, "not a regular file")
	}
	if seen.Size() > MaxFile {
		return nil, seen, b.bad(name, fmt.Sprintf("over %d bytes", MaxFile))
	}
	fd, err := b.open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, err
	} else if errors.Is(err, fs.ErrPermission) || errors.Is(err, syscall.ELOOP) || errors.Is(err, syscall.ENXIO) {
		return nil, seen, b.bad(name, "cannot be opened: the two sides need one uid, or a shared group and mode 2770")
	} else if err != nil {
		return nil, nil, err
	}
	defer unix.Close(fd)
	var now unix.Stat_t
	if err := unix.Fstat(fd, &now); err != nil {
		return nil, nil, fmt.Errorf("looking at %s: %w", name, err)
	}
	if was, ok := seen.Sys().(*syscall.Stat_t); !ok || was.Dev != now.Dev || was.Ino != now.Ino {
		return nil, nil, fs.ErrNotExist // replaced in between: as good as not there yet
	}
	data, err := readAll(fd, int(now.Size))
	if err != nil {
		return nil, seen, b.bad(name, "cannot be read")
	}
	if len(data) > MaxFile {
		return nil, seen, b.bad(name, fmt.Sprintf("over %d bytes", MaxFile))
	}
	return data, seen, nil
}

// open opens a file for reading. It does without [os.File], which costs more than all the rest of reading a small file, and an
// agent waits for that.
func (b *box) open(name string) (fd int, err error) {
	const flags = unix.O_RDONLY | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_CLOEXEC
	defer runtime.KeepAlive(b.dir)
	dir := int(b.dir.Fd())
	if rest, ok := strings.CutPrefix(name, processed+"/"); ok {
		if dir, err = openat(dir, processed, flags|unix.O_DIRECTORY); err != nil {
			return -1, err
		}
		defer unix.Close(dir)
		name = rest
	}
	return openat(dir, name, flags)
}

func openat(dir int, name string, flags int) (int, error) {
	for {
		fd, err := unix.Openat(dir, name, flags, 0)
		if err == nil {
			return fd, nil
		}
		if !errors.Is(err, unix.EINTR) {
			return -1, &fs.PathError{Op: "open", Path: name, Err: err}
		}
	}
}

// readAll reads a file of about that size, on some mounts an old one, and no more than one byte over MaxFile.
func readAll(fd, size int) ([]byte, error) {
	buf := make([]byte, 0, min(size, MaxFile)+1)
	for len(buf) <= MaxFile {
		buf = slices.Grow(buf, 1)
		n, err := unix.Read(fd, buf[len(buf):min(cap(buf), MaxFile+1)])
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return nil, err
		case n == 0:
			return buf, nil
		default:
			buf = buf[:len(buf)+n]
			if len(buf) == size { // and there was room for one more
				return buf, nil
			}
		}
	}
	return buf, nil
}

func (b *box) bad(name, reason string) *BadError {
	return &BadError{Bottle: b.slug, Name: name, Reason: reason}
}

// proposal reads id's proposal, from processed/ if old is set.
func (b *box) proposal(id ID, old bool) (Proposal, fs.FileInfo, error) {
	name := proposalName(id)
	if old {
		name = archived(name)
	}
	data, info, err := b.read(name)
	if err != nil {
		return Proposal{}, info, err
	}
	p, err := parseProposal(data, b.slug, id)
	if err != nil {
		return p, info, b.bad(name, err.Error())
	}
	return p, info, nil
}

func (b *box) response(id ID, old bool) (Response, fs.FileInfo, error) {
	name := responseName(id)
	if old {
		name = archived(name)
	}
	data, info, err := b.read(name)
	if err != nil {
		return Response{}, info, err
	}
	r, err := parseResponse(data, id, info.ModTime())
	if err != nil {
		return r, info, b.bad(name, err.Error())
	}
	return r, info, nil
}

// found is what lookup knows of an id.
type found struct {
	Entry
	info     fs.FileInfo // of the proposal
	archived bool
}

// lookup looks in both places. Files only move from the mailbox to processed/, proposal first, so looking in that order
// misses one only if it moved in between; then it is looked for again.
func (b *box) lookup(id ID) (found, error) {
	for range 4 {
		f, again, err := b.lookupOnce(id)
		if !again || err != nil {
			return f, err
		}
	}
	return found{}, fmt.Errorf("%s: %w", id, ErrNotFound)
}

func (b *box) lookupOnce(id ID) (f found, again bool, err error) {
	f.Proposal, f.info, err = b.proposal(id, false)
	if errors.Is(err, fs.ErrNotExist) {
		f.archived = true
		f.Proposal, f.info, err = b.proposal(id, true)
		if errors.Is(err, fs.ErrNotExist) {
			return f, false, fmt.Errorf("%s: %w", id, ErrNotFound)
		}
	}
	if err != nil {
		return f, false, err
	}
	f.saw(newSeen(f.info.ModTime()))

	r, info, err := b.response(id, f.archived)
	if errors.Is(err, fs.ErrNotExist) && f.archived {
		// Between the two renames of Archive, or after a crash there.
		if b.aside != nil {
			b.aside()
		}
		r, info, err = b.response(id, false)
		// If the second rename was made meanwhile, what stood here may be a late response, of somebody who found the name free.
		if there, err := b.exists(archived(responseName(id))); there || err != nil {
			return f, there, err
		}
	}
	switch bad, isBad := errors.AsType[*BadError](err); {
	case isBad:
		f.BadResponse = bad
	case errors.Is(err, fs.ErrNotExist):
		if f.archived {
			return f, true, nil
		}
		still, err := b.exists(proposalName(id))
		return f, !still, err
	case err != nil:
		return f, false, err
	default:
		f.Response = &r
		if f.archived {
			f.Delivered = changed(info)
		}
		if info, err := b.lstat(undoneName(id)); err == nil {
			f.Undone = info.ModTime()
			if now := time.Now(); now.Before(f.Undone) || !storable(f.Undone) {
				f.Undone = now
			}
		} else if !errors.Is(err, fs.ErrNotExist) {
			return f, false, err
		}
	}
	return f, false, nil
}

// changed returns a file's change time: for one that was moved to processed/, when it was.
func changed(info fs.FileInfo) time.Time {
	t := info.ModTime()
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		t = ctime(st)
	}
	if now := time.Now(); now.Before(t) {
		return now
	}
	return t
}

// put makes name appear whole, with data in it, and only if there is no such name yet: fs.ErrExist. When it returns nil the
// change survives a power cut; after an error it may be there or not.
func (b *box) put(op, name string, data []byte) error {
	temp, err := b.temp(op, data)
	if err != nil {
		return err
	}
	err = b.fault.do(op+".link", func() error { return b.root.Link(temp, name) })
	if err == nil {
		err = b.fault.do(op+".syncdir", b.sync.do)
	}
	// A temp that stays is in nobody's way and is removed at the next start.
	_ = b.fault.do(op+".untemp", func() error { return b.root.Remove(temp) })
	return err
}

// temp writes a file under a name that nobody reads.
func (b *box) temp(op string, data []byte) (name string, err error) {
	name = "." + b.who + "-" + string(NewID()) + tempSuffix
	err = b.fault.do(op+".temp", func() error { return b.write(name, data, true) })
	if err != nil {
		_ = b.root.Remove(name)
		return "", err
	}
	return name, nil
}

func (b *box) write(name string, data []byte, sync bool) error {
	f, err := b.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	errs := []error{err}
	if mode := b.fileMode(); mode != 0o600 {
		errs = append(errs, f.Chmod(mode)) // whatever the umask
	}
	if st, ok := b.info.Sys().(*syscall.Stat_t); ok && os.Geteuid() == 0 && st.Uid != 0 {
		errs = append(errs, f.Chown(int(st.Uid), int(st.Gid))) // the sidecar is another than root, and must read it
	}
	if sync {
		errs = append(errs, f.Sync())
	}
	return errors.Join(append(errs, f.Close())...)
}

// replace puts a hint in place. It is not synced: after a power cut it would be out of date anyhow.
func (b *box) replace(name string, data []byte) error {
	temp := "." + b.who + "-" + string(NewID()) + tempSuffix
	err := b.write(temp, data, false)
	if err == nil {
		err = b.root.Rename(temp, name)
	}
	if err != nil {
		_ = b.root.Remove(temp)
	}
	return err
}

// fileMode gives a file to the directory's group where the directory is shared with it, and to nobody else.
func (b *box) fileMode() fs.FileMode { return b.info.Mode().Perm()&0o640 | 0o600 }

// syncBoth makes moves between the mailbox and processed/ durable.
func (b *box) syncBoth() error { return errors.Join(b.moved.do(), b.sync.do()) }

func (b *box) syncProcessed() error {
	d, err := b.root.OpenFile(processed, os.O_RDONLY|syscall.O_DIRECTORY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// makeProcessed creates processed/ with the mailbox's own mode, whatever the umask.
func (b *box) makeProcessed() error {
	err := b.root.Mkdir(processed, 0o700)
	if errors.Is(err, fs.ErrExist) {
		info, err := b.root.Lstat(processed)
		if err == nil && !info.IsDir() {
			err = fmt.Errorf("%s/%s is not a directory: move it away", b.path, processed)
		}
		return err
	}
	if err != nil {
		return err
	}
	d, err := b.root.OpenFile(processed, os.O_RDONLY|syscall.O_DIRECTORY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	return errors.Join(d.Chmod(b.info.Mode()&(fs.ModeSetgid|0o770)|0o700), d.Close(), b.dir.Sync())
}

// moveTo renames name into processed/. It is no error if that has happened already.
func (b *box) moveTo(name, as string) error {
	err := b.root.Rename(name, archived(as))
	if errors.Is(err, fs.ErrNotExist) {
		if there, e := b.exists(archived(as)); there && e == nil {
			return nil
		}
	}
	return err
}

// probe does once all that a mailbox needs, so that a wrong mount fails at the start and not at the first proposal.
func (b *box) probe() error {
	name := ".probe-" + string(NewID())
	a, c := name+"-a"+tempSuffix, name+"-b"+tempSuffix
	defer b.root.Remove(a)
	defer b.root.Remove(c)
	for _, step := range []struct {
		what string
		do   func() error
	}{
		{"create a file", func() error { return b.write(a, []byte("probe\n"), true) }},
		{"make a hard link", func() error { return b.root.Link(a, c) }},
		{"create " + processed, b.makeProcessed},
		{"rename into " + processed, func() error { return b.root.Rename(c, archived(c)) }},
		{"rename", func() error { return b.root.Rename(archived(c), c) }},
		{"sync the directory", b.syncBoth},
		{"remove a file", func() error { return errors.Join(b.root.Remove(a), b.root.Remove(c)) }},
	} {
		if err := step.do(); err != nil {
			return fmt.Errorf("mailbox %s: cannot %s as uid %d gid %d, the directory being %s: %w; "+
				"run both sides with the same --user and mode 0700, or with a shared group and mode 2770",
				b.path, step.what, os.Getuid(), os.Getgid(), owner(b.info), err)
		}
	}
	return nil
}

func owner(info fs.FileInfo) string {
	mode := strconv.FormatUint(uint64(info.Mode().Perm()), 8)
	if info.Mode()&fs.ModeSetgid != 0 {
		mode = "2" + mode
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return fmt.Sprintf("uid %d gid %d mode %s", st.Uid, st.Gid, mode)
	}
	return "mode " + mode
}

// removeLeft removes what crashes left: at the start the own side's temps at once, since the lock is held, and always what is
// too old to be in use. So it does with undone markers whose pair was pruned while they were written.
func (b *box) removeLeft(names []string, start bool) {
	for _, name := range names {
		if !isTemp(name) && !b.markerLeft(name) {
			continue
		}
		info, err := b.root.Lstat(name)
		if err != nil || !info.Mode().IsRegular() {
			continue
		}
		if start && strings.HasPrefix(name, "."+b.who+"-") || time.Since(info.ModTime()).Abs() > staleTemp {
			_ = b.root.Remove(name)
		}
	}
}

// markerLeft tells whether name is an undone marker that stands beside no response. Looking outside first misses none that moves.
func (b *box) markerLeft(name string) bool {
	stem, marker := strings.CutSuffix(name, undoneSuffix)
	id, err := ParseID(stem)
	if !marker || err != nil {
		return false
	}
	for _, name := range []string{responseName(id), archived(responseName(id))} {
		if there, err := b.exists(name); there || err != nil {
			return false
		}
	}
	return true
}

func isTemp(name string) bool {
	if !strings.HasSuffix(name, tempSuffix) {
		return false
	}
	for _, p := range []string{".sidecar-", ".operator-", ".probe-"} {
		if strings.HasPrefix(name, p) {
			return true
		}
	}
	return false
}

// lock takes the mailbox's lock without waiting. ErrLocked: another has it. errMoved: the file was removed meanwhile.
func (b *box) lock() (*os.File, error) {
	f, err := b.openLock()
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, ErrLocked
		}
		return nil, fmt.Errorf("locking %s/%s: %w", b.path, lockFile, err)
	}
	info, err := f.Stat()
	now, nowErr := b.root.Lstat(lockFile)
	if err != nil || nowErr != nil || !os.SameFile(info, now) {
		f.Close()
		return nil, errMoved
	}
	return f, nil
}

var errMoved = errors.New("the lock file was replaced")

func (b *box) openLock() (*os.File, error) {
	seen, err := b.root.Lstat(lockFile)
	if err == nil && !seen.Mode().IsRegular() {
		return nil, b.bad(lockFile, "not a regular file: remove it")
	}
	flags := syscall.O_NOFOLLOW | syscall.O_NONBLOCK
	if errors.Is(err, fs.ErrNotExist) {
		f, err := b.root.OpenFile(lockFile, os.O_RDWR|os.O_CREATE|os.O_EXCL|flags, 0o600)
		if errors.Is(err, fs.ErrExist) {
			return nil, errMoved
		}
		if err != nil {
			return nil, err
		}
		if err := f.Chmod(b.fileMode()); err != nil {
			f.Close()
			return nil, err
		}
		return f, nil
	}
	if err != nil {
		return nil, err
	}
	f, err := b.root.OpenFile(lockFile, os.O_RDWR|flags, 0)
	if errors.Is(err, fs.ErrPermission) { // another uid's; a lock needs no more than reading
		f, err = b.root.OpenFile(lockFile, os.O_RDONLY|flags, 0)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errMoved
	}
	return f, err
}

// lockWait is lock with patience.
func (b *box) lockWait(ctx context.Context, wait time.Duration) (*os.File, error) {
	deadline := time.Now().Add(wait)
	for {
		f, err := b.lock()
		if err == nil || !errors.Is(err, ErrLocked) && !errors.Is(err, errMoved) {
			return f, err
		}
		if !time.Now().Before(deadline) {
			return nil, fmt.Errorf("mailbox %s: waited %v: %w", b.path, wait, ErrLocked)
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// seen is when something was first seen, for ages that a stepped clock does not change.
type seen struct {
	before time.Duration // its age then
	at     time.Time     // with a monotonic reading
}

func newSeen(t time.Time) seen {
	now := time.Now()
	return seen{before: max(0, now.Round(0).Sub(t)), at: now}
}

func (s seen) age() time.Duration { return s.before + time.Since(s.at) }

func (e *Entry) saw(s seen) { e.Since, e.Age = s.at.Add(-s.before), s.age() }

// quote makes a hostile writer's name fit for a log or an error.
func quote(name string) string {
	if len(name) > 120 {
		name = name[:120] + "…"
	}
	if strings.Trim(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-/") == "" {
		return name
	}
	return strconv.QuoteToASCII(name)
}
