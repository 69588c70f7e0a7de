package operator

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/bot-bottle/supervise/internal/apply"
	"github.com/bot-bottle/supervise/internal/payload"
	"github.com/bot-bottle/supervise/internal/safetext"
	"github.com/bot-bottle/supervise/queue"
)

// replaceAfter is how long an answer may take to reach the agent before its bottle is replaced all the same.
const replaceAfter = 10 * time.Second

// Approve makes the change and, once it is live, answers the agent. Errors: [ErrNotFound], [*StaleError],
// [*DecidedError], [*DangerError], [*UnmanagedError], [*EditError], [ErrBlocked], [*InTheWayError], and [*apply.Failure] for a change
// that did not hold: that proposal is open again.
func (d *Desk) Approve(ctx context.Context, ref Ref, dec Decision) (*Result, error) {
	res, release, err := d.approve(ctx, ref, dec)
	if err != nil || release == nil {
		return res, d.makeRoom(err)
	}
	defer release()
	// With no lock held: the agent is to get its answer before its bottle goes away under it.
	note, holds, err := d.replace(ctx, ref, dec.Progress)
	if err != nil {
		return res, err
	}
	res.Outcome = holds
	if rec, err := d.store.record(ref); err == nil {
		res.Undoable = rec.Undoable() // not when somebody has undone it meanwhile
	}
	res.Notes = append(res.Notes, note)
	return res, nil
}

// lockBottle takes the bottle's lock to do something, and tells whoever waits for it long what is being done.
func (d *Desk) lockBottle(ctx context.Context, bottle, doing string, progress io.Writer) (unlock func(), err error) {
	holder := fmt.Sprintf("%s (%s, process %d, since %s)", doing, d.opts.By, os.Getpid(), time.Now().Format(time.TimeOnly))
	return d.store.lockBottle(ctx, bottle, holder, func(holder string) {
		d.tell(progress, fmt.Sprintf("bottle %s is busy, and this waits for it: %s", bottle, cmp.Or(holder, "somebody decides for it")))
	})
}

// tell says what takes a while; see Options.Waiting.
func (d *Desk) tell(progress io.Writer, text string) {
	text = safetext.Line(text, 0)
	if d.opts.Waiting != nil {
		d.opts.Waiting(text)
	} else if progress != nil {
		fmt.Fprintln(progress, text)
	}
}

// approve returns a release when the bottle is to be replaced, which is left to the caller until it is called.
func (d *Desk) approve(ctx context.Context, ref Ref, dec Decision) (_ *Result, release func(), _ error) {
	unlock, err := d.lockBottle(ctx, ref.Bottle, "approving "+ref.String(), dec.Progress)
	if err != nil {
		return nil, nil, err
	}
	defer unlock()
	e, rec, err := d.undecided(ctx, ref)
	if err != nil {
		return nil, nil, err
	}
	if err := d.finishOthers(ctx, ref); err != nil {
		return nil, nil, err
	}
	c, err := d.consider(ctx, e, dec.File)
	if err != nil {
		return nil, nil, err
	}
	if c.plan == nil {
		return nil, nil, fmt.Errorf("approving %s: %w: %s", ref, ErrBlocked, c.Blocked)
	}
	real := reals(c.plan)
	unlockTargets, err := d.lockFiles(ctx, ref, real)
	if err != nil {
		return nil, nil, fmt.Errorf("waiting for the files of %s: %w", ref, err)
	}
	defer unlockTargets()
	// Again, now that nobody of ours can change anything: this one is decided.
	if c, err = d.consider(ctx, e, dec.File); err != nil {
		return nil, nil, err
	}
	if !slices.Equal(real, reals(c.plan)) || c.Digest != dec.Digest {
		return nil, nil, &StaleError{ref, c.Preview}
	}
	if c.plan.Blocked != nil {
		return nil, nil, fmt.Errorf("approving %s: %w: %s", ref, ErrBlocked, c.Blocked)
	}
	if missing := slices.DeleteFunc(slices.Clone(c.Findings), func(f Finding) bool {
		return f.Level != Danger || slices.Contains(dec.Accept, f.Code)
	}); len(missing) > 0 {
		return nil, nil, &DangerError{ref, missing}
	}
	if len(c.Unmanaged) > 0 && !dec.Unmanaged {
		return nil, nil, &UnmanagedError{ref, c.Unmanaged}
	}
	if err := d.answerable(ctx, ref); err != nil {
		return nil, nil, err
	}

	rec = d.claim(e, rec, queue.Approved, dec.Notes)
	rec.Digest, rec.Accepted, rec.Unmanaged = c.Digest, c.Dangers(), len(c.Unmanaged) > 0
	if c.edited {
		rec.Status, rec.FinalFile = queue.Modified, c.Edited
	}
	if err := d.store.begin(ref); err != nil {
		return nil, nil, err
	}
	images, err := d.keep(rec, c.plan)
	if err != nil {
		return nil, nil, err
	}
	if err := d.store.save(rec); err != nil {
		return nil, nil, err
	}
	// From here on a crash, or an error of our own disk, leaves a claimed record, and Recover finishes or puts back.
	if err := d.ledger.Append(context.WithoutCancel(ctx), rec.entry(EventDecided)); err != nil {
		return nil, nil, unfinished(ref, err)
	}
	applied, err := d.opts.Hand.Apply(ctx, c.plan, orDiscard(dec.Progress))
	ctx = context.WithoutCancel(ctx) // what is done is answered, whoever hangs up
	if err != nil {
		if ferr := d.failed(ctx, rec, err); ferr != nil {
			return nil, nil, unfinished(ref, errors.Join(errors.New(err.Error()), ferr)) // an apply.Failure would say that it is open again
		}
		return nil, nil, fmt.Errorf("applying %s: %w", ref, err)
	}
	res, err := d.finish(ctx, rec, applied, images)
	if err != nil || !rec.ReplacePending {
		return res, nil, err
	}
	if release, err = d.store.hold(ref); err != nil {
		return res, nil, unfinished(ref, err)
	}
	return res, release, nil
}

func unfinished(ref Ref, err error) error {
	return fmt.Errorf("proposal %s is not finished, and the next command finishes it or puts it back: %w", ref, err)
}

func reals(p *apply.Plan) []string {
	var out []string
	for _, t := range p.Targets {
		out = append(out, t.Real)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func orDiscard(w io.Writer) io.Writer {
	if w == nil {
		return io.Discard
	}
	return w
}

// undecided returns an open entry and its last record, which may be nil. It needs the bottle's lock; what an earlier
// process left unfinished is finished first.
func (d *Desk) undecided(ctx context.Context, ref Ref) (queue.Entry, *Record, error) {
	rec, err := d.store.record(ref)
	if err != nil {
		return queue.Entry{}, nil, err
	}
	if rec != nil && (rec.State == Claimed || rec.State == Applied) {
		if _, err := d.recoverLocked(ctx, ref); err != nil {
			return queue.Entry{}, nil, fmt.Errorf("finishing what was left of %s: %w", ref, err)
		}
		if rec, err = d.store.record(ref); err != nil {
			return queue.Entry{}, nil, err
		}
	}
	if rec != nil && !rec.open() {
		return queue.Entry{}, nil, decidedBy(ref, rec)
	}
	e, err := d.entry(ctx, ref)
	if err != nil {
		return e, nil, err
	}
	if e.Response != nil {
		if err := d.noteForeign(ctx, e); err != nil {
			return e, nil, err
		}
		return e, nil, decidedBy(ref, foreignRecord(e))
	}
	return e, rec, nil
}

// answerable looks whether the response's name is free. It may be taken afterwards all the same: see Undo.
func (d *Desk) answerable(ctx context.Context, ref Ref) error {
	e, err := d.entry(ctx, ref)
	if err == nil && e.Response == nil && e.BadResponse != nil {
		return d.inTheWay(ref, e.BadResponse, "")
	}
	return err
}

func (d *Desk) inTheWay(ref Ref, bad *queue.BadError, decided queue.Status) *InTheWayError {
	return &InTheWayError{Ref: ref, File: safetext.Line(filepath.Join(d.opts.Root, ref.Bottle, bad.Name), 0), Reason: bad.Reason, Decided: decided}
}

func decidedBy(ref Ref, rec *Record) error {
	return &DecidedError{Ref: ref, Status: rec.Status, By: rec.By, Via: rec.Via, At: rec.At}
}

// claim starts a new attempt. Of notes the agent gets what is UTF-8: a terminal, or a form, may send other bytes.
func (d *Desk) claim(e queue.Entry, last *Record, status queue.Status, notes string) *Record {
	p := e.Proposal
	rec := &Record{
		ID: p.ID, Bottle: p.Bottle, Tool: p.Tool, Proposed: safetext.Untrusted(p.ProposedFile), ProposalSHA256: proposalSHA256(p),
		Attempt: 1, State: Claimed, By: d.opts.By, Via: d.opts.Via, At: time.Now().UTC().Truncate(time.Microsecond), Status: status, Notes: safetext.Untrusted(strings.ToValidUTF8(notes, "\ufffd")),
	}
	if last != nil {
		rec.Attempt = last.Attempt + 1
	}
	return rec
}

// keep stores the plan's targets as they are now, in the record and beside it.
func (d *Desk) keep(rec *Record, plan *apply.Plan) ([]apply.Image, error) {
	var images []apply.Image
	for _, t := range plan.Targets {
		im := apply.ImageOf(t)
		rt := RecordTarget{Kind: im.Kind, Path: im.Path, Real: im.Real, Existed: im.Existed, BeforeSHA256: im.BeforeSHA256, AfterSHA256: im.AfterSHA256,
			EntryBefore: safetext.Untrusted(im.EntryBefore), EntryAfter: safetext.Untrusted(im.EntryAfter)}
		if im.Existed && t.Changed() {
			var err error
			if rt.Backup, err = d.store.backup(rec, im); err != nil {
				return nil, err
			}
		}
		rec.Targets = append(rec.Targets, rt)
		images = append(images, im)
	}
	return images, nil
}

// failed opens the proposal again.
func (d *Desk) failed(ctx context.Context, rec *Record, cause error) error {
	rec.State, rec.Error = RecordFailed, safetext.Untrusted(cause.Error())
	if f, ok := errors.AsType[*apply.Failure](cause); ok {
		for _, left := range f.Left {
			rec.Error += safetext.Untrusted("\nnot put back: " + left)
		}
	}
	if err := d.ledger.Ensure(ctx, rec.At, rec.entry(EventFailed)); err != nil {
		return err
	}
	if err := d.store.save(rec); err != nil {
		return err
	}
	return d.store.end(Ref{rec.Bottle, rec.ID})
}

// finish records a change that holds and answers the agent.
func (d *Desk) finish(ctx context.Context, rec *Record, applied apply.Result, images []apply.Image) (*Result, error) {
	ref := Ref{rec.Bottle, rec.ID}
	rec.Outcome = applied.Outcome
	if rec.Unmanaged {
		rec.Outcome = queue.Unverified
	}
	if err := d.ledger.Ensure(ctx, rec.At, rec.entry(EventApplied)); err != nil {
		return nil, unfinished(ref, err)
	}
	rec.State, rec.Error = Applied, ""
	rec.ReplacePending = applied.Replace
	if err := d.store.save(rec); err != nil {
		return nil, unfinished(ref, err)
	}
	if err := d.answer(ctx, rec, images); err != nil {
		return nil, err
	}
	res := &Result{Ref: ref, Status: rec.Status, Outcome: rec.Outcome, Undoable: rec.Undoable()}
	for _, n := range applied.Notes {
		res.Notes = append(res.Notes, safetext.Line(n, 0))
	}
	return res, nil
}

// answer creates the response of an applied (or rejecting) record and makes the record final.
func (d *Desk) answer(ctx context.Context, rec *Record, images []apply.Image) error {
	ref := Ref{rec.Bottle, rec.ID}
	if err := d.store.before("respond"); err != nil {
		return err
	}
	resp := rec.response()
	err := d.opts.Inbox.Respond(ctx, rec.Bottle, resp)
	if err != nil {
		have, gone := d.standing(ctx, ref, err)
		if bad, ok := errors.AsType[*queue.BadError](err); ok && have == nil && !gone && bad.Name == string(ref.ID)+".response.json" {
			return d.inTheWay(ref, bad, rec.Status)
		}
		if !gone && have == nil {
			return unfinished(ref, fmt.Errorf("answering: %w", err)) // the mailbox is full or out of reach: later
		}
		if have == nil || !isOurs(rec, *have) {
			return d.lost(ctx, rec, images, have)
		}
	}
	rec.State = Answered
	if err := d.store.save(rec); err != nil {
		return unfinished(ref, err)
	}
	d.remember(rec)
	if rec.ReplacePending {
		return nil // the marker stays until the bottle is replaced
	}
	if err := d.store.end(ref); err != nil {
		d.log.Warn("unmarking", "bottle", ref.Bottle, "id", ref.ID, "err", err)
	}
	return nil
}

// standing tells what stands in the mailbox when Respond failed: another response, or that the proposal is gone.
func (d *Desk) standing(ctx context.Context, ref Ref, err error) (have *queue.Response, gone bool) {
	if c, ok := errors.AsType[*queue.ConflictError](err); ok {
		return &c.Response, false
	}
	if !errors.Is(err, queue.ErrLate) && !errors.Is(err, queue.ErrNotFound) && !errors.Is(err, queue.ErrDecided) {
		return nil, false
	}
	e, err := d.opts.Inbox.Get(ctx, ref.Bottle, ref.ID)
	if errors.Is(err, queue.ErrNotFound) {
		return nil, true
	}
	if err != nil {
		return nil, false
	}
	return e.Response, false
}

// lost takes our change back, because another program's answer stands (or the proposal is gone: have is nil).
func (d *Desk) lost(ctx context.Context, rec *Record, images []apply.Image, have *queue.Response) error {
	ref := Ref{rec.Bottle, rec.ID}
	var perr error
	later, _, err := d.needed(ctx, rec, images)
	if err != nil {
		return unfinished(ref, err)
	}
	images, stays := leave(images, later)
	if len(images) > 0 {
		perr = d.opts.Hand.PutBack(ctx, rec.Bottle, images, io.Discard)
	}
	rec.State, rec.ReplacePending = Foreign, false
	rec.Error = "another program answered first; our change was taken back"
	if have != nil {
		rec.Status, rec.Notes = have.Status, cut(safetext.Untrusted(have.Notes), maxForeignText)
	} else {
		rec.Error = "the proposal is gone from its mailbox; our change was taken back"
	}
	if perr != nil {
		rec.Error += safetext.Untrusted(", but not all of it: " + perr.Error())
	}
	if stays != "" {
		rec.Error += safetext.Untrusted("; " + stays)
	}
	rec.By, rec.Via = "", "foreign"
	if err := d.ledger.Ensure(ctx, rec.At, rec.entry(EventForeign)); err != nil {
		return unfinished(ref, err)
	}
	if err := d.store.save(rec); err != nil {
		return unfinished(ref, err)
	}
	if err := d.store.end(ref); err != nil {
		d.log.Warn("unmarking", "bottle", ref.Bottle, "id", ref.ID, "err", err)
	}
	if have == nil {
		return errors.Join(fmt.Errorf("%w: %s is gone from its mailbox, so our change was taken back", ErrNotFound, ref), perr)
	}
	return errors.Join(decidedBy(ref, rec), perr)
}

func (r *Record) response() queue.Response {
	return queue.Response{ProposalID: r.ID, Status: r.Status, Notes: r.Notes.Raw(), FinalFile: r.FinalFile.Raw(), Outcome: r.Outcome, Digest: r.Digest, DecidedAt: r.At}
}

func isOurs(rec *Record, have queue.Response) bool {
	want := rec.response()
	return have.Status == want.Status && have.Notes == want.Notes && have.FinalFile == want.FinalFile && have.Digest == want.Digest && have.DecidedAt.Equal(want.DecidedAt)
}

// remember keeps the decision for a later retry of the same question, or that it was taken back, if none came since.
func (d *Desk) remember(rec *Record) {
	q, err := payload.Parse(rec.Tool, rec.Proposed.Raw())
	if err != nil {
		return // malformed, and rejected: there is no question to ask again
	}
	e := Earlier{ID: rec.ID, Status: rec.Status, Notes: rec.Notes, At: rec.At, By: rec.By}
	if rec.State == Undone {
		if last := d.store.earlier(rec.Bottle, rec.Tool, q.Canonical()); last != nil && last.ID != rec.ID {
			return
		}
		e = Earlier{ID: rec.ID, Status: StatusUndone, At: rec.UndoneAt, By: rec.UndoneBy}
	}
	if err := d.store.setEarlier(rec.Bottle, rec.Tool, q.Canonical(), e); err != nil {
		d.log.Warn("remembering a decision for retries", "bottle", rec.Bottle, "id", rec.ID, "err", err)
	}
}

// What a ledger line takes of the texts in a record; escaped, a byte may be six.
const (
	maxLineText = 8 << 10
	maxTool     = 128
)

// cut shortens a text to max bytes and says how much is missing.
func cut(s safetext.Untrusted, max int) safetext.Untrusted {
	raw := s.Raw()
	if len(raw) <= max {
		return s
	}
	for max > 0 && !utf8.RuneStart(raw[max]) {
		max--
	}
	return safetext.Untrusted(fmt.Sprintf("%s… (%d bytes more)", raw[:max], len(raw)-max))
}

// entry is the ledger line for what happened to a record.
func (r *Record) entry(event string) LedgerEntry {
	tool := cut(safetext.Untrusted(r.Tool), maxTool) // a hostile sidecar's may be anything
	e := LedgerEntry{Event: event, Bottle: r.Bottle, ID: r.ID, Attempt: r.Attempt, Tool: tool.Raw(), Status: r.Status, Outcome: r.Outcome,
		By: r.By, Via: r.Via, Notes: cut(r.Notes, maxLineText), Accepted: r.Accepted, Digest: r.Digest, Error: cut(r.Error, maxLineText)}
	file := r.Proposed
	if r.FinalFile != "" {
		file = r.FinalFile
	}
	if q, err := payload.Parse(r.Tool, file.Raw()); err == nil {
		e.Summary = cut(safetext.Untrusted(q.Summary()), maxLineText)
	} else {
		e.Summary = "malformed " + tool
	}
	for _, t := range r.Targets {
		e.Targets = append(e.Targets, LedgerTarget{t.Path, t.BeforeSHA256, t.AfterSHA256})
	}
	return e
}

// Reject answers no. It binds to the proposal alone: nothing is changed, so there is nothing to preview.
func (d *Desk) Reject(ctx context.Context, ref Ref, notes string) (*Result, error) {
	res, err := d.reject(ctx, ref, notes)
	return res, d.makeRoom(err)
}

// makeRoom adds the mend when a disk of the desk's own is full. A target's is in the failure already.
func (d *Desk) makeRoom(err error) error {
	if !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EDQUOT) {
		return err
	}
	if _, ok := errors.AsType[*apply.Failure](err); ok {
		return err
	}
	return fmt.Errorf("%w: make room on the file system of %s", err, d.opts.Root)
}

func (d *Desk) reject(ctx context.Context, ref Ref, notes string) (*Result, error) {
	unlock, err := d.lockBottle(ctx, ref.Bottle, "rejecting "+ref.String(), nil)
	if err != nil {
		return nil, err
	}
	defer unlock()
	e, last, err := d.undecided(ctx, ref)
	if err != nil {
		return nil, err
	}
	if err := d.answerable(ctx, ref); err != nil {
		return nil, err
	}
	rec := d.claim(e, last, queue.Rejected, notes)
	ctx = context.WithoutCancel(ctx)
	if err := d.store.begin(ref); err != nil {
		return nil, err
	}
	if err := d.store.save(rec); err != nil {
		return nil, err
	}
	if err := d.ledger.Append(ctx, rec.entry(EventDecided)); err != nil {
		return nil, unfinished(ref, err)
	}
	if err := d.answer(ctx, rec, nil); err != nil {
		return nil, err
	}
	return &Result{Ref: ref, Status: queue.Rejected}, nil
}

// DismissNotes is what the agent reads when nobody decided.
const DismissNotes = "not decided: abandoned"

// Dismiss rejects each with DismissNotes. One that fails does not keep the others from being dismissed.
func (d *Desk) Dismiss(ctx context.Context, refs ...Ref) ([]*Result, error) {
	var out []*Result
	var errs []error
	for _, ref := range refs {
		r, err := d.Reject(ctx, ref, DismissNotes)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		out = append(out, r)
	}
	return out, errors.Join(errs...)
}

// Another program's answers may be a hostile sidecar's, which can write and remove them all day.
const (
	maxForeign     = 20      // recorded of one bottle in one look
	maxForeignDay  = 200     // recorded of one bottle in one day, UTC
	maxForeignText = 4 << 10 // kept of each text
)

// noteForeign records once that another program answered each.
func (d *Desk) noteForeign(ctx context.Context, all ...queue.Entry) error {
	var lines []LedgerEntry
	var recs []*Record
	for _, e := range all {
		rec := foreignRecord(e)
		rec.Notes = cut(rec.Notes, maxForeignText)
		lines = append(lines, rec.entry(EventForeign)) // its summary needs all of the payload
		rec.Tool = cut(safetext.Untrusted(rec.Tool), maxTool).Raw()
		rec.Proposed, rec.FinalFile = cut(rec.Proposed, maxForeignText), cut(rec.FinalFile, maxForeignText)
		recs = append(recs, rec)
	}
	// The line of one without a record, if there is one, was written by a process that died in between.
	if err := d.ledger.Ensure(ctx, time.Now(), lines...); err != nil {
		return err
	}
	for _, rec := range recs {
		if err := d.store.save(rec); err != nil {
			return err
		}
	}
	return nil
}

// foreigns are answers of other programs that one look at a bottle found and that are not recorded yet.
type foreigns struct {
	first []queue.Entry // at most maxForeign
	more  int
}

func (f *foreigns) add(e queue.Entry) {
	if len(f.first) < maxForeign {
		f.first = append(f.first, e)
	} else {
		f.more++
	}
}

// noteForeigns is noteForeign within the limits of one look and one day. What it returns is a problem to show, if any.
func (d *Desk) noteForeigns(ctx context.Context, bottle string, f foreigns) string {
	if len(f.first) == 0 {
		return ""
	}
	n := d.store.foreignToday(bottle)
	now := f.first[:min(len(f.first), max(0, maxForeignDay-n))]
	if len(now) > 0 {
		err := d.store.countForeign(bottle, n+len(now))
		if err == nil {
			err = d.noteForeign(ctx, now...)
		}
		if err != nil {
			return "answers of another program cannot be recorded: " + err.Error()
		}
	}
	if left := len(f.first) + f.more - len(now); left > 0 && n+len(now) >= maxForeignDay {
		return fmt.Sprintf("%d answers of another program are not recorded: there were over %d today, so the rest waits for midnight, UTC. If no program of yours answers here, the sidecar is hostile: stop the bottle", left, maxForeignDay)
	}
	return ""
}

func foreignRecord(e queue.Entry) *Record {
	p, r := e.Proposal, e.Response
	return &Record{ID: p.ID, Bottle: p.Bottle, Tool: p.Tool, Proposed: safetext.Untrusted(p.ProposedFile), ProposalSHA256: proposalSHA256(p), State: Foreign,
		Via: "foreign", At: r.DecidedAt.UTC(), Status: r.Status, Notes: safetext.Untrusted(r.Notes), FinalFile: safetext.Untrusted(r.FinalFile), Outcome: r.Outcome}
}

// replace waits until the answer has gone out, or replaceAfter, and replaces the bottle. It returns a note for the operator and
// what holds now.
func (d *Desk) replace(ctx context.Context, ref Ref, progress io.Writer) (string, queue.Outcome, error) {
	left := replaceAfter - d.store.sinceSaved(ref) // an earlier process may have waited already
	var changes <-chan struct{}
	if left > 0 {
		var err error
		if changes, err = d.opts.Inbox.Changes(ctx); err != nil {
			d.log.Warn("watching for the answer to go out", "err", err)
		}
	}
	deadline := time.NewTimer(left)
	defer deadline.Stop()
	poll := time.NewTicker(time.Second)
	defer poll.Stop()
	note := "the answer had gone out"
wait:
	for {
		e, err := d.opts.Inbox.Get(ctx, ref.Bottle, ref.ID)
		if err == nil && !e.Delivered.IsZero() || errors.Is(err, queue.ErrNotFound) {
			break
		}
		select {
		case <-ctx.Done():
			return "", "", unfinished(ref, context.Cause(ctx))
		case _, ok := <-changes:
			if !ok {
				changes = nil
			}
		case <-poll.C:
		case <-deadline.C:
			note = fmt.Sprintf("nobody had fetched the answer after %v; it is kept", replaceAfter)
			break wait
		}
	}
	unlock, err := d.lockBottle(ctx, ref.Bottle, "replacing the bottle for "+ref.String(), progress)
	if err != nil {
		return "", "", unfinished(ref, err)
	}
	defer unlock()
	rec, err := d.store.record(ref)
	if err != nil {
		return "", "", err
	}
	if rec != nil && rec.State == Answered && rec.Error != "" { // see notReplaced
		return rec.Error.Line(0), "", nil
	}
	if rec == nil || rec.State != Answered || !rec.ReplacePending {
		return "the bottle was not replaced: somebody has begun to take the change back", "", nil
	}
	// On a full disk the next look would replace it again, and end what runs there, and so on. So there is room before it is replaced.
	if err := d.store.save(rec); err != nil {
		return "", "", unfinished(ref, err)
	}
	if err := d.opts.Hand.Replace(ctx, ref.Bottle, orDiscard(progress)); err != nil {
		// Answered, built, and not replaced: said, and not tried again by itself, since it ends whatever runs there.
		note = "the bottle was not replaced: " + err.Error()
		if err := d.notReplaced(ctx, rec, note); err != nil {
			return "", "", unfinished(ref, err)
		}
		return safetext.Line(note, 0), rec.Outcome, nil
	}
	note = "the bottle was replaced; " + note
	rec.ReplacePending = false
	if err := d.store.save(rec); err != nil {
		return "", "", unfinished(ref, err)
	}
	if err := d.store.end(ref); err != nil {
		d.log.Warn("unmarking", "bottle", ref.Bottle, "id", ref.ID, "err", err)
	}
	return safetext.Line(note, 0), rec.Outcome, nil
}

// notReplaced says of a Dockerfile's change, in its record and then in the ledger, that its bottle stays as it is. Whoever finds the
// record and its marker adds the line: the other way round the bottle would be replaced, after the ledger had said that it was not.
func (d *Desk) notReplaced(ctx context.Context, rec *Record, why string) error {
	rec.notReplaced()
	rec.Error = safetext.Untrusted(why)
	if err := d.store.save(rec); err != nil {
		return err
	}
	if err := d.ledger.Ensure(context.WithoutCancel(ctx), rec.At, rec.entry(EventNotReplaced)); err != nil {
		return err
	}
	return d.store.end(Ref{rec.Bottle, rec.ID})
}

// giveUp is notReplaced because of what the operator does. It first ends what a desk that was killed has left replacing the bottle, which
// would make the line false, and returns what there is to be told of that.
func (d *Desk) giveUp(ctx context.Context, rec *Record, does string, progress io.Writer) (ended string, err error) {
	if ended, err = d.opts.Hand.EndLeft(ctx, rec.Bottle); err != nil {
		return "", err
	}
	why := fmt.Sprintf("the bottle was not replaced: %s %s", d.opts.By, does)
	if ended != "" {
		why += "; " + ended
		d.tell(progress, "dockerfile: "+ended)
	}
	return ended, d.notReplaced(ctx, rec, why)
}
