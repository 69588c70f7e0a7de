package tools

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
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

var (
	errStep = errors.New("time to look up")             // ends one step of a wait: progress is due, or the hold is over
	errLeft = errors.New("nobody waits for the answer") // the proposal stands
)

// facts are what an answer says of the proposal it answers.
type facts struct {
	id      queue.ID
	tool    string
	subject string        // the host, URL or file; escaped, one line
	age     time.Duration // when the wait began
	arrived time.Time     // by the wall clock
	undone  time.Time     // when the operator took back what he had approved; zero: he did not
}

func factsOf(e queue.Entry) facts {
	return facts{id: e.Proposal.ID, tool: safetext.Line(e.Proposal.Tool, 40), subject: subject(e.Proposal), age: max(0, e.Age), arrived: e.Proposal.ArrivedAt, undone: e.Undone}
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

// waiter is one call that waits.
type waiter struct {
	*Tools
	facts
	session string
	token   any           // for progress; may be nil
	limit   time.Duration // of the wait; 0: until decided
	start   time.Time
	away    atomic.Bool // it has left once, and may be back
}

// wait holds the call until its proposal is decided, the hold is over, the server goes down, or nobody
// listens any more; or has the transport do that. It starts no goroutine: waiting is done in steps, each as long as the next
// progress or the end of the hold is away.
func (t *Tools) wait(ctx context.Context, req *mcp.CallToolRequest, f facts) (*mcp.CallToolResult, any, error) {
	call := callOf(ctx, req)
	w := &waiter{Tools: t, facts: f, session: call.Session, token: tokenOf(req), start: time.Now()}
	w.limit = t.hold(call.Client, w.token != nil)
	if call.Holding != nil {
		call.Holding()
	}
	notify := req.Session.NotifyProgress
	if call.Park == nil {
		w.progress(ctx, notify)
		r, err := w.run(ctx, notify)
		return r, nil, err
	}
	w.progress(ctx, notify) // by the SDK, which numbers it: from here on a client can resume
	if err := context.Cause(ctx); err != nil && !errors.Is(err, ErrShutdown) {
		return nil, nil, w.left(err) // it was cancelled while the proposal was stored
	}
	call.Park(w.parked)
	return waits(f, "the operator has not decided yet"), nil, nil
}

func (w *waiter) parked(ctx context.Context, notify Notify) *mcp.CallToolResult {
	r, err := w.back(ctx)
	if r == nil && err == nil {
		r, err = w.run(ctx, notify)
	}
	if errors.Is(err, errLeft) {
		w.away.Store(true)
		return nil
	}
	if err != nil {
		r = &mcp.CallToolResult{}
		r.SetError(err)
	}
	return r
}

// back returns the answer that came while the call had no connection. Each who comes back reads one of his own, so he asks for room
// first.
func (w *waiter) back(ctx context.Context) (*mcp.CallToolResult, error) {
	if !w.away.Swap(false) {
		return nil, nil
	}
	w.observe(Event{Kind: Rejoined, Tool: w.tool})
	roomy := false
	for {
		e, err := w.get(ctx, w.id)
		if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, ErrShutdown) {
			return nil, w.left(cause)
		}
		if err != nil || e.Response == nil {
			return nil, nil // whatever it is, it is found again
		}
		if !roomy {
			err = room(ctx, *e.Response)
		}
		c := CallFrom(ctx)
		switch {
		case err == nil:
			f := w.facts
			f.undone = e.Undone
			return w.deliver(ctx, f, *e.Response), nil
		case !errors.Is(err, ErrBusy) || c.AwaitRoom == nil:
			return nil, err
		}
		size := sizeOf(*e.Response)
		e = queue.Entry{} // not kept while it waits
		err = c.AwaitRoom(ctx, size)
		switch cause := context.Cause(ctx); {
		case err == nil:
			roomy = true
		case errors.Is(err, ErrBusy):
			return decided(w.facts), nil
		case cause != nil && !errors.Is(cause, ErrShutdown):
			return nil, w.left(cause)
		default: // the server ends
			return w.pending(w.facts, ReasonRestart, "the supervise server is restarting"), nil
		}
	}
}

func (w *waiter) run(ctx context.Context, notify Notify) (*mcp.CallToolResult, error) {
	leave, ok := w.enter(w.session, w.id)
	if !ok {
		return w.pending(w.facts, ReasonCrowded, "too many calls wait at once, so this one does not"), nil
	}
	defer leave()
	growStack()
	for {
		step := time.Duration(0) // for ever
		if w.token != nil {
			step = progressEvery - (time.Since(w.began)+progressEvery)%progressTick
		}
		if w.limit > 0 {
			left := w.limit - time.Since(w.start)
			if left <= 0 {
				return w.pending(w.facts, ReasonHold, "the operator has not decided yet"), nil
			}
			if step == 0 || left < step {
				step = left
			}
		}
		r, err := w.step(ctx, w.id, step)
		cause := context.Cause(ctx) // once: it may come to be at any moment
		switch {
		case err == nil:
			return w.deliver(ctx, w.seen(ctx, r), r), nil
		case errors.Is(cause, ErrShutdown) || errors.Is(err, queue.ErrClosed):
			return w.pending(w.facts, ReasonRestart, "the supervise server is restarting"), nil
		case cause != nil:
			return nil, w.left(cause)
		case errors.Is(err, errStep):
			aside(func() { w.progress(ctx, notify) })
		case errors.Is(err, queue.ErrNotFound):
			return nil, fmt.Errorf("%s: proposal %s was removed from the queue undecided: ask again if you still need it", w.tool, w.id)
		default:
			return nil, w.failed(w.tool, "waiting for proposal "+string(w.id), err)
		}
	}
}

// seenLate is after which time an answer may have been taken back before it was seen: by a process that was suspended, or on a mount
// that tells of nothing.
const seenLate = time.Second

// seen is what is known of the proposal now that its answer has been seen.
func (w *waiter) seen(ctx context.Context, r queue.Response) facts {
	f := w.facts
	if time.Since(r.DecidedAt).Abs() > seenLate {
		if e, err := w.get(ctx, w.id); err == nil {
			f.undone = e.Undone
		}
	}
	return f
}

// aside runs f on a stack of its own: that of the caller, which waits for hours, stays as small as it is.
func aside(f func()) {
	failed := make(chan any, 1)
	go func() {
		defer func() { failed <- recover() }()
		f()
	}()
	if v := <-failed; v != nil {
		panic(v)
	}
}

// growStack makes room for what an answer takes, before the wait: to grow means to copy every frame, for which the client would have to
// wait. While the call waits over a quarter of the stack is in use, so that the runtime leaves it as it is.
//
//go:noinline
func growStack() {
	var room [4 << 10]byte
	runtime.KeepAlive(&room)
}

func (w *waiter) left(cause error) error {
	w.observe(Event{Kind: Left, Tool: w.tool})
	return fmt.Errorf("%w: %w", errLeft, cause)
}

// maxToken is how long a progress token may be: a held call keeps it, and it is sent again and again.
const maxToken = 256

// tokenOf returns a call's progress token. One that is no string or number, or a long one, is as good as none.
func tokenOf(req *mcp.CallToolRequest) any {
	switch t := req.Params.GetProgressToken().(type) {
	case string:
		if len(t) <= maxToken {
			return t
		}
	case json.Number:
		if len(t) <= maxToken {
			return t
		}
	case float64, int, int32, int64, uint64:
		return t
	}
	return nil
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

// progress tells the client, if it asked for it, that somebody is waited for. A client that cannot be told is no reason to stop
// waiting.
func (w *waiter) progress(ctx context.Context, notify Notify) {
	if w.token == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, progressTimeout)
	defer cancel()
	waited := time.Since(w.start)
	msg := fmt.Sprintf("waiting for the human operator to decide %s for %s: %s so far", w.tool, w.subject, ago(w.age+waited))
	switch n := w.ahead(ctx, w.id); {
	case n == 1:
		msg += "; 1 proposal of this sandbox is ahead"
	case n > 1:
		msg += fmt.Sprintf("; %d proposals of this sandbox are ahead", n)
	}
	if err := notify(ctx, &mcp.ProgressNotificationParams{ProgressToken: w.token, Progress: waited.Seconds(), Message: msg}); err != nil {
		w.log.Debug("progress not sent", "id", w.id, "err", err)
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
