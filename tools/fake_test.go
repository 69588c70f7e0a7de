package tools

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bot-bottle/supervise/queue"
	"github.com/modelcontextprotocol/go-sdk/mcp"
)

const bottle = "demo"

// box is the mailbox of the bottle in a queue.Mem, with what a disk adds: bad files, files that vanish, another's
// proposal in the wrong place.
type box struct {
	queue.Mailbox
	mem *queue.Mem

	mu      sync.Mutex
	strays  map[queue.ID]queue.Entry               // guarded by mu; found by Get though they should not be there
	removed map[queue.ID]bool                      // guarded by mu
	gate    <-chan struct{}                        // not nil: what Put waits for
	late    <-chan struct{}                        // not nil: what Wait waits for when it has the response
	waits   map[queue.ID][]context.CancelCauseFunc // guarded by mu
}

func newBox() *box {
	mem := queue.NewMem()
	return &box{
		Mailbox: mem.Mailbox(bottle), mem: mem,
		strays: make(map[queue.ID]queue.Entry), removed: make(map[queue.ID]bool), waits: make(map[queue.ID][]context.CancelCauseFunc),
	}
}

func (b *box) Get(ctx context.Context, id queue.ID) (queue.Entry, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if e, ok := b.strays[id]; ok {
		return e, nil
	}
	if b.removed[id] {
		return queue.Entry{}, queue.ErrNotFound
	}
	return b.Mailbox.Get(ctx, id)
}

func (b *box) Wait(ctx context.Context, id queue.ID) (queue.Response, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	b.mu.Lock()
	b.waits[id] = append(b.waits[id], cancel)
	b.mu.Unlock()
	r, err := b.Mailbox.Wait(ctx, id)
	if b.late != nil {
		<-b.late
	}
	return r, err
}

// Put waits for the gate, as for a disk.
func (b *box) Put(ctx context.Context, p queue.Proposal) error {
	if b.gate != nil {
		<-b.gate
	}
	return b.Mailbox.Put(ctx, p)
}

// remove makes a proposal vanish, as "rm" does.
func (b *box) remove(id queue.ID) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.removed[id] = true
	for _, cancel := range b.waits[id] {
		cancel(queue.ErrNotFound)
	}
}

func (b *box) Entries(ctx context.Context) iter.Seq2[queue.Entry, error] {
	return b.withBad(b.Mailbox.Entries(ctx))
}

func (b *box) Recent(ctx context.Context, since time.Time) iter.Seq2[queue.Entry, error] {
	return b.withBad(b.Mailbox.Recent(ctx, since))
}

// withBad adds a bad file, which must be in nobody's way.
func (b *box) withBad(seq iter.Seq2[queue.Entry, error]) iter.Seq2[queue.Entry, error] {
	return func(yield func(queue.Entry, error) bool) {
		if !yield(queue.Entry{}, &queue.BadError{Bottle: bottle, Name: "x\x1b", Reason: "not JSON"}) {
			return
		}
		for e, err := range seq {
			b.mu.Lock()
			skip := err == nil && b.removed[e.Proposal.ID]
			b.mu.Unlock()
			if !skip && !yield(e, err) {
				return
			}
		}
	}
}

// fail makes every step of the kind fail, after it was done or before; "" heals.
func (b *box) fail(step string, stored bool, err error) {
	b.mem.SetFault(func(s string, done bool) error {
		if s == step && done == stored {
			return err
		}
		return nil
	})
}

// respond decides as an operator does.
func (b *box) respond(t *testing.T, id queue.ID, r queue.Response) {
	t.Helper()
	r.ProposalID = id
	if r.DecidedAt.IsZero() {
		r.DecidedAt = time.Now()
	}
	if err := b.mem.Respond(t.Context(), bottle, r); err != nil {
		t.Fatalf("respond: %v", err)
	}
}

// ids lists the open proposals, oldest first.
func (b *box) ids() []queue.ID {
	var out []queue.ID
	for e, err := range b.Entries(context.Background()) {
		if err == nil && e.Response == nil {
			out = append(out, e.Proposal.ID)
		}
	}
	return out
}

// puts counts all proposals that were ever stored.
func (b *box) puts() int {
	n := 0
	for _, seq := range []iter.Seq2[queue.Entry, error]{b.Mailbox.Entries(context.Background()), b.Mailbox.Recent(context.Background(), time.Time{})} {
		for range seq {
			n++
		}
	}
	return n
}

// only returns the one open proposal.
func (b *box) only(t *testing.T) queue.ID {
	t.Helper()
	ids := b.ids()
	if len(ids) != 1 {
		t.Fatalf("%d open proposals, want 1", len(ids))
	}
	return ids[0]
}

func (b *box) delivered(id queue.ID) bool {
	e, err := b.Get(context.Background(), id)
	return err == nil && !e.Delivered.IsZero()
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
