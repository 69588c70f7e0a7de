package server

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"runtime/debug"
	"slices"
	"strconv"
	"time"

	"github.com/modelcontextprotocol/go-sdk/jsonrpc"
	"github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/bot-bottle/supervise/tools"
)

// clientFirst is how long what an answer leaves to do waits, which is its archiving mostly: the client has just been woken up,
// and on few processors it would wait for that.
const clientFirst = time.Millisecond

var errCancelled = errors.New("the client cancelled the call")

// parked is a call that waits for a person and costs no more than its connection. To the SDK it is over: it was answered with
// a pending answer, which the exchange's stream withholds. The result that the call comes to in the end is encoded by the
// SDK too, in that answer's place. What goes wrong on the way leaves the client with an answer that is true.
type parked struct {
	wait    tools.Wait
	call    *tools.Call
	placed  *bool               // there is room for the answer already
	standIn *mcp.CallToolResult // as the SDK completed it
	head    []byte              // its event up to the result
	event   string              // the id of that, if it has one
	id      string              // of the request that it answers, in JSON
}

const (
	resultKey = `,"result":` // before the stand-in's result: in a string its quotes would be escaped
	eventTail = "}\n\n"      // behind it
)

// answer is the event that goes out instead of the stand-in's: the same one, with the result that there is now.
func (p *parked) answer(res *mcp.CallToolResult) ([]byte, error) {
	full := *p.standIn
	full.Content, full.StructuredContent, full.IsError = res.Content, res.StructuredContent, res.IsError
	full.Meta = mcp.Meta{}
	maps.Copy(full.Meta, p.standIn.Meta) // what the SDK says of this server
	maps.Copy(full.Meta, res.Meta)
	result, err := full.MarshalJSON()
	if err != nil {
		return nil, err
	}
	return slices.Concat(p.head, result, []byte(eventTail)), nil
}

func idOf(raw json.RawMessage) (jsonrpc.ID, error) {
	var v any
	if err := json.Unmarshal(raw, &v); err != nil {
		return jsonrpc.ID{}, err
	}
	return jsonrpc.MakeID(v)
}

// park has e's answer withheld, if e is still there.
func (r *registry) park(e *exchange, p *parked) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.exchanges[e.key] == e && e.parked == nil {
		e.parked = p
		r.waitedForLocked(e, true)
	}
}

// withhold tells whether an answer is the stand-in for one that is waited for.
func (r *registry) withhold(e *exchange, event, answers string, data []byte) bool {
	at := bytes.Index(data, []byte(resultKey))
	if at < 0 || !bytes.HasSuffix(data, []byte(eventTail)) {
		return false // not as the SDK writes it: the stand-in is the answer
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.exchanges[e.key] != e || e.parked == nil {
		return false
	}
	p := e.parked
	p.event, p.id, p.head = event, answers, bytes.Clone(data[:at+len(resultKey)])
	p.standIn.Content = nil // it is encoded
	delete(p.standIn.Meta, tools.DecisionKey)
	return true
}

// take makes the caller the one that waits for e's answer, on its connection. Nil: nobody is to wait.
func (r *registry) take(e *exchange, cancel context.CancelCauseFunc) (*parked, *call) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.exchanges[e.key] != e || e.parked == nil || len(e.running) > 0 || e.session != nil && e.session.ending {
		return nil, nil
	}
	e.delivered = nil // what a connection that is gone was to deliver
	return e.parked, r.runLocked(e, cancel)
}

// cancelled ends the call that the client of a session does not want any more. The SDK knows of one that waits in its handler,
// but not of one that is parked, or about to be.
func (r *registry) cancelled(sessionID string, id jsonrpc.ID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.sessions[sessionID]
	if s == nil {
		return
	}
	for e := range s.exchanges {
		if e.alone && e.id == id {
			r.dropLocked(e, errCancelled)
		}
	}
}

// detach has a held call go on without net/http, whose buffers, goroutines and deep stack are most of what is left of it: what
// is written from here on is chunks, in HTTP/1.0 bytes, on the bare connection, which ends with the response, as its header said.
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
	heard := make(chan struct{})
	go func() {
		defer q.s.requests.Done()
		defer close(heard)
		listen(conn)
		q.out.lost.Store(true)
		drop(errHungUp)
	}()
	go q.hold(conn, heard)
	return true
}

// maxAfter is what may come on a connection after its last request, which is discarded. Some clients end a body with a line end
// of their own.
const maxAfter = 64 << 10

// listen returns when the connection is gone.
func listen(conn net.Conn) {
	buf := make([]byte, 64)
	for more := maxAfter; more > 0; {
		n, err := conn.Read(buf)
		if err != nil {
			return
		}
		more -= n
	}
}

// hold is the rest of a detached request. When nothing comes on conn any more, heard is closed.
func (q *request) hold(conn net.Conn, heard <-chan struct{}) {
	defer q.s.requests.Done()
	defer func() {
		if v := recover(); v != nil {
			q.s.log.Error("a held call failed", "panic", v, "stack", string(debug.Stack()))
		}
	}()
	defer q.end(conn, heard)
	q.wait()
}

func (q *request) end(conn net.Conn, heard <-chan struct{}) {
	defer func() { // whatever fails
		conn.Close()
		q.s.conns.gone(conn)
	}()
	q.leave()
	whole := q.out.finish()
	if q.then != nil {
		time.Sleep(clientFirst)
	}
	if whole {
		q.s.conns.answered(conn)
		closeWrite(conn)
	}
	if q.then != nil {
		q.then()
	}
	if whole {
		<-heard
	}
}

// lastReads is how long a client that was answered may take to close its end.
const lastReads = time.Second

// closeWrite says that nothing more comes. What the client sends meanwhile is read on: closing over it would reset the connection,
// and with it goes what the client has not read of its answer.
func closeWrite(conn net.Conn) {
	conn.SetReadDeadline(time.Now().Add(lastReads))
	if c, ok := conn.(interface{ CloseWrite() error }); ok {
		c.CloseWrite() // an error means that there is nobody to say it to
	}
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

const lastChunk = "0\r\n\r\n"

// chunkLocked writes to a bare connection.
func (w *stream) chunkLocked(p []byte, within time.Duration) error {
	var head, tail []byte
	if !w.plain {
		head = append(strconv.AppendInt(make([]byte, 0, 16), int64(len(p)), 16), "\r\n"...)
		tail = []byte("\r\n")
		if w.last {
			tail = append(tail, lastChunk...)
		}
	}
	end := time.Now().Add(within)
	if all := (len(p) - 1) / piece * piece; all > 0 { // pieces but the last, which goes out with the tail
		w.untilLocked(earlier(end, time.Now().Add(slowest)))
		if _, err := w.conn.Write(head); err != nil {
			return err
		}
		if err := inPieces(p[:all], end, w.untilLocked, w.conn); err != nil {
			return err
		}
		p, head, end = p[all:], nil, earlier(end, time.Now().Add(slowest))
	}
	w.untilLocked(end)
	_, err := w.conn.Write(slices.Concat(head, p, tail))
	return err
}

// answer writes the event that the response ends with.
func (w *stream) answer(name, answers string, data []byte) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.over {
		return errClosed
	}
	w.last = w.conn != nil
	err := w.sendLocked(name, answers, data)
	w.over = w.over || w.last
	return err
}

// finish ends the response on a bare connection, unless its answer has. It tells whether all of it was written.
func (w *stream) finish() (whole bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.broken || w.lost.Load() {
		return false
	}
	if !w.last && !w.plain {
		w.conn.SetWriteDeadline(time.Now().Add(w.within))
		if _, err := io.WriteString(w.conn, lastChunk); err != nil {
			return false
		}
	}
	return true
}

// wait waits, where the SDK's answer was withheld, until there is another one, and sends that.
func (q *request) wait() {
	if !q.out.withheld() {
		return
	}
	ctx, cancel := q.out.ctx, q.out.drop
	if q.out.conn == nil { // its end is that of what is written, too
		ctx, cancel = context.WithCancelCause(ctx)
		defer cancel(nil)
	}
	p, c := q.s.calls.take(q.e, cancel)
	if p == nil {
		return
	}
	defer q.s.calls.finish(q.e, c)
	*p.placed = false // what an earlier connection had
	if res := p.wait(tools.WithCall(ctx, p.call), q.out.notify); res != nil {
		q.reply(ctx, p, res)
	}
}

func (q *request) reply(ctx context.Context, p *parked, res *mcp.CallToolResult) {
	if !*p.placed {
		var err error
		if res, err = q.s.place(ctx, q.e, res); err != nil {
			return // nobody is there
		}
	}
	data, err := p.answer(res)
	if err != nil {
		q.s.log.Error("an answer cannot be encoded", "err", err)
		q.s.calls.undeliver(q.e) // this is not it
		if data, err = p.answer(toolError(errors.New("the answer cannot be encoded: tell the user"))); err != nil {
			return
		}
	}
	if q.out.answer(p.event, p.id, data) == nil && q.e.session != nil {
		_, msg, _ := bytes.Cut(data, []byte("data: "))
		q.s.events.replace(q.e.session.id, p.event, bytes.TrimSpace(msg))
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
func event(data []byte) []byte { return fmt.Appendf(nil, "event: message\ndata: %s\n\n", data) }

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
	return w.send("", "", event(data))
}
