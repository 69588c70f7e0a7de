package queue

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// RootOptions configure OpenRoot. Zero values mean what is said here.
type RootOptions struct {
	Logger *slog.Logger // if nil, nothing is logged

	PollFast time.Duration // while somebody watches and no event has proved itself; if zero, 50 ms
	PollSlow time.Duration // while somebody watches and one has; if zero, 1 s
	NoWatch  bool          // poll only

	Fault Fault // for tests

	newWatcher func() (*watcher, error) // if nil, fsnotify
	maxRemoved int                      // names that Forget removes; if zero, as many as said there
}

// Root is the Inbox over a directory of mailboxes. A directory in it whose name is a slug is a bottle's; other names are
// left alone. Whatever a sidecar does to its mailbox, only that bottle's listing suffers: no link is followed out of it,
// nothing is waited for, and what is read has limits.
type Root struct {
	opts RootOptions
	path string
	log  *slog.Logger

	mu       sync.Mutex
	closed   bool
	root     *os.Root // the directory at path when it was last looked at
	info     fs.FileInfo
	ages     map[string]map[ID]seen
	presence map[string]presenceSeen
	reported map[string]map[string]string // by bottle and name: the reason that was logged
	subs     map[chan struct{}]bool
	running  bool

	wakeLoop chan struct{}
	done     chan struct{}
	loop     sync.WaitGroup

	removing func(mailbox *os.Root) // for tests: called before each name that Forget removes; nil: not
}

const maxReported = 1024 // names of one bottle whose badness is remembered

// OpenRoot opens the directory of mailboxes, which it creates when missing.
func OpenRoot(root string, opts RootOptions) (*Root, error) {
	opts.PollFast = cmp.Or(opts.PollFast, 50*time.Millisecond)
	opts.PollSlow = cmp.Or(opts.PollSlow, time.Second)
	opts.maxRemoved = cmp.Or(opts.maxRemoved, maxRemoved)
	if opts.newWatcher == nil {
		opts.newWatcher = newWatcher
	}
	if opts.NoWatch {
		opts.newWatcher = func() (*watcher, error) { return noWatcher(), nil }
	}
	path, err := filepath.Abs(root)
	if err != nil {
		return nil, err
	}
	if err := makeDir(path); err != nil {
		return nil, fmt.Errorf("opening the mailboxes' root: %w", err)
	}
	r := &Root{
		opts: opts, path: path, log: cmp.Or(opts.Logger, slog.New(slog.DiscardHandler)),
		ages:     map[string]map[ID]seen{},
		presence: map[string]presenceSeen{},
		reported: map[string]map[string]string{},
		subs:     map[chan struct{}]bool{},
		wakeLoop: make(chan struct{}, 1),
		done:     make(chan struct{}),
	}
	dir, err := r.dir()
	if err != nil {
		return nil, err
	}
	if st, ok := r.info.Sys().(*syscall.Stat_t); ok && os.Geteuid() == 0 && st.Uid != 0 {
		return nil, errors.Join(fmt.Errorf("the mailboxes under %s belong to uid %d: run this as that user (sudo -u '#%d' …); what root writes there the others cannot read",
			path, st.Uid, st.Uid), r.Close())
	}
	r.removeForgotten(dir)
	return r, nil
}

// dir returns the root directory, opened again if the one at path is another.
func (r *Root) dir() (*os.Root, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil, ErrClosed
	}
	info, err := os.Stat(r.path)
	if err != nil {
		return nil, fmt.Errorf("the mailboxes' root: %w", err)
	}
	if r.root != nil && os.SameFile(info, r.info) {
		return r.root, nil
	}
	root, err := os.OpenRoot(r.path)
	if err != nil {
		return nil, fmt.Errorf("the mailboxes' root: %w", err)
	}
	if r.root != nil {
		r.root.Close()
	}
	r.root, r.info = root, info
	return root, nil
}

// openBox opens one bottle's directory. The root belongs to the operator, and no sidecar can change what a slug in it
// leads to; so looking first is enough.
func (r *Root) openBox(bottle string) (*box, error) {
	if err := CheckSlug(bottle); err != nil {
		return nil, err
	}
	dir, err := r.dir()
	if err != nil {
		return nil, err
	}
	info, err := dir.Lstat(bottle)
	if err == nil && !info.IsDir() || errors.Is(err, fs.ErrNotExist) {
		return nil, &bottleError{bottle, r.path}
	}
	if err != nil {
		return nil, fmt.Errorf("bottle %s: %w", bottle, err)
	}
	sub, err := dir.OpenRoot(bottle)
	if err != nil {
		return nil, fmt.Errorf("bottle %s: %w", bottle, err)
	}
	return newBox(sub, bottle, "operator", r.opts.Fault)
}

// Bottles implements Inbox.
func (r *Root) Bottles(ctx context.Context) ([]string, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	dir, err := r.dir()
	if err != nil {
		return nil, err
	}
	f, err := dir.Open(".")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	all, err := f.ReadDir(-1)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", r.path, err)
	}
	slugs := []string{}
	for _, e := range all {
		if e.IsDir() && CheckSlug(e.Name()) == nil {
			slugs = append(slugs, e.Name())
		}
	}
	slices.Sort(slugs)
	return slugs, nil
}

// Entries implements Inbox.
func (r *Root) Entries(ctx context.Context, bottle string) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		b, err := r.openBox(bottle)
		if err != nil {
			yield(Entry{}, err)
			return
		}
		defer b.close()
		names, flooded, err := b.list()
		if err != nil {
			yield(Entry{}, fmt.Errorf("bottle %s: %w", bottle, err))
			return
		}
		l := &listing{Root: r, box: b, open: map[ID]bool{}, answered: map[ID]bool{}, bad: map[string]string{}}
		l.sort(names)
		if !l.each(ctx, yield) || !l.errors(yield) {
			return
		}
		if flooded || l.stopped {
			yield(Entry{}, fmt.Errorf("bottle %s: over %d names or %d MiB in %s: %w",
				bottle, maxNames, maxListBytes>>20, b.path, ErrFlooded))
			if l.crowded() {
				l.forget() // some that were not seen this time may be there: their files' times tell their ages
			}
		} else {
			l.forget()
		}
	}
}

// listing is one run over a mailbox.
type listing struct {
	*Root
	box      *box
	ids      []ID // oldest first
	open     map[ID]bool
	answered map[ID]bool
	bad      map[string]string // by name: the reason
	errs     []error
	bytes    int64 // read
	done     int64 // of those, for what is answered
	stopped  bool
}

func (l *listing) sort(names []string) {
	for _, name := range names {
		switch id, role := splitName(name); role {
		case proposalSuffix, responseSuffix:
			if id == "" {
				l.skip(l.box.bad(name, "the name is not a UUIDv7"))
			} else if role == proposalSuffix {
				l.ids = append(l.ids, id)
				l.open[id] = true
			} else {
				l.answered[id] = true
			}
		}
	}
	slices.Sort(l.ids)
}

func (l *listing) skip(bad *BadError) {
	l.bad[bad.Name] = bad.Reason
	l.errs = append(l.errs, bad)
	l.Root.report(bad)
}

// each returns false when the caller wants no more.
func (l *listing) each(ctx context.Context, yield func(Entry, error) bool) bool {
	for _, id := range l.ids {
		if ctx.Err() != nil {
			yield(Entry{}, context.Cause(ctx))
			return false
		}
		if l.bytes >= maxListBytes {
			l.stopped = true
			return true
		}
		if l.answered[id] && l.done >= maxListBytes/2 { // what nobody fetches does not hide what is open
			l.stopped = true
			continue
		}
		before := l.bytes
		e, ok, err := l.entry(id)
		if l.answered[id] {
			l.done += l.bytes - before
		}
		if err != nil {
			if !yield(Entry{}, err) {
				return false
			}
		} else if ok && !yield(e, nil) {
			return false
		}
	}
	return true
}

func (l *listing) entry(id ID) (Entry, bool, error) {
	p, info, err := l.box.proposal(id, false)
	l.count(info)
	if bad, ok := errors.AsType[*BadError](err); ok {
		l.skip(bad)
		return Entry{}, false, nil
	}
	if errors.Is(err, fs.ErrNotExist) { // archived since
		return Entry{}, false, nil
	}
	if err != nil {
		return Entry{}, false, err
	}
	e := Entry{Proposal: p}
	e.saw(l.seen(l.box.slug, id, info.ModTime()))
	if !l.answered[id] {
		return e, true, nil
	}
	resp, info, err := l.box.response(id, false)
	l.count(info)
	bad, isBad := errors.AsType[*BadError](err)
	switch {
	case isBad:
		e.BadResponse = bad
		if info == nil || settled(info.ModTime()) {
			l.skip(bad)
		}
	case errors.Is(err, fs.ErrNotExist):
		if still, err := l.box.exists(proposalName(id)); !still || err != nil {
			return Entry{}, false, err
		}
	case err != nil:
		return Entry{}, false, err
	default:
		e.Response = &resp
	}
	return e, true, nil
}

// count adds up what was read: nothing of a file that is not regular, or too big.
func (l *listing) count(info fs.FileInfo) {
	if info != nil && info.Mode().IsRegular() && info.Size() <= MaxFile {
		l.bytes += info.Size()
	}
}

// settled tells whether a file was last written long enough ago that it is not in writing any more. Nor is one from the future.
func settled(mtime time.Time) bool {
	return time.Since(mtime).Abs() >= graceBad
}

// errors yields what was skipped, and responses that answer nothing.
func (l *listing) errors(yield func(Entry, error) bool) bool {
	for id := range l.answered {
		if l.open[id] {
			continue
		}
		name := responseName(id)
		info, err := l.box.lstat(name)
		if err != nil || !settled(info.ModTime()) {
			continue
		}
		if there, err := l.box.exists(proposalName(id)); there || err != nil {
			continue
		}
		if once, err := l.box.exists(archived(proposalName(id))); once || err != nil {
			continue // late, or half of an archive: the sidecar's to tidy
		}
		l.skip(l.box.bad(name, "answers no proposal"))
	}
	slices.SortFunc(l.errs, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	for _, err := range l.errs {
		if !yield(Entry{}, err) {
			return false
		}
	}
	return true
}

// crowded tells whether more is remembered than can be there, as of a mailbox that is flooded for ever.
func (l *listing) crowded() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.ages[l.box.slug]) > 2*maxNames
}

// forget drops what is remembered of names that are gone.
func (l *listing) forget() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for id := range l.ages[l.box.slug] {
		if !l.open[id] {
			delete(l.ages[l.box.slug], id)
		}
	}
	for name, reason := range l.reported[l.box.slug] {
		if l.bad[name] != reason {
			delete(l.reported[l.box.slug], name)
		}
	}
}

func (r *Root) report(bad *BadError) {
	r.mu.Lock()
	defer r.mu.Unlock()
	m := r.reported[bad.Bottle]
	if m == nil {
		m = map[string]string{}
		r.reported[bad.Bottle] = m
	}
	if m[bad.Name] == bad.Reason || len(m) >= maxReported {
		return
	}
	m[bad.Name] = bad.Reason
	r.log.Warn("skipping a bad file", "bottle", bad.Bottle, "name", quote(bad.Name), "reason", bad.Reason)
}

// seen is when id was first listed here, and how old its file was then.
func (r *Root) seen(bottle string, id ID, mtime time.Time) seen {
	r.mu.Lock()
	defer r.mu.Unlock()
	m := r.ages[bottle]
	if m == nil {
		m = map[ID]seen{}
		r.ages[bottle] = m
	}
	s, ok := m[id]
	if !ok {
		s = newSeen(mtime)
		m[id] = s
	}
	return s
}

// Get implements Inbox.
func (r *Root) Get(ctx context.Context, bottle string, id ID) (Entry, error) {
	if _, err := ParseID(string(id)); err != nil {
		return Entry{}, fmt.Errorf("%w: %w", err, ErrNotFound)
	}
	if ctx.Err() != nil {
		return Entry{}, context.Cause(ctx)
	}
	b, err := r.openBox(bottle)
	if err != nil {
		return Entry{}, err
	}
	defer b.close()
	f, err := b.get(id)
	if err != nil {
		return Entry{}, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if s, ok := r.ages[bottle][id]; ok {
		f.saw(s)
	}
	return f.Entry, nil
}

// Respond implements Inbox.
func (r *Root) Respond(ctx context.Context, bottle string, resp Response) error {
	resp, err := resp.checked()
	if err != nil {
		return fmt.Errorf("responding to %s: %w", quote(string(resp.ProposalID)), err)
	}
	data, err := encodeResponse(resp)
	if err == nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err == nil {
		err = r.respond(bottle, resp, data)
	}
	if _, ok := errors.AsType[*ConflictError](err); ok {
		return err
	}
	if err != nil {
		return fmt.Errorf("responding to %s: %w", resp.ProposalID, err)
	}
	return nil
}

func (r *Root) respond(bottle string, resp Response, data []byte) (err error) {
	b, err := r.openBox(bottle)
	if err != nil {
		return err
	}
	defer b.close()
	id := resp.ProposalID
	info, err := b.lstat(proposalName(id))
	if errors.Is(err, fs.ErrNotExist) {
		if once, err := b.exists(archived(proposalName(id))); err != nil {
			return err
		} else if once {
			return ErrLate
		}
		return ErrNotFound
	}
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return b.bad(proposalName(id), "not a regular file")
	}
	err = b.put("respond", responseName(id), data)
	if errors.Is(err, fs.ErrExist) {
		return r.lost(b, id)
	}
	if err != nil {
		return err
	}
	return r.won(b, resp)
}

// Undone implements Inbox.
func (r *Root) Undone(ctx context.Context, bottle string, id ID) error {
	err := r.undone(ctx, bottle, id)
	if err != nil {
		return fmt.Errorf("saying that %s was taken back: %w", quote(string(id)), err)
	}
	return nil
}

func (r *Root) undone(ctx context.Context, bottle string, id ID) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if _, err := ParseID(string(id)); err != nil {
		return fmt.Errorf("%w: %w", err, ErrNotFound)
	}
	b, err := r.openBox(bottle)
	if err != nil {
		return err
	}
	defer b.close()
	f, err := b.get(id)
	switch {
	case err != nil:
		return err
	case f.Response == nil:
		return errors.New("it has no response yet")
	case !f.Undone.IsZero(): // perhaps not durable yet
		return b.fault.do("undone.syncdir", b.sync.do)
	}
	if err := b.put("undone", undoneName(id), nil); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

// lost tells who won. The winner may have crashed before its response was durable, and this answer says that it stands.
func (r *Root) lost(b *box, id ID) error {
	if err := b.fault.do("respond.syncdir", b.dir.Sync); err != nil {
		return err
	}
	f, err := b.get(id)
	switch {
	case err != nil:
		return err
	case f.Response != nil:
		return &ConflictError{ID: id, Response: *f.Response}
	case f.BadResponse != nil:
		return fmt.Errorf("another program's response stands in the way; if it is not being written, remove it: %w", f.BadResponse)
	}
	return errors.New("another program's response was there and is gone: look again")
}

// won makes sure that the link created the answer. If another response was archived between our look at the proposal
// and the link, the name was free again and ours is late. The sidecar moves the proposal before the response, so
// while the proposal is still there nothing was archived.
func (r *Root) won(b *box, resp Response) error {
	id := resp.ProposalID
	if still, err := b.exists(proposalName(id)); still || err != nil {
		return err
	}
	f, err := b.get(id)
	if errors.Is(err, ErrNotFound) {
		return fmt.Errorf("the proposal was removed meanwhile: %w", err)
	}
	if err != nil {
		return err
	}
	if f.Response != nil && f.Response.Equal(resp) {
		return nil // delivered and archived already
	}
	return ErrLate
}

const (
	forgotten    = ".forgotten-"
	maxRemoved   = 1 << 18 // names that Forget removes: an honest mailbox has some ten thousands
	shareRemoved = 1 << 12 // of what it left, those that each command after it removes
)

// Forget implements Inbox. The directory is first renamed to a name that is no bottle's, so that a sidecar that starts
// meanwhile gets a new one.
func (r *Root) Forget(ctx context.Context, bottle string) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("forgetting bottle %s: %w", bottle, err)
		}
	}()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	b, err := r.openBox(bottle)
	if err != nil {
		return err
	}
	defer b.close()
	lock, err := b.lock()
	if errors.Is(err, ErrLocked) || errors.Is(err, errMoved) {
		return fmt.Errorf("%w; stop it first", ErrLocked)
	}
	if lock != nil {
		defer lock.Close()
	}
	if err != nil && !errors.Is(err, ErrBad) { // no sidecar can hold what is not a file
		return err
	}
	dir, err := r.dir()
	if err != nil {
		return err
	}
	gone := forgotten + bottle + "-" + string(NewID())
	if err := dir.Rename(bottle, gone); err != nil {
		gone = bottle // a mount: empty it where it is
	}
	if err := r.removeTree(dir, gone, r.opts.maxRemoved); err != nil {
		left := filepath.Join(r.path, gone)
		return fmt.Errorf("what is left is in %s: %w; stop its container, then rm -rf %s", left, err, left)
	}
	r.mu.Lock()
	delete(r.ages, bottle)
	delete(r.presence, bottle)
	delete(r.reported, bottle)
	r.mu.Unlock()
	f, err := dir.Open(".")
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// removeForgotten goes on with what Forget left, after a crash or because there was too much.
func (r *Root) removeForgotten(dir *os.Root) {
	f, err := dir.Open(".")
	if err != nil {
		return
	}
	defer f.Close()
	names, _ := f.Readdirnames(-1)
	for _, name := range names {
		if strings.HasPrefix(name, forgotten) {
			if err := r.removeTree(dir, name, shareRemoved); err != nil {
				r.log.Warn("removing a forgotten bottle failed", "name", quote(name), "err", err)
			}
		}
	}
}

// removeTree removes what a sidecar left. That may be deeper than files can be open: a directory that is not empty is moved up. And
// it may become more all the time, if something still writes there: so it gives up when it has handled that many names.
func (r *Root) removeTree(dir *os.Root, name string, most int) error {
	top, err := dir.OpenRoot(name) // no link leads out of it, whatever a sidecar does meanwhile
	if err != nil {
		return unlessGone(err)
	}
	defer top.Close()
	// batch removes some of what is in a directory, and gives those directories to full that are not empty.
	batch := func(in string, full func(name string) error) (some bool, err error) {
		names, err := someNames(top, in)
		for _, name := range names {
			if most--; most < 0 {
				return true, errors.New("there is more than is removed at once, perhaps more all the time")
			}
			if r.removing != nil {
				r.removing(top)
			}
			name = filepath.Join(in, name)
			err := top.Remove(name)
			if notEmpty(err) {
				err = full(name)
			}
			if unlessGone(err) != nil {
				return true, err
			}
		}
		return len(names) > 0, unlessGone(err)
	}
	moveUp := func(name string) error { return top.Rename(name, string(NewID())) }
	flatten := func(name string) error { _, err := batch(name, moveUp); return err }
	for {
		if some, err := batch(".", flatten); err != nil {
			return err
		} else if some {
			continue
		}
		if err := dir.Remove(name); !notEmpty(err) { // a mount cannot be removed, and is empty now
			return unlessGone(err)
		}
	}
}

// unlessGone is err, unless that says that there is nothing.
func unlessGone(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func notEmpty(err error) bool {
	return errors.Is(err, syscall.ENOTEMPTY) || errors.Is(err, syscall.EEXIST)
}

func someNames(root *os.Root, dir string) ([]string, error) {
	f, err := root.OpenFile(dir, os.O_RDONLY|syscall.O_DIRECTORY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	names, err := f.Readdirnames(1024)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return names, err
}

// Close implements Inbox.
func (r *Root) Close() error {
	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		r.loop.Wait()
		return nil
	}
	r.closed = true
	close(r.done)
	for ch := range r.subs {
		delete(r.subs, ch)
		close(ch)
	}
	r.mu.Unlock()
	r.loop.Wait()
	return r.root.Close()
}
