package tools

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/bot-bottle/supervise/internal/payload"
	"github.com/bot-bottle/supervise/internal/safetext"
	"github.com/bot-bottle/supervise/queue"
	"github.com/modelcontextprotocol/go-sdk/mcp"
)

const (
	maxRetries  = 3         // of one rejected payload
	retryWindow = time.Hour // in which they are counted
)

// question is a checked proposing call.
type question struct {
	payload       payload.Payload
	key           string
	justification string
	waitedFor     []queue.ID // whose delivery was waited for already
}

// verdict says what becomes of a question.
type verdict struct {
	wait   *facts // join this open proposal; with create: it was put just now
	answer *mcp.CallToolResult
	saving <-chan struct{} // the same is being stored: look again when this is closed
	giving queue.ID        // an answer of this one is on its way: look again when it is archived
	create bool            // put a new proposal
	resume *record         // with create: put this one, as it is and with its id, since it may be stored already
	retry  bool            // with create: the same was rejected before
}

// ask is the body of every proposing tool. err is what checking the payload said.
func (t *Tools) ask(ctx context.Context, req *mcp.CallToolRequest, p payload.Payload, err error, justification string) (*mcp.CallToolResult, any, error) {
	if err == nil {
		err = payload.CheckJustification(p.Tool, justification)
	}
	if err != nil {
		t.observe(Event{Kind: Refused, Tool: req.Params.Name})
		return nil, nil, err
	}
	v, err := t.settle(ctx, question{payload: p, key: keyOf(p), justification: strings.TrimSpace(justification)})
	switch {
	case err != nil:
		return nil, nil, err
	case v.answer != nil:
		return v.answer, nil, nil
	default:
		if !v.create {
			t.observe(Event{Kind: Rejoined, Tool: p.Tool})
		}
		return t.wait(ctx, req, *v.wait)
	}
}

func keyOf(p payload.Payload) string {
	sum := sha256.Sum256([]byte(p.Canonical()))
	return string(sum[:])
}

// settle finds or makes the proposal that a question is about. Looking needs no lock; making one does, and looks again
// under it, so that two calls of the same question make one proposal. Storing takes longest, and different questions
// are stored side by side.
func (t *Tools) settle(ctx context.Context, q question) (verdict, error) {
	for {
		v, err := t.look(ctx, q)
		if err == nil && v.create {
			v, err = t.claim(ctx, q)
		}
		switch {
		case err != nil:
			return verdict{}, err
		case v.giving != "":
			if err := t.archived(ctx, v.giving); err != nil {
				return verdict{}, err
			}
			q.waitedFor = append(q.waitedFor, v.giving)
		case v.saving != nil:
			select {
			case <-v.saving:
			case <-ctx.Done():
				return verdict{}, context.Cause(ctx)
			}
		case v.create:
			return t.store(ctx, q.payload.Tool, v.resume)
		default:
			return v, nil
		}
	}
}

// look decides by the newest proposal that asked the same.
func (t *Tools) look(ctx context.Context, q question) (verdict, error) {
	tool := q.payload.Tool
	t.mu.Lock()
	records := slices.Clone(t.records.byKey[q.key])
	if n := len(records); n > 0 && records[n-1].unsaved != nil {
		defer t.mu.Unlock()
		if saving := t.saving[records[n-1].id]; saving != nil {
			return verdict{saving: saving}, nil
		}
		return verdict{create: true, resume: records[n-1]}, nil
	}
	t.mu.Unlock()
	for _, rec := range slices.Backward(records) {
		if t.archivingOf(rec.id) != nil && !slices.Contains(q.waitedFor, rec.id) {
			return verdict{giving: rec.id}, nil
		}
		e, err := t.get(ctx, rec.id)
		switch {
		case errors.Is(err, queue.ErrNotFound):
			t.forget(rec) // pruned, or removed by hand
			continue
		case err != nil:
			return verdict{}, t.failed(tool, "reading the earlier proposal "+string(rec.id), err)
		case e.Response == nil:
			return verdict{wait: new(factsOf(e))}, nil
		case e.Delivered.IsZero():
			if err := room(ctx, *e.Response); err != nil {
				return verdict{}, err
			}
			return verdict{answer: t.deliver(ctx, factsOf(e), *e.Response)}, nil
		}
		since := t.sinceDelivery(rec, e)
		if since <= t.opts.Redeliver && e.Undone.IsZero() && sameWords(e.Proposal.Justification, q.justification) {
			if err := room(ctx, *e.Response); err != nil {
				return verdict{}, err
			}
			return verdict{answer: t.repeat(factsOf(e), *e.Response, since)}, nil
		}
		rejected := e.Response.Status == queue.Rejected
		if rejected && retriesOf(records) >= maxRetries {
			t.observe(Event{Kind: Refused, Tool: tool})
			return verdict{}, triedOften(tool, *e.Response)
		}
		return verdict{create: true, retry: rejected}, nil
	}
	return verdict{create: true}, nil
}

// maxReads is how many proposals are read at once: an answer may have 2 MiB.
const maxReads = 8

func (t *Tools) get(ctx context.Context, id queue.ID) (queue.Entry, error) {
	select {
	case t.reads <- struct{}{}:
		defer func() { <-t.reads }()
	case <-ctx.Done():
		return queue.Entry{}, context.Cause(ctx)
	}
	return t.opts.Mailbox.Get(ctx, id)
}

func (t *Tools) sinceDelivery(rec *record, e queue.Entry) time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !rec.delivered.IsZero() {
		return max(0, time.Since(rec.delivered)) // a clock that was set back makes it now
	}
	return max(0, time.Since(e.Delivered))
}

func retriesOf(records []*record) int {
	n := 0
	for _, r := range records {
		if r.retry && time.Since(r.created) < retryWindow {
			n++
		}
	}
	return n
}

// sameWords compares justifications as a reader would.
func sameWords(a, b string) bool {
	return slices.Equal(strings.Fields(a), strings.Fields(b))
}

// claim makes the record of a new proposal, or takes over one that was not stored; store must follow.
func (t *Tools) claim(ctx context.Context, q question) (verdict, error) {
	t.creating.Lock()
	defer t.creating.Unlock()
	v, err := t.look(ctx, q)
	if err != nil || !v.create {
		return v, err
	}
	if v.resume == nil {
		if err := t.checkPending(ctx, q.payload.Tool); err != nil {
			return verdict{}, err
		}
		file := q.payload.Encode()
		sum := sha256.Sum256([]byte(file))
		v.resume = &record{id: queue.NewID(), key: q.key, created: time.Now(), retry: v.retry}
		v.resume.unsaved = &queue.Proposal{
			ID:              v.resume.id,
			Bottle:          t.opts.Bottle,
			Tool:            q.payload.Tool,
			ProposedFile:    file,
			Justification:   q.justification,
			CurrentFileHash: hex.EncodeToString(sum[:]),
			ArrivedAt:       time.Now().UTC(),
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.records.byID[v.resume.id] == nil {
		t.sweepLocked()
		t.records.add(v.resume)
	}
	t.saving[v.resume.id] = make(chan struct{})
	return v, nil
}

// store stores what was claimed.
func (t *Tools) store(ctx context.Context, tool string, rec *record) (verdict, error) {
	p := *rec.unsaved // nobody else has it claimed
	// A commit is finished even when the caller hangs up meanwhile: the same call finds it then.
	err := t.opts.Mailbox.Put(context.WithoutCancel(ctx), p)
	t.mu.Lock()
	close(t.saving[p.ID])
	delete(t.saving, p.ID)
	if err == nil {
		rec.unsaved = nil
	} else {
		t.records.failed(rec, t.saving)
	}
	t.mu.Unlock()
	if err != nil {
		return verdict{}, t.failed(tool, "storing the proposal", err)
	}
	t.log.Info(fmt.Sprintf("queued proposal %s (%s) for bottle %s; waiting for operator...", p.ID, tool, t.opts.Bottle),
		"id", p.ID, "tool", tool, "bottle", t.opts.Bottle, "bytes", len(p.ProposedFile))
	t.observe(Event{Kind: Asked, Tool: tool})
	return verdict{wait: new(factsOf(queue.Entry{Proposal: p})), create: true}, nil
}

// checkPending refuses one more proposal when too many are open.
func (t *Tools) checkPending(ctx context.Context, tool string) error {
	t.mu.Lock()
	saving := maps.Clone(t.saving)
	t.mu.Unlock()
	if t.opts.Mailbox.Pending()+len(saving) < t.opts.MaxPending {
		return nil // and there is no need to look
	}
	var open []string
	for e, err := range t.opts.Mailbox.Entries(ctx) {
		switch {
		case err != nil && errors.Is(err, queue.ErrBad):
			continue // reported by the mailbox; in nobody's way
		case err != nil:
			return t.failed(tool, "counting open proposals", err)
		case e.Response == nil:
			delete(saving, e.Proposal.ID)
			open = append(open, fmt.Sprintf("%s (%s, %s)", e.Proposal.ID, safetext.Line(e.Proposal.Tool, 40), ago(e.Age)))
		}
	}
	for id := range saving {
		open = append(open, string(id)+" (just now)")
	}
	if len(open) < t.opts.MaxPending {
		return nil
	}
	t.observe(Event{Kind: Refused, Tool: tool})
	return fmt.Errorf("%s: %d proposals of this sandbox wait for the operator already, which is the limit: call %s with one of these ids before you ask for more. Open, with their age: %s",
		tool, len(open), Await, strings.Join(open, ", "))
}

// load reads from the mailbox what earlier processes asked. What cannot be read is in nobody's way.
func (t *Tools) load(ctx context.Context) error {
	var entries []queue.Entry
	since := time.Now().Add(-max(remembered, t.opts.Redeliver))
	// What is open was asked after the same that is archived: ids alone tell that only while no clock is set back.
	for _, seq := range []func(func(queue.Entry, error) bool){t.opts.Mailbox.Recent(ctx, since), t.opts.Mailbox.Entries(ctx)} {
		first := len(entries)
		for e, err := range seq {
			switch {
			case err == nil:
				e.Proposal.Justification = ""
				entries = append(entries, e)
			case errors.Is(err, queue.ErrBad):
				t.log.Warn("skipping a file of the mailbox", "bottle", t.opts.Bottle, "err", safetext.Line(err.Error(), 300))
			default:
				return err
			}
		}
		slices.SortFunc(entries[first:], func(a, b queue.Entry) int { return strings.Compare(string(a.Proposal.ID), string(b.Proposal.ID)) })
	}
	rejected := make(map[string]bool) // by key: the newest so far
	for _, e := range entries {
		p, err := payload.Parse(e.Proposal.Tool, e.Proposal.ProposedFile)
		if err != nil {
			continue // nothing this process accepts asks the same; await-decision still finds it
		}
		key := keyOf(p)
		t.records.add(&record{
			id: e.Proposal.ID, key: key, created: time.Now().Add(-e.Age), retry: rejected[key], delivered: e.Delivered,
		})
		rejected[key] = e.Response != nil && e.Response.Status == queue.Rejected
	}
	t.records.inOrder()
	t.sweepLocked()
	return nil
}

// failed logs a failure of ours and returns what the agent is told.
func (t *Tools) failed(tool, doing string, err error) error {
	t.observe(Event{Kind: Failed, Tool: tool})
	t.log.Error("tool failed", "tool", tool, "bottle", t.opts.Bottle, "doing", doing, "err", safetext.Line(err.Error(), 300))
	return fmt.Errorf("%s: %s failed: %s. This is no decision; call again in a moment, and tell the user if it goes on", tool, doing, safetext.Line(err.Error(), 300))
}
