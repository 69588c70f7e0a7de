package queue

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"
)

// Options configure OpenDir. Zero values mean what is said here.
type Options struct {
	Slug   string       // the bottle; required
	Logger *slog.Logger // if nil, nothing is logged

	LockWait time.Duration // how long to wait for another sidecar to end; if zero, 10 s
	PollFast time.Duration // while calls wait and no event has proved itself; if zero, 50 ms
	PollSlow time.Duration // while calls wait and one has; if zero, 1 s
	NoWatch  bool          // poll only

	// What is kept of processed/: pairs no older than KeepFor (if zero, 30 days) and no more than KeepPairs (if zero,
	// 10,000). An answer that nobody came for is kept for KeepFor too; when the mailbox is near its limit of
	// names the oldest go sooner, but never before KeepUndelivered (if zero, 7 days).
	KeepFor         time.Duration
	KeepPairs       int
	KeepUndelivered time.Duration

	Fault Fault // for tests

	newWatcher func() (*watcher, error) // if nil, fsnotify
}

// Dir is the Mailbox in a directory, <root>/<slug>:
//
//	<id>.proposal.json     by the sidecar; complete or absent
//	<id>.response.json     by the operator side; created atomically, first one wins
//	processed/             both, once the answer went out
//	presence.json          who waits; a hint
//	.lock                  held by the running sidecar
//
// docs/mailbox.md says the rest. One goroutine looks at the directory, when an event, a poll or a caller asks for
// it; a waiting call is an entry in a map, so a look costs the same however many wait.
type Dir struct {
	opts Options
	path string
	log  *slog.Logger

	boxMu sync.RWMutex // held for reading by whoever uses box, for writing to replace it
	box   *box         // nil: the directory is gone
	flock *os.File     // the lock of box

	moves sync.RWMutex // held for reading by Archive, for writing by whoever else moves or removes an answered pair

	mu       sync.Mutex
	closed   bool
	waiters  map[ID][]chan<- *result
	left     map[ID]time.Time // nobody waits since then; see presence
	moved    bool             // waiters changed since presence.json was written
	open     map[ID]*standing // proposals outside processed/
	bad      map[string]*badName
	flooded  bool
	scanErr  error // why the last look failed
	health   Health
	asked    []chan struct{}
	moving   map[ID]int // calls of Archive
	delivers history

	kick chan struct{} // wakes the loop: somebody asked, or its deadlines changed
	done chan struct{} // closed by Close
	loop sync.WaitGroup
}

type result struct {
	r   Response
	err error
}

// standing is a proposal outside processed/. The loop replaces it, never alters it.
type standing struct {
	p        Proposal
	seen     seen
	resp     *Response
	respSeen seen
}

// OpenDir opens dir, which it creates when missing, as the mailbox of opts.Slug. It fails with ErrLocked when another
// sidecar still has it after opts.LockWait, with the cause of ctx when that ends before, and with the mend when the directory
// cannot be written as a mailbox must be.
func OpenDir(ctx context.Context, dir string, opts Options) (*Dir, error) {
	if err := CheckSlug(opts.Slug); err != nil {
		return nil, err
	}
	opts.LockWait = cmp.Or(opts.LockWait, 10*time.Second)
	opts.PollFast = cmp.Or(opts.PollFast, 50*time.Millisecond)
	opts.PollSlow = cmp.Or(opts.PollSlow, time.Second)
	opts.KeepFor = cmp.Or(opts.KeepFor, 30*24*time.Hour)
	opts.KeepPairs = cmp.Or(opts.KeepPairs, 10_000)
	opts.KeepUndelivered = cmp.Or(opts.KeepUndelivered, 7*24*time.Hour)
	if opts.newWatcher == nil {
		opts.newWatcher = newWatcher
	}
	if opts.NoWatch {
		opts.newWatcher = func() (*watcher, error) { return noWatcher(), nil }
	}
	path, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	d := &Dir{
		opts: opts, path: path,
		log:     cmp.Or(opts.Logger, slog.New(slog.DiscardHandler)).With("bottle", opts.Slug),
		waiters: map[ID][]chan<- *result{},
		left:    map[ID]time.Time{},
		open:    map[ID]*standing{},
		bad:     map[string]*badName{},
		moving:  map[ID]int{},
		kick:    make(chan struct{}, 1),
		done:    make(chan struct{}),
	}
	if err := makeDir(path); err != nil {
		return nil, fmt.Errorf("opening mailbox: %w", err)
	}
	if err := d.attach(ctx, opts.LockWait); err != nil {
		return nil, err
	}
	w, err := opts.newWatcher()
	if err != nil {
		d.log.Warn("no file events, polling only", "err", err)
	}
	l := &dirLoop{Dir: d, w: w}
	l.watch()
	l.look(byCaller)
	d.loop.Go(l.run)
	return d, nil
}

// makeDir creates a mailbox directory, private, or shared with the group where its parent is.
func makeDir(path string) error {
	if info, err := os.Stat(path); err == nil {
		if !info.IsDir() {
			return fmt.Errorf("%s is not a directory; mount the mailbox as a directory, never a file", path)
		}
		return nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	parent, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	info, err := parent.Stat()
	if err == nil && info.Mode()&fs.ModeSetgid != 0 {
		err = os.Chmod(path, info.Mode()&(fs.ModeSetgid|0o770)|0o700)
	}
	return errors.Join(err, parent.Sync(), parent.Close())
}

// attach opens the directory at path, locks it and reads what processed/ holds.
func (d *Dir) attach(ctx context.Context, wait time.Duration) error {
	root, err := os.OpenRoot(d.path)
	if err != nil {
		return fmt.Errorf("opening mailbox: %w", err)
	}
	b, err := newBox(root, d.opts.Slug, "sidecar", d.opts.Fault)
	if err != nil {
		return fmt.Errorf("opening mailbox: %w", err)
	}
	lock, err := b.lockWait(ctx, 0)
	if errors.Is(err, ErrLocked) && wait > 0 {
		d.log.Info("another sidecar has the mailbox; waiting for it to end", "dir", d.path, "at_most", wait)
		lock, err = b.lockWait(ctx, wait)
	}
	if err != nil {
		if !errors.Is(err, ErrLocked) && ctx.Err() == nil {
			err = cmp.Or(b.probe(), err) // says more
		}
		return errors.Join(err, b.close())
	}
	past, err := loadHistory(b)
	if err == nil {
		err = b.probe()
	}
	if err != nil {
		err = errors.Join(err, lock.Close(), b.close())
		return err
	}
	if names, _, err := b.list(); err == nil {
		b.removeLeft(names, true)
	}
	d.boxMu.Lock()
	d.box, d.flock = b, lock
	d.boxMu.Unlock()
	d.mu.Lock()
	d.delivers = past
	d.mu.Unlock()
	return nil
}

// detach lets go of a directory that is no longer the one at path, or of the last one.
func (d *Dir) detach() error {
	d.boxMu.Lock()
	defer d.boxMu.Unlock()
	if d.box == nil {
		return nil
	}
	err := errors.Join(d.flock.Close(), d.box.close())
	d.box, d.flock = nil, nil
	return err
}

// use calls f with the directory, if it is still the one at path; else the loop first looks for a new one.
func (d *Dir) use(ctx context.Context, f func(*box) error) error {
	for range 2 {
		d.mu.Lock()
		closed := d.closed
		d.mu.Unlock()
		if closed {
			return ErrClosed
		}
		if done, err := d.useNow(f); done {
			return err
		}
		if err := d.refresh(ctx); err != nil {
			return err
		}
	}
	return d.goneErr()
}

func (d *Dir) useNow(f func(*box) error) (done bool, err error) {
	d.boxMu.RLock()
	defer d.boxMu.RUnlock()
	if d.box == nil || !d.box.current(d.path) {
		return false, nil
	}
	return true, f(d.box)
}

func (d *Dir) goneErr() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return ErrClosed
	}
	if d.scanErr != nil {
		return d.scanErr
	}
	return d.vanished()
}

// Put implements Mailbox.
func (d *Dir) Put(ctx context.Context, p Proposal) error {
	p, err := p.checked(d.opts.Slug)
	if err != nil {
		return fmt.Errorf("storing proposal %s: %w", quote(string(p.ID)), err)
	}
	data, err := encodeProposal(p)
	if err == nil {
		err = d.use(ctx, func(b *box) error { return d.put(b, p, data) })
	}
	if err != nil {
		return fmt.Errorf("storing proposal %s: %w", p.ID, err)
	}
	return nil
}

func (d *Dir) put(b *box, p Proposal, data []byte) error {
	d.mu.Lock()
	flooded := d.flooded
	_, answered := d.delivers.at[p.ID]
	answered = answered || d.moving[p.ID] > 0
	d.mu.Unlock()
	if flooded {
		return fmt.Errorf("%s holds over %d names: %w", d.path, maxNames, ErrFlooded)
	}
	if !answered {
		err := b.put("put", proposalName(p.ID), data)
		if err == nil {
			d.mu.Lock()
			defer d.mu.Unlock()
			if d.open[p.ID] == nil { // else the loop was quicker, and may have seen an answer
				d.open[p.ID] = &standing{p: p, seen: newSeen(time.Now())}
			}
			return nil
		}
		if !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	// A repeat, perhaps of something that was stored and not yet durable.
	was, err := b.lookup(p.ID)
	if err != nil {
		return err
	}
	if !was.Proposal.same(p) {
		return errors.New("the id stands for another proposal already")
	}
	return b.fault.do("put.syncdir", b.sync.do)
}

// Get implements Mailbox.
func (d *Dir) Get(ctx context.Context, id ID) (Entry, error) {
	if _, err := ParseID(string(id)); err != nil {
		return Entry{}, fmt.Errorf("%w: %w", err, ErrNotFound)
	}
	var f found
	err := d.use(ctx, func(b *box) (err error) {
		f, err = b.get(id)
		return err
	})
	if err != nil {
		return Entry{}, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if s := d.open[id]; s != nil {
		f.saw(s.seen)
	}
	if at, ok := d.delivers.at[id]; ok && f.archived {
		f.Delivered = at
	}
	return f.Entry, nil
}

// get is lookup for callers that want a whole entry.
func (b *box) get(id ID) (found, error) {
	f, err := b.lookup(id)
	if err == nil && f.archived && f.Response == nil {
		err = f.BadResponse
	}
	return f, err
}

// Wait implements Mailbox.
func (d *Dir) Wait(ctx context.Context, id ID) (Response, error) {
	ch, res := d.join(ctx, id)
	if ch != nil {
		defer d.leave(id, ch)
	}
	if res == nil { // from here on little of the stack is in use, so that the runtime can take the rest back
		select {
		case res = <-ch:
		case <-ctx.Done():
			res = &result{err: context.Cause(ctx)}
		case <-d.done:
			res = &result{err: ErrClosed}
		}
	}
	return res.r, res.err
}

// join has id waited for, or tells its result. The caller must leave with the channel, if there is one.
func (d *Dir) join(ctx context.Context, id ID) (chan *result, *result) {
	if _, err := ParseID(string(id)); err != nil {
		return nil, &result{err: fmt.Errorf("%w: %w", err, ErrNotFound)}
	}
	ch := make(chan *result, 1)
	d.mu.Lock()
	if d.closed {
		d.mu.Unlock()
		return nil, &result{err: ErrClosed}
	}
	first := len(d.waiters) == 0
	d.waiters[id] = append(d.waiters[id], ch)
	delete(d.left, id)
	d.moved = true
	d.mu.Unlock()
	if first {
		d.wake() // to poll, from now on
	}

	// What came before that no event will announce.
	resp, err := d.now(ctx, id)
	switch {
	case err != nil && (errors.Is(err, ErrNotFound) || errors.Is(err, ErrBad) || !d.isOpen(id)):
		return ch, &result{err: err}
	case err == nil && resp != nil:
		return ch, &result{r: *resp}
	} // an error else: the directory is gone for a while, and the answer comes when it is back
	return ch, nil
}

// now returns the response that there is; of one that is not archived, which many may wait for, all get the same copy.
func (d *Dir) now(ctx context.Context, id ID) (*Response, error) {
	d.mu.Lock()
	s := d.open[id]
	d.mu.Unlock()
	if s != nil {
		return s.resp, nil
	}
	e, err := d.Get(ctx, id)
	return e.Response, err
}

func (d *Dir) isOpen(id ID) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return !d.closed && d.open[id] != nil
}

func (d *Dir) leave(id ID, ch chan<- *result) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if i := slices.Index(d.waiters[id], ch); i >= 0 {
		d.waiters[id] = slices.Delete(d.waiters[id], i, i+1)
		if len(d.waiters[id]) == 0 {
			delete(d.waiters, id)
			if s := d.open[id]; s != nil && s.resp == nil {
				d.left[id] = time.Now()
			}
		}
		d.moved = true
	}
	if len(d.waiters) == 0 {
		d.wake() // to say so, and to poll no more
	}
}

// Entries implements Mailbox. Bad files are errors in the sequence, and so is ErrFlooded.
func (d *Dir) Entries(ctx context.Context) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		if err := d.refresh(ctx); err != nil {
			yield(Entry{}, err)
			return
		}
		d.mu.Lock()
		all := make([]Entry, 0, len(d.open))
		for _, s := range d.open {
			e := Entry{Proposal: s.p, Response: s.resp}
			e.saw(s.seen)
			all = append(all, e)
		}
		var errs []error
		for _, b := range d.bad {
			if b.ripe() {
				errs = append(errs, b.err)
			}
		}
		if d.flooded {
			errs = append(errs, fmt.Errorf("%s holds over %d names: %w", d.path, maxNames, ErrFlooded))
		}
		if d.scanErr != nil {
			errs = append(errs, d.scanErr)
		}
		d.mu.Unlock()
		slices.SortFunc(all, func(a, b Entry) int { return cmp.Compare(a.Proposal.ID, b.Proposal.ID) })
		slices.SortFunc(errs, func(a, b error) int { return cmp.Compare(a.Error(), b.Error()) })
		for _, e := range all {
			if !yield(e, nil) {
				return
			}
		}
		for _, err := range errs {
			if !yield(Entry{}, err) {
				return
			}
		}
	}
}

// Pending implements Mailbox.
func (d *Dir) Pending() (n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, s := range d.open {
		if s.resp == nil {
			n++
		}
	}
	return n
}

// Recent implements Mailbox. It knows when each answer went out without reading processed/, so its cost is that of
// what it lists.
func (d *Dir) Recent(ctx context.Context, since time.Time) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		d.mu.Lock()
		ids := d.delivers.since(since)
		d.mu.Unlock()
		for _, id := range ids {
			e, err := d.Get(ctx, id)
			if errors.Is(err, ErrNotFound) {
				continue
			}
			if !yield(e, err) || err != nil && !errors.Is(err, ErrBad) {
				return
			}
		}
	}
}

// Archive implements Mailbox. The proposal moves first: a response that stands outside without its proposal is then either
// half of an Archive that a crash cut short, which the next look completes, or late; and an operator who created
// one finds out which by looking for the proposal again.
func (d *Dir) Archive(ctx context.Context, id ID) error {
	err := d.use(ctx, func(b *box) error {
		d.moves.RLock()
		defer d.moves.RUnlock()
		sure, end := d.move(id)
		defer end()
		if !sure {
			f, err := b.get(id)
			if err != nil {
				return err
			}
			if f.Response == nil {
				return errors.New("it has no response yet")
			}
		}
		return d.archive(b, id, sure)
	})
	if err != nil {
		return fmt.Errorf("archiving %s: %w", quote(string(id)), err)
	}
	return nil
}

// move keeps the loop from wondering about a response without its proposal. It is sure of id when both files have been read,
// are where they were, and nobody else is about to move them.
func (d *Dir) move(id ID) (sure bool, end func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := d.open[id]
	sure = s != nil && s.resp != nil && d.moving[id] == 0
	d.moving[id]++
	return sure, func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		if d.moving[id]--; d.moving[id] == 0 {
			delete(d.moving, id)
		}
	}
}

// archive needs moves held, and a valid response. Two of one id may run at once; only one of them is sure.
func (d *Dir) archive(b *box, id ID, sure bool) error {
	if info, err := b.root.Lstat(processed); err != nil || !info.IsDir() {
		if err := b.makeProcessed(); err != nil {
			return err
		}
	}
	if err := b.fault.do("archive.proposal", func() error { return b.moveTo(proposalName(id), proposalName(id)) }); err != nil {
		return err
	}
	// No power cut may leave the response moved and the proposal not: it would look open.
	if err := b.fault.do("archive.sync-proposal", b.syncBoth); err != nil {
		return err
	}
	there := false
	if !sure {
		var err error
		if there, err = b.exists(archived(responseName(id))); err != nil {
			return err
		}
	}
	if !there {
		if err := b.fault.do("archive.response", func() error { return b.moveTo(responseName(id), responseName(id)) }); err != nil {
			return err
		}
	}
	if err := b.fault.do("archive.sync-response", b.syncBoth); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.delivers.add(id, time.Now())
	delete(d.open, id)
	return nil
}

// Close implements Mailbox.
func (d *Dir) Close() error {
	d.mu.Lock()
	if d.closed {
		d.mu.Unlock()
		d.loop.Wait()
		return nil
	}
	d.closed = true
	close(d.done)
	d.mu.Unlock()
	d.loop.Wait()
	return d.detach()
}

func (d *Dir) wake() {
	select {
	case d.kick <- struct{}{}:
	default:
	}
}

// refresh returns when the loop has looked once more, from now on.
func (d *Dir) refresh(ctx context.Context) error {
	ch := make(chan struct{})
	d.mu.Lock()
	if d.closed {
		d.mu.Unlock()
		return ErrClosed
	}
	d.asked = append(d.asked, ch)
	d.mu.Unlock()
	d.wake()
	select {
	case <-ch:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-d.done:
		return ErrClosed
	}
}

// presence says who waits, and for how long that holds if nobody comes or goes; zero: for ever. A call waits in steps, and is no waiter
// between two of them: whoever has just left counts as one who waits.
func (d *Dir) presence() (data []byte, until time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.moved = false
	n := make(map[ID]int, len(d.waiters)+len(d.left))
	for id, at := range d.left {
		if at = at.Add(presenceSoon); !time.Now().Before(at) {
			delete(d.left, id)
			continue
		}
		n[id] = 1
		if until.IsZero() || at.Before(until) {
			until = at
		}
	}
	for id, w := range d.waiters {
		n[id] = len(w)
	}
	return presenceJSON(n), until
}

func (d *Dir) writePresence(data []byte) error {
	d.boxMu.RLock()
	defer d.boxMu.RUnlock()
	if d.box == nil {
		return nil
	}
	return d.box.replace(presenceFile, data)
}
