package tools

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bot-bottle/supervise/queue"
	"github.com/modelcontextprotocol/go-sdk/mcp"
)

const bottle = "demo"

// box is a mailbox in memory with faults.
type box struct {
	mu      sync.Mutex
	entries map[queue.ID]*queue.Entry
	seen    map[queue.ID]time.Time
	decided map[queue.ID]chan struct{}
	closed  chan struct{}
	puts    int // that stored something new

	put     func() (stored bool, err error) // if not nil: the fault of the next Put
	archive error                           // if not nil: what Archive does
}

func newBox() *box {
	return &box{
		entries: make(map[queue.ID]*queue.Entry),
		seen:    make(map[queue.ID]time.Time),
		decided: make(map[queue.ID]chan struct{}),
		closed:  make(chan struct{}),
	}
}

func (b *box) Put(_ context.Context, p queue.Proposal) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	stored, err := true, error(nil)
	if b.put != nil {
		stored, err = b.put()
		b.put = nil
	}
	if old, ok := b.entries[p.ID]; ok && old.Proposal != p {
		return fmt.Errorf("proposal %s exists with other content", p.ID)
	} else if stored && !ok {
		b.puts++
		b.entries[p.ID] = &queue.Entry{Proposal: p}
		b.seen[p.ID] = time.Now()
		b.decided[p.ID] = make(chan struct{})
	}
	return err
}

func (b *box) Get(_ context.Context, id queue.ID) (queue.Entry, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	e, ok := b.entries[id]
	if !ok {
		return queue.Entry{}, queue.ErrNotFound
	}
	return b.entryLocked(e), nil
}

func (b *box) entryLocked(e *queue.Entry) queue.Entry {
	c := *e
	c.Age = time.Since(b.seen[e.Proposal.ID])
	return c
}

func (b *box) Wait(ctx context.Context, id queue.ID) (queue.Response, error) {
	b.mu.Lock()
	ch, ok := b.decided[id]
	b.mu.Unlock()
	if !ok {
		return queue.Response{}, queue.ErrNotFound
	}
	select {
	case <-ch:
		b.mu.Lock()
		defer b.mu.Unlock()
		if b.entries[id] == nil {
			return queue.Response{}, queue.ErrNotFound
		}
		return *b.entries[id].Response, nil
	case <-b.closed:
		return queue.Response{}, queue.ErrClosed
	case <-ctx.Done():
		return queue.Response{}, context.Cause(ctx)
	}
}

func (b *box) list(want func(queue.Entry) bool) iter.Seq2[queue.Entry, error] {
	return func(yield func(queue.Entry, error) bool) {
		b.mu.Lock()
		var out []queue.Entry
		for _, id := range slices.Sorted(maps.Keys(b.entries)) {
			if e := b.entryLocked(b.entries[id]); want(e) {
				out = append(out, e)
			}
		}
		b.mu.Unlock()
		for _, e := range out {
			if !yield(e, nil) {
				return
			}
		}
		yield(queue.Entry{}, &queue.BadError{Bottle: bottle, Name: "x\x1b", Reason: "not JSON"}) // never in the way
	}
}

func (b *box) Entries(context.Context) iter.Seq2[queue.Entry, error] {
	return b.list(func(e queue.Entry) bool { return e.Delivered.IsZero() })
}

func (b *box) Recent(_ context.Context, since time.Time) iter.Seq2[queue.Entry, error] {
	return b.list(func(e queue.Entry) bool { return !e.Delivered.IsZero() && !e.Delivered.Before(since) })
}

func (b *box) Archive(_ context.Context, id queue.ID) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch e := b.entries[id]; {
	case b.archive != nil:
		return b.archive
	case e == nil:
		return queue.ErrNotFound
	case e.Response == nil:
		return errors.New("no response")
	case e.Delivered.IsZero():
		e.Delivered = time.Now()
	}
	return nil
}

func (b *box) Close() error { close(b.closed); return nil }

// respond decides as an operator does.
func (b *box) respond(t *testing.T, id queue.ID, r queue.Response) {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	e := b.entries[id]
	if e == nil || e.Response != nil {
		t.Fatalf("respond to %s: unknown or decided", id)
	}
	r.ProposalID = id
	if r.DecidedAt.IsZero() {
		r.DecidedAt = time.Now()
	}
	e.Response = &r
	close(b.decided[id])
}

func (b *box) remove(id queue.ID) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.entries, id)
	close(b.decided[id])
	delete(b.decided, id)
}

// ids lists the proposals, oldest first; with open only those undecided.
func (b *box) ids(open bool) []queue.ID {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []queue.ID
	for _, id := range slices.Sorted(maps.Keys(b.entries)) {
		if !open || b.entries[id].Response == nil {
			out = append(out, id)
		}
	}
	return out
}

// only returns the one open proposal.
func (b *box) only(t *testing.T) queue.ID {
	t.Helper()
	ids := b.ids(true)
	if len(ids) != 1 {
		t.Fatalf("%d open proposals, want 1", len(ids))
	}
	return ids[0]
}

func (b *box) delivered(id queue.ID) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return !b.entries[id].Delivered.IsZero()
}

// rig is Tools behind an in-memory MCP session.
type rig struct {
	t     testing.TB
	box   *box
	tools *Tools
	log   *strings.Builder
	call  *Call // if not nil: what the transport knows

	session  *mcp.ClientSession
	mu       sync.Mutex
	progress []string // guarded by mu: messages of progress notifications
	stop     []func()
	shutdown context.CancelCauseFunc
}

func newRig(t testing.TB, b *box, opts Options) *rig {
	t.Helper()
	r := &rig{t: t, box: b, log: new(strings.Builder)}
	opts.Bottle, opts.Mailbox = bottle, b
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.NewTextHandler(r.log, nil))
	}
	var err error
	if r.tools, err = New(opts); err != nil {
		t.Fatal(err)
	}
	service, shutdown := context.WithCancelCause(context.Background())
	r.shutdown = shutdown
	server := mcp.NewServer(&mcp.Implementation{Name: "supervise"}, &mcp.ServerOptions{
		Instructions: r.tools.Instructions(),
		Capabilities: &mcp.ServerCapabilities{Tools: &mcp.ToolCapabilities{}},
	})
	r.tools.Register(server)
	server.AddReceivingMiddleware(r.tools.Middleware(), func(next mcp.MethodHandler) mcp.MethodHandler {
		return func(ctx context.Context, method string, req mcp.Request) (mcp.Result, error) {
			if r.call != nil {
				ctx = WithCall(ctx, r.call)
			}
			ctx, cancel := context.WithCancelCause(ctx)
			defer cancel(nil)
			defer context.AfterFunc(service, func() { cancel(context.Cause(service)) })()
			return next(ctx, method, req)
		}
	})
	st, ct := mcp.NewInMemoryTransports()
	ss, err := server.Connect(context.Background(), st, nil)
	if err != nil {
		t.Fatal(err)
	}
	client := mcp.NewClient(&mcp.Implementation{Name: "claude-code", Version: "1"}, &mcp.ClientOptions{
		ProgressNotificationHandler: func(_ context.Context, req *mcp.ProgressNotificationClientRequest) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.progress = append(r.progress, fmt.Sprintf("%v %s", req.Params.Progress, req.Params.Message))
		},
	})
	if r.session, err = client.Connect(context.Background(), ct, nil); err != nil {
		t.Fatal(err)
	}
	r.stop = append(r.stop, func() { r.session.Close(); ss.Wait() })
	return r
}

func (r *rig) close() {
	for _, f := range r.stop {
		f()
	}
}

func (r *rig) messages() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.progress)
}

type args = map[string]any

// reply is what came back of a call.
type reply struct {
	text    string
	isError bool
	meta    Decision
	err     error
}

// start makes a call with a progress token.
func (r *rig) start(ctx context.Context, tool string, a any) <-chan reply {
	return r.startWith(ctx, &mcp.CallToolParams{Meta: mcp.Meta{"progressToken": "p"}, Name: tool, Arguments: a})
}

func (r *rig) startWith(ctx context.Context, p *mcp.CallToolParams) <-chan reply {
	out := make(chan reply, 1)
	go func() {
		res, err := r.session.CallTool(ctx, p)
		if err != nil {
			out <- reply{err: err}
			return
		}
		rep := reply{isError: res.IsError}
		for _, c := range res.Content {
			rep.text += c.(*mcp.TextContent).Text
		}
		if res.StructuredContent != nil {
			rep.err = errors.New("the result has structured content")
		}
		if raw, err := json.Marshal(res.Meta[DecisionKey]); err != nil || json.Unmarshal(raw, &rep.meta) != nil {
			rep.err = fmt.Errorf("_meta %v", res.Meta)
		}
		out <- rep
	}()
	return out
}

func (r *rig) do(tool string, a any) reply {
	r.t.Helper()
	return <-r.start(r.t.Context(), tool, a)
}

func (r *rig) await(id queue.ID) reply {
	r.t.Helper()
	return r.do(Await, args{"proposal_id": string(id)})
}
