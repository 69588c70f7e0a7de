package tools

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/bot-bottle/supervise/internal/payload"
	"github.com/bot-bottle/supervise/internal/safetext"
	"github.com/bot-bottle/supervise/queue"
	"github.com/modelcontextprotocol/go-sdk/mcp"
)

const (
	progressEvery   = 15 * time.Second
	progressTick    = time.Second      // progress is sent on the tick before it is due: waking up once for many calls costs half
	progressTimeout = 10 * time.Second // for handing one notification to the transport
	maxSeats        = 8                // calls of one session waiting for one proposal
	openFresh       = progressEvery    // how old the list of open proposals may be for "ahead of you"
)

// errStep ends one step of a wait: progress is due, or the hold is over.
var errStep = errors.New("time to look up")

// facts are what an answer says of the proposal it answers.
type facts struct {
	id      queue.ID
	tool    string
	subject string        // the host, URL or file; escaped, one line
	age     time.Duration // when the wait began
	arrived time.Time     // by the wall clock
}

func factsOf(e queue.Entry) facts {
	return facts{id: e.Proposal.ID, tool: safetext.Line(e.Proposal.Tool, 40), subject: subject(e.Proposal), age: max(0, e.Age), arrived: e.Proposal.ArrivedAt}
}

// subject is what a proposal is about, to a model that may have lost the call.
func subject(p queue.Proposal) string {
	const most = 300
	pl, err := payload.Parse(p.Tool, p.ProposedFile)
	switch {
	case err != nil:
		return "your proposal"
	case pl.Tool == payload.Egress:
		return safetext.Line(strings.Join(append([]string{pl.Route.Host}, pl.Route.PathAllowlist...), " "), most)
	case pl.Tool == payload.Pipelock:
		return safetext.Line(pl.URL, most)
	default:
		return "the Dockerfile"
	}
}

// seat is a place to wait.
type seat struct {
	session string
	id      queue.ID
}

// enter takes a place to wait, if there is one. Sessions that cannot be told apart share only the overall limit.
func (t *Tools) enter(session string, id queue.ID) (leave func(), ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := seat{session, id}
	if t.waiting >= t.opts.MaxWaiting || session != "" && t.seats[s] >= maxSeats {
		return nil, false
	}
	t.waiting++
	t.seats[s]++
	return func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.waiting--
		if t.seats[s]--; t.seats[s] == 0 {
			delete(t.seats, s)
		}
	}, true
}

// callOf is the transport's knowledge of a call, or what an in-memory session has of it.
func callOf(ctx context.Context, req *mcp.CallToolRequest) Call {
	if c := CallFrom(ctx); c != nil {
		return *c
	}
	var c Call
	if info := req.ClientInfo(); info != nil {
		c.Client = info.Name
	}
	return c
}

// wait holds the call until its proposal is decided, the hold is over, the server goes down, or nobody
// listens any more. It starts no goroutine: waiting is done in steps, each as long as the next progress or
// the end of the hold is away.
func (t *Tools) wait(ctx context.Context, req *mcp.CallToolRequest, f facts) (*mcp.CallToolResult, any, error) {
	call := callOf(ctx, req)
	leave, ok := t.enter(call.Session, f.id)
	if !ok {
		return t.pending(f, ReasonCrowded, "too many calls wait at once, so this one does not"), nil, nil
	}
	defer leave()
	if call.Holding != nil {
		call.Holding()
	}
	token := req.Params.GetProgressToken()
	hold := t.hold(call.Client, token != nil)
	start := time.Now()
	for {
		if token != nil {
			t.progress(ctx, req, token, f, time.Since(start))
		}
		step := time.Duration(0) // for ever
		if token != nil {
			step = progressEvery - (time.Since(t.began)+progressEvery)%progressTick
		}
		if hold > 0 {
			left := hold - time.Since(start)
			if left <= 0 {
				return t.pending(f, ReasonHold, "the operator has not decided yet"), nil, nil
			}
			if step == 0 || left < step {
				step = left
			}
		}
		r, err := t.step(ctx, f.id, step)
		switch {
		case err == nil:
			return t.deliver(ctx, f, r), nil, nil
		case errors.Is(context.Cause(ctx), ErrShutdown) || errors.Is(err, queue.ErrClosed):
			return t.pending(f, ReasonRestart, "the supervise server is restarting"), nil, nil
		case ctx.Err() != nil:
			t.observe(Event{Kind: Left, Tool: f.tool})
			return nil, nil, ctx.Err() // nobody listens; the proposal stands
		case errors.Is(err, errStep):
		case errors.Is(err, queue.ErrNotFound):
			return nil, nil, fmt.Errorf("%s: proposal %s was removed from the queue undecided: ask again if you still need it", f.tool, f.id)
		default:
			return nil, nil, t.failed(f.tool, "waiting for proposal "+string(f.id), err)
		}
	}
}

// step waits for the response at most d; 0 has no limit.
func (t *Tools) step(ctx context.Context, id queue.ID, d time.Duration) (queue.Response, error) {
	if d > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, d, errStep)
		defer cancel()
	}
	return t.opts.Mailbox.Wait(ctx, id)
}

// progress tells the client that somebody is waited for. A client that cannot be told is no reason to stop waiting.
func (t *Tools) progress(ctx context.Context, req *mcp.CallToolRequest, token any, f facts, waited time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, progressTimeout)
	defer cancel()
	msg := fmt.Sprintf("waiting for the human operator to decide %s for %s: %s so far", f.tool, f.subject, ago(f.age+waited))
	switch n := t.ahead(ctx, f.id); {
	case n == 1:
		msg += "; 1 proposal of this sandbox is ahead"
	case n > 1:
		msg += fmt.Sprintf("; %d proposals of this sandbox are ahead", n)
	}
	err := req.Session.NotifyProgress(ctx, &mcp.ProgressNotificationParams{
		ProgressToken: token,
		Progress:      waited.Seconds(),
		Message:       msg,
	})
	if err != nil {
		t.log.Debug("progress not sent", "id", f.id, "err", err)
	}
}

// ahead counts the open proposals that are older, by a list that many calls share.
func (t *Tools) ahead(ctx context.Context, id queue.ID) int {
	t.queueMu.Lock()
	defer t.queueMu.Unlock()
	if t.openAt.IsZero() || time.Since(t.openAt) > openFresh {
		t.open, t.openAt = nil, time.Now()
		for e, err := range t.opts.Mailbox.Entries(context.WithoutCancel(ctx)) { // the list is for all of them
			if err == nil && e.Response == nil {
				t.open = append(t.open, e.Proposal.ID)
			}
		}
		slices.Sort(t.open)
	}
	n, _ := slices.BinarySearch(t.open, id)
	return n
}
