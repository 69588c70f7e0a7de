package queue

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"
)

const (
	presenceSoon  = 5 * time.Second  // at most this often
	presenceAlive = 30 * time.Second // at least this often
	pruneEvery    = time.Hour
	pruneSoon     = time.Minute // when there is a tenth more than is kept
	rewatchEvery  = time.Second
	fullEvery     = 30 * time.Second // a poll lists the directory at least this often, whatever its times say, where events arrive
	coarse        = 2 * time.Second  // how coarse a file system's times may be
)

// cause is why the loop looks at the directory.
type cause int

const (
	byCaller cause = iota
	byEvent
	byPoll
)

// badName is a file that was skipped.
type badName struct {
	err      *BadError
	info     fs.FileInfo // a proposal is read again only when this changes
	since    time.Time
	wait     bool // a response may still be in writing
	reported bool
}

func (b *badName) ripe() bool { return !b.wait || time.Since(b.since) >= graceBad }

// dirLoop is the one goroutine that looks at a Dir's directory.
type dirLoop struct {
	*Dir
	w *watcher

	rung      bool // an event came since the last look
	proven    bool // an event has announced what another program did
	watching  bool
	watchErr  bool      // reported
	watchedAt time.Time // when watching was last tried
	lookedAt  time.Time
	cost      time.Duration // of the last look
	told      []byte        // presence.json
	toldAt    time.Time
	toldEnds  time.Time // when it holds no longer; zero: while nobody comes or goes
	prunedAt  time.Time
	moreOld   bool

	modTime time.Time // of the directory, before it was last listed
	fullAt  time.Time // when that was

	names   int
	lost    map[ID]time.Time // waited for and not there, since
	orphans map[ID]seen      // responses that answer nothing
	gone    bool             // the directory's absence was reported
}

func (l *dirLoop) run() {
	defer l.w.close()
	l.tell()
	l.prunedAt = time.Now()
	l.moreOld = l.prune()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		timer.Reset(time.Until(l.deadline()))
		poll := false
		select {
		case <-l.done:
			l.release()
			return
		case ev, ok := <-l.w.events:
			l.event(ev, ok)
		case _, ok := <-l.w.errors:
			if !ok {
				l.w.errors = nil
			}
			l.unwatched()
			l.rung = true
		case <-l.kick: // somebody asks, or the deadlines changed
		case <-timer.C:
			poll = l.due()
		}
		l.drain()
		why := byCaller
		switch {
		case l.rung && (poll || !time.Now().Before(l.lookedAt.Add(l.rest()))):
			why = byEvent
		case poll:
			why = byPoll
		case !l.hasAsked():
			continue
		}
		l.watch()
		l.look(why)
		if now := time.Now(); l.pruneDue(now) {
			l.prunedAt = now
			l.moreOld = l.prune()
			l.sweep()
		}
	}
}

// drain takes what is pending, so that one look serves for all of it.
func (l *dirLoop) drain() {
	for {
		select {
		case ev, ok := <-l.w.events:
			l.event(ev, ok)
		default:
			return
		}
	}
}

// event asks for a look, unless what the event names is no news, or a glance at one file tells it all. A wrong guess costs
// the time until the next poll.
func (l *dirLoop) event(ev fsnotify.Event, ok bool) {
	if !ok {
		l.w.events = nil
		l.rung = true
		return
	}
	if ev.Name == l.path && ev.Op&(fsnotify.Remove|fsnotify.Rename) != 0 {
		l.unwatched() // the watch went with it
		l.rung = true
		return
	}
	name := filepath.Base(ev.Name)
	switch id, role := splitName(name); {
	case id != "" && role == proposalSuffix: // only this sidecar makes them, and archives them
	case id != "" && role == responseSuffix:
		switch {
		case ev.Op&^(fsnotify.Remove|fsnotify.Rename) == 0:
		case !l.glance(id):
			l.rung = true
		default:
			runtime.Gosched() // whoever waits for it goes on first, here, and not when another thread has woken up
		}
	case name == presenceFile, isTemp(name) && !strings.HasPrefix(name, ".operator-"): // this sidecar's own
	case strings.HasPrefix(name, ".") && l.proven: // of whatever program: a name that counts follows, or none
	default:
		l.rung = true
	}
}

// glance looks at one response, and tells whether that was enough. It looks where the event was, in the directory that is watched: of
// one that was replaced the event tells itself, and what stands in it still was decided all the same.
func (l *dirLoop) glance(id ID) bool {
	l.boxMu.RLock()
	defer l.boxMu.RUnlock()
	if l.box == nil || !l.watching {
		return false
	}
	l.mu.Lock()
	s := l.open[id]
	odd := l.bad[responseName(id)] != nil
	l.mu.Unlock()
	if s == nil || odd {
		return false
	}
	if s.resp != nil {
		return true // seen before
	}
	r, info, err := l.box.response(id, false)
	if err != nil {
		return false
	}
	l.proven = true
	l.mu.Lock()
	defer l.mu.Unlock()
	l.health.Proven = true
	if _, ok := l.delivers.at[id]; !ok {
		l.open[id] = &standing{p: s.p, seen: s.seen, resp: &r, respSeen: newSeen(info.ModTime())}
	}
	l.give(id, &result{r: r})
	return true
}

func (l *dirLoop) unwatched() { l.watching, l.watchedAt = false, time.Time{} }

// rest is how long an event waits after a look, so that a storm of events on a full mailbox costs a quarter of one CPU at
// most; on a usual one it is some hundred microseconds.
func (l *dirLoop) rest() time.Duration { return min(3*l.cost, 20*time.Millisecond) }

// due does what its time has come for, and tells whether that includes a look.
func (l *dirLoop) due() bool {
	now := time.Now()
	look := false
	if !now.Before(l.tellAt()) {
		look = l.tell() // sees a directory that came back while nobody asks
	}
	if l.moreOld {
		l.moreOld = l.prune()
	}
	if at, ok := l.pollAt(); ok && !now.Before(at) {
		look = true
	}
	return look || l.pruneDue(now)
}

func (l *dirLoop) pruneDue(now time.Time) bool {
	since := now.Sub(l.prunedAt)
	if since < pruneSoon || since >= pruneEvery {
		return since >= pruneEvery
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.delivers.order) > l.opts.KeepPairs+l.opts.KeepPairs/10
}

func (l *dirLoop) deadline() time.Time {
	next := l.tellAt()
	if at, ok := l.pollAt(); ok && at.Before(next) {
		next = at
	}
	if at := l.lookedAt.Add(l.rest()); l.rung && at.Before(next) {
		next = at
	}
	if l.moreOld {
		next = time.Now().Add(10 * time.Millisecond)
	}
	return next
}

func (l *dirLoop) tellAt() time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	soon, alive := l.toldAt.Add(presenceSoon), l.toldAt.Add(presenceAlive)
	switch {
	case l.moved || !l.toldEnds.IsZero() && l.toldEnds.Before(soon):
		return soon
	case !l.toldEnds.IsZero() && l.toldEnds.Before(alive):
		return l.toldEnds
	}
	return alive
}

// pollAt: while anyone waits, and while a file may turn out bad.
func (l *dirLoop) pollAt() (time.Time, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	every := l.opts.PollFast
	if l.proven {
		every = l.opts.PollSlow
	}
	every = max(every, 20*l.cost)
	if len(l.waiters) > 0 {
		return l.lookedAt.Add(every), true
	}
	var at time.Time
	for _, b := range l.bad {
		if ripe := b.since.Add(graceBad); b.wait && !b.reported && (at.IsZero() || ripe.Before(at)) {
			at = ripe
		}
	}
	if soonest := l.lookedAt.Add(every); at.Before(soonest) && !at.IsZero() {
		at = soonest
	}
	return at, !at.IsZero()
}

// tell says who waits, unless that was said a short while ago: waiting calls come and go in steps.
func (l *dirLoop) tell() bool {
	data, ends := l.presence()
	l.toldEnds = ends
	if bytes.Equal(data, l.told) && time.Since(l.toldAt) < presenceAlive {
		return false
	}
	l.told, l.toldAt = data, time.Now()
	if err := l.writePresence(data); err != nil {
		l.log.Debug("writing presence failed", "err", err)
	}
	return true
}

func (l *dirLoop) hasAsked() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.asked) > 0
}

// release ends what waits for the loop.
func (l *dirLoop) release() {
	l.mu.Lock()
	clear(l.waiters)
	clear(l.left)
	l.mu.Unlock()
	data, _ := l.presence()
	_ = l.writePresence(data) // nobody waits any more
}

// watch keeps the watch on the directory alive. Without one polling goes on.
func (l *dirLoop) watch() {
	if l.watching || l.w.events == nil || time.Since(l.watchedAt) < rewatchEvery {
		return
	}
	l.watchedAt = time.Now()
	l.proven = false
	_ = l.w.remove(l.path) // what is left of a watch on a directory that was replaced
	err := l.w.add(l.path)
	l.watching = err == nil
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !l.watchErr {
		l.watchErr = true
		l.log.Warn("no file events, polling only", "err", limitHint(err))
	}
}

// sweep removes what was left long ago.
func (l *dirLoop) sweep() {
	l.boxMu.RLock()
	defer l.boxMu.RUnlock()
	if l.box == nil {
		return
	}
	if names, _, err := l.box.list(); err == nil {
		l.box.removeLeft(names, false)
	}
}

// look compares the directory with what is known, and gives valid responses to whoever waits for them.
func (l *dirLoop) look(why cause) {
	if why == byPoll && l.unchanged() {
		l.lookedAt = time.Now() // and cost is still that of a look that lists
		return
	}
	l.mu.Lock()
	asked := l.asked
	l.asked = nil
	l.mu.Unlock()
	l.rung = false
	start := time.Now()
	news, err := l.lookOnce()
	l.lookedAt = time.Now()
	l.cost = l.lookedAt.Sub(start)
	l.mu.Lock()
	l.scanErr = err
	switch {
	case news && why == byEvent:
		l.proven = true
	case news && why == byPoll:
		l.proven = false
		l.health.Missed++
	}
	l.health.Watched, l.health.Proven = l.watching, l.proven
	l.mu.Unlock()
	if err != nil && !l.gone {
		l.log.Error("mailbox cannot be read; waiting for it to come back", "err", err)
	} else if err == nil && l.gone {
		l.log.Info("mailbox is back")
	}
	l.gone = err != nil
	for _, ch := range asked {
		close(ch)
	}
}

// unchanged tells whether listing the directory would show what it showed last. Its times are believed only when no change
// can hide within their granularity, and where no events arrive, as on some mounts that are slow to tell times too, not for
// long.
func (l *dirLoop) unchanged() bool {
	l.mu.Lock()
	calm := l.scanErr == nil && len(l.asked) == 0 && len(l.lost) == 0
	every := fullEvery
	if !l.proven || !l.watching {
		every = max(l.opts.PollSlow, 1000*l.cost)
	}
	for _, b := range l.bad {
		calm = calm && !b.wait // it may be written again in place
	}
	l.mu.Unlock()
	if !calm || time.Since(l.fullAt) >= every {
		return false
	}
	l.boxMu.RLock()
	defer l.boxMu.RUnlock()
	if l.box == nil || !l.box.current(l.path) {
		return false
	}
	info, err := l.box.dir.Stat()
	return err == nil && info.ModTime().Equal(l.modTime) && l.fullAt.Round(0).Sub(l.modTime) >= coarse
}

// lookOnce returns whether there was something that another program had done.
func (l *dirLoop) lookOnce() (news bool, err error) {
	if err := l.reattach(); err != nil {
		return false, err
	}
	l.boxMu.RLock()
	defer l.boxMu.RUnlock()
	l.fullAt, l.modTime = time.Now(), time.Time{}
	if info, err := l.box.dir.Stat(); err == nil {
		l.modTime = info.ModTime()
	}
	v := l.newView() // before the names, or what is stored between the two would be known and look gone
	names, flooded, err := l.box.list()
	if err != nil {
		return false, err
	}
	l.names, v.flooded = len(names), flooded
	answered := make(map[ID]bool, len(v.known))
	for _, name := range names {
		stem, role := cutRole(name)
		if role != proposalSuffix && role != responseSuffix {
			continue
		}
		id := ID(stem)
		if v.known[id] == nil { // else it was parsed before
			if _, err := ParseID(stem); err != nil {
				v.skip(name, l.box.bad(name, "the name is not a UUIDv7"), nil, false)
				continue
			}
		}
		if role == proposalSuffix {
			v.proposal(id)
		} else {
			answered[id] = true
		}
	}
	if flooded {
		// Not all names were seen; what is waited for is looked up by name.
		for id := range v.waited {
			if v.open[id] == nil {
				v.proposal(id)
			}
			answered[id] = true
		}
	}
	for id := range answered {
		v.response(id)
	}
	v.missing()
	v.commit()
	return v.news, nil
}

// reattach opens the directory again if path leads to another one, or to one after it led nowhere.
func (l *dirLoop) reattach() error {
	l.boxMu.RLock()
	ok := l.box != nil && l.box.current(l.path)
	l.boxMu.RUnlock()
	if ok {
		return nil
	}
	if _, err := os.Stat(l.path); err != nil {
		return l.vanished()
	}
	if err := l.detach(); err != nil {
		l.log.Debug("leaving the directory that was replaced", "err", err)
	}
	if err := l.attach(context.Background(), 0); err != nil {
		return err
	}
	l.unwatched()
	l.watch()
	return nil
}
