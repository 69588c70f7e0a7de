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

// Recovered is what was done about one interrupted decision.
type Recovered struct {
	Ref   Ref         `json:"ref"`
	State RecordState `json:"state"` // answered, failed, stuck or foreign
	Text  string      `json:"text"`  // one sentence; escaped
}

// recoverLock is how long Recover waits for a bottle's lock: whoever holds it is finishing the very same thing.
const recoverLock = 100 * time.Millisecond

// Recover finishes, or puts back, what a process that died left between deciding and answering. What another living
// process is busy with is left to it. One failure does not keep the others from being recovered.
func (d *Desk) Recover(ctx context.Context) ([]Recovered, error) {
	refs, err := d.store.unfinished()
	if err != nil {
		return nil, err
	}
	var out []Recovered
	var errs []error
	way := map[string]*InTheWayError{} // by bottle: one says enough
	for _, ref := range refs {
		lctx, cancel := context.WithTimeout(ctx, recoverLock)
		unlock, err := d.lockBottle(lctx, ref.Bottle, "finishing "+ref.String(), nil)
		cancel()
		if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
			continue
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		r, err := d.recoverLocked(ctx, ref)
		release, rerr := d.toReplace(ref)
		unlock()
		if rerr != nil {
			errs = append(errs, rerr)
		}
		if e, ok := errors.AsType[*InTheWayError](err); ok {
			if way[ref.Bottle] == nil {
				way[ref.Bottle] = e
				errs = append(errs, e)
			}
		} else if err != nil {
			errs = append(errs, fmt.Errorf("recovering %s of bottle %s: %w", ref, ref.Bottle, err))
		}
		if release != nil {
			d.tell(nil, fmt.Sprintf("bottle %s is still to be replaced for %s, which an interrupted command left to do: replacing it first", ref.Bottle, ref))
			note, _, err := d.replace(ctx, ref, nil)
			release()
			switch {
			case err != nil:
				errs = append(errs, err)
			case r == nil:
				r = &Recovered{ref, Answered, note}
			default:
				r.Text += "; " + note
			}
		}
		if r != nil {
			out = append(out, *r)
		}
	}
	return out, errors.Join(errs...)
}

// toReplace returns a release if a bottle is still to be replaced and nobody is about to. It needs the bottle's lock.
func (d *Desk) toReplace(ref Ref) (release func(), err error) {
	rec, err := d.store.record(ref)
	if err != nil || rec == nil || rec.State != Answered || !rec.ReplacePending {
		return nil, err
	}
	return d.store.hold(ref)
}

// recoverLocked looks at one record with its bottle's lock held. It returns nil when there was nothing to do.
func (d *Desk) recoverLocked(ctx context.Context, ref Ref) (*Recovered, error) {
	rec, err := d.store.record(ref)
	if err != nil {
		return nil, err
	}
	replace := rec != nil && rec.State == Answered && rec.ReplacePending
	if rec != nil && rec.State == Answered && !replace && rec.Error != "" { // see notReplaced: no other answered one has an error
		if err := d.ledger.Ensure(ctx, rec.At, rec.entry(EventNotReplaced)); err != nil {
			return nil, err
		}
	}
	if rec == nil || rec.final() && !replace || rec.open() {
		return nil, d.store.end(ref)
	}
	if replace {
		return nil, nil // Recover does that, with no lock held
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
	unlock, err := d.opts.Hand.Lock(ctx, slices.Compact(real))
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := d.ledger.Ensure(ctx, rec.At, rec.entry(EventDecided)); err != nil {
		return nil, err
	}
	if rec.State == Applied || rec.Status == queue.Rejected {
		if rec.State == Applied {
			if err := d.ledger.Ensure(ctx, rec.At, rec.entry(EventApplied)); err != nil {
				return nil, err
			}
		}
		return d.reanswer(ctx, rec, images)
	}
	return d.reclaim(ctx, rec, images)
}

// finishOthers finishes or puts back, before something is changed for a bottle, what was left of its other proposals since this
// process last looked: afterwards their files would look as if a person had edited them. It needs the bottle's lock.
func (d *Desk) finishOthers(ctx context.Context, but Ref) error {
	refs, err := d.store.unfinished()
	if err != nil {
		return err
	}
	for _, ref := range refs {
		if ref.Bottle != but.Bottle || ref == but {
			continue
		}
		done, err := d.recoverLocked(ctx, ref)
		if done != nil {
			d.log.Info("recovered", "bottle", ref.Bottle, "id", ref.ID, "state", done.State)
		}
		if err == nil {
			continue
		}
		// What only lacks its answer is in nobody's way.
		if rec, rerr := d.store.record(ref); rerr != nil || rec != nil && rec.State == Claimed {
			return fmt.Errorf("finishing what was left of %s: %w", ref, err)
		}
	}
	return nil
}

// finishWait is how long a bottle that shares a file with this one may be busy before its interrupted decision is left to it.
const finishWait = 5 * time.Second

// lockFiles locks what is about to be changed. What another bottle's interrupted decision holds of the same files is finished or
// put back first: whoever has the locks and finds a claim on them knows that its process died. It needs ref's bottle's lock.
func (d *Desk) lockFiles(ctx context.Context, ref Ref, real []string) (unlock func(), err error) {
	for last := (Ref{}); ; {
		if unlock, err = d.opts.Hand.Lock(ctx, real); err != nil {
			return nil, err
		}
		left, err := d.claimOn(ref.Bottle, real)
		if err == nil && left == (Ref{}) {
			return unlock, nil
		}
		unlock() // finishing it takes its bottle's lock and then these
		switch {
		case err != nil:
		case left == last:
			err = fmt.Errorf("what was left of %s of bottle %s, which shares a file with this one, cannot be finished: decide that one first", left, left.Bottle)
		default:
			err = d.finishOf(ctx, left)
		}
		if err != nil {
			return nil, err
		}
		last = left
	}
}

// claimOn finds an unfinished change of one of the files by another bottle than but.
func (d *Desk) claimOn(but string, real []string) (Ref, error) {
	refs, err := d.store.unfinished()
	if err != nil {
		return Ref{}, err
	}
	for _, ref := range refs {
		if ref.Bottle == but {
			continue
		}
		rec, err := d.store.record(ref)
		if err != nil { // Recover reports it; it is no reason to decide nothing for any other bottle
			d.log.Warn("looking for what was left", "bottle", ref.Bottle, "id", ref.ID, "err", err)
			continue
		}
		if rec != nil && rec.State == Claimed && slices.ContainsFunc(rec.Targets, func(t RecordTarget) bool { return slices.Contains(real, t.Real) }) {
			return ref, nil
		}
	}
	return Ref{}, nil
}

func (d *Desk) finishOf(ctx context.Context, ref Ref) error {
	lctx, cancel := context.WithTimeout(ctx, finishWait)
	unlock, err := d.lockBottle(lctx, ref.Bottle, "finishing "+ref.String(), nil)
	cancel()
	if err != nil {
		return fmt.Errorf("finishing what was left of %s of bottle %s, which shares a file with this one: %w", ref, ref.Bottle, err)
	}
	defer unlock()
	done, err := d.recoverLocked(ctx, ref)
	if err != nil {
		return fmt.Errorf("finishing what was left of %s of bottle %s, which shares a file with this one: %w", ref, ref.Bottle, err)
	}
	if done != nil {
		d.log.Info("recovered", "bottle", ref.Bottle, "id", ref.ID, "state", done.State)
	}
	return nil
}

func (d *Desk) reanswer(ctx context.Context, rec *Record, images []apply.Image) (*Recovered, error) {
	ref := Ref{rec.Bottle, rec.ID}
	err := d.answer(ctx, rec, images)
	if rec.State == Foreign {
		return &Recovered{ref, Foreign, rec.Error.Line(0)}, nil
	}
	if err != nil {
		return nil, err
	}
	return &Recovered{ref, Answered, fmt.Sprintf("%s as decided by %s", rec.Status, rec.By)}, nil
}

// reclaim sorts out a claimed approval by what its targets are now.
func (d *Desk) reclaim(ctx context.Context, rec *Record, images []apply.Image) (*Recovered, error) {
	ref := Ref{rec.Bottle, rec.ID}
	states, err := d.opts.Hand.Inspect(ctx, images)
	if err != nil {
		return nil, err
	}
	var before, after, neither int
	for _, s := range states {
		switch s {
		case apply.IsBefore:
			before++
		case apply.IsAfter:
			after++
		case apply.Neither:
			neither++
		}
	}
	if e, err := d.opts.Inbox.Get(ctx, ref.Bottle, ref.ID); err == nil && e.Response != nil && !isOurs(rec, *e.Response) {
		err := d.lost(ctx, rec, images, e.Response)
		if rec.State != Foreign {
			return nil, err
		}
		return &Recovered{ref, Foreign, rec.Error.Line(0)}, nil
	}
	later, _, err := d.needed(ctx, rec, images) // it may have been in force, and about to be taken back
	if err != nil {
		return nil, err
	}
	ours, stays := leave(images, later)
	if stays != "" {
		stays = "; " + stays
	}
	switch {
	case neither > 0:
		var names []string
		for i, s := range states {
			if s == apply.Neither {
				names = append(names, images[i].Path)
			}
		}
		rec.State = RecordStuck
		rec.Error = safetext.Untrusted(fmt.Sprintf("interrupted, and since then edited by someone else: %s. Nothing was touched. Look at it, then approve or reject again.", strings.Join(names, ", ")))
		if err := d.ledger.Ensure(ctx, rec.At, rec.entry(EventStuck)); err != nil {
			return nil, err
		}
		if err := d.store.save(rec); err != nil {
			return nil, err
		}
		return &Recovered{ref, RecordStuck, rec.Error.Line(0)}, d.store.end(ref)
	case before > 0:
		// Also when all is as before: whoever died between putting a file back and reloading left a proxy that
		// still has the route, and PutBack reloads what it need not write.
		if err := d.opts.Hand.PutBack(ctx, rec.Bottle, ours, io.Discard); err != nil {
			return d.reopened(ctx, rec, "interrupted, and not all could be put back: "+err.Error()+stays)
		}
		if after == 0 {
			return d.reopened(ctx, rec, "interrupted before anything was changed")
		}
		return d.reopened(ctx, rec, "interrupted half-way; what was changed has been put back"+stays)
	}
	file := rec.Proposed
	if rec.FinalFile != "" {
		file = rec.FinalFile
	}
	p, err := payload.Parse(rec.Tool, file.Raw())
	if err != nil {
		return nil, err
	}
	res, err := d.opts.Hand.Confirm(ctx, rec.Bottle, p, images, io.Discard)
	if err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		text := "interrupted before it was seen live, and it is not: " + err.Error()
		if perr := d.opts.Hand.PutBack(ctx, rec.Bottle, ours, io.Discard); perr != nil {
			text += "; not all could be put back: " + perr.Error()
		}
		return d.reopened(ctx, rec, text+stays)
	}
	if _, err := d.finish(ctx, rec, res, images); err != nil {
		if rec.State == Foreign {
			return &Recovered{ref, Foreign, rec.Error.Line(0)}, nil
		}
		return nil, err
	}
	return &Recovered{ref, Answered, fmt.Sprintf("%s as decided by %s, and answered now", rec.Status, rec.By)}, nil
}

func (d *Desk) reopened(ctx context.Context, rec *Record, text string) (*Recovered, error) {
	if err := d.failed(ctx, rec, errors.New(text)); err != nil {
		return nil, err
	}
	return &Recovered{Ref{rec.Bottle, rec.ID}, RecordFailed, rec.Error.Line(0)}, nil
}

// recoverEvery is how often a long-running desk recovers.
const recoverEvery = 5 * time.Second

// Run recovers at once and then every five seconds, until ctx ends.
func (d *Desk) Run(ctx context.Context) error {
	t := time.NewTicker(recoverEvery)
	defer t.Stop()
	said := ""
	for {
		done, err := d.Recover(ctx)
		if err == nil {
			said = ""
		} else if text := safetext.Line(err.Error(), 500); ctx.Err() == nil && text != said {
			said = text // once, as long as it is all that is wrong
			d.log.Warn("recovering", "err", text)
		}
		for _, r := range done {
			d.log.Info("recovered", "bottle", r.Ref.Bottle, "id", r.Ref.ID, "state", r.State)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
	}
}

// Changes tells when to look again; see [queue.Inbox].
func (d *Desk) Changes(ctx context.Context) (<-chan struct{}, error) {
	return d.opts.Inbox.Changes(ctx)
}

// Trail is cheap: it reads the end of the ledger, and looks at one directory a bottle.
func (d *Desk) Trail(ctx context.Context) (Trail, error) {
	var t Trail
	for e, err := range d.History(ctx, HistoryFilter{Limit: 1}) {
		if err != nil {
			return t, err
		}
		t.Seq = e.Seq
	}
	var err error
	t.Records, t.Saved, err = d.store.saved()
	return t, err
}

// Forget removes a bottle's mailbox, with what is open in it. Records and ledger stay. It finishes what was interrupted, and replaces
// no bottle, which would bring back one that is gone: what a desk that was killed has left replacing it is ended.
func (d *Desk) Forget(ctx context.Context, bottle string) error {
	unlock, err := d.lockBottle(ctx, bottle, "forgetting the bottle", nil)
	if err != nil {
		return fmt.Errorf("forgetting bottle %s: %w", bottle, err)
	}
	defer unlock()
	if err := d.finishOthers(ctx, Ref{Bottle: bottle}); err != nil {
		d.log.Warn("forgetting all the same", "bottle", bottle, "err", err)
	}
	left := d.opts.Inbox.Forget(ctx, bottle)
	if left != nil { // if it is no bottle any more, some files are in the way, and no more
		if bottles, err := d.opts.Inbox.Bottles(ctx); err != nil || slices.Contains(bottles, bottle) {
			return left
		}
	}
	refs, err := d.store.unfinished()
	if err != nil {
		return errors.Join(left, err)
	}
	for _, ref := range refs {
		if ref.Bottle != bottle {
			continue
		}
		rec, err := d.store.record(ref)
		if err == nil && rec != nil && rec.State == Answered && rec.ReplacePending {
			_, err = d.giveUp(ctx, rec, "has forgotten it", nil)
		}
		if err != nil {
			return errors.Join(left, fmt.Errorf("bottle %s is forgotten, and the next command may replace it: %w", bottle, err))
		}
	}
	return left
}
