package web

import (
	"cmp"
	"context"
	"fmt"
	"hash/maphash"
	"log/slog"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/bot-bottle/supervise/internal/apply"
	"github.com/bot-bottle/supervise/internal/operator"
)

const (
	lookEvery = 2 * time.Second        // for what no mailbox tells, as an undo elsewhere
	settling  = 100 * time.Millisecond // how old the last record must be: its like may have been saved after it was looked at
	coarse    = 2 * time.Second        // the same, where a file system's clock ticks in seconds
	oldest    = 15 * time.Second       // a snapshot nothing was seen to change since: findings and presence age
	pace      = 40 * time.Millisecond  // between two looks, so that a burst is one
	behind    = time.Second            // how old a snapshot may be shown while run is about to look: the page's script hears of the new one
)

// board keeps one snapshot for all pages, and tells their streams when it changes. What a page shows may be some
// milliseconds old: decisions rest on digests, not on it.
type board struct {
	desk Desk
	log  *slog.Logger
	turn chan struct{} // held by whoever looks
	wake chan struct{}
	done chan struct{} // closed by close: streams end
	once sync.Once

	mu       sync.Mutex
	snap     *operator.Snapshot       // guarded by mu; never altered once here
	taken    time.Time                // guarded by mu
	rev      string                   // guarded by mu
	dirty    bool                     // guarded by mu: something may have changed since snap was begun
	decided  bool                     // guarded by mu: a verb of ours has changed something since
	watching bool                     // guarded by mu: changes are being told
	trail    trail                    // guarded by mu: when snap was begun
	subs     map[chan update]struct{} // guarded by mu
}

// update is what a stream tells its page.
type update struct {
	Rev    string    `json:"rev"`
	Open   int       `json:"open"`
	Newest []arrival `json:"newest"` // of what is open; a page knows which of them it has told of
}

type arrival struct {
	Key    string `json:"key"`
	Bottle string `json:"bottle"`
	Text   string `json:"text"` // escaped and short
	Danger bool   `json:"danger"`
	URL    string `json:"url"`
}

// trail is what the desks had written, and how long ago: 1 when that has settled, 2 wherever it may have been written.
type trail struct {
	operator.Trail
	settled int
}

func (t trail) equal(u trail) bool {
	return t.Seq == u.Seq && t.Records == u.Records && t.settled == u.settled
}

func newBoard(d Desk, log *slog.Logger) *board {
	return &board{desk: d, log: log, turn: make(chan struct{}, 1), wake: make(chan struct{}, 1), done: make(chan struct{}), subs: map[chan update]struct{}{}}
}

// view is a snapshot and when it was taken.
type view struct {
	*operator.Snapshot
	taken time.Time
	rev   string
}

// age of an item now.
func (v view) age(it operator.Item) time.Duration { return it.Age + time.Since(v.taken) }

// currentLocked tells whether nothing is known to have changed since the snapshot.
func (b *board) currentLocked() bool {
	return b.snap != nil && !b.dirty && !b.decided && b.watching && time.Since(b.taken) < oldest
}

// goodLocked tells whether a page may show the snapshot. With forty sidecars something always changes.
func (b *board) goodLocked() bool {
	return b.currentLocked() || b.snap != nil && !b.decided && b.watching && len(b.subs) > 0 && time.Since(b.taken) < behind
}

// get returns a snapshot that a page may show, looking again when there is none.
func (b *board) get(ctx context.Context) (view, error) {
	b.mu.Lock()
	v, good := view{b.snap, b.taken, b.rev}, b.goodLocked()
	b.mu.Unlock()
	if good {
		return v, nil
	}
	return b.refresh(ctx)
}

// refresh returns a snapshot that is current.
func (b *board) refresh(ctx context.Context) (view, error) {
	select {
	case b.turn <- struct{}{}:
		defer func() { <-b.turn }()
	case <-ctx.Done():
		return view{}, context.Cause(ctx)
	}
	b.mu.Lock()
	if b.currentLocked() { // whoever had the turn has looked for us
		defer b.mu.Unlock()
		return view{b.snap, b.taken, b.rev}, nil
	}
	decided := b.decided
	b.dirty, b.decided = false, false // before looking: what changes from now on counts as a change
	b.mu.Unlock()
	v, tr, err := b.look(ctx)
	b.mu.Lock()
	defer b.mu.Unlock()
	if err != nil {
		b.dirty, b.decided = true, b.decided || decided
		return view{}, err
	}
	changed := v.rev != b.rev
	b.snap, b.taken, b.rev, b.trail = v.Snapshot, v.taken, v.rev, tr
	if changed {
		u := summarize(v)
		for ch := range b.subs {
			select { // only the newest counts
			case <-ch:
			default:
			}
			ch <- u // has room: only we send, with mu held
		}
	}
	return v, nil
}

func (b *board) look(ctx context.Context) (view, trail, error) {
	tr, err := b.follow(ctx)
	if err != nil {
		b.log.Warn("looking at what was decided last", "err", err) // the ledger's own page says more
	}
	taken := time.Now()
	s, err := b.desk.Snapshot(ctx)
	if err != nil {
		return view{}, trail{}, err
	}
	return view{s, taken, revision(s, tr)}, tr, nil
}

func (b *board) follow(ctx context.Context) (trail, error) {
	now := time.Now()
	t, err := b.desk.Trail(ctx)
	tr := trail{Trail: t}
	switch age := now.Sub(t.Saved); {
	case age >= coarse:
		tr.settled = 2
	case age >= settling:
		tr.settled = 1
	}
	return tr, err
}

// seed makes revisions of two runs differ.
var seed = maphash.MakeSeed()

// revision differs when a page would look different, but for ages.
func revision(s *operator.Snapshot, t trail) string {
	var h maphash.Hash
	h.SetSeed(seed)
	put := func(parts ...string) {
		for _, p := range parts {
			_, _ = h.WriteString(p) // cannot fail
			_ = h.WriteByte(0)
		}
	}
	for i := range s.Items {
		it := &s.Items[i]
		put(it.Bottle, string(it.ID), it.Tool, it.Summary.Raw(), string(it.Connected), string(it.State), it.Error, it.Blocked, apply.JoinKinds(it.Unmanaged), strconv.FormatBool(it.Abandoned))
		for _, f := range it.Findings {
			put(f.Code, string(f.Level), f.Text, f.Evidence.Raw())
		}
		if it.Retry != nil {
			put(string(it.Retry.ID), string(it.Retry.Status))
		}
	}
	for _, p := range s.Problems {
		put(p.Bottle, p.Name.Raw(), p.Text.Raw())
	}
	put(s.Bottles...)
	put(strconv.FormatInt(t.Seq, 10), t.Records, strconv.Itoa(t.settled))
	return strconv.FormatUint(h.Sum64(), 36)
}

// newest is how many arrivals an update names; a page that sees more at once tells only of these.
const newest = 20

func summarize(v view) update {
	u := update{Rev: v.rev, Newest: []arrival{}}
	items := make([]*operator.Item, 0, len(v.Items))
	for i := range v.Items {
		if !v.Items[i].Abandoned {
			items = append(items, &v.Items[i])
		}
	}
	u.Open = len(items)
	slices.SortStableFunc(items, func(a, b *operator.Item) int { return cmp.Compare(a.Age, b.Age) })
	for _, it := range items[:min(len(items), newest)] {
		u.Newest = append(u.Newest, arrival{string(it.ID), it.Bottle, it.Summary.Line(120), it.Danger, proposalPath(it.Ref)})
	}
	return u
}

// changed tells that a verb of ours changed something: the next get looks again, and streams hear of it soon.
func (b *board) changed() {
	b.mu.Lock()
	b.decided = true
	b.mu.Unlock()
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// subscribe returns a channel of updates, the present one first.
func (b *board) subscribe(ctx context.Context) (ch chan update, cancel func(), err error) {
	v, err := b.refresh(ctx)
	if err != nil {
		return nil, nil, err
	}
	ch = make(chan update, 1)
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.rev != v.rev {
		v = view{b.snap, b.taken, b.rev}
	}
	ch <- summarize(v)
	b.subs[ch] = struct{}{}
	return ch, func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(b.subs, ch)
	}, nil
}

func (b *board) close() { b.once.Do(func() { close(b.done) }) }

// run looks whenever something changes and somebody is looking.
func (b *board) run(ctx context.Context) error {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	var changes <-chan struct{}
	for {
		if changes == nil {
			var err error
			if changes, err = b.desk.Changes(ctx); err != nil && ctx.Err() == nil {
				b.log.Warn("watching the mailboxes; looking every time instead", "err", err)
			}
			b.mu.Lock()
			b.watching, b.dirty = err == nil, true
			b.mu.Unlock()
		}
		ticked := false
		select {
		case <-ctx.Done():
			return nil
		case _, ok := <-changes:
			if !ok {
				changes = nil
			}
			b.mu.Lock()
			b.dirty = true
			b.mu.Unlock()
		case <-b.wake:
		case <-tick.C:
			ticked = true
		}
		b.mu.Lock()
		idle, current, last := len(b.subs) == 0, b.currentLocked(), b.trail
		b.mu.Unlock()
		if idle {
			continue
		}
		if ticked && current {
			if now, err := b.follow(ctx); err != nil || now.equal(last) {
				continue
			}
			b.mu.Lock()
			b.dirty = true
			b.mu.Unlock()
		}
		start := time.Now()
		_, err := b.refresh(ctx)
		if err != nil && ctx.Err() == nil {
			b.log.Warn("looking at the mailboxes", "err", fmt.Sprintf("%.500v", err))
		}
		b.mu.Lock()
		again := err == nil && b.trail.settled == 0
		b.mu.Unlock()
		if again {
			tick.Reset(settling)
		} else {
			tick.Reset(lookEvery)
		}
		// A burst is one look, and looking takes at most half of the time.
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(max(pace, time.Since(start))):
		}
	}
}
