package tools

import (
	"slices"
	"time"

	"github.com/bot-bottle/supervise/queue"
)

const (
	remembered = 2 * time.Hour // longer than any rule asks for
	sweepEvery = time.Minute
)

// record is what is remembered of one proposal; what was decided is always read from the mailbox.
type record struct {
	id        queue.ID
	key       string          // what it asks
	created   time.Time       // on the monotonic clock; after a restart by the entry's age
	retry     bool            // the same had been rejected before
	unsaved   *queue.Proposal // guarded by Tools.mu; not known to be stored (Put is under way, or failed)
	delivered time.Time       // guarded by Tools.mu; when this process archived it, or an earlier one did
}

// records are found by what they ask, and by id.
type records struct {
	byKey map[string][]*record // oldest first
	byID  map[queue.ID]*record
	swept time.Time
}

func (r *records) add(rec *record) {
	if r.byKey == nil {
		r.byKey, r.byID = make(map[string][]*record), make(map[queue.ID]*record)
	}
	r.byKey[rec.key] = append(r.byKey[rec.key], rec)
	r.byID[rec.id] = rec
}

func (r *records) remove(rec *record) {
	delete(r.byID, rec.id)
	rest := slices.DeleteFunc(r.byKey[rec.key], func(o *record) bool { return o == rec })
	if len(rest) == 0 {
		delete(r.byKey, rec.key)
	} else {
		r.byKey[rec.key] = rest
	}
}

// sweep drops, now and then, what was delivered longer ago than keep.
func (r *records) sweep(keep time.Duration) {
	if time.Since(r.swept) < sweepEvery {
		return
	}
	r.swept = time.Now()
	for _, rec := range r.byID {
		if !rec.delivered.IsZero() && time.Since(rec.delivered) > keep {
			r.remove(rec)
		}
	}
}

func (t *Tools) remember(rec *record) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.records.sweep(max(remembered, t.opts.Redeliver))
	t.records.add(rec)
}

func (t *Tools) forget(rec *record) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.records.remove(rec)
}
