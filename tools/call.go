package tools

import (
	"context"

	"github.com/modelcontextprotocol/go-sdk/mcp"
)

// Call is what the transport knows of one tools/call. The server puts it into the handler's
// context; without one (an in-memory session) a result counts as delivered when the handler returns.
type Call struct {
	// Client names the caller for the hold table: clientInfo's name, else the User-Agent's first product.
	Client string
	// Session tells calls of different sessions apart; it may be empty.
	Session string
	// OnDelivered registers f to run before the call's result is written, so that whoever asks the same the moment he has read it
	// finds it being delivered. What f returns runs afterwards, once: with true when the result went out on a live connection, and
	// after the response has ended, so that its client does not wait for it; else with false, and f may then run again, on another
	// connection. Nil: delivered at return.
	OnDelivered func(f func() (then func(out bool)))
	// Room is asked before an answer of that many bytes is made of what was read for it, and fails when there is none for it, which the
	// agent is told: answers that nobody reads must not take all memory. Nil: there is room.
	Room func(size int) error
	// AwaitRoom is Room that waits for a while; it fails with [ErrBusy] too. Nil: as Room.
	AwaitRoom func(ctx context.Context, size int) error
	// Holding is called (once or more, from any goroutine) when the call starts to wait for a person: the
	// response headers then go out, which clients want within a minute. Nil: nothing to do.
	Holding func()
	// Park, if not nil, lets the transport do the waiting, which then costs no more than a connection: the handler calls it
	// once, after Holding, and returns at once with a pending answer. That stands in for the result of wait, which is to
	// go out instead of it. Where that cannot be, the pending answer is as true as any.
	Park func(wait Wait)
}

// Wait waits until the call is to be answered, and tells by notify in the meantime that somebody is waited for. It returns nil
// when ctx ends for another cause than [ErrShutdown]; it may then be called again, as when the client resumes its stream.
type Wait func(ctx context.Context, notify Notify) *mcp.CallToolResult

// Notify sends a notification to the client of a call.
type Notify func(ctx context.Context, p *mcp.ProgressNotificationParams) error

type callKey struct{}

// WithCall returns a context that carries c.
func WithCall(ctx context.Context, c *Call) context.Context {
	return context.WithValue(ctx, callKey{}, c)
}

// CallFrom returns the context's call, or nil.
func CallFrom(ctx context.Context) *Call {
	c, _ := ctx.Value(callKey{}).(*Call)
	return c
}

// ErrShutdown is the cause of a handler's context when the server is going down: the answer is then
// `status: pending`, at once. Any other cause means that nobody is listening any more.
var ErrShutdown error = shutdownError{}

type shutdownError struct{}

func (shutdownError) Error() string { return "the server is shutting down" }
