package queue

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"sync"
	"time"
)

// Mem keeps mailboxes in memory: the backend for tests of everything that uses one. It is the Inbox; Mailbox gives the
// other side. Time in it is time.Now, so that it works in a synctest bubble.
type Mem struct {
	mu    sync.Mutex
	boxes map[string]*memBox
	subs  map[chan struct{}]bool
	fault Fault
}

type memBox struct {
	entries map[ID]*memEntry
	order   []ID // as archived
	open    int  // mailboxes that are open
	waiting map[ID]int
	at      time.Time // of the last sign of a sidecar
}

type memEntry struct {
	p         Proposal
	resp      *Response     // set once
	answered  chan struct{} // closed when resp is set
	arrived   time.Time
	delivered time.Time
	undone    time.Time
}

// NewMem returns an empty Mem.
func NewMem() *Mem {
	return &Mem{boxes: map[string]*memBox{}, subs: map[chan struct{}]bool{}}
}

// SetFault injects faults into the steps "put", "respond", "undone" and "archive".
func (m *Mem) SetFault(f Fault) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fault = f
}

// Mailbox opens the mailbox of a bottle. It panics if slug is none. What was stored stays when it is closed.
func (m *Mem) Mailbox(slug string) Mailbox {
	if err := CheckSlug(slug); err != nil {
		panic(err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	b := m.boxes[slug]
	if b == nil {
		b = &memBox{entries: map[ID]*memEntry{}, waiting: map[ID]int{}}
		m.boxes[slug] = b
	}
	b.open++
	b.at = time.Now()
	m.ringLocked()
	return &memMailbox{m: m, b: b, slug: slug, done: make(chan struct{})}
}

func (m *Mem) ringLocked() {
	for ch := range m.subs {
		select {
		case ch <- struct{}{}:
		default:
		}
	}
}

// stepLocked changes what is stored by act, with the faults injected; a reply may be lost after act.
func (m *Mem) stepLocked(name string, act func()) error {
	return m.fault.do(name, func() error {
		act()
		m.ringLocked()
		return nil
	})
}

func (e *memEntry) entry() Entry {
	out := Entry{Proposal: e.p, Since: e.arrived, Age: max(0, time.Since(e.arrived)), Delivered: e.delivered}
	if e.resp != nil {
		r := *e.resp
		out.Response, out.Undone = &r, e.undone
	}
	return out
}

func (b *memBox) listLocked() []Entry {
	var all []Entry
	for _, id := range slices.Sorted(maps.Keys(b.entries)) {
		if e := b.entries[id]; e.delivered.IsZero() {
			all = append(all, e.entry())
		}
	}
	return all
}

func (b *memBox) getLocked(id ID) (*memEntry, error) {
	if e := b.entries[id]; e != nil {
		return e, nil
	}
	return nil, fmt.Errorf("%s: %w", quote(string(id)), ErrNotFound)
}

type memMailbox struct {
	m    *Mem
	b    *memBox
	slug string
	once sync.Once
	done chan struct{}
}

func (x *memMailbox) isClosed() bool {
	select {
	case <-x.done:
		return true
	default:
		return false
	}
}

// lock returns the unlock, if the mailbox is open.
func (x *memMailbox) lock(ctx context.Context) (unlock func(), err error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	x.m.mu.Lock()
	if x.isClosed() {
		x.m.mu.Unlock()
		return nil, ErrClosed
	}
	x.b.at = time.Now()
	return x.m.mu.Unlock, nil
}

func (x *memMailbox) Put(ctx context.Context, p Proposal) error {
	p, err := p.checked(x.slug)
	if err == nil {
		_, err = encodeProposal(p)
	}
	if err != nil {
		return fmt.Errorf("storing proposal %s: %w", quote(string(p.ID)), err)
	}
	unlock, err := x.lock(ctx)
	if err != nil {
		return fmt.Errorf("storing proposal %s: %w", p.ID, err)
	}
	defer unlock()
	if e := x.b.entries[p.ID]; e != nil {
		if !e.p.same(p) {
			return fmt.Errorf("storing proposal %s: the id stands for another proposal already", p.ID)
		}
		return nil
	}
	return x.m.stepLocked("put", func() { x.b.entries[p.ID] = &memEntry{p: p, arrived: time.Now(), answered: make(chan struct{})} })
}

func (x *memMailbox) Get(ctx context.Context, id ID) (Entry, error) {
	unlock, err := x.lock(ctx)
	if err != nil {
		return Entry{}, err
	}
	defer unlock()
	e, err := x.b.getLocked(id)
	if err != nil {
		return Entry{}, err
	}
	return e.entry(), nil
}

func (x *memMailbox) Wait(ctx context.Context, id ID) (Response, error) {
	x.count(id, 1)
	defer x.count(id, -1)
	unlock, err := x.lock(context.WithoutCancel(ctx))
	if err != nil {
		return Response{}, err
	}
	e, err := x.b.getLocked(id)
	unlock()
	if err != nil {
		return Response{}, err
	}
	select {
	case <-e.answered: // an answer that is there is returned, whatever else has happened
		return *e.resp, nil
	default:
	}
	select {
	case <-e.answered:
		return *e.resp, nil
	case <-x.done:
		return Response{}, ErrClosed
	case <-ctx.Done():
		return Response{}, context.Cause(ctx)
	}
}

// count keeps what Presence tells.
func (x *memMailbox) count(id ID, n int) {
	x.m.mu.Lock()
	defer x.m.mu.Unlock()
	if x.b.waiting[id] += n; x.b.waiting[id] <= 0 {
		delete(x.b.waiting, id)
	}
	x.b.at = time.Now()
}

func (x *memMailbox) Entries(ctx context.Context) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		unlock, err := x.lock(ctx)
		if err != nil {
			yield(Entry{}, err)
			return
		}
		all := x.b.listLocked()
		unlock()
		yieldAll(all, yield)
	}
}

func (x *memMailbox) Pending() (n int) {
	x.m.mu.Lock()
	defer x.m.mu.Unlock()
	for _, e := range x.b.listLocked() {
		if e.Response == nil {
			n++
		}
	}
	return n
}

func yieldAll(all []Entry, yield func(Entry, error) bool) {
	for _, e := range all {
		if !yield(e, nil) {
			return
		}
	}
}

func (x *memMailbox) Recent(ctx context.Context, since time.Time) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		unlock, err := x.lock(ctx)
		if err != nil {
			yield(Entry{}, err)
			return
		}
		var all []Entry
		for _, id := range x.b.order {
			if e := x.b.entries[id]; !e.delivered.Before(since) {
				all = append(all, e.entry())
			}
		}
		unlock()
		yieldAll(all, yield)
	}
}

func (x *memMailbox) Archive(ctx context.Context, id ID) error {
	unlock, err := x.lock(ctx)
	if err == nil {
		defer unlock()
		err = x.archiveLocked(id)
	}
	if err != nil {
		return fmt.Errorf("archiving %s: %w", quote(string(id)), err)
	}
	return nil
}

func (x *memMailbox) archiveLocked(id ID) error {
	e, err := x.b.getLocked(id)
	if err != nil {
		return err
	}
	if e.resp == nil {
		return errors.New("it has no response yet")
	}
	if !e.delivered.IsZero() {
		return nil
	}
	return x.m.stepLocked("archive", func() {
		e.delivered = time.Now()
		x.b.order = append(x.b.order, id)
	})
}

func (x *memMailbox) Close() error {
	x.once.Do(func() {
		x.m.mu.Lock()
		defer x.m.mu.Unlock()
		close(x.done)
		x.b.open--
		x.m.ringLocked()
	})
	return nil
}

// lockBox is for the Inbox's methods.
func (m *Mem) lockBox(ctx context.Context, bottle string) (b *memBox, unlock func(), err error) {
	if ctx.Err() != nil {
		return nil, nil, context.Cause(ctx)
	}
	if err := CheckSlug(bottle); err != nil {
		return nil, nil, err
	}
	m.mu.Lock()
	if b = m.boxes[bottle]; b == nil {
		m.mu.Unlock()
		return nil, nil, &bottleError{bottle, "memory"}
	}
	return b, m.mu.Unlock, nil
}

// Bottles implements Inbox.
func (m *Mem) Bottles(ctx context.Context) ([]string, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Sorted(maps.Keys(m.boxes)), nil
}

// Entries implements Inbox.
func (m *Mem) Entries(ctx context.Context, bottle string) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		b, unlock, err := m.lockBox(ctx, bottle)
		if err != nil {
			yield(Entry{}, err)
			return
		}
		all := b.listLocked()
		unlock()
		yieldAll(all, yield)
	}
}

// Get implements Inbox.
func (m *Mem) Get(ctx context.Context, bottle string, id ID) (Entry, error) {
	b, unlock, err := m.lockBox(ctx, bottle)
	if err != nil {
		return Entry{}, err
	}
	defer unlock()
	e, err := b.getLocked(id)
	if err != nil {
		return Entry{}, err
	}
	return e.entry(), nil
}

// Respond implements Inbox.
func (m *Mem) Respond(ctx context.Context, bottle string, r Response) error {
	r, err := r.checked()
	if err == nil {
		_, err = encodeResponse(r)
	}
	if err == nil {
		err = m.respond(ctx, bottle, r)
	}
	if _, ok := errors.AsType[*ConflictError](err); ok {
		return err
	}
	if err != nil {
		return fmt.Errorf("responding to %s: %w", quote(string(r.ProposalID)), err)
	}
	return nil
}

func (m *Mem) respond(ctx context.Context, bottle string, r Response) error {
	b, unlock, err := m.lockBox(ctx, bottle)
	if err != nil {
		return err
	}
	defer unlock()
	e, err := b.getLocked(r.ProposalID)
	switch {
	case err != nil:
		return ErrNotFound
	case !e.delivered.IsZero():
		return ErrLate
	case e.resp != nil:
		return &ConflictError{ID: r.ProposalID, Response: *e.resp}
	}
	return m.stepLocked("respond", func() {
		e.resp = &r
		close(e.answered)
	})
}

// Undone implements Inbox.
func (m *Mem) Undone(ctx context.Context, bottle string, id ID) error {
	b, unlock, err := m.lockBox(ctx, bottle)
	if err == nil {
		defer unlock()
		err = m.undoneLocked(b, id)
	}
	if err != nil {
		return fmt.Errorf("saying that %s was taken back: %w", quote(string(id)), err)
	}
	return nil
}

func (m *Mem) undoneLocked(b *memBox, id ID) error {
	e, err := b.getLocked(id)
	if err != nil {
		return err
	}
	if e.resp == nil {
		return errors.New("it has no response yet")
	}
	if !e.undone.IsZero() {
		return nil
	}
	return m.stepLocked("undone", func() { e.undone = time.Now() })
}

// Presence implements Inbox.
func (m *Mem) Presence(ctx context.Context, bottle string) (Presence, error) {
	b, unlock, err := m.lockBox(ctx, bottle)
	if err != nil {
		return Presence{}, err
	}
	defer unlock()
	at := b.at
	if b.open > 0 {
		at = time.Now()
	}
	if time.Since(at) > presenceMax {
		return Presence{At: at, Waiting: map[ID]int{}}, nil
	}
	return Presence{Known: true, Waiting: maps.Clone(b.waiting), At: at}, nil
}

// Changes implements Inbox.
func (m *Mem) Changes(ctx context.Context) (<-chan struct{}, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	ch := make(chan struct{}, 1)
	ch <- struct{}{}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.subs[ch] = true
	context.AfterFunc(ctx, func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.dropLocked(ch)
	})
	return ch, nil
}

func (m *Mem) dropLocked(ch chan struct{}) {
	if m.subs[ch] {
		delete(m.subs, ch)
		close(ch)
	}
}

// Forget implements Inbox.
func (m *Mem) Forget(ctx context.Context, bottle string) error {
	b, unlock, err := m.lockBox(ctx, bottle)
	if err != nil {
		return fmt.Errorf("forgetting bottle %s: %w", bottle, err)
	}
	defer unlock()
	if b.open > 0 {
		return fmt.Errorf("forgetting bottle %s: %w; stop it first", bottle, ErrLocked)
	}
	delete(m.boxes, bottle)
	m.ringLocked()
	return nil
}

// Close implements Inbox: it ends what Changes returned. Mem stays usable, for whoever opens the other side of it again.
func (m *Mem) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for ch := range m.subs {
		m.dropLocked(ch)
	}
	return nil
}

// These are the backends.
var (
	_ Mailbox = (*Dir)(nil)
	_ Mailbox = (*memMailbox)(nil)
	_ Inbox   = (*Root)(nil)
	_ Inbox   = (*Mem)(nil)
)
