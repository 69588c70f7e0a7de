package operator

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/bot-bottle/supervise/internal/apply"
	"github.com/bot-bottle/supervise/internal/payload"
	"github.com/bot-bottle/supervise/internal/safetext"
	"github.com/bot-bottle/supervise/queue"
)

// Undo takes an applied change back: where the touched entry is still as we wrote it, it becomes what it was before. An
// agent whose call was answered is not told: its next request is refused, and it asks again. One that was not, or asks for that answer
// once more, hears that it was taken back. A change whose agent cannot be told is taken back too, and that proposal is open again.
func (d *Desk) Undo(ctx context.Context, ref Ref, progress io.Writer) (*Result, error) {
	res, err := d.undo(ctx, ref, false, progress)
	return res, d.makeRoom(err)
}

// UndoUnmanaged is Undo for whoever sees to it that a file is read again that the configuration no longer names. Undo refuses that:
// the configuration may just be the wrong one, and the change in force still when it counts as undone.
func (d *Desk) UndoUnmanaged(ctx context.Context, ref Ref, progress io.Writer) (*Result, error) {
	res, err := d.undo(ctx, ref, true, progress)
	return res, d.makeRoom(err)
}

func (d *Desk) undo(ctx context.Context, ref Ref, unmanaged bool, progress io.Writer) (*Result, error) {
	unlock, err := d.lockBottle(ctx, ref.Bottle, "undoing "+ref.String(), progress)
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
	if err := d.finishOthers(ctx, ref); err != nil {
		d.log.Warn("undoing all the same", "bottle", ref.Bottle, "id", ref.ID, "err", err) // it takes authority away
	}
	if rec.State == Claimed || rec.State == Applied {
		_, rerr := d.recoverLocked(ctx, ref)
		if rec, err = d.store.record(ref); err != nil || rec == nil {
			return nil, errors.Join(rerr, err)
		}
		if rec.State == Applied {
			return d.takeBack(ctx, rec, unmanaged, progress)
		}
		if rerr != nil {
			return nil, fmt.Errorf("undoing %s: finishing what was left of it: %w", ref, rerr)
		}
	}
	switch {
	case rec.State == Undone:
		return nil, fmt.Errorf("undoing %s: %w: %s did that at %s", ref, ErrNotUndoable, rec.UndoneBy, rec.UndoneAt.Format(time.RFC3339))
	case rec.State != Answered:
		return nil, fmt.Errorf("undoing %s: %w: it is %s", ref, ErrNotUndoable, rec.State)
	case rec.Status == queue.Rejected:
		return nil, fmt.Errorf("undoing %s: %w: it was rejected, so nothing was changed", ref, ErrNotUndoable)
	case !rec.changed():
		return nil, fmt.Errorf("undoing %s: %w: it changed nothing", ref, ErrNotUndoable)
	}
	ended, err := d.unreplace(ctx, rec, progress)
	if err != nil {
		return nil, fmt.Errorf("undoing %s: %w", ref, err)
	}
	res, err := d.restore(ctx, rec, unmanaged, progress)
	if err != nil {
		return nil, err
	}
	if ended != "" {
		res.Notes = append(res.Notes, ended)
	}
	ctx = context.WithoutCancel(ctx)
	if err := d.opts.Inbox.Undone(ctx, rec.Bottle, rec.ID); err != nil && !errors.Is(err, queue.ErrNotFound) { // pruned, or forgotten
		res.Notes = append(res.Notes, "an agent that asks for this answer again hears that it was approved: "+err.Error())
	}
	rec.UndoneBy, rec.UndoneAt = d.opts.By, time.Now().UTC().Truncate(time.Microsecond)
	e := rec.entry(EventUndone)
	e.By, e.Via, e.Outcome, e.Error = d.opts.By, d.opts.Via, res.Outcome, "" // what failed before is in a line of its own
	if err := d.ledger.Ensure(ctx, rec.At, e); err != nil {
		return nil, err
	}
	rec.State = Undone
	if err := d.store.save(rec); err != nil {
		return nil, err
	}
	d.remember(rec)
	return undone(rec, res), nil
}

// unreplace keeps the bottle from being replaced by what is about to be taken back, also if that should fail.
func (d *Desk) unreplace(ctx context.Context, rec *Record, progress io.Writer) (ended string, _ error) {
	if !rec.ReplacePending {
		if rec.Error == "" {
			return "", nil
		}
		_, err := d.recoverLocked(ctx, Ref{rec.Bottle, rec.ID}) // whoever said so may have been killed before it was in the ledger
		return "", err
	}
	return d.giveUp(ctx, rec, "has begun to take the change back", progress)
}

func undone(rec *Record, res apply.Result) *Result {
	out := &Result{Ref: Ref{rec.Bottle, rec.ID}, Status: rec.Status, Outcome: res.Outcome}
	for _, n := range res.Notes {
		out.Notes = append(out.Notes, safetext.Line(n, 0))
	}
	return out
}

// restore makes the targets of a record what they were.
func (d *Desk) restore(ctx context.Context, rec *Record, unmanaged bool, progress io.Writer) (apply.Result, error) {
	var res apply.Result
	images, err := d.store.images(rec)
	if err != nil {
		return res, err
	}
	var real []string
	for _, im := range images {
		real = append(real, im.Real)
	}
	slices.Sort(real)
	real = slices.Compact(real)
	unlockTargets, err := d.lockFiles(ctx, Ref{rec.Bottle, rec.ID}, real)
	if err != nil && ctx.Err() == nil {
		d.log.Warn("undoing all the same", "bottle", rec.Bottle, "id", rec.ID, "err", err) // it takes authority away
		unlockTargets, err = d.opts.Hand.Lock(ctx, real)
	}
	if err != nil {
		return res, err
	}
	defer unlockTargets()
	later, alike, err := d.needed(ctx, rec, images)
	if err != nil {
		return res, fmt.Errorf("undoing %s: %w", rec.ID, err)
	}
	if later != nil && alike {
		i := slices.IndexFunc(images, isGate)
		return res, fmt.Errorf("undoing %s: %w", rec.ID, &apply.Failure{Undo: true, Step: "check", Kind: images[i].Kind, Path: images[i].Path,
			Err: fmt.Errorf("a change for host %s that was approved later, for bottle %s, needs it here: take that back first, with 'supervise undo %s', or both by hand",
				safetext.Line(images[i].EntryAfter, 253), later.Bottle, later.ID)})
	}
	images, stays := leave(images, later)
	file := rec.Proposed
	if rec.FinalFile != "" {
		file = rec.FinalFile
	}
	p, err := payload.Parse(rec.Tool, file.Raw())
	if err != nil {
		return res, err
	}
	// Hand.Undo leaves alone what is as before already, so that an interrupted undo can be done again.
	res, err = d.opts.Hand.Undo(ctx, rec.Bottle, p, images, unmanaged, orDiscard(progress))
	if err != nil {
		return res, fmt.Errorf("undoing %s: %w", rec.ID, err)
	}
	if stays != "" {
		res.Notes = append(res.Notes, stays)
	}
	return res, nil
}

// needed finds a later change that rests on the host which this one has put into pipelock's list: it found it there, or added it again,
// and its route would be open, and the host closed behind it. A route that was widened since is refused by the hand; in pipelock's list
// nothing tells that somebody else needs an entry. What changed nothing itself is in nobody's way, since it cannot be undone first; nor
// is anything when the host is out of the list already. alike tells that this one has no route of its own, which closes without the
// list, or one in the same file as the later one's.
func (d *Desk) needed(ctx context.Context, rec *Record, images []apply.Image) (later *Record, alike bool, _ error) {
	i := slices.IndexFunc(images, isGate)
	if i < 0 || images[i].BeforeSHA256 == images[i].AfterSHA256 {
		return nil, false, nil
	}
	ours := images[i]
	ours.BeforeSHA256 = ours.AfterSHA256 // so that the entry is looked for, and not the file
	if now, err := d.opts.Hand.Inspect(ctx, []apply.Image{ours}); err == nil && now[0] == apply.Neither {
		return nil, false, nil
	}
	for e, err := range d.History(ctx, HistoryFilter{}) {
		if ctx.Err() != nil {
			return nil, false, context.Cause(ctx)
		}
		if err != nil {
			d.log.Warn("looking for what needs a host", "bottle", rec.Bottle, "id", rec.ID, "err", err) // the lines around it are still worth looking at
			continue
		}
		if e.ID == rec.ID && e.Bottle == rec.Bottle && (e.Event == EventApplied || e.Event == EventDecided) {
			break
		}
		if e.Event != EventApplied || len(e.Targets) == 0 || e.Tool == payload.Capability {
			continue
		}
		r, err := d.store.record(Ref{e.Bottle, e.ID})
		if err != nil { // Recover reports it
			d.log.Warn("looking for what needs a host", "bottle", e.Bottle, "id", e.ID, "err", err)
		}
		if r == nil || r.State != Answered && r.State != Applied || !r.changed() {
			continue
		}
		if !slices.ContainsFunc(r.Targets, func(t RecordTarget) bool {
			return t.Kind == ours.Kind && t.Real == ours.Real && strings.EqualFold(t.EntryAfter.Raw(), ours.EntryAfter)
		}) {
			continue
		}
		if !slices.ContainsFunc(images, func(im apply.Image) bool {
			return im.Kind == apply.KindEgress && im.BeforeSHA256 != im.AfterSHA256 && !slices.ContainsFunc(r.Targets, func(t RecordTarget) bool { return t.Real == im.Real })
		}) {
			return r, true, nil
		}
		later = r
	}
	return later, false, nil
}

func isGate(im apply.Image) bool { return im.Kind == apply.KindPipelock }

// leave is the images without pipelock's, when a later change needs the host there, and what is to be said then.
func leave(images []apply.Image, later *Record) (others []apply.Image, stays string) {
	if later == nil {
		return images, ""
	}
	for _, im := range images {
		if !isGate(im) {
			others = append(others, im)
			continue
		}
		stays = fmt.Sprintf("pipelock: host %s stays in %s, since %s of bottle %s, which was approved later, needs it; when nothing does any more, take it out by hand",
			safetext.Line(im.EntryAfter, 253), im.Path, later.ID, later.Bottle)
	}
	return others, stays
}

// takeBack undoes a change that holds and whose agent cannot be told, for whatever reason. The proposal is open again. While
// it is at it the record is a claim, so that after a crash the targets tell how far it got.
func (d *Desk) takeBack(ctx context.Context, rec *Record, unmanaged bool, progress io.Writer) (*Result, error) {
	var res apply.Result
	rec.State = Claimed
	if err := d.store.save(rec); err != nil {
		return nil, err
	}
	if slices.ContainsFunc(rec.Targets, func(t RecordTarget) bool { return t.BeforeSHA256 != t.AfterSHA256 }) {
		var err error
		if res, err = d.restore(ctx, rec, unmanaged, progress); err != nil {
			if f, ok := errors.AsType[*apply.Failure](err); ok && len(f.Restored) == 0 || !ok && ctx.Err() != nil {
				rec.State = Applied // nothing was touched: it holds still
				err = errors.Join(err, d.store.save(rec))
			}
			return nil, err
		}
	}
	ctx = context.WithoutCancel(ctx)
	rec.UndoneBy, rec.UndoneAt = d.opts.By, time.Now().UTC().Truncate(time.Microsecond)
	rec.Error = safetext.Untrusted(fmt.Sprintf("%s by %s, and taken back by %s before its agent was told", rec.Status, rec.By, d.opts.By))
	e := rec.entry(EventUndone)
	e.By, e.Via, e.Outcome = d.opts.By, d.opts.Via, res.Outcome
	if err := d.ledger.Ensure(ctx, rec.At, e); err != nil {
		return nil, err
	}
	rec.State, rec.Outcome, rec.ReplacePending = RecordFailed, "", false
	if err := d.store.save(rec); err != nil {
		return nil, err
	}
	if err := d.store.end(Ref{rec.Bottle, rec.ID}); err != nil {
		d.log.Warn("unmarking", "bottle", rec.Bottle, "id", rec.ID, "err", err)
	}
	return undone(rec, res), nil
}
