package tools

import (
	"cmp"
	"slices"
	"time"

	"github.com/bot-bottle/supervise/queue"
)

// How much is remembered.
const (
	remembered    = 2 * time.Hour // of what was delivered: longer than any rule asks for
	maxRemembered = 4096          // the same; as many as can be open at once
	maxUnsaved    = 8             // proposals of up to 1 MiB that could not be stored, each with its text
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
	byKey     map[string][]*record // oldest first
	byID      map[queue.ID]*record
	delivered []*record // in that order
	unsaved   []*record // whose storing failed, in that order; may be stored since
}

func (r *records) add(rec *record) {
	if r.byKey == nil {
		r.byKey, r.byID = make(map[string][]*record), make(map[queue.ID]*record)
	}
	r.byKey[rec.key] = append(r.byKey[rec.key], rec)
	r.byID[rec.id] = rec
}

func (r *records) remove(rec *record) {
	r.drop(rec)
	r.delivered = slices.DeleteFunc(r.delivered, func(o *record) bool { return o == rec })
}

func (r *records) drop(rec *record) {
	delete(r.byID, rec.id)
	rest := slices.DeleteFunc(r.byKey[rec.key], func(o *record) bool { return o == rec })
	if len(rest) == 0 {
		delete(r.byKey, rec.key)
	} else {
		r.byKey[rec.key] = rest
	}
}

// deliver notes that a record's answer went out now.
func (r *records) deliver(rec *record) {
	rec.delivered = time.Now()
	r.delivered = append(r.delivered, rec)
}

// sweep drops what was delivered longer ago than keep, and what is too much.
func (r *records) sweep(keep time.Duration) {
	n := 0
	for n < len(r.delivered) && (len(r.delivered)-n > maxRemembered || time.Since(r.delivered[n].delivered) > keep) {
		r.drop(r.delivered[n])
		n++
	}
	r.delivered = slices.Delete(r.delivered, 0, n)
}

// failed notes that storing a record's proposal failed. Of those the last few are kept, so that the same question stores
// the same proposal: it may be there. busy are being stored again.
func (r *records) failed(rec *record, busy map[queue.ID]chan struct{}) {
	r.unsaved = slices.DeleteFunc(r.unsaved, func(o *record) bool { return o == rec || o.unsaved == nil })
	r.unsaved = append(r.unsaved, rec)
	for i := 0; len(r.unsaved) > maxUnsaved && i < len(r.unsaved); {
		if busy[r.unsaved[i].id] != nil {
			i++
			continue
		}
		r.drop(r.unsaved[i])
		r.unsaved = slices.Delete(r.unsaved, i, i+1)
	}
}

// inOrder puts what was loaded in order of delivery.
func (r *records) inOrder() {
	for _, rec := range r.byID {
		if !rec.delivered.IsZero() {
			r.delivered = append(r.delivered, rec)
		}
	}
	slices.SortFunc(r.delivered, func(a, b *record) int {
		return cmp.Or(a.delivered.Compare(b.delivered), cmp.Compare(a.id, b.id))
	})
}

func (t *Tools) sweepLocked() { t.records.sweep(max(remembered, t.opts.Redeliver)) }

func (t *Tools) forget(rec *record) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.records.remove(rec)
}
