package server

import (
	"cmp"
	"context"
	"fmt"
	"strings"

	"github.com/modelcontextprotocol/go-sdk/jsonrpc"
	"github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/bot-bottle/supervise/internal/safetext"
	"github.com/bot-bottle/supervise/tools"
)

// keyHeader carries an exchange's key from the HTTP layer to the receiving middleware: on a session the context
// of a call is that of the POST that initialized it, but the headers are the call's own.
const keyHeader = "Supervise-Exchange"

// codeTooManySessions is the JSON-RPC error code of an initialize past the limit, from the range left to servers.
const codeTooManySessions = -32050

func (s *Server) receive(next mcp.MethodHandler) mcp.MethodHandler {
	return func(ctx context.Context, method string, req mcp.Request) (mcp.Result, error) {
		switch method {
		case "tools/call":
			return s.call(ctx, method, req, next)
		case "tools/list":
			return s.listings.list(ctx, method, req, next)
		case "initialize":
			return s.initialize(ctx, method, req, next)
		case "notifications/cancelled":
			s.cancelled(req)
		}
		return next(ctx, method, req)
	}
}

func exchangeKey(req mcp.Request) string {
	if extra := req.GetExtra(); extra != nil {
		return extra.Header.Get(keyHeader)
	}
	return ""
}

// call joins a tool call's context to its connection and to the server's lifetime.
func (s *Server) call(ctx context.Context, method string, req mcp.Request, next mcp.MethodHandler) (mcp.Result, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	e, c := s.calls.begin(exchangeKey(req), cancel)
	if e == nil {
		return nil, errHungUp
	}
	defer s.calls.finish(e, c)

	if p, ok := req.GetParams().(*mcp.CallToolParamsRaw); ok && p != nil && p.Meta != nil {
		p.Meta = slim(map[string]any(p.Meta)).(map[string]any)
	}
	ss, _ := req.GetSession().(*mcp.ServerSession)
	tc := &tools.Call{
		Client:      client(ss, req),
		Session:     ss.ID(),
		OnDelivered: func(f func() (then func(out bool))) { s.calls.onDelivered(e, f) },
		Holding:     func() { keep(e.post.ctx); e.post.hold() },
	}
	placed := new(bool)
	tc.Room = func(size int) error {
		err := s.room(e, weighAnswer(size))
		*placed = err == nil
		return err
	}
	tc.AwaitRoom = func(ctx context.Context, size int) error {
		err := s.awaitRoom(ctx, e, weighAnswer(size))
		*placed = err == nil
		return err
	}
	var wait tools.Wait
	if e.alone {
		tc.Park = func(w tools.Wait) { wait = w }
	}
	res, err := next(tools.WithCall(ctx, tc), method, req)
	if r, ok := res.(*mcp.CallToolResult); ok && err == nil && wait != nil {
		s.calls.park(e, &parked{wait: wait, call: &tools.Call{OnDelivered: tc.OnDelivered, Room: tc.Room, AwaitRoom: tc.AwaitRoom}, placed: placed, standIn: r})
	} else if ok && err == nil {
		if *placed {
			return res, nil
		}
		return s.place(ctx, e, r)
	}
	return res, err
}

func toolError(err error) *mcp.CallToolResult {
	var res mcp.CallToolResult
	res.SetError(err)
	return &res
}

func (s *Server) cancelled(req mcp.Request) {
	p, ok := req.GetParams().(*mcp.CancelledParams)
	if !ok || p == nil {
		return
	}
	ss, _ := req.GetSession().(*mcp.ServerSession)
	if id, err := jsonrpc.MakeID(p.RequestID); err == nil {
		s.calls.cancelled(ss.ID(), id)
	}
}

// slim copies the objects in a JSON value. The SDK's decoder makes each with room for 64 fields, 2.6 KiB, and a held call keeps
// the three or more that its _meta has.
func slim(v any) any {
	switch v := v.(type) {
	case map[string]any:
		out := make(map[string]any, len(v))
		for key, field := range v {
			out[key] = slim(field)
		}
		return out
	case []any:
		for i, e := range v {
			v[i] = slim(e)
		}
	}
	return v
}

// client names the caller: clientInfo's name (of initialize, or since 2026-07-28 of the request), else the first
// product of the User-Agent.
func client(ss *mcp.ServerSession, req mcp.Request) string {
	if p := ss.InitializeParams(); p != nil && p.ClientInfo != nil && p.ClientInfo.Name != "" {
		return p.ClientInfo.Name
	}
	product, _, _ := strings.Cut(req.GetExtra().Header.Get("User-Agent"), " ")
	name, _, _ := strings.Cut(product, "/")
	return name
}

// initialize counts the session before it comes to be.
func (s *Server) initialize(ctx context.Context, method string, req mcp.Request, next mcp.MethodHandler) (mcp.Result, error) {
	ss, _ := req.GetSession().(*mcp.ServerSession)
	id := ss.ID()
	if id == "" {
		return next(ctx, method, req)
	}
	if p, ok := req.GetParams().(*mcp.InitializeParams); ok && p != nil {
		p.Meta = nil // a session keeps the params, and nothing here reads these
		if c := p.Capabilities; c != nil {
			c.Experimental, c.Extensions = nil, nil
		}
	}
	e := s.calls.exchange(exchangeKey(req))
	if e == nil {
		return nil, errHungUp
	}
	if !s.calls.open(e, id) {
		s.log.Warn("session refused: too many are open", "sessions", s.opts.MaxSessions)
		return nil, &jsonrpc.Error{
			Code:    codeTooManySessions,
			Message: fmt.Sprintf("%d sessions are open and none is idle: end one with DELETE, or try again later", s.opts.MaxSessions),
		}
	}
	res, err := next(ctx, method, req)
	if err != nil {
		return nil, err // the SDK closes the session; serveMCP forgets it then
	}
	name, version := client(ss, req), ""
	if p := ss.InitializeParams(); p != nil && p.ClientInfo != nil {
		version = p.ClientInfo.Version
	}
	s.log.Info("client connected", "client", safetext.Line(cmp.Or(name, "unknown"), 40), "version", safetext.Line(version, 20))
	return res, nil
}
