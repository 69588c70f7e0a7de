package queue

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"time"
)

// view is one look: it starts from what the last one knew and replaces it at the end.
type view struct {
	*dirLoop
	known    map[ID]*standing // of the last look
	knownBad map[string]*badName
	waited   map[ID]bool
	open     map[ID]*standing
	bad      map[string]*badName
	orphans  map[ID]seen
	answers  map[ID]Response
	failed   map[ID]error
	flooded  bool
	news     bool
}

func (l *dirLoop) newView() *view {
	l.mu.Lock()
	defer l.mu.Unlock()
	v := &view{
		dirLoop: l, known: maps.Clone(l.open), knownBad: l.Dir.bad,
		waited: make(map[ID]bool, len(l.waiters)),
		open:   make(map[ID]*standing, len(l.open)+8), bad: map[string]*badName{}, orphans: map[ID]seen{},
		answers: map[ID]Response{}, failed: map[ID]error{},
	}
	for id := range l.waiters {
		v.waited[id] = true
	}
	return v
}

// skip notes a bad file and reports it once; a response only after it had time to be finished.
func (v *view) skip(name string, err *BadError, info fs.FileInfo, wait bool) {
	b := v.knownBad[name]
	if b == nil {
		b = &badName{since: time.Now()}
		v.news = v.news || wait
	}
	next := *b
	next.err, next.info, next.wait = err, info, wait
	if next.ripe() && !next.reported {
		next.reported = true
		v.log.Warn("skipping a bad file", "name", quote(name), "reason", err.Reason)
	}
	v.bad[name] = &next
}

func (v *view) proposal(id ID) {
	if s := v.known[id]; s != nil {
		v.open[id] = s // only this sidecar writes proposals; what it stored does not change
		return
	}
	name := proposalName(id)
	if b := v.knownBad[name]; b != nil && b.info != nil {
		if info, err := v.box.lstat(name); err == nil && unaltered(info, b.info) {
			v.bad[name] = b
			return
		}
	}
	p, info, err := v.box.proposal(id, false)
	if bad, ok := errors.AsType[*BadError](err); ok {
		v.skip(name, bad, info, false)
	} else if err == nil {
		v.open[id] = &standing{p: p, seen: newSeen(info.ModTime())}
	}
}

func unaltered(a, b fs.FileInfo) bool {
	return os.SameFile(a, b) && a.Size() == b.Size() && a.ModTime().Equal(b.ModTime()) && a.Mode() == b.Mode()
}

func (v *view) response(id ID) {
	s := v.open[id]
	if s != nil && s.resp != nil {
		if v.waited[id] {
			v.answers[id] = *s.resp
		}
		return
	}
	if s == nil {
		v.stray(id)
		return
	}
	r, info, err := v.box.response(id, false)
	if bad, ok := errors.AsType[*BadError](err); ok {
		v.skip(responseName(id), bad, info, true)
		return
	}
	if err != nil {
		return // moved away since, or seen again next time
	}
	v.news = true
	v.open[id] = &standing{p: s.p, seen: s.seen, resp: &r, respSeen: newSeen(info.ModTime())}
	v.answers[id] = r
}

// stray deals with a response whose proposal is not outside: the second half of an Archive that a crash cut
// short, or one for an id that was archived before it came, or one that answers nothing.
func (v *view) stray(id ID) {
	v.mu.Lock()
	moving := v.moving[id] > 0
	v.mu.Unlock()
	name := responseName(id)
	if _, err := v.box.lstat(name); moving || err != nil {
		return // about to be gone, or gone
	}
	v.moves.Lock()
	defer v.moves.Unlock()
	info, err := v.box.lstat(name)
	if err != nil {
		return
	}
	if there, err := v.box.exists(proposalName(id)); there || err != nil {
		return // a bad one, or one stored after the names were read
	}
	done, err := v.box.exists(archived(name))
	if err != nil {
		return
	}
	once, err := v.box.exists(archived(proposalName(id)))
	if err != nil {
		return
	}
	switch {
	case !done && !once:
		if was, ok := v.dirLoop.orphans[id]; ok {
			v.orphans[id] = was
		} else {
			v.orphans[id] = newSeen(info.ModTime())
		}
		v.skip(name, v.box.bad(name, "answers no proposal"), info, true)
		return
	case !done:
		if _, _, err := v.box.response(id, false); err == nil {
			if err := v.archive(v.box, id, false); err != nil {
				v.log.Warn("completing an interrupted archive failed", "id", id, "err", err)
			}
			return
		}
	}
	v.news = true
	err = errors.Join(v.box.moveTo(name, id.late()), v.box.syncBoth())
	v.log.Warn("a response came after its proposal had been answered and archived; it is kept aside and never delivered",
		"id", id, "err", err)
}

// missing looks for what is waited for and is not open.
func (v *view) missing() {
	lost := map[ID]time.Time{}
	for id := range v.waited {
		if v.open[id] != nil {
			continue
		}
		f, err := v.box.get(id)
		if err == nil && f.Response != nil {
			v.answers[id] = *f.Response // archived by another call
			continue
		}
		if !errors.Is(err, ErrNotFound) {
			continue
		}
		since, ok := v.lost[id]
		if !ok {
			since = time.Now()
		}
		lost[id] = since
		// A mount that comes and goes may hide it for a moment.
		if time.Since(since) >= graceBad {
			v.failed[id] = err
		}
	}
	v.lost = lost
}

func (v *view) commit() {
	v.mu.Lock()
	defer v.mu.Unlock()
	for id, s := range v.Dir.open {
		if v.known[id] == nil && v.open[id] == nil {
			v.open[id] = s // stored since
		}
	}
	for id := range v.open {
		if _, ok := v.delivers.at[id]; ok {
			delete(v.open, id) // archived since the names were read
		}
	}
	v.Dir.open = v.open
	v.Dir.bad = v.bad
	v.dirLoop.orphans = v.orphans
	if v.flooded && !v.Dir.flooded {
		v.log.Warn("mailbox flooded: new proposals are refused until names are removed", "limit", maxNames)
	}
	v.Dir.flooded = v.flooded
	for id, r := range v.answers {
		v.give(id, &result{r: r})
	}
	for id, err := range v.failed {
		v.give(id, &result{err: err})
	}
}

// give needs mu held.
func (d *Dir) give(id ID, res *result) {
	for _, ch := range d.waiters[id] {
		ch <- res // has room for the one result it ever gets
		d.moved = true
	}
	delete(d.waiters, id)
}

func (d *Dir) vanished() error {
	return fmt.Errorf("mailbox directory %s has vanished: mount or create it again", d.path)
}
