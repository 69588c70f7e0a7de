package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"runtime/debug"
	"time"

	"github.com/modelcontextprotocol/go-sdk/jsonrpc"
	"github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/bot-bottle/supervise/tools"
)

var errCancelled = errors.New("the client cancelled the call")

// parked is a call that waits for a person and costs no more than its connection. To the SDK it is over: it was answered with
// a pending answer, which the exchange's stream withholds. The result that the call comes to in the end is encoded by the
// SDK too, in that answer's place. What goes wrong on the way leaves the client with an answer that is true.
type parked struct {
	wait    tools.Wait
	call    *tools.Call
	standIn *mcp.CallToolResult // as the SDK completed it
	event   string              // the id of its event, if it has one
	id      string              // of the request that it answers, in JSON
}

// answer is the message that goes out instead of the stand-in.
func (p *parked) answer(res *mcp.CallToolResult) ([]byte, error) {
	full := *p.standIn
	full.Content, full.StructuredContent, full.IsError = res.Content, res.StructuredContent, res.IsError
	full.Meta = mcp.Meta{}
	maps.Copy(full.Meta, p.standIn.Meta) // what the SDK says of this server
	maps.Copy(full.Meta, res.Meta)
	result, err := json.Marshal(&full)
	if err != nil {
		return nil, err
	}
	id, err := idOf(p.id)
	if err != nil {
		return nil, err
	}
	return jsonrpc.EncodeMessage(&jsonrpc.Response{ID: id, Result: result})
}

func idOf(raw string) (jsonrpc.ID, error) {
	var v any
	if err := json.Unmarshal([]byte(raw), &v); err != nil {
		return jsonrpc.ID{}, err
	}
	return jsonrpc.MakeID(v)
}

// park has e's answer withheld, if e is still there.
func (r *registry) park(e *exchange, p *parked) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.exchanges[e.key] == e {
		e.parked = p
	}
}

// withhold tells whether an answer is the stand-in for one that is waited for.
func (r *registry) withhold(e *exchange, event, answers string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.exchanges[e.key] != e || e.parked == nil {
		return false
	}
	p := e.parked
	p.event, p.id = event, answers
	p.standIn.Content = nil // it is encoded
	delete(p.standIn.Meta, tools.DecisionKey)
	return true
}

// take makes the caller the one that waits for e's answer, on its connection. Nil: nobody is to wait.
func (r *registry) take(e *exchange, cancel context.CancelCauseFunc) (*parked, *call) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.exchanges[e.key] != e || e.parked == nil || e.session != nil && e.session.ending {
		return nil, nil
	}
	e.delivered = nil // what a connection that is gone was to deliver
	return e.parked, r.runLocked(e, cancel)
}

// cancelled ends the parked call that the client of a session does not want any more; the SDK knows only of its stand-in.
func (r *registry) cancelled(sessionID string, id jsonrpc.ID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.sessions[sessionID]
	if s == nil {
		return
	}
	for e := range s.exchanges {
		if e.parked == nil {
			continue
		}
		if of, err := idOf(e.parked.id); err == nil && of == id {
			r.dropLocked(e, errCancelled)
		}
	}
}

// detach has a held call go on without net/http, whose buffers, goroutines and deep stack are most of what is left of it: what
// is written from here on is chunks on the bare connection, which ends with the response, as its header said.
func (q *request) detach() bool {
	if !q.out.withheld() || q.alone != nil && !q.alone() {
		return false
	}
	ctx, drop := context.WithCancelCause(q.s.base)
	conn, stop := q.out.detach(ctx, drop)
	if conn == nil {
		drop(nil)
		return false
	}
	stop(nil)
	q.lighten()
	q.s.requests.Add(2)
	go func() {
		defer q.s.requests.Done()
		conn.Read(make([]byte, 1)) // nothing is to come any more
		drop(errHungUp)
	}()
	go q.hold(conn)
	return true
}

func (q *request) hold(conn net.Conn) {
	defer q.s.requests.Done()
	defer q.s.conns.gone(conn)
	defer conn.Close()
	defer func() {
		if v := recover(); v != nil {
			q.s.log.Error("a held call failed", "panic", v, "stack", string(debug.Stack()))
		}
	}()
	defer q.out.finish()
	defer q.leave()
	q.wait()
}

// detach returns the connection and what ends the context of before; nil if it cannot be had.
func (w *stream) detach(ctx context.Context, drop context.CancelCauseFunc) (net.Conn, context.CancelCauseFunc) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.closes || !w.events || w.over || w.ctx.Err() != nil {
		return nil, nil
	}
	conn, _, err := w.rc.Hijack()
	if err != nil {
		return nil, nil // as in a test, where there is none
	}
	stop := w.drop
	w.conn, w.rw, w.rc, w.ctx, w.drop = conn, nil, nil, ctx, drop
	return conn, stop
}

// finish ends the response on a bare connection.
func (w *stream) finish() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.broken {
		w.conn.SetWriteDeadline(time.Now().Add(w.within))
		io.WriteString(w.conn, "0\r\n\r\n")
	}
}

// wait waits, where the SDK's answer was withheld, until there is another one, and sends that.
func (q *request) wait() {
	if !q.out.withheld() {
		return
	}
	ctx, cancel := context.WithCancelCause(q.out.ctx)
	defer cancel(nil)
	p, c := q.s.calls.take(q.e, cancel)
	if p == nil {
		return
	}
	defer q.s.calls.finish(q.e, c)
	defer context.AfterFunc(q.s.life, func() { cancel(context.Cause(q.s.life)) })()
	if res := p.wait(tools.WithCall(ctx, p.call), q.out.notify); res != nil {
		q.reply(p, res)
	}
}

func (q *request) reply(p *parked, res *mcp.CallToolResult) {
	data, err := p.answer(res)
	if err != nil {
		q.s.log.Error("an answer cannot be encoded", "err", err)
		return
	}
	if q.out.send(p.event, p.id, event(p.event, data)) == nil && q.e.session != nil {
		q.s.events.replace(q.e.session.id, p.event, data)
	}
}

// lighten lets go of what only the SDK needed.
func (q *request) lighten() {
	q.handler, q.r = nil, nil
	q.body.drop()
	q.s.bodies.give(q.weight)
	q.weight = 0
}

// event frames a message as the SDK does.
func event(id string, data []byte) []byte {
	if id != "" {
		id = "id: " + id + "\n"
	}
	return fmt.Appendf(nil, "event: message\n%sdata: %s\n\n", id, data)
}

// notify sends a notification of progress between the SDK's last message and the answer. It has no number: a client that
// resumes does not miss it.
func (w *stream) notify(_ context.Context, p *mcp.ProgressNotificationParams) error {
	params, err := json.Marshal(p)
	if err != nil {
		return err
	}
	data, err := jsonrpc.EncodeMessage(&jsonrpc.Request{Method: "notifications/progress", Params: params})
	if err != nil {
		return err
	}
	return w.send("", "", event("", data))
}
