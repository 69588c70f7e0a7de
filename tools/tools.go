// Package tools is what the agent sees: three tools that propose a change to a human operator, one that
// waits for an earlier answer, one that reads the routes in force; and the ask-and-wait they share.
//
// What holds for every proposing call:
//
//   - The proposal is durable in the mailbox before the call waits. From then on neither a cancelled call, nor a dead
//     connection, nor a restart withdraws it or loses its answer.
//   - A call waits no longer than its client does; then it answers "status: pending", which cancels nothing.
//   - The same question (tool and canonical payload) is asked once: a repeat joins the open proposal, or gets the
//     answer that has not reached anybody yet, or for a while the recorded one.
//   - An answer counts as delivered, and its pair is archived, only when the result went out on a live connection ([Call]).
//   - Bad input is a tool error naming tool, field, value and mend; only an unknown tool is a protocol error.
//
// Everything the tools remember they can read again from the mailbox; it is memory of what is stored, never the only copy.
package tools

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/bot-bottle/supervise/queue"
	"github.com/modelcontextprotocol/go-sdk/mcp"
)

// The tools that queue nothing; the proposing ones are named in package payload.
const (
	ListRoutes = "list-egress-routes"
	Await      = "await-decision"
)

// Defaults of Options.
const (
	DefaultRedeliver   = 10 * time.Minute
	DefaultMaxPending  = 32
	DefaultMaxWaiting  = 2048
	DefaultEgressProxy = "http://egress:9099"
	DefaultDockerfile  = "/etc/claude-bottle/current-config/Dockerfile"
)

// Options configure Tools. Bottle and Mailbox are required.
type Options struct {
	Bottle  string        // slug
	Mailbox queue.Mailbox // the bottle's own

	// Hold says how long a call of the client may wait; 0 = until decided. Not ok, or a nil Hold: the
	// built-in table, and 50 s for a call without a progress token. See ParseHold.
	Hold func(client string) (d time.Duration, ok bool)

	Redeliver   time.Duration // how long a delivered answer is repeated to the same question; if zero, DefaultRedeliver
	MaxPending  int           // open proposals; if zero, DefaultMaxPending
	MaxWaiting  int           // calls waiting at once; if zero, DefaultMaxWaiting
	EgressProxy string        // http URL; if empty, DefaultEgressProxy
	Dockerfile  string        // where the agent finds its current Dockerfile; if empty, DefaultDockerfile
	Logger      *slog.Logger  // if nil, nothing is logged

	// Observe is told what happens, from any goroutine; it must not block. Nil: nobody counts.
	Observe func(Event)
}

// Tools serves one bottle. Its methods may be called concurrently.
type Tools struct {
	opts   Options
	began  time.Time // for progressTick
	log    *slog.Logger
	proxy  *url.URL
	client *http.Client // for list-egress-routes

	creating sync.Mutex // held while a proposal is counted and remembered, so that two calls make one, and the limit holds

	mu      sync.Mutex
	records records      // guarded by mu
	waiting int          // guarded by mu; calls that wait
	seats   map[seat]int // guarded by mu; the same by session and proposal

	reads     chan struct{}                // a place for each proposal that is being read
	saving    map[queue.ID]chan struct{}   // guarded by mu; each is closed when that proposal is stored, or is not
	archiving map[queue.ID][]chan struct{} // guarded by mu; each is closed when that answer is archived

	queueMu sync.Mutex
	open    []queue.ID // guarded by queueMu; open proposals, oldest first, as of openAt
	openAt  time.Time  // guarded by queueMu
}

// New checks the options and reads from the mailbox what was asked and answered before.
func New(opts Options) (*Tools, error) {
	if err := queue.CheckSlug(opts.Bottle); err != nil {
		return nil, err
	}
	if opts.Mailbox == nil {
		return nil, errors.New("tools: no mailbox")
	}
	opts.Redeliver = cmp.Or(opts.Redeliver, DefaultRedeliver)
	opts.MaxPending = cmp.Or(opts.MaxPending, DefaultMaxPending)
	opts.MaxWaiting = cmp.Or(opts.MaxWaiting, DefaultMaxWaiting)
	opts.EgressProxy = cmp.Or(opts.EgressProxy, DefaultEgressProxy)
	opts.Dockerfile = cmp.Or(opts.Dockerfile, DefaultDockerfile)
	if opts.Redeliver < 0 || opts.MaxPending < 0 || opts.MaxWaiting < 0 {
		return nil, fmt.Errorf("tools: redelivery %v, pending %d and waiting %d must not be negative", opts.Redeliver, opts.MaxPending, opts.MaxWaiting)
	}
	proxy, err := url.Parse(opts.EgressProxy)
	if err != nil || proxy.Scheme != "http" && proxy.Scheme != "https" || proxy.Host == "" {
		return nil, fmt.Errorf("egress proxy %.200q must be a URL such as %s", opts.EgressProxy, DefaultEgressProxy)
	}
	t := &Tools{
		opts:   opts,
		began:  time.Now(),
		log:    opts.Logger,
		proxy:  proxy,
		client: routesClient(proxy),
		seats:  make(map[seat]int),

		saving:    make(map[queue.ID]chan struct{}),
		reads:     make(chan struct{}, maxReads),
		archiving: make(map[queue.ID][]chan struct{}),
	}
	if t.log == nil {
		t.log = slog.New(slog.DiscardHandler)
	}
	if err := t.load(context.Background()); err != nil {
		return nil, fmt.Errorf("reading the mailbox of bottle %s: %w", opts.Bottle, err)
	}
	return t, nil
}

// Register adds the five tools to s. The server should use Middleware and Instructions too.
func (t *Tools) Register(s *mcp.Server) {
	mcp.AddTool(s, egressBlockTool(), t.egressBlock)
	mcp.AddTool(s, pipelockBlockTool(), t.pipelockBlock)
	mcp.AddTool(s, capabilityBlockTool(t.opts.Dockerfile), t.capabilityBlock)
	mcp.AddTool(s, listRoutesTool(), t.listRoutes)
	mcp.AddTool(s, awaitTool(), t.await)
}

// always keeps a tool's definition in the model's sight; clients may otherwise defer it until it is searched for, which
// a stuck model does not.
func always() mcp.Meta { return mcp.Meta{"anthropic/alwaysLoad": true} }

// proposes is true of the three proposing tools: they change nothing by themselves, and asking twice asks once.
func proposes(title string) *mcp.ToolAnnotations {
	return &mcp.ToolAnnotations{Title: title, IdempotentHint: true, DestructiveHint: new(false), OpenWorldHint: new(false)}
}

func reads(title string) *mcp.ToolAnnotations {
	a := proposes(title)
	a.ReadOnlyHint = true
	return a
}

// afterwards is the part of a proposing tool's description that all of them share.
const afterwards = `
The call blocks until a human decides, which can take minutes or hours; that is normal. Ask for one thing per call, the most urgent first, and the least that unblocks you. Asking the same again does not queue it twice.

What to do with the answer:
- "status: approved": it was decided and acted on before you got this answer, which says what holds now; usually the change is live, so retry what failed.
- "status: modified": approved with changes; read what was applied, it may be narrower than you asked for, then retry.
- "status: rejected": nothing was changed. Read the notes. Find another way, or ask for something narrower; do not repeat it unchanged.
- "status: pending": not decided yet, nothing is cancelled. Call await-decision with the proposal_id you were given.`

// Instructions is what the server tells a client about itself.
func (t *Tools) Instructions() string { return t.opts.Instructions() }

// Instructions is the same, for a server that is there before the mailbox is.
func (o Options) Instructions() string {
	return `You work in a sandbox whose network and tools are limited on purpose. When a limit stops you, do not try to get around it: ask the human operator through these tools. Each proposes one narrow change, waits for the decision, and the change is live when you get the answer.

- A request was refused by the egress proxy (HTTP 403 with a body that says so; "CONNECT tunnel failed, response 403"; or a TLS error about an untrusted or self-signed CA, behind which such a 403 can hide): egress-block with that host. To see what is allowed already: list-egress-routes.
- A request was blocked by pipelock (its 403 says so, or the host is routed and still refused): pipelock-block with the URL.
- A program, package or system setting is missing from this sandbox: capability-block with the whole changed Dockerfile (the current one is ` + cmp.Or(o.Dockerfile, DefaultDockerfile) + `).
- An answer said "status: pending", or was lost: await-decision with its proposal_id, or the same call again.

Ask for one thing per call, most urgent first. A call can block for a long time because a person answers it: wait, and do other work if you can.`
}
