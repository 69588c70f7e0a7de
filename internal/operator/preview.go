package operator

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/aymanbagabas/go-udiff"

	"github.com/bot-bottle/supervise/internal/apply"
	"github.com/bot-bottle/supervise/internal/payload"
	"github.com/bot-bottle/supervise/internal/routes"
	"github.com/bot-bottle/supervise/internal/safetext"
	"github.com/bot-bottle/supervise/queue"
)

// EditError is an operator's edit that is not a payload of the proposal's tool.
type EditError struct{ Err error }

func (e *EditError) Error() string { return "the edited file: " + e.Err.Error() }
func (e *EditError) Unwrap() error { return e.Err }

// considered is a preview with what it was made from.
type considered struct {
	*Preview
	payload payload.Payload // what would be applied
	plan    *apply.Plan     // nil if the proposal is bad
	edited  bool
}

// Show is everything about one proposal: open or decided. With edited it is the preview of applying that
// instead of what was proposed. Of what was decided here it is what the record has, if its mailbox has it no more, or another in its place.
func (d *Desk) Show(ctx context.Context, ref Ref, edited *string) (*Preview, error) {
	e, err := d.entry(ctx, ref)
	_, bad := errors.AsType[*queue.BadError](err)
	if err == nil || bad || errors.Is(err, ErrNotFound) {
		rec, rerr := d.store.record(ref)
		if rerr == nil && rec != nil && (rec.State == Answered || rec.State == Undone) && (err != nil || proposalSHA256(e.Proposal) != rec.ProposalSHA256) {
			return remembered(rec), nil
		}
	}
	if err != nil {
		return nil, err
	}
	c, err := d.consider(ctx, e, edited)
	if err != nil {
		return nil, err
	}
	return c.Preview, nil
}

// remembered is the preview of a decision alone. The agent's words were in the proposal; when that came, its id tells.
func remembered(rec *Record) *Preview {
	p := &Preview{
		Item: Item{Ref: Ref{rec.Bottle, rec.ID}, Tool: rec.Tool, Summary: safetext.Untrusted(rec.Tool), ArrivedAt: rec.At,
			Connected: Unknown, Findings: []Finding{}, State: Decided},
		Proposed: rec.Proposed, Decision: rec,
	}
	if q, err := payload.Parse(rec.Tool, rec.Proposed.Raw()); err == nil {
		p.Summary, p.Host = safetext.Untrusted(q.Summary()), safetext.Untrusted(q.Host)
	}
	if ms, err := strconv.ParseInt(strings.ReplaceAll(string(rec.ID), "-", "")[:12], 16, 64); err == nil && ms < rec.At.UnixMilli() {
		p.ArrivedAt = time.UnixMilli(ms).UTC()
	}
	p.Age = max(time.Since(p.ArrivedAt), 0)
	return p
}

func (d *Desk) entry(ctx context.Context, ref Ref) (queue.Entry, error) {
	if err := queue.CheckSlug(ref.Bottle); err != nil {
		return queue.Entry{}, err
	}
	e, err := d.opts.Inbox.Get(ctx, ref.Bottle, ref.ID)
	if errors.Is(err, queue.ErrNotFound) {
		return e, fmt.Errorf("%w: %s in bottle %s", ErrNotFound, ref, ref.Bottle)
	}
	if err != nil {
		return e, fmt.Errorf("reading proposal %s of bottle %s: %w", ref, ref.Bottle, err)
	}
	return e, nil
}

// consider checks a proposal again, as if nobody had, and previews it.
func (d *Desk) consider(ctx context.Context, e queue.Entry, edited *string) (*considered, error) {
	p := e.Proposal
	ref := Ref{p.Bottle, p.ID}
	rec, err := d.store.record(ref)
	if err != nil {
		return nil, err
	}
	c := &considered{Preview: &Preview{
		Item:          d.item(e, rec),
		Justification: safetext.Untrusted(p.Justification),
		Proposed:      safetext.Untrusted(p.ProposedFile),
	}}
	c.connect(ctx, d, e)
	if e.Response != nil || rec != nil && !rec.open() {
		c.Decision = rec
		if rec == nil || !rec.final() && e.Response != nil && !isOurs(rec, *e.Response) {
			c.Decision = foreignRecord(e)
		}
		c.State = Decided
		if e.Response == nil && !rec.final() {
			c.State = Deciding
		}
	}
	if c.payload, err = check(p); err != nil {
		if c.State == Open || c.State == Failed || c.State == Stuck {
			c.State = Bad
		}
		c.Error = safetext.Once(err.Error())
		c.Blocked = "the proposal is malformed, so it can only be rejected: " + c.Error
		return c, nil
	}
	if edited != nil {
		q, err := payload.Parse(p.Tool, *edited)
		if err != nil {
			return nil, &EditError{err}
		}
		if q.Canonical() != c.payload.Canonical() {
			c.payload, c.edited = q, true
			c.Edited = safetext.Untrusted(q.Encode())
		}
	}
	if c.State == Decided {
		return c, nil // what was changed is in the record; what would change now is beside the point
	}
	if c.plan, err = d.opts.Hand.Preview(ctx, p.Bottle, c.payload); err != nil {
		return nil, fmt.Errorf("previewing %s for bottle %s: %w", ref, p.Bottle, err)
	}
	c.Unmanaged = c.plan.Unmanaged
	if c.plan.Blocked != nil {
		c.Blocked = safetext.Block(c.plan.Blocked.Error())
		if ee, ok := errors.AsType[*routes.EditError](c.plan.Blocked); ok && ee.ByHand != "" && !strings.Contains(c.plan.Blocked.Error(), ee.ByHand) {
			c.Blocked += "\nthe lines to add by hand:\n" + safetext.Block(ee.ByHand)
		}
	}
	if e.BadResponse != nil && c.Blocked == "" && c.State != Deciding {
		c.Blocked = d.inTheWay(ref, e.BadResponse, "").Error()
	}
	for _, t := range c.plan.Targets {
		v := TargetView{Kind: t.Kind, Path: t.Path, Changed: t.Changed(), Unknown: c.plan.Blocked != nil && !t.Changed() && !t.Covered, Before: safetext.Untrusted(t.EntryBefore), After: safetext.Untrusted(t.EntryAfter)}
		if v.Changed {
			v.Diff = safetext.Untrusted(udiff.Unified(t.Path, t.Path, string(t.Before), string(t.After)))
		}
		c.Targets = append(c.Targets, v)
	}
	c.setFindings(findingsFor(c.payload, c.plan))
	c.Digest = digest(p, c)
	return c, nil
}

// check parses a proposal as if its sidecar were hostile.
func check(p queue.Proposal) (payload.Payload, error) {
	q, err := payload.Parse(p.Tool, p.ProposedFile)
	if err != nil {
		return q, err
	}
	if err := payload.CheckJustification(p.Tool, p.Justification); err != nil {
		return q, err
	}
	if h := sha256.Sum256([]byte(p.ProposedFile)); p.CurrentFileHash != hex.EncodeToString(h[:]) {
		return q, fmt.Errorf("%s: current_file_hash is not the SHA-256 of proposed_file", p.Tool)
	}
	return q, nil
}

func (i *Item) setFindings(f []Finding) {
	i.Findings = f
	i.Danger = slices.ContainsFunc(f, func(f Finding) bool { return f.Level == Danger })
}

// proposalSHA256 is over everything an operator saw of a proposal.
func proposalSHA256(p queue.Proposal) string {
	b, err := json.Marshal([]string{string(p.ID), p.Bottle, p.Tool, p.ProposedFile, p.Justification})
	if err != nil {
		panic(err) // strings only
	}
	return apply.SHA256(b)
}

// digest is over what a decision decides: the proposal, what would be applied, each target's identity and touched
// entry before and after, and the findings. An unrelated edit of a target does not change it.
func digest(p queue.Proposal, c *considered) string {
	type target struct {
		Kind, Real, Before, After string
		Changed                   bool
	}
	v := struct {
		V         int
		Bottle    string
		Proposal  string
		Tool      string
		File      string
		Targets   []target
		Unmanaged []apply.Kind
		Findings  []string
	}{V: 1, Bottle: p.Bottle, Proposal: proposalSHA256(p), Tool: p.Tool, File: c.payload.Encode(), Unmanaged: c.plan.Unmanaged}
	for _, t := range c.plan.Targets {
		v.Targets = append(v.Targets, target{string(t.Kind), t.Real, t.EntryBefore, t.EntryAfter, t.Changed()})
	}
	for _, f := range c.Findings {
		v.Findings = append(v.Findings, string(f.Level)+":"+f.Code)
	}
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // strings and bools only
	}
	return apply.SHA256(b)
}
