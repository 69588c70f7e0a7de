// Package server serves the tools over MCP streamable HTTP, to old clients and new ones at one URL.
//
// It promises that a held call stays alive while a person thinks, ends when its client is gone, and is
// answered when the server goes down:
//
//   - Every event-stream response gets an SSE comment every 25 s. The headers of a call's response go out when the
//     call starts to hold ([tools.Call].Holding), not before.
//   - A call's context ends with [tools.ErrShutdown] when the server does, and with another cause when nobody is
//     listening any more, or its session is deleted. With a session its stream may be resumed for 60 s (GET with
//     Last-Event-ID): then the wait goes on there.
//   - A call that is held alone in its request is over for the SDK, and costs a connection and two small goroutines
//     (park.go). One of a batch waits in its handler, and on a session it ends only when those 60 s have.
//   - What a tool registers with [tools.Call].OnDelivered begins before its answer is written, and learns afterwards
//     whether that went out on a live connection.
//
// Two handlers of the SDK share one MCP server. A request of protocol 2026-07-28 or later, and one that comes
// with neither a session nor a version and does not initialize, is stateless; everything else has a session.
package server

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/bot-bottle/supervise/tools"
)

const (
	maxBody         = 1 << 20
	maxBatch        = 16       // messages in one body: the answer to a few bytes can be long
	maxBodies       = 32 << 20 // of all requests in progress that are not light
	maxBatches      = 16 << 20 // of the answers to bodies of several messages, at lightBody for each message
	lightBody       = 16 << 10 // a body that is always taken
	maxHeader       = 16 << 10
	maxStreams      = 1024 // GETs and subscriptions/listen, which end when the client likes
	maxLingering    = 4096 // hung-up calls that may be resumed; past it they end at once
	maxEventBytes   = 8 << 20
	maxEventStreams = 8192
	maxStreamEvents = 64
	newestStateful  = "2025-11-25"
)

// Options configure a server. Register is needed; zero elsewhere means the documented default.
type Options struct {
	Addr     string       // host:port to listen on; port 0: any free one. If empty, 127.0.0.1:0
	Listener net.Listener // used instead of Addr, when not nil

	Token        string   // bearer token that every request but GET /health and GET /ready must carry; empty: none is asked for
	AllowedHosts []string // names that Host and Origin may carry besides loopback names, Addr's host, "supervise" and the machine's own

	MaxConns       int           // connections; fewer when the process may not open so many files. If zero, 4096
	MaxSessions    int           // if zero, 256
	SessionTimeout time.Duration // how long a session without any request is kept; if zero, 30 min

	Register     func(*mcp.Server) // adds the tools; called when they are first needed, and not before Opened is closed
	Opened       <-chan struct{}   // until it is closed MCP requests wait, and GET /ready says no; nil: it is open from the start
	Instructions string            // what the client tells its model of this server
	Ready        func() error      // what GET /ready reports; nil: always ready
	Version      string
	Logger       *slog.Logger // if nil, nothing is logged

	Timings Timings
}

// Timings are the server's clocks, to be changed by tests alone. Zero means the default.
type Timings struct {
	Heartbeat  time.Duration // between two comments on an event stream; 25 s
	Grace      time.Duration // how long a hung-up call of a session may be resumed; 60 s
	ReadBody   time.Duration // until a request's body must have come; 30 s
	ReadHeader time.Duration // until a request's headers must have come; 10 s
	Write      time.Duration // for one write of an answer; 60 s
	Beat       time.Duration // for one heartbeat: a reader that does not take it is dropped; 1 s
	Idle       time.Duration // of a kept-alive connection; 2 min
	Drain      time.Duration // for answering held calls at the end; 5 s
}

func (t Timings) withDefaults() Timings {
	return Timings{
		Heartbeat:  cmp.Or(t.Heartbeat, 25*time.Second),
		Grace:      cmp.Or(t.Grace, time.Minute),
		ReadBody:   cmp.Or(t.ReadBody, 30*time.Second),
		ReadHeader: cmp.Or(t.ReadHeader, 10*time.Second),
		Write:      cmp.Or(t.Write, time.Minute),
		Beat:       cmp.Or(t.Beat, time.Second),
		Idle:       cmp.Or(t.Idle, 2*time.Minute),
		Drain:      cmp.Or(t.Drain, 5*time.Second),
	}
}

// Server is one MCP endpoint. Its listener is open from New on; Run serves it.
type Server struct {
	opts  Options
	log   *slog.Logger
	ln    net.Listener
	hosts hostList

	sdk      func() *sdk // made when first asked for
	calls    *registry
	listings listings
	events   *eventStore
	beats    *wheel
	http     *http.Server

	base  context.Context // parent of every request's; ends after the held calls were answered
	abort context.CancelCauseFunc

	bodies   budget
	batches  budget  // of the answers to several messages in one body
	answers  *places // of long answers
	writers  *writers
	draining atomic.Bool
	requests sync.WaitGroup // HTTP requests being served
	unready  atomic.Bool    // Ready failed when last asked; so that a change is logged once

	conns   *conns
	streams atomic.Int64 // GETs and subscriptions/listen in progress
}

// New checks opts and starts to listen, so that a taken port is known at once. Run or Close must follow.
func New(opts Options) (*Server, error) {
	if opts.Register == nil {
		panic("server: Options.Register is nil")
	}
	opts.MaxConns = cmp.Or(opts.MaxConns, 4096)
	opts.MaxSessions = cmp.Or(opts.MaxSessions, 256)
	opts.SessionTimeout = cmp.Or(opts.SessionTimeout, 30*time.Minute)
	opts.Addr = cmp.Or(opts.Addr, "127.0.0.1:0")
	opts.Timings = opts.Timings.withDefaults()
	hosts, err := newHostList(opts.Addr, opts.AllowedHosts)
	if err != nil {
		return nil, err
	}
	s := &Server{
		opts:   opts,
		log:    opts.Logger,
		ln:     opts.Listener,
		hosts:  hosts,
		events: newEventStore(),
		beats:  newWheel(opts.Timings.Heartbeat, opts.Timings.Beat),
		conns:  newConns(opts.MaxConns),

		bodies:  budget{most: maxBodies},
		batches: budget{most: maxBatches},
		writers: newWriters(),
	}
	s.answers = newPlaces(s.writers)
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	s.base, s.abort = context.WithCancelCause(context.Background())
	s.calls = newRegistry(opts.Timings.Grace, opts.SessionTimeout, opts.MaxSessions, s.closeSession,
		s.events.hold)
	s.sdk = sync.OnceValue(s.newSDK)
	s.http = &http.Server{
		Handler:           s,
		ReadHeaderTimeout: opts.Timings.ReadHeader,
		IdleTimeout:       opts.Timings.Idle,
		MaxHeaderBytes:    maxHeader,
		BaseContext:       func(net.Listener) context.Context { return s.base },
		ConnState:         s.conns.state,
		ConnContext:       s.conns.context,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
		// No WriteTimeout: it would end held calls. Each write has its own deadline.
	}
	if s.ln == nil {
		if s.ln, err = net.Listen("tcp", opts.Addr); err != nil {
			return nil, fmt.Errorf("%w: set SUPERVISE_BIND and SUPERVISE_PORT to an address that is free", err)
		}
	}
	return s, nil
}

// sdk is what the SDK has of the server: two handlers of one MCP server.
type sdk struct {
	mcp                 *mcp.Server
	stateful, stateless *mcp.StreamableHTTPHandler
}

func (s *Server) newSDK() *sdk {
	m := mcp.NewServer(
		&mcp.Implementation{Name: "supervise", Title: "supervise", Version: cmp.Or(s.opts.Version, "devel")},
		&mcp.ServerOptions{
			Instructions: s.opts.Instructions,
			// No list changes: the newest Claude Code then opens no side stream. No logging.
			Capabilities: &mcp.ServerCapabilities{Tools: &mcp.ToolCapabilities{}},
		})
	s.opts.Register(m)
	m.AddReceivingMiddleware(s.receive)
	get := func(*http.Request) *mcp.Server { return m }
	return &sdk{
		mcp: m,
		stateful: mcp.NewStreamableHTTPHandler(get, &mcp.StreamableHTTPOptions{
			EventStore:                 s.events,
			MaxRequestBodyBytes:        maxBody,
			DisableLocalhostProtection: true, // hostList replaces it
		}),
		stateless: mcp.NewStreamableHTTPHandler(get, &mcp.StreamableHTTPOptions{
			Stateless:                    true,
			PropagateRequestCancellation: true,
			MaxRequestBodyBytes:          maxBody,
			DisableLocalhostProtection:   true,
		}),
	}
}

// Addr is the address that the server listens on.
func (s *Server) Addr() net.Addr { return s.ln.Addr() }

// Close gives the listener back without serving. It is for a server that is never run.
func (s *Server) Close() error { return s.ln.Close() }

// Run serves until ctx ends, then answers what is held and returns when everything it started is gone.
// The error is nil after an orderly end.
func (s *Server) Run(ctx context.Context) error {
	wheelCtx, stopWheel := context.WithCancel(context.Background())
	var own sync.WaitGroup
	own.Go(func() { s.beats.run(wheelCtx) })
	served := make(chan error, 1)
	own.Go(func() { served <- s.http.Serve(s.ln) })
	s.log.Info("listening on " + s.ln.Addr().String())

	var errs []error
	select {
	case err := <-served:
		errs = append(errs, fmt.Errorf("serving %s: %w", s.ln.Addr(), err))
	case <-ctx.Done():
		s.log.Info("shutting down: answering held calls", "cause", context.Cause(ctx), "calls", s.calls.held())
	}
	errs = append(errs, s.stop())
	stopWheel()
	own.Wait()
	return errors.Join(errs...)
}

// stop ends in this order: no new calls; held calls are answered and their responses drained; sessions and
// whatever stream is left (an idle GET never ends by itself); connections.
func (s *Server) stop() error {
	s.draining.Store(true)
	s.http.SetKeepAlivesEnabled(false)
	s.calls.shutdown()
	drainCtx, cancel := context.WithTimeout(context.Background(), s.opts.Timings.Drain)
	defer cancel()
	var errs []error
	if n := s.calls.drain(drainCtx); n > 0 {
		// Their clients do not read. Nothing is lost, and it is not for them to make this a failure.
		s.log.Warn("held calls could not be answered: their clients do not read", "calls", n, "within", s.opts.Timings.Drain)
	}
	s.calls.end()
	s.abort(tools.ErrShutdown)

	endCtx, cancel := context.WithTimeout(context.Background(), s.opts.Timings.Drain)
	defer cancel()
	s.conns.end()
	closeCtx, cancel := context.WithTimeout(endCtx, s.opts.Timings.Drain/2)
	defer cancel()
	if err := s.http.Shutdown(closeCtx); errors.Is(err, context.DeadlineExceeded) {
		s.log.Warn("connections are closed while something is written: their clients do not read")
		errs = append(errs, s.http.Close())
	} else if err != nil {
		errs = append(errs, fmt.Errorf("shutting down: closing connections: %w", errors.Join(err, s.http.Close())))
	}
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		if s.opened() {
			for ss := range s.sdk().mcp.Sessions() {
				ss.Close()
			}
		}
		s.requests.Wait()
		s.calls.wait()
	}()
	select {
	case <-gone:
	case <-endCtx.Done():
		errs = append(errs, fmt.Errorf("shutting down: requests still run after %s", s.opts.Timings.Drain))
	}
	return errors.Join(errs...)
}

// closeSession closes one session of the SDK. It returns when its calls have.
func (s *Server) closeSession(id string) {
	for ss := range s.sdk().mcp.Sessions() {
		if ss.ID() == id {
			ss.Close()
		}
	}
}
