package operator

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/bot-bottle/supervise/internal/apply"
	"github.com/bot-bottle/supervise/internal/lazy"
	"github.com/bot-bottle/supervise/internal/payload"
	"github.com/bot-bottle/supervise/internal/safetext"
	"github.com/bot-bottle/supervise/queue"
)

// findingsFresh is how long an inbox line's findings are shown before they are computed again. A decision never
// rests on them: Show and Approve compute their own.
const findingsFresh = 10 * time.Second

// cache keeps what an inbox line costs to compute.
type cache struct {
	mu    sync.Mutex
	lines map[Ref]*line      // guarded by mu; only open proposals
	bases map[question]basis // guarded by mu
}

// question is what all previews that have one basis have in common.
type question struct{ bottle, tool string }

// basis is what previews are made from besides the proposal: the same one means the same findings.
type basis struct {
	sum string
	at  time.Time // when it was looked at
}

type line struct {
	sha       string // of the proposal the rest is about
	summary   string
	host      string
	key       string // canonical payload; "" if bad
	bad       string // why it does not check
	findings  []Finding
	blocked   string           // why its plan cannot be applied
	unmanaged []apply.Kind     // targets of it that the configuration leaves out
	basis     basis            // of findings; zero: none yet
	asked     *payload.Payload // what was checked, until there are findings
}

// item is an inbox line without findings and presence.
func (d *Desk) item(e queue.Entry, rec *Record) Item {
	return itemOf(e, d.line(e.Proposal), rec, func(tool, key string) *Earlier { return d.store.earlier(e.Proposal.Bottle, tool, key) })
}

func itemOf(e queue.Entry, l *line, rec *Record, earlier func(tool, key string) *Earlier) Item {
	p := e.Proposal
	ref := Ref{p.Bottle, p.ID}
	it := Item{
		Ref: ref, Tool: p.Tool, Summary: safetext.Untrusted(l.summary), Host: safetext.Untrusted(l.host),
		ArrivedAt: p.ArrivedAt, Age: max(e.Age, 0), Since: e.Since.Truncate(100 * time.Millisecond), Connected: Unknown, State: Open, Findings: []Finding{},
	}
	if l.bad != "" {
		it.State, it.Error = Bad, safetext.Once(l.bad)
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
		if was := earlier(p.Tool, l.key); was != nil && was.ID != p.ID {
			it.Retry = was
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
		l.summary, l.host, l.key, l.asked = q.Summary(), q.Host, q.Canonical(), &q
	}
	if d.cache.lines == nil {
		d.cache.lines = map[Ref]*line{}
	}
	d.cache.lines[ref] = l
	return l
}

// looked is an inbox line in the making.
type looked struct {
	Item
	p queue.Proposal // empty if it does not check
	l *line          // of what was proposed
}

// examine gives the items of a bottle their findings, which are at most findingsFresh old. They are computed again only if what
// they rest on has changed, and whether it has, one proposal tells for all of its tool.
func (d *Desk) examine(ctx context.Context, bottle string, items []looked) {
	var again, all []*looked // one a tool of those that have findings already; all that need them
	asked := map[string]bool{}
	stale := func(it *looked) bool { // with the lock held
		q, l := question{bottle, it.Tool}, it.l
		if last := d.cache.bases[q]; last.sum == l.basis.sum && last.at.After(l.basis.at) {
			l.basis = last
		}
		return l.bad == "" && time.Since(l.basis.at) >= findingsFresh
	}
	d.cache.mu.Lock()
	for i := range items {
		if it := &items[i]; !asked[it.Tool] && !it.l.basis.at.IsZero() && stale(it) {
			asked[it.Tool], again = true, append(again, it)
		}
	}
	d.cache.mu.Unlock()
	d.glance(ctx, bottle, again)
	d.cache.mu.Lock()
	for i := range items {
		if it := &items[i]; stale(it) {
			all = append(all, it)
		}
	}
	d.cache.mu.Unlock()
	d.glance(ctx, bottle, all)
	d.cache.mu.Lock()
	defer d.cache.mu.Unlock()
	for i := range items {
		if items[i].l.bad == "" {
			items[i].setFindings(items[i].l.findings)
			items[i].Blocked, items[i].Unmanaged = items[i].l.blocked, items[i].l.unmanaged
		}
	}
}

// glance brings the findings of some lines up to date.
func (d *Desk) glance(ctx context.Context, bottle string, items []*looked) {
	if len(items) == 0 {
		return
	}
	asked := make([]payload.Payload, len(items))
	for i, it := range items {
		d.cache.mu.Lock()
		known := it.l.asked
		d.cache.mu.Unlock()
		if known != nil {
			asked[i] = *known
		} else {
			asked[i], _ = check(it.p) // it was checked when the line was made
		}
	}
	now := time.Now()
	plans, err := d.opts.Hand.Glance(ctx, bottle, asked...)
	if err != nil {
		d.log.Warn("looking at what proposals would change", "bottle", bottle, "err", err)
		return
	}
	for i, it := range items {
		sum := basisOf(plans[i])
		d.cache.mu.Lock()
		f, same := it.l.findings, sum == it.l.basis.sum
		d.cache.mu.Unlock()
		if !same {
			f = findingsFor(asked[i], plans[i])
		}
		d.cache.mu.Lock()
		it.l.findings, it.l.basis, it.l.asked = f, basis{sum, now}, nil
		it.l.blocked, it.l.unmanaged = "", plans[i].Unmanaged
		if err := plans[i].Blocked; err != nil {
			it.l.blocked = safetext.Block(err.Error())
		}
		if d.cache.bases == nil {
			d.cache.bases = map[question]basis{}
		}
		d.cache.bases[question{bottle, it.Tool}] = it.l.basis
		d.cache.mu.Unlock()
	}
}

// basisOf sums up all that a plan was made from but the payload: which files, and what is in them.
func basisOf(plan *apply.Plan) string {
	var b strings.Builder
	for _, t := range plan.Targets {
		fmt.Fprintf(&b, "%s %q %q %t %s\n", t.Kind, t.Path, t.Real, t.Exists, apply.SHA256(t.Before))
	}
	fmt.Fprintf(&b, "%q", plan.Unmanaged)
	return apply.SHA256([]byte(b.String()))
}

// Snapshot lists what is open in all bottles.
func (d *Desk) Snapshot(ctx context.Context) (*Snapshot, error) {
	bottles, err := d.opts.Inbox.Bottles(ctx)
	if err != nil {
		return nil, fmt.Errorf("listing the mailboxes under %s: %w", d.opts.Root, err)
	}
	parts := make([]part, len(bottles))
	var looks errgroup.Group // half of a look is waiting for the system
	looks.SetLimit(runtime.GOMAXPROCS(0))
	for i, b := range bottles {
		looks.Go(func() (err error) {
			parts[i], err = d.bottle(ctx, b)
			return err
		})
	}
	if err := looks.Wait(); err != nil {
		return nil, err
	}
	s := &Snapshot{Items: []Item{}, Problems: []Problem{}, Bottles: bottles}
	open := map[Ref]bool{}
	var all []looked
	for _, p := range parts {
		all, s.Problems = append(all, p.items...), append(s.Problems, p.problems...)
	}
	slices.SortStableFunc(all, func(a, b looked) int { return a.Compare(&b.Item) })
	for _, it := range all {
		s.Items = append(s.Items, it.Item)
		open[it.Ref] = true
	}
	d.cache.mu.Lock()
	for ref := range d.cache.lines {
		if !open[ref] {
			delete(d.cache.lines, ref)
		}
	}
	for q, b := range d.cache.bases {
		if time.Since(b.at) >= findingsFresh {
			delete(d.cache.bases, q)
		}
	}
	d.cache.mu.Unlock()
	return s, nil
}

// Compare is the order of a snapshot. What is decided stands where it stood when it was open.
func (i *Item) Compare(j *Item) int {
	return cmp.Or(i.rank()-j.rank(), i.Since.Compare(j.Since), strings.Compare(string(i.ID), string(j.ID)))
}

func (i *Item) rank() int {
	switch {
	case i.State == Stuck:
		return 0
	case i.Abandoned:
		return 2
	}
	return 1
}

// maxShown bounds the inbox lines of one bottle, and so what one hostile mailbox costs everybody. What is beyond it can be shown
// and decided by its id.
const maxShown = 256

// maxProblems bounds what is told of one bottle's files, for the same reason: what is wrong stands above what is open.
const maxProblems = 20

// part is a snapshot of one bottle.
type part struct {
	items    []looked
	problems []Problem
}

func (d *Desk) bottle(ctx context.Context, b string) (s part, _ error) {
	pres, err := d.opts.Inbox.Presence(ctx, b)
	if err != nil {
		s.problems = append(s.problems, Problem{Bottle: b, Name: "presence.json", Text: safetext.Untrusted(err.Error()), Aside: true})
	}
	seen := d.store.seen(b)
	shelf := d.store.shelf(b)
	defer shelf.close()
	var waiting []queue.ID
	var foreign foreigns
	fresh := 0 // never decided, so as many as a sidecar likes
	skipped := 0
	skip := func(p Problem) {
		if skipped++; skipped <= maxProblems {
			s.problems = append(s.problems, p)
		}
	}
	for e, err := range d.opts.Inbox.Entries(ctx, b) {
		if ctx.Err() != nil {
			return s, context.Cause(ctx)
		}
		if err != nil {
			p := Problem{Bottle: b, Text: safetext.Untrusted(err.Error())}
			if be, ok := errors.AsType[*queue.BadError](err); ok {
				p.Name, p.Text = safetext.Untrusted(be.Name), safetext.Untrusted(be.Reason)
			}
			if errors.Is(err, queue.ErrFlooded) { // once
				s.problems = append(s.problems, p)
			} else {
				skip(p)
			}
			continue
		}
		ref := Ref{b, e.Proposal.ID}
		rec, err := shelf.record(ref.ID)
		if err == nil && e.Response != nil {
			rec, err = d.store.record(ref) // what was decided since the shelf was opened is not another program's
		}
		if err != nil {
			skip(Problem{Bottle: b, Name: safetext.Untrusted(string(ref.ID)), Text: safetext.Untrusted(err.Error())})
			continue
		}
		if e.Response != nil {
			if rec.open() {
				foreign.add(e)
			}
			continue
		}
		if rec != nil && rec.final() {
			continue // the mailbox has lost our answer, or is hostile; nothing is open
		}
		if rec == nil {
			if fresh++; fresh > maxShown {
				continue
			}
		}
		l := d.line(e.Proposal)
		it := itemOf(e, l, rec, shelf.earlier)
		it.Connected = connected(pres, ref.ID, it.Age)
		if it.Connected == Waiting {
			waiting = append(waiting, ref.ID)
		}
		last := seen[ref.ID]
		if !pres.At.IsZero() && pres.Waiting[ref.ID] > 0 && pres.At.After(last) {
			last = pres.At
		}
		it.Abandoned = it.State != Stuck && it.Connected != Waiting && it.Age > d.opts.Abandoned && time.Since(last) > d.opts.Abandoned
		p := e.Proposal
		if l.bad != "" {
			p = queue.Proposal{} // it is not examined, and may have 2 MiB
		}
		s.items = append(s.items, looked{it, p, l})
	}
	d.examine(ctx, b, s.items)
	d.store.saw(b, waiting, seen, s.items)
	if n := skipped - maxProblems; n > 0 {
		s.problems = append(s.problems, Problem{Bottle: b, Text: safetext.Untrusted(fmt.Sprintf("%d more are skipped and not named here", n)), More: n})
	}
	if fresh > maxShown {
		s.problems = append(s.problems, Problem{Bottle: b, Text: safetext.Untrusted(fmt.Sprintf("%d more are not shown: a sidecar keeps at most 32 open, so this one is hostile or broken. Stop the bottle; 'supervise bottle forget %s' then removes its mailbox", fresh-maxShown, b))})
	}
	if text := d.noteForeigns(ctx, b, foreign); text != "" {
		s.problems = append(s.problems, Problem{Bottle: b, Text: safetext.Untrusted(text), Aside: true})
	}
	return s, nil
}

// justAsked is how old a proposal may be when the hint is written without its call: it waits a moment after it was stored.
const justAsked = time.Second

// connected reads the hint. One from before the proposal, or from when it was new, does not know of its call yet; the next one, some
// seconds later, does.
func connected(p queue.Presence, id queue.ID, age time.Duration) Connected {
	switch {
	case !p.Known:
		return Unknown
	case p.Waiting[id] > 0 || age < time.Since(p.At)+justAsked:
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
	if b, err := s.read(filepath.Join(bottle, "seen.json")); err == nil {
		_ = json.Unmarshal(b, &m) // a hint: what does not parse is forgotten
	}
	return m
}

// saw notes who waits now, of what is open: a sidecar may have something else open at each look.
func (s *store) saw(bottle string, waiting []queue.ID, seen map[queue.ID]time.Time, open []looked) {
	now, stale := time.Now().UTC(), false
	for _, id := range waiting {
		stale = stale || now.Sub(seen[id]) > time.Hour
	}
	if !stale {
		return
	}
	next := map[queue.ID]time.Time{}
	for _, it := range open {
		if t, ok := seen[it.ID]; ok && now.Sub(t) < 30*24*time.Hour {
			next[it.ID] = t
		}
	}
	for _, id := range waiting {
		next[id] = now
	}
	if b, err := json.Marshal(next); err == nil {
		_ = s.write(filepath.Join(bottle, "seen.json"), b) // a hint: without it a proposal folds away early
	}
}

var prefixRE = lazy.Regexp(`^[0-9a-f-]{4,36}$`)

// Find resolves an id or the unique start of one (at least four characters), optionally as BOTTLE/ID. What is open is
// looked at first; only when nothing open matches, what was decided.
func (d *Desk) Find(ctx context.Context, prefix string) (Ref, error) {
	bottle, id, ok := strings.Cut(prefix, "/")
	if !ok {
		bottle, id = "", prefix
	}
	id = strings.ToLower(id)
	if !prefixRE().MatchString(id) || bottle != "" && queue.CheckSlug(bottle) != nil {
		return Ref{}, fmt.Errorf("%w: %q is not an id, nor the start of one (four characters or more of 0-9, a-f and -)", ErrNotFound, safetext.Line(prefix, 60))
	}
	bottles := []string{bottle}
	if bottle == "" {
		var err error
		if bottles, err = d.opts.Inbox.Bottles(ctx); err != nil {
			return Ref{}, fmt.Errorf("listing the mailboxes under %s: %w", d.opts.Root, err)
		}
		bottles = append(bottles, d.store.bottles()...) // also those whose mailbox is gone
	}
	var open, decided []Ref
	for _, b := range bottles {
		for e, err := range d.matching(ctx, b, id) {
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

// matching returns those of a bottle that may begin with id. A whole one is looked up: it may stand behind more than is listed.
func (d *Desk) matching(ctx context.Context, bottle, id string) iter.Seq2[queue.Entry, error] {
	whole, err := queue.ParseID(id)
	if err != nil {
		return d.opts.Inbox.Entries(ctx, bottle)
	}
	return func(yield func(queue.Entry, error) bool) { yield(d.opts.Inbox.Get(ctx, bottle, whole)) }
}

func compact(refs []Ref) []Ref {
	slices.SortFunc(refs, func(a, b Ref) int {
		return cmp.Or(strings.Compare(a.Bottle, b.Bottle), strings.Compare(string(a.ID), string(b.ID)))
	})
	return slices.Compact(refs)
}

// bottles lists those that have records.
func (s *store) bottles() []string {
	root, err := s.at()
	if err != nil {
		return nil
	}
	entries, err := fs.ReadDir(root.FS(), ".")
	if err != nil {
		return nil
	}
	var out []string
	for _, e := range entries {
		if e.IsDir() && queue.CheckSlug(e.Name()) == nil {
			out = append(out, e.Name())
		}
	}
	return out
}

func (s *store) recorded(bottle, prefix string) []Ref {
	root, err := s.at()
	if err != nil {
		return nil
	}
	entries, err := fs.ReadDir(root.FS(), bottle)
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
