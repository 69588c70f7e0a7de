package operator

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/bot-bottle/supervise/internal/safetext"
	"github.com/bot-bottle/supervise/queue"
)

// findingsFresh is how long an inbox line's findings are shown before they are computed again. A decision never
// rests on them: Show and Approve compute their own.
const findingsFresh = 10 * time.Second

// cache keeps what an inbox line costs to compute.
type cache struct {
	mu    sync.Mutex
	lines map[Ref]*line // guarded by mu; only open proposals
}

type line struct {
	sha      string // of the proposal the rest is about
	summary  string
	host     string
	key      string // canonical payload; "" if bad
	bad      string // why it does not check
	findings []Finding
	at       time.Time // of findings; zero: none yet
}

// item is an inbox line without findings and presence.
func (d *Desk) item(e queue.Entry, rec *Record) Item {
	p := e.Proposal
	ref := Ref{p.Bottle, p.ID}
	l := d.line(p)
	it := Item{
		Ref: ref, Tool: p.Tool, Summary: safetext.Untrusted(l.summary), Host: safetext.Untrusted(l.host),
		ArrivedAt: p.ArrivedAt, Age: max(e.Age, 0), Connected: Unknown, State: Open, Findings: []Finding{},
	}
	if l.bad != "" {
		it.State, it.Error = Bad, safetext.Block(l.bad)
	}
	if rec != nil {
		switch rec.State {
		case RecordFailed:
			it.State, it.Error = Failed, rec.Error.String()
		case RecordStuck:
			it.State, it.Error = Stuck, rec.Error.String()
		case Claimed, Applied:
			it.State = Deciding
		}
	}
	if l.key != "" {
		if earlier := d.store.earlier(p.Bottle, p.Tool, l.key); earlier != nil && earlier.ID != p.ID {
			it.Retry = earlier
		}
	}
	return it
}

func (d *Desk) line(p queue.Proposal) *line {
	ref, sha := Ref{p.Bottle, p.ID}, proposalSHA256(p)
	d.cache.mu.Lock()
	defer d.cache.mu.Unlock()
	if l := d.cache.lines[ref]; l != nil && l.sha == sha {
		return l
	}
	l := &line{sha: sha, summary: p.Tool}
	if q, err := check(p); err != nil {
		l.bad = err.Error()
		l.summary = "malformed " + p.Tool
	} else {
		l.summary, l.host, l.key = q.Summary(), q.Host, q.Canonical()
	}
	if d.cache.lines == nil {
		d.cache.lines = map[Ref]*line{}
	}
	d.cache.lines[ref] = l
	return l
}

// findings are at most findingsFresh old.
func (d *Desk) findings(ctx context.Context, p queue.Proposal) []Finding {
	l := d.line(p)
	d.cache.mu.Lock()
	f, at := l.findings, l.at
	d.cache.mu.Unlock()
	if l.bad != "" || !at.IsZero() && time.Since(at) < findingsFresh {
		return f
	}
	q, err := check(p)
	if err != nil {
		return nil
	}
	plan, err := d.opts.Hand.Preview(ctx, p.Bottle, q)
	if err != nil {
		d.log.Warn("previewing for the inbox", "bottle", p.Bottle, "id", p.ID, "err", err)
		return f
	}
	f = findingsFor(q, plan)
	d.cache.mu.Lock()
	l.findings, l.at = f, time.Now()
	d.cache.mu.Unlock()
	return f
}

// Snapshot lists what is open in all bottles.
func (d *Desk) Snapshot(ctx context.Context) (*Snapshot, error) {
	bottles, err := d.opts.Inbox.Bottles(ctx)
	if err != nil {
		return nil, fmt.Errorf("listing the mailboxes under %s: %w", d.opts.Root, err)
	}
	s := &Snapshot{Items: []Item{}, Problems: []Problem{}, Bottles: bottles}
	open := map[Ref]bool{}
	for _, b := range bottles {
		if err := d.bottle(ctx, b, s, open); err != nil {
			return nil, err
		}
	}
	d.cache.mu.Lock()
	for ref := range d.cache.lines {
		if !open[ref] {
			delete(d.cache.lines, ref)
		}
	}
	d.cache.mu.Unlock()
	// Ages are read one after the other, so the same moment has ages that differ by as long as listing takes.
	seen := func(i Item) time.Duration { return i.Age.Truncate(100 * time.Millisecond) }
	slices.SortStableFunc(s.Items, func(a, b Item) int {
		return cmp.Or(rank(a)-rank(b), cmp.Compare(seen(b), seen(a)), strings.Compare(string(a.ID), string(b.ID)))
	})
	return s, nil
}

func rank(i Item) int {
	switch {
	case i.State == Stuck:
		return 0
	case i.Abandoned:
		return 2
	}
	return 1
}

func (d *Desk) bottle(ctx context.Context, b string, s *Snapshot, open map[Ref]bool) error {
	pres, err := d.opts.Inbox.Presence(ctx, b)
	if err != nil {
		s.Problems = append(s.Problems, Problem{Bottle: b, Name: "presence.json", Text: safetext.Untrusted(err.Error())})
	}
	seen := d.store.seen(b)
	var waiting []queue.ID
	for e, err := range d.opts.Inbox.Entries(ctx, b) {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			p := Problem{Bottle: b, Text: safetext.Untrusted(err.Error())}
			if be, ok := errors.AsType[*queue.BadError](err); ok {
				p.Name, p.Text = safetext.Untrusted(be.Name), safetext.Untrusted(be.Reason)
			}
			s.Problems = append(s.Problems, p)
			continue
		}
		ref := Ref{b, e.Proposal.ID}
		rec, err := d.store.record(ref)
		if err != nil {
			s.Problems = append(s.Problems, Problem{Bottle: b, Name: safetext.Untrusted(string(ref.ID)), Text: safetext.Untrusted(err.Error())})
			continue
		}
		if e.Response != nil {
			if rec.open() {
				if err := d.noteForeign(ctx, e); err != nil {
					d.log.Warn("noting a foreign answer", "bottle", b, "id", ref.ID, "err", err)
				}
			}
			continue
		}
		if rec != nil && rec.final() {
			continue // the mailbox has lost our answer, or is hostile; nothing is open
		}
		open[ref] = true
		it := d.item(e, rec)
		if it.State != Bad {
			it.setFindings(d.findings(ctx, e.Proposal))
		}
		it.Connected = connected(pres, ref.ID, it.Age)
		if it.Connected == Waiting {
			waiting = append(waiting, ref.ID)
		}
		last := seen[ref.ID]
		if !pres.At.IsZero() && pres.Waiting[ref.ID] > 0 && pres.At.After(last) {
			last = pres.At
		}
		it.Abandoned = it.State != Stuck && it.Connected != Waiting && it.Age > d.opts.Abandoned && time.Since(last) > d.opts.Abandoned
		s.Items = append(s.Items, it)
	}
	d.store.saw(b, waiting, seen)
	return nil
}

// connected reads the hint. One that is older than the proposal says nothing of it: its call has just been made.
func connected(p queue.Presence, id queue.ID, age time.Duration) Connected {
	switch {
	case !p.Known:
		return Unknown
	case p.Waiting[id] > 0 || age+time.Millisecond < time.Since(p.At):
		return Waiting
	}
	return Away
}

func (p *Preview) connect(ctx context.Context, d *Desk, e queue.Entry) {
	if pres, err := d.opts.Inbox.Presence(ctx, e.Proposal.Bottle); err == nil {
		p.Connected = connected(pres, e.Proposal.ID, e.Age)
	}
}

// seen tells when somebody was last seen waiting, to the hour.
func (s *store) seen(bottle string) map[queue.ID]time.Time {
	m := map[queue.ID]time.Time{}
	if b, err := s.root.ReadFile(filepath.Join(bottle, "seen.json")); err == nil {
		_ = json.Unmarshal(b, &m) // a hint: what does not parse is forgotten
	}
	return m
}

func (s *store) saw(bottle string, waiting []queue.ID, seen map[queue.ID]time.Time) {
	now, stale := time.Now().UTC(), false
	for _, id := range waiting {
		stale = stale || now.Sub(seen[id]) > time.Hour
	}
	if !stale {
		return
	}
	next := map[queue.ID]time.Time{}
	for id, t := range seen {
		if now.Sub(t) < 30*24*time.Hour {
			next[id] = t
		}
	}
	for _, id := range waiting {
		next[id] = now
	}
	if b, err := json.Marshal(next); err == nil {
		_ = s.write(filepath.Join(bottle, "seen.json"), b) // a hint: without it a proposal folds away early
	}
}

var prefixRE = regexp.MustCompile(`^[0-9a-f-]{4,36}$`)

// Find resolves an id or the unique start of one (at least four characters), optionally as BOTTLE/ID. What is open is
// looked at first; only when nothing open matches, what was decided.
func (d *Desk) Find(ctx context.Context, prefix string) (Ref, error) {
	bottle, id, ok := strings.Cut(prefix, "/")
	if !ok {
		bottle, id = "", prefix
	}
	id = strings.ToLower(id)
	if !prefixRE.MatchString(id) || bottle != "" && queue.CheckSlug(bottle) != nil {
		return Ref{}, fmt.Errorf("%w: %q is not an id, nor the start of one (four characters or more of 0-9, a-f and -)", ErrNotFound, safetext.Line(prefix, 60))
	}
	bottles := []string{bottle}
	if bottle == "" {
		var err error
		if bottles, err = d.opts.Inbox.Bottles(ctx); err != nil {
			return Ref{}, fmt.Errorf("listing the mailboxes under %s: %w", d.opts.Root, err)
		}
	}
	var open, decided []Ref
	for _, b := range bottles {
		for e, err := range d.opts.Inbox.Entries(ctx, b) {
			if err != nil || !strings.HasPrefix(string(e.Proposal.ID), id) {
				continue
			}
			if e.Response == nil {
				open = append(open, Ref{b, e.Proposal.ID})
			} else {
				decided = append(decided, Ref{b, e.Proposal.ID})
			}
		}
		decided = append(decided, d.store.recorded(b, id)...)
	}
	open = compact(open)
	if decided = compact(decided); len(open) == 0 {
		open = decided
	}
	switch len(open) {
	case 0:
		return Ref{}, fmt.Errorf("%w: %q", ErrNotFound, prefix)
	case 1:
		return open[0], nil
	}
	return Ref{}, &AmbiguousError{Prefix: prefix, Refs: open}
}

func compact(refs []Ref) []Ref {
	slices.SortFunc(refs, func(a, b Ref) int {
		return cmp.Or(strings.Compare(a.Bottle, b.Bottle), strings.Compare(string(a.ID), string(b.ID)))
	})
	return slices.Compact(refs)
}

func (s *store) recorded(bottle, prefix string) []Ref {
	entries, err := fs.ReadDir(s.root.FS(), bottle)
	if err != nil {
		return nil
	}
	var refs []Ref
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), ".json")
		if !ok || !strings.HasPrefix(name, prefix) {
			continue
		}
		if id, err := queue.ParseID(name); err == nil {
			refs = append(refs, Ref{bottle, id})
		}
	}
	return refs
}
