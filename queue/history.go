package queue

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"
)

// history is when each answer in processed/ went out: read once from the files' change times, kept from then on,
// since only the sidecar that holds the lock moves files there.
type history struct {
	at    map[ID]time.Time
	order []ID // oldest first
}

func (h *history) add(id ID, at time.Time) {
	if h.at == nil {
		h.at = map[ID]time.Time{}
	}
	if _, ok := h.at[id]; ok {
		return
	}
	h.at[id] = at
	h.order = append(h.order, id)
}

// since returns what went out at or after t.
func (h *history) since(t time.Time) []ID {
	i := len(h.order)
	for i > 0 && !h.at[h.order[i-1]].Before(t) {
		i--
	}
	return slices.Clone(h.order[i:])
}

// old returns at most n that are too old, or too many.
func (h *history) old(keepFor time.Duration, pairs, n int) []ID {
	over := len(h.order) - pairs
	var ids []ID
	for i, id := range h.order {
		if len(ids) == n || i >= over && time.Since(h.at[id]) < keepFor {
			break
		}
		ids = append(ids, id)
	}
	return ids
}

func (h *history) drop(ids []ID) {
	for _, id := range ids {
		delete(h.at, id)
	}
	h.order = slices.DeleteFunc(h.order, func(id ID) bool { _, ok := h.at[id]; return !ok })
}

func loadHistory(b *box) (history, error) {
	h := history{at: map[ID]time.Time{}}
	info, err := b.root.Lstat(processed)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !info.IsDir() {
		return h, nil // probe says what is wrong with it
	}
	sub, err := b.root.OpenRoot(processed) // spares a walk through processed/ for each name
	if err != nil {
		return h, fmt.Errorf("reading %s/%s: %w", b.path, processed, err)
	}
	defer sub.Close()
	f, err := sub.Open(".")
	if err != nil {
		return h, fmt.Errorf("reading %s/%s: %w", b.path, processed, err)
	}
	defer f.Close()
	names, err := f.Readdirnames(-1)
	if err != nil {
		return h, fmt.Errorf("reading %s/%s: %w", b.path, processed, err)
	}
	note := func(id ID, name string) {
		if info, err := sub.Lstat(name); err == nil {
			h.at[id] = changed(info)
		}
	}
	// The response moves last, so its time is the pair's.
	for _, name := range names {
		if id, role := splitName(name); id != "" && role == responseSuffix {
			note(id, name)
		}
	}
	for _, name := range names { // what is left of interrupted moves and removals
		if id, _ := splitName(name); id != "" {
			if _, ok := h.at[id]; !ok {
				note(id, name)
			}
		}
	}
	for id := range h.at {
		h.order = append(h.order, id)
	}
	slices.SortFunc(h.order, func(a, b ID) int {
		return cmp.Or(h.at[a].Compare(h.at[b]), cmp.Compare(a, b))
	})
	return h, nil
}

const (
	pruneBatch = 200
	nearFlood  = maxNames * 3 / 4
)

// prune removes one batch of what is too old, and tells whether there may be more.
func (l *dirLoop) prune() (more bool) {
	l.boxMu.RLock()
	defer l.boxMu.RUnlock()
	b := l.box
	if b == nil {
		return false
	}
	l.moves.Lock()
	defer l.moves.Unlock()

	l.mu.Lock()
	ids := l.delivers.old(l.opts.KeepFor, l.opts.KeepPairs, pruneBatch)
	l.mu.Unlock()
	var gone []ID
	for _, id := range ids {
		// The response last: what is left of an interrupted removal is found again by any of its names in processed/.
		if err := b.removeInOrder(undoneName(id), archived(id.late()), archived(proposalName(id)), archived(responseName(id))); err != nil {
			l.log.Warn("pruning an old pair failed", "id", id, "err", err)
			return false
		}
		gone = append(gone, id)
	}
	undelivered := l.pruneUndelivered(b)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.delivers.drop(gone)
	for _, id := range undelivered {
		delete(l.open, id)
	}
	return len(ids) == pruneBatch
}

// pruneUndelivered removes the proposals first, and for good: without its response one would look open, after a power cut too.
func (l *dirLoop) pruneUndelivered(b *box) []ID {
	remove := func(ids []ID, names ...func(ID) string) []ID {
		return slices.DeleteFunc(ids, func(id ID) bool {
			var all []string
			for _, name := range names {
				all = append(all, name(id))
			}
			err := b.removeInOrder(all...)
			if err != nil {
				l.log.Warn("pruning an answer that nobody came for failed", "id", id, "err", err)
			}
			return err != nil
		})
	}
	ids := l.expired()
	if len(ids) == 0 {
		return nil
	}
	ids = remove(ids, proposalName)
	if err := b.fault.do("prune.sync-proposals", b.sync.do); err != nil {
		l.log.Warn("pruning answers that nobody came for failed", "err", err)
		return nil
	}
	ids = remove(ids, undoneName, responseName)
	for _, id := range ids {
		l.log.Info("pruned an answer that nobody came for", "id", id)
	}
	return ids
}

// removeInOrder removes those of the names that are there, and none after one that cannot be removed.
func (b *box) removeInOrder(names ...string) error {
	for _, name := range names {
		if err := b.root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// expired returns whose answers nobody came for in time, and responses that answer nothing.
func (l *dirLoop) expired() []ID {
	l.mu.Lock()
	defer l.mu.Unlock()
	type old struct {
		id  ID
		age time.Duration
	}
	var all []old
	for id, s := range l.open {
		if s.resp != nil && len(l.waiters[id]) == 0 {
			if age := s.respSeen.age(); age >= l.opts.KeepUndelivered {
				all = append(all, old{id, age})
			}
		}
	}
	slices.SortFunc(all, func(a, b old) int { return cmp.Compare(b.age, a.age) })
	room := nearFlood - l.names
	var ids []ID
	for _, o := range all {
		if o.age >= l.opts.KeepFor || room < 0 {
			ids = append(ids, o.id)
			room += 2
		}
	}
	for id, s := range l.orphans {
		if s.age() >= l.opts.KeepUndelivered {
			ids = append(ids, id)
		}
	}
	return ids
}

func (id ID) late() string { return string(id) + lateSuffix }
