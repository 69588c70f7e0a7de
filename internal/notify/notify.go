// Package notify tells people that proposals wait: through a program, a webhook, a terminal. It only tells; nothing
// can be decided through it, and no desk waits for it.
//
// Proposals that arrive together are told of together, each once, and once more when it has waited for RemindAfter.
// What is decided before its turn is not told of. Agent text in a message is escaped, on one line and short.
//
// Of all processes that notify for the same mailboxes one does it, the one that holds the lock <State>.lock; when it
// ends another takes over. <State>.json keeps what was told, so that a restart tells nothing twice. It is written
// before a message goes out: a crash in between loses one message, and the reminder comes.
package notify

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/bot-bottle/supervise/internal/operator"
	"github.com/bot-bottle/supervise/internal/safetext"
)

// Desk is what is needed of an [operator.Desk].
type Desk interface {
	Snapshot(ctx context.Context) (*operator.Snapshot, error)
	Changes(ctx context.Context) (<-chan struct{}, error)
}

// Sink is one way to tell. Deliver returns when the message is delivered, or given up.
type Sink interface {
	Name() string // for logs
	Deliver(ctx context.Context, m Message) error
}

// Options configure Run.
type Options struct {
	Desk  Desk
	Sinks []Sink
	// State is the path, without an extension, of what is shared with other processes; if empty, nothing is, and what
	// is open at the start is not told of.
	State       string
	RemindAfter time.Duration // if zero, there are no reminders
	URL         string        // of the web desk, for messages; may be empty
	Logger      *slog.Logger  // if nil, nothing is logged

	Gather time.Duration // how long after an arrival others may join it; if zero, 1 s
	Gap    time.Duration // between two messages of one sink; if zero, 10 s
}

// Message is what a sink delivers. Its JSON is stable; fields are only added.
type Message struct {
	Event     string     `json:"event"` // arrived, or reminder if it has only reminders
	At        time.Time  `json:"at"`
	Title     string     `json:"title"` // one short line; escaped
	Text      string     `json:"text"`  // a line for each proposal; escaped
	Open      int        `json:"open"`  // how many wait in all
	URL       string     `json:"url,omitempty"`
	Proposals []Proposal `json:"proposals"`
	More      int        `json:"more,omitempty"` // proposals of this message that are left out
}

// Proposal is one that waits.
type Proposal struct {
	ID       string   `json:"id"`
	Bottle   string   `json:"bottle"`
	Tool     string   `json:"tool"`
	Summary  string   `json:"summary"`
	Dangers  []string `json:"dangers"`
	Waiting  bool     `json:"waiting"` // its agent waits at this moment
	Seconds  int64    `json:"seconds"` // its age
	Reminder bool     `json:"reminder,omitempty"`
}

const (
	maxProposals = 20
	maxSummary   = 120
	mostGone     = 1024            // of what is due and not open any more
	lookEvery    = 5 * time.Second // without a change: for reminders
	lockEvery    = 2 * time.Second
	pace         = 300 * time.Millisecond // between two looks, at least
)

// told is what was told of one proposal.
type told struct {
	At       time.Time `json:"at"`
	Reminded bool      `json:"reminded,omitempty"`
}

type notifier struct {
	Options
	log    *slog.Logger
	told   map[string]told // by BOTTLE/ID
	queues []*outbox
}

// outbox is what one sink has still to tell.
type outbox struct {
	sink Sink
	wake chan struct{}

	mu    sync.Mutex
	due   map[string]bool // guarded by mu; by BOTTLE/ID: whether it is a reminder
	items []operator.Item // guarded by mu; what is open
}

// Run notifies until ctx ends.
func Run(ctx context.Context, o Options) error {
	o.Gather, o.Gap = cmp.Or(o.Gather, time.Second), cmp.Or(o.Gap, 10*time.Second)
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if len(o.Sinks) == 0 {
		<-ctx.Done()
		return nil
	}
	n := &notifier{Options: o, log: o.Logger, told: map[string]told{}}
	if o.State != "" {
		unlock, err := n.lock(ctx)
		if err != nil {
			return err
		}
		if unlock == nil {
			return nil // ended while another process notified
		}
		defer unlock()
		n.load()
	}
	g, ctx := errgroup.WithContext(ctx)
	for _, s := range o.Sinks {
		q := &outbox{sink: s, wake: make(chan struct{}, 1), due: map[string]bool{}}
		n.queues = append(n.queues, q)
		g.Go(func() error { n.deliver(ctx, q); return nil })
	}
	g.Go(func() error { return n.watch(ctx) })
	return g.Wait()
}

// lock waits until no other process notifies; a nil unlock means that ctx has ended.
func (n *notifier) lock(ctx context.Context) (unlock func(), err error) {
	f, err := os.OpenFile(n.State+".lock", os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("locking the notifications: %w", err)
	}
	tick := time.NewTicker(lockEvery)
	defer tick.Stop()
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil // closing releases it
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return nil, errors.Join(fmt.Errorf("locking the notifications: %w", err), f.Close())
		}
		select {
		case <-ctx.Done():
			return nil, f.Close()
		case <-tick.C:
		}
	}
}

func (n *notifier) load() {
	b, err := os.ReadFile(n.State + ".json")
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	if err == nil {
		err = json.Unmarshal(b, &n.told)
	}
	if err != nil || n.told == nil {
		n.log.Warn("what was notified of is not known; telling of everything again", "err", err)
		n.told = map[string]told{}
	}
}

func (n *notifier) save() {
	if n.State == "" {
		return
	}
	b, err := json.Marshal(n.told)
	if err == nil {
		tmp := n.State + ".json.tmp"
		if err = os.WriteFile(tmp, b, 0o600); err == nil {
			err = os.Rename(tmp, n.State+".json") // not synced: after a power cut something may be told twice
		}
	}
	if err != nil {
		n.log.Warn("keeping what was notified of", "err", err)
	}
}

// watch finds what is to be told.
func (n *notifier) watch(ctx context.Context) error {
	changes, err := n.Desk.Changes(ctx)
	if err != nil {
		return fmt.Errorf("watching the mailboxes: %w", err)
	}
	silent := n.State == ""
	return operator.LookAtEach(ctx, changes, lookEvery, pace, func(ctx context.Context) error {
		if s, err := n.Desk.Snapshot(ctx); err == nil {
			n.look(s, silent)
			silent = false
		} else if ctx.Err() == nil {
			n.log.Warn("looking at the mailboxes", "err", fmt.Sprintf("%.300v", err))
		}
		return nil
	})
}

func key(it operator.Item) string { return it.Bottle + "/" + string(it.ID) }

// look compares what is open with what was told. silent: what is there already needs no telling.
func (n *notifier) look(s *operator.Snapshot, silent bool) {
	now := time.Now()
	open := map[string]bool{}
	var items []operator.Item
	due := map[string]bool{}
	changed := false
	for _, it := range s.Items {
		if it.Abandoned || it.State == operator.Deciding {
			if _, was := n.told[key(it)]; was {
				open[key(it)] = true // it may come back: that is no arrival
			}
			continue
		}
		k := key(it)
		open[k] = true
		items = append(items, it)
		t, was := n.told[k]
		late := n.RemindAfter > 0 && it.Age >= n.RemindAfter
		switch {
		case !was:
			n.told[k], changed = told{At: now.UTC().Truncate(time.Second), Reminded: late}, true
			if !silent {
				due[k] = false
			}
		case late && !t.Reminded:
			t.Reminded = true
			n.told[k], changed = t, true
			due[k] = true
		}
	}
	for k := range n.told {
		if !open[k] {
			delete(n.told, k)
			changed = true
		}
	}
	if changed {
		n.save()
	}
	for _, q := range n.queues {
		q.put(items, due)
	}
}

func (q *outbox) put(items []operator.Item, due map[string]bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.items = items
	if len(due) == 0 {
		return
	}
	for k, reminder := range due {
		if was, ok := q.due[k]; !ok || was {
			q.due[k] = reminder
		}
	}
	if len(q.due) > len(items)+mostGone { // the sink is stuck, and a sidecar has something else open at each look
		left := map[string]bool{}
		for _, it := range items {
			if reminder, ok := q.due[key(it)]; ok {
				left[key(it)] = reminder
			}
		}
		q.due = left
	}
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// take returns what is due of what is still open.
func (q *outbox) take() (items []operator.Item, reminder map[string]bool, open int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, it := range q.items {
		if _, ok := q.due[key(it)]; ok {
			items = append(items, it)
		}
	}
	reminder, q.due = q.due, map[string]bool{}
	return items, reminder, len(q.items)
}

// deliver tells one sink of what is due, one message after the other.
func (n *notifier) deliver(ctx context.Context, q *outbox) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-q.wake:
		}
		if !pause(ctx, n.Gather) {
			return
		}
		items, reminder, open := q.take()
		if len(items) == 0 {
			continue // decided meanwhile
		}
		m := message(items, reminder, open, n.URL)
		if err := q.sink.Deliver(ctx, m); err != nil && ctx.Err() == nil {
			n.log.Warn("not notified", "through", q.sink.Name(), "proposals", len(items), "err", fmt.Sprintf("%.500v", err))
		}
		if !pause(ctx, n.Gap) {
			return
		}
	}
}

// pause tells whether ctx lives on.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

func message(items []operator.Item, reminder map[string]bool, open int, url string) Message {
	m := Message{Event: "reminder", At: time.Now().UTC().Truncate(time.Second), Open: open, URL: url, Proposals: []Proposal{}}
	rank := func(it operator.Item) (n int) { // dangers and news first
		if !it.Danger {
			n += 2
		}
		if reminder[key(it)] {
			n++
		}
		return n
	}
	slices.SortStableFunc(items, func(a, b operator.Item) int { return cmp.Compare(rank(a), rank(b)) })
	var text []string
	for i, it := range items {
		again := reminder[key(it)]
		if !again {
			m.Event = "arrived"
		}
		if i >= maxProposals {
			m.More++
			continue
		}
		p := Proposal{ID: string(it.ID), Bottle: it.Bottle, Tool: safetext.Line(it.Tool, 40), Summary: it.Summary.Line(maxSummary), Dangers: []string{}, Waiting: it.Connected == operator.Waiting, Seconds: int64(it.Age / time.Second), Reminder: again}
		for _, f := range it.Findings {
			if f.Level == operator.Danger {
				p.Dangers = append(p.Dangers, f.Code)
			}
		}
		m.Proposals = append(m.Proposals, p)
		text = append(text, p.line())
	}
	if m.More > 0 {
		text = append(text, fmt.Sprintf("and %d more", m.More))
	}
	m.Text = strings.Join(text, "\n")
	switch {
	case len(items) == 1 && m.Event == "reminder":
		m.Title = items[0].Bottle + " still waits"
	case len(items) == 1:
		m.Title = items[0].Bottle + " asks"
	case m.Event == "reminder":
		m.Title = fmt.Sprintf("%d proposals still wait", len(items))
	default:
		m.Title = fmt.Sprintf("%d proposals wait", len(items))
	}
	if len(m.Proposals) > 0 && len(m.Proposals[0].Dangers) > 0 {
		m.Title += " (danger)"
	}
	return m
}

func (p Proposal) line() string {
	s := p.Bottle + ": " + p.Summary
	if len(p.Dangers) > 0 {
		s += " [danger: " + strings.Join(p.Dangers, ", ") + "]"
	}
	return s
}
