package tools

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/bot-bottle/supervise/internal/payload"
	"github.com/bot-bottle/supervise/queue"
	"github.com/modelcontextprotocol/go-sdk/mcp"
)

// DecisionKey is where a result's _meta has the facts of its text, for programs.
const DecisionKey = "supervise/decision"

// Pending is the status of an answer that is none yet.
const Pending = "pending"

// Decision is what a result's _meta says under DecisionKey.
type Decision struct {
	Status     string        `json:"status"` // approved, modified, rejected (also what was approved and then taken back); or pending
	ProposalID queue.ID      `json:"proposal_id"`
	Tool       string        `json:"tool"`
	Subject    string        `json:"subject"` // the host and paths, the URL, or "the Dockerfile"
	Notes      string        `json:"notes,omitempty"`
	FinalFile  string        `json:"final_file,omitempty"`
	Outcome    queue.Outcome `json:"outcome,omitempty"`
	DecidedAt  time.Time     `json:"decided_at,omitzero"`
	UndoneAt   time.Time     `json:"undone_at,omitzero"` // when what was approved was taken back
	Repeated   bool          `json:"repeated,omitempty"` // it went out before
}

// modifiedLine is the third line of a modified answer that has a final file.
const modifiedLine = "the operator modified your proposal before approving; the final config is now what's been applied"

// maxFinalFile is the largest final file that is shown in the text; _meta has it whole.
const maxFinalFile = 8 << 10

// deliver makes the answer and has the pair archived once it went out on a live connection.
func (t *Tools) deliver(ctx context.Context, f facts, r queue.Response) *mcp.CallToolResult {
	begin := func() (then func(out bool)) {
		end := t.beginArchiving(f.id)
		return func(out bool) {
			defer end()
			if out {
				t.archive(context.WithoutCancel(ctx), f, r)
			}
		}
	}
	if c := CallFrom(ctx); c != nil && c.OnDelivered != nil {
		c.OnDelivered(begin)
	} else if ctx.Err() == nil {
		begin()(true)
	}
	return answer(f, r, "")
}

// beginArchiving makes whoever asks about id wait in archived until end is called.
func (t *Tools) beginArchiving(id queue.ID) (end func()) {
	done := make(chan struct{})
	t.mu.Lock()
	defer t.mu.Unlock()
	t.archiving[id] = append(t.archiving[id], done)
	return func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		close(done)
		t.archiving[id] = slices.DeleteFunc(t.archiving[id], func(c chan struct{}) bool { return c == done })
		if len(t.archiving[id]) == 0 {
			delete(t.archiving, id)
		}
	}
}

// archiveWait is how long somebody who asks waits for the end of a delivery. Most end in some milliseconds; one to a client that
// does not read may take a minute, and then whoever asks gets the same answer again.
const archiveWait = 2 * time.Second

// archivingOf returns what is closed when an answer of id that is on its way has been archived, or could not be written; nil: none
// is. A client has its answer before it is archived, and what it asks next must find that done.
func (t *Tools) archivingOf(id queue.ID) <-chan struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	if all := t.archiving[id]; len(all) > 0 {
		return all[0]
	}
	return nil
}

// archived returns when no answer of id is on its way, or archiveWait has passed.
func (t *Tools) archived(ctx context.Context, id queue.ID) error {
	var late <-chan time.Time
	for {
		done := t.archivingOf(id)
		if done == nil {
			return nil
		}
		if late == nil {
			late = time.After(archiveWait)
		}
		select {
		case <-done:
		case <-late:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// archive records a delivery. If it cannot, the answer counts as undelivered, and the same question gets it again.
func (t *Tools) archive(ctx context.Context, f facts, r queue.Response) {
	if err := t.opts.Mailbox.Archive(ctx, f.id); err != nil {
		t.observe(Event{Kind: ArchiveFailed, Tool: f.tool})
		t.log.Error("answer went out but is not archived", "id", f.id, "tool", f.tool, "bottle", t.opts.Bottle, "err", err)
		return
	}
	if t.markDelivered(f.id) {
		after := time.Duration(0)
		if !f.arrived.IsZero() && !r.DecidedAt.IsZero() {
			after = max(0, r.DecidedAt.Sub(f.arrived))
		}
		t.observe(Event{Kind: Delivered, Tool: f.tool, Status: r.Status, After: after})
	}
}

// markDelivered tells whether this was the first time.
func (t *Tools) markDelivered(id queue.ID) (first bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	rec := t.records.byID[id]
	if rec == nil {
		return true // one that nothing here could have asked
	}
	first = rec.delivered.IsZero()
	if first {
		t.records.deliver(rec)
		t.sweepLocked()
	}
	return first
}

// repeat gives an answer that went out before.
func (t *Tools) repeat(f facts, r queue.Response, since time.Duration) *mcp.CallToolResult {
	t.observe(Event{Kind: Replayed, Tool: f.tool})
	if !r.DecidedAt.IsZero() {
		since = max(since, time.Since(r.DecidedAt))
	}
	return answer(f, r, fmt.Sprintf("decided %s ago; if still refused, check %s and ask again saying what fails", ago(since), ListRoutes))
}

// answer is the text a model reads. It stands alone: the model may have lost the call it answers.
func answer(f facts, r queue.Response, again string) *mcp.CallToolResult {
	if !f.undone.IsZero() && r.Status != queue.Rejected {
		return undone(f, r, again != "")
	}
	var b strings.Builder
	line := func(s string) { b.WriteString(s + "\n") }
	line("status: " + string(r.Status))
	if r.Notes != "" {
		line("notes: " + r.Notes)
	}
	if r.Status == queue.Modified && r.FinalFile != "" {
		line(modifiedLine)
	}
	line("")
	line(whatHolds(f, r))
	if r.Status == queue.Modified && r.FinalFile != "" {
		line("")
		if len(r.FinalFile) <= maxFinalFile {
			line("What was applied:")
			b.WriteString(r.FinalFile)
		} else {
			fmt.Fprintf(&b, "What was applied has %d bytes and is not shown here.", len(r.FinalFile))
		}
	}
	text := strings.TrimRight(b.String(), "\n")
	if again != "" {
		text += "\n\n" + again
	}
	return result(text, r.Status == queue.Rejected, Decision{
		Status: string(r.Status), ProposalID: f.id, Tool: f.tool, Subject: f.subject,
		Notes: r.Notes, FinalFile: r.FinalFile, Outcome: r.Outcome, DecidedAt: r.DecidedAt, Repeated: again != "",
	})
}

// undone is the answer for what was approved, and taken back before the agent could be told or before it asked once more: it holds as
// little as what was rejected.
func undone(f facts, r queue.Response, again bool) *mcp.CallToolResult {
	text := fmt.Sprintf("status: %s\n\nThe operator approved %s for %s (proposal %s), and took that back %s ago: it is not in force. Find another way, or ask again saying why you still need it.",
		queue.Rejected, f.tool, f.subject, f.id, ago(max(0, time.Since(f.undone))))
	return result(text, true, Decision{
		Status: string(queue.Rejected), ProposalID: f.id, Tool: f.tool, Subject: f.subject, DecidedAt: r.DecidedAt, UndoneAt: f.undone.UTC(), Repeated: again,
	})
}

// ErrBusy is why an answer is not given, for want of room. Nothing is lost: the same call gets it.
var ErrBusy = errors.New("many long answers are being sent at this moment: call again in some seconds, and you get yours")

// room fails when there is none for the answer that r makes. It must be asked before that counts as on its way.
func room(ctx context.Context, r queue.Response) error {
	if c := CallFrom(ctx); c != nil && c.Room != nil {
		return c.Room(sizeOf(r))
	}
	return nil
}

func sizeOf(r queue.Response) int {
	return 1024 + 2*sizeInJSON(r.Notes) + sizeInJSON(r.FinalFile) + maxFinalFile
}

// Postponed is what is given instead of the answer res when that cannot go out because of why: [ErrBusy], or the server ends.
func Postponed(res *mcp.CallToolResult, why error) *mcp.CallToolResult {
	d, _ := res.Meta[DecisionKey].(Decision)
	f := facts{id: d.ProposalID, tool: d.Tool, subject: d.Subject}
	if errors.Is(why, ErrBusy) {
		return decided(f)
	}
	return waits(f, "the supervise server is restarting")
}

// decided is given instead of a decision for which there is no room.
func decided(f facts) *mcp.CallToolResult {
	text := fmt.Sprintf(`status: %s
proposal_id: %s

The operator has decided %s for %s, but many long answers are being sent at this moment, so the decision is not in this one. Nothing is lost: call %s with proposal_id "%s" in some seconds, and you get it. Do not take this for an approval or a rejection.`,
		Pending, f.id, f.tool, f.subject, Await, f.id)
	return result(text, false, Decision{Status: Pending, ProposalID: f.id, Tool: f.tool, Subject: f.subject})
}

// Size is about how many bytes a result takes as JSON, at most: a Dockerfile that was edited may be long, and is in it as a whole.
func Size(res *mcp.CallToolResult) int {
	n := 1024
	for _, c := range res.Content {
		if t, ok := c.(*mcp.TextContent); ok {
			n += sizeInJSON(t.Text)
		}
	}
	if d, ok := res.Meta[DecisionKey].(Decision); ok {
		n += sizeInJSON(d.Notes) + sizeInJSON(d.FinalFile)
	}
	return n
}

// sizeInJSON counts what is escaped by \u and four digits as that.
func sizeInJSON(s string) int {
	n := len(s)
	for i := range len(s) {
		if c := s[i]; c < ' ' || c == '<' || c == '>' || c == '&' || c == '"' || c == '\\' {
			n += 5
		}
	}
	return n
}

// whatHolds says what is decided about what, and what holds now.
func whatHolds(f facts, r queue.Response) string {
	if r.Status == queue.Rejected {
		narrower := "something narrower"
		if r.Notes != "" {
			narrower += " that meets the notes"
		}
		return fmt.Sprintf("The operator rejected %s for %s (proposal %s). Nothing was changed. Find another way, or propose %s; do not repeat this unchanged.",
			f.tool, f.subject, f.id, narrower)
	}
	decided := fmt.Sprintf("The operator approved %s for %s (proposal %s)", f.tool, f.subject, f.id)
	if r.Status == queue.Modified {
		decided = fmt.Sprintf("The operator approved %s for %s with changes (proposal %s)", f.tool, f.subject, f.id)
	}
	dockerfile := f.tool == payload.Capability
	switch {
	case r.Outcome == queue.Live && dockerfile:
		return decided + ". The image is built from it, and this sandbox is about to be replaced: finish what you are writing, and expect this session to end."
	case r.Outcome == queue.Built:
		return decided + ". The image is built from it, and it takes effect when this sandbox is next started: until then what you need is not here. Go on without it, and do not ask for it again."
	case r.Outcome == queue.Live:
		return decided + ". It is live now: retry what was refused."
	case r.Outcome == queue.Unchanged && dockerfile:
		return decided + ". The Dockerfile was like that already, so nothing was changed or rebuilt: what is missing is missing for another reason."
	case r.Outcome == queue.Unchanged:
		return decided + ". It was allowed already, so nothing was changed: retry once, and if it is still refused the cause is another one. Read the error again, and check " + ListRoutes + "."
	case r.Outcome == queue.Unverified && dockerfile:
		return decided + ". The Dockerfile was changed but it was not seen whether this sandbox has it: check that what you need is there."
	case r.Outcome == queue.Unverified:
		return decided + ". It was applied but not seen live: retry what was refused, and if it is still refused after a minute check " + ListRoutes + " and ask again saying what fails."
	case r.Outcome == queue.Acknowledged:
		return decided + ". It is recorded, and nothing was rebuilt: this sandbox stays as it is for now. Go on without it, and do not ask for it again."
	default:
		return decided + ". Nothing was said about what was done: check that it works, and if it does not, ask again saying what fails."
	}
}

// pending makes the answer when the call ends and the proposal does not.
func (t *Tools) pending(f facts, reason, why string) *mcp.CallToolResult {
	t.observe(Event{Kind: HoldEnded, Tool: f.tool, Reason: reason})
	return waits(f, why)
}

func waits(f facts, why string) *mcp.CallToolResult {
	text := fmt.Sprintf(`status: %s
proposal_id: %s

%s for %s: %s. Your proposal is stored and stays open; nothing is cancelled, and no answer will be lost.
To go on waiting call %s with proposal_id "%s", or make the same %s call again; both join this proposal. You can do other work first. Do not take this for an approval or a rejection.`,
		Pending, f.id, f.tool, f.subject, why, Await, f.id, f.tool)
	return result(text, false, Decision{Status: Pending, ProposalID: f.id, Tool: f.tool, Subject: f.subject})
}

// triedOften refuses to ask once more what was rejected again and again.
func triedOften(tool string, r queue.Response) error {
	notes := "the operator left no notes"
	if r.Notes != "" {
		notes = "the operator's last notes: " + r.Notes
	}
	return fmt.Errorf("%s: this was rejected, and asked again %d times within the hour, which is the limit; %s. Find another way, or propose something else", tool, maxRetries, notes)
}

func result(text string, isError bool, d Decision) *mcp.CallToolResult {
	return &mcp.CallToolResult{
		Meta:    mcp.Meta{DecisionKey: d},
		Content: []mcp.Content{&mcp.TextContent{Text: text}},
		IsError: isError,
	}
}

// ago is a duration as a person says it.
func ago(d time.Duration) string {
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%d s", int(d.Seconds()))
	case d < 2*time.Hour:
		return fmt.Sprintf("%d min", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h", int(d.Hours()))
	default:
		return fmt.Sprintf("%d days", int(d.Hours())/24)
	}
}
