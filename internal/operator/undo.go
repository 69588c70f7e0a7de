package operator

import (
	"context"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/bot-bottle/supervise/internal/payload"
	"github.com/bot-bottle/supervise/internal/safetext"
	"github.com/bot-bottle/supervise/queue"
)

// Undo takes an applied change back: where the touched entry is still as we wrote it, it becomes what it was before. The
// agent is not told, since its call was answered long ago; its next request is refused, and it asks again.
func (d *Desk) Undo(ctx context.Context, ref Ref, progress io.Writer) (*Result, error) {
	unlock, err := d.store.lockBottle(ctx, ref.Bottle)
	if err != nil {
		return nil, err
	}
	defer unlock()
	rec, err := d.store.record(ref)
	if err != nil {
		return nil, err
	}
	if rec == nil {
		if _, err := d.entry(ctx, ref); err != nil {
			return nil, err
		}
		return nil, fmt.Errorf("undoing %s: %w: it is not decided yet", ref, ErrNotUndoable)
	}
	changed := slices.ContainsFunc(rec.Targets, func(t RecordTarget) bool { return t.BeforeSHA256 != t.AfterSHA256 })
	switch {
	case rec.State == Undone:
		return nil, fmt.Errorf("undoing %s: %w: %s did that at %s", ref, ErrNotUndoable, rec.UndoneBy, rec.UndoneAt.Format(time.RFC3339))
	case rec.State != Answered:
		return nil, fmt.Errorf("undoing %s: %w: it is %s", ref, ErrNotUndoable, rec.State)
	case rec.Status == queue.Rejected:
		return nil, fmt.Errorf("undoing %s: %w: it was rejected, so nothing was changed", ref, ErrNotUndoable)
	case !changed:
		return nil, fmt.Errorf("undoing %s: %w: it changed nothing", ref, ErrNotUndoable)
	}
	images, err := d.store.images(rec)
	if err != nil {
		return nil, err
	}
	var real []string
	for _, im := range images {
		real = append(real, im.Real)
	}
	slices.Sort(real)
	unlockTargets, err := d.opts.Hand.Lock(ctx, slices.Compact(real))
	if err != nil {
		return nil, err
	}
	defer unlockTargets()
	file := rec.Proposed
	if rec.FinalFile != "" {
		file = rec.FinalFile
	}
	p, err := payload.Parse(rec.Tool, file.Raw())
	if err != nil {
		return nil, err
	}
	// Hand.Undo leaves alone what is as before already, so that an interrupted undo can be done again.
	res, err := d.opts.Hand.Undo(ctx, ref.Bottle, p, images, orDiscard(progress))
	if err != nil {
		return nil, fmt.Errorf("undoing %s: %w", ref, err)
	}
	ctx = context.WithoutCancel(ctx)
	rec.UndoneBy, rec.UndoneAt = d.opts.By, time.Now().UTC().Truncate(time.Microsecond)
	e := rec.entry(EventUndone)
	e.By, e.Via, e.Outcome = d.opts.By, d.opts.Via, res.Outcome
	if err := d.ledger.Ensure(ctx, e); err != nil {
		return nil, err
	}
	rec.State = Undone
	if err := d.store.save(rec); err != nil {
		return nil, err
	}
	out := &Result{Ref: ref, Status: rec.Status, Outcome: res.Outcome}
	for _, n := range res.Notes {
		out.Notes = append(out.Notes, safetext.Line(n, 0))
	}
	return out, nil
}
